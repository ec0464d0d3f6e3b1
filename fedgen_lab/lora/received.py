"""What came down to a device under an aggregation rule, turned into what it trains; and what it keeps for itself.

Lab 04; the rules and their protocols are in `lora/rules.py`. What a device must remember between rounds lies in its
Flower `Context.state` and nowhere else, so that it may be another process every time.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, MetricRecord

from fedgen_lab.federation.arrays import tensors_of
from fedgen_lab.lora.adapter import load_adapter
from fedgen_lab.lora.rules import compact, factors, part, resized, sent_part, stacked

KEPT, MERGED, VERSION = "kept", "merged", "version"  # what Context.state holds
MERGING = ("flora", "fedex")  # the rules that change W0
CORE = ".lora_B.default.core"  # Fed-SB's R, by layer


@dataclass(frozen=True)
class Local:
    """What a device trains: its adapter (unfolded), what of it trains, and what W0 has gained so far."""

    adapter: dict
    trains: dict  # the start of what trains, by name; all of it travels, but for FedSA's B
    merged: dict


def fresh_adapter(adapter, rank, seed, client, server_round):
    """FLoRA's new start for a client in a round: A normal with deviation 1 / rank, B zero, by seeds the server knows.

    `adapter` is any with the right layers; its rank does not matter.
    """
    generator = torch.Generator().manual_seed(
        int(np.random.SeedSequence(seed, spawn_key=(client, server_round, 1)).generate_state(1)[0])
    )
    state = {}
    for layer, (a, b) in factors(adapter).items():
        state[f"{layer}.lora_A.default.weight"] = (
            torch.randn(rank, a.shape[1], generator=generator) / rank
        )
        state[f"{layer}.lora_B.default.weight"] = torch.zeros(b.shape[0], rank)
    return state


def receive(content, state, scenario, client, start):
    """The `Local` of a "train" message's `content`; `state` is the Context's, `start` the adapter drawn from the seed.

    Raises ValueError when this device missed something that the server takes for granted; the server sends everything
    again after such an answer.
    """
    rule, server_round = scenario.rule, int(content["config"]["server-round"])
    arrays, which = tensors_of(content["arrays"]), sent_part(rule, server_round)
    merged = _caught_up(content, state) if rule in (*MERGING, "fed-sb") else {}
    if rule == "fed-sb":
        return Local(merged, arrays, {})
    if rule == "flora":
        adapter = fresh_adapter(
            start, scenario.client_ranks[client], scenario.seed, client, server_round
        )
    elif rule == "ffa":
        adapter = {**part(start, "A"), **arrays}
    elif rule == "fedsa":
        own = tensors_of(state[KEPT]) if KEPT in state else part(start, "B")
        adapter = {**arrays, **own}
    elif rule == "rolora":
        if KEPT not in state and server_round > 1 and len(arrays) < len(start):
            raise ValueError("This device holds no earlier factors; send it both.")
        known = tensors_of(state[KEPT]) if KEPT in state else start
        adapter = {**known, **arrays}
        state[KEPT] = ArrayRecord(adapter)
    else:
        own_rank = scenario.client_ranks[client]  # the server may not know yet which client this is
        too_large = any(a.shape[0] > own_rank for a, _ in factors(arrays).values())
        adapter = resized(arrays, own_rank) if too_large else arrays
    adapter = {name: adapter[name] for name in start}  # in the UNet's own order
    return Local(adapter, adapter if rule == "fedsa" else part(adapter, which), merged)


def keep(state, scenario, trained):
    """After training: what stays on this device alone."""
    if scenario.rule == "fedsa":
        state[KEPT] = ArrayRecord(part(trained, "B"))


def personal(content, state, start):
    """FedSA's model of this device: the shared A with its own B."""
    own = tensors_of(state[KEPT]) if KEPT in state else part(start, "B")
    return {**tensors_of(content["arrays"]), **own}


def _caught_up(content, state):
    """Everything this device was ever told to add to W0 (or Fed-SB's factors), with what came now, as one adapter."""
    config = content["config"]
    since, version = (
        int(config["merge-from"]),
        int(state[VERSION]["version"]) if VERSION in state else 0,
    )
    new = tensors_of(content["merge"]) if "merge" in content else {}
    if since not in (0, version):
        raise ValueError(
            f"This device holds {version} merges and was sent those after {since}; send it all of them."
        )
    old = tensors_of(state[MERGED]) if MERGED in state and since else {}
    merged = compact(stacked([old, new])) if old and new else old or new
    state[MERGED], state[VERSION] = (
        ArrayRecord(merged),
        MetricRecord({"version": int(config["merge-to"])}),
    )
    return merged


class WithCore(torch.nn.Linear):
    """Fed-SB's B R in the place of a `Linear` B: `core` R (r, r) trains, `weight` B (out, r) is fixed."""

    def __init__(self, b):
        super().__init__(b.in_features, b.out_features, bias=False, device="meta")
        self.weight, self.core = (
            b.weight,
            torch.nn.Parameter(b.weight.new_zeros(b.in_features, b.in_features)),
        )

    def forward(self, x):
        """(..., r) -> (..., out)."""
        return F.linear(F.linear(x, self.core), self.weight)


@torch.no_grad()
def load_local(unet, local, scenario, pristine):
    """Make `unet` what this device trains. `pristine`: {layer: W0}, filled when needed and kept by the caller."""
    if scenario.rule == "fed-sb":
        for name, layer in _lora_layers(unet):
            if not isinstance(layer.lora_B["default"], WithCore):
                layer.lora_B["default"] = WithCore(layer.lora_B["default"])
            layer.lora_B["default"].core.copy_(local.trains[name + CORE])
        load_adapter(unet, local.adapter, scenario.lora_alpha, train="")
        return
    trains = {name.partition(".lora_")[2][:1] for name in local.trains}
    load_adapter(unet, local.adapter, scenario.lora_alpha, train=trains)
    if scenario.rule in MERGING:
        added = factors(local.merged)
        for name, layer in _lora_layers(unet):
            weight = layer.base_layer.weight
            weight.copy_(pristine.setdefault(name, weight.clone()))
            if name in added:
                a, b = (factor.to(weight) for factor in added[name])
                weight.add_(b @ a)


def mean_gradients(unet, batch_loss, batches):
    """{layer: (out, in)}: the gradient of `batch_loss()`, mean over so many batches, with respect to every W0."""
    layers = dict(_lora_layers(unet))
    for layer in layers.values():
        layer.base_layer.weight.requires_grad_(True)
    for _ in range(batches):
        (batch_loss() / batches).backward()
    gradients = {name: layer.base_layer.weight.grad.cpu().clone() for name, layer in layers.items()}
    unet.zero_grad(set_to_none=True)
    for layer in layers.values():
        layer.base_layer.weight.requires_grad_(False)
    return gradients


def _lora_layers(unet):
    return [
        (name, layer)
        for name, layer in unet.named_modules()
        if "default" in getattr(layer, "lora_A", ())
    ]
