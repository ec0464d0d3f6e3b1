"""The recorded sweep of lab 08 as a data frame; `data/record/what_leaks.py` says what was run."""

from fedgen_lab.recorded import recorded


def recorded_leaks():
    """The recorded runs: a row for each, with its way to combine the uploads, its seed and its numbers."""
    return recorded("what_leaks")
