"""DP-SGD: local steps after which not even a device's own upload tells much about any one of its pictures.

Lab 08. The gradient of each picture is clipped, and the device itself adds noise to their sum at every step: Abadi et
al., arXiv 1607.00133. What that buys is for one picture, not for all of a client (`federation.averages.private_mean`
and `federation.secure_device` are for that); `federation.accountant` counts it.
"""

import math

import torch
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedgen_lab.lora.local import new_adam, noised

AT_ONCE = 4  # pictures whose own gradients are computed in one pass: memory grows with them


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
