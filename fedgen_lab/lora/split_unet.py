"""A UNet cut in two: the device keeps the first blocks, an edge server the rest, and skip connections join them.

Pre-training without the memory for it: a device trains its few blocks, activations go up, gradients come down. Split
learning: Vepakomma et al., arXiv 1812.00564; as one of three ways to federate a picture generator: arXiv 2307.07146.
`split_step` trains both halves, `split_client` and `split_server` do it over Flower; `traffic` counts what that costs
against sending an adapter, the whole model, or the pictures themselves. Labs 04 and 05.
"""

import pandas as pd
import torch
from torch import nn

from fedgen_lab.flops import flop_counter
from fedgen_lab.lora.adapter import TARGETS

TIME = ("time_embedding", "add_embedding")  # with the device at every cut


def cuts(unet):
    """Where a `UNet2DConditionModel` can be cut, by the last block the device keeps, shallow to deep.

    "conv_in", "down_blocks.0", ..., "mid_block". Raises ValueError for a UNet with inputs that Stable Diffusion 1.x and
    2.x do not have (class labels, projected text, SDXL's added conditions).
    """
    inputs = (unet.class_embedding, unet.encoder_hid_proj, unet.time_embed_act)
    if inputs != (None,) * 3 or unet.config.addition_embed_type not in (None, "text"):
        raise ValueError(
            "This UNet takes more than latents, timestep and text; only the UNets of SD 1.x/2.x are cut."
        )
    return ("conv_in", *(f"down_blocks.{i}" for i in range(len(unet.down_blocks))), "mid_block")


def on_device(unet, cut):
    """Whose parameter is it? A function from a parameter's name to True (device) or False (edge)."""
    kept = (*TIME, *cuts(unet)[: _depth(unet, cut) + 1])
    return lambda name: name.startswith(tuple(f"{block}." for block in kept))


class DeviceHalf(nn.Module):
    """The blocks up to the cut. `forward` gives the smashed data: {"time": (B, E), "skip.0": (B, C, h, w), ...}.

    Every skip connection that starts here ends at the edge, so all of them travel; the last is what the next block
    reads, and "mid" takes its place where the device keeps the middle, too. The timestep travels only embedded.
    """

    def __init__(self, unet, cut):
        super().__init__()
        self.unet, self.depth = unet, _depth(unet, cut)

    def forward(self, noisy, timesteps, text):
        unet = self.unet
        time = unet.time_embedding(unet.get_time_embed(sample=noisy, timestep=timesteps))  # (B, E)
        pooled = unet.get_aug_embed(emb=time, encoder_hidden_states=text, added_cond_kwargs=None)
        time = time if pooled is None else time + pooled
        x = unet.conv_in(noisy)
        skips = [x]
        for block in unet.down_blocks[: self.depth]:
            x, block_skips = _run(block, x, time, text=text)
            skips += block_skips
        smashed = {"time": time, **{f"skip.{i}": skip for i, skip in enumerate(skips)}}
        if self.depth > len(unet.down_blocks):
            smashed["mid"] = _run(unet.mid_block, x, time, text=text)
        return smashed


class EdgeHalf(nn.Module):
    """The blocks behind the cut. `forward` takes smashed data and text states and gives the UNet's guess."""

    def __init__(self, unet, cut):
        super().__init__()
        self.unet, self.depth = unet, _depth(unet, cut)

    def forward(self, smashed, text):
        unet, time = self.unet, smashed["time"]
        number_of_skips = sum(name.startswith("skip.") for name in smashed)
        skips = [smashed[f"skip.{i}"] for i in range(number_of_skips)]
        x = skips[-1]
        for block in unet.down_blocks[self.depth :]:
            x, block_skips = _run(block, x, time, text=text)
            skips += block_skips
        x = smashed["mid"] if "mid" in smashed else _run(unet.mid_block, x, time, text=text)
        for block in unet.up_blocks:
            number = len(block.resnets)
            block_skips, skips = tuple(skips[-number:]), skips[:-number]
            size = skips[-1].shape[2:] if skips else None  # odd sizes don't simply double
            x = _run(block, x, block_skips, time, text=text, upsample_size=size)
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))  # (B, 4, h, w)


