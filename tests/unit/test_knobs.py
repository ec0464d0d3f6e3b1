"""Claims about knobs: a field refuses what lies outside its range or is of another type, and says what would do."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from fedgen_lab.knobs import Knobs, check_whole, knob


@dataclass(frozen=True)
class Oven(Knobs):
    """Something with a knob of every kind."""

    trays: int = knob(2, 1, 4, words="Trays, from the top.")
    buns: int = knob(0, 0, lambda oven: 12 * oven.trays)
    minutes: int = knob(20, 1)
    heat: float = knob(0.5, above=0, high=1)
    draught: float = knob(0.0, 0)
    tilt: float = knob(0.0)
    is_fan_on: bool = knob(False)
    mode: str = knob("bake", options=("bake", "grill"))
    light: str = knob("", options=("", "red"))
    recipe: str = knob("")
    seed: int = knob(0, 0)

    BY_PROFILE = {"binder": {}, "test": {"minutes": 1}}


REFUSED = {
    "too many": ({"trays": 5}, "trays must be a whole number from 1 to 4; got 5. Trays, from the"),
    "a whole number as a fraction": ({"trays": 2.0}, "from 1 to 4; got 2.0"),
    "a whole number as a truth": ({"trays": True}, "from 1 to 4; got True"),
    "more than another knob allows": (
        {"trays": 1, "buns": 13},
        "buns must be a whole number from 0 to 12; got 13",
    ),
    "too few": ({"minutes": 0}, "minutes must be a whole number of at least 1; got 0."),
    "the end that is left out": ({"heat": 0}, r"heat must lie in \(0, 1\]; got 0"),
    "a text": ({"heat": "1"}, r"heat must lie in \(0, 1\]; got '1'"),
    "no number at all": ({"draught": float("nan")}, "a finite number of at least 0; got nan"),
    "endless": ({"tilt": float("inf")}, "tilt must be a finite number; got inf"),
    "a truth as a number": ({"tilt": True}, "tilt must be a finite number; got True"),
    "a word for a truth": ({"is_fan_on": "no"}, "is_fan_on must be True or False; got 'no'"),
    "another option": ({"mode": "fry"}, "mode must be one of bake, grill; got 'fry'"),
    "another option or none": ({"light": "x"}, "one of red, or empty for none; got 'x'"),
    "a number for a text": ({"recipe": 7}, "recipe must be text; got 7"),
}


@pytest.mark.parametrize(("changes", "sentence"), REFUSED.values(), ids=REFUSED)
def test_nonsense_is_refused_with_the_name_the_value_and_what_would_do(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        Oven(**changes)


def test_the_ends_of_a_range_and_numbers_of_numpy_are_taken():
    oven = Oven(trays=np.int64(4), buns=48, heat=np.float32(1), is_fan_on=np.bool_(True))
    assert (oven.trays, oven.buns, oven.heat) == (4, 48, 1) and oven.is_fan_on


def test_a_change_is_checked_too():
    with pytest.raises(ValueError, match="buns must be a whole number from 0 to 12; got 20"):
        replace(Oven(buns=20), trays=1)


def test_knobs_survive_a_run_config_in_the_types_of_their_defaults():
    oven = Oven(buns=5, heat=0.25, is_fan_on=True, mode="grill")
    config = oven.to_run_config()
    assert config["is-fan-on"] is True and "is_fan_on" not in config
    assert Oven.from_run_config({**config, "partition-id": 3}) == oven
    heat = Oven.from_run_config({"heat": 1, "minutes": 7.0})
    assert type(heat.heat) is float and type(heat.minutes) is int
    assert heat == Oven(heat=1.0, minutes=7)


def test_a_profile_changes_defaults_and_the_caller_changes_the_profile(monkeypatch):
    monkeypatch.setenv("FEDGEN_PROFILE", "test")
    assert Oven.for_profile() == Oven(minutes=1)
    assert Oven.for_profile(minutes=9) == Oven(minutes=9)


def test_seeds_are_spawned_apart_from_one_seed():
    oven = Oven()
    seeds = {
        oven.seed_of(),
        oven.seed_of(0),
        oven.seed_of(1),
        oven.seed_of(0, 1),
        Oven(seed=1).seed_of(0),
    }
    assert len(seeds) == 5 and oven.seed_of(0, 1) == Oven(trays=3).seed_of(0, 1)


@pytest.mark.parametrize(
    "value", [0, -2, 1.5, True, "3", None, float("nan"), float("inf")], ids=repr
)
def test_an_argument_that_counts_is_a_whole_number_of_at_least_one(value):
    with pytest.raises(ValueError, match="size must be a whole number of at least 1; got"):
        check_whole("size", value)


def test_a_count_may_be_allowed_to_be_nothing_and_to_come_from_numpy():
    check_whole("seed", 0, 0)
    check_whole("size", np.int64(3))
    with pytest.raises(ValueError, match="seed must be a whole number of at least 0; got -1"):
        check_whole("seed", -1, 0)
