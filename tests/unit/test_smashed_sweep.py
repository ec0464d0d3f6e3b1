"""Claims about the recorded sweep of lab 06: what protections of smashed data hide, and what they cost."""

from statistics import mean

import pytest
from recorders import recorder

from fedgen_lab.recorded import recorded

smashed_data = recorder("smashed_data")
KNOBS = ["cut", "noise", "bits", "decorrelation"]


def _mean(name, cut="0000", noise=0.0, bits=32, decorrelation=0.0):
    runs = recorded("smashed_data").set_index(KNOBS).sort_index()
    values = runs.loc[(cut, noise, bits, decorrelation), name]
    assert len(values) == len(smashed_data.SEEDS)
    return mean(values)


def test_what_is_recorded_belongs_to_the_grid_and_no_point_is_there_twice():
    runs = recorded("smashed_data")
    assert not runs.duplicated([*KNOBS, "seed"]).any()
    assert all(point in smashed_data.POINTS for point in runs[KNOBS].to_dict("records"))


def test_all_points_of_a_seed_are_about_the_same_secret_pictures():
    secrets = recorded("smashed_data").groupby("seed")["baseline_mse"].nunique()
    assert secrets.index.tolist() == list(smashed_data.SEEDS) and secrets.eq(1).all()


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
