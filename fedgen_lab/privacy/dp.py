"""Differential privacy for adapters: clip what one user can change, drown it in noise, and count what that is worth.

Lab 08. Two answers to "whose data is protected?":

- user level: a client's whole update is clipped to norm C, and the server adds noise N(0, (z C)^2) to the sum, so the
  adapter hardly tells whether a client took part. McMahan et al., arXiv 1710.06963. The server is trusted: it sees the
  updates (unless they are summed by `privacy.secure`) and adds the noise.
- sample level: every client clips the gradient of each picture and adds the noise itself, at every local step, so that
  not even its own upload tells much about one picture. DP-SGD: Abadi et al., arXiv 1607.00133.

z is the noise multiplier. What it buys is an epsilon, always together with a delta and the accountant that found it.
Noise and draws follow from the experiment's seed, so that a run can be repeated; where privacy is at stake they must
come from a source that nobody knows.
"""

import math
import warnings
from typing import NamedTuple

import numpy as np
import torch

ACCOUNTANTS = ("exact", "prv", "rdp")
AT_ONCE = 4  # pictures whose own gradients are computed in one pass: memory grows with them
NOISE_KEY = (
    70_001  # the noise's branch of the scenario's seed, apart from the clients' (client, round)
)


# -- the accountant ----------------------------------------------------------------------------------------------------


class Spent(NamedTuple):
    """A guarantee: (epsilon, delta)-differential privacy under adding or removing one client (or picture)."""

    epsilon: float
    delta: float
    accountant: str  # one of ACCOUNTANTS

    def __str__(self):
        return (
            f"epsilon = {self.epsilon:.3g} at delta = {self.delta:g} ({self.accountant} accountant)"
        )


def privacy_spent(noise_multiplier, releases, sample_rate=1.0, delta=1e-5, accountant=None):
    """What `releases` noisy sums cost together, each over a random share `sample_rate` of the clients (or pictures).

    "exact": closed form for sample_rate 1, where the sums together are one Gaussian mechanism (Balle & Wang, arXiv
    1805.06530, theorem 8). "prv": the distribution of the privacy loss, convolved numerically (Gopi et al., arXiv
    2106.02848), an upper bound within 0.02 of the truth. "rdp": Renyi moments (Mironov, arXiv 1702.07476), looser. The
    last two are Opacus's and assume that each is drawn by its own coin (Poisson sampling). None takes the tightest
    that fits, and "rdp" beyond epsilon 50, where no promise is left to be tight about. No noise is epsilon infinity.

    Returns a `Spent`. Raises ValueError for arguments out of range.
    """
    if (
        not noise_multiplier >= 0
        or not releases >= 0
        or not 0 < sample_rate <= 1
        or not 0 < delta < 1
    ):
        raise ValueError(
            "Privacy needs noise_multiplier and releases of at least 0, sample_rate in (0, 1] and delta in (0, 1); "
            f"got {noise_multiplier!r}, {releases!r}, {sample_rate!r} and {delta!r}."
        )
    if accountant not in (None, *ACCOUNTANTS):
        raise ValueError(f"accountant must be one of {', '.join(ACCOUNTANTS)}; got {accountant!r}.")
    if accountant == "exact" and sample_rate < 1:
        raise ValueError(f"The exact accountant needs sample_rate 1; got {sample_rate}. Use 'prv'.")
    chosen = accountant or ("exact" if sample_rate == 1 else "prv")
    if noise_multiplier == 0 or releases == 0:
        return Spent(math.inf if releases else 0.0, delta, chosen)
    if chosen == "exact":
        return Spent(
            _gaussian_epsilon(math.sqrt(releases) / noise_multiplier, delta), delta, chosen
        )
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # Opacus speaks of the orders it tries and of logarithms of zero
        from opacus.accountants import PRVAccountant, RDPAccountant

        history = [(float(noise_multiplier), float(sample_rate), int(releases))]
        rdp = RDPAccountant()
        rdp.history = history
        bound = rdp.get_epsilon(delta)
        if chosen == "rdp" or (
            accountant is None and bound > 50
        ):  # PRV's grid would outgrow a small machine there
            return Spent(float(bound), delta, "rdp")
        prv = PRVAccountant()
        prv.history = history
        return Spent(float(max(prv.get_epsilon(delta), 0.0)), delta, "prv")


