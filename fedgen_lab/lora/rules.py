"""The rules by which a server makes one adapter out of many: ten of them, each whole in one class.

Lab 04. An adapter changes a weight W0 by B A. What a server wants is the mean change, sum_k p_k B_k A_k; the mean of
the B times the mean of the A is something else, off by exactly the covariance of the factors over clients. Each rule
answers that in its own way: what goes down to a client (`down`), what a device goes on from (`receive`), what comes up
(`sends`), and what the server makes of it (calling the rule). Every docstring says how many numbers travel for one
layer W0 (out, in) at rank r with K clients.

The server's half gets folded adapters: the scale alpha / r is already inside B (see `factors.fold`). Weights p_k sum to
one. A device remembers from round to round what lies in its Flower `Context.state`, here `memory`, and nothing else.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from flwr.app import ArrayRecord

from fedgen_lab.federation.arrays import tensors_of
from fedgen_lab.lora.adapter import WithCore, add_to_weights, load_adapter, lora_layers
from fedgen_lab.lora.factors import (  # noqa: F401 (lab 04 takes all of them from here)
    adapter_of,
    bias_by_layer,
    compact,
    factors,
    fold,
    frame,
    largest_rank,
    mean,
    part,
    pruned,
    rank_energy,
    resized,
    square_norm,
    stacked,
    svd,
    truncated,
    unfold,
)

KEPT, MERGED = "kept", "merged"  # what a device's memory holds
CORE = ".lora_B.default.core"  # Fed-SB's R, by layer


class Merged(NamedTuple):
    """What a rule makes of a round."""

    adapter: dict  # what clients train on from, by name; {}: everyone starts a fresh adapter
    into_base: dict  # an adapter that everyone adds to W0 for good; {}: W0 stays


@dataclass
class ServerState:
    """What a server has."""

    adapter: dict  # folded; what clients go on from (Fed-SB: R)
    ranks: list  # one a client
    merges: list = field(default_factory=list)  # what was added to W0 (Fed-SB: A and B), in order
    learned_rank: int = 0  # the largest that came up in the last merge; 0 before the first


class Seat(NamedTuple):
    """Who takes part: one client in one round."""

    client: int
    rank: int
    round: int
    seed: int  # the run's


class FedIT:
    """Plain averaging of A and B (Zhang et al., arXiv 2305.05644). Not exact: off by the factors' covariance.

    Down: A, B. Up: A_k, B_k. r (in + out) numbers each way. Full-model FedAvg averages all weights in the same way.
    """

    takes_mean = (
        True  # nothing but the mean: defences, private noise and masks may stand in its place
    )
    has_merges = False  # devices must have everything that was ever merged
    has_setup = False  # before round 1 the server asks for gradients
    is_personal = False  # only the clients have whole models

    def __call__(self, uploads, weights):
        """The `Merged` of folded uploads (what `sends` names of each) and their weights p_k."""
        return Merged(mean(uploads, weights), {})

    def merge(self, server, uploads, weights):
        """The rule as a server needs it, which also thinks of clients that are away this round."""
        return self(uploads, weights)

    def sends(self, server_round):
        """The factors that come up in a round: "AB", "A" or "B"."""
        return "AB"

    def trains(self, server_round):
        """The factors that a device trains."""
        return self.sends(server_round)

    def down(self, server, seat, is_behind):
        """What a client gets, folded. `is_behind`: it did not answer the last round."""
        return self.origin(server, seat)

    def origin(self, server, seat):
        """What a client's upload started from, folded: same names, same shapes."""
        return part(resized(server.adapter, seat.rank), self.sends(seat.round))

    def whole(self, server, upload):
        """The folded adapter that an upload stands for."""
        return {**server.adapter, **upload}

    def settle(self, server, uploads):
        """After a merge: what the server notes of {client: upload}."""

    def model(self, server):
        """The whole model as one folded adapter."""
        model = stacked([server.adapter, *server.merges]) if server.merges else server.adapter
        return compact(model) if server.merges else model

    # the device's half

    def receive(self, arrays, memory, start, seat):
        """(adapter, what of it trains) from the arrays that came; unfolded. `start`: the adapter of the run's seed."""
        adapter = self.complete(arrays, memory, start, seat)
        adapter = {name: adapter[name] for name in start}  # in the UNet's order
        return adapter, part(adapter, self.trains(seat.round))

    def complete(self, arrays, memory, start, seat):
        """The adapter that a device goes on from, with what did not travel."""
        # the server may not know yet which client this is, and then sends the largest rank
        is_too_large = any(a.shape[0] > seat.rank for a, _ in factors(arrays).values())
        return resized(arrays, seat.rank) if is_too_large else arrays

    def keep(self, memory, trained):
        """After training: what stays on this device alone."""

    def load(self, unet, adapter, trains, alpha, merged, pristine):
        """Make `unet` what this device trains. `pristine`: {layer: W0}, filled when W0 first changes."""
        load_adapter(unet, adapter, alpha, {name.partition(".lora_")[2][:1] for name in trains})
        if self.has_merges:
            add_to_weights(unet, factors(merged), pristine)


