"""The exercise of lab 00: the solution passes, every typical mistake is told apart, the stub is not a try."""

import statistics

import pytest

from fedgen_lab.exercises import check, hint, solution
from fedgen_lab.exercises.lab00 import EXERCISES

(MEAN,) = EXERCISES

WRONG = [
    (sum, "added the numbers up"),
    (lambda numbers: sum(numbers) / 2, "divided by 2"),
    (statistics.median, "the median"),
    (lambda numbers: numbers[0], "one device only"),
    (lambda numbers: (min(numbers) + max(numbers)) / 2, "smallest and the largest"),
    (lambda numbers: sum(numbers) / (len(numbers) + 1), "2, 4 and 9 is 5"),
    (lambda numbers: sum(numbers) // len(numbers), "halfway between"),
    (lambda numbers: sum(numbers) / min(len(numbers), 3), "Seven devices"),
]


@pytest.fixture(autouse=True)
def nobodys_progress(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDGEN_PROGRESS", str(tmp_path / "progress.json"))


def test_the_solution_passes():
    assert check("00.1", MEAN.run_solution()).passed


def test_the_untouched_stub_is_not_a_try():
    def stub(numbers):
        raise NotImplementedError("replace this line")

    assert check("00.1", stub).state == "not tried"


@pytest.mark.parametrize(("answer", "words"), WRONG)
def test_a_typical_mistake_is_named(answer, words):
    verdict = check("00.1", answer)
    assert verdict.state == "failed"
    assert words in verdict.message
    assert verdict.question.endswith("?")


def test_no_two_mistakes_get_the_same_message():
    messages = [check("00.1", answer).message for answer, _ in WRONG]
    assert len(set(messages)) == len(messages)


def test_hints_and_solution_are_there():
    assert hint("00.1", 3).text and "def mean_of" in solution("00.1").text
