"""One iteration of the U-shaped split GAN: clients stacked, over one forward and one optimiser per client and segment.

    python tests/benchmarks/bench_split.py           # some minutes

The second is how HuSCF-GAN's published code does it (arXiv 2507.12979), written anew here. Both are plain torch in one
process, without messages, on one thread; same nets, batches, cuts (the exact optimum for the seven device profiles,
dealt in turn) and BatchNorm: client blocks per client, server blocks over all clients. Every repeat times one after the
other, in CPU seconds; the result is the median of the repeats' ratios. Before the clock starts both train from the same
weights and must end alike.
"""

import argparse
import os
import time

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

from fedgen_lab.split.cuts import parse_cuts  # noqa: E402
from fedgen_lab.split.local import BETAS, adversarial_loss, new_adam  # noqa: E402
from fedgen_lab.split.nets import SIZES, new_discriminator, new_generator, run_blocks  # noqa: E402
from fedgen_lab.split.stacked import stack  # noqa: E402

NUM_CLIENTS = 8
LEARNING_RATE = 2e-4
NEW_NETS = {"g": new_generator, "d": new_discriminator}


def copy_of(blocks, size, net):
    """Blocks with the same weights, of their own."""
    copy = NEW_NETS[net](size, 0)
    copy.load_state_dict(blocks.state_dict())
    return copy.to(next(blocks.parameters()).dtype)


class OneByOne:
    """The original's way. Each net is a head, body and tail; each client has its own head and tail, and optimisers."""

    def __init__(self, size, cuts, start):
        self.bits = {"g": [cut[:2] for cut in cuts], "d": [cut[2:] for cut in cuts]}
        self.server, self.heads, self.tails, self.adams = {}, {}, {}, {}
        for net, blocks in start.items():
            own = [copy_of(blocks, size, net) for _ in cuts]
            self.server[net] = copy_of(blocks, size, net)[1:4]
            self.heads[net] = [
                b[: 1 + first] for b, (first, _) in zip(own, self.bits[net], strict=True)
            ]
            self.tails[net] = [
                b[4 - third :] for b, (_, third) in zip(own, self.bits[net], strict=True)
            ]
            self.adams[net] = [
                torch.optim.Adam(segment.parameters(), LEARNING_RATE, BETAS)
                for segment in (*self.heads[net], *self.tails[net], self.server[net])
            ]

    def forward(self, net, inputs):
        """inputs: one tuple a client -> one tensor a client."""
        first, second, third = self.server[net]
        sent = [
            run_blocks(head, *given) for head, given in zip(self.heads[net], inputs, strict=True)
        ]
        todo = [i for i, (bit, _) in enumerate(self.bits[net]) if not bit]
        if todo:
            done = first(torch.cat([sent[i] for i in todo])).split(len(sent[0]))
            for i, part in zip(todo, done, strict=True):
                sent[i] = part
        body = list(second(torch.cat(sent)).split(len(sent[0])))
        todo = [i for i, (_, bit) in enumerate(self.bits[net]) if not bit]
        if todo:
            done = third(torch.cat([body[i] for i in todo])).split(len(body[0]))
            for i, part in zip(todo, done, strict=True):
                body[i] = part
        return [run_blocks(tail, given) for tail, given in zip(self.tails[net], body, strict=True)]

    def iterate(self, pictures, labels, z):
        """One iteration on tensors with a first axis for the client; returns both losses."""
        fakes = self.forward("g", list(zip(z, labels, strict=True)))
        for adam in self.adams["d"]:
            adam.zero_grad()
        on_fakes = self.loss([fake.detach() for fake in fakes], labels, real=False)
        on_fakes.backward()
        on_real = self.loss(pictures, labels, real=True)
        on_real.backward()
        for adam in self.adams["d"]:
            adam.step()
        for adam in self.adams["g"]:
            adam.zero_grad()
        g_loss = self.loss(fakes, labels, real=True)
        g_loss.backward()
        for adam in self.adams["g"]:
            adam.step()
        return (on_fakes + on_real).item(), g_loss.item()

    def loss(self, pictures, labels, real):
        logits = self.forward("d", list(zip(pictures, labels, strict=True)))
        return sum(adversarial_loss(one, real) for one in logits)


