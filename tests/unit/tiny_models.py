"""A random UNet of some ten thousand weights and random pictures for it: what the privacy tests attack."""

import torch
from diffusers import UNet2DConditionModel

from fedgen_lab.lora.pipeline import Encoded


def random_unet():
    """A UNet for latents (4, 4, 4) and text states (3, 8), the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DConditionModel(
            sample_size=4,
            in_channels=4,
            out_channels=4,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=8,
            norm_num_groups=4,
            attention_head_dim=4,
        )


def random_pictures(number, generator):
    """`number` pictures with captions, as that UNet sees them."""
    latents = torch.randn(number, 4, 4, 4, generator=generator)
    return Encoded(latents, torch.randn(number, 3, 8, generator=generator))
