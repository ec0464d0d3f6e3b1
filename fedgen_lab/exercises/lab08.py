"""The exercises of lab 08: the true-positive rate at few false positives, clipping an update, the trimmed mean.

Membership inference is judged as in Carlini et al., arXiv 2112.03570; clipping is that of DP-FedAvg (McMahan et al.,
arXiv 1710.06963); the trimmed mean is Yin et al.'s, arXiv 1803.01498.
"""

from fedgen_lab.exercises.checks import Exercise, failed, passed


# -- 08.1 -------------------------------------------------------------------------------------------------------------
def _tpr(members, others, rate):
    import numpy as np

    allowed = int(rate * len(others))
    return float((members > np.sort(others)[::-1][allowed]).mean())


def _check_tpr(tpr_at):
    import numpy as np

    for seed, rate in ((1, 0.01), (2, 0.05), (3, 0.1)):
        draw = np.random.default_rng(seed)
        members, others = draw.normal(0.8, 1, 70), draw.normal(0, 1, 300)
        try:
            got = float(tpr_at(members.copy(), others.copy(), rate))
        except (TypeError, ValueError):
            return failed("The answer must be one number, a share.", "Of whom is it a share?")
        if (
            abs(got - _tpr(members, others, rate)) < 0.006
        ):  # one way or the other at the threshold itself
            continue
        allowed = int(rate * len(others))
        top_of_members = np.sort(members)[::-1][int(rate * len(members))]
        told = (
            (
                float((members > top_of_members).mean()),
                "Your threshold is set by the members. An attacker does not know who they are.",
                "Whose scores may an attacker collect beforehand?",
            ),
            (
                float((members > np.sort(others)[allowed]).mean()),
                "Your threshold lets almost every non-member pass: it lies at the lower end of their scores.",
                "In which direction must `others` be sorted?",
            ),
            (
                float((others > np.sort(others)[::-1][allowed]).mean()),
                "This is the false-positive rate itself.",
                "Of which of the two do you count how many lie above?",
            ),
            (
                float((members[:, None] > others[None, :]).mean()),
                "This is the AUC, the mean over all thresholds.",
                "Which one threshold belongs to so few false positives?",
            ),
            (
                float((members > np.median(others)).mean()),
                "Half of the non-members lie above your threshold.",
                "How many of them may?",
            ),
            (
                float((members <= np.sort(others)[::-1][allowed]).mean()),
                "This is the share of members that are missed.",
                "On which side of the threshold does the attacker say 'member'?",
            ),
        )
        for wrong, message, question in told:
            if abs(got - wrong) < 1e-9:
                return failed(message, question)
        if not 0 <= got <= 1:
            return failed(
                f"A share lies between 0 and 1; yours is {got:g}.", "By what do you divide?"
            )
        return failed(
            f"With {len(others)} non-members and a rate of {rate:g}, {allowed} of them may lie above the threshold. "
            f"Then {_tpr(members, others, rate):.3f} of the members do; yours says {got:.3f}.",
            "Which score do you get when you sort the non-members downwards and skip the ones that may pass?",
        )
    return passed(
        "Few false accusations, and still some members found: that is what a court would call evidence."
    )


# -- 08.2 -------------------------------------------------------------------------------------------------------------
def _check_clip(clipped):
    import torch

    generator = torch.Generator().manual_seed(8)
    for scale in (3.0, 0.05):
        change = {
            "a": scale * torch.randn(4, 3, generator=generator),
            "b": 5 * scale * torch.randn(6, generator=generator),
            "c": 0.1 * scale * torch.randn(2, 2, generator=generator),
        }
        length = float(torch.cat([t.flatten() for t in change.values()]).norm())
        clip = 2.0
        factor = min(1.0, clip / length)
        before = {name: tensor.clone() for name, tensor in change.items()}
        got = clipped({name: tensor.clone() for name, tensor in change.items()}, clip)

        def near(of, got=got, before=before):
            return all(
                torch.allclose(got[name], of(tensor), atol=1e-6) for name, tensor in before.items()
            )

        if not isinstance(got, dict) or set(got) != set(change):
            return failed(
                "The answer must be a dict with the same names.",
                "What does the server expect to receive?",
            )
        if near(lambda tensor, factor=factor: tensor * factor):
            continue
        if near(lambda tensor, clip=clip: tensor * min(1.0, clip / float(tensor.norm()))):
            return failed(
                "You clip every tensor on its own. Many tensors of length C together are much longer than C.",
                "What is the length of the whole update, over all its numbers?",
            )
        if near(lambda tensor, clip=clip: tensor.clamp(-clip, clip)):
            return failed(
                "You clip every single number, so the update points elsewhere and is longer than C.",
                "What must stay the same when only the length changes?",
            )
        if near(lambda tensor, clip=clip, length=length: tensor * (clip / length)):
            return failed(
                f"An update of length {length:.2f} became longer than it was.",
                "What happens to one that is short enough?",
            )
        if near(lambda tensor, clip=clip, length=length: tensor * min(1.0, clip / length**2)):
            return failed("You divide by the squared length.", "Which root is missing?")
        if near(lambda tensor: tensor):
            return failed(
                "A long update came back as it was.",
                "When must it be made shorter, and by which factor?",
            )
        return failed(
            f"An update of length {length:.2f} must be multiplied by {factor:.3f} for a clip of {clip:g}.",
            "One factor for all tensors: which two lengths does it compare?",
        )
    return passed(
        "Whatever a client trained, it moves the sum by C at most. That is what the noise is measured in."
    )


