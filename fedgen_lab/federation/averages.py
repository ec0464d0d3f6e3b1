"""Many states become one: the mean, averages that no single client can pull where it wants, and the mean with noise.

Labs 01 and 08. A state is {name: NumPy array}. A rule of `CheckedFedAvg` is a function `combine(server_round, sent,
uploads, weights)` that returns the next state: `sent` is what the server gave out, `uploads` are the clients' states in
the order of their partition ids, `weights` their numbers of pictures. `weighted_mean` is such a rule; `robust_combine`
and `private_mean` make one.
"""

import numpy as np

from fedgen_lab.federation.secret import noise_source
from fedgen_lab.scenario import DEFENCES


def weighted_mean(server_round, sent, uploads, weights):
    """FedAvg's rule, McMahan et al., arXiv 1602.05629: sum_k n_k / n * w_k, array by array, in their own dtype."""
    total = sum(weights)
    average = {}
    for name, array in uploads[0].items():
        mean = sum(
            upload[name] * (weight / total) for upload, weight in zip(uploads, weights, strict=True)
        )
        average[name] = np.asarray(mean, dtype=array.dtype)
    return average


# -- states as vectors -------------------------------------------------------------------------------------------------


def change_of(state, start):
    """What was trained: `state` minus the state it started from, name by name."""
    return {name: np.asarray(state[name]) - array for name, array in start.items()}


def flat(state):
    """All numbers of a state as one vector (D,): its arrays end to end."""
    return np.concatenate([np.ravel(array) for array in state.values()])


def shaped(vector, like):
    """The inverse of `flat`: a vector (D,) as a state with the names, shapes and dtypes of `like`."""
    ends = np.cumsum([array.size for array in like.values()])
    pieces = np.split(vector, ends[:-1])
    return {
        name: piece.reshape(array.shape).astype(array.dtype)
        for (name, array), piece in zip(like.items(), pieces, strict=True)
    }


def norm(state):
    """The Euclidean length of a state, or of a change of one, taken as one vector; computed in float64."""
    return float(np.linalg.norm(flat(state).astype(np.float64)))


# -- averages that one dishonest client can't pull where it wants ------------------------------------------------------


def median(changes):
    """The median over the clients of every single number: changes (K, D) -> (D,). Yin et al., arXiv 1803.01498."""
    return np.median(changes, axis=0)


def trimmed_mean(changes, attackers):
    """The mean of every number without its `attackers` smallest and largest values: changes (K, D) -> (D,).

    Yin et al., arXiv 1803.01498. Raises ValueError when nothing would be left.
    """
    check_defence("trimmed", attackers, len(changes))
    # Every number on its own, from the smallest client to the largest.
    ordered = np.sort(changes, axis=0)
    # The ends on both sides are left out.
    return ordered[attackers : len(changes) - attackers].mean(axis=0)


def krum(changes, attackers):
    """Which client's change lies best in the crowd: changes (K, D) -> its row. Blanchard et al., arXiv 1703.02757.

    Raises ValueError for fewer than 2 attackers + 3 clients.
    """
    check_defence("krum", attackers, len(changes))
    # Squared distances between all clients, (K, K).
    distances = np.stack([np.square(changes - change).sum(axis=1) for change in changes])
    # A client's score: how far the nearest K - attackers - 2 are from it. In its row it comes first itself.
    nearest = np.sort(distances, axis=1)[:, 1 : len(changes) - attackers - 1]
    scores = nearest.sum(axis=1)
    return int(scores.argmin())


def check_defence(defence, attackers, num_clients):
    """Raises ValueError where `num_clients` are too few for a defence to bear that many attackers."""
    if defence == "trimmed" and 2 * attackers >= num_clients:
        raise ValueError(
            f"The trimmed mean can't cut {attackers} uploads on either side of {num_clients}; "
            f"lower attackers below {num_clients / 2:g}, or take more clients."
        )
    if defence == "krum" and num_clients < 2 * attackers + 3:
        raise ValueError(
            f"Krum bears attackers={attackers} only among {2 * attackers + 3} clients or more; got {num_clients}. "
            "Take more clients, or another defence."
        )


