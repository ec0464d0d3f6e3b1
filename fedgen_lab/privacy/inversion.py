"""Gradient inversion: the server looks for a picture whose gradient is the one a client sent.

Lab 08. A client that uploads after a single step has sent a gradient, and a gradient is a function of the picture. The
attacker starts from noise and changes it until its gradient fits: Zhu et al. (DLG), arXiv 1906.08935; Geiping et al.,
arXiv 2003.14053. A diffusion model hides two things more, the timestep and the noise that were drawn: GIDM, arXiv
2405.20380. The attack here is run with both known, or with the noise unknown, and says which.
"""

import math
from contextlib import suppress
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedgen_lab.federation.averages import shortening
from fedgen_lab.lora.local import target_of
from fedgen_lab.lora.pipeline import Encoded

GUESS_SEED = 0  # of the attacker's first guess of the noise


class Inversion(NamedTuple):
    """What one attack rebuilt. Errors are mean squared errors of latents."""

    latents: torch.Tensor  # (B, 4, h, w) rebuilt
    error: float  # against the latents behind the gradient
    baseline: float  # of the mean picture: the best answer without looking at the gradient
    misfits: list  # squared distance of the guess's gradient from the client's, relative to that one's; one a step

    @property
    def share(self):
        """Error over baseline: 0 is a perfect copy, 1 or more tells nothing about the picture."""
        return self.error / self.baseline


def shared_gradient(unet, schedule, encoded, timesteps, noise, create_graph=False):
    """The gradient of the training loss that one local step computes: name -> tensor, for what is trainable in `unet`.

    encoded: the `Encoded` batch of the step; timesteps (B,) and noise (B, 4, h, w): what the client drew.
    """
    parameters = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    with sdpa_kernel(SDPBackend.MATH):  # torch's fused attention has no second derivative
        noisy = schedule.add_noise(encoded.latents, noise, timesteps)
        guess = unet(noisy, timesteps, encoder_hidden_states=encoded.text).sample
        loss = F.mse_loss(guess, target_of(schedule, encoded.latents, noise, timesteps))
        gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=create_graph)
    return dict(zip(parameters, gradients, strict=True))


def protect(gradient, clip, noise_multiplier, seed):
    """`gradient` clipped to length `clip`, plus Gaussian noise of deviation noise_multiplier * clip on every number."""
    generator = torch.Generator().manual_seed(seed)
    factor = shortening(gradient, clip)
    return {
        name: g * factor + torch.randn(g.shape, generator=generator) * (noise_multiplier * clip)
        for name, g in gradient.items()
    }


def invert(unet, schedule, gradient, secret, mean_latent, timesteps, noise=None, steps=25):
    """Rebuild the latents behind `gradient` (see `shared_gradient`); returns an `Inversion`.

    secret: the `Encoded` batch behind it; its captions' text states are known to the attacker, its latents only grade
    the result. mean_latent (4, h, w): of pictures like these that the attacker has; the search starts there.
    timesteps (B,): known. noise (B, 4, h, w): what the client drew, or None where the attacker must find it too.
    steps: gradients of guesses to compute, by L-BFGS, since the misfit is nearly quadratic. The best guess counts.
    """
    start = mean_latent.expand_as(secret.latents)
    guess = start.clone().requires_grad_()
    unknowns = [guess]
    if noise is None:
        # The noise is searched for too, from noise of the attacker's.
        generator = torch.Generator().manual_seed(GUESS_SEED)
        noise = torch.randn(start.shape, generator=generator).requires_grad_()
        unknowns.append(noise)
    scale = sum(g.square().sum() for g in gradient.values())
    search = torch.optim.LBFGS(
        unknowns,
        max_iter=steps,
        max_eval=steps,
        history_size=steps,
        line_search_fn="strong_wolfe",
        tolerance_grad=0,
        tolerance_change=0,
    )
    misfits, best = [], start

    def closure():
        nonlocal best
        # The gradient that the client would have sent of this guess.
        batch = Encoded(guess, secret.text)
        guessed = shared_gradient(unet, schedule, batch, timesteps, noise, create_graph=True)
        # How far it is from the one that was sent, and where to move the guess.
        squares = [(guessed[name] - gradient[name]).square().sum() for name in gradient]
        misfit = sum(squares) / scale
        search.zero_grad()
        misfit.backward(inputs=unknowns)
        if misfit.item() < min(misfits, default=math.inf):
            best = guess.detach().clone()
        misfits.append(misfit.item())
        if len(misfits) >= steps:
            raise _Enough
        return misfit

    with suppress(_Enough):
        search.step(closure)
    return Inversion(
        latents=best,
        error=float(F.mse_loss(best, secret.latents)),
        baseline=float(F.mse_loss(start, secret.latents)),
        misfits=misfits,
    )


class _Enough(Exception):
    """Ends a search of L-BFGS, which would go on to the end of its line search."""
