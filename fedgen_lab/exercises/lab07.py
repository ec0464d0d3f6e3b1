"""The exercises of lab 07: what a client weighs, averaging a layer that not everybody holds, one leg on the clock.

All three are steps of HuSCF-GAN (arXiv 2507.12979); the package has them in `fedgen_lab.split.clusters` and `latency`.
"""

from fedgen_lab.exercises.checks import Exercise, failed, passed


# -- 07.1 -------------------------------------------------------------------------------------------------------------
def _weigh(counts, scores, groups, alpha, sign=-1.0, by_count=True, per_cluster=True, share=True):
    """n_k exp(-alpha s_k) over its sum in the cluster; the options make the typical mistakes."""
    import numpy as np

    raw = (counts if by_count else np.ones(len(counts))) * np.exp(sign * alpha * scores)
    if not share:
        return raw
    if not per_cluster:
        return raw / raw.sum()
    return raw / np.array([raw[groups == group].sum() for group in groups])


def _check_weights(cluster_weights):
    import numpy as np

    counts = np.array([100.0, 300.0, 200.0, 50.0, 150.0])
    scores, groups, alpha = np.array([0.1, 0.4, 0.2, 0.7, 0.3]), np.array([0, 0, 1, 1, 0]), 2.0

    def ask(*given):
        return np.asarray(
            cluster_weights(*(one.copy() if hasattr(one, "copy") else one for one in given)), float
        )

    got = ask(counts, scores, groups, alpha)
    if got.shape != counts.shape:
        return failed(
            f"The result must hold one weight for each of the {len(counts)} clients; yours has the shape {got.shape}.",
            "Whose share does each entry stand for?",
        )

    def is_with(**mistake):
        return np.allclose(got, _weigh(counts, scores, groups, alpha, **mistake), atol=1e-9)

    if is_with():
        rng = np.random.default_rng(5)
        for _ in range(4):
            n = int(rng.integers(2, 9))
            given = (
                rng.integers(2, 400, n) * 1.0,
                rng.uniform(0, 1, n),
                rng.integers(0, 3, n),
                rng.uniform(0, 9),
            )
            if not np.allclose(ask(*given), _weigh(*given), atol=1e-9):
                return failed(
                    f"It fits one example, but not {n} clients in the clusters {given[2].tolist()}.",
                    "Does a number in your function belong to the example: how many clusters, or which clients?",
                )
        if not np.allclose(
            ask(counts, scores, groups, 0.0), _weigh(counts, scores, groups, 0.0), atol=1e-9
        ):
            return failed("With alpha = 0 it is not FedAvg.", "What is exp(0)?")
        return passed(
            "alpha = 0 is FedAvg within the cluster, and one that is alone weighs 1 whatever its score."
        )
    if is_with(per_cluster=False):
        return failed(
            "Your weights sum to 1 over all clients, so a cluster's average would be far too small.",
            "Over whom does the sum in the denominator run?",
        )
    if is_with(sign=1.0):
        return failed(
            "The client that differs most from its cluster weighs most.",
            "Which sign stands before alpha in exp?",
        )
    if is_with(by_count=False):
        return failed(
            "A client with three times the pictures counts as much as the others.",
            "Where do you use `counts`?",
        )
    if np.allclose(got, _weigh(counts, scores, groups, 0.0), atol=1e-9):
        return failed(
            "This is FedAvg within each cluster: the scores change nothing.",
            "Where do you use alpha?",
        )
    if np.allclose(got, _weigh(counts, scores, groups, 1.0), atol=1e-9):
        return failed(
            "alpha has no effect: you weigh as if it were 1.", "By what is a score multiplied?"
        )
    if is_with(share=False):
        return failed("The weights of a cluster do not sum to 1.", "By what do you divide?")
    if np.allclose(got, _weigh(np.ones(5), np.zeros(5), groups, 0.0), atol=1e-9):
        return failed(
            "All clients of a cluster weigh the same.", "What do counts and scores change?"
        )
    raw = counts / (1 + alpha * scores)
    if np.allclose(
        got, raw / np.array([raw[groups == group].sum() for group in groups]), atol=1e-9
    ):
        return failed(
            "You divide by the score. It falls in the right direction, but not like exp.",
            "Which function?",
        )
    return failed(
        "For five clients in two clusters these are not n exp(-alpha s), divided by its sum in the cluster.",
        "Clients 2 and 3 are all of cluster 1: what do you get for these two by hand?",
    )