class FFALoRA(FedIT):
    """FFA-LoRA (Sun et al., arXiv 2403.12313). A is drawn once from a shared seed and never trained: exact.

    Down: B. Up: B_k. r out numbers each way, about half of FedIT's. A never travels, its seed does.
    """

    def sends(self, server_round):
        return "B"

    def complete(self, arrays, memory, start, seat):
        return {**part(start, "A"), **arrays}


class FedSA(FedIT):
    """FedSA-LoRA (Guo et al., arXiv 2410.01463). A is shared, B stays on its device: every client has its own model.

    Down: A. Up: A_k. r in numbers each way. The server has no B and so no model to draw with: its B is zero.
    """

    is_personal = True

    def sends(self, server_round):
        return "A"

    def trains(self, server_round):
        return "AB"

    def whole(self, server, upload):
        return {**self.model(server), **upload}

    def model(self, server):
        zeros = {name: 0 * tensor for name, tensor in part(server.adapter, "B").items()}
        return {**server.adapter, **zeros}

    def complete(self, arrays, memory, start, seat):
        private = tensors_of(memory[KEPT]) if KEPT in memory else part(start, "B")
        return {**arrays, **private}

    def keep(self, memory, trained):
        memory[KEPT] = ArrayRecord(part(trained, "B"))


class RoLoRA(FedIT):
    """RoLoRA (Chen et al., arXiv 2409.02346). Odd rounds train B, even rounds A, the other one fixed: each is exact.

    Down: the factor that was averaged last, r in or r out numbers; both for a client that missed it, none in round 1
    (A comes from the shared seed, B is zero). Up: the other one. We begin with B: while B is zero, A has no gradient.
    """

    def sends(self, server_round):
        return "B" if server_round % 2 else "A"

    def down(self, server, seat, is_behind):
        if seat.round == 1:
            return {}
        adapter = resized(server.adapter, seat.rank)
        return adapter if is_behind else part(adapter, self.sends(seat.round - 1))

    def complete(self, arrays, memory, start, seat):
        if KEPT not in memory and seat.round > 1 and len(arrays) < len(start):
            raise ValueError("This device holds no earlier factors; send it both.")
        earlier = tensors_of(memory[KEPT]) if KEPT in memory else start
        adapter = {**earlier, **arrays}
        memory[KEPT] = ArrayRecord(adapter)
        return adapter


class FLoRA(FedIT):
    """FLoRA (Wang et al., arXiv 2409.05976). The clients' factors are stacked, which is exact; ranks may differ.

    Up: A_k, B_k. Down: the stack of the last round, sum_k r_k (in + out) numbers, K times FedIT's; every client adds it
    to W0 and starts a fresh adapter. Who missed rounds gets all their stacks.
    """

    takes_mean = False
    has_merges = True

    def __call__(self, uploads, weights):
        return Merged({}, stacked(uploads, weights))

    def down(self, server, seat, is_behind):
        return {}

    def origin(self, server, seat):
        return self.complete({}, None, server.adapter, seat)

    def model(self, server):
        return compact(stacked(server.merges)) if server.merges else server.adapter

    def complete(self, arrays, memory, start, seat):
        """A new start: A normal with deviation 1 / rank, B zero, by seeds that the server knows, too."""
        spawned = np.random.SeedSequence(seat.seed, spawn_key=(seat.client, seat.round, 1))
        generator = torch.Generator().manual_seed(int(spawned.generate_state(1)[0]))
        return adapter_of(
            {
                layer: (
                    torch.randn(seat.rank, a.shape[1], generator=generator) / seat.rank,
                    torch.zeros(b.shape[0], seat.rank),
                )
                for layer, (a, b) in factors(start).items()
            }
        )


class FlexLoRA(FedIT):
    """FlexLoRA (Bai et al., arXiv 2402.11505). The mean change by its singular values; client k gets its first r_k.

    Down: A, B cut to r_k. Up: A_k, B_k. r_k (in + out) numbers each way. Exact but for the cut to the largest client
    rank, since truncating the SVD is the best one can do at that rank.
    """

    takes_mean = False

    def __call__(self, uploads, weights):
        return Merged(truncated(stacked(uploads, weights), largest_rank(uploads)), {})

    def merge(self, server, uploads, weights):
        # as many directions as the largest client has, whoever came this time
        return self([resized(upload, max(server.ranks)) for upload in uploads], weights)


