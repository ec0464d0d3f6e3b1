"""Which aggregation rule bears what the link does to it: a table that is computed on random adapters, not typed.

A radio can add signals in the air, and secure aggregation hands the server nothing but a sum: only a rule that needs no
more than the sum survives either. Uploads can be rounded or thinned out, clients can differ in rank or miss a round.
Each column tries that on every rule of `fedgen_lab.lora.rules` and says how far the change of the weights is off.
Taught in lab 05; after FFA-LoRA (arXiv 2403.12313) on sums, and Amiri and Gündüz, arXiv 1907.09769, on sums in the air.
"""

import pandas as pd
import torch
from flwr.app import RecordDict

from fedgen_lab.lora import rules
from fedgen_lab.lora.upload import pack, unpack
from fedgen_lab.scenario import Scenario

LAYERS = {"first": (14, 10), "second": (9, 16)}  # (out, in) of two small layers
AIR_NOISE = 0.1  # standard deviation over the sum's own root mean square: 20 dB
RANK, MIXED = 3, (2, 4, 8)
COLUMNS = (
    "exact",
    "secure aggregation",
    "sum over the air",
    "int8",
    "memory of top-k",
    "mixed ranks",
    "missed round",
)


def compatibility(seed=0, num_clients=4):
    """One row a rule, the columns `COLUMNS`: relative errors of the weights' change; NaN where the rule can't be run.

    exact: against the mean of the clients' changes (NaN where every client has a model of its own). secure aggregation:
    from the weighted sum alone, against the rule with all uploads. sum over the air: the same, with noise of 20 dB.
    int8: uploads rounded to 8 bits, against unrounded ones. memory of top-k: how far the server's answer is from what
    clients sent if all sent the same, for only then what they kept back still fits. mixed ranks: as "exact", with ranks
    2, 4 and 8. missed round: the model of a client that heard only the second of two answers, against one that heard
    both.
    """
    draw = torch.Generator().manual_seed(seed)
    clients = [_adapter(draw, RANK) for _ in range(num_clients)]
    weights = torch.rand(num_clients, generator=draw) + 0.5
    weights = (weights / weights.sum()).tolist()
    tries = (_exact, _from_sum, _from_noisy_sum, _from_int8, _memory, _with_mixed_ranks, _missed)
    rows = {name: [one(name, clients, weights, seed) for one in tries] for name in rules.RULES}
    return pd.DataFrame.from_dict(
        rows, orient="index", columns=list(COLUMNS), dtype=float
    ).rename_axis("rule")


def verdict(error):
    """An entry of the table in words: "yes", "not possible", or by how much the change is off."""
    if pd.isna(error):
        return "not possible"
    if error < 1e-4:
        return "yes"
    return f"{error:.1%} off" if error < 0.1 else f"{error:.0%} off"


# --- one column each


def _exact(name, clients, weights, seed):
    if (
        name == "fedsa"
    ):  # each client keeps its own B, so there is no common model that could be right
        return None
    uploads = _uploads(name, clients)
    each = [
        _change(name, _heard(_start(name, client), upload))
        for client, upload in zip(clients, uploads, strict=True)
    ]
    mean = {
        layer: sum(w * one[layer] for w, one in zip(weights, each, strict=True)) for layer in LAYERS
    }
    return _error(_outcome(name, clients, uploads, weights), mean)


def _from_sum(name, clients, weights, seed, noise=0.0):
    uploads, draw = _uploads(name, clients), torch.Generator().manual_seed(seed)
    total = rules.mean(uploads, weights)
    for key, value in total.items():
        total[key] = value + noise * value.square().mean().sqrt() * torch.randn(
            value.shape, generator=draw
        )
    return _error(
        _outcome(name, clients, [total], [1.0]), _outcome(name, clients, uploads, weights)
    )


def _from_noisy_sum(name, clients, weights, seed):
    return _from_sum(name, clients, weights, seed, AIR_NOISE)


