"""The rules by which a server makes one adapter out of many: eleven of them, each readable on its own.

Lab 04. An adapter changes a weight W0 by B A. What a server wants is the mean change, sum_k p_k B_k A_k; the mean of
the B times the mean of the A is something else, off by exactly the covariance of the factors over clients. Each rule
below answers that in its own way. Every docstring gives the round: what goes down to a client, what comes up, and how
many numbers that is for one layer W0 (out, in) at rank r with K clients.

A rule gets folded adapters: the scale alpha / r is already inside B (see `fold`). It returns a `Merged`. Weights p_k
sum to one. Nothing here knows of Flower; `lora/strategies.py` puts a rule on the wire.
"""

from typing import NamedTuple

import torch


class Merged(NamedTuple):
    """What a rule makes of a round."""

    adapter: dict  # what clients train on from, by name; {}: everyone starts a fresh adapter
    into_base: dict  # an adapter that everyone adds to W0 for good; {}: W0 stays


# --- adapters as pairs of factors


def factors(state):
    """{layer: (A (r, in), B (out, r))} of an adapter {"LAYER.lora_A.default.weight": ..., ...}.

    Raises ValueError when a factor has no partner, or their ranks differ.
    """
    found = {}
    for name, tensor in state.items():
        layer, _, rest = name.partition(".lora_")
        found.setdefault(layer, {})[rest[:1]] = tensor
    for layer, pair in found.items():
        if set(pair) != {"A", "B"} or pair["A"].shape[0] != pair["B"].shape[1]:
            shapes = {factor: tuple(tensor.shape) for factor, tensor in pair.items()}
            raise ValueError(
                f"{layer} has {shapes} where A (r, in) and B (out, r) of one rank belong."
            )
    return {layer: (pair["A"], pair["B"]) for layer, pair in found.items()}


def adapter_of(pairs):
    """The inverse of `factors`: names as peft gives them, in float32."""
    state = {}
    for layer, (a, b) in pairs.items():
        state[f"{layer}.lora_A.default.weight"] = a.float().contiguous()
        state[f"{layer}.lora_B.default.weight"] = b.float().contiguous()
    return state


def fold(state, alpha=0.0):
    """The same change of W0 with a scale of one: B times alpha / r. `alpha` 0 means alpha = r, nothing to do."""
    return _scaled(state, lambda rank: alpha / rank) if alpha else dict(state)


def unfold(state, alpha=0.0):
    """The inverse of `fold`, for a receiver whose adapter is scaled by alpha / r with r the rank in `state`."""
    return _scaled(state, lambda rank: rank / alpha) if alpha else dict(state)


def _scaled(state, scale_of):
    return {
        name: t * scale_of(t.shape[1]) if ".lora_B." in name else t for name, t in state.items()
    }


def part(state, which):
    """The factors that travel: "A", "B", or "AB" for both."""
    return {
        name: tensor for name, tensor in state.items() if name.partition(".lora_")[2][:1] in which
    }


def resized(state, rank):
    """The adapter cut to its first `rank` rows of A and columns of B, or padded with zeros up to them."""

    def sized(tensor, dim):  # narrow or pad along `dim`
        kept = tensor.narrow(dim, 0, min(rank, tensor.shape[dim]))
        missing = list(tensor.shape)
        missing[dim] = rank - kept.shape[dim]
        return (
            torch.cat([kept, tensor.new_zeros(missing)], dim) if missing[dim] else kept.contiguous()
        )

    return {name: sized(tensor, 0 if ".lora_A." in name else 1) for name, tensor in state.items()}


def stacked(states, weights=None):
    """The adapter whose change is the weighted sum of the others', exactly: A's on top of each other, B's side by side.

    The weight stands on A alone; on both factors it would count twice. Rank: the sum of the ranks.
    """
    weights = weights or [1.0] * len(states)
    pairs = [factors(state) for state in states if state]
    weights = [weight for weight, state in zip(weights, states, strict=True) if state]
    return adapter_of(
        {
            layer: (
                torch.cat([p[layer][0] * w for p, w in zip(pairs, weights, strict=True)]),
                torch.cat([p[layer][1] for p in pairs], 1),
            )
            for layer in (pairs[0] if pairs else ())
        }
    )


def svd(a, b):
    """U (out, m), S (m,), Vt (m, in) of B A without ever forming it: QR of both factors, SVD of the small middle."""
    q_b, r_b = torch.linalg.qr(b.double())  # (out, m), (m, R)
    q_a, r_a = torch.linalg.qr(a.double().T)  # (in, m'), (m', R)
    u, s, vt = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)  # of (m, m'), never of (out, in)
    return q_b @ u, s, vt @ q_a.T


