"""Which aggregation rule bears what the link does to it: a table that is computed on random adapters, not typed.

A radio can add signals in the air, and secure aggregation hands the server nothing but a sum: only a rule that needs no
more than the sum survives either. Uploads can be rounded or thinned out, clients can differ in rank or miss a round.
Each column tries that on every rule of `fedgen_lab.lora.rules` and says how far the change of the weights is off.
Taught in lab 05; after FFA-LoRA (arXiv 2403.12313) on sums, and Amiri and Gündüz, arXiv 1907.09769, on sums in the air.
"""

from functools import partial

import pandas as pd
import torch
from flwr.app import RecordDict
from torch.nn.utils import get_total_norm

from fedgen_lab.lora import rules
from fedgen_lab.lora.upload import pack, unpack
from fedgen_lab.scenario import Scenario

LAYERS = {"first": (14, 10), "second": (9, 16)}  # (out, in) of two small layers
CLIENTS = 4
RANK = 3
MIXED = (2, 4, 8, 2)  # ranks
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
    rows = [
        {column: error_of(rule, clients, weights, seed) for column, error_of in COLUMNS.items()}
        for rule in rules.RULES.values()
    ]
    return pd.DataFrame(rows, pd.Index(rules.RULES, name="rule"), dtype=float)


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
    changes = [
        _change(rule, client, rules.Merged(upload, {}))
        for client, upload in zip(clients, uploads, strict=True)
    ]
    changed = _change(rule, clients[0], rule(uploads, weights))
    return _error(changed, rules.mean(changes, weights))


def _through(link, rule, clients, weights, seed):
    """The error of a rule that gets only what `link` makes of uploads and weights."""
    uploads = _uploads(rule, clients, 1)
    changed = _change(rule, clients[0], rule(*link(uploads, weights, seed)))
    return _error(changed, _change(rule, clients[0], rule(uploads, weights)))


def _sum(uploads, weights, seed, noise=0.0):
    draw = torch.Generator().manual_seed(seed)
    total = rules.mean(uploads, weights)
    for name, tensor in total.items():
        scale = noise * tensor.square().mean().sqrt()
        total[name] = tensor + scale * torch.randn(tensor.shape, generator=draw)
    return [total], [1.0]


def _rounded(uploads, weights, seed):
    rounded, knobs = [], Scenario(upload="int8")
    for number, upload in enumerate(uploads):
        start = {name: torch.zeros_like(tensor) for name, tensor in upload.items()}
        packed = pack(upload, start, knobs, RecordDict(), seed + number)
        rounded.append(unpack(packed, start, knobs))
    return rounded, weights


def _memory(rule, clients, weights, seed):
    upload = _uploads(rule, clients, 1)[0]
    answer = rule([upload] * CLIENTS, weights).adapter
    return _error(answer, upload) if set(answer) == set(upload) else None


def _with_mixed_ranks(rule, clients, weights, seed):
    draw = torch.Generator().manual_seed(seed)
    try:
        return _exact(rule, [_adapter(draw, rank) for rank in MIXED], weights, seed)
    except RuntimeError:  # torch can't add factors of different shapes, and neither can a server
        return None


def _missed(rule, clients, weights, seed):
    draw = torch.Generator().manual_seed(seed + 1)
    later = [_adapter(draw, RANK) for _ in clients]
    first = rule(_uploads(rule, clients, 1), weights)
    second = rule(_uploads(rule, later, 2), weights)
    heard_both = _change(rule, clients[0], first, second)
    return _error(_change(rule, clients[0], second), heard_both)


COLUMNS = {
    "exact": _exact,
    "secure aggregation": partial(_through, _sum),
    "sum over the air": partial(_through, partial(_sum, noise=AIR_NOISE)),
    "int8": partial(_through, _rounded),
    "memory of top-k": _memory,
    "mixed ranks": _with_mixed_ranks,
    "missed round": _missed,
}

# --- what they share


def _adapter(draw, rank):
    """A client's folded adapter: a part that all clients have in common, and as much of its own."""
    shared = torch.Generator().manual_seed(1)

    def drawn(*shape):
        return torch.randn(shape, generator=shared) + torch.randn(shape, generator=draw)

    return rules.adapter_of(
        {
            layer: (drawn(rank, inputs), drawn(outputs, rank))
            for layer, (outputs, inputs) in LAYERS.items()
        }
    )


def _uploads(rule, clients, server_round):
    """What clients send up in that round; Fed-SB's R is cut out of A, since any small matrix will do."""
    if not rule.has_setup:
        return [rules.part(client, rule.sends(server_round)) for client in clients]
    return [
        {layer: a[:, : len(a)] for layer, (a, _) in rules.factors(client).items()}
        for client in clients
    ]


def _change(rule, like, *answers):
    """{layer: (out, in)}: how far a client's weights are from W0 after these `Merged`, at the rank of `like`.

    It began with an A from a shared seed, and B zero unless B is never sent.
    """
    rank = len(next(iter(like.values())))
    adapter = _adapter(torch.Generator().manual_seed(2), rank)
    if not (rule.is_personal or rule.has_setup):
        adapter |= {name: 0 * tensor for name, tensor in rules.part(adapter, "B").items()}
    for answer in answers:
        adapter |= answer.adapter
    # Fed-SB's R of a layer goes by the layer's name.
    cores = {layer: adapter.pop(layer) for layer in LAYERS if layer in adapter}
    change = {}
    for layer, (a, b) in rules.factors(adapter).items():
        change[layer] = b @ (cores[layer] @ a if cores else a)
    for answer in answers:
        for layer, (a, b) in rules.factors(answer.into_base).items():
            change[layer] = change[layer] + b @ a
    return change


def _error(tensors, expected):
    """|tensors - expected| / |expected| over all names together."""
    missed = [tensors[name] - value for name, value in expected.items()]
    return float(get_total_norm(missed) / get_total_norm(expected.values()))