class HetLoRA(FedIT):
    """HetLoRA (Cho et al., arXiv 2401.06432). Adapters padded with zeros to the largest rank and averaged. Not exact.

    Down: A, B cut to r_k. Up: A_k, B_k. r_k (in + out) numbers each way. Clients count by the norm of their change
    B_k A_k besides p_k. Between rounds `pruned` may lower a client's rank.
    """

    takes_mean = False
    idle_share = 0.01  # of the weight of all terms: the last ones that hold less are pruned

    def __call__(self, uploads, weights):
        # weigh by the norm of each client's change
        squares = [[square_norm(a, b) for a, b in factors(u).values()] for u in uploads]
        norms = [sum(square) ** 0.5 for square in squares]
        if any(norms):
            weights = [weight * norm for weight, norm in zip(weights, norms, strict=True)]
        weights = [weight / sum(weights) for weight in weights]
        # pad to the largest rank, and average
        largest = largest_rank(uploads)
        return Merged(mean([resized(upload, largest) for upload in uploads], weights), {})

    def merge(self, server, uploads, weights):
        # Rows that nobody sent, since whoever has them is away, keep their A, with B zero. Were both zero, neither
        # would ever have a gradient again.
        rank, number = max(server.ranks), largest_rank(uploads)
        merged = factors(resized(self(uploads, weights).adapter, rank))
        kept_rows = factors(resized(server.adapter, rank))
        kept = {
            layer: (torch.cat([a[:number], kept_rows[layer][0][number:].to(a)]), b)
            for layer, (a, b) in merged.items()
        }
        return Merged(adapter_of(kept), {})

    def settle(self, server, uploads):
        for client, upload in uploads.items():
            # rows that began at zero this round have not had their chance
            if not server.learned_rank or largest_rank([upload]) <= server.learned_rank:
                server.ranks[client] = pruned(upload, self.idle_share)
        server.learned_rank = largest_rank(uploads.values())


class FedEx(FedIT):
    """FedEx-LoRA (Singhal et al., arXiv 2410.09432). A and B as FedIT; what the mean misses goes into W0: exact.

    Up: A_k, B_k. Down: A, B and the residual as factors of its rank, at most (K - 1) r: K r (in + out) numbers. Who
    missed rounds gets all their residuals.
    """

    takes_mean = False
    has_merges = True

    def __call__(self, uploads, weights):
        average = mean(uploads, weights)
        residual = stacked([*uploads, average], [*weights, -1.0])
        rank = (len(uploads) - 1) * largest_rank([average])
        return Merged(average, truncated(residual, rank) if rank else {})


class LoRAFair(FedIT):
    """LoRA-FAIR (Bian et al., arXiv 2411.14961) in a ridge form of ours: A as FedIT, B corrected towards the mean.

    B' = B + (D - B A) A^T (A A^T + ridge mean(diag(A A^T)) I)^-1 with D = sum_k p_k B_k A_k, which stays factored; the
    paper fits the correction by a similarity measure instead. Down: A, B'. Up: A_k, B_k. r (in + out) numbers each way.
    """

    takes_mean = False
    ridge = 1e-2

    def __call__(self, uploads, weights):
        pairs, corrected = [factors(upload) for upload in uploads], {}
        for layer, (a, b) in factors(mean(uploads, weights)).items():
            a, b = a.double(), b.double()
            # D A^T (out, r): the wanted change, seen through A
            through_a = sum(
                weight * pair[layer][1].double() @ (pair[layer][0].double() @ a.T)
                for pair, weight in zip(pairs, weights, strict=True)
            )
            # solve for the correction with a ridge
            gram = a @ a.T  # (r, r)
            ridge = self.ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
            correction = torch.linalg.solve(gram + ridge, (through_a - b @ gram).T).T
            corrected[layer] = (a, b + correction)
        return Merged(adapter_of(corrected), {})


class FedSB(FedIT):
    """Fed-SB (Singhal et al., arXiv 2502.15436). W0 + B R A with A, B fixed for good and only R (r, r) trained: exact.

    Before round 1, up: the gradient of W0, dense, once; down: A and B, from the SVD of its mean (see `frame`), once a
    client. Then down: R, up: R_k, r^2 numbers each way, whatever the size of the model. R starts at zero, where the
    paper starts from a first step.
    """

    has_merges = True  # A and B
    has_setup = True

    def sends(self, server_round):
        return "B"  # R stands in B's place

    def set_up(self, server, gradients, rank):
        """Fix A and B by the mean gradients {layer: (out, in)}; R is zero."""
        server.merges = [frame(gradients, rank)]
        pairs = factors(server.merges[0])
        server.adapter = {
            layer + CORE: torch.zeros(len(a), len(a)) for layer, (a, _) in pairs.items()
        }

    def origin(self, server, seat):
        return server.adapter

    def whole(self, server, upload):
        """W0's change by B R A as an adapter: A, and B R in B's place."""
        pairs = factors(server.merges[0])
        return adapter_of({layer: (a, b @ upload[layer + CORE]) for layer, (a, b) in pairs.items()})

    def model(self, server):
        return self.whole(server, server.adapter)

    def receive(self, arrays, memory, start, seat):
        return tensors_of(memory[MERGED]), arrays

    @torch.no_grad()
    def load(self, unet, adapter, trains, alpha, merged, pristine):
        for name, layer in lora_layers(unet):
            if not isinstance(layer.lora_B["default"], WithCore):
                layer.lora_B["default"] = WithCore(layer.lora_B["default"])
            layer.lora_B["default"].core.copy_(trains[name + CORE])
        load_adapter(unet, adapter, alpha, train="")


fedit, ffa, fedsa, rolora, flora = FedIT(), FFALoRA(), FedSA(), RoLoRA(), FLoRA()
flexlora, hetlora, fedex, lora_fair, fed_sb = FlexLoRA(), HetLoRA(), FedEx(), LoRAFair(), FedSB()
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
