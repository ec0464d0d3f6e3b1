"""PFL-GAN: every client trains its own GAN, then goes on with fakes of the clients that are like it.

Lab 07. Wijesinghe, Zhang and Ding 2023, arXiv 2308.12454. We read its abstract: the server learns how similar clients
are, and each gets collaborators' data by that weight; nothing is averaged. Half of the rounds are spent alone, then
each client hands in its generator, once. Ours are: the generator comes with the numbers of the labels it learned, so
that the server asks it for no others; how likeness is measured (`likeness`); and that a client gets as many fakes as
it has pictures, and trains on both for the other half.
"""

from functools import partial

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message

from fedgen_lab.federation.arrays import tensors_of
from fedgen_lab.split.nets import SIZES, generate
from fedgen_lab.split.rivals import core, local
from fedgen_lab.split.rivals.likeness import likeness

WHAT = local.WHAT | {
    "train.share": "down: the word to share; up, once: the generator, and how many pictures of each label it learned",
    "train.receive": "down, once: fakes and labels, made by the generators of clients that are alike; up: nothing",
}
SAMPLE = 128  # fakes of each client to compare


def client_app(dealt=None, on_step=None, keep=None):
    """The device's half; keep: see `core.recall`."""
    app = core.new_client_app()

    @app.train("alone")
    def alone(message: Message, context: Context) -> Message:
        scenario, client, _ = core.addressee(message, context)
        pictures, labels = core.own_data(scenario, client, dealt)
        if "received" in context.state:
            more = tensors_of(context.state["received"])
            pictures = torch.cat([pictures, core.to_pictures(more["pictures"])])
            labels = torch.cat([labels, more["labels"]])
        return local.train_alone(message, context, pictures, labels, on_step, keep)

    @app.train("share")
    def share(message: Message, context: Context) -> Message:
        scenario, client, _ = core.addressee(message, context)
        _, labels = core.own_data(scenario, client, dealt)
        generator = core.recall(context, scenario, keep).state("g")
        counts = {"of": torch.bincount(labels, minlength=SIZES[scenario.size].num_labels)}
        return core.answer(message, client, len(labels), generator=generator, counts=counts)

    @app.train("receive")
    def receive(message: Message, context: Context) -> Message:
        scenario, client, _ = core.addressee(message, context)
        context.state["received"] = message.content["fakes"]
        return core.answer(message, client, len(core.own_data(scenario, client, dealt)[1]))

    return app


def exchange(scenario, clients, server_round):
    """In the middle of the run generators come up, and fakes of those alike go down."""
    if server_round != max(1, scenario.rounds // 2) or server_round == scenario.rounds:
        return
    labels = torch.zeros(SIZES[scenario.size].num_labels, dtype=torch.long)
    expected = {"generator": core.start_gan(scenario).state("g"), "counts": {"of": labels}}
    up = clients.ask("share", server_round, expected=expected)
    sent = [[tensors_of(content[name]) for name in expected] for content in up.values()]
    if len(sent) < 2:
        return
    samples = [make(scenario, *of, SAMPLE, server_round, i, 0)[0] for i, of in enumerate(sent)]
    weights, down = likeness(samples), {}
    for i, client in enumerate(up):
        draw = np.random.default_rng(scenario.seed_of(server_round, i, 1, 0))
        shares = draw.multinomial(
            int(sent[i][1]["of"].sum()), weights[i]
        )  # how many fakes each generator makes
        parts = [
            make(scenario, *sent[j], shares[j], server_round, i, j + 2)
            for j in np.flatnonzero(shares)
        ]
        pictures, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        down[client] = {
            "fakes": ArrayRecord({"pictures": core.to_bytes(pictures), "labels": labels})
        }
    clients.ask("receive", server_round, down.get)


server_app = partial(local.server_app, after=exchange)


def make(scenario, generator, counts, number, *key):
    """`number` fakes (n, C, H, W) of a generator that was sent, and labels (n,) as often as it met them."""
    nets = core.start_gan(scenario)
    nets.load(generator)
    seed = scenario.seed_of(*key, 0)
    draw = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(counts["of"].double(), int(number), replacement=True, generator=draw)
    return generate(nets.generator, labels, seed), labels


def run(scenario, should_stop=None, on_event=None, dealt=None):
    """Train PFL-GAN on a `LabGrid`; see `core.play`."""
    keep = {}
    apps = partial(server_app, keep=keep), partial(client_app, keep=keep)
    return core.play(scenario, *apps, WHAT, should_stop, on_event, dealt)
