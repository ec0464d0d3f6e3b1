"""Membership by the noise guess: formulas against models whose guess is known, and a real model that copies nothing."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDPMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    ScoreSdeVeScheduler,
    UNet2DModel,
)
from sklearn.datasets import load_digits

from fedgen_lab.memorization.ddpm import any_class, draw_ddpm, new_ddpm, train_ddpm
from fedgen_lab.memorization.denoiser import denoiser_of
from fedgen_lab.memorization.membership import ATTACKS, membership, noise_loss, pia, sima

TARGETS = ("epsilon", "v_prediction", "sample")


def digits(start, number):
    """8x8 digits in [-1, 1] and their labels; the sets of different numbers don't overlap."""
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))[start : start + number]
    return torch.tensor(bunch.images[order] / 8 - 1, dtype=torch.float32)[:, None], bunch.target[
        order
    ].tolist()


def knowing(training, target="epsilon"):
    """The best denoiser there is for a training set (M, 1, 8, 8): its guess of the picture is the mean of the training
    pictures, weighted by how likely each is to have become x. In place of a trained net.
    """
    model = new_ddpm(side=8, width=8)
    model.scheduler = DDPMScheduler.from_config(model.scheduler.config, prediction_type=target)

    def forward(x, t, class_labels=None):
        left = model.scheduler.alphas_cumprod[t].double().view(-1, 1, 1, 1)
        apart = (
            (x[:, None].double() - left[..., None].sqrt() * training[None])
            .square()
            .flatten(2)
            .sum(2)
        )  # (B, M)
        weights = (-apart / 2 / (1 - left.view(-1, 1))).softmax(1)
        clean = torch.einsum("bm,mchw->bchw", weights, training.double())
        noise = (x - left.sqrt() * clean) / (1 - left).sqrt()
        guess = {
            "epsilon": noise,
            "sample": clean,
            "v_prediction": left.sqrt() * noise - (1 - left).sqrt() * clean,
        }
        return SimpleNamespace(sample=guess[target].float())

    model.unet.forward = forward
    return model


@pytest.mark.parametrize("target", TARGETS)
def test_whatever_a_model_was_trained_to_guess_its_noise_is_the_same(target):
    training, _ = digits(0, 8)
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = denoiser_of(knowing(training, "epsilon")).eps(x, 300)
    torch.testing.assert_close(
        denoiser_of(knowing(training, target)).eps(x, 300), wanted, atol=1e-3, rtol=1e-3
    )


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("target", TARGETS)
def test_every_attack_finds_the_members_of_the_best_denoiser(attack, target):
    training, _ = digits(0, 40)
    others, _ = digits(40, 100)
    found = membership(knowing(training, target), training, others, attack)
    assert found.auc > 0.99 and found.tpr > 0.9
    false_positives, true_positives = found.curve()
    assert true_positives[false_positives <= 0.01].max() == pytest.approx(found.tpr)


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_model_of_other_pictures_tells_nothing(attack):
    members, others = digits(0, 100)[0], digits(100, 200)[0]
    found = membership(knowing(digits(400, 60)[0]), members, others, attack)
    assert 0.38 < found.auc < 0.62


def test_the_formulas_by_hand():
    training, _ = digits(0, 5)
    x, _ = digits(10, 3)
    model = knowing(training)
    eps = lambda x, t: denoiser_of(model).eps(x, t)  # noqa: E731
    np.testing.assert_allclose(
        sima(model, x, timestep=50), eps(x, 50).flatten(1).norm(dim=1), rtol=1e-5
    )
    left, first = model.scheduler.alphas_cumprod[200], eps(x, 0)
    moved = eps(left.sqrt() * x + (1 - left).sqrt() * first, 200) - first
    np.testing.assert_allclose(
        pia(model, x, timestep=200), (moved**4).flatten(1).sum(1) ** 0.25, rtol=1e-4
    )
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(1, 8, 8, generator=generator)
    left = model.scheduler.alphas_cumprod[400]
    wanted = (
        (eps(left.sqrt() * x + (1 - left).sqrt() * noise, 400) - noise).square().mean((1, 2, 3))
    )
    np.testing.assert_allclose(
        noise_loss(model, x, timesteps=(400,), draws=1, seed=3), wanted, rtol=1e-5
    )


def test_a_score_depends_on_its_own_picture_alone():
    training, _ = digits(0, 20)
    model, x = knowing(training), digits(15, 40)[0]
    for attack in ATTACKS.values():
        np.testing.assert_allclose(
            attack(model, x)[30:], attack(model, x[30:], batch_size=4), rtol=1e-4
        )


@pytest.fixture(scope="module")
def trained():
    """A small DDPM, trained on 32 digits for longer than is good for them."""
    members, labels = digits(0, 32)
    model = new_ddpm(side=8, width=16)
    train_ddpm(model, members, labels, steps=200, batch_size=32, learning_rate=5e-3)
    return model, members, labels


