"""The exercises of lab 03: the solution passes, each typical mistake hears its own message, the stub is not tried."""

from exercise_claims import claims_on

from fedgen_lab.exercises.lab03 import EXERCISES


def numbers(layers, rank):
    return sum(rank * (a + b) for a, b in layers)


def mean(values):
    return sum(values) / len(values)


def products(downs, ups):
    return [up @ down for up, down in zip(ups, downs, strict=True)]


WRONG = {
    "03.1": {
        "Only one direction": lambda layers, rank, n: n * 4 * numbers(layers, rank),
        "what one client moves": lambda layers, rank, n: 2 * 4 * numbers(layers, rank),
        "whole weight matrices": lambda layers, rank, n: 2 * n * 4 * sum(a * b for a, b in layers),
        "the count of bytes is not": lambda layers, rank, n: 2 * n * numbers(layers, rank),
        "Only one of the two factors": lambda layers, rank, n: (
            2 * n * 4 * sum(rank * a for a, _ in layers)
        ),
        "it is not": lambda layers, rank, n: 2 * 3 * 4 * numbers(layers, rank),
        "yours says 0": lambda layers, rank, n: 0,
    },
    "03.2": {
        "the sign is not": lambda downs, ups: mean(ups) @ mean(downs) - mean(products(downs, ups)),
        "true mean of the updates": lambda downs, ups: mean(products(downs, ups)),
        "what the server has": lambda downs, ups: mean(ups) @ mean(downs),
        "a sum stands where a mean belongs": lambda downs, ups: (
            sum(products(downs, ups)) - mean(ups) @ mean(downs)
        ),
        "has the shape (2, 2)": lambda downs, ups: mean(downs)[:, :4] @ mean(ups),
        "not mean(B A) - mean(B) mean(A)": lambda downs, ups: 0 * ups[0] @ downs[0],
        "must leave no gap": lambda downs, ups: (
            sum(products(downs, ups)) / 3 - mean(ups) @ mean(downs)
        ),
    },
    "03.3": {
        "belong to different clients": lambda d, c, u: d.max() + c.max() + u.max(),
        "the mean client's time": lambda d, c, u: (d + c + u).mean(),
        "one after another": lambda d, c, u: (d + c + u).sum(),
        "all but the fastest": lambda d, c, u: (d + c + u).min(),
        "must be one number": lambda d, c, u: d + c + u,
        "yours says 9": lambda d, c, u: c.max(),
        "not six clients": lambda d, c, u: d[0] + c[0] + u[0],
    },
}


TestExercises = claims_on(EXERCISES, WRONG)
