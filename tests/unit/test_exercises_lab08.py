"""The exercises of lab 08: the solution passes, each typical mistake hears its own message, the stub is not tried."""

import numpy as np
import torch
from exercise_claims import claims_on

from fedgen_lab.exercises.checks import find
from fedgen_lab.exercises.lab08 import EXERCISES


def at(scores, rate):
    return np.sort(scores)[::-1][int(rate * len(scores))]


def length(change):
    return float(torch.cat([tensor.flatten() for tensor in change.values()]).norm())


def scaled(change, factor):
    return {name: tensor * factor for name, tensor in change.items()}


WRONG = {
    "08.1": {
        "set by the members": lambda m, o, r: (m > at(m, r)).mean(),
        "lets almost every non-member pass": lambda m, o, r: (
            m > np.sort(o)[int(r * len(o))]
        ).mean(),
        "the false-positive rate itself": lambda m, o, r: (o > at(o, r)).mean(),
        "This is the AUC": lambda m, o, r: (m[:, None] > o[None]).mean(),
        "Half of the non-members": lambda m, o, r: (m > np.median(o)).mean(),
        "members that are missed": lambda m, o, r: (m <= at(o, r)).mean(),
        "lies between 0 and 1": lambda m, o, r: (m > at(o, r)).sum(),
        "may lie above the threshold": lambda m, o, r: 0.03 + (m > at(o, r)).mean(),
        "must be one number": lambda m, o, r: [1, 2],
    },
    "08.2": {
        "every tensor on its own": lambda c, clip: {
            k: t * min(1.0, clip / float(t.norm())) for k, t in c.items()
        },
        "every single number": lambda c, clip: {k: t.clamp(-clip, clip) for k, t in c.items()},
        "became longer": lambda c, clip: scaled(c, clip / length(c)),
        "squared length": lambda c, clip: scaled(c, min(1.0, clip / length(c) ** 2)),
        "came back as it was": lambda c, clip: c,
        "same names": lambda c, clip: torch.cat([t.flatten() for t in c.values()]),
        "must be multiplied by": lambda c, clip: scaled(c, 0.5),
    },
    "08.3": {
        "the plain mean": lambda c, a: c.mean(0),
        "the median": lambda c, a: c.median(0).values,
        "only the largest": lambda c, a: c.sort(0).values[: len(c) - a].mean(0),
        "whole clients": lambda c, a: c[c.norm(dim=1).argsort()[: len(c) - a]].mean(0),
        "divide by all clients": lambda c, a: c.sort(0).values[a : len(c) - a].sum(0) / len(c),
        "one row": lambda c, a: c.mean(1),
        "values of each number are left": lambda c, a: c[0],
    },
}


TestExercises = claims_on(EXERCISES, WRONG)


def test_the_solutions_are_what_the_lab_computes_with():
    from fedgen_lab.privacy.membership import judge_scores
    from fedgen_lab.privacy.robust import combine

    draw = np.random.default_rng(5)
    members, others = draw.normal(1, 1, 40), draw.normal(0, 1, 100)
    assert find("08.1").run_solution()(members, others, 0.01) == judge_scores(members, others).tpr
    changes = draw.normal(size=(5, 9)).astype(np.float32)
    received = {"w": np.zeros(9, np.float32)}
    theirs, _ = combine(received, [{"w": row} for row in changes], defence="trimmed", attackers=1)
    assert np.allclose(
        find("08.3").run_solution()(torch.from_numpy(changes), 1).numpy(), theirs["w"], atol=1e-6
    )
    mine = find("08.2").run_solution()({"w": torch.from_numpy(changes[0])}, 0.5)["w"].numpy()
    theirs, _ = combine(received, [{"w": changes[0]}], defence="clip", clip=0.5)
    assert np.allclose(mine, theirs["w"], atol=1e-6)
