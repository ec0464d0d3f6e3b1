"""Who learns with whom: clusters from what the server sees, weights by KL divergence, and averaging layer by layer.

The idea of HuSCF-GAN (arXiv 2507.12979), lab 07: the discriminator's middle block lies on the server, so the server can
tell clients of different domains apart without seeing a picture. It groups them by k-means, gives less weight to a
client whose activations differ from its group's, and averages the clients' blocks within a group and its own over all.

The published code scores KL(others || client), while its comment says KL(client || others): ours is the latter, and
`reference=True` the former. k-means of unknown k: silhouettes, Rousseeuw 1987, doi 10.1016/0377-0427(87)90125-7.
"""

import numpy as np
import torch

FEWEST_STRUCTURE = (
    0.25  # a mean silhouette below this is "no substantial structure": Kaufman and Rousseeuw 1990
)
MOST_CLUSTERS = 8  # more domains than the lab has
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def cluster(taps, k=0, seed=0):
    """Group clients by their taps (N, F): an array (N,) of cluster numbers, 0 for the cluster of client 0, and so on.

    k: how many clusters (the published code takes the number of domains, which a server would not know), or 0: as many
    as give the highest mean silhouette, and one where nothing separates the clients. Fewer where fewer taps differ.
    A silhouette compares a client with others of its cluster, so it can't judge as many clusters as clients: where each
    client is of a domain of its own, 0 may find one cluster for all, and only k tells them apart.
    A client whose tap has NaN or infinity in it becomes a cluster of its own, so that it touches nobody. A tap shows a
    client's labels too: where these differ much, clients of one label come together before clients of one domain.
    Raises ValueError when taps are not one row a client, or k is negative.
    """
    taps = _as_array(taps)
    if taps.ndim != 2 or not len(taps):
        raise ValueError(
            f"taps must have the shape (clients, features); got {taps.shape}. Flatten each client's tap."
        )
    if k < 0 or int(k) != k:
        raise ValueError(
            f"k must be a whole number of at least 0 (0: chosen by silhouette); got {k!r}."
        )
    usable = np.isfinite(taps).all(axis=1)
    groups = np.full(len(taps), -1)
    if usable.any():
        groups[usable] = _k_means(taps[usable], int(k), seed)
    groups[~usable] = len(taps) + np.flatnonzero(~usable)
    return _by_first_member(groups)


def kld_scores(taps, groups=None, reference=False):
    """How far each client is from the others of its cluster: (N,) divergences in nats, 0 for equal clients.

    taps (N, C, P): each client's mean activation, C channels at P positions; they become distributions over positions
    by a softmax per channel. The score is the mean over channels of KL(client || mean of the others); with `reference`
    KL(mean of the others || client), as in the published code. Every cluster by itself; groups None: all are one.
    NaN where there is nothing to compare with: a client alone in its cluster, or one whose tap is not finite.
    Raises ValueError for taps of another shape, or not one group number a client.
    """
    taps = torch.as_tensor(taps).detach().double().cpu()
    if taps.ndim != 3:
        raise ValueError(
            f"taps must have the shape (clients, channels, positions); got {tuple(taps.shape)}."
        )
    groups = np.zeros(len(taps), int) if groups is None else _one_each("groups", groups, len(taps))
    usable = taps.isfinite().all(dim=2).all(dim=1).numpy()
    scores = np.full(len(taps), np.nan)
    for group in np.unique(groups[usable]):
        members = np.flatnonzero((groups == group) & usable)
        if len(members) < 2:
            continue
        log_p = taps[members].log_softmax(dim=2)  # (n, C, P)
        p = log_p.exp()
        log_q = (
            ((p.sum(dim=0) - p) / (len(members) - 1)).clamp(min=1e-300).log()
        )  # the mean of the others, (n, C, P)
        divergence = log_q.exp() * (log_q - log_p) if reference else p * (log_p - log_q)
        scores[members] = (
            divergence.sum(dim=2).mean(dim=1).clamp(min=0)
        )  # rounding may fall a little below 0
    return scores


def scale_free(scores):
    """The scores over their median, so that alpha means the same whatever the nets and the round; NaN stays NaN.

    Scores in the published code's units lie around 0.01, where alpha = 1 hardly differs from FedAvg.
    """
    scores = np.asarray(scores, float)
    finite = scores[np.isfinite(scores)]
    median = np.median(finite) if len(finite) else 0.0
    return scores / median if median > 0 else scores


def weights(counts, scores, groups, alpha):
    """Each client's weight in the average of its cluster, (N,), with sum 1 in every cluster: n_k exp(-alpha s_k).

    counts: pictures per client; scores: of `kld_scores` or `scale_free`; groups None: all are one cluster (the global
    weights). alpha 0 is FedAvg within the cluster, a very large one picks the client that is closest to the others.
    A client without a score weighs nothing unless nobody in its cluster has one, so one that is alone weighs 1.
    Raises ValueError for counts below 1, an alpha below 0, or unequal lengths.
    """
    counts = np.asarray(counts, float)
    scores = _one_each("scores", scores, len(counts)).astype(float)
    groups = (
        np.zeros(len(counts), int) if groups is None else _one_each("groups", groups, len(counts))
    )
    if not (counts >= 1).all():
        raise ValueError(
            f"every client must hold at least one picture; got the counts {counts.tolist()}."
        )
    if not 0 <= alpha < np.inf:
        raise ValueError(f"alpha must be a number of at least 0; got {alpha!r}.")
    result = np.zeros(len(counts))
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        scored = members[np.isfinite(scores[members])]
        if len(
            scored
        ):  # the lowest score first taken off, which cancels, so that no exponential vanishes for all
            result[scored] = counts[scored] * np.exp(
                -alpha * (scores[scored] - scores[scored].min())
            )
        else:
            result[members] = counts[members]
        result[members] /= result[members].sum()
    return result


