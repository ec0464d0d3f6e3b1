"""One training step of a GAN that lies in one place: the yardstick for the split one, and the local step of its rivals.

Labs 06 and 07. The order is that of HuSCF-GAN's published code (facts: arXiv 2507.12979): the discriminator learns on
fakes and on real pictures, then the generator learns from the discriminator as it is now. The loss is the
non-saturating one: Goodfellow et al., arXiv 1406.2661.
"""

import math

import torch
import torch.nn.functional as F

from fedgen_lab.split.nets import run_blocks

BETAS = (0.5, 0.999)  # Adam's, as in the original and in DCGAN
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what it remembers of each weight


def new_adam(blocks, learning_rate):
    """Adam over all parameters of these blocks, in its fused form, which is several times as fast on a CPU."""
    parameters = [parameter for block in blocks for parameter in block.parameters()]
    return torch.optim.Adam(parameters, lr=learning_rate, betas=BETAS, fused=True)


def moments_of(adam, parameters):
    """What Adam remembers of each named parameter, to be kept in a `Context`: {"name:key": tensor}."""
    return {
        f"{name}:{key}": value
        for name, p in parameters
        for key, value in adam.state.get(p, {}).items()
    }


def load_moments(adam, parameters, moments):
    """Make Adam remember what `moments_of` gave."""
    for name, p in parameters:
        own = {key: moments[f"{name}:{key}"] for key in MOMENTS if f"{name}:{key}" in moments}
        if own:
            adam.state[p] = own


def adversarial_loss(logits, real):
    """Binary cross-entropy of `logits` (..., B) against "real" or "fake": the mean over B, then the sum over the rest.

    The rest are clients: each client's gradients are what they would be alone.
    """
    target = torch.full_like(logits, 1.0 if real else 0.0)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(-1).sum()


def gan_step(generator, discriminator, g_adam, d_adam, pictures, labels, z):
    """One iteration on one batch: pictures (B, C, H, W), labels (B,), z (B, Z). Returns (d_loss, g_loss) as floats.

    Both nets are in training mode. The fakes bear the labels of the real batch. Raises ValueError when a loss is not
    finite.
    """
    fakes = run_blocks(generator, z, labels)
    d_adam.zero_grad()
    d_loss = adversarial_loss(run_blocks(discriminator, fakes.detach(), labels), real=False)
    d_loss = d_loss + adversarial_loss(run_blocks(discriminator, pictures, labels), real=True)
    d_loss.backward()
    d_adam.step()

    g_adam.zero_grad()
    g_loss = adversarial_loss(run_blocks(discriminator, fakes, labels), real=True)
    g_loss.backward()  # also fills the discriminator's gradients, which the next zero_grad() empties
    g_adam.step()
    losses = d_loss.item(), g_loss.item()
    if not all(map(math.isfinite, losses)):
        raise ValueError(f"The losses became {losses}; lower the learning rate.")
    return losses
