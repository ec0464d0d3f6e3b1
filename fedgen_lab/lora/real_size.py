"""The same experiment on a base of real size: one frozen base in memory, and adapters that take turns in it.

Lab 04 and `tests/benchmarks/bench_real_size.py`. The base is Stable Diffusion 1.5 from a folder or the Hub, or, where
neither is at hand, its architecture with random weights, which costs the same bytes and seconds. What makes it fit:
the frozen base in bfloat16 with adapters in float32, latents and text states computed once (`pipeline.encode`), and
gradient checkpointing (Chen et al., arXiv 1604.06174). K clients cost K adapters, not K models. The app does all of it
with `Scenario(base_model=..., precision="bfloat16")`.
"""

from pathlib import Path

import torch

from fedgen_lab.lora.adapter import load_trainable, trainable_state
from fedgen_lab.lora.local import train
from fedgen_lab.shipped import shipped

# Stable Diffusion 1.5 as its published configuration has it; what is not named here is diffusers' default.
SD15 = {
    "unet": {"sample_size": 64, "cross_attention_dim": 768},
    "vae": {
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "sample_size": 512,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    },
    "text": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "projection_dim": 768,
    },
}


def new_unet(config=None, seed=0, device="cpu", dtype=torch.bfloat16):
    """A UNet of this configuration (SD 1.5's unless given) with random weights, frozen, made where it will stay."""
    from diffusers import UNet2DConditionModel

    usual_dtype = torch.get_default_dtype()
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        torch.set_default_dtype(dtype)  # never a copy in float32: SD 1.5's UNet would take 3.4 GB
        try:
            unet = UNet2DConditionModel(**(config or SD15["unet"]))
        finally:
            torch.set_default_dtype(usual_dtype)
    return unet.requires_grad_(False).eval()


def write_random_pipeline(folder, configs, seed, dtype):
    """Write a pipeline folder of this architecture with random weights; returns its path. `SD15` in bfloat16: 2.1 GB.

    `Scenario(base_model=folder)` then runs the app on it. The tokenizer and the sampler are the tiny model's.
    """
    from diffusers import AutoencoderKL, StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel

    tiny = shipped("tiny-sd")
    # The tokenizer's words, and CLIP's own activation.
    text_config = CLIPTextConfig.from_pretrained(
        tiny / "text_encoder", hidden_act="quick_gelu", **configs["text"]
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = AutoencoderKL(**configs["vae"])
        text_encoder = CLIPTextModel(text_config)
    pipeline = StableDiffusionPipeline.from_pretrained(
        tiny,
        vae=vae.to(dtype),
        text_encoder=text_encoder.to(dtype),
        unet=new_unet(configs["unet"], seed, dtype=dtype),
    )
    pipeline.save_pretrained(folder)
    return Path(folder)


def load_unet(source, device):
    """The frozen UNet of a pipeline folder or Hub id, in bfloat16: training from cached latents needs no more."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(
        source, subfolder="unet", torch_dtype=torch.bfloat16, use_safetensors=True
    )
    return unet.requires_grad_(False).eval().to(device)


def make_light(unet):
    """The frozen weights in bfloat16, what trains in float32, and activations computed again instead of kept.

    From now on the UNet computes products in bfloat16 and sums that need it in float32, as diffusers' own scripts do,
    and gives its guess in float32, whoever calls it.
    """
    for parameter in unet.parameters():
        dtype = torch.float32 if parameter.requires_grad else torch.bfloat16
        parameter.data = parameter.data.to(dtype)
    unet.enable_gradient_checkpointing()
    unet.forward = torch.autocast(unet.device.type, dtype=torch.bfloat16)(unet.forward)
    # The last layer's output is the UNet's.
    unet.conv_out.register_forward_hook(lambda layer, inputs, guess: guess.float())
    return unet


def train_in_turn(unet, schedule, clients, states, steps, batch_size, learning_rate, seeds):
    """One round of local training on one base: [(state, losses)], client after client.

    clients: each one's encoded pictures; states: each one's adapter, which is swapped in and, trained, out again.
    """
    trained = []
    for encoded, state, seed in zip(clients, states, seeds, strict=True):
        load_trainable(unet, state)
        losses = train(unet, schedule, encoded, steps, batch_size, learning_rate, seed)
        trained.append((trainable_state(unet), losses))
    return trained


def base_bytes(unet):
    """The bytes of the frozen weights."""
    return sum(p.nbytes for p in unet.parameters() if not p.requires_grad)
