"""The recorded sweep of lab 09: which of its knobs makes a model copy, and whether it leaks where it doesn't.

Every point changes one knob of the lesson's model (`LESSON`). Watched are the first four private pictures, which are
the repeated ones where there are repetitions: how many drawings for their captions are copies by the one-third rule.
Beside that, how well membership inference (PIA) tells private from held-out pictures.
"""

from fedgen_lab.memorization.making import Copying, train_copying
from fedgen_lab.memorization.sweep_copying import LESSON, NUMBERS, judge_copies

SEEDS = (0, 1, 2)
# The small pixel model takes about as long; it has no rank.
PIXELS = {"model": "ddpm", "steps": 700}
POINTS = [
    LESSON | changes
    for changes in (
        {},
        {"times": 1},
        {"times": 4},
        {"times": 1, "pictures": 512},
        {"times": 1, "pictures": 8},
        {"steps": 100},
        {"rank": 4},
        {"clip": 1.0, "noise_multiplier": 0.5},
        {"unique_captions": False},
        {"times": 8},
        PIXELS,
        PIXELS | {"times": 1, "pictures": 512},
        {"times": 2},
        {"steps": 200},
    )
]


def measure(point, seed):
    """Run one point; returns the numbers of `Judged`."""
    judged = judge_copies(train_copying(Copying(**point, seed=seed)))
    numbers = {name: getattr(judged, name) for name in NUMBERS}
    return {name: None if value is None else round(value, 4) for name, value in numbers.items()}