# -- 08.3 -------------------------------------------------------------------------------------------------------------
def _check_trimmed(trimmed_mean):
    import torch

    generator = torch.Generator().manual_seed(9)
    for clients, attackers in ((5, 1), (8, 2)):
        changes = torch.randn(clients, 7, generator=generator)
        changes[-1, ::2] += 30
        ordered = changes.sort(0).values
        right = ordered[attackers : clients - attackers].mean(0)
        got = trimmed_mean(changes.clone(), attackers)
        if not torch.is_tensor(got) or got.shape != right.shape:
            return failed(
                f"The answer must be one row of {changes.shape[1]} numbers, the server's new change.",
                "Along which axis do the clients stand?",
            )

        def near(other, got=got):
            return torch.allclose(got, other, atol=1e-5)

        if near(right):
            continue
        lengths = changes.norm(dim=1)
        shortest = changes[lengths.argsort()[: clients - attackers]]
        told = (
            (
                changes.mean(0),
                "This is the plain mean: one client shouts, and all are pulled along.",
                "What is cut?",
            ),
            (
                changes.median(0).values,
                "This is the median: everything but the middle is cut.",
                "How many values on each side may be lies?",
            ),
            (
                ordered[: clients - attackers].mean(0),
                "You cut only the largest values. An attacker may also shout downwards.",
                "On how many sides can a value stand out?",
            ),
            (
                shortest.mean(0),
                "You leave out whole clients, by the length of their change. The trimmed mean looks at every number "
                "on its own.",
                "Is it always the same client that is the largest?",
            ),
            (
                ordered[attackers : clients - attackers].sum(0) / clients,
                "You divide by all clients, also by those that were cut.",
                "How many values are left?",
            ),
        )
        for other, message, question in told:
            if near(other):
                return failed(message, question)
        return failed(
            f"With {clients} clients and {attackers} attackers, {clients - 2 * attackers} values of each number are "
            "left; your mean is not theirs.",
            "What does sorting along the clients' axis give, and which rows of it do you keep?",
        )
    return passed("No single client can move any number beyond what honest clients said.")


EXERCISES = (
    Exercise(
        key="08.1",
        title="Few false accusations",
        dots=2,
        minutes=8,
        check=_check_tpr,
        hints=(
            "The threshold comes from the non-members alone: how many of them may lie above it?",
            "Sort the non-members downwards. The first `int(rate * len(others))` may pass; the next is the threshold.",
            "`threshold = np.sort(others)[::-1][int(rate * len(others))]`; then count the members above it.",
        ),
        solution="""
def tpr_at(members, others, rate):
    import numpy as np

    threshold = np.sort(others)[::-1][int(rate * len(others))]  # so many non-members lie above it
    return (members > threshold).mean()
""",
    ),
    Exercise(
        key="08.2",
        title="Clip an update",
        dots=1,
        minutes=6,
        check=_check_clip,
        hints=(
            "The length of an update is that of all its numbers in one long row.",
            "Sum the squares of all tensors and take the root. The factor is clip / length, but never above 1.",
            "`factor = min(1, clip / length)`, and every tensor is multiplied by it.",
        ),
        solution="""
def clipped(change, clip):
    length = sum(tensor.square().sum() for tensor in change.values()).sqrt()
    factor = min(1.0, clip / float(length))  # never longer than it was
    return {name: tensor * factor for name, tensor in change.items()}
""",
    ),
    Exercise(
        key="08.3",
        title="The trimmed mean",
        dots=2,
        minutes=8,
        check=_check_trimmed,
        hints=(
            "Each number of the result is decided on its own, by the clients' values for it.",
            "Sort every column. Leave out `attackers` values at both ends, and take the mean of the others.",
            "`changes.sort(0).values` stands each column in order; slice the rows, then `.mean(0)`.",
        ),
        solution="""
def trimmed_mean(changes, attackers):
    ordered = changes.sort(0).values  # (clients, D), every column in order
    return ordered[attackers : len(changes) - attackers].mean(0)
""",
    ),
)

RECALL = [
    (
        "What does a device upload in federated LoRA?",
        [
            "its pictures",
            "its adapter after some steps on its own pictures",
            "the loss of its pictures",
        ],
        1,
        "The adapter is a function of the pictures. This lab asks how much of them can be read off it.",
    ),
    (
        "In the U-shaped split of lab 06 no label was ever sent. What did the server know in the end?",
        [
            "nothing about labels",
            "how many labels there are",
            "nearly all labels, and the pictures too",
        ],
        2,
        "What matters is what can be learned from a message, not what it is called.",
    ),
    (
        "The server averages the adapters of five clients. How much can one of them change the average?",
        ["a fifth of its change", "as much as it likes, if it sends a larger change", "nothing"],
        1,
        "The average takes what it gets. A change five times as long counts five times.",
    ),
]
