"""The exercises of lab 04: the solution passes, each typical mistake hears its own message, the stub is not tried."""

import torch
from exercise_claims import claims_on

from fedgen_lab.exercises.lab04 import EXERCISES


def stack(downs, ups, on_a, on_b):
    return torch.cat([w * d for w, d in zip(on_a, downs, strict=True)]), torch.cat(
        [w * u for w, u in zip(on_b, ups, strict=True)], 1
    )


WRONG = {
    "04.1": {
        "counts twice": lambda d, u, w: stack(d, u, w, w),
        "without the weights": lambda d, u, w: stack(d, u, [1] * len(d), [1] * len(d)),
        "are swapped": lambda d, u, w: stack(d, u, w, [1] * len(d))[::-1],
        "must be two tensors": lambda d, u, w: sum(
            x * b @ a for x, a, b in zip(w, d, u, strict=True)
        ),
        "they must be (6, 5) and (4, 6)": lambda d, u, w: (d[0], u[0]),
        "not the weighted sum": lambda d, u, w: stack(d, u, w[::-1], [1] * len(d)),
    },
    "04.2": {
        "the numbers of A": lambda rule, i, o, r, k: {
            "fedit": r * (i + o),
            "ffa": r * i,
            "flora": k * r * (i + o),
        }[rule],
        "less than both factors": lambda rule, i, o, r, k: r * (i + o),
        "one client's adapter": lambda rule, i, o, r, k: r * o if rule == "ffa" else r * (i + o),
        "These are bytes": lambda rule, i, o, r, k: 4 * r * (i + o),
        "the whole weight": lambda rule, i, o, r, k: i * o,
        "yours says 0": lambda rule, i, o, r, k: 0,
    },
}


TestExercises = claims_on(EXERCISES, WRONG)
