"""Where to cut: the proven best cuts for any devices, and the genetic algorithm that it replaces.

HuSCF-GAN (arXiv 2507.12979) searches 16^N cuts with a genetic algorithm. But an iteration's seconds are a sum of four
functions, each of one bit of all clients, and each is decided by a few slowest clients; so a scan over thresholds finds
the optimum and proves it. Labs 06 and 07.
"""

from itertools import product

import numpy as np

from fedgen_lab.split.latency import (
    SERVER,
    block_flops,
    deal_devices,
    iteration_legs,
    iteration_seconds,
    memory_bytes,
)

_EVERY = np.array(list(product((0, 1), repeat=4)))  # (16, 4) the cuts that a device may have


def parse_cuts(text, num_clients, size, batch_size, reference=False):
    """`GanScenario.cuts` as a list of N tuples (g1, g3, d1, d3), 1 where the client holds the block.

    text: "optimum" (the exact optimum for the published device profiles dealt in turn), one cut for all such as "0110",
    or one for each client with commas. Raises ValueError for anything else.
    """
    if text == "optimum":
        work = block_flops(size, batch_size, reference)
        return exact_cuts(deal_devices(num_clients), work, reference)[0]
    cuts = [cut.strip() for cut in text.split(",")]
    if len(cuts) not in (1, num_clients) or any(
        len(cut) != 4 or set(cut) - set("01") for cut in cuts
    ):
        raise ValueError(
            f'cuts must be "optimum", or four bits such as "0110" for all or for each of the {num_clients} clients '
            f"with commas between; got {text!r}."
        )
    cuts = [tuple(int(bit) for bit in cut) for cut in cuts]
    return cuts * num_clients if len(cuts) == 1 else cuts


def exact_cuts(devices, work, reference=False, server=SERVER):
    """The cuts with the fewest seconds an iteration, and these seconds: (list of N tuples, seconds). Proven optimal.

    Where a device has `memory_bytes`, its blocks must fit. A limit that binds ties the four bits of a device together;
    then a mixed-integer program (HiGHS, through SciPy) takes the place of the scan, within a millionth of the optimum.
    For 80 devices the scan takes milliseconds, the program up to a few seconds of one core.

    Raises ValueError when a device's memory can't even hold head and tail.
    """
    legs, _ = iteration_legs(devices, work, reference, server)
    bits = [_best_bits(*[leg for leg in legs if leg.bit == bit]) for bit in range(4)]
    cuts = np.stack(bits, axis=1)  # (N, 4)
    room = _room(devices, work)  # (N,)
    if (memory_bytes(cuts, work) > room).any():
        cuts = _best_within(
            room, legs, work, iteration_seconds(cuts, devices, work, reference, server)
        )
    return _tuples(cuts), iteration_seconds(cuts, devices, work, reference, server)