def test_no_copies_is_not_no_leakage(trained):
    model, members, labels = trained
    others, other_labels = digits(32, 150)
    drawn = draw_ddpm(model, labels, range(32), steps=20)
    apart = torch.cdist(drawn.flatten(1), members.flatten(1)).sort(1).values
    assert not (apart[:, 0] < apart[:, 1] / 3).any()  # the one-third rule sees nothing
    for attack in ATTACKS:
        found = membership(model, members, others, attack, conditions=(labels, other_labels))
        assert found.auc > 0.9, attack


def test_a_label_can_be_left_out(trained):
    model, members, labels = trained
    without = pia(model, members)
    np.testing.assert_array_equal(without, pia(model, members, [any_class(model)] * len(members)))
    assert not np.allclose(without, pia(model, members, labels))


def test_captions_and_plain_diffusers_pipelines_work_too(small_folder):
    from fedgen_lab.lora.pipeline import encode, load_pipeline
    from fedgen_lab.pictures.sprites import draw_sprites

    pipeline, sprites = load_pipeline(small_folder), draw_sprites(3, seed=0)
    encoded = encode(pipeline, sprites)
    torch.testing.assert_close(
        denoiser_of(pipeline).inputs(sprites), encoded.latents, atol=1e-4, rtol=1e-4
    )
    scores = sima(pipeline, sprites)
    np.testing.assert_allclose(scores, sima(pipeline, sprites.images, sprites.captions), rtol=1e-5)
    assert not np.allclose(
        scores, sima(pipeline, sprites.images), rtol=1e-3
    )  # no caption: another question
    unet = UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    unconditional = DDIMPipeline(unet, DDPMScheduler())
    assert pia(unconditional, torch.zeros(2, 1, 16, 16)).shape == (2,)


def test_pictures_need_not_be_square_and_a_learned_variance_is_left_aside():
    unet = UNet2DModel(
        sample_size=(8, 12),
        in_channels=1,
        out_channels=2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    pipeline = DDIMPipeline(unet, DDPMScheduler())
    assert pia(pipeline, torch.zeros(2, 1, 8, 12)).shape == (2,)
    with pytest.raises(ValueError, match=r"are \(N, 1, 8, 12\); got \(2, 1, 12, 8\)"):
        pia(pipeline, torch.zeros(2, 1, 12, 8))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((torch.zeros(3, 1, 8, 9),), r"are \(N, 1, 8, 8\); got \(3, 1, 8, 9\)"),
        ((torch.zeros(0, 1, 8, 8),), r"got \(0, 1, 8, 8\)"),
        ((torch.full((2, 1, 8, 8), torch.nan),), "NaN"),
        ((torch.full((2, 1, 8, 8), 200.0),), r"must lie in .-1, 1.; got values up to 200"),
        ((torch.zeros(2, 1, 8, 8).long(),), "must be uint8 or float"),
        ((torch.zeros(3, 1, 8, 8), [0]), "3 pictures and 1"),
        ((torch.zeros(1, 1, 8, 8), [11]), "labels from 0 to 9, or None for any; got 11"),
        ((torch.zeros(1, 1, 8, 8), ["a star"]), "got a star"),
        ((torch.zeros(1, 1, 8, 8), None, 2000), "timestep must lie in 0..999; got 2000"),
    ],
    ids=["shape", "empty", "nan", "0..255", "int64", "lengths", "label", "text", "timestep"],
)
def test_a_question_without_sense_is_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        sima(new_ddpm(side=8, width=8), *arguments)


def test_unknown_attacks_and_models_are_named():
    x = torch.zeros(2, 1, 8, 8)
    with pytest.raises(ValueError, match="one of loss, PIA, SimA; got 'SecMI'"):
        membership(new_ddpm(side=8, width=8), x, x, "SecMI")
    with pytest.raises(ValueError, match="^others: 2 of the 2 pictures hold NaN"):
        membership(new_ddpm(side=8, width=8), x, x * torch.nan)
    with pytest.raises(ValueError, match="at least one draw at one timestep; got draws=0"):
        noise_loss(new_ddpm(side=8, width=8), x, draws=0)
    with pytest.raises(ValueError, match="has no UNet"):
        denoiser_of(SimpleNamespace())


@pytest.mark.parametrize(
    "scheduler", [FlowMatchEulerDiscreteScheduler, ScoreSdeVeScheduler, EDMEulerScheduler]
)
def test_models_whose_noise_has_no_numbered_steps_are_refused(scheduler):
    model = new_ddpm(side=8, width=8)
    model.scheduler = scheduler()
    with pytest.raises(
        ValueError, match=f"{scheduler.__name__} doesn't add noise in numbered steps"
    ):
        pia(model, torch.zeros(2, 1, 8, 8))