def _gaussian_epsilon(ratio, delta):
    """The epsilon of noise `ratio` times smaller than what one user can change: delta(epsilon) solved for epsilon."""
    from scipy.optimize import brentq
    from scipy.special import log_ndtr, ndtr

    def too_much(epsilon):  # delta(epsilon) = Phi(r/2 - eps/r) - e^eps Phi(-r/2 - eps/r)
        there = ndtr(ratio / 2 - epsilon / ratio)
        return there - math.exp(epsilon + log_ndtr(-ratio / 2 - epsilon / ratio)) - delta

    if too_much(0.0) <= 0:
        return 0.0
    return brentq(too_much, 0.0, ratio**2 / 2 + ratio * math.sqrt(2 * math.log(1 / delta)) + 1)


# -- user level: the server's sum --------------------------------------------------------------------------------------


def norm_of(update):
    """The Euclidean norm of all numbers of an update (a dict of arrays or tensors by name) taken as one vector."""
    return math.sqrt(
        sum(
            float(np.square(np.asarray(value, dtype=np.float64)).sum()) for value in update.values()
        )
    )


def clipped(update, clip):
    """The update (a dict of NumPy arrays) shrunk to norm `clip` if it is longer, in float64; its direction stays."""
    shrink = min(1.0, clip / max(norm_of(update), 1e-300))
    return {name: np.asarray(value, dtype=np.float64) * shrink for name, value in update.items()}


