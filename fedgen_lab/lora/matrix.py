"""Which aggregation rule bears what the link does to it: a table that is computed on random adapters, not typed.

A radio can add signals in the air, and secure aggregation hands the server nothing but a sum: only a rule that needs no
more than the sum survives either. Uploads can be rounded or thinned out, clients can differ in rank or miss a round.
Each column tries that on every rule of `fedgen_lab.lora.rules` and says how far the change of the weights is off.
Taught in lab 05; after FFA-LoRA (arXiv 2403.12313) on sums, and Amiri and Gündüz, arXiv 1907.09769, on sums in the air.
"""

from functools import partial
from typing import NamedTuple

import pandas as pd
import torch
from flwr.app import RecordDict

from fedgen_lab.lora import rules
from fedgen_lab.lora.upload import pack, unpack
from fedgen_lab.scenario import Scenario

LAYERS = {"first": (14, 10), "second": (9, 16)}  # (out, in) of two small layers
CLIENTS = 4
RANK = 3
MIXED = (2, 4, 8)  # ranks
AIR_NOISE = 0.1  # standard deviation over the sum's own root mean square: 20 dB


def compatibility(seed=0):
    """One row a rule, the columns `COLUMNS`: relative errors of the weights' change; NaN where the rule can't be run.

    exact: against the mean of the clients' changes (NaN where every client has a model of its own). secure aggregation:
    from the weighted sum alone, against the rule with all uploads. sum over the air: the same, with noise of 20 dB.
    int8: uploads rounded to 8 bits, against unrounded ones. memory of top-k: how far the server's answer is from what
    clients sent if all sent the same, for only then what they kept back still fits. mixed ranks: as "exact", with ranks
    2, 4 and 8. missed round: the model of a client that heard only the second of two answers, against one that heard
    both.
    """
    draw = torch.Generator().manual_seed(seed)
    clients = [_adapter(draw, RANK) for _ in range(CLIENTS)]
    weights = torch.rand(CLIENTS, generator=draw) + 0.5
    weights = (weights / weights.sum()).tolist()
    table = pd.DataFrame(
        index=pd.Index(rules.RULES, name="rule"), columns=list(COLUMNS), dtype=float
    )
    for name, rule in rules.RULES.items():
        for column, error_of in COLUMNS.items():
            table.loc[name, column] = error_of(rule, clients, weights, seed)
    return table


def verdict(error):
    """An entry of the table in words: "yes", "not possible", or by how much the change is off."""
    if pd.isna(error):
        return "not possible"
    if error < 1e-4:
        return "yes"
    return f"{error:.1%} off" if error < 0.1 else f"{error:.0%} off"


# --- one column each: the error of a rule, or None where it can't be run


def _exact(rule, clients, weights, seed):
    # Each client keeps its own B, so there is no common model that could be right.
    if rule.is_personal:
        return None
    uploads = _uploads(rule, clients, 1)
    changes = []
    for client, upload in zip(clients, uploads, strict=True):
        model = _after(_start(rule, client), rules.Merged(upload, {}))
        changes.append(_change(model))
    return _error(_outcome(rule, clients, uploads, weights), rules.mean(changes, weights))


def _from_sum(rule, clients, weights, seed, noise):
    uploads, draw = _uploads(rule, clients, 1), torch.Generator().manual_seed(seed)
    total = rules.mean(uploads, weights)
    for name, tensor in total.items():
        scale = noise * tensor.square().mean().sqrt()
        total[name] = tensor + scale * torch.randn(tensor.shape, generator=draw)
    expected = _outcome(rule, clients, uploads, weights)
    return _error(_outcome(rule, clients, [total], [1.0]), expected)


def _from_int8(rule, clients, weights, seed):
    uploads, rounded, knobs = _uploads(rule, clients, 1), [], Scenario(upload="int8")
    for number, upload in enumerate(uploads):
        start = {name: torch.zeros_like(tensor) for name, tensor in upload.items()}
        packed = pack(upload, start, knobs, RecordDict(), seed + number)
        rounded.append(unpack(packed, start, knobs))
    expected = _outcome(rule, clients, uploads, weights)
    return _error(_outcome(rule, clients, rounded, weights), expected)


