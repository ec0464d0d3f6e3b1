"""Exercises: PASS, or what failed and a question; whatever a learner hands in, no wall of red text."""

import importlib
import os
import sys
import textwrap

import nbformat
import pytest
from nbclient import NotebookClient

from fedgen_lab import exercises
from fedgen_lab.exercises import check, hint, predict, recall, reveal, solution, store
from fedgen_lab.exercises.checks import Exercise, exercises_of, find, labs

LAB_98 = '''
from fedgen_lab.exercises.checks import Exercise, failed, passed


def _mean(mean):
    if abs(mean([1.0, 3.0], [1, 1]) - 2.0) > 1e-6:
        return failed("Equal clients must count the same.", "What do the shares sum to?")
    if abs(mean([1.0, 3.0], [3, 1]) - 1.5) > 1e-6:
        return failed("Three times the pictures must count three times.", "Where do you use `sizes`?")
    return passed("The mean is taken over all pictures.")


def _bytes(number):
    return passed() if number == 4096 else failed("That is not it.", "How many bytes has a float32?")


HINTS = ("Think of shares.", "Divide `sizes` by their sum.", "Almost the code.")
MEAN = """
def mean(values, sizes):
    return sum(v * s for v, s in zip(values, sizes)) / sum(sizes)
"""
EXERCISES = (
    Exercise("98.1", "Average by pictures", 1, 5, _mean, HINTS, MEAN),
    Exercise("98.2", "Count bytes", 2, 3, _bytes, HINTS, "def count():\\n    return 4096"),
)
'''


