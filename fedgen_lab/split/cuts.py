"""Where to cut: the proven best cuts for any devices, and the genetic algorithm that it replaces.

HuSCF-GAN (arXiv 2507.12979) searches 16^N cuts with a genetic algorithm. But an iteration's seconds are a sum of four
functions, each of one bit of all clients, and each is decided by a few slowest clients; so a scan over thresholds finds
the optimum and proves it. Labs 06 and 07.
"""

import numpy as np

from fedgen_lab.split.latency import SERVER, block_flops, deal_devices, iteration_legs, iteration_seconds


def parse_cuts(text, num_clients, size, batch_size, reference=False):
    """`GanScenario.cuts` as a list of N tuples (g1, g3, d1, d3), 1 where the client holds the block.

    text: "optimum" (the exact optimum for the published device profiles dealt in turn), one cut for all such as "0110",
    or one for each client with commas. Raises ValueError for anything else.
    """
    if text == "optimum":
        work = block_flops(size, batch_size, reference)
        return exact_cuts(deal_devices(num_clients), work, reference)[0]
    cuts = [cut.strip() for cut in text.split(",")]
    if len(cuts) not in (1, num_clients) or any(len(cut) != 4 or set(cut) - set("01") for cut in cuts):
        raise ValueError(
            f'cuts must be "optimum", or four bits such as "0110" for all or for each of the {num_clients} clients '
            f"with commas between; got {text!r}."
        )
    cuts = [tuple(int(bit) for bit in cut) for cut in cuts]
    return cuts * num_clients if len(cuts) == 1 else cuts


def exact_cuts(devices, work, reference=False, server=SERVER):
    """The cuts with the fewest seconds an iteration, and these seconds: (list of N tuples, seconds). Proven optimal."""
    legs, _ = iteration_legs(devices, work, reference, server)
    bits = [_best_bits(*[leg for leg in legs if leg.bit == bit]) for bit in range(4)]
    cuts = [tuple(int(bit) for bit in cut) for cut in zip(*bits, strict=True)]
    return cuts, iteration_seconds(cuts, devices, work, reference, server)


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
        could = order[one_up[order] <= bound]  # those that keep within P, by their seconds on the second leg
        never = np.setdiff1d(order, could)
        waiting = len(order) - np.arange(len(could) + 1)  # clients with bit 0 when the first j of `could` have bit 1

        def leg(zero, one, server_seconds, could=could, never=never, waiting=waiting):
            """(J + 1,) seconds of a leg when the first j of `could` have bit 1 and all others 0."""
            ones = np.maximum.accumulate(np.concatenate([[0], one[could]]))
            rest = np.concatenate([zero[could], [zero[never].max(initial=-np.inf)]])
            zeros = np.maximum.accumulate(rest[::-1])[::-1]
            return np.maximum(ones, zeros + server_seconds * waiting)

        seconds = leg(zero_up, one_up, up.server_seconds) + leg(zero_down, one_down, down.server_seconds)
        j = int(seconds.argmin())
        if seconds[j] < best:
            best, best_bits = seconds[j], np.isin(np.arange(len(order)), could[:j])
    return best_bits.astype(int)
