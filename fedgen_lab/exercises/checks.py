"""Exercises that check themselves: `check` says PASS, or which property failed and a question to think about.

A check is an ordinary function that tries the learner's answer on fresh examples and returns `passed(...)` or
`failed(property, question)`. Whatever else can go wrong (an untouched stub, an exception, no `return`) is put into
words here. Used by all labs; how one is written stands in `fedgen_lab.exercises`.
"""

import ast
import functools
import importlib
import inspect
import pkgutil
import textwrap
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from fedgen_lab.exercises import store
from fedgen_lab.exercises.notice import Notice, say

TRIES_BEFORE_A_HINT = 3


@dataclass(frozen=True)
class Verdict:
    """What a check found. state: "passed", "failed" or "not tried"; message: which property held or failed."""

    state: str
    message: str = ""
    question: str = ""

    @property
    def passed(self) -> bool:
        return self.state == "passed"

    def _ipython_display_(self) -> None:
        """`check` has shown it already."""


def passed(message: str = "") -> Verdict:
    """The answer holds; `message` says in one sentence what that shows."""
    return Verdict("passed", message)


def failed(message: str, question: str) -> Verdict:
    """The answer lacks a property: `message` names it, `question` makes the learner think without telling."""
    return Verdict("failed", message, question)


@dataclass(frozen=True)
class Exercise:
    """One exercise of one lab.

    key: "01.2", the lab and the number in it. dots: 1 (easy) to 3 (hard). minutes: what it takes.
    check: given the learner's answer (a function, or any value), returns a Verdict.
    hints: three, from a nudge to nearly the code. solution: source code whose last function is the answer.
    Raises ValueError for any other shape.
    """

    key: str
    title: str
    dots: int
    minutes: int
    check: Callable[..., Verdict]
    hints: tuple[str, str, str]
    solution: str

    def __post_init__(self) -> None:
        lab, _, number = self.key.partition(".")
        if not (len(lab) == 2 and lab.isdigit() and number.isdigit()):
            raise ValueError(
                f'an exercise\'s key is lab, dot and number, like "01.2"; got {self.key!r}.'
            )
        if len(self.hints) != 3 or isinstance(self.hints, str):
            raise ValueError(f"exercise {self.key} needs exactly three hints; got {self.hints!r}.")
        if self.dots not in (1, 2, 3):
            raise ValueError(
                f"exercise {self.key} has 1 to 3 dots of difficulty; got {self.dots!r}."
            )

    def run_solution(self) -> Callable:
        """The last function that the solution defines, ready to be checked or called."""
        names = [
            node.name
            for node in ast.parse(self.solution).body
            if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        ]
        space: dict = {"__name__": f"solution_{self.key}"}
        exec(compile(self.solution, f"<solution {self.key}>", "exec"), space)
        return space[names[-1]]


# -- what a learner calls ---------------------------------------------------------------------------------------------
def check(key: str, answer) -> Verdict:
    """Check your answer to exercise `key`. Pass your function itself: check("01.2", my_function), without brackets.

    Raises ValueError for a key that no lab has.
    """
    exercise = find(key)
    verdict = _judged(exercise, answer)
    name = f"Exercise {key}: {exercise.title}"
    if verdict.state == "not tried":
        say(f"Not tried yet. {name} {_dots(exercise)}", verdict.message)
        return verdict
    facts = store.load()["exercises"].get(key, {})
    tries = store.count(facts, "tries") + 1
    store.note("exercises", key, tries=tries, passed=verdict.passed or facts.get("passed") is True)
    if verdict.passed:
        say(f"PASS. {name}", verdict.message, tone="good")
    else:
        question = f"A question to think about: {verdict.question}" if verdict.question else ""
        say(
            f"Not yet. {name}",
            verdict.message,
            question,
            _offer(key, tries, store.count(facts, "hints")),
            tone="bad",
        )
    return verdict


def hint(key: str, level: int | None = None) -> Notice:
    """The next hint for exercise `key`, or the one of `level` 1, 2 or 3.

    Raises ValueError for an unknown key or another level.
    """
    exercise = find(key)
    seen = store.count(store.load()["exercises"].get(key, {}), "hints")
    if level is None:
        level = min(seen + 1, 3)
    if isinstance(level, bool) or level not in (1, 2, 3):
        raise ValueError(f"hints have the levels 1, 2 and 3; got {level!r}.")
    store.note("exercises", key, hints=max(seen, level))
    more = (
        f'`hint("{key}")` has another.'
        if level < 3
        else f'If you are still stuck: `solution("{key}")`.'
    )
    return say(
        f"Hint {level} of 3 for exercise {key}: {exercise.title}", exercise.hints[level - 1], more
    )


def solution(key: str) -> Notice:
    """One way to solve exercise `key`, as source code. Try first: it teaches more.

    Raises ValueError for an unknown key.
    """
    exercise = find(key)
    facts = store.load()["exercises"].get(key, {})
    tries, hints = store.count(facts, "tries"), store.count(facts, "hints")
    store.note("exercises", key, solution_seen=True)
    so_far = f"You tried {_times(tries)} and saw {min(hints, 3)} of 3 hints."
    if facts.get("passed") is not True and tries == 0:
        so_far += (
            " A try of your own first, even a wrong one, makes the solution easier to remember."
        )
    return say(
        f"A solution of exercise {key}: {exercise.title}",
        so_far,
        code=textwrap.dedent(exercise.solution).strip(),
    )


