"""How long one iteration of a U-shaped split takes: work, links and waiting, for any cuts and devices.

An iteration is eight legs, each between a client and the server: the head's activations go up and the tail's come down,
for the generator and then the discriminator, and their gradients take the same way back. On each leg the server waits
for the slowest client. Labs 06 and 07. The model is the one by which HuSCF-GAN's published code (arXiv 2507.12979)
chooses its cuts. `reference=True` keeps that code's arithmetic; without it four of its slips are put right: a
transposed convolution is counted by its input, the backward pass of server block 1 by its own FLOPs, the server's
discriminator works on as many batches as the clients' (three), and link rates are bits a second.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from fedgen_lab.split.nets import NUM_BLOCKS, SIZES, new_discriminator, new_generator

SERVER_ROW = -1  # the server's number in the column `client` of a Gantt chart
BYTES = 4  # of one number: activations and gradients are float32
DISCRIMINATOR_BATCHES = (
    3  # fakes and real pictures for its own step, the fakes again for the generator's
)


ORDER = (
    ("generator", "forward"),
    ("discriminator", "forward"),
    ("discriminator", "backward"),
    ("generator", "backward"),
)


@dataclass(frozen=True)
class Device:
    """A device or the server: FLOPs a second, bits a second of its link, bytes of memory (None: as many as it takes).

    Reference mode reads the link's rate as bytes a second, which is how the published code uses its figures.
    """

    name: str
    flops_per_second: float
    bits_per_second: float
    memory_bytes: float | None = None

    def __post_init__(self):
        limits = (self.memory_bytes,) if self.memory_bytes is not None else ()
        if not all(
            0 < value < float("inf")
            for value in (self.flops_per_second, self.bits_per_second, *limits)
        ):
            raise ValueError(
                f"{self.name}: speed, link rate and memory must be positive numbers; got {self}."
            )


# HuSCF-GAN's published profiles: clock (all cores) times FLOPs a cycle, and the link's figure.
DEVICES = (
    Device("device1", 0.480e9 * 1, 50e6),
    Device("device2", 6.000e9 * 8, 150e6),
    Device("device3", 15.600e9 * 8, 1000e6),
    Device("device4", 5.720e9 * 8, 300e6),
    Device("device5", 4.000e9 * 4, 50e6),
    Device("device6", 9.000e9 * 4, 100e6),
    Device("device7", 12.000e9 * 10, 800e6),
)
SERVER = Device("server", 42e9 * 16, 1000e6)


def deal_devices(num_clients):
    """The published profiles dealt in turn: client i gets profile i mod 7."""
    return [DEVICES[client % len(DEVICES)] for client in range(num_clients)]


@dataclass(frozen=True)
class NetWork:
    """What one net costs per batch. Each is a tuple over its five blocks, or over the two values of a cut's bit.

    forward, backward: FLOPs of the blocks. outputs: bytes of each block's output. memory: bytes a device needs to train
    the block: weights, their gradients and Adam's two moments, and the activations that wait for the way back.
    batches: how many batches pass in one iteration.
    """

    forward: tuple
    backward: tuple
    outputs: tuple
    memory: tuple
    batches: int

    @property
    def head_bytes(self):
        """Bytes a batch at the upper cut, for block 1 on the server (bit 0) and on the client (bit 1)."""
        return self.outputs[0], self.outputs[1]

    @property
    def tail_bytes(self):
        """Bytes a batch at the lower cut, for block 3 on the server (bit 0) and on the client (bit 1)."""
        return self.outputs[3], self.outputs[2]


@dataclass(frozen=True)
class Work:
    """What generator and discriminator of one size cost at one batch size; see `NetWork`."""

    generator: NetWork
    discriminator: NetWork
    batch_size: int


@lru_cache
def block_flops(size, batch_size, reference=False):
    """The `Work` of the five generator and the five discriminator blocks at `size` (a `Size` or its name).

    Counted as the published code does: a multiplication and its addition are two; the way back through a convolution
    or linear layer costs twice its way forward, or as much in a net's first layer, where the inputs need no gradient.
    Per number, forward and backward: bias 1 and 1, BatchNorm 8 and 11, ReLU 1 and 2, LeakyReLU 2 and 3, Tanh 5 and 3,
    Sigmoid 3 and 2. reference: count a transposed convolution as if each output met the whole kernel.

    Raises ValueError for a size that is not known.
    """
    import torch

    if isinstance(size, str):
        if size not in SIZES:
            raise ValueError(f"size must be one of {', '.join(SIZES)}; got {size!r}.")
        size = SIZES[size]
    labels, z, pictures = (
        torch.zeros(2, dtype=torch.long),
        torch.zeros(2, size.z_dim),
        torch.zeros(2, *size.picture),
    )
    generator, discriminator = new_generator(size, 0), new_discriminator(size, 0)
    with torch.no_grad():  # two pictures stand for all; torch's "meta" device would first take two seconds to get ready
        return Work(
            _walk(generator, (z, labels), batch_size, 1, reference),
            _walk(discriminator, (pictures, labels), batch_size, DISCRIMINATOR_BATCHES, reference),
            batch_size,
        )


def iteration_bytes(cut, work):
    """Bytes one client sends in an iteration at this cut (g1, g3, d1, d3); it receives as many."""
    total = 0
    for net, head, tail in ((work.generator, *cut[:2]), (work.discriminator, *cut[2:])):
        total += net.batches * (net.head_bytes[head] + net.tail_bytes[tail])
    return total


def memory_bytes(cuts, work):
    """Bytes of memory that training takes on the client, for cuts (..., 4); see `NetWork.memory`."""
    cuts = np.asarray(cuts)
    g, d = work.generator.memory, work.discriminator.memory
    return g[0] + g[4] + d[0] + d[4] + cuts @ np.array([g[1], g[3], d[1], d[3]])


@dataclass(frozen=True)
class Leg:
    """One way between clients and server: computing and sending at the clients, and block 1 or 3 at the server.

    bit: which of a cut's four bits decides. upwards: the client computes, sends, then the server computes for those
    with bit 0; else the other way round. compute, link: seconds (2, N) for the bit's two values. server_seconds: what
    the server takes for one client with bit 0; it serves them all in one batch.
    """

    net: str
    direction: str
    bit: int
    upwards: bool
    compute: np.ndarray
    link: np.ndarray
    server_seconds: float

    def own_seconds(self):
        """(2, N) seconds that a client takes by itself with bit 0 and bit 1."""
        return self.compute + self.link

    def paths(self, bits):
        """(..., N) seconds from the leg's start until client i is through, for bits (..., N); the largest counts."""
        bits = np.asarray(bits)
        waiting = self.server_seconds * (bits == 0).sum(-1, keepdims=True)  # (..., 1)
        zero, one = self.own_seconds()
        return np.where(bits == 0, zero + waiting, one)