def _from_int8(name, clients, weights, seed):
    uploads, rounded = _uploads(name, clients), []
    for number, upload in enumerate(uploads):
        start = {key: torch.zeros_like(value) for key, value in upload.items()}
        packed = pack(upload, start, Scenario(upload="int8"), RecordDict(), seed + number)
        rounded.append(unpack(packed, start, Scenario(upload="int8")))
    return _error(
        _outcome(name, clients, rounded, weights), _outcome(name, clients, uploads, weights)
    )


def _memory(name, clients, weights, seed):
    upload = _uploads(name, clients)[0]
    answer = rules.RULES[name]([upload] * len(clients), weights).adapter
    return _error(answer, upload) if set(answer) == set(upload) else None


def _with_mixed_ranks(name, clients, weights, seed):
    draw = torch.Generator().manual_seed(seed)
    mixed = [_adapter(draw, MIXED[number % len(MIXED)]) for number in range(len(clients))]
    try:
        return (
            _exact(name, mixed, weights, seed)
            if name != "fedsa"
            else _from_sum(name, mixed, weights, seed)
        )
    except RuntimeError:  # torch can't add factors of different shapes, and neither can a server
        return None


def _missed(name, clients, weights, seed):
    draw = torch.Generator().manual_seed(seed + 1)
    later = [_adapter(draw, RANK) for _ in clients]
    start = _start(name, clients[0])
    first = rules.RULES[name](_uploads(name, clients, 1), weights)
    second = rules.RULES[name](_uploads(name, later, 2), weights)
    both = _heard(_heard(start, *first), *second)
    return _error(_change(name, _heard(start, *second)), _change(name, both))


# --- what they share: a model is (what the client holds by name, [what was added to its W0])


def _adapter(draw, rank):
    """A client's folded adapter: a part that all clients have in common, and as much of its own."""
    shared, pairs = torch.Generator().manual_seed(1), {}
    for layer, (outputs, inputs) in LAYERS.items():
        a = [torch.randn(rank, inputs, generator=g) for g in (shared, draw)]
        b = [torch.randn(outputs, rank, generator=g) for g in (shared, draw)]
        pairs[layer] = (sum(a), sum(b))
    return rules.adapter_of(pairs)


def _uploads(name, clients, server_round=1):
    """What clients send up in that round; Fed-SB's R is cut out of A, since any small matrix will do."""
    if name == "fed-sb":
        return [
            {layer: a[:, : len(a)].contiguous() for layer, (a, _) in rules.factors(c).items()}
            for c in clients
        ]
    return [rules.part(client, rules.sent_part(name, server_round)) for client in clients]


def _start(name, like):
    """A model before the first round, of the rank of `like`: A from a shared seed, B zero unless it is never sent."""
    shared = _adapter(torch.Generator().manual_seed(2), len(next(iter(like.values()))))
    if name in ("fedsa", "fed-sb"):
        return shared, []
    return {key: value * (".lora_A." in key) for key, value in shared.items()}, []


def _heard(model, adapter, into_base=None):
    """The model of a client that was sent this answer."""
    held, added = model
    return {**held, **adapter}, added + [into_base or {}]


def _change(name, model):
    """{layer: (out, in)}: by how much the weights of a model differ from W0."""
    held, added = model
    pairs = rules.factors({key: value for key, value in held.items() if key not in LAYERS})
    change = {
        layer: b @ (held[layer] @ a if name == "fed-sb" else a) for layer, (a, b) in pairs.items()
    }
    for layer, (a, b) in (pair for one in added for pair in rules.factors(one).items()):
        change[layer] = change[layer] + b @ a
    return change


def _outcome(name, clients, uploads, weights):
    return _change(name, _heard(_start(name, clients[0]), *rules.RULES[name](uploads, weights)))


def _error(found, wanted):
    """|found - wanted| / |wanted| over all names together."""
    missed = sum(float((found[key] - value).square().sum()) for key, value in wanted.items())
    return (missed / sum(float(value.square().sum()) for value in wanted.values())) ** 0.5
