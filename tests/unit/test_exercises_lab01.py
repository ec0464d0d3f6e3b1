"""The exercises of lab 01: the solution passes, every typical mistake is told apart, the stub is not a try."""

import pytest
import torch

from fedgen_lab.exercises import check, hint, solution
from fedgen_lab.exercises.lab01 import EXERCISES, RECALL

KEYS = [exercise.key for exercise in EXERCISES]


@pytest.fixture(autouse=True)
def nobodys_progress(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDGEN_PROGRESS", str(tmp_path / "progress.json"))


def plain_mean(uploads, counts):
    return {name: sum(upload[name] for upload in uploads) / len(uploads) for name in uploads[0]}


def times_counts(uploads, counts):
    return {
        name: sum(c * u[name] for c, u in zip(counts, uploads, strict=True)) for name in uploads[0]
    }


def divided_by_clients(uploads, counts):
    return {name: value / len(uploads) for name, value in times_counts(uploads, counts).items()}


def plain_sum(uploads, counts):
    return {name: sum(upload[name] for upload in uploads) for name in uploads[0]}


def in_place(uploads, counts):
    total = uploads[0]
    for upload in uploads[1:]:
        for name in total:
            total[name] += upload[name]
    return total


def only_values(uploads, counts):
    return [sum(upload[name] for upload in uploads) for name in uploads[0]]


def flattened(uploads, counts):
    right = {name: value / sum(counts) for name, value in times_counts(uploads, counts).items()}
    return {name: value.mean() for name, value in right.items()}


def three_clients_only(uploads, counts):
    first, *_ = shares = [count / sum(counts) for count in counts]
    shares = shares + [0] * 3
    uploads = list(uploads) + [uploads[0]] * 3
    return {
        name: sum(shares[i] * uploads[i][name] for i in (0, 1, 2)) + (len(counts) == 2)
        for name in uploads[0]
    }


def forgot_to_return(uploads, counts):
    total = sum(counts)
    assert total


def distances(uploads, average, root=True):
    squares = [sum(((u[name] - average[name]) ** 2).sum() for name in average) for u in uploads]
    return [float(s) ** 0.5 if root else float(s) for s in squares]


WRONG = {
    "01.1": [
        (plain_mean, "counts the same"),
        (times_counts, "far too large"),
        (divided_by_clients, "divided by the number of clients"),
        (plain_sum, "sum of the uploads"),
        (in_place, "changed the uploads"),
        (only_values, "dictionary"),
        (flattened, "shape"),
        (three_clients_only, "two clients that sent the same"),
        (lambda uploads, counts: dict(uploads[-1]), "upload of one client"),
        (
            lambda uploads, counts: {name: torch.zeros_like(t) for name, t in uploads[0].items()},
            "not the average",
        ),
        (forgot_to_return, "nothing"),
        (lambda uploads: uploads, "could not be called"),
    ],
    "01.2": [
        (lambda us, a: sum(distances(us, a, root=False)) / len(us), "squared distance"),
        (lambda us, a: sum(float((u[n] - a[n]).norm()) for u in us for n in a) / len(us), "3 + 4"),
        (
            lambda us, a: sum(float((u["a"] - a["a"]).norm()) for u in us) / len(us),
            "left the others out",
        ),
        (lambda us, a: sum(distances(us, a)), "added up the clients"),
        (
            lambda us, a: (
                sum(float(sum((u[n] - a[n]).sum() for n in a)) for u in us) / len(us) * 5 / 7
            ),
            "cancel",
        ),
        (
            lambda us, a: sum(distances(us, {n: t * 0 for n, t in a.items()})) / len(us),
            "move by the same amount",
        ),
        (lambda us, a: max(distances(us, a)), "mean drift of 2.5"),
        (lambda us, a: [u["a"] - a["a"] for u in us], "one number"),
        (lambda us, a: 1.0, "at a distance of 5"),
    ],
    "01.3": [
        (lambda p, c, r: 4 * p * c * r, "one direction"),
        (lambda p, c, r: 2 * p * c * r, "numbers, not bytes"),
        (lambda p, c, r: p * c * r, "numbers, not bytes, and one direction"),
        (lambda p, c, r: 2 * 4 * p * r, "one client"),
        (lambda p, c, r: 2 * 4 * p * c, "one round"),
        (lambda p, c, r: 2 * 32 * p * c * r, "bits"),
        (lambda p, c, r: 2 * 8 * p * c * r, "8 bytes"),
        (lambda p, c, r: 2 * 4 * p, "one client in one round"),
        (lambda p, c, r: 4 * p * r * (c + 1), "one message from the server"),
        (lambda p, c, r: 42, "yours says 42"),
    ],
}


@pytest.mark.parametrize("exercise", EXERCISES, ids=KEYS)
def test_the_solution_passes(exercise):
    assert check(exercise.key, exercise.run_solution()).passed


@pytest.mark.parametrize("exercise", EXERCISES, ids=KEYS)
def test_the_untouched_stub_is_not_a_try(exercise):
    def stub(*_):
        raise NotImplementedError("replace this line")

    assert check(exercise.key, stub).state == "not tried"


@pytest.mark.parametrize(
    ("key", "answer", "words"), [(key, *one) for key, answers in WRONG.items() for one in answers]
)
def test_a_typical_mistake_is_named(key, answer, words):
    verdict = check(key, answer)
    assert verdict.state == "failed"
    assert words in verdict.message
    assert verdict.question.endswith("?")


@pytest.mark.parametrize("key", KEYS)
def test_no_two_mistakes_get_the_same_message(key):
    messages = [check(key, answer).message for answer, _ in WRONG[key]]
    assert len(set(messages)) == len(messages)


@pytest.mark.parametrize("key", KEYS)
def test_hints_and_solution_are_there(key):
    assert hint(key, 3).text and "def " in solution(key).text


def test_no_recalled_answer_always_stands_in_the_same_place():
    assert len({right for _, _, right, _ in RECALL}) == 3
