"""Membership inference: how it is scored; it finds members where there are some, and none where there are none."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from sklearn.metrics import roc_auc_score
from tiny_models import random_pictures, random_unet

from fedgen_lab.lora.adapter import add_adapter
from fedgen_lab.lora.local import train
from fedgen_lab.privacy.membership import (
    _ddim,
    attack,
    errors_of,
    judge_scores,
    losses,
    t_errors,
    without_adapter,
)


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


@pytest.mark.parametrize("error", [losses, t_errors])
def test_an_adapter_that_learned_pictures_by_heart_gives_them_away(trained, error):
    unet, schedule, members = trained
    others = encoded(40, seed=2)
    settings = {"draws": 8} if error is losses else {}
    with without_adapter(unet):
        before = errors_of(unet, schedule, members, others, error, **settings)
    found = attack(unet, schedule, members, others, error, before, **settings)
    assert found.auc > (0.8 if error is losses else 0.6)
    assert found.members.shape == (8,) and found.others.shape == (40,)


@pytest.mark.parametrize("error", [losses, t_errors])
def test_an_adapter_that_never_saw_them_tells_nothing(trained, error):
    unet, schedule, _ = trained
    members, others = encoded(40, seed=3), encoded(80, seed=4)
    assert 0.3 < attack(unet, schedule, members, others, error).auc < 0.7


def test_without_the_adapter_the_errors_are_those_of_the_base_model(trained):
    unet, schedule, members = trained
    with_it = losses(unet, schedule, members)
    with without_adapter(unet):
        bare = losses(unet, schedule, members)
    assert np.array_equal(losses(unet, schedule, members), with_it)
    assert not np.allclose(bare, with_it)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_step_down_is_that_of_the_librarys_ddim(trained, kind):
    unet, _, members = trained
    theirs = DDIMScheduler(prediction_type=kind, clip_sample=False)
    theirs.set_timesteps(50)  # steps of 20
    with torch.no_grad():
        guess = unet(
            members.latents, torch.full((8,), 400), encoder_hidden_states=members.text
        ).sample
        wanted = theirs.step(guess, 400, members.latents).prev_sample
        found = _ddim(unet, theirs, members.latents, members.text, 400, 380)
    assert torch.allclose(found, wanted, atol=1e-5)


def test_a_stride_that_does_not_fit_is_named(trained):
    unet, schedule, members = trained
    with pytest.raises(ValueError, match="stride must divide timestep"):
        t_errors(unet, schedule, members, timestep=100, stride=30)
    with pytest.raises(ValueError, match="below 1000"):
        t_errors(unet, schedule, members, timestep=990, stride=10)