def iteration_legs(devices, work, reference=False, server=SERVER):
    """The eight legs of an iteration in their order, and the seconds of server block 2 after each upward leg (4,)."""
    legs, middles = [], []
    for name, direction in ORDER:
        net, bit = (work.generator, 0) if name == "generator" else (work.discriminator, 2)
        flops = getattr(net, direction)
        seconds_per_flop = (
            1 if reference else net.batches
        ) / server.flops_per_second  # a slip: one batch only
        parts = (
            (("head", 0, 1), ("tail", 4, 3))
            if direction == "forward"
            else (("tail", 4, 3), ("head", 0, 1))
        )
        for (part, outer, inner), upwards in zip(parts, (True, False), strict=True):
            on_server = flops[
                3 if reference and direction == "backward" else inner
            ]  # a slip: block 3's for block 1
            speed = np.array([device.flops_per_second for device in devices])  # (N,)
            compute = net.batches * np.outer(
                [flops[outer], flops[outer] + flops[inner]], 1 / speed
            )  # (2, N)
            rate = np.array(
                [(device if upwards else server).bits_per_second for device in devices]
            )  # (N,)
            sent = net.batches * np.array(
                net.head_bytes if part == "head" else net.tail_bytes
            )  # (2,) bytes
            link = np.outer(sent if reference else 8 * sent, 1 / rate)  # (2, N)
            which = bit if part == "head" else bit + 1
            legs.append(
                Leg(name, direction, which, upwards, compute, link, on_server * seconds_per_flop)
            )
        middles.append(flops[2] * len(devices) * seconds_per_flop)
    return legs, np.array(middles)


def iteration_seconds(cuts, devices, work, reference=False, server=SERVER):
    """Seconds of one iteration with these cuts: a list of N tuples (g1, g3, d1, d3), 1 where the client has the block.

    Also takes many choices at once, (..., N, 4) -> (...). The discriminator's three batches are counted together: as
    each leg grows linearly with them, taking two and then one gives the same sum. Not counted: optimisers, aggregation,
    and clients that share the server's link.

    Raises ValueError unless there are four bits for each device.
    """
    cuts = np.asarray(cuts)
    if cuts.shape[-2:] != (len(devices), 4):
        raise ValueError(
            f"cuts must be four bits for each of the {len(devices)} devices; got shape {cuts.shape}."
        )
    if not np.isin(cuts, (0, 1)).all():
        raise ValueError(
            "cuts must be 0 (the block is on the server) or 1 (on the client) everywhere."
        )
    legs, middles = iteration_legs(devices, work, reference, server)
    seconds = sum(leg.paths(cuts[..., leg.bit]).max(-1) for leg in legs) + middles.sum()
    return float(seconds) if seconds.ndim == 0 else seconds


