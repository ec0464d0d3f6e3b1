"""One step of split training of a UNet, both sides in the open: `yield` sends a message and gets the answer.

The device holds the first blocks, the edge the rest. Smashed data goes up and the edge's guess comes down; the device,
which alone knows what the guess should have been, sends the gradient at it and gets the gradient at its smashed data.
`federation.protocol` runs the two sides; `split_client` and `split_server` send their messages with Flower. Split
learning: Vepakomma et al., arXiv 1812.00564; labs 04 and 05.
"""

import math

import torch
import torch.nn.functional as F

from fedgen_lab.lora.local import MAX_NORM


def device_step(half, adam, batch):
    """The device's side. Pictures, noise and target stay here: with the target, the edge would know the picture.

    half: a `split_unet.DeviceHalf`; adam: the optimiser of its parameters; batch: as `local.noised_batch` draws it.
    Raises ValueError when the loss is not finite.
    """
    noisy, timesteps, text, target = batch
    smashed = half(noisy, timesteps, text)
    down = yield {**smashed, "text": text}

    # The loss of the guess. What leaves is its gradient at the guess.
    guess = down["guess"].to(noisy.device).requires_grad_()  # (B, 4, h, w)
    loss = F.mse_loss(guess, target)
    if not torch.isfinite(loss):
        raise ValueError(
            f"the loss became {loss.item()}; lower the learning rate ({adam.defaults['lr']})"
        )
    (gradient,) = torch.autograd.grad(loss, guess)
    down = yield {"guess": gradient, "loss": loss.item()}

    # Backward through the first blocks, and their step.
    live = [name for name, tensor in smashed.items() if tensor.requires_grad]
    gradients = [down[name].to(noisy.device) for name in live]
    torch.autograd.backward([smashed[name] for name in live], gradients)
    norm = gradient_norm(adam)
    step_clipped(adam, norm, down["norm"])
    yield {"norm": norm}


def edge_steps(half, weights, adam):
    """The edge's side, step after step: it sees what `device_step` sends and nothing else.

    The end of a step and the beginning of the next may come in one message. half: a `split_unet.EdgeHalf`; weights:
    {name: parameter} of this device's copy of it; adam: their optimiser. Raises ValueError when the gradient is not
    finite.
    """
    up = yield
    while "text" in up:
        # The guess, from the smashed data.
        smashed = {name: up[name] for name in up if name not in ("text", "norm")}
        for tensor in smashed.values():
            tensor.requires_grad_()
        parameters = {f"unet.{name}": parameter for name, parameter in weights.items()}
        guess = torch.func.functional_call(half, parameters, (smashed, up["text"]))
        up = yield {"guess": guess}

        # Backward through the last blocks, to the smashed data.
        guess.backward(up["guess"])
        norm = gradient_norm(adam)
        if not math.isfinite(norm):
            raise ValueError("sent a gradient that overflowed at the edge")
        up = yield {**{name: tensor.grad for name, tensor in smashed.items()}, "norm": norm}

        # The step, once the device has told the norm of its half.
        step_clipped(adam, norm, up["norm"])


def gradient_norm(adam):
    """The norm of all gradients of an optimiser's parameters together."""
    parameters = adam.param_groups[0]["params"]
    return float(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))


def step_clipped(adam, norm, norm_elsewhere):
    """Clip as `local.train` does, by the norm over both halves; step; forget the gradients."""
    both_halves = torch.tensor(math.hypot(norm, norm_elsewhere))
    torch.nn.utils.clip_grads_with_norm_(adam.param_groups[0]["params"], MAX_NORM, both_halves)
    adam.step()
    adam.zero_grad()
