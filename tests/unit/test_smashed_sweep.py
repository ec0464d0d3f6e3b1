"""Claims about the recorded sweep of lab 06: what protections of smashed data hide, and what they cost."""

from statistics import mean

import pytest

from fedgen_lab.privacy import sweep_smashed
from fedgen_lab.shipped import shipped
from fedgen_lab.sweep import SWEEPS, read_sweep


def _recorded():
    return read_sweep(shipped("sweeps") / "smashed_data.json")["points"]


def _mean(name, cut="0000", noise=0.0, bits=32, decorrelation=0.0):
    point = {"cut": cut, "noise": noise, "bits": bits, "decorrelation": decorrelation}
    values = [entry["result"][name] for entry in _recorded() if entry["point"] == point]
    if len(values) < len(sweep_smashed.SEEDS):
        pytest.skip(f"{point} is not recorded with all seeds yet")
    return mean(values)


def test_what_is_recorded_belongs_to_the_grid_and_no_point_is_there_twice():
    keys = [(tuple(entry["point"].items()), entry["seed"]) for entry in _recorded()]
    assert len(keys) == len(set(keys)) and SWEEPS["smashed_data"] == sweep_smashed.__name__
    assert all(entry["point"] in sweep_smashed.POINTS for entry in _recorded())


@pytest.mark.parametrize("seed", sweep_smashed.SEEDS)
def test_all_points_of_a_seed_are_about_the_same_secret_pictures(seed):
    assert (
        len({entry["result"]["baseline_mse"] for entry in _recorded() if entry["seed"] == seed})
        == 1
    )


@pytest.mark.parametrize("cut", ["0000", "1010"])
def test_on_the_plain_wire_every_label_is_read_and_the_pictures_are_rebuilt(cut):
    assert (
        _mean("labels_from_generator", cut) > 0.98
        and _mean("labels_from_discriminator", cut) > 0.98
    )
    assert _mean("mse", cut) < 0.3 * _mean("baseline_mse", cut)


def test_eight_bits_cost_nothing_and_hide_nothing():
    assert _mean("labels_from_discriminator", bits=8) > 0.98
    assert _mean("mse", bits=8) == pytest.approx(_mean("mse"), rel=0.1)
    assert _mean("image_score", bits=8) > 0.9 * _mean("image_score")


def test_noise_ruins_the_generator_before_it_hides_a_label():
    assert _mean("image_score", noise=2.0) < 0.5 * _mean("image_score")
    assert _mean("labels_from_discriminator", noise=2.0) > 0.98


def test_a_head_taught_to_tell_less_still_tells_every_label():
    assert _mean("labels_from_discriminator", decorrelation=10.0) > 0.98
    assert _mean("mse") < _mean("mse", decorrelation=10.0) < 0.3 * _mean("baseline_mse")
