"""An adapter as pairs of factors: A (r, in) and B (out, r) of every layer, and the arithmetic that never forms B A.

Lab 04. A state is {"LAYER.lora_A.default.weight": A, "LAYER.lora_B.default.weight": B, ...} as peft names them. The sum
of adapters is exact when their factors are stacked; `svd` and `truncated` bring the rank down again.
"""

import torch


def factors(state):
    """{layer: (A (r, in), B (out, r))} of an adapter {"LAYER.lora_A.default.weight": ..., ...}.

    Raises ValueError when a factor has no partner, or their ranks differ.
    """
    pairs = {}
    for name, tensor in state.items():
        layer, _, factor = name.partition(".lora_")
        pairs.setdefault(layer, {})[factor[:1]] = tensor
    for layer, pair in pairs.items():
        if set(pair) != {"A", "B"} or pair["A"].shape[0] != pair["B"].shape[1]:
            shapes = {factor: tuple(tensor.shape) for factor, tensor in pair.items()}
            raise ValueError(
                f"{layer} has {shapes} where A (r, in) and B (out, r) of one rank belong."
            )
    return {layer: (pair["A"], pair["B"]) for layer, pair in pairs.items()}


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


def part(state, letters):
    """The factors that travel: "A", "B", or "AB" for both."""
    return {
        name: tensor for name, tensor in state.items() if name.partition(".lora_")[2][:1] in letters
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
    """The adapter whose change is the weighted sum of these, exactly: A's on top of each other, B's side by side.

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


def frame(gradients, rank):
    """Fed-SB's fixed factors from mean gradients {layer: (out, in)}: the first singular directions, orthonormal."""
    pairs = {}
    for layer, gradient in gradients.items():
        u, _, vt = torch.linalg.svd(gradient.double(), full_matrices=False)
        pairs[layer] = (vt[:rank], u[:, :rank])
    return adapter_of(pairs)


def mean(uploads, weights):
    """sum_k p_k u_k, name by name: all that a sum over the air or secure aggregation can give."""
    return {
        name: sum(u[name] * w for u, w in zip(uploads, weights, strict=True)) for name in uploads[0]
    }


def square_norm(a, b):
    """The squared Frobenius norm of B A from r x r matrices."""
    a, b = a.double(), b.double()
    return float(((b.T @ b) * (a @ a.T)).sum().clamp(min=0))


def bias_by_layer(states, weights):
    """{layer: |mean(B A) - mean(B) mean(A)| / |mean(B A)|}, Frobenius norms: what averaging factors gets wrong."""
    exact, average = stacked(states, weights), mean(states, weights)
    missed = factors(stacked([exact, average], [1.0, -1.0]))
    return {
        layer: (square_norm(*missed[layer]) / max(square_norm(a, b), 1e-300)) ** 0.5
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


def pruned(state, idle_share):
    """The rank a HetLoRA client keeps: the fewest first rank-one terms that leave less than `idle_share` of all.

    A term's weight is |b_i| |a_i|, summed over layers. At least 1.
    """
    terms = sum(a.norm(dim=1) * b.norm(dim=0) for a, b in factors(state).values())  # (r,)
    if not terms.sum() > 0:
        return len(terms)
    tail = terms.flip(0).cumsum(0).flip(0) / terms.sum()  # (r,): what is left from term i on
    return max(1, int((tail >= idle_share).sum()))


def largest_rank(states):
    """The largest rank of any layer of these adapters."""
    return max(a.shape[0] for state in states for a, _ in factors(state).values())
