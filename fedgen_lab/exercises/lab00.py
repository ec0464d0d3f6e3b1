"""The one exercise of lab 00, kept easy: it is there to show how exercises, hints and solutions work."""

from fedgen_lab.exercises.checks import Exercise, failed, passed


def _check_mean(mean):
    found = mean([2.0, 4.0, 9.0])
    if found == 15.0:
        return failed(
            "You added the numbers up: 2 + 4 + 9 = 15.",
            "What is left to do to make a mean of a sum?",
        )
    if found == 7.5:
        return failed(
            "You divided by 2, but there are three devices.",
            "Where does the number of devices come from?",
        )
    if found == 4.0:
        return failed(
            "That is the number in the middle, the median.", "Does every number count in yours?"
        )
    if found in (2.0, 9.0):
        return failed("That is the number of one device only.", "What became of the other two?")
    if found == 5.5:
        return failed(
            "You took the mean of the smallest and the largest.",
            "What became of the one between them?",
        )
    if found != 5.0:
        return failed(
            f"The mean of 2, 4 and 9 is 5, and yours is {found}.", "What do 2, 4 and 9 add up to?"
        )
    found = mean([1, 2])
    if found != 1.5:
        return failed(
            f"The mean of 1 and 2 lies halfway between them, and yours is {found}.",
            "Did you use `//`, or a number of devices that is always the same?",
        )
    if abs(mean([0.25] * 7) - 0.25) > 1e-9:
        return failed(
            "Seven devices that agree must keep what they agree on.",
            "Which numbers in your code are fixed?",
        )
    return passed(
        "That is what a server does with each number of a model: take the mean over the devices."
    )


EXERCISES = (
    Exercise(
        key="00.1",
        title="The mean over devices",
        dots=1,
        minutes=2,
        check=_check_mean,
        hints=(
            "A mean is a sum, divided by something.",
            "Python has `sum(numbers)` and `len(numbers)`.",
            "`return sum(numbers) / len(numbers)`",
        ),
        solution='''
def mean_of(numbers):
    """The mean of a list of numbers, one from each device."""
    return sum(numbers) / len(numbers)
''',
    ),
)