def noise_like(arrays, scale, seed, server_round=0):
    """Gaussian noise of standard deviation `scale` for every number in `arrays`; float64, by name."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(NOISE_KEY, server_round)))
    return {
        name: rng.normal(0.0, scale, np.shape(arrays[name])) for name in sorted(arrays)
    }  # in any order the same


def check_noise(clip, noise_multiplier):
    """Raises ValueError where there is noise to add but nothing to measure it by."""
    if noise_multiplier > 0 and not clip > 0:
        raise ValueError(
            f"noise_multiplier={noise_multiplier:g} needs a clip above 0, what noise is measured in; got clip={clip:g}."
            " The median norm of the clients' updates is a usual choice."
        )


def private_mean(clip, noise_multiplier, num_clients, seed=0):
    """The rule of DP-FedAvg, as `combine` for a `CheckedFedAvg`: what is sent, plus the noisy mean of clipped updates.

    sent + (sum_k clipped(upload_k - sent) + N(0, (z C)^2)) / num_clients. All clients weigh the same: by its number of
    examples one client could change more than C. `num_clients` is how many are asked, not how many answered, which
    would tell who did. One release of `privacy_spent` a round; sample_rate stays 1 as long as the server (or a clock)
    and not a secret coin says who is asked. A round without any usable upload releases nothing.

    Raises ValueError if `noise_multiplier` is above 0 and `clip` is not.
    """
    check_noise(clip, noise_multiplier)

    def combine(server_round, sent, uploads, weights):
        noise = noise_like(uploads[0], noise_multiplier * clip, seed, server_round)
        updates = [
            clipped({name: upload[name] - sent[name] for name in upload}, clip)
            for upload in uploads
        ]
        total = {name: sum(update[name] for update in updates) + noise[name] for name in noise}
        return {
            name: (sent[name] + total[name] / num_clients).astype(sent[name].dtype)
            for name in total
        }

    return combine


def product_noise(b, a, sigma):
    """What noise of standard deviation `sigma` costs a layer: the expected squared error of B A, as two numbers.

    (noise on both factors, noise on B alone), for B (d, r) and A (r, n). On both it is
    sigma^2 (d |A|^2 + n |B|^2) + d n r sigma^4: noise meets noise, and at strong privacy that term rules. On B alone,
    sigma^2 d |A|^2: the case for freezing A (FFA-LoRA, arXiv 2403.12313).
    """
    (d, r), n = b.shape, a.shape[1]
    b2, a2 = float((b**2).sum()), float((a**2).sum())
    return sigma**2 * (d * a2 + n * b2) + d * n * r * sigma**4, sigma**2 * d * a2


# -- sample level: the client's steps ----------------------------------------------------------------------------------


def picture_gradients(unet, parameters, noisy, timesteps, text, target):
    """Each picture's own loss and gradient: losses (B,), and {name: (B, *shape)} for `parameters`, a dict by name.

    `vmap` runs the gradient of a single picture over the batch axis, `AT_ONCE` pictures in a pass. That every picture
    has a gradient of its own needs layers which don't mix pictures, as in this UNet (GroupNorm, no BatchNorm).
    """
    from torch.func import functional_call, grad_and_value, vmap
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def loss_of_one(parameters, noisy, timestep, text, target):
        inputs = (noisy[None], timestep[None])  # a batch of one
        guess = functional_call(
            unet, parameters, inputs, {"encoder_hidden_states": text[None]}
        ).sample[0]
        return torch.nn.functional.mse_loss(guess, target)

    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel knows no vmap
        each = vmap(grad_and_value(loss_of_one), in_dims=(None, 0, 0, 0, 0), chunk_size=AT_ONCE)
        gradients, losses = each(parameters, noisy, timesteps, text, target)
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
    from fedgen_lab.lora.local import target_of

    if not clip > 0:
        raise ValueError(
            f"clip must be above 0: the largest norm of one picture's gradient; got {clip!r}."
        )
    generator = torch.Generator().manual_seed(seed)
    device, rate = encoded.latents.device, min(1.0, batch_size / len(encoded))
    parameters = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    frozen_view = {
        name: p.detach() for name, p in parameters.items()
    }  # the same memory, for functional_call
    optimizer = torch.optim.AdamW(parameters.values(), lr=learning_rate, weight_decay=1e-2)
    losses = []
    for step in range(1, steps + 1):
        pick = (torch.rand(len(encoded), generator=generator) < rate).nonzero()[:, 0]
        total = {name: torch.zeros_like(p) for name, p in frozen_view.items()}
        if len(pick):
            latents, text = (
                encoded.latents[pick],
                encoded.text[pick],
            )  # (B, 4, h, w), (B, L, D); B differs by step
            noise = torch.randn(latents.shape, generator=generator).to(device)
            timesteps = torch.randint(
                schedule.config.num_train_timesteps, pick.shape, generator=generator
            ).to(device)
            noisy, target = (
                schedule.add_noise(latents, noise, timesteps),
                target_of(schedule, latents, noise, timesteps),
            )
            each, gradients = picture_gradients(unet, frozen_view, noisy, timesteps, text, target)
            losses.append(float(each.mean()))
            if not math.isfinite(losses[-1]):
                raise ValueError(
                    f"The loss became {losses[-1]} at step {step}; lower the learning rate."
                )
            norms = (
                torch.stack([g.flatten(1).square().sum(1) for g in gradients.values()])
                .sum(0)
                .sqrt()
            )  # (B,)
            shrink = (clip / norms.clamp(min=1e-12)).clamp(max=1.0)
            total = {name: torch.einsum("b,b...->...", shrink, g) for name, g in gradients.items()}
        for name, parameter in parameters.items():
            noise = torch.randn(parameter.shape, generator=generator).to(device)
            parameter.grad = (total[name] + noise_multiplier * clip * noise) / (rate * len(encoded))
        optimizer.step()
        if on_step is not None:
            on_step(step, steps, losses[-1] if losses else math.nan)
    for parameter in parameters.values():
        parameter.grad = None
    return losses
