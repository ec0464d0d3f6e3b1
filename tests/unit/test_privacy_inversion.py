"""Gradient inversion: the gradient is that of training, and a guess can be moved until its own gradient is the same."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from tiny_models import random_pictures, random_unet

from fedgen_lab.lora.adapter import add_adapter
from fedgen_lab.lora.local import target_of
from fedgen_lab.lora.pipeline import Encoded
from fedgen_lab.privacy.inversion import invert, protect, shared_gradient

TIMESTEPS = torch.tensor([900])


@pytest.fixture(scope="module")
def setting():
    """A tiny UNet with an adapter, its schedule, one secret picture, the noise the client drew, and a mean picture."""
    unet = random_unet()
    add_adapter(unet, rank=16)
    generator = torch.Generator().manual_seed(1)
    secret = random_pictures(1, generator)
    noise = torch.randn(1, 4, 4, 4, generator=generator)
    return unet, DDPMScheduler(prediction_type="v_prediction"), secret, noise, torch.zeros(4, 4, 4)


def test_the_shared_gradient_is_that_of_a_training_step(setting):
    unet, schedule, secret, noise, _ = setting
    found = shared_gradient(unet, schedule, secret, TIMESTEPS, noise)
    unet.zero_grad()
    noisy = schedule.add_noise(secret.latents, noise, TIMESTEPS)
    guess = unet(noisy, TIMESTEPS, encoder_hidden_states=secret.text).sample
    F.mse_loss(guess, target_of(schedule, secret.latents, noise, TIMESTEPS)).backward()
    wanted = {name: p.grad for name, p in unet.named_parameters() if p.requires_grad}
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(found[name], wanted[name], atol=1e-6) for name in wanted)


def test_the_gradient_of_one_step_gives_the_picture_away(setting):
    unet, schedule, secret, noise, mean = setting
    gradient = shared_gradient(unet, schedule, secret, TIMESTEPS, noise)
    found = invert(unet, schedule, gradient, secret, mean, TIMESTEPS, noise, steps=12)
    assert found.share < 0.3 and min(found.misfits) < 0.01 * found.misfits[0]
    assert found.error == pytest.approx(float(F.mse_loss(found.latents, secret.latents)))
    assert found.baseline == pytest.approx(float(secret.latents.square().mean()))


def test_the_gradient_of_another_picture_does_not(setting):
    unet, schedule, secret, noise, mean = setting
    other = Encoded(secret.latents.flip(-1) * -1, secret.text)
    gradient = shared_gradient(unet, schedule, other, TIMESTEPS, noise)
    assert invert(unet, schedule, gradient, secret, mean, TIMESTEPS, noise, steps=12).share > 0.9


def test_unknown_noise_is_harder_and_strong_noise_on_the_gradient_hides_the_picture(setting):
    unet, schedule, secret, noise, mean = setting
    gradient = shared_gradient(unet, schedule, secret, TIMESTEPS, noise)
    known = invert(unet, schedule, gradient, secret, mean, TIMESTEPS, noise, steps=12)
    unknown = invert(unet, schedule, gradient, secret, mean, TIMESTEPS, steps=12)
    length = float(torch.cat([g.flatten() for g in gradient.values()]).norm())
    hidden = invert(
        unet, schedule, protect(gradient, length, 1.0, 0), secret, mean, TIMESTEPS, noise, steps=12
    )
    assert known.share < unknown.share
    assert hidden.share > 2 * known.share


def test_protection_clips_and_then_adds_noise_of_the_promised_strength(setting):
    unet, schedule, secret, noise, _ = setting
    gradient = shared_gradient(unet, schedule, secret, TIMESTEPS, noise)
    flat = torch.cat([g.flatten() for g in gradient.values()])
    clip = float(flat.norm()) / 4
    clipped = torch.cat([g.flatten() for g in protect(gradient, clip, 0.0, 0).values()])
    assert torch.allclose(clipped, flat / 4, atol=1e-7)
    noisy = torch.cat([g.flatten() for g in protect(gradient, clip, 0.5, 0).values()])
    assert float((noisy - clipped).std()) == pytest.approx(0.5 * clip, rel=0.05)
    assert torch.equal(
        noisy, torch.cat([g.flatten() for g in protect(gradient, clip, 0.5, 0).values()])
    )
    untouched = protect(gradient, 4 * clip + 1, 0.0, 0)
    assert all(torch.equal(untouched[name], gradient[name]) for name in gradient)


def test_the_best_guess_counts_of_as_many_gradients_as_were_asked_for(setting):
    unet, schedule, secret, noise, mean = setting
    gradient = shared_gradient(unet, schedule, secret, TIMESTEPS, noise)
    found = invert(unet, schedule, gradient, secret, mean, TIMESTEPS, noise, steps=3)
    assert len(found.misfits) == 3
    again = shared_gradient(unet, schedule, Encoded(found.latents, secret.text), TIMESTEPS, noise)
    squares = sum((again[name] - gradient[name]).square().sum() for name in gradient)
    length = sum(g.square().sum() for g in gradient.values())
    assert float(squares / length) == pytest.approx(min(found.misfits), rel=1e-4)