class Stacked:
    """Our way: every client block is one stack over the clients that hold it, with one optimiser a net."""

    def __init__(self, size, cuts, start):
        bits = np.array(cuts, dtype=bool)  # (clients, 4)
        self.held, self.clients, self.server, self.adams = {}, {}, {}, {}
        for net, blocks in start.items():
            columns = (
                {1: bits[:, 0], 3: bits[:, 1]} if net == "g" else {1: bits[:, 2], 3: bits[:, 3]}
            )
            self.held[net] = {block: held.tolist() for block, held in columns.items()}
            counts = [len(cuts), columns[1].sum(), 0, columns[3].sum(), len(cuts)]
            self.clients[net] = nn.ModuleList(
                stack([block] * int(n)) if n else nn.Identity()
                for block, n in zip(blocks, counts, strict=True)
            )
            self.server[net] = copy_of(blocks, size, net)[1:4].to(memory_format=torch.channels_last)
            self.adams[net] = new_adam([self.clients[net], self.server[net]], LEARNING_RATE)

    def forward(self, net, *inputs):
        """(N, B, ...) -> (N, B, ...). In the middle, a list of one tensor a client, or all clients as one batch."""
        clients, (first, second, third) = self.clients[net], self.server[net]
        xs = on_either_side(clients[0].one_by_one(*inputs), self.held[net][1], clients[1], first)
        x = second(one_batch(xs))
        if not any(self.held[net][3]):
            x = third(x)  # nobody holds it: no need to part the clients
        xs = list(x.split(inputs[0].shape[1]))
        if any(self.held[net][3]):
            xs = on_either_side(xs, self.held[net][3], clients[3], third)
        return torch.stack(clients[4].one_by_one(xs))

    def iterate(self, pictures, labels, z):
        """One iteration on tensors with a first axis for the client; returns both losses."""
        discriminator = [*self.clients["d"].parameters(), *self.server["d"].parameters()]
        fakes = self.forward("g", z, labels)
        self.adams["d"].zero_grad()
        d_loss = adversarial_loss(self.forward("d", fakes.detach(), labels), real=False)
        d_loss = d_loss + adversarial_loss(self.forward("d", pictures, labels), real=True)
        d_loss.backward()
        self.adams["d"].step()
        self.adams["g"].zero_grad()
        for parameter in discriminator:
            parameter.requires_grad_(False)
        g_loss = adversarial_loss(self.forward("d", fakes, labels), real=True)
        g_loss.backward()
        for parameter in discriminator:
            parameter.requires_grad_(True)
        self.adams["g"].step()
        return d_loss.item(), g_loss.item()


def one_batch(xs):
    """All clients' pictures in one batch, channels last where they have channels."""
    return torch.cat(xs).contiguous(memory_format=torch.channels_last)


def on_either_side(xs, held, stacked, server):
    """The block at each client that holds it, and on the server for the others."""
    ours, theirs = (
        [x for x, h in zip(xs, held, strict=True) if h == side] for side in (False, True)
    )
    ours = iter(server(one_batch(ours)).split(len(xs[0])) if ours else ())
    theirs = iter(stacked.one_by_one(theirs) if theirs else ())
    return [next(theirs if h else ours) for h in held]


def batch_of(size, batch_size, dtype=torch.float32, seed=0):
    """Pictures (N, B, C, H, W), labels (N, B), z (N, B, Z)."""
    draw = torch.Generator().manual_seed(seed)
    pictures = (
        torch.rand(NUM_CLIENTS, batch_size, *size.picture, generator=draw, dtype=dtype) * 2 - 1
    )
    labels = torch.randint(size.num_labels, (NUM_CLIENTS, batch_size), generator=draw)
    return (
        pictures,
        labels,
        torch.randn(NUM_CLIENTS, batch_size, size.z_dim, generator=draw, dtype=dtype),
    )


def both_ways(size, cuts, dtype=torch.float32):
    """(OneByOne, Stacked) from the same weights."""
    start = {net: new(size, 1).to(dtype) for net, new in NEW_NETS.items()}
    return OneByOne(size, cuts, start), Stacked(size, cuts, start)


def assert_alike(size, cuts):
    """Two iterations in double precision: both ways make the same fakes and losses."""
    plain, stacked = both_ways(size, cuts, torch.float64)
    for seed in range(2):
        batch = batch_of(size, 4, torch.float64, seed)
        np.testing.assert_allclose(plain.iterate(*batch), stacked.iterate(*batch), rtol=1e-9)
    pictures, labels, z = batch_of(size, 4, torch.float64, 2)
    fakes = torch.stack(plain.forward("g", list(zip(z, labels, strict=True))))
    torch.testing.assert_close(stacked.forward("g", z, labels), fakes, rtol=1e-8, atol=1e-8)


def cpu_seconds(work):
    """The CPU seconds that `work()` takes in this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def speedup(size, batch_size, iterations, repeats):
    """(repeats, 2) CPU seconds of an iteration: one by one, and stacked."""
    cuts = parse_cuts("optimum", NUM_CLIENTS, size, batch_size)
    assert_alike(size, cuts)
    ways, batch = both_ways(size, cuts), batch_of(size, batch_size)
    for way in ways:
        way.iterate(*batch)

    def several(way):
        for _ in range(iterations):
            way.iterate(*batch)

    seconds = []
    for _ in range(repeats):
        seconds.append([cpu_seconds(lambda w=way: several(w)) / iterations for way in ways])
        print("one by one {:.4f} s, stacked {:.4f} s".format(*seconds[-1]), flush=True)
    return cuts, np.array(seconds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("reference", "lab"))
    parser.add_argument("--repeats", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name, size, batch_size, iterations, repeats in (
        ("lab", "lab14", 16, 5, 11),
        ("reference", "reference", 64, 1, 7),
    ):
        if arguments.only in (None, name):
            cuts, seconds = speedup(
                SIZES[size], batch_size, iterations, arguments.repeats or repeats
            )
            plain, stacked = np.median(seconds, axis=0)
            ratios = np.sort(seconds[:, 0] / seconds[:, 1])
            print("cuts", " ".join("".join(map(str, cut)) for cut in cuts))
            print(
                f"{name}: one by one {plain:.4f} s, stacked {stacked:.4f} s; ratios {ratios.round(2)}",
                flush=True,
            )
            print(f"RESULT split_speedup_{name} {np.median(ratios):.2f}", flush=True)