def genetic_cuts(
    devices,
    work,
    seed=0,
    generations=300,
    population=1000,
    reference=False,
    server=SERVER,
    tile=1,
    on_generation=None,
    should_stop=None,
):
    """The best cuts that a genetic algorithm met, and their seconds: (list of N tuples, seconds). Nothing is proven.

    The published recipe, through DEAP: tournaments of five; crossover for 0.7 of the pairs, half of them uniform and
    half two-point; each bit flips with probability 0.01. Theirs forgot its best cuts; ours keeps them. Cuts that don't
    fit a device's memory count as infinitely slow. tile: so many clients, the most alike, share one cut; the published
    code takes four, for a shorter genome.

    on_generation(generation, seconds, cuts): called after each generation with the best so far. should_stop(): asked
    before each; what was found is returned. Raises ValueError as `exact_cuts`, when `population` is below two, and when
    `tile` is below one.
    """
    import random

    from deap import base, tools

    if population < 2:
        raise ValueError(
            f"population must be at least 2, so that there are parents; got {population!r}."
        )
    if tile < 1:
        raise ValueError(f"tile must be at least 1 client; got {tile!r}.")

    class Fitness(base.Fitness):
        weights = (-1.0,)  # fewer seconds are better

    class Individual(list):
        def __init__(self, bits):
            super().__init__(bits)
            self.fitness = Fitness()

    room = _room(devices, work)
    tile_of = np.empty(
        len(devices), int
    )  # (N,) the clients in order of speed and link, cut into tiles
    alike = sorted(
        range(len(devices)), key=lambda i: (devices[i].flops_per_second, devices[i].bits_per_second)
    )
    tile_of[alike] = np.arange(len(devices)) // tile
    width = 4 * (tile_of.max() + 1)

    def cuts_of(individuals):
        """(M, N, 4)"""
        return np.array(individuals, dtype=np.int8).reshape(len(individuals), -1, 4)[:, tile_of]

    def judge(individuals):
        cuts = cuts_of(individuals)
        seconds = iteration_seconds(cuts, devices, work, reference, server)  # (population,)
        seconds = np.where((memory_bytes(cuts, work) > room).any(-1), np.inf, seconds)
        for individual, value in zip(individuals, seconds, strict=True):
            individual.fitness.values = (value,)

    def breed(parents):
        children = [Individual(parent) for parent in parents]
        for one, other in zip(children[::2], children[1::2], strict=False):
            if random.random() < 0.7:
                tools.cxUniform(one, other, 0.5) if random.random() < 0.5 else tools.cxTwoPoint(
                    one, other
                )
        for child in children:
            tools.mutFlipBit(child, 0.01)
        return children

    individuals = [
        Individual(row)
        for row in np.random.default_rng(seed).integers(0, 2, (population, width)).tolist()
    ]
    if np.isfinite(room).any():
        individuals[0] = Individual([0] * width)  # fits for certain
    judge(individuals)
    fame = tools.HallOfFame(1)
    fame.update(individuals)
    # DEAP draws from Python's global stream: lend it our own for each generation.
    ours = random.Random(seed).getstate()
    for generation in range(1, generations + 1):
        if should_stop is not None and should_stop():
            break
        others = random.getstate()
        random.setstate(ours)
        try:
            individuals = breed(tools.selTournament(individuals, population, 5))
        finally:
            ours = random.getstate()
            random.setstate(others)
        judge(individuals)
        fame.update(individuals)
        if on_generation is not None:
            on_generation(generation, fame[0].fitness.values[0], _tuples(cuts_of(fame)[0]))
    return _tuples(cuts_of(fame)[0]), fame[0].fitness.values[0]


def _best_bits(up, down):
    """The bits (N,) of one free block that minimise its two legs, by a scan over thresholds.

    Say the clients with bit 1 take at most P seconds on the first leg and at most Q on the second. Then every other
    client that could also keep within P and Q should have bit 1: that shortens the server's batch and takes a client
    from those it waits for. So the best choice is "all with at most P and at most Q" for some P and Q, and only the
    clients' own seconds need be tried.
    """
    (zero_up, one_up), (zero_down, one_down) = up.own_seconds(), down.own_seconds()  # each (N,)
    order = np.argsort(one_down, kind="stable")
    best, best_bits = np.inf, None
    for bound in [-np.inf, *np.unique(one_up)]:
        could = order[
            one_up[order] <= bound
        ]  # those that keep within P, by their seconds on the second leg
        never = np.setdiff1d(order, could)
        waiting = len(order) - np.arange(
            len(could) + 1
        )  # clients with bit 0 when the first j of `could` have bit 1

        def leg(zero, one, server_seconds, could=could, never=never, waiting=waiting):
            """(J + 1,) seconds of a leg when the first j of `could` have bit 1 and all others 0."""
            ones = np.maximum.accumulate(np.concatenate([[0], one[could]]))
            rest = np.concatenate([zero[could], [zero[never].max(initial=-np.inf)]])
            zeros = np.maximum.accumulate(rest[::-1])[::-1]
            return np.maximum(ones, zeros + server_seconds * waiting)

        seconds = leg(zero_up, one_up, up.server_seconds) + leg(
            zero_down, one_down, down.server_seconds
        )
        j = (
            len(seconds) - 1 - int(seconds[::-1].argmin())
        )  # of equals the last: equal devices stay together
        if seconds[j] < best:
            best, best_bits = seconds[j], np.isin(np.arange(len(order)), could[:j])
    return best_bits.astype(int)


