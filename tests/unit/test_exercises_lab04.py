"""The exercises of lab 04: the solution passes, each typical mistake hears its own message, the stub is not tried."""

import pytest
import torch

from fedgen_lab.exercises import check
from fedgen_lab.exercises.checks import find
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
        "must be two tensors": lambda d, u, w: sum(x * b @ a for x, a, b in zip(w, d, u, strict=True)),
        "they must be (6, 5) and (4, 6)": lambda d, u, w: (d[0], u[0]),
        "not the weighted sum": lambda d, u, w: stack(d, u, w[::-1], [1] * len(d)),
    },
    "04.2": {
        "the numbers of A": lambda rule, i, o, r, k: {"fedit": r * (i + o), "ffa": r * i, "flora": k * r * (i + o)}[
            rule
        ],
        "less than both factors": lambda rule, i, o, r, k: r * (i + o),
        "one client's adapter": lambda rule, i, o, r, k: r * o if rule == "ffa" else r * (i + o),
        "These are bytes": lambda rule, i, o, r, k: 4 * r * (i + o),
        "the whole weight": lambda rule, i, o, r, k: i * o,
        "yours says 0": lambda rule, i, o, r, k: 0,
    },
}


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.key)
def test_the_solution_passes(exercise):
    assert check(exercise.key, exercise.run_solution()).passed


@pytest.mark.parametrize("key, words", [(key, words) for key, wrong in WRONG.items() for words in wrong])
def test_each_typical_mistake_hears_its_own_message(key, words):
    verdict = find(key).check(WRONG[key][words])
    assert verdict.state == "failed"
    assert words in verdict.message
    assert verdict.question.endswith("?")


@pytest.mark.parametrize("key", WRONG)
def test_no_two_mistakes_hear_the_same(key):
    messages = [find(key).check(wrong).message for wrong in WRONG[key].values()]
    assert len(set(messages)) == len(messages)


@pytest.mark.parametrize("key", WRONG)
def test_the_untouched_stub_is_not_tried_yet(key):
    def stub(*args):
        raise NotImplementedError("write your answer here")

    assert check(key, stub).state == "not tried"
