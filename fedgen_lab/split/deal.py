"""From a `GanScenario` to pictures: who holds what of which domain, and what is held out to judge by.

Labs 06 and 07, and the scenarios S1 to S6 of HuSCF-GAN (arXiv 2507.12979) at any number of clients. The schemes of
leaving labels out are those of its published code.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from fedgen_lab.partition import by_skew
from fedgen_lab.pictures.domains import HELD_OUT_SHARE, NUM_LABELS, OFFLINE, load_domain
from fedgen_lab.split.nets import SIZES
from fedgen_lab.split.scenario import GanScenario

# How each share leaves labels out: {labels left out: chance} and {part of the full size: chance}.
SCHEMES = {
    "iid": ({0: 1}, {1: 1}),
    "non-iid": ({0: 25 / 75, 2: 30 / 75, 3: 10 / 75, 4: 10 / 75}, {1: 0.7, 2 / 3: 0.3}),
    "highly-non-iid": ({2: 0.4, 3: 0.6}, {1: 0.5, 1 / 3: 0.3, 1 / 6: 0.2}),
}
SCENARIOS = {  # share, number of domains, clients and pictures per client of the original
    "S1": ("iid", 1, 100, 600),
    "S2": ("non-iid", 1, 100, 600),
    "S3": ("iid", 2, 100, 600),
    "S4": ("non-iid", 2, 100, 600),
    "S5": ("highly-non-iid", 2, 100, 600),
    "S6": ("iid", 4, 80, 750),
}
IN_PLACE_OF = (
    "digits",
    "garments",
    "runes",
    "letters",
)  # MNIST, Fashion-MNIST, KMNIST and notMNIST
DIGITS = 1_438  # pictures in the training part of "digits": all that there are
FEWEST_HELD_OUT = (
    7  # precision and recall look at five neighbours: `fedgen_lab.scores.precision_recall`
)
FEWEST = 2  # pictures of a client, whatever its share: BatchNorm needs two
_POOL, _HELD_OUT, _SHARE = (
    9_000_000,
    9_100_000,
    9_200_000,
)  # first keys of seeds, which no client's number reaches


@dataclass(frozen=True)
class Dealt:
    """The pictures of one scenario. Everything follows from the scenario and its seed; nobody may change the tensors.

    pictures, labels: one tensor per client, (n_i, C, H, W) float32 in [-1, 1] and (n_i,) int64.
    domain_of: (clients,) the number of each client's domain; domains: their names.
    held_out: one `Domain` each, of the size of the nets; no client holds any of these pictures.
    counts: a table of clients (rows) x labels (columns).
    """

    pictures: list
    labels: list
    domain_of: np.ndarray
    domains: list
    held_out: list
    counts: pd.DataFrame


def deal(scenario):
    """The `Dealt` of a scenario: client i holds pictures of domain i mod D.

    Where label skew asks for more pictures of a label than a domain has, they are dealt again from the top (see
    `fedgen_lab.partition.by_skew`); the other shares never give a picture to two clients.

    Raises ValueError when there are fewer clients than domains, a domain's pictures are grey and the nets take colour
    (or the other way round), or a domain holds too few to deal, or fewer than `FEWEST_HELD_OUT` to judge by; and as
    `load_domain` does.
    """
    return _dealt(_what_matters(scenario))


def deal_to(scenario, client):
    """The pictures (n, C, H, W) and labels (n,) of one client: what `deal` gives it, without all that others hold.

    For a device that has only its own domain to read. Raises ValueError as `deal` does.
    """
    scenario = _what_matters(scenario)
    if not 0 <= client < scenario.num_clients:
        raise ValueError(f"client must lie in 0..{scenario.num_clients - 1}; got {client!r}.")
    place, number = divmod(client, len(scenario.domain_names))
    return _dealt_of_domain(scenario, number)[place]


def published_scenario(name, num_clients=None, **changes):
    """Scenario "S1" to "S6" of the original as a `GanScenario`, with `changes` on top.

    num_clients: None for the original's whole size: its clients, nets, batches and rounds. With a number it is the
        lesson's size. Without `domains`, those that need no download stand in for the original's; the few real digits
        that there are then bound `pictures_per_client`. With no more clients than domains give `num_clusters` too:
        silhouettes, which choose it otherwise, can't tell clients apart that are each alone in their domain.

    Raises ValueError for another name.
    """
    if name not in SCENARIOS:
        raise ValueError(
            f"There is no published scenario {name!r}. Choose from: {', '.join(SCENARIOS)}."
        )
    share, num_domains, clients, each = SCENARIOS[name]
    knobs = {"share": share, "domains": ",".join(IN_PLACE_OF[:num_domains])}
    if num_clients is None:
        knobs |= {
            "num_clients": clients,
            "pictures_per_client": each,
            "size": "reference",
            "rounds": 50,
        }
        knobs |= {
            "batch_size": 64,
            "learning_rate": 2e-4,
            "iterations": 5 * -(-each // 64),
        }  # five local epochs
    else:
        knobs["num_clients"] = num_clients
    scenario = GanScenario.for_profile(**(knobs | changes))
    if "digits" in scenario.domain_names and "pictures_per_client" not in changes:
        there_are = max(FEWEST, DIGITS // scenario.num_clients)
        changes["pictures_per_client"] = min(there_are, scenario.pictures_per_client)
        scenario = GanScenario.for_profile(**(knobs | changes))
    return scenario


def _what_matters(scenario):
    """The scenario with its defaults but for the knobs that decide who holds what; checked for enough clients."""
    knobs = (
        "num_clients",
        "domains",
        "share",
        "skew",
        "pictures_per_client",
        "unequal",
        "size",
        "seed",
    )
    scenario = GanScenario(**{name: getattr(scenario, name) for name in knobs})
    names = scenario.domain_names
    if not names:
        raise ValueError(
            f"domains must name at least one domain, such as {','.join(OFFLINE[:2])!r}."
        )
    if scenario.num_clients < len(names):
        raise ValueError(
            f"{len(names)} domains need at least as many clients; num_clients is {scenario.num_clients}. "
            "Raise it, or name fewer domains."
        )
    return scenario


@lru_cache(maxsize=4)  # a method switcher and a sweep deal the same scenario again and again
def _dealt(scenario):
    names, side = scenario.domain_names, SIZES[scenario.size].side
    parts = [_dealt_of_domain(scenario, number) for number in range(len(names))]
    held = [
        parts[client % len(names)][client // len(names)] for client in range(scenario.num_clients)
    ]
    pictures, labels = (list(each) for each in zip(*held, strict=True))
    held_out = [
        load_domain(name, None, side, scenario.seed_of(_HELD_OUT, number), held_out=True)
        for number, name in enumerate(names)
    ]
    for domain in held_out:
        if len(domain) < FEWEST_HELD_OUT:
            raise ValueError(
                f"The held-out part of {domain.name!r} has {len(domain)} pictures; scores need {FEWEST_HELD_OUT} or "
                f"more. Add pictures: of a set in one part, {HELD_OUT_SHARE:.0%} of each label are held out, rounded."
            )
    counts = pd.DataFrame(
        [np.bincount(each, minlength=NUM_LABELS) for each in labels],
        index=pd.RangeIndex(len(labels), name="client"),
        columns=pd.RangeIndex(NUM_LABELS, name="label"),
    )
    return Dealt(
        pictures, labels, np.arange(scenario.num_clients) % len(names), names, held_out, counts
    )


@lru_cache(maxsize=16)
def _dealt_of_domain(scenario, number):
    """(pictures, labels) of each client of domain `number`, in the clients' order."""
    name, sizes = scenario.domain_names[number], _sizes(scenario)
    mine = sizes[number :: len(scenario.domain_names)]
    pool = _pool(name, scenario, number, mine, int(sizes.sum()))
    rng = np.random.default_rng(scenario.seed_of(_SHARE, number))
    rows = (_by_skew if scenario.share == "skew" else _by_scheme)(pool, scenario, mine, rng)
    return [(part.as_tensor(), part.labels) for part in map(pool.take, rows)]


