"""Membership inference: how it is scored; it finds members where there are some, and none where there are none."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from sklearn.metrics import roc_auc_score
from tiny_models import random_pictures, random_unet

from fedgen_lab.lora.adapter import add_adapter
from fedgen_lab.lora.local import denoising_loss, train
from fedgen_lab.privacy.membership import judge_fit, judge_scores


def encoded(number, seed):
    return random_pictures(number, torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def trained():
    """A tiny random UNet, an adapter that has learned eight pictures by heart, those pictures and its schedule."""
    unet = random_unet()
    schedule = DDPMScheduler(prediction_type="v_prediction")
    add_adapter(unet, rank=16)
    members = encoded(8, seed=1)
    train(unet, schedule, members, steps=100, batch_size=8, learning_rate=1e-2, seed=0)
    return unet, schedule, members


@pytest.mark.parametrize("seed", range(3))
def test_the_auc_is_scikit_learns_and_the_tpr_bears_one_false_positive_in_a_hundred(seed):
    draw = np.random.default_rng(seed)
    members, others = draw.normal(1, 1, 50), draw.normal(0, 1, 200)
    found = judge_scores(members, others)
    assert found.auc == pytest.approx(roc_auc_score([1] * 50 + [0] * 200, np.r_[members, others]))
    threshold = np.sort(others)[-3]  # two of 200 lie above it
    assert found.tpr == pytest.approx((members > threshold).mean())
    false_positives, true_positives = found.curve()
    assert true_positives[false_positives <= 0.01].max() == pytest.approx(found.tpr)


def test_with_few_non_members_no_false_positive_is_allowed():
    assert judge_scores([1.0, 3.0], [0.0, 2.0]).tpr == 0.5
    assert judge_scores([2.0, 2.0], [2.0]).tpr == 0.0  # a tie is no proof
    assert judge_scores([1.0], [1.0]).auc == 0.5


def test_scores_that_are_not_finite_are_named():
    with pytest.raises(ValueError, match="finite scores; got 2 members and 0 non-members"):
        judge_scores([1.0, 2.0], [])
    with pytest.raises(ValueError, match="finite"):
        judge_scores([np.nan], [0.0])


def errors_of(unet, schedule, *pictures):
    """The denoising losses of members (M,) and of others (N,)."""
    return tuple(
        denoising_loss(unet, schedule, each, draws=8).double().numpy() for each in pictures
    )


def without_adapter(unet, members, outsiders, schedule):
    """The errors under the base model."""
    unet.disable_adapters()
    errors = errors_of(unet, schedule, members, outsiders)
    unet.enable_adapters()
    return errors


def test_an_adapter_that_learned_pictures_by_heart_gives_them_away(trained):
    unet, schedule, members = trained
    outsiders = encoded(40, seed=2)
    before = without_adapter(unet, members, outsiders, schedule)
    found = judge_fit(before, errors_of(unet, schedule, members, outsiders))
    assert found.auc > 0.8
    assert found.members.shape == (8,) and found.outsiders.shape == (40,)


def test_an_adapter_that_never_saw_them_tells_nothing(trained):
    unet, schedule, _ = trained
    members, outsiders = encoded(40, seed=3), encoded(80, seed=4)
    before = without_adapter(unet, members, outsiders, schedule)
    after = errors_of(unet, schedule, members, outsiders)
    assert 0.3 < judge_fit(before, after).auc < 0.7


def test_an_easy_picture_that_was_easy_before_is_not_taken_for_a_member():
    easy, hard = np.array([0.01, 0.02]), np.array([1.0, 2.0])
    assert judge_fit((easy, hard), (easy, hard)).auc == 0.5
    assert judge_fit((hard, easy), (hard / 2, easy)).auc == 1.0
    assert judge_fit((easy, hard), (easy, hard / 2)).auc == 0.0
