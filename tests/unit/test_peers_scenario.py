"""The knobs of an experiment with peers: what can't be run is refused at once, by the name of its knob."""

import numpy as np
import pytest
import torch
from recorders import recorder

from fedgen_lab.peers.objectives import judge_samples
from fedgen_lab.peers.peer import start_model
from fedgen_lab.peers.scenario import KID_PICTURES, OBJECTIVES, TRAINED_ON, PeersScenario, deal

NO_KNOBS = {
    "a text for a number": (
        {"num_peers": "2"},
        "num_peers must be a whole number from 1 to 8; got '2'",
    ),
    "a fraction's type": (
        {"num_peers": 2.0},
        "num_peers must be a whole number from 1 to 8; got 2.0",
    ),
    "nothing": ({"samples": None}, "samples must be a whole number from 20 to 100000; got None"),
    "NaN": ({"samples": float("nan")}, "samples must be a whole number from 20 to 100000; got nan"),
    "endless": (
        {"seed": float("inf")},
        "seed must be a whole number from 0 to 4294967295; got inf",
    ),
    "a text for pictures": ({"pictures_per_peer": "x"}, "pictures_per_peer must be a whole number"),
    "a text for a share": ({"skew": "a"}, r"skew must lie in \[0, 1\]; got 'a'"),
    "an attack without attackers": (
        {"attack": "zz"},
        "attack must be one of free-rider, .*; got 'zz'",
    ),
    "too few for KID": (
        {"samples": 49},
        "samples must be .* from 50 to 100000 with objective 'calibrated'; got 49",
    ),
    "too few for FID": (
        {"samples": 63, "objective": "qn"},
        "samples must be .* from 64 to 100000 with objective 'qn'",
    ),
    "too few sprites": (
        {"objective": "qn", "pictures": "sprites:solid"},
        "samples must be .* from 128 to 100000",
    ),
    "nothing to judge with": (
        {"pictures_per_peer": 98},
        "pictures_per_peer must be .* from 99 to .*; got 98",
    ),
    "less for FID": (
        {"pictures_per_peer": 126, "objective": "qn"},
        "pictures_per_peer must be .* from 127 to",
    ),
    "most are trained on": (
        {"pictures_per_peer": 70, "train_pictures": 21},
        "pictures_per_peer must be .* from 71 to",
    ),
    "one picture": (
        {"train_pictures": 1},
        "train_pictures must be 0, .* or at least 2 with .*'calibrated'; got 1",
    ),
    "few for FLD": (
        {"train_pictures": 3, "objective": "fld-fid"},
        "train_pictures must be 0, .* or at least 4",
    ),
}


@pytest.mark.parametrize(("knobs", "message"), NO_KNOBS.values(), ids=NO_KNOBS)
def test_what_can_not_be_run_is_refused_by_name_value_and_range(knobs, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        PeersScenario(**knobs)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_least_that_is_allowed_can_be_judged(objective):
    trained_on = TRAINED_ON[objective]
    to_judge = KID_PICTURES if objective == "calibrated" else 64
    for pictures, few in ((to_judge + trained_on, trained_on), (2 * to_judge - 1, 0)):
        scenario = PeersScenario(
            num_peers=1,
            width=8,
            objective=objective,
            samples=to_judge,
            pictures_per_peer=pictures,
            train_pictures=few,
        )
        noise = torch.rand(to_judge, 1, 14, 14, generator=torch.Generator().manual_seed(0)) * 2 - 1
        score, _ = judge_samples(scenario, start_model(scenario), noise, deal(scenario)[0])
        assert np.isfinite(score)


def test_whole_numbers_of_other_types_and_every_recorded_point_are_allowed():
    assert PeersScenario(num_peers=np.int64(3), skew=np.float32(0.5)).voters == 3
    pdfed = recorder("pdfed")
    assert all(pdfed.scenario_of(point, 0).samples == 100 for point in pdfed.POINTS)