def _sizes(scenario):
    """How many pictures each client is to hold: (clients,). Unequal: the last about ten times the first, same mean."""
    number = scenario.num_clients
    weights = np.geomspace(0.1, 1, number) if scenario.unequal and number > 1 else np.ones(number)
    sizes = np.rint(weights / weights.mean() * scenario.pictures_per_client).astype(int)
    return np.maximum(sizes, FEWEST)


def _pool(name, scenario, number, sizes, of_all):
    """The pictures of domain `number` that its clients share out.

    sizes: (clients of this domain,) how many each is to hold; of_all: how many the clients of all domains are to hold,
    which is what every domain of the original has.
    """
    by_label, size = scenario.share == "skew", SIZES[scenario.size]
    biggest = int(sizes.max())
    if by_label:  # enough of each label to give no picture to two clients
        own = int(np.ceil(scenario.skew * biggest))
        shared = min(-(-biggest // NUM_LABELS), biggest - own)
        wanted = NUM_LABELS * (-(-len(sizes) // NUM_LABELS) * own + len(sizes) * shared)
    else:
        wanted = of_all
    is_drawn = name in OFFLINE[1:] or name.startswith("sprites:")
    pool = load_domain(
        name, wanted if is_drawn else None, size.side, scenario.seed_of(_POOL, number)
    )
    if pool.images.shape[1] != size.channels:
        kinds = {1: "grey", 3: "in colour"}
        raise ValueError(
            f"The pictures of {name!r} are {kinds[pool.images.shape[1]]}; nets of size {scenario.size!r} take pictures "
            f"that are {kinds[size.channels]}. Change the domain or the size."
        )
    needed = biggest if by_label else int(sizes.sum())
    if len(pool) < needed:
        raise ValueError(
            f"The training part of {name!r} has {len(pool):,} pictures; this scenario deals {needed:,} of them. "
            f"Lower pictures_per_client (now {scenario.pictures_per_client:,}){'' if by_label else ' or num_clients'}."
        )
    return pool if by_label else pool.take(range(min(wanted, len(pool))))


def _by_skew(pool, scenario, sizes, rng):
    """Rows for each client of one domain by the knob `skew`; a client with fewer pictures has the same mixture."""
    biggest = int(sizes.max())
    table, seed = pd.DataFrame({"label": pool.labels.numpy()}), int(rng.integers(2**31))
    parts = by_skew(table, "label", len(sizes), scenario.skew, biggest, seed)
    return [
        part[np.arange(size) * biggest // size] for part, size in zip(parts, sizes, strict=True)
    ]


def _by_scheme(pool, scenario, sizes, rng):
    """Rows for each client of one domain: an equal part, less the labels that it leaves out, and at most its size."""
    left_out, shares = SCHEMES[scenario.share]
    ends = np.floor(np.cumsum(sizes) / sizes.sum() * len(pool) + 1e-9).astype(int)
    parts = np.split(rng.permutation(len(pool)), ends[:-1])
    labels, dealt = pool.labels.numpy(), []
    for part, size in zip(parts, sizes, strict=True):
        number = rng.choice(list(left_out), p=list(left_out.values()))
        share = rng.choice(list(shares), p=list(shares.values()))
        excluded = rng.choice(NUM_LABELS, number, replace=False)
        kept = part[~np.isin(labels[part], excluded)]
        if len(kept) < FEWEST:  # a tiny part may hold nothing else
            kept = part[:FEWEST]
        dealt.append(kept[: max(FEWEST, round(share * size))])
    return dealt
