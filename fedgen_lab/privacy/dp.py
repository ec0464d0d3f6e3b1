"""Differential privacy for adapters: clip what one user can change, drown it in noise, and count what that is worth.

Lab 08. Two answers to "whose data is protected?":

- user level: a client's whole update is clipped to norm C, and the server adds noise N(0, (z C)^2) to the sum, so the
  adapter hardly tells whether a client took part. McMahan et al., arXiv 1710.06963. The server is trusted: it sees the
  updates (unless they are summed by `federation.secure`) and adds the noise (`federation.averages.private_mean`).
- sample level: every client clips the gradient of each picture and adds the noise itself, at every local step, so that
  not even its own upload tells much about one picture. DP-SGD: Abadi et al., arXiv 1607.00133.

z is the noise multiplier. What it buys is an epsilon, always together with a delta and the accountant that found it.
Noise and draws follow from the experiment's seed, so that a run can be repeated; where privacy is at stake they must
come from a source that nobody knows.
"""

import math
import warnings
from typing import NamedTuple

import torch
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedgen_lab.lora.local import new_adam, noised

DELTA = 1e-5  # of every guarantee: the chance that epsilon doesn't hold
TIGHT_UP_TO = 50.0  # epsilon; beyond it no promise is left to be tight about
AT_ONCE = 4  # pictures whose own gradients are computed in one pass: memory grows with them


# -- the accountant ----------------------------------------------------------------------------------------------------


class Spent(NamedTuple):
    """A guarantee: (epsilon, delta)-differential privacy under adding or removing one client (or picture)."""

    epsilon: float
    delta: float
    accountant: str  # "exact", "prv" or "rdp"

    def __str__(self):
        return (
            f"epsilon = {self.epsilon:.3g} at delta = {self.delta:g} ({self.accountant} accountant)"
        )


def privacy_spent(noise_multiplier, releases, sample_rate=1.0):
    """What `releases` noisy sums cost together, each over a random share `sample_rate` of the clients (or pictures).

    The accountant is the tightest that fits: "exact" (`exact_epsilon`) for sample_rate 1; else "prv" up to epsilon 50
    and "rdp" beyond (`sampled_epsilon`). No noise is epsilon infinity. Returns a `Spent` at DELTA.
    Raises ValueError for arguments out of range.
    """
    if not noise_multiplier >= 0 or not releases >= 0 or not 0 < sample_rate <= 1:
        raise ValueError(
            "Privacy needs noise_multiplier and releases of at least 0 and sample_rate in (0, 1]; "
            f"got {noise_multiplier!r}, {releases!r} and {sample_rate!r}."
        )
    accountant = "exact" if sample_rate == 1 else "prv"
    if noise_multiplier == 0 or releases == 0:
        epsilon = math.inf if releases else 0.0
    elif accountant == "exact":
        epsilon = exact_epsilon(noise_multiplier, releases, DELTA)
    else:
        # PRV's grid would outgrow a small machine where there is hardly any privacy.
        epsilon = sampled_epsilon("rdp", noise_multiplier, releases, sample_rate, DELTA)
        if epsilon > TIGHT_UP_TO:
            accountant = "rdp"
        else:
            epsilon = sampled_epsilon("prv", noise_multiplier, releases, sample_rate, DELTA)
    return Spent(epsilon, DELTA, accountant)


def exact_epsilon(noise_multiplier, releases, delta):
    """The epsilon of `releases` noisy sums over everybody, which together are one Gaussian mechanism.

    Closed form of delta(epsilon), solved for epsilon: Balle & Wang, arXiv 1805.06530, theorem 8.
    """
    from scipy.optimize import brentq
    from scipy.special import log_ndtr, ndtr

    ratio = math.sqrt(releases) / noise_multiplier  # of what one user can change to the noise

    def excess(epsilon):
        # delta(epsilon) = Phi(r/2 - eps/r) - e^eps Phi(-r/2 - eps/r), minus the delta that is allowed
        likelier = ndtr(ratio / 2 - epsilon / ratio)
        return likelier - math.exp(epsilon + log_ndtr(-ratio / 2 - epsilon / ratio)) - delta

    if excess(0.0) <= 0:
        return 0.0
    upper = ratio**2 / 2 + ratio * math.sqrt(2 * math.log(1 / delta)) + 1
    return brentq(excess, 0.0, upper)