# -- 07.2 -------------------------------------------------------------------------------------------------------------
def _check_layer(average_layer):
    import torch

    generator = torch.Generator().manual_seed(11)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def near(x, y):
        return (
            torch.is_tensor(x) and x.shape == y.shape and torch.allclose(x.double(), y, atol=1e-9)
        )

    def rule(own, server, weights):
        return sum(
            weight * (server if mine is None else mine)
            for weight, mine in zip(weights, own, strict=True)
        )

    own, server, weights = [draw(3, 4), None, draw(3, 4), None], draw(3, 4), [0.1, 0.2, 0.3, 0.4]
    right = rule(own, server, weights)
    held = [(weight, mine) for weight, mine in zip(weights, own, strict=True) if mine is not None]
    only_own = sum(weight * mine for weight, mine in held)
    share = sum(weight for weight, _ in held)
    try:
        got = average_layer(list(own), server.clone(), list(weights))
    except TypeError as error:
        if "NoneType" in str(error):
            return failed(
                "Your function computes with None. That stands where a client does not hold the layer.",
                "Whose copy did such a client use all round long?",
            )
        raise
    if near(got, right):
        cases = {
            "nobody holds": [None, None],
            "everybody holds": [draw(2), draw(2)],
            "one of two holds": [draw(2), None],
        }
        for who, case in cases.items():
            copy = draw(2)
            if not near(
                average_layer(list(case), copy.clone(), [0.25, 0.75]),
                rule(case, copy, [0.25, 0.75]),
            ):
                return failed(
                    f"It fits one example, but not a layer that {who}.",
                    "What comes out if you do that by hand?",
                )
        return passed(
            "Strong clients pull the server's layers, and the server's copy pulls theirs."
        )
    if near(got, only_own / share):
        return failed(
            "Clients without the layer are left out and the rest is scaled up.",
            "They did train with this layer all round: where did it lie?",
        )
    if near(got, only_own):
        return failed(
            "Clients without the layer add nothing, so the weights no longer sum to 1.",
            "Whose copy do they bring?",
        )
    if near(got, server):
        return failed(
            "This is the server's copy, unchanged.",
            "What do the clients that hold the layer bring?",
        )
    copies = [server if mine is None else mine for mine in own]
    if near(got, sum(copies) / len(copies)):
        return failed("All clients count the same.", "Where do you use the weights?")
    if near(got, sum(copies)):
        return failed("This is a sum of copies, not a mean.", "Where do you use the weights?")
    if near(got, (only_own + server) / (share + 1)) or near(got, (only_own / share + server) / 2):
        return failed(
            "The server counts as one more client here.",
            "How many of the clients used the server's copy, and what do those weigh together?",
        )
    if torch.is_tensor(got) and got.shape == server.shape:
        return failed(
            "It is not the weighted mean of what each client used: its own copy, or else the server's.",
            "With the weights 0.1, 0.2, 0.3, 0.4 and only clients 0 and 2 holding it: what weighs the server's copy?",
        )
    return failed(
        "The result must be a tensor of the layer's own shape.",
        "What does each client bring, and how much?",
    )


# -- 07.3 -------------------------------------------------------------------------------------------------------------
def _check_leg(leg_seconds):
    import numpy as np

    zero, one, server_seconds = np.array([1.0, 2.0, 1.5]), np.array([9.0, 2.5, 4.0]), 0.5

    def rule(bits, zero, one, server_seconds):
        bits = np.asarray(bits)
        return float(np.where(bits == 0, zero + server_seconds * (bits == 0).sum(), one).max())

    mistakes = (
        (
            lambda b, z, o, s: np.where(b == 0, z + s, o).max(),
            "The server's batch has one client's work in it, whoever many there are.",
            "For how many clients does the server do block 1 at once?",
        ),
        (
            lambda b, z, o, s: np.where(b == 0, z, o).max(),
            "The server takes no time in yours.",
            "What has to happen at the server before a client with bit 0 is through?",
        ),
        (
            lambda b, z, o, s: np.where(b == 0, z, o).max() + s * (b == 0).sum(),
            "Clients with bit 1 wait for the server too. They sent block 1's output themselves.",
            "Which clients need the server for block 1?",
        ),
        (
            lambda b, z, o, s: np.where(b == 0, z + s * len(b), o).max(),
            "The server works for every client in yours.",
            "Which clients leave block 1 to the server?",
        ),
        (
            lambda b, z, o, s: np.where(b == 0, z + s * (b == 0).sum(), o).sum(),
            "Here the clients work one after another.",
            "What happens on the others while one computes?",
        ),
        (
            lambda b, z, o, s: np.where(b == 0, z + s * (b == 0).sum(), o).mean(),
            "This is the mean client's time.",
            "For whom does the server wait before it goes on?",
        ),
        (
            lambda b, z, o, s: np.where(b == 1, z + s * (b == 1).sum(), o).max(),
            "The bit is read the wrong way round.",
            "Bit 1 means that the client holds the block. Which of the two arrays is that?",
        ),
        (
            lambda b, z, o, s: np.where(b == 0, z + s * (b == 0).sum(), o).min(),
            "The server would go on with the fastest client only.",
            "For whom does the server wait?",
        ),
    )
    every = [np.array(bits) for bits in np.ndindex(2, 2, 2)]
    try:
        got = [
            float(leg_seconds(bits.copy(), zero.copy(), one.copy(), server_seconds))
            for bits in every
        ]
    except (TypeError, ValueError):
        return failed(
            "A leg has one length: the result must be one number.", "Which client ends the leg?"
        )

    def fits(of):
        return np.allclose(got, [of(bits, zero, one, server_seconds) for bits in every], atol=1e-9)

    if fits(rule):
        rng = np.random.default_rng(8)
        for _ in range(5):
            n = int(rng.integers(2, 12))
            given = (
                rng.integers(0, 2, n),
                rng.uniform(0, 5, n),
                rng.uniform(0, 5, n),
                rng.uniform(0, 1),
            )
            if not np.isclose(float(leg_seconds(*given)), rule(*given)):
                return failed(
                    f"It fits three clients, but not {n} with other times.",
                    "Does your function look at every client's own bit?",
                )
        return passed(
            "One bit changes two things: that client's own time, and how long all the others wait."
        )
    for of, message, question in mistakes:
        if fits(of):
            return failed(message, question)
    wrong = next(
        k
        for k, bits in enumerate(every)
        if not np.isclose(got[k], rule(bits, zero, one, server_seconds))
    )
    right = rule(every[wrong], zero, one, server_seconds)
    return failed(
        f"With the bits {every[wrong].tolist()}, zero = {zero.tolist()}, one = {one.tolist()} and 0.5 s for each "
        f"client at the server, the leg takes {right:g} s; yours says {got[wrong]:g}.",
        "When is each of the three clients through, one by one?",
    )


