"""What tests of several rooms share: the shipped Stable Diffusion with a small random UNet in the place of its own."""

import shutil
from copy import deepcopy
from functools import lru_cache

import pytest

SMALL_UNET = {
    "sample_size": 16,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "cross_attention_dim": 96,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
}


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory):
    """A pipeline folder: the shipped tokenizer, text encoder, VAE and sampler, and a UNet of random weights."""
    import torch

    from fedgen_lab.lora.real_size import new_unet
    from fedgen_lab.shipped import shipped

    folder = tmp_path_factory.mktemp("base") / "small-sd"
    shutil.copytree(shipped("tiny-sd"), folder, ignore=shutil.ignore_patterns("unet", "*.png"))
    new_unet(SMALL_UNET, dtype=torch.float32).save_pretrained(folder / "unet")
    return folder


@pytest.fixture(scope="module")
def small_base(small_folder):
    """For a whole file, the base model is the small one, 16 pictures are held out, and two denoising steps make a
    picture, which random weights fill with noise anyway: quick, and most claims hold. The base is read once and copied,
    and the sprites of a scenario are drawn once."""
    from fedgen_lab.lora import data, federated, pipeline

    read = lru_cache(pipeline.load_pipeline)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "shipped", lambda name: small_folder)
        for module in ("device", "pipeline"):
            patch.setattr(
                f"fedgen_lab.lora.{module}.load_pipeline",
                lambda *what, **how: deepcopy(read(*what, **how)),
            )
        patch.setattr(data, "HELD_OUT_PER_CONCEPT", 4)
        patch.setattr(data, "_deal_sprites", lru_cache(data._deal_sprites))
        patch.setattr(federated, "STRIP_STEPS", 2)
        yield


@pytest.fixture(scope="module", autouse=True)
def few_held_out():
    """Of a drawn domain 200 pictures are held out and not 1,000, which take a second to draw for every other deal."""
    from fedgen_lab.split.deal import _dealt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedgen_lab.pictures.domains.DRAWN_HELD_OUT", 200)
        yield
    _dealt.cache_clear()


@pytest.fixture(scope="module")
def quickly_drawn():
    """For a whole file, peers draw in two denoising steps: after two steps of training ten would draw noise, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedgen_lab.peers.peer.DRAW_STEPS", 2)
        yield