# -- finding exercises ------------------------------------------------------------------------------------------------
def find(key: str) -> Exercise:
    """The exercise of this key, from fedgen_lab/exercises/labNN.py.

    Raises ValueError, naming the keys there are, for any other.
    """
    lab = str(key).partition(".")[0]
    known = exercises_of(lab) if lab in labs() else ()
    for exercise in known:
        if exercise.key == key:
            return exercise
    keys = [
        exercise.key for exercise in known or (one for name in labs() for one in exercises_of(name))
    ]
    raise ValueError(
        f'There is no exercise {key!r}; there are {", ".join(keys) or "none yet"}. Keys are texts like "01.2".'
    )


def exercises_of(lab: str) -> tuple[Exercise, ...]:
    """All exercises of one lab ("01"), in their order."""
    return importlib.import_module(f"fedgen_lab.exercises.lab{lab}").EXERCISES


def labs() -> list[str]:
    """The numbers of the labs that have exercises: ["00", "01", ...]."""
    package = importlib.import_module("fedgen_lab.exercises")
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    return sorted(name[3:] for name in names if name.startswith("lab") and name[3:].isdigit())


# -- judging an answer whatever it does -------------------------------------------------------------------------------
class _NotTried(Exception):
    """The stub is as it was."""


class _Stopped(Exception):
    """The learner's own function raised: the message and the question to show."""


def _judged(exercise: Exercise, answer) -> Verdict:
    not_tried = Verdict(
        "not tried",
        f"Write your answer, then run the check again. About {exercise.minutes} minutes.",
    )
    if answer is None or answer is ... or answer is NotImplemented:
        return not_tried
    returned: list = []
    is_function = callable(answer) and not isinstance(answer, type)
    try:
        verdict = exercise.check(_watched(answer, returned) if is_function else answer)
    except _NotTried:
        return not_tried
    except _Stopped as stop:
        return failed(*stop.args)
    except Exception as error:
        if isinstance(error, NotImplementedError):
            return not_tried
        what = (
            f"Your function returned {_described(returned[-1])}"
            if returned
            else f"Your answer is {_described(answer)}"
        )
        if not is_function and "not callable" in str(error):
            return failed(
                f"{what}, but the check needs a function.",
                "Did you pass your function itself, without brackets?",
            )
        reason = f"{type(error).__name__}: {error}"
        return failed(
            f"{what}, and the check could not use that ({_shortened(reason)}).",
            "Which type and which shape does the exercise ask for?",
        )
    if not isinstance(verdict, Verdict):
        raise TypeError(
            f"the check of exercise {exercise.key} must return passed(...) or failed(...); got {verdict!r}."
        )
    return verdict


def _watched(answer: Callable, returned: list) -> Callable:
    """The learner's function, with what it does put into words: stubs, exceptions, a forgotten `return`."""

    @functools.wraps(answer, updated=())
    def watched(*args, **kwargs):
        try:
            value = answer(*args, **kwargs)
        except (Exception, SystemExit) as error:
            if isinstance(error, NotImplementedError) and _is_stub(
                answer
            ):  # torch raises this type too
                raise _NotTried from error
            raise _Stopped(*_in_words(answer, error)) from error
        if value is None or value is ...:
            if value is ... or _is_stub(answer):
                raise _NotTried
            raise _Stopped(
                "Your function returned nothing (`None`).",
                "Does every path through your function end with `return` and a value?",
            )
        returned.append(value)
        return value

    return watched


def _is_stub(answer: Callable) -> bool:
    """True where the source still holds `...` or NotImplementedError, or nothing but a docstring and `pass`."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(answer)))
    except (OSError, TypeError, SyntaxError):
        return True  # no source to look at: calling it untried is the kinder mistake
    for node in ast.walk(tree):  # a statement like `total = ...`, but not a slice like x[..., 0]
        value = getattr(node, "value", None) if isinstance(node, ast.stmt) else None
        if isinstance(value, ast.Constant) and value.value is ...:
            return True
    if any(
        isinstance(node, ast.Name) and node.id == "NotImplementedError" for node in ast.walk(tree)
    ):
        return True
    body = getattr(tree.body[0], "body", [])
    empty = [
        isinstance(s, ast.Pass)
        or isinstance(getattr(s, "value", s), ast.Constant)
        or (isinstance(s, ast.Return) and s.value is None)
        for s in (body if isinstance(body, list) else [body])
    ]
    return all(empty)


def _in_words(answer: Callable, error: BaseException) -> tuple[str, str]:
    """What an exception of the learner's function says, where it happened, and a question."""
    code = getattr(inspect.unwrap(answer), "__code__", None)
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if code and f.filename == code.co_filename
    ]
    where = f", at the line `{frames[-1].line.strip()}`" if frames and frames[-1].line else ""
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, TypeError) and "argument" in str(error) and not frames:
        return (
            f"Your function could not be called ({_shortened(said)}).",
            "Does it take the arguments that the exercise names, in that order?",
        )
    return (
        f"Your function stopped with {_shortened(said)}{where}.",
        "What are the values in that line when you call your function yourself on a small example?",
    )


def _described(value) -> str:
    shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}{shape} ({_shortened(repr(value), 60)})"


def _shortened(text: str, length: int = 200) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 3] + "..."


def _dots(exercise: Exercise) -> str:
    return f"({'●' * exercise.dots}{'○' * (3 - exercise.dots)}, {exercise.dots} of 3)"


def _times(number: int) -> str:
    return {0: "not at all", 1: "once", 2: "twice"}.get(number, f"{number} times")


def _offer(key: str, tries: int, hints: int) -> str:
    if tries < TRIES_BEFORE_A_HINT:
        return ""
    if hints < 3:
        return f'You tried {_times(tries)}. `hint("{key}")` shows hint {hints + 1} of 3.'
    return f'You tried {_times(tries)} and saw all hints. `solution("{key}")` shows a solution.'