@pytest.fixture(autouse=True)
def own_progress(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDGEN_PROGRESS", str(tmp_path / "my_progress.json"))
    monkeypatch.delenv("FEDGEN_RUN", raising=False)


@pytest.fixture
def lab98(tmp_path, monkeypatch):
    """A lab of two exercises, found as the real ones are."""
    (tmp_path / "lab98.py").write_text(LAB_98, encoding="utf-8")
    monkeypatch.setattr(exercises, "__path__", [*exercises.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    yield importlib.import_module("fedgen_lab.exercises.lab98")
    sys.modules.pop("fedgen_lab.exercises.lab98", None)


# -- check
def test_the_solution_passes_and_says_what_that_shows(lab98, capsys):
    verdict = check("98.1", find("98.1").run_solution())
    assert verdict.passed and verdict.state == "passed"
    said = capsys.readouterr().out
    assert (
        said.startswith("PASS. Exercise 98.1: Average by pictures") and "over all pictures" in said
    )


def test_typical_mistakes_each_get_their_own_message_and_question(lab98, capsys):
    plain_sum = check("98.1", lambda values, sizes: sum(values))
    unweighted = check("98.1", lambda values, sizes: sum(values) / len(values))
    assert not plain_sum.passed and not unweighted.passed
    assert "count the same" in plain_sum.message and "three times" in unweighted.message
    assert "A question to think about: Where do you use `sizes`?" in capsys.readouterr().out


def stub_raising(values, sizes):
    """Your turn."""
    raise NotImplementedError("write me")


def stub_passing(values, sizes):
    """Your turn."""


def stub_with_dots(values, sizes):
    total = ...  # your code here
    return total


def stub_half_written(values, sizes):
    total = sum(sizes)  # noqa: F841 (given)
    mean = ...  # noqa: F841 (your code here)


@pytest.mark.parametrize(
    "stub", [stub_raising, stub_passing, stub_with_dots, stub_half_written, None, ...]
)
def test_an_untouched_stub_is_not_tried_yet_and_counts_as_no_try(lab98, stub, capsys):
    verdict = check("98.1", stub)
    assert verdict.state == "not tried" and not verdict.passed
    assert "Not tried yet" in capsys.readouterr().out
    assert not store.progress_file().exists()


def test_a_forgotten_return_is_told_apart_from_a_stub(lab98):
    def mean(values, sizes):
        sum(values) / len(sizes)  # noqa: B018

    verdict = check("98.1", mean)
    assert (
        verdict.state == "failed"
        and "returned nothing" in verdict.message
        and "return" in verdict.question
    )


def test_an_exception_becomes_a_sentence_with_its_line(lab98, capsys):
    def mean(values, sizes):
        nothing = 0
        return values[0] / nothing

    verdict = check("98.1", mean)
    assert verdict.state == "failed" and verdict.question.endswith("?")
    assert "stopped with ZeroDivisionError" in verdict.message
    assert "division by zero, at the line `return values[0] / nothing`" in verdict.message
    assert "Traceback" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer, words",
    [
        (lambda values: 1.0, "could not be called"),
        (lambda values, sizes: "two", "returned a str ('two')"),
        (lambda values, sizes: [2.0], "returned a list ([2.0])"),
        (lambda values, sizes: exit(), "stopped with SystemExit"),
        (lambda values, sizes: (yield), "returned a generator"),
        (2.0, "the check needs a function"),
        ("mean", "the check needs a function"),
        (dict, "Your answer is a type"),
    ],
)
def test_whatever_is_handed_in_the_answer_is_a_sentence(lab98, answer, words):
    verdict = check("98.1", answer)
    assert verdict.state == "failed" and words in verdict.message and verdict.question


def test_an_endless_recursion_is_caught(lab98):
    def mean(values, sizes):
        return mean(values, sizes)

    assert "RecursionError" in check("98.1", mean).message


def test_a_number_can_be_an_answer(lab98):
    assert check("98.2", 4096).passed
    assert not check("98.2", 1024).passed
    assert check("98.2", ...).state == "not tried"


def test_three_failed_tries_offer_a_hint_and_after_all_hints_the_solution(lab98, capsys):
    for _ in range(2):
        check("98.2", 1)
    assert "hint(" not in capsys.readouterr().out
    check("98.2", 1)
    assert '`hint("98.2")` shows hint 1 of 3' in capsys.readouterr().out
    hint("98.2", 3)
    check("98.2", 1)
    assert '`solution("98.2")` shows a solution' in capsys.readouterr().out


def test_passed_stays_passed_when_a_later_try_fails(lab98):
    check("98.2", 4096)
    check("98.2", 1)
    facts = store.load()["exercises"]["98.2"]
    assert facts["passed"] is True and facts["tries"] == 2


# -- hint and solution
def test_hints_come_one_after_the_other_and_by_level(lab98):
    assert [hint("98.1").text.splitlines()[1] for _ in range(4)] == [
        "Think of shares.",
        "Divide `sizes` by their sum.",
        "Almost the code.",
        "Almost the code.",
    ]
    assert "Think of shares." in hint("98.1", 1).text
    with pytest.raises(ValueError, match="levels 1, 2 and 3; got 4"):
        hint("98.1", 4)


def test_the_solution_is_shown_with_how_far_one_came(lab98):
    assert "A try of your own first" in solution("98.1").text
    check("98.1", lambda values, sizes: 0)
    hint("98.1")
    said = solution("98.1").text
    assert "You tried once and saw 1 of 3 hints." in said and "def mean(values, sizes):" in said


# -- keys
@pytest.mark.parametrize("key", ["98.9", "77.1", "nonsense", "", None, 98.1, "../../etc", "98"])
def test_an_unknown_key_is_an_error_that_lists_the_known_ones(lab98, key):
    with pytest.raises(ValueError, match=r"There is no exercise .*98\.1, 98\.2"):
        check(key, print)


def test_an_exercise_of_another_shape_is_an_error():
    good = dict(
        key="98.1", title="t", dots=1, minutes=1, check=print, hints=("a", "b", "c"), solution=""
    )
    for change in (
        dict(key="1"),
        dict(key="98.x"),
        dict(hints=("a",)),
        dict(hints="abc"),
        dict(dots=4),
    ):
        with pytest.raises(ValueError):
            Exercise(**{**good, **change})


@pytest.mark.parametrize("lab", labs())
def test_the_exercises_of_every_lab_are_complete_and_their_solutions_pass(lab):
    keys = [exercise.key for exercise in exercises_of(lab)]
    assert len(set(keys)) == len(keys) and all(key.startswith(f"{lab}.") for key in keys)
    for exercise in exercises_of(lab):
        assert exercise.title and exercise.minutes > 0 and all(exercise.hints)
        assert check(exercise.key, exercise.run_solution()).passed


# -- predict, reveal, recall
def test_a_guess_is_kept_and_shown_beside_the_result(capsys):
    asked = predict("98.skew", "More `skew`: what happens to the loss?", ["it falls", "it grows"])
    assert "what happens to the loss?" in capsys.readouterr().out
    asked.choose("it falls")
    assert asked.guess == "it falls" and "you guess it falls" in asked.note.value
    said = reveal("98.skew", "it grows", "Clients pull apart.").text
    assert said == "You guessed it falls; it was it grows.\nClients pull apart."
    assert store.load()["guesses"]["98.skew"]["right"] is False


def test_a_right_guess_is_said_to_be_right():
    predict("98.a", "?", ["1", "2"]).choose("2")
    assert reveal("98.a", 2).text == "You guessed 2, and it was 2."


def test_a_guess_outlives_the_kernel_and_cannot_be_made_after_the_answer():
    predict("98.b", "?", ["x", "y"]).choose("x")
    again = predict("98.b", "?", ["x", "y"])
    assert again.options.chosen == "x" and not again.options.buttons[0].disabled
    reveal("98.b", "y")
    after = predict("98.b", "?", ["x", "y"])
    assert (
        all(button.disabled for button in after.options.buttons)
        and "You guessed x; it was y." in after.note.value
    )


def test_revealing_works_where_nobody_guessed_and_writes_nothing():
    assert (
        reveal("98.c", "y", "Because.").text == "It was y.\nYou made no guess this time.\nBecause."
    )
    assert not store.progress_file().exists()


def test_a_recall_question_says_why_after_the_answer_and_not_before(capsys):
    quiz = recall(
        "98",
        [
            ("What is `FedAvg`?", ["a mean", "a sum"], 0, "It weighs by pictures."),
            ("Who trains?", ["server", "clients"], 1, "Pictures stay at home."),
        ],
    )
    assert "It weighs" not in capsys.readouterr().out and not quiz.whys[0].value
    quiz.answer(1, "a sum")
    assert (
        "Not quite: a mean. It weighs by pictures." in quiz.whys[0].value and not quiz.summary.value
    )
    quiz.answer(2, "clients")
    assert (
        "Right. Pictures stay at home." in quiz.whys[1].value
        and "1 of 2 right" in quiz.summary.value
    )
    quiz.answer(1, "a mean")  # after the reason was read, this is no recall
    assert "Right." in quiz.whys[0].value and "1 of 2 right" in quiz.summary.value
    assert store.load()["recall"]["98.1"]["right"] is False


def test_every_option_is_a_button_of_its_own_words_after_its_question():
    asked = predict("98.d", "A <b> question?", ["x", "y"])
    quiz = recall("98", [("Q?", ["x", "y"], 0, "why")])
    assert [type(child).__name__ for child in quiz.box.children] == ["HTML", "VBox", "HTML", "HTML"]
    assert [(button.description, button.icon) for button in asked.options.buttons] == [
        ("x", ""),
        ("y", ""),
    ]
    asked.options.buttons[1].click()
    assert asked.guess == "y" and [button.description for button in asked.options.buttons] == [
        "x",
        "✓ y",
    ]
    with pytest.raises(ValueError, match="the options are 'x', 'y'; got 'z'"):
        asked.choose("z")


@pytest.mark.parametrize(
    "call",
    [
        lambda: predict("skew", "?", ["a", "b"]),
        lambda: predict("98.x", "?", ["a"]),
        lambda: predict("98.x", "?", "ab"),
        lambda: reveal("x", "a"),
        lambda: recall("1", []),
        lambda: recall("98", [("Q", ["a", "b"], 2, "why")]),
        lambda: recall("98", [("Q", ["a", "b"])]),
    ],
)
def test_a_question_of_another_form_is_an_error(call):
    with pytest.raises(ValueError):
        call()


# -- in a kernel without a front end
CELLS = [
    "from fedgen_lab.exercises import check, predict, progress, recall, reveal",
    "predict('98.k', 'Up or down?', ['up', 'down'])",
    "reveal('98.k', 'up', 'Because.')",
    "recall('98', [('Q?', ['a', 'b'], 1, 'reason')])",
    "def f(x):\n    raise NotImplementedError",
    "try:\n    check('98.1', f)\nexcept ValueError as error:\n    print('no such lab')",
    "board = progress()",
]


@pytest.mark.parametrize("mode", ["", "inline"])
def test_cells_run_without_a_front_end_and_say_each_thing_once(tmp_path, mode):
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(textwrap.dedent(cell)) for cell in CELLS]
    )
    environment = {**os.environ, "FEDGEN_RUN": mode, "FEDGEN_PROGRESS": str(tmp_path / "p.json")}
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute(env=environment)
    shown = [cell.outputs for cell in notebook.cells]
    assert [len(outputs) for outputs in shown] == [0, 1, 1, 1, 0, 1, 1]
    live = "application/vnd.jupyter.widget-view+json"
    assert (live in shown[1][0].data) == (live in shown[3][0].data) == (mode == "")
    assert "Up or down?" in shown[1][0].data["text/plain"]
    assert shown[2][0].data["text/plain"].startswith("It was up.")
    if mode == "inline":
        assert (
            "<details><summary>Answer 1</summary>b. reason</details>"
            in shown[3][0].data["text/html"]
        )
