"""Federated Split GAN: a generator on the server, and on every client a discriminator cut over its own devices.

Lab 07. After the published notebook of Kortoci, Liang and others (FSL-GAN, dcsfgan_3parts.ipynb), of which we read
enough to name its parts: generator on the server, the discriminator in three parts on up to three devices of one
client, every part averaged over the clients after a round, evenly. Ours are: each client gets fakes of its own in every
iteration; the three parts are block 0, blocks 1 and 2, and blocks 3 and 4; every client has its three devices; and the
server takes the mean of the clients' gradients, where the notebook adds them, which Adam hardly notices. What passes
between one client's devices stays in its own network: not a message, but counted, as "lan-bytes" in the answers.
"""

from functools import partial

import torch
from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from fedgen_lab.split.clusters import aggregate
from fedgen_lab.split.nets import run_blocks
from fedgen_lab.split.rivals import core, feedback
from fedgen_lab.split.scenario import GanScenario

PARTS = (slice(0, 1), slice(1, 3), slice(3, 5))  # of the discriminator's blocks, device by device
WHAT = feedback.WHAT | {"train.take": "down: the clients' discriminators, averaged; up: nothing"}


class Hand(torch.autograd.Function):
    """Hands a tensor from one device of a client to the next, and its gradient back; counts the bytes of both."""

    @staticmethod
    def forward(ctx, tensor, ledger):
        ctx.ledger = ledger
        ledger["bytes"] += tensor.numel() * tensor.element_size()
        return tensor.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.ledger["bytes"] += gradient.numel() * gradient.element_size()
        return gradient.clone(), None


def in_parts(blocks, pictures, labels, ledger):
    """The discriminator's logits (B,), part by part; ledger["bytes"] grows by what the devices hand on."""
    first, *others = (blocks[part] for part in PARTS)
    out = run_blocks(first, pictures, labels)
    for part in others:
        out = run_blocks(part, Hand.apply(out, ledger))
    return out


def client_app(dealt=None, on_step=None, keep=None):
    """The device's half: the one of MD-GAN, with a discriminator in parts. keep: see `core.recall`."""
    ledger = {"bytes": 0}

    def look(blocks, pictures, labels):
        return in_parts(blocks, pictures, labels, ledger)

    def count(message: Message, context: Context, handle) -> Message:
        ledger["bytes"] = 0
        reply = handle(message, context)
        if ledger["bytes"]:
            reply.content["metrics"]["lan-bytes"] = ledger["bytes"]
        return reply

    return feedback.client_app(dealt, on_step, keep, look, mods=[count])


def server_app(on_round=None, on_step=None, refused=None):
    """The server's half: it makes the fakes, learns from the feedback, and averages the discriminators."""
    app = ServerApp()

    @app.main()
    def train(grid: Grid, context: Context) -> None:
        scenario = GanScenario.from_run_config(context.run_config)
        feedback.serve(grid, scenario, scenario.num_clients, 0, evenly, on_round, on_step, refused)

    return app


def evenly(scenario, server_round, given):
    """Everybody goes on with the plain mean of all discriminators: {client: discriminator}."""
    (mean,) = aggregate(list(given.values()), [1 / len(given)] * len(given))
    return dict.fromkeys(given, mean)


def run(scenario, should_stop=None, on_event=None, dealt=None):
    """Train Federated Split GAN on a `LabGrid`; see `core.play`."""
    return core.play(
        scenario, server_app, partial(client_app, keep={}), WHAT, should_stop, on_event, dealt
    )