def combine(sent, states, weights=None, defence="mean", attackers=1, clip=0.0):
    """Combine what clients made of `sent` by one of DEFENCES. Returns (state, shares).

    states: one per client, with the names and shapes of `sent`. weights: pictures of each client, which "mean" and
    "clip" weigh by; the other defences count heads: a client may lie. attackers: how many dishonest clients to bear
    (trimmed, krum). clip: the length up to which a client's change counts in full (clip; Sun et al., arXiv 1911.07963);
    0 takes the median length of the round.
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
    number = len(states)
    changes = [change_of(state, sent) for state in states]
    vectors = np.stack([flat(change) for change in changes])  # (K, D)
    if defence in ("mean", "clip"):
        # Long changes are shortened, then the mean is taken; "mean" shortens none.
        longest = np.inf
        if defence == "clip":
            longest = clip or float(np.median([norm(change) for change in changes]))
        shares = [shortening(change, longest) for change in changes]
        weights = np.ones(number) if weights is None else np.asarray(weights, dtype=float)
        change = (np.asarray(shares) * weights / weights.sum()) @ vectors
    elif defence == "krum":
        # One client's change is taken whole.
        change = vectors[krum(vectors, attackers)]
        shares = (vectors == change).all(axis=1).astype(float).tolist()
    else:
        # Every number is taken from the middle of the clients.
        if defence == "median":
            change, cut = median(vectors), (number - 1) // 2
        else:
            change, cut = trimmed_mean(vectors, attackers), attackers
        ranks = vectors.argsort(axis=0).argsort(axis=0)  # (K, D): 0 for the smallest of each number
        shares = ((ranks >= cut) & (ranks < number - cut)).mean(axis=1).tolist()
    return shaped(flat(sent) + change, sent), shares


def robust_combine(scenario):
    """The scenario's defence as a rule of `CheckedFedAvg`, which refuses by name what can't be used before that.

    Raises ValueError when the scenario has too few clients for its defence and attackers.
    """
    attackers = max(1, scenario.attackers)  # a defence that expects nobody would be the mean
    check_defence(scenario.defence, attackers, scenario.num_clients)

    def rule(server_round, sent, uploads, weights):
        state, _ = combine(sent, uploads, weights, scenario.defence, attackers, scenario.clip)
        return state

    return rule


# -- the mean with noise -----------------------------------------------------------------------------------------------


def shortening(change, clip):
    """The factor in (0, 1] that brings a change down to norm `clip`, 1 where it isn't longer."""
    length = norm(change)
    return min(1.0, clip / length) if length else 1.0


def clipped(change, clip):
    """The change shrunk to norm `clip` if it is longer, in float64; its direction stays."""
    factor = shortening(change, clip)
    return {name: np.asarray(array, dtype=np.float64) * factor for name, array in change.items()}


def noise_like(state, scale, secret, server_round):
    """Gaussian noise of standard deviation `scale` for every number of a state: float64, by name.

    It follows from secret and round, whatever the order of the names; secret None: from the system's randomness.
    """
    rng = noise_source(secret, server_round)
    return {name: rng.normal(0.0, scale, np.shape(state[name])) for name in sorted(state)}


def check_noise(clip, noise_multiplier):
    """Raises ValueError where there is noise to add but nothing to measure it by."""
    if noise_multiplier > 0 and not clip > 0:
        raise ValueError(
            f"noise_multiplier={noise_multiplier:g} needs a clip above 0, what noise is measured in; got clip={clip:g}."
            " Choose it before the run, for example by the norms of updates on public pictures: a norm that is read off"
            " the clients' own updates would tell about them."
        )


def private_mean(clip, noise_multiplier, num_clients, secret=None):
    """The rule of DP-FedAvg: what was sent, plus the noisy mean of clipped changes. McMahan et al., arXiv 1710.06963.

    sent + (sum_k clipped(upload_k - sent) + N(0, (z C)^2)) / num_clients, with C the clip and z the noise multiplier.
    All clients weigh the same: by its number of examples one client could change more than C. `num_clients` is how many
    are asked, not how many answered, which would tell who did. One release of `accountant.privacy_spent` a round; its
    sample_rate stays 1 as long as the server (or a clock) and not a secret coin says who is asked. The server is
    trusted: it sees every upload and adds the noise, from a `secret` of its own (see `federation.secret`). C must be
    fixed beforehand, and no upload may be refused because of the others'.

    Raises ValueError if `noise_multiplier` is above 0 and `clip` is not.
    """
    check_noise(clip, noise_multiplier)

    def rule(server_round, sent, uploads, weights):
        # No client can change the sum by more than the clip.
        changes = [clipped(change_of(upload, sent), clip) for upload in uploads]
        # Noise of that size hides whether it took part.
        noise = noise_like(sent, noise_multiplier * clip, secret, server_round)
        state = {}
        for name, array in sent.items():
            total = sum(change[name] for change in changes) + noise[name]
            state[name] = (array + total / num_clients).astype(array.dtype)
        return state

    return rule