def iteration_gantt(cuts, devices, work, reference=False, server=SERVER):
    """One iteration on the clock: a DataFrame with a row for each piece of work or sending.

    Columns: client (-1 is the server), net, direction ("forward" or "backward"), phase ("compute", "upload", "download"
    at a client; "block 1", "block 2", "block 3" at the server), start_seconds, end_seconds, on_critical_path. The rows
    on the critical path follow one another without a gap from 0 to `iteration_seconds`.
    """
    iteration_seconds(cuts, devices, work, reference, server)  # refuses cuts that make no sense
    cuts, rows, now = np.asarray(cuts), [], 0.0
    legs, middles = iteration_legs(devices, work, reference, server)
    for step, leg in enumerate(legs):
        bits = cuts[:, leg.bit]
        paths, waiting = leg.paths(bits), leg.server_seconds * int((bits == 0).sum())
        slowest = int(paths.argmax())
        pieces = []  # client, phase, start after `now`, seconds, on the critical path
        for client, bit in enumerate(bits):
            compute, link, critical = (
                leg.compute[bit, client],
                leg.link[bit, client],
                client == slowest,
            )
            if leg.upwards:
                pieces += [
                    (client, "compute", 0, compute, critical),
                    (client, "upload", compute, link, critical),
                ]
            else:
                start = 0 if bit else waiting
                pieces += [(client, "download", start, link, critical)]
                pieces += [(client, "compute", start + link, compute, critical)]
        if waiting:
            start = leg.own_seconds()[0][bits == 0].max() if leg.upwards else 0
            block = "block 1" if leg.bit % 2 == 0 else "block 3"
            pieces.append((SERVER_ROW, block, start, waiting, bits[slowest] == 0))
        if leg.upwards:
            pieces.append((SERVER_ROW, "block 2", paths.max(), middles[step // 2], True))
        for client, phase, start, seconds, critical in pieces:
            row = (
                client,
                leg.net,
                leg.direction,
                phase,
                now + start,
                now + start + seconds,
                bool(critical),
            )
            rows.append(row)
        now += paths.max() + (middles[step // 2] if leg.upwards else 0)
    columns = [
        "client",
        "net",
        "direction",
        "phase",
        "start_seconds",
        "end_seconds",
        "on_critical_path",
    ]
    return pd.DataFrame(rows, columns=columns).sort_values(
        "start_seconds", kind="stable", ignore_index=True
    )


def _walk(blocks, inputs, batch_size, batches, reference):
    """The `NetWork` of one net: send two pictures through it, and count at each layer what a batch would take."""
    from torch import nn

    per_number = {
        nn.BatchNorm1d: (8, 11),
        nn.BatchNorm2d: (8, 11),
        nn.ReLU: (1, 2),
        nn.LeakyReLU: (2, 3),
        nn.Tanh: (5, 3),
    }
    seen = []  # of the present block: (forward FLOPs, backward FLOPs, numbers kept for the way back)
    first = True

    def numbers_in(tensor):
        return tensor[0].numel() * batch_size

    def count(layer, given, result):
        nonlocal first
        numbers = numbers_in(result)
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            taps = layer.weight[
                0
            ].numel()  # multiplications for one output, or from one input of a transposed one
            multiplications = taps * numbers
            if isinstance(layer, nn.ConvTranspose2d):
                kernel = layer.kernel_size[0] * layer.kernel_size[1]
                multiplications = (
                    layer.in_channels * kernel * numbers
                    if reference
                    else taps * numbers_in(given[0])
                )
            backward = (2 if first else 4) * multiplications
            first = False
            seen.append((2 * multiplications + numbers, backward + numbers, numbers))
        elif type(layer) in per_number:
            forward, backward = per_number[type(layer)]
            seen.append((forward * numbers, backward * numbers, numbers))

    hooks = [
        layer.register_forward_hook(count)
        for layer in blocks.modules()
        if not list(layer.children())
    ]
    forward, backward, outputs, memory = [], [], [], []
    for block in blocks:
        seen.clear()
        out = block(*inputs)
        inputs = (out,)
        if out.ndim == 1:  # the logit's sigmoid, which the loss takes
            seen.append((3 * batch_size, 2 * batch_size, 0))
        totals = [sum(column) for column in zip(*seen, strict=True)]
        weights = sum(parameter.numel() for parameter in block.parameters())
        forward.append(totals[0])
        backward.append(totals[1])
        outputs.append(BYTES * numbers_in(out))
        # Fakes and real pictures wait for the discriminator's way back together.
        memory.append(BYTES * (4 * weights + min(batches, 2) * totals[2]))
    for hook in hooks:
        hook.remove()
    assert len(forward) == NUM_BLOCKS
    return NetWork(tuple(forward), tuple(backward), tuple(outputs), tuple(memory), batches)