def aggregate(states, weights, groups=None):
    """One averaged state per cluster, in the order of cluster numbers: sum over its clients of w_k * tensor.

    states: {name: tensor} of each client, all with the same names; weights: (N,), sum 1 in each cluster; groups None:
    all are one. A client of weight 0 is left out whole, so NaN in it spoils nothing.
    Raises ValueError when names differ or there is not one weight a client.
    """
    weights = _one_each("weights", weights, len(states))
    groups = (
        np.zeros(len(states), int) if groups is None else _one_each("groups", groups, len(states))
    )
    for client, state in enumerate(states):
        if state.keys() != states[0].keys():
            name = sorted(state.keys() ^ states[0].keys())[0]
            raise ValueError(
                f"clients 0 and {client} hold different tensors, for example {name!r}; average layer by "
                "layer with aggregate_layers() where clients hold different blocks."
            )
    return [
        {
            name: _mean([(weights[k], states[k][name]) for k in np.flatnonzero(groups == group)])
            for name in states[0]
        }
        for group in np.unique(groups)
    ]


def aggregate_layers(
    client_states, server_state, holds, group_weights, groups, global_weights, batch_norm="cluster"
):
    """Average layer by layer where clients hold different blocks: (one state per cluster, the server's state).

    Names are those of the whole model: "g.<block>.<parameter>" and "d.<block>.<parameter>". holds[i] is the set of
    blocks that client i holds, such as {"g.0", "g.4", "d.0", "d.4", "g.1"}. For each layer a client contributes its own
    copy if it holds one, else the server's: a cluster's blocks are the mean of these with `group_weights`, the server's
    with `global_weights` over all clients. A cluster's state has the blocks that any of its clients holds.

    batch_norm: whose running statistics the clusters' states carry: "cluster", averaged like everything else (as in the
    published code); "averaged", over all clients with `global_weights`; "local", none, so that clients and server keep
    their own. Raises ValueError when a block is neither with a client nor with the server, or for another batch_norm.
    """
    if batch_norm not in ("averaged", "local", "cluster"):
        raise ValueError(
            f'batch_norm must be "averaged", "local" or "cluster"; got {batch_norm!r}.'
        )
    groups = _one_each("groups", groups, len(client_states))
    group_weights = _one_each("group_weights", group_weights, len(client_states))
    global_weights = _one_each("global_weights", global_weights, len(client_states))
    everyone = range(len(client_states))

    def copies(
        name, members, weight
    ):  # (weight, tensor) of each member: its own copy, or the server's
        for k in members:
            state = client_states[k] if _block(name) in holds[k] else server_state
            if name not in state:
                raise ValueError(
                    f"nobody gave {name!r} for client {k}: give it the block, or the server."
                )
            yield weight[k], state[name]

    clusters = []
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        state = {}
        for name in dict.fromkeys(
            name for k in members for name in client_states[k] if _block(name) in holds[k]
        ):
            if batch_norm == "local" and is_statistic(name):
                continue
            over_all = batch_norm == "averaged" and is_statistic(name)
            state[name] = _mean(
                copies(
                    name, *((everyone, global_weights) if over_all else (members, group_weights))
                )
            )
        clusters.append(state)
    server = {
        name: tensor.clone()
        if batch_norm == "local"
        and is_statistic(name)
        or not any(_block(name) in held for held in holds)
        else _mean(copies(name, everyone, global_weights))
        for name, tensor in server_state.items()
    }
    return clusters, server


def is_statistic(name):
    """True for BatchNorm's running statistics, which no gradient touches."""
    return name.endswith(_STATISTICS)


def _k_means(taps, k, seed):
    """Cluster numbers of finite taps (n, F)."""
    from sklearn.metrics import silhouette_score

    different = len(np.unique(taps, axis=0))
    if k:
        return _fit(taps, min(k, different), seed)
    tries = [
        _fit(taps, number, seed)
        for number in range(2, min(MOST_CLUSTERS, different, len(taps) - 1) + 1)
    ]
    scored = [
        (silhouette_score(taps, groups), -i) for i, groups in enumerate(tries)
    ]  # a tie: the fewer clusters
    best, place = max(scored, default=(0.0, 0))
    return tries[-place] if best >= FEWEST_STRUCTURE else np.zeros(len(taps), int)


def _fit(taps, k, seed):
    from sklearn.cluster import KMeans

    return KMeans(n_clusters=k, random_state=seed, n_init=10).fit_predict(
        taps
    )  # ten starts, as in the original


def _by_first_member(groups):
    """The same clusters, numbered in the order in which their first clients come."""
    return np.array([list(dict.fromkeys(groups)).index(group) for group in groups])


def _mean(copies):
    """sum w * tensor over (w, tensor) pairs, in double precision, in the tensor's own type; weight 0 is left out."""
    copies = [(float(weight), tensor) for weight, tensor in copies if weight > 0]
    total = sum(weight * tensor.double() for weight, tensor in copies)
    first = copies[0][1]
    return total.to(first.dtype) if first.is_floating_point() else total.round().to(first.dtype)


def _block(name):
    """The block a tensor belongs to: "g.1" of "g.1.0.weight"."""
    return ".".join(name.split(".", 2)[:2])


def _as_array(values):
    return (
        values.detach().cpu().double().numpy()
        if isinstance(values, torch.Tensor)
        else np.asarray(values, float)
    )


def _one_each(name, values, clients):
    values = np.asarray(values)
    if values.shape != (clients,):
        raise ValueError(
            f"{name} must have one entry for each of the {clients} clients; got shape {values.shape}."
        )
    return values
