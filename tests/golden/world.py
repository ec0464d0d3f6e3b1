"""The small things that golden outcomes are computed on: a random pipeline, a folder of pictures, adapters, devices."""

import atexit
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
import wing
from PIL import Image

PIPELINE = {  # the fewest modules that a Stable Diffusion can have, and still attends to text before and after a cut
    "unet": {
        "sample_size": 4,
        "block_out_channels": (8,),
        "layers_per_block": 1,
        "cross_attention_dim": 8,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("UpBlock2D",),
    },
    "vae": {
        "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 8,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    },
    "text": {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
}
LAYERS = {
    "first": (12, 9),
    "second": (8, 14),
}  # (out, in) of the layers that made-up adapters change


def random(*seed):
    """NumPy's generator for these whole numbers."""
    return np.random.default_rng(seed)


# -- whole runs -----------------------------------------------------------------------------------------------------


@cache
def folder():
    """A temporary folder that lasts as long as the process."""
    place = tempfile.TemporaryDirectory()
    atexit.register(place.cleanup)
    return Path(place.name)


@cache
def pipeline_folder():
    """A pipeline of random weights, some ten thousand of them, on pictures of 8 x 8."""
    return str(wing.write_random_pipeline(folder() / "pipeline", PIPELINE, 0, torch.float32))


@cache
def pictures_folder():
    """Sixteen captioned pictures of 8 x 8 random pixels, of two kinds."""
    place, rows = folder() / "pictures", ["file_name,text,kind"]
    place.mkdir()
    for number, pixels in enumerate(random(1).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(place / f"{number}.png")
        kind = ("star", "cloud")[number % 2]
        rows.append(f"{number}.png,a red {kind} on {('blue', 'white', 'green')[number % 3]},{kind}")
    (place / "metadata.csv").write_text("\n".join(rows), encoding="utf-8")
    return str(place)


def run_knobs(**changes):
    """Three devices, two rounds of two steps each, on the two folders above."""
    knobs = {
        "pictures": pictures_folder(),
        "concept": "kind",
        "base_model": pipeline_folder(),
        "num_clients": 3,
        "rounds": 2,
        "local_steps": 2,
        "batch_size": 2,
        "pictures_per_client": 3,
        "rank": 2,
        "skew": 0.5,
        "num_prompts": 2,
        "learning_rate": 0.02,
        "seed": 3,
    }
    return knobs | changes


# -- made-up adapters and uploads -----------------------------------------------------------------------------------


def adapter(*seed, rank=3, dtype=np.float64, b=1.0):
    """A random adapter {name: array} on `LAYERS`; `b` scales B."""
    rng, state = random(*seed), {}
    for layer, (outputs, inputs) in LAYERS.items():
        state[f"{layer}.lora_A.default.weight"] = rng.normal(size=(rank, inputs)).astype(dtype)
        state[f"{layer}.lora_B.default.weight"] = (b * rng.normal(size=(outputs, rank))).astype(
            dtype
        )
    return state


def tensors(state):
    """The same by name, as tensors."""
    return {name: torch.from_numpy(np.asarray(array)) for name, array in state.items()}


def change_of(state):
    """{layer: B A} of an adapter, in float64: what it does to the weights, however its factors are turned."""
    state = {name: np.asarray(tensor, dtype=np.float64) for name, tensor in state.items()}
    layers = {name.partition(".lora_")[0] for name in state}
    pairs = {
        layer: [state[f"{layer}.lora_{factor}.default.weight"] for factor in "AB"]
        for layer in layers
    }
    return {layer: b @ a for layer, (a, b) in pairs.items()}


def moved(arrays, *seed, size=0.1):
    """These arrays, each a little elsewhere, in their own dtype."""
    rng = random(*seed)
    return {
        name: (arrays[name] + size * rng.normal(size=arrays[name].shape)).astype(arrays[name].dtype)
        for name in sorted(arrays)
    }


def device_under(rule, ranks, initial):
    """What a device sends up under a rule, as `answer(client, config, arrays)`: the protocol, without any training.

    Where factors come out of singular vectors, whose signs are nobody's choice, nothing may hang on them.
    """

    def answer(client, config, arrays):
        server_round = int(config["server-round"])
        seed = (server_round, client)
        if "setup" in config:  # Fed-SB's beginning
            rng = random(*seed)
            return {
                layer: rng.normal(size=sizes).astype(np.float32) for layer, sizes in LAYERS.items()
            }, 1 + client
        if rule == "fed-sb":
            noise = random(*seed)
            up = {
                name: arrays[name]
                + np.diag(noise.normal(size=len(arrays[name]))).astype(arrays[name].dtype)
                for name in sorted(arrays)
            }
        elif rule == "flora":
            up = adapter(*seed, rank=ranks[client], dtype=np.float32)
        elif rule == "flexlora":
            up = adapter(
                *seed, rank=len(arrays["first.lora_A.default.weight"]), dtype=_dtype(arrays)
            )
        else:
            factor = {"ffa": "B", "fedsa": "A", "rolora": "AB"[server_round % 2]}.get(rule, "AB")
            held = {**initial, **arrays}
            up = moved(
                {name: held[name] for name in held if name.partition(".lora_")[2][0] in factor},
                *seed,
            )
        return up, 1 + client

    return answer


def _dtype(arrays):
    return next(iter(arrays.values())).dtype
