"""Take it home: a trained adapter as a file that other programs load, with where it comes from in its header.

Lab 04. One adapter, three spellings of its names: what diffusers writes today (PEFT's), what diffusers wrote before,
and what kohya's scripts write and ComfyUI reads. They differ in one trap besides: who multiplies by alpha / rank. A
reader that finds no alpha takes a scale of one, so the scale is folded into B before writing and `.alpha` is the rank.
"""

import json
from collections import Counter
from pathlib import Path

import torch

from fedgen_lab.lora.factors import factors, fold, resized

FILE_NAME = "pytorch_lora_weights.safetensors"  # what diffusers looks for in a folder
SPELLINGS = {  # kind -> names of A and B of the layer that takes the place of {}, and what its name has for dots
    "diffusers": ("unet.{}.lora_A.weight", "unet.{}.lora_B.weight", "."),
    "diffusers-old": ("unet.{}.lora.down.weight", "unet.{}.lora.up.weight", "."),
    "kohya": ("lora_unet_{}.lora_down.weight", "lora_unet_{}.lora_up.weight", "_"),
}
PREFIX = "fedgen_"  # of our own entries in the header


def provenance_of(scenario, rounds, spent=None):
    """Where the result of `rounds` rounds of a scenario comes from, for the header of its file.

    spent: (epsilon, delta) of differential privacy; None where there is no noise.
    """
    base = scenario.base_model or "tiny-sd"
    is_adapter, (epsilon, delta) = scenario.method == "lora", spent or (None, None)
    return {
        "method": scenario.method + (f", split after {scenario.cut}" if scenario.cut else ""),
        "rule": scenario.rule if is_adapter else "mean of all weights",
        "rounds": rounds,
        "clients": scenario.num_clients,
        "base": Path(base).name if Path(base).is_dir() else base,  # no path of this machine
        "seed": scenario.seed,
        "epsilon": epsilon,
        "delta": delta,
    }


def save_result(state, path, provenance, alpha=0.0):
    """Write what a run leaves behind: an adapter for plain diffusers, see `save_adapter`, or the UNet's own weights."""
    from safetensors.torch import save_file

    if any(".lora_" in name for name in state):
        save_adapter(state, path, "diffusers", provenance, alpha)
    else:
        tensors = {name: tensor.contiguous() for name, tensor in state.items()}
        save_file(tensors, path, metadata=_header(provenance))


def save_adapter(state, target, kind, provenance, alpha):
    """Write an adapter as safetensors and return the file's path; `pipeline.load_lora_weights(path)` loads every kind.

    state: {"LAYER.lora_A.default.weight": (r, in), "LAYER.lora_B.default.weight": (out, r)}, see
    `adapter.trainable_state`; the rank may differ from layer to layer (kohya: all are padded to the largest). target: a
    .safetensors file, or a folder, which gets one named as diffusers expects it. kind: a key of `SPELLINGS`.
    provenance: what the header shall say, such as {"rule": "fedit", "rounds": 10, "clients": 4, "epsilon": None,
    "base": "tiny-sd"}. alpha: the adapter was trained with a scale of alpha / r; 0 means alpha = r.

    Raises ValueError for an unknown kind, a state that is not an adapter, an alpha that is no scale, or numbers that
    would not be finite in the file.
    """
    from safetensors.torch import save_file

    if kind not in SPELLINGS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, SPELLINGS))}; got {kind!r}.")
    if odd := [name for name in state if ".lora_A." not in name and ".lora_B." not in name]:
        raise ValueError(
            f"Only an adapter can be exported, and {odd[0]!r} is no part of one; use method='lora'."
        )
    if not state:
        raise ValueError("There is no adapter: the state is empty.")
    if not 0 <= alpha <= torch.finfo(torch.float32).max:
        raise ValueError(f"alpha must be a finite number of at least 0; got {alpha!r}.")

    # A scale of one, for readers that find no alpha, in the numbers that are written.
    state = {name: t.detach().float().cpu() for name, t in fold(state, alpha).items()}
    if odd := [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]:
        raise ValueError(f"{odd[0]} holds NaN or infinity, or does as float32 times alpha / rank.")
    ranks = {layer: len(a) for layer, (a, _) in factors(state).items()}
    largest = max(ranks.values())

    # Where it comes from, and what other programs look for.
    tensors, header = {}, _header(provenance)
    *names, separator = SPELLINGS[kind]
    if kind == "kohya":
        # diffusers (0.42) mixes up the `.alpha` of layers that differ in rank: give all the largest.
        state = resized(state, largest)
        for layer in ranks:
            tensors[f"lora_unet_{layer.replace('.', '_')}.alpha"] = torch.tensor(float(largest))
        header |= {
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(largest),
            "ss_network_alpha": str(largest),
        }
        if "base" in provenance:  # its name; its version isn't known here
            header["ss_sd_model_name"] = str(provenance["base"])
    else:
        header["lora_adapter_metadata"] = json.dumps(_peft_config(ranks))

    # The names that this kind of file has.
    for layer, pair in factors(state).items():
        for name, factor in zip(names, pair, strict=True):
            name = name.format(layer.replace(".", separator))
            tensors[name] = factor.contiguous()
    path = Path(target)
    if path.suffix != ".safetensors":
        path = path / FILE_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata=header)
    return path


def read_provenance(path):
    """What the header of an exported file says about where the adapter comes from: {key: text}."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        header = file.metadata() or {}
    return {
        key.removeprefix(PREFIX): text for key, text in header.items() if key.startswith(PREFIX)
    }


def _header(provenance):
    return {"format": "pt"} | {f"{PREFIX}{key}": str(value) for key, value in provenance.items()}


def _peft_config(ranks):
    """peft's own description of an adapter with these ranks by layer: a scale of one in each."""
    usual = Counter(ranks.values()).most_common(1)[0][0]
    exceptions = {layer: rank for layer, rank in ranks.items() if rank != usual}
    return {
        "unet.r": usual,
        "unet.lora_alpha": usual,
        "unet.rank_pattern": exceptions,
        "unet.alpha_pattern": exceptions,
        "unet.target_modules": sorted(ranks),
    }