def _memory(rule, clients, weights, seed):
    upload = _uploads(rule, clients, 1)[0]
    answer = rule([upload] * len(clients), weights).adapter
    return _error(answer, upload) if set(answer) == set(upload) else None


def _with_mixed_ranks(rule, clients, weights, seed):
    draw = torch.Generator().manual_seed(seed)
    mixed = [_adapter(draw, MIXED[number % len(MIXED)]) for number in range(len(clients))]
    try:
        if rule.is_personal:
            return _from_sum(rule, mixed, weights, seed, noise=0.0)
        return _exact(rule, mixed, weights, seed)
    except RuntimeError:  # torch can't add factors of different shapes, and neither can a server
        return None


def _missed(rule, clients, weights, seed):
    draw = torch.Generator().manual_seed(seed + 1)
    later = [_adapter(draw, RANK) for _ in clients]
    start = _start(rule, clients[0])
    first = rule(_uploads(rule, clients, 1), weights)
    second = rule(_uploads(rule, later, 2), weights)
    after_both = _after(_after(start, first), second)
    return _error(_change(_after(start, second)), _change(after_both))


COLUMNS = {
    "exact": _exact,
    "secure aggregation": partial(_from_sum, noise=0.0),
    "sum over the air": partial(_from_sum, noise=AIR_NOISE),
    "int8": _from_int8,
    "memory of top-k": _memory,
    "mixed ranks": _with_mixed_ranks,
    "missed round": _missed,
}

# --- what they share


class Model(NamedTuple):
    """What a client has."""

    tensors: dict  # its adapter by name; with Fed-SB the R of a layer by the layer's name, too
    added: list  # adapters that went into its W0


def _adapter(draw, rank):
    """A client's folded adapter: a part that all clients have in common, and as much of its own."""
    shared, pairs = torch.Generator().manual_seed(1), {}
    for layer, (outputs, inputs) in LAYERS.items():
        a = [torch.randn(rank, inputs, generator=generator) for generator in (shared, draw)]
        b = [torch.randn(outputs, rank, generator=generator) for generator in (shared, draw)]
        pairs[layer] = (sum(a), sum(b))
    return rules.adapter_of(pairs)


def _uploads(rule, clients, server_round):
    """What clients send up in that round; Fed-SB's R is cut out of A, since any small matrix will do."""
    if not rule.has_setup:
        return [rules.part(client, rule.sends(server_round)) for client in clients]
    return [
        {layer: a[:, : len(a)].contiguous() for layer, (a, _) in rules.factors(client).items()}
        for client in clients
    ]


def _start(rule, like):
    """A model before the first round, of the rank of `like`: A from a shared seed, B zero unless it is never sent."""
    rank = len(next(iter(like.values())))
    shared = _adapter(torch.Generator().manual_seed(2), rank)
    if rule.is_personal or rule.has_setup:
        return Model(shared, [])
    return Model({name: tensor * (".lora_A." in name) for name, tensor in shared.items()}, [])


def _after(model, merged):
    """The model of a client that got this answer."""
    return Model({**model.tensors, **merged.adapter}, [*model.added, merged.into_base])


def _change(model):
    """{layer: (out, in)}: by how much the weights of a model differ from W0."""
    cores = {name: tensor for name, tensor in model.tensors.items() if name in LAYERS}
    adapter = {name: tensor for name, tensor in model.tensors.items() if name not in LAYERS}
    change = {
        layer: b @ (cores[layer] @ a if layer in cores else a)
        for layer, (a, b) in rules.factors(adapter).items()
    }
    for added in model.added:
        for layer, (a, b) in rules.factors(added).items():
            change[layer] = change[layer] + b @ a
    return change


def _outcome(rule, clients, uploads, weights):
    return _change(_after(_start(rule, clients[0]), rule(uploads, weights)))


def _error(tensors, expected):
    """|tensors - expected| / |expected| over all names together."""
    missed = sum(float((tensors[name] - value).square().sum()) for name, value in expected.items())
    return (missed / sum(float(value.square().sum()) for value in expected.values())) ** 0.5
