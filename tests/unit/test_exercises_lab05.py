"""The exercises of lab 05: the solution passes, each typical mistake hears its own message, the stub is not tried."""

import math

import numpy as np
from exercise_claims import claims_on

from fedgen_lab.exercises.lab05 import EXERCISES


def wrong_way(needed, band, early, late):
    for _ in range(50):
        middle = (early + late) / 2
        early, late = (middle, late) if needed(middle) <= band else (early, middle)
    return late


def too_soon(needed, band, early, late):
    for _ in range(4):
        middle = (early + late) / 2
        early, late = (early, middle) if needed(middle) <= band else (middle, late)
    return late


def tiny_steps(needed, band, early, late):
    while needed(early) > band:
        early += 1e-7
    return early


WRONG = {
    "05.1": {
        "natural units": lambda b, r: b * math.log1p(r / b),
        "noise of one hertz": lambda b, r: b * math.log2(1 + r),
        "must not be zero": lambda b, r: b * math.log2(r / b),
        "per second and hertz": lambda b, r: math.log2(1 + r / b),
        "stronger signal is slower": lambda b, r: b * math.log2(1 + b / r),
        "yours says 2e+06": lambda b, r: b + r,
    },
    "05.2": {
        "an end of the interval": wrong_way,
        "a single step": lambda needed, band, early, late: (early + late) / 2,
        "the clients need a band of": too_soon,
        "never ends": tiny_steps,
    },
    "05.3": {
        "shape of x": lambda x, chance: x.sum(),
        "Not all results are whole": lambda x, chance: x + chance,
        "0.25 always becomes 0": lambda x, chance: np.round(x),
        "three times of four": lambda x, chance: np.where(
            chance < x - np.floor(x), np.floor(x), np.ceil(x)
        ),
        "equally often": lambda x, chance: np.where(chance < 0.5, np.floor(x), np.ceil(x)),
        "past its two neighbours": lambda x, chance: np.trunc(x + chance),
        "On average": lambda x, chance: np.floor(x + chance**2),
    },
}


TestExercises = claims_on(EXERCISES, WRONG)