def _best_within(room, legs, work, scale):
    """The best cuts (N, 4) whose blocks fit into `room` (N,) bytes, as a mixed-integer program.

    Clients with equal devices are of one kind. Unknowns: whether any client of a kind has a bit 0 or 1, which costs the
    kind's own seconds; where a kind has several clients, how many of them take each of the sixteen cuts; for each bit
    the number of clients where it is 0; the seconds of the 8 legs, whose sum is to be least. What fits is decided here,
    exactly: the solver's tolerance would let some bytes too many pass. scale: seconds that make the numbers about one,
    as the solver likes them.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    own = np.array([leg.own_seconds() for leg in legs]) / scale  # (8, 2, N)
    alike = np.vstack([room, own.reshape(-1, len(room))])  # (17, N)
    _, first, kind_of, many = np.unique(
        alike, axis=1, return_index=True, return_inverse=True, return_counts=True
    )
    kind_of = kind_of.ravel()  # numpy 2.0 gives (1, N)
    fits = memory_bytes(_EVERY, work) <= room[first, None]  # (K, 16)
    kinds = len(many)
    any_at = np.arange(8 * kinds).reshape(kinds, 4, 2)
    cut_at = 8 * kinds + np.arange(16 * kinds).reshape(kinds, 16)
    zeros_at = 24 * kinds + np.arange(4)
    leg_at = 24 * kinds + 4 + np.arange(8)
    rows, low, high = [], [], []  # rows: one {unknown: factor} each

    def require(factors, at_least=-np.inf, at_most=np.inf):
        rows.append(factors), low.append(at_least), high.append(at_most)

    zeros = [{zeros_at[bit]: -1} for bit in range(4)]
    for kind, number in enumerate(many):
        if number > 1:
            require(dict.fromkeys(cut_at[kind], 1), number, number)
        else:  # four bits do; of a cut that doesn't fit, at least one must be 0
            for cut in _EVERY[~fits[kind]]:
                require(dict.fromkeys(any_at[kind, cut == 1, 1], 1), at_most=cut.sum() - 1)
        for bit in range(4):
            with_bit = [dict.fromkeys(cut_at[kind, _EVERY[:, bit] == value], 1) for value in (0, 1)]
            zeros[bit] |= with_bit[0] if number > 1 else {any_at[kind, bit, 0]: 1}
            if number > 1:
                for value in (0, 1):
                    require(with_bit[value] | {any_at[kind, bit, value]: -number}, at_most=0)
            else:
                require(dict.fromkeys(any_at[kind, bit], 1), 1, 1)
    for factors in zeros:
        require(factors, 0, 0)
    for number, leg in enumerate(legs):
        waiting = leg.server_seconds / scale
        for (zero, one), (with_zero, with_one) in zip(
            own[number][:, first].T, any_at[:, leg.bit], strict=True
        ):
            require({leg_at[number]: 1, zeros_at[leg.bit]: -waiting, with_zero: -zero}, at_least=0)
            require({leg_at[number]: 1, with_one: -one}, at_least=0)

    counts = fits * np.where(many > 1, many, 0)[:, None]  # (K, 16) none where bits are enough
    most = np.concatenate([np.ones(8 * kinds), counts.ravel(), np.full(12, np.inf)])
    entries = [
        (row, column, factor)
        for row, factors in enumerate(rows)
        for column, factor in factors.items()
    ]
    row, column, factor = zip(*entries, strict=True)
    places = (
        np.array(row, np.int32),
        np.array(column, np.int32),
    )  # scipy before 1.15 takes no wider ones
    found = milp(
        c=np.arange(len(most)) >= leg_at[0],
        integrality=np.arange(len(most)) < leg_at[0],
        bounds=Bounds(0, most),
        constraints=LinearConstraint(
            coo_array((factor, places), (len(rows), len(most))).tocsr(), low, high
        ),
        options={"mip_rel_gap": 1e-9},
    )
    if found.x is None:
        raise RuntimeError(f"The solver found no cuts within the devices' memory: {found.message}")
    solved, cuts = found.x[: leg_at[0]].round().astype(int), np.empty((len(room), 4), int)
    for kind, number in enumerate(many):
        taken = (
            _EVERY.repeat(solved[cut_at[kind]], axis=0)
            if number > 1
            else solved[any_at[kind, :, 1]]
        )
        cuts[kind_of == kind] = taken
    return cuts


def _room(devices, work):
    """Each device's memory in bytes (N,), infinite where it has no limit."""
    room = np.array(
        [np.inf if device.memory_bytes is None else device.memory_bytes for device in devices]
    )
    least = memory_bytes((0, 0, 0, 0), work)
    if (room < least).any():
        device = devices[int(room.argmin())]
        raise ValueError(
            f"{device.name} has {device.memory_bytes / 1e6:.1f} MB, but head and tail of both nets, which always lie "
            f"on the client, take {least / 1e6:.1f} MB; give it more memory, or choose a smaller size or batch."
        )
    return room


def _tuples(cuts):
    """Cuts (N, 4) as a list of N tuples of ints."""
    return [tuple(int(bit) for bit in cut) for cut in cuts]
