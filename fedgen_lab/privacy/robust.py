"""Averages that one dishonest client can't pull where it wants: norm clipping, median, trimmed mean, Krum.

Lab 08. Median, trimmed mean and Krum are Flower's own strategies; `CheckedFedAvg` first refuses by name what can't be
used, then hands the rest to them through `robust_combine`. Beside the result stands how much of each client's upload
it took in. Median and trimmed mean: Yin et al., arXiv 1803.01498. Krum: Blanchard et al., arXiv 1703.02757. Norm
clipping against backdoors: Sun et al., arXiv 1911.07963.
"""

import logging

import numpy as np

from fedgen_lab.scenario import DEFENCES


def robust_combine(scenario):
    """The scenario's defence as `CheckedFedAvg(combine=...)` takes it: f(server_round, sent, uploads, weights) -> dict.

    After each round `f.shares` holds how much of each accepted upload went in (see `combine`), in their order.
    Raises ValueError when the scenario has too few clients for its defence and attackers.
    """
    attackers = max(1, scenario.attackers)  # a defence that expects nobody would be the mean
    if scenario.defence in ("median", "trimmed", "krum"):
        _flower_strategy(scenario.defence, attackers, scenario.num_clients)

    def f(server_round, sent, uploads, weights):
        state, f.shares = combine(
            sent, uploads, weights, scenario.defence, attackers, scenario.clip
        )
        return state

    f.shares = []
    return f


def combine(received, states, weights=None, defence="mean", attackers=1, clip=0.0):
    """Combine what clients sent by one of DEFENCES. Returns (state, shares). States are name -> NumPy array.

    received: the state all clients started from; states: one per client, with the same names and shapes.
    weights: pictures of each client, which "mean" and "clip" weigh by; the others count heads: a client may lie.
    attackers: how many dishonest clients to bear (trimmed, krum). clip: the length up to which a client's change counts
    in full (clip); 0 takes the median length of the round.
    shares: for each client, in [0, 1]: the factor its change was scaled by (mean, clip), or the share of the numbers
    of the result that it had a hand in (median, trimmed, krum).
    Raises ValueError for no client, an unknown defence, or too few clients to bear that many attackers.
    """
    if defence not in DEFENCES:
        raise ValueError(f"defence must be one of {', '.join(DEFENCES)}; got {defence!r}.")
    if clip < 0:
        raise ValueError(
            f"clip must be at least 0; got {clip!r}. 0 takes the median length of the round's updates."
        )
    if not states:
        raise ValueError("There are no uploads to combine; give at least one client's state.")
    changes = [
        {name: np.asarray(state[name]) - received[name] for name in received} for state in states
    ]
    if defence in ("mean", "clip"):
        lengths = [norm(change) for change in changes]
        longest = (clip or float(np.median(lengths))) if defence == "clip" else np.inf
        shares = [min(1.0, longest / length) if length else 1.0 for length in lengths]
        weights = np.ones(len(states)) if weights is None else np.asarray(weights, dtype=float)
        scale = np.asarray(shares) * weights / weights.sum()
        change = {
            name: sum(s * one[name] for s, one in zip(scale, changes, strict=True))
            for name in received
        }
    else:
        change = _by_flower(_flower_strategy(defence, attackers, len(states)), changes)
        shares = _shares(defence, attackers, changes, change)
    state = {
        name: np.asarray(received[name] + change[name], dtype=received[name].dtype)
        for name in received
    }
    return state, shares


def norm(change):
    """The Euclidean length of a whole update, over all its arrays."""
    return float(np.sqrt(sum(np.square(array, dtype=float).sum() for array in change.values())))


def _flower_strategy(defence, attackers, number):
    """Flower's own strategy for `number` clients."""
    from flwr.serverapp.strategy import FedMedian, FedTrimmedAvg, Krum

    if defence == "median":
        return FedMedian()
    if defence == "trimmed":
        if 2 * attackers >= number:
            raise ValueError(
                f"The trimmed mean can't cut {attackers} uploads on either side of {number}; "
                f"lower attackers below {number / 2:g}, or take more clients."
            )
        return FedTrimmedAvg(beta=attackers / number)
    if number < 2 * attackers + 3:
        raise ValueError(
            f"Krum bears attackers={attackers} only among {2 * attackers + 3} clients or more; got {number}. "
            "Take more clients, or another defence."
        )
    return Krum(num_malicious_nodes=attackers)


def _by_flower(strategy, changes):
    """What a Flower strategy makes of the clients' changes, every head counting one: name -> array."""
    from flwr.app import Array, ArrayRecord, Message, Metadata, MetricRecord, RecordDict

    replies = []
    for client, change in enumerate(changes):
        arrays = ArrayRecord(
            {name: Array(array) for name, array in change.items()}
        )  # the strategy empties these
        content = RecordDict(
            {"arrays": arrays, "metrics": MetricRecord({strategy.weighted_by_key: 1.0})}
        )
        about = Metadata(1, str(client), client, 0, "", "1", 0.0, 3600.0, "train")
        replies.append(Message(content, metadata=about))
    log = logging.getLogger("flwr")
    level = log.level
    log.setLevel(logging.ERROR)  # it would tell how many replies there are
    try:
        arrays, _ = strategy.aggregate_train(1, replies)
    finally:
        log.setLevel(level)
    return {name: array.numpy() for name, array in arrays.items()}


def _shares(defence, attackers, changes, result):
    """The share of the result's numbers that each client had a hand in."""
    stacked = np.stack(
        [np.concatenate([one[name].ravel() for name in result]) for one in changes]
    )  # (clients, D)
    if defence == "krum":  # the result is one client's change
        found = np.concatenate([array.ravel() for array in result.values()])
        return np.isclose(stacked, found, rtol=1e-5).all(1).astype(float).tolist()
    number = len(changes)
    rank = stacked.argsort(0).argsort(0)  # (clients, D): 0 for the smallest of each number
    cut = attackers if defence == "trimmed" else (number - 1) // 2
    return ((rank >= cut) & (rank < number - cut)).mean(1).tolist()