def sampled_epsilon(accountant, noise_multiplier, releases, sample_rate, delta):
    """The epsilon by one of Opacus's accountants, where each client (or picture) is drawn by its own coin.

    "prv": the distribution of the privacy loss, convolved numerically (Gopi et al., arXiv 2106.02848), an upper bound
    within 0.02 of the truth. "rdp": Renyi moments (Mironov, arXiv 1702.07476), looser.
    """
    with warnings.catch_warnings():
        # Opacus speaks of the orders it tries and of logarithms of zero.
        warnings.simplefilter("ignore")
        from opacus.accountants import create_accountant

        account = create_accountant(accountant)
        account.history = [(float(noise_multiplier), float(sample_rate), int(releases))]
        return max(float(account.get_epsilon(delta)), 0.0)


# -- sample level: the client's steps ----------------------------------------------------------------------------------


def picture_gradients(unet, parameters, noisy, timesteps, text, target):
    """Each picture's own loss and gradient: losses (B,), and {name: (B, *shape)} for `parameters`, a dict by name.

    `vmap` runs the gradient of a single picture over the batch axis, `AT_ONCE` pictures in a pass. That every picture
    has a gradient of its own needs layers which don't mix pictures, as in this UNet (GroupNorm, no BatchNorm).
    """

    def picture_loss(parameters, noisy, timestep, text, target):
        inputs = (noisy[None], timestep[None])  # a batch of one
        words = {"encoder_hidden_states": text[None]}
        guess = functional_call(unet, parameters, inputs, words).sample[0]
        return torch.nn.functional.mse_loss(guess, target)

    over_batch = vmap(grad_and_value(picture_loss), (None, 0, 0, 0, 0), chunk_size=AT_ONCE)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel knows no vmap
        gradients, losses = over_batch(parameters, noisy, timesteps, text, target)
    return losses, gradients


def train_privately(
    unet,
    schedule,
    encoded,
    steps,
    batch_size,
    learning_rate,
    seed,
    on_step=None,
    *,
    clip,
    noise_multiplier,
):
    """`lora.local.train` by DP-SGD: the same arguments, and the losses, one for every step that drew pictures.

    At every step each picture is drawn by its own coin with probability q = batch_size / N (1 if there are fewer), its
    gradient is clipped to norm `clip`, and noise N(0, (z C)^2) goes on the sum before AdamW sees it. The adapter that
    comes out costs `privacy_spent(noise_multiplier, steps, q)` for each of this client's pictures; steps add up over
    rounds.
    The losses are not private: keep them on the device.

    Raises ValueError if `clip` is not above 0, or a loss is not finite.
    """
    if not clip > 0:
        raise ValueError(
            f"clip must be above 0: the largest norm of one picture's gradient; got {clip!r}."
        )
    generator = torch.Generator().manual_seed(seed)
    device = encoded.latents.device
    rate = min(1.0, batch_size / len(encoded))
    parameters = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    values = {name: p.detach() for name, p in parameters.items()}  # the same memory, to compute on
    optimizer = new_adam(parameters.values(), learning_rate)
    losses = []
    for step in range(1, steps + 1):
        # Every picture's coin.
        drawn = (torch.rand(len(encoded), generator=generator) < rate).nonzero()[:, 0]
        total = dict.fromkeys(values, 0.0)
        if len(drawn):
            # Each picture's own gradient, not their mean's.
            batch = noised(schedule, encoded, drawn, generator)
            picture_losses, gradients = picture_gradients(unet, values, *batch)
            losses.append(float(picture_losses.mean()))
            if not math.isfinite(losses[-1]):
                raise ValueError(
                    f"The loss became {losses[-1]} at step {step}; lower the learning rate."
                )
            # No picture's gradient is longer than the clip.
            squares = [gradient.flatten(1).square().sum(1) for gradient in gradients.values()]
            norms = torch.stack(squares).sum(0).sqrt()  # (B,)
            factors = (clip / norms.clamp(min=1e-12)).clamp(max=1.0)
            total = {name: torch.einsum("b,b...->...", factors, g) for name, g in gradients.items()}
        # Noise on the sum hides any single one; then the step, as if the batch had its expected size.
        for name, parameter in parameters.items():
            noise = torch.randn(parameter.shape, generator=generator).to(device)
            parameter.grad = (total[name] + noise_multiplier * clip * noise) / (rate * len(encoded))
        optimizer.step()
        if on_step is not None:
            on_step(step, steps, losses[-1] if losses else math.nan)
    optimizer.zero_grad()
    return losses
