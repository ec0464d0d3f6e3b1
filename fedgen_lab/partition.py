"""Who holds which picture, and how far that is from everyone holding the same: lab 01 and all federated labs.

Each splitter takes a table with one row per picture and returns one array of row numbers per client; no client is
ever left with nothing. `by_skew` is the lab's knob. The others are the splits of the literature: Dirichlet (Hsu et al.
2019, arXiv:1909.06335), pathological (McMahan et al. 2017, arXiv:1602.05629), unequal sizes.
"""

from itertools import cycle

import numpy as np
import pandas as pd

from fedgen_lab.knobs import check_whole


def by_skew(attributes, by, num_clients, skew, pictures_per_client, seed):
    """The knob. A picture of client i is of its own concept (i mod C) with probability `skew`, else of any concept.

    skew: 0, everybody holds the same mixture of all C concepts; 1, each client holds one concept only.
    Returns num_clients arrays of pictures_per_client row numbers each.

    The draws are coupled by the seed. Picture j of every client has one concept c_j, drawn in shuffled blocks of all
    C, and turns into the client's own concept when skew passes (j + 0.5) / pictures_per_client. So turning the knob
    up only ever replaces shared pictures by own ones, and `mean_js_distance` starts at 0 and never falls, whatever the
    numbers of clients and concepts: less of what all share raises a convex divergence, and so does more that differs.

    A concept's pictures are dealt from one shuffled pile: nobody gets a picture that another client holds while the
    pile lasts; then it is dealt again from the top, so any number of clients can be served.

    Raises ValueError for a skew outside [0, 1], counts below 1, an unknown attribute or an empty table.
    """
    if not 0 <= skew <= 1:
        raise ValueError(f"skew must lie in [0, 1]; got {skew!r}.")
    check_whole("num_clients", num_clients)
    check_whole("pictures_per_client", pictures_per_client)
    concepts, names = _concepts(attributes, by)
    rng = np.random.default_rng(seed)
    # The concepts that all clients share, c_j; and for each concept a shuffled pile of its pictures.
    shared = in_shuffled_blocks(pictures_per_client, len(names), rng)
    piles = [
        cycle(rng.permutation(np.flatnonzero(concepts == concept))) for concept in range(len(names))
    ]
    # Deal client by client: its own concept where the knob says so, else the shared one.
    is_own = skew > (np.arange(pictures_per_client) + 0.5) / pictures_per_client
    holdings = []
    for client in range(num_clients):
        mixture = np.where(is_own, client % len(names), shared)
        holdings.append(np.array([next(piles[concept]) for concept in mixture]))
    return holdings


