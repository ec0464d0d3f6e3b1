'''Exercises, guesses and recall questions: what makes a lab more than something to read.

A notebook uses `check`, `hint`, `solution`, `predict`, `reveal`, `recall` and `progress`. The exercises of lab 01
stand in `fedgen_lab/exercises/lab01.py`, and so on; such a module looks like this:

    """The exercises of lab 01: federated averaging (McMahan et al. 2017)."""

    from fedgen_lab.exercises.checks import Exercise, failed, passed


    def _check_average(average):  # the learner's function; it is guarded, so just call it
        if abs(average([1.0, 3.0], [1, 1]) - 2.0) > 1e-6:
            return failed(
                "Two clients with equally many pictures must count the same, and yours do not.",
                "By what is each client's value multiplied, and what do those numbers sum to?",
            )
        if abs(average([1.0, 3.0], [3, 1]) - 1.5) > 1e-6:
            return failed("A client with three times the pictures must count three times.", "Where do you use `sizes`?")
        return passed("The server's model is the mean over all pictures, wherever they are.")


    EXERCISES = (
        Exercise(
            key="01.1", title="Average by pictures", dots=1, minutes=5, check=_check_average,
            hints=(
                "How much of all pictures does each client hold?",
                "Divide `sizes` by their sum; multiply each value by its share.",
                "`sum(value * size for value, size in zip(values, sizes)) / sum(sizes)`",
            ),
            solution="""
    def average(values, sizes):
        return sum(value * size for value, size in zip(values, sizes)) / sum(sizes)
    """,
        ),
    )

A check tries fresh examples, most basic property first, and gives each typical mistake its own message. Its tests try
the solution, those mistakes and the untouched stub. Import torch inside the check: `progress` imports every such
module.'''

from fedgen_lab.exercises.checks import check, hint, solution
from fedgen_lab.exercises.predict import predict, reveal
from fedgen_lab.exercises.progress import progress
from fedgen_lab.exercises.recall import recall

__all__ = ["check", "hint", "predict", "progress", "recall", "reveal", "solution"]