def truncated(state, rank=None):
    """The adapter of at most `rank` nearest to `state`: B = U S, A = Vt. None: drop only directions that are zero."""
    pairs = {}
    for layer, (a, b) in factors(state).items():
        u, s, vt = svd(a, b)
        keep = int((s > 1e-7 * s[0]).sum()) if rank is None else rank
        pairs[layer] = (vt[:keep], u[:, :keep] * s[:keep])
    return adapter_of(pairs)


def compact(state):
    """The same change with no rank above what its layer can have: what stacks over many rounds come down to."""
    pairs = {}
    for layer, (a, b) in factors(state).items():
        if len(a) > min(a.shape[1], len(b)):
            u, s, vt = svd(a, b)
            a, b = vt, u * s
        pairs[layer] = (a, b)
    return adapter_of(pairs)


# --- the rules


def mean(uploads, weights):
    """sum_k p_k u_k, name by name: all that a sum over the air or secure aggregation can give."""
    return {
        name: sum(u[name] * w for u, w in zip(uploads, weights, strict=True)) for name in uploads[0]
    }


def fedit(uploads, weights):
    """FedIT, plain averaging of A and B (Zhang et al., arXiv 2305.05644). Not exact: off by the factors' covariance.

    Down: A, B. Up: A_k, B_k. r (in + out) numbers each way. The same rule averages all weights in full-model FedAvg.
    """
    return Merged(mean(uploads, weights), {})


def ffa(uploads, weights):
    """FFA-LoRA (Sun et al., arXiv 2403.12313). A is drawn once from a shared seed and never trained: exact.

    Down: B. Up: B_k. r out numbers each way, about half of FedIT's. A never travels, its seed does.
    """
    return Merged(mean(uploads, weights), {})


def fedsa(uploads, weights):
    """FedSA-LoRA (Guo et al., arXiv 2410.01463). A is shared, B stays on its device: every client has its own model.

    Down: A. Up: A_k. r in numbers each way. The server has no B and so no model to draw with.
    """
    return Merged(mean(uploads, weights), {})


def rolora(uploads, weights):
    """RoLoRA (Chen et al., arXiv 2409.02346). Odd rounds train B, even rounds A, the other one fixed: each is exact.

    Down: the factor that was averaged last, r in or r out numbers; both for a client that missed it, none in round 1
    (A comes from the shared seed, B is zero). Up: the other one. We begin with B: while B is zero, A has no gradient.
    """
    return Merged(mean(uploads, weights), {})


def flora(uploads, weights):
    """FLoRA (Wang et al., arXiv 2409.05976). The clients' factors are stacked, which is exact; ranks may differ.

    Up: A_k, B_k. Down: the stack of the last round, sum_k r_k (in + out) numbers, K times FedIT's; every client adds it
    to W0 and starts a fresh adapter. Who missed rounds gets all their stacks.
    """
    return Merged({}, stacked(uploads, weights))


def flexlora(uploads, weights, rank=None):
    """FlexLoRA (Bai et al., arXiv 2402.11505). The mean change by its singular values; client k gets its first r_k.

    Down: A, B cut to r_k. Up: A_k, B_k. r_k (in + out) numbers each way. Exact but for the cut, since truncating the
    SVD is the best one can do at that rank. `rank`: what the server keeps, the largest client rank unless given.
    """
    rank = rank or max(a.shape[0] for upload in uploads for a, _ in factors(upload).values())
    return Merged(truncated(stacked(uploads, weights), rank), {})


def hetlora(uploads, weights, by_norm=True):
    """HetLoRA (Cho et al., arXiv 2401.06432). Adapters padded with zeros to the largest rank and averaged. Not exact.

    Down: A, B cut to r_k. Up: A_k, B_k. r_k (in + out) numbers each way. `by_norm`: clients count by the norm of their
    change B_k A_k besides p_k. Between rounds `pruned` may lower a client's rank.
    """
    largest = max(a.shape[0] for upload in uploads for a, _ in factors(upload).values())
    if by_norm:
        norms = [
            sum(_square_norm(a, b) for a, b in factors(upload).values()) ** 0.5
            for upload in uploads
        ]
        weights = [w * n for w, n in zip(weights, norms, strict=True)] if any(norms) else weights
        weights = [w / sum(weights) for w in weights]
    return Merged(mean([resized(upload, largest) for upload in uploads], weights), {})


def pruned(state, share=0.01):
    """The rank a HetLoRA client keeps: the fewest first rank-one terms without which less than `share` of all remains.

    A term's weight is |b_i| |a_i|, summed over layers. At least 1.
    """
    pairs = factors(state).values()
    terms = sum(a.norm(dim=1) * b.norm(dim=0) for a, b in pairs)  # (r,)
    if not terms.sum() > 0:
        return len(terms)
    tail = terms.flip(0).cumsum(0).flip(0) / terms.sum()  # (r,): what is left from term i on
    return max(1, int((tail >= share).sum()))