def smashed_on_meta(unet, cut, batch):
    """The smashed data for a batch as `local.noised_batch` draws it, on torch's "meta" device: shapes, no numbers."""
    half = DeviceHalf(unet, cut)
    ghosts = {
        name: torch.empty_like(tensor, device="meta").requires_grad_(tensor.requires_grad)
        for name, tensor in [*half.named_parameters(), *half.named_buffers()]
    }
    inputs = tuple(tensor.to("meta") for tensor in batch[:3])
    return torch.func.functional_call(half, ghosts, inputs)


def device_flops(unet, cut, batch):
    """Operations of a forward pass of the device's blocks, and of the backward pass to all that trains in them: a pair.

    batch: as `local.noised_batch` draws it. Counted by torch without computing anything.
    """
    with flop_counter() as forward:
        smashed = smashed_on_meta(unet, cut, batch)
    with flop_counter() as backward:
        sum(tensor.sum() for tensor in smashed.values()).backward()
    return forward.get_total_flops(), backward.get_total_flops()


def traffic(
    unet,
    picture_bytes,
    text_length,
    pictures=64,
    rounds=5,
    steps=20,
    batch=16,
    rank=8,
    targets=TARGETS["attention+feed-forward"],
):
    """What one client sends and gets in a whole run, for every way to train: one row each, bytes without headers.

    unet: only its configuration is read, so it may be on torch's "meta" device and as big as it likes. Numbers are
    float32. picture_bytes: of one picture as it would be uploaded; text_length: tokens of a prompt.
    Columns: way, up_bytes, down_bytes, device_parameters (what the device computes with), and for splits the number of
    pictures a round (steps x batch) up to which they send less than LoRA and than the whole model: 0 means never.
    """
    with torch.device("meta"):
        unet = type(unet).from_config(unet.config)
    config, side = unet.config, unet.config.sample_size
    latent = torch.empty(1, config.in_channels, side, side)
    text = torch.empty(1, text_length, config.cross_attention_dim)
    sizes = {name: p.numel() for name, p in unet.named_parameters()}
    whole = sum(sizes.values())
    linears = [layer for name, layer in unet.named_modules() if name.endswith(targets)]
    adapter = rank * sum(layer.in_features + layer.out_features for layer in linears)

    # Pictures go up once, and an adapter comes down at the end; weights cross both ways in every round.
    table = {
        "pictures to the centre": (pictures * picture_bytes, 4 * adapter, 0),
        "LoRA": (4 * rounds * adapter, 4 * rounds * adapter, whole + adapter),
        "whole model": (4 * rounds * whole, 4 * rounds * whole, whole),
    }
    for cut in cuts(unet):
        is_device = on_device(unet, cut)
        kept = sum(size for name, size in sizes.items() if is_device(name))
        smashed = smashed_on_meta(unet, cut, (latent, torch.zeros(1), text))
        # Of one picture in one step. Down: the guess, and gradients at the smashed data.
        down = sum(tensor.numel() for tensor in (*smashed.values(), latent))
        # Up: smashed data and the gradient at the guess, and the text.
        up = down + text.numel()
        sent = [4 * rounds * (kept + steps * batch * numbers) for numbers in (up, down)]
        # So many pictures a round outweigh what the weights of the rival weigh more than the device's.
        crossovers = [max(0, 2 * (rival - kept) // (up + down)) for rival in (adapter, whole)]
        table[f"split after {cut}"] = (*sent, kept, *crossovers)
    columns = [
        "up_bytes",
        "down_bytes",
        "device_parameters",
        "below_lora_up_to",
        "below_whole_up_to",
    ]
    table = pd.DataFrame.from_dict(table, "index", "Int64", columns)
    return table.rename_axis("way").reset_index()


def _depth(unet, cut):
    if cut not in cuts(unet):
        raise ValueError(f"cut must be one of {', '.join(cuts(unet))}; got {cut!r}.")
    return cuts(unet).index(cut)


def _run(block, *inputs, text, **options):
    """A block of the UNet on its inputs, and on the text if it attends to text."""
    if getattr(block, "has_cross_attention", False):
        options["encoder_hidden_states"] = text
    return block(*inputs, **options)