EXERCISES = (
    Exercise(
        key="07.1",
        title="The weights of a cluster",
        dots=2,
        minutes=8,
        check=_check_weights,
        hints=(
            "First write what a client brings, without any sum. Then ask by what it is divided.",
            "It brings `counts * np.exp(-alpha * scores)`. The sum runs over the clients with the same group number.",
            "For every client: `raw / raw[groups == its group].sum()`. A list comprehension over `groups` does it.",
        ),
        solution="""
def cluster_weights(counts, scores, groups, alpha):
    import numpy as np

    raw = counts * np.exp(-alpha * scores)  # many pictures count more, a large score counts less
    return raw / np.array([raw[groups == group].sum() for group in groups])  # sum 1 in every cluster
""",
    ),
    Exercise(
        key="07.2",
        title="A layer that not everybody holds",
        dots=1,
        minutes=6,
        check=_check_layer,
        hints=(
            "Every client trained with some copy of this layer. Where did it lie?",
            "A client that does not hold the layer brings the server's copy, with its own weight.",
            "Sum `weight * (server if mine is None else mine)` over the clients.",
        ),
        solution="""
def average_layer(own, server, weights):
    copies = [server if mine is None else mine for mine in own]  # what each client trained with
    return sum(weight * copy for weight, copy in zip(weights, copies))
""",
    ),
    Exercise(
        key="07.3",
        title="One leg on the clock",
        dots=2,
        minutes=8,
        check=_check_leg,
        hints=(
            "Follow one client with bit 1, then one with bit 0. Which of them needs the server?",
            "A client with bit 0 is through after its own time and the server's batch, which holds all clients with "
            "bit 0. A client with bit 1 is through after its own time.",
            "`np.where(bits == 0, zero + server_seconds * (bits == 0).sum(), one)`: and who has the last word?",
        ),
        solution="""
def leg_seconds(bits, zero, one, server_seconds):
    import numpy as np

    batch = server_seconds * (bits == 0).sum()  # the server does the block for all of them at once
    return np.where(bits == 0, zero + batch, one).max()  # it waits for the slowest
""",
    ),
)

RECALL = [
    (
        "In a U-shaped split, who computes the loss?",
        [
            "the server, from the discriminator's body",
            "the client, in the discriminator's tail",
            "nobody",
        ],
        1,
        "Heads and tails stay with the client, so neither pictures nor labels nor losses cross the wire.",
    ),
    (
        "How often is the discriminator passed in one iteration?",
        [
            "once",
            "twice: fakes and real pictures",
            "three times: fakes, real pictures, and the fakes again",
        ],
        2,
        "Twice to learn by itself, and once more so that the generator can learn from it.",
    ),
    (
        "Labels never cross the wire. Can the server still learn them?",
        ["no", "yes, from the activations that do cross", "only if it holds the pictures as well"],
        1,
        "The head mixes the label into what it sends, and a server with some examples of its own can read it off.",
    ),
]