def fedex(uploads, weights):
    """FedEx-LoRA (Singhal et al., arXiv 2410.09432). A and B as FedIT; what the mean misses goes into W0: exact.

    Up: A_k, B_k. Down: A, B and the residual as factors of its rank, at most (K - 1) r: K r (in + out) numbers. Who
    missed rounds gets all their residuals.
    """
    average = mean(uploads, weights)
    residual = stacked([*uploads, average], [*weights, -1.0])
    rank = (len(uploads) - 1) * max(a.shape[0] for a, _ in factors(average).values())
    return Merged(average, truncated(residual, rank) if rank else {})


def lora_fair(uploads, weights, ridge=1e-2):
    """LoRA-FAIR (Bian et al., arXiv 2411.14961) in a ridge form of ours: A as FedIT, B corrected towards the mean.

    B' = B + (D - B A) A^T (A A^T + ridge mean(diag(A A^T)) I)^-1 with D = sum_k p_k B_k A_k, which stays factored; the
    paper fits the correction by a similarity measure instead. Down: A, B'. Up: A_k, B_k. r (in + out) numbers each way.
    """
    average, pairs = factors(mean(uploads, weights)), [factors(upload) for upload in uploads]
    corrected = {}
    for layer, (a, b) in average.items():
        a, b = a.double(), b.double()
        wanted = sum(
            w * p[layer][1].double() @ (p[layer][0].double() @ a.T)
            for p, w in zip(pairs, weights, strict=True)
        )  # D A^T (out, r)
        gram = a @ a.T  # (r, r)
        damped = gram + ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        corrected[layer] = (a, b + torch.linalg.solve(damped, (wanted - b @ gram).T).T)
    return Merged(adapter_of(corrected), {})


def fed_sb(uploads, weights):
    """Fed-SB (Singhal et al., arXiv 2502.15436). W0 + B R A with A, B fixed for good and only R (r, r) trained: exact.

    Before round 1, up: the gradient of W0, dense, once; down: A and B, from the SVD of its mean (see `frame`), once a
    client. Then down: R, up: R_k, r^2 numbers each way, whatever the size of the model. R starts at zero, where the
    paper starts from a first step.
    """
    return Merged(mean(uploads, weights), {})


def frame(gradients, rank):
    """Fed-SB's fixed factors from mean gradients {layer: (out, in)}: the first singular directions, orthonormal."""
    pairs = {}
    for layer, gradient in gradients.items():
        u, _, vt = torch.linalg.svd(gradient.double(), full_matrices=False)
        pairs[layer] = (vt[:rank], u[:, :rank])
    return adapter_of(pairs)


RULES = {
    "fedit": fedit,
    "ffa": ffa,
    "fedsa": fedsa,
    "rolora": rolora,
    "flora": flora,
    "flexlora": flexlora,
    "hetlora": hetlora,
    "fedex": fedex,
    "lora-fair": lora_fair,
    "fed-sb": fed_sb,
}
LINEAR = (
    "fedit",
    "ffa",
    "fedsa",
    "rolora",
    "fed-sb",
)  # nothing but the mean: defences and private noise fit in


def sent_part(rule, server_round):
    """The factors that clients send up in a round under a rule: "AB", "A" or "B" ("B": Fed-SB's R, too).

    They are those that train, but for FedSA, whose clients train B as well.
    """
    if rule == "rolora":
        return "B" if server_round % 2 else "A"
    return {"ffa": "B", "fed-sb": "B", "fedsa": "A"}.get(rule, "AB")


# --- what the charts of lab 04 show


def _square_norm(a, b):
    """The squared Frobenius norm of B A from r x r matrices."""
    a, b = a.double(), b.double()
    return float(((b.T @ b) * (a @ a.T)).sum().clamp(min=0))


def bias_by_layer(states, weights):
    """{layer: |mean(B A) - mean(B) mean(A)| / |mean(B A)|}, Frobenius norms: what averaging factors gets wrong."""
    exact, average = stacked(states, weights), mean(states, weights)
    missed = factors(stacked([exact, average], [1.0, -1.0]))
    return {
        layer: (_square_norm(*missed[layer]) / max(_square_norm(a, b), 1e-300)) ** 0.5
        for layer, (a, b) in factors(exact).items()
    }


def rank_energy(state):
    """(r,): the share of the squared singular values of B A in its first 1, 2, ..., r directions, mean over layers."""
    shares = []
    for a, b in factors(state).values():
        energy = svd(a, b)[1].square()
        shares.append(energy.cumsum(0) / energy.sum().clamp(min=1e-300))
    width = min(map(len, shares))
    return torch.stack([share[:width] for share in shares]).mean(0)