def in_shuffled_blocks(number, kinds, rng):
    """`number` of the numbers 0..kinds-1, as many of each, in shuffled blocks that hold all of them."""
    blocks = [rng.permutation(kinds) for _ in range(-(-number // kinds))]
    return np.concatenate(blocks)[:number]


def iid(attributes, num_clients, seed):
    """All pictures shuffled and cut into num_clients parts whose sizes differ by one at most.

    Raises ValueError where there are fewer pictures than clients, as all the splitters below do.
    """
    _check_enough(attributes, num_clients)
    return np.array_split(np.random.default_rng(seed).permutation(len(attributes)), num_clients)


def dirichlet(attributes, by, num_clients, alpha, seed):
    """Each concept is shared out in proportions drawn from a Dirichlet distribution of concentration `alpha`.

    alpha: 100 is close to IID, 0.1 leaves most clients with few concepts and very different numbers of pictures.
    A client that the draw leaves with nothing is given one picture of the client that holds most.

    Raises ValueError for an alpha that is not positive and finite, and as `iid` does.
    """
    if not 0 < alpha < float("inf"):
        raise ValueError(
            f"alpha must be a positive number; got {alpha!r}. Try 0.1 (very uneven) to 100 (nearly even)."
        )
    _check_enough(attributes, num_clients)
    concepts, names = _concepts(attributes, by)
    rows = np.random.default_rng(seed).permutation(len(attributes))
    # Beyond these the result is the same, and gamma variates under- or overflow.
    alpha = np.clip(alpha, 1e-3, 1e6)
    # Cut each concept's pictures in the proportions drawn.
    rng = np.random.default_rng(seed)
    cuts = []
    for concept in range(len(names)):
        pictures = rows[concepts[rows] == concept]
        shares = rng.dirichlet(np.full(num_clients, alpha))  # (clients,)
        ends = (np.cumsum(shares) * len(pictures)).astype(int)[:-1]
        cuts.append(np.split(pictures, ends))
    holdings = [
        rng.permutation(np.concatenate(pieces)).tolist() for pieces in zip(*cuts, strict=True)
    ]
    # Whoever has nothing gets a picture of whoever has most.
    for holding in holdings:
        if not holding:
            holding.append(max(holdings, key=len).pop())
    return [np.array(holding) for holding in holdings]


def pathological(attributes, by, num_clients, concepts_per_client, seed):
    """Each client holds `concepts_per_client` concepts: its own (i mod C) and others drawn by the seed.

    Pictures of a concept are shared out evenly among its holders. A concept with fewer pictures than holders is dealt
    again from the top, so that each of them gets one. A concept that nobody drew is held by nobody.

    Raises ValueError where concepts_per_client is not between 1 and the number of concepts, and as `iid` does.
    """
    _check_enough(attributes, num_clients)
    concepts, names = _concepts(attributes, by)
    if not 1 <= concepts_per_client <= len(names):
        raise ValueError(
            f"concepts_per_client must lie between 1 and {len(names)}, the number of values of {by!r}; "
            f"got {concepts_per_client!r}."
        )
    # Draw the concepts of each client beside its own.
    rng = np.random.default_rng(seed)
    concepts_of = [{client % len(names)} for client in range(num_clients)]
    for drawn in concepts_of:
        while len(drawn) < concepts_per_client:
            drawn.add(rng.choice(len(names)))
    # Share each concept's pictures out among its holders.
    holdings = [[] for _ in range(num_clients)]
    piles = np.random.default_rng(seed)
    for concept in range(len(names)):
        pile = piles.permutation(np.flatnonzero(concepts == concept))
        holders = [client for client in range(num_clients) if concept in concepts_of[client]]
        if holders:
            pile = np.resize(pile, max(len(pile), len(holders)))
            for client, pictures in zip(holders, np.array_split(pile, len(holders)), strict=True):
                holdings[client].extend(pictures)
    return [rng.permutation(holding) for holding in holdings]


def unequal(attributes, num_clients, seed, ratio):
    """All pictures shuffled and cut into parts of growing size: the last is about `ratio` times the first.

    Raises ValueError for a ratio below 1, and as `iid` does.
    """
    if not 1 <= ratio < float("inf"):
        raise ValueError(
            f"ratio must be a number of at least 1 (1: all parts alike); got {ratio!r}."
        )
    _check_enough(attributes, num_clients)
    weights = np.geomspace(1 / ratio, 1, num_clients)
    # Every client gets one picture before the rest is shared out by weight.
    spare = len(attributes) - num_clients
    ends = (np.cumsum(weights) / weights.sum() * spare + 1e-9).astype(int)
    ends += np.arange(1, num_clients + 1)
    return np.split(np.random.default_rng(seed).permutation(len(attributes)), ends[:-1])


def concept_counts(attributes, by, holdings):
    """How many pictures of each concept each client holds: a table of clients (rows) x concepts (columns)."""
    concepts, names = _concepts(attributes, by)
    counts = [
        np.bincount(concepts[np.asarray(rows, int)], minlength=len(names)) for rows in holdings
    ]
    return pd.DataFrame(counts, columns=pd.Index(names, name=by)).rename_axis("client")


def mean_js_distance(counts):
    """How far the clients are from the whole, in [0, 1]: 0, all hold the same mixture; near 1, nobody shares anything.

    counts: (clients, concepts) table or array. The base-2 Jensen-Shannon distance (the square root of the divergence;
    Lin 1991) of each client's mixture to that of all clients together, averaged over clients.

    Raises ValueError where a client holds nothing: it has no mixture.
    """
    from scipy.special import rel_entr

    counts = np.asarray(counts, dtype=float)  # (clients, concepts)
    if counts.ndim != 2 or not counts.size or (counts.sum(1) <= 0).any():
        raise ValueError(
            f"counts must hold at least one picture for each client; got {counts.tolist()}."
        )
    clients = counts / counts.sum(1, keepdims=True)  # (clients, concepts): each row a mixture
    whole = counts.sum(0) / counts.sum()  # (concepts,)
    middle = (clients + whole) / 2
    nats = rel_entr(clients, middle).sum(1) + rel_entr(whole, middle).sum(1)  # (clients,)
    divergence = nats / (2 * np.log(2))
    return float(np.sqrt(divergence.clip(0, 1)).mean())  # rounding can leave a divergence of -1e-17


# -- shared by the splitters ------------------------------------------------------------------------------------------
def _concepts(attributes, by):
    """The concept number of each picture, and the sorted names. Pictures without a value have the concept "none"."""
    if by not in attributes.columns:
        columns = ", ".join(map(repr, attributes.columns)) or "none"
        raise ValueError(f"The pictures have no attribute {by!r}; they have {columns}.")
    if not len(attributes):
        raise ValueError("There are no pictures to share out. Give a table with at least one row.")
    column = attributes[by].astype(object)
    numbers, names = pd.factorize(column.where(column.notna() & (column != ""), "none"), sort=True)
    return numbers, list(names)


def _check_enough(attributes, num_clients):
    check_whole("num_clients", num_clients)
    if len(attributes) < num_clients:
        raise ValueError(
            f"{num_clients} clients cannot share {len(attributes)} pictures: each needs at least one. "
            "Choose fewer clients or add pictures."
        )
