"""The exercises of lab 09: the solution passes, each typical mistake hears its own message, the stub is not tried."""

import pytest
import torch
from exercise_claims import claims_on

from fedgen_lab.exercises.checks import check, find
from fedgen_lab.exercises.lab09 import EXERCISES, _apart, _confirmed, _robust, _scenes, _third


def two(generated, training):
    return _apart(generated, training).topk(2, largest=False).values


SHUFFLED = torch.randperm(144, generator=torch.Generator().manual_seed(1))
NOISE = 0.3 * torch.randn(40, 3, 12, 12, generator=torch.Generator().manual_seed(0))

WRONG = {
    "09.1": {
        "there twice escape you": lambda g, t: _third(g, t, unique=False),
        "squared distances. One third": lambda g, t: _third(g, t, share=3**-0.5),
        "compare distances with one ninth": lambda g, t: _third(g, t, share=1 / 9),
        "that are no copies": lambda g, t: ~_third(g, t),
        "one third itself": lambda g, t: two(g, t)[:, 0] < 1 / 3,
        "the mean of all": lambda g, t: two(g, t)[:, 0] < _apart(g, t).mean(1) / 3,
        "every picture a copy": lambda g, t: two(g, t)[:, 0] < 3 * two(g, t)[:, 1],
        "no picture a copy": lambda g, t: torch.zeros(len(g)),
        "not yes or no": lambda g, t: two(g, t)[:, 0] / two(g, t)[:, 1],
        "One answer belongs to each": lambda g, t: _apart(g, t) < 1,
        "you say the opposite": lambda g, t: _third(g, t, share=0.5),
    },
    "09.2": {
        "as they were": lambda p: p,
        "the order of the pictures": lambda p: p.flip(0),
        "red and blue": lambda p: p.flip(1),
        "upside down": lambda p: p.flip(2),
        "negatives": lambda p: -p,
        "other values than before": lambda p: p + NOISE,
        "a person sees noise": lambda p: p.flatten(2)[..., SHUFFLED].reshape(p.shape),
        "still confirms": lambda p: torch.cat([p[:20].flip(-1), p[20:]]),
        "of the same shape": lambda p: p[0],
    },
    "09.3": {
        "the plain distance": lambda a, b: _robust(a, b, reach=0, mirror=False),
        "moved ones are not": lambda a, b: _robust(a, b, reach=0),
        "mirrored ones are not": lambda a, b: _robust(a, b, mirror=False),
        "one or the other": lambda a, b: _robust(a, b, both=False),
        "one pixel at most": lambda a, b: _robust(a, b, reach=1),
        "down and right only": lambda a, b: _robust(a, b, signs=(1,)),
        "comes in on the other": lambda a, b: _robust(a, b, roll=True),
        "sum over the pixels": lambda a, b: _robust(a, b, total=True),
        "the worst match": lambda a, b: _robust(a, b, best=max),
        "squared distances": lambda a, b: _robust(a, b) ** 2,
        "must be one number": lambda a, b: a - b,
        "yours says": lambda a, b: 0.0,
    },
}

TestExercises = claims_on(EXERCISES, WRONG)


@pytest.mark.parametrize(
    "turned",
    [
        lambda x: x.flip(2, 3),
        lambda x: x.rot90(1, (2, 3)),
        lambda x: x.transpose(2, 3),
    ],
    ids=["half", "quarter", "transposed"],
)
def test_turned_pictures_are_no_disguise(turned):
    verdict = check("09.2", turned)
    assert not verdict.passed and "a person notices" in verdict.message


def test_a_shift_is_a_disguise_too():
    assert check("09.2", lambda pictures: pictures.roll((2, 2), (-2, -1))).passed


@pytest.mark.parametrize("seed", range(3))
def test_the_detector_of_the_check_confirms_copies_and_no_fresh_picture(seed):
    training = _scenes(seed)
    assert _confirmed(training, training) == 1
    assert _confirmed(_scenes(seed + 100), training) == 0


def test_the_robust_distance_is_symmetric_and_zero_for_a_mirrored_copy():
    a, b = _scenes(1, 2)
    robust = find("09.3").run_solution()
    assert robust(a, a.flip(-1)) == 0
    assert (
        robust(a, b)
        == pytest.approx(robust(b, a), abs=1e-6)
        == pytest.approx(_robust(a, b), abs=1e-6)
    )
