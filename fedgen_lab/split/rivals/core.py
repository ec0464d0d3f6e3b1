"""The common core of the rivals: one device's GAN, what the device remembers of it, and how a server asks around.

Lab 07. A rival's own module holds what makes it different, and nothing else. A client keeps its nets and its
optimisers' moments in Flower's `Context.state` from message to message, so every rival also runs where each message
meets a new process; in one process a dict `keep` saves the packing and unpacking. Adam's moments are never sent.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from fedgen_lab.federation.arrays import tensors_of
from fedgen_lab.federation.clients import Refusal, ask, checked, content_of, gather
from fedgen_lab.federation.run import Stopped, listener, run_app
from fedgen_lab.split import batch
from fedgen_lab.split.batch import draw_batch, own_data, start_nets  # noqa: F401 (the rivals take it from here)
from fedgen_lab.split.latency import block_flops
from fedgen_lab.split.local import gan_step, load_moments, moments_of, new_adam
from fedgen_lab.split.run import GanStep
from fedgen_lab.split.scenario import GanOutcome, GanRound

PATIENCE_SECONDS = 300.0  # for one answer; far longer than honest work takes


class Gan(NamedTuple):
    """Both nets with their optimisers: what `gan_step` takes first."""

    generator: nn.ModuleList
    discriminator: nn.ModuleList
    g_adam: torch.optim.Adam
    d_adam: torch.optim.Adam

    def state(self, nets="gd"):
        """The tensors of the nets named: "g.<block>.<name>" and "d.<block>.<name>"."""
        both = {"g": self.generator, "d": self.discriminator}
        return {
            f"{net}.{name}": tensor
            for net in nets
            for name, tensor in both[net].state_dict().items()
        }

    def load(self, state):
        """Take over the tensors of `state`; a net it does not mention stays as it is."""
        for prefix, net in (("g.", self.generator), ("d.", self.discriminator)):
            own = {
                name.removeprefix(prefix): tensor
                for name, tensor in state.items()
                if name.startswith(prefix)
            }
            if own:
                net.load_state_dict(own)

    def optimisers(self):
        """(net, its Adam, its named parameters) of both nets."""
        return [
            ("g", self.g_adam, list(self.generator.named_parameters())),
            ("d", self.d_adam, list(self.discriminator.named_parameters())),
        ]


def start_gan(scenario):
    """The GAN that everybody starts from."""
    generator, discriminator = start_nets(scenario)
    rate = scenario.learning_rate
    return Gan(generator, discriminator, new_adam(generator, rate), new_adam(discriminator, rate))


def recall(context, scenario, keep=None):
    """This client's GAN as `remember` left it, or the one that everybody starts from.

    keep: None, or a dict in this process, client -> `Gan`, that takes the place of Flower's `Context.state`.
    """
    client = int(context.node_config["partition-id"])
    if keep is not None and client in keep:
        return keep[client]
    gan = start_gan(scenario)
    if "gan" in context.state:
        gan.load(tensors_of(context.state["gan"]))
        for net, adam, parameters in gan.optimisers():
            if f"adam.{net}" in context.state:
                load_moments(adam, parameters, tensors_of(context.state[f"adam.{net}"]))
    return gan


def remember(context, gan, nets="gd", keep=None):
    """Keep these nets and their moments for this client's next message; keep: as in `recall`."""
    if keep is not None:
        keep[int(context.node_config["partition-id"])] = gan
        return
    context.state["gan"] = ArrayRecord(gan.state(nets))
    for net, adam, parameters in gan.optimisers():
        if net in nets:
            context.state[f"adam.{net}"] = ArrayRecord(moments_of(adam, parameters))


def addressee(message, context):
    """Who a message is for and when: (scenario, client, round). Raises ValueError for a client too many."""
    return *batch.addressee(context), int(message.content["config"]["server-round"])


def local_steps(scenario, gan, pictures, labels, client, server_round, on_step=None):
    """The client's iterations of one round on its own pictures. `on_step(GanStep)` counts through all clients."""
    for iteration in range(scenario.iterations):
        gan_step(*gan, *draw_batch(scenario, pictures, labels, client, server_round, iteration))
        if on_step is not None:
            done = client * scenario.iterations + iteration + 1
            on_step(GanStep(server_round, done, scenario.num_clients * scenario.iterations))


def step_flops(scenario, count, nets="gd"):
    """Floating-point operations of one iteration on one client that holds `count` pictures, for the nets it trains."""
    work = block_flops(scenario.size, min(scenario.batch_size, count))
    of = {"g": work.generator, "d": work.discriminator}
    return float(
        sum(of[net].batches * (sum(of[net].forward) + sum(of[net].backward)) for net in nets)
    )


def answer(message, client, number, flops=0.0, **arrays):
    """A client's reply: its arrays, the number of pictures it holds, and the work it did."""
    records = {name: ArrayRecord(tensors) for name, tensors in arrays.items()}
    metrics = {"num-examples": number, "partition-id": client, "flops": float(flops)}
    return Message(RecordDict(records | {"metrics": MetricRecord(metrics)}), reply_to=message)


def to_bytes(pictures):
    """Pictures in [-1, 1] as uint8, which is how they were read. Raises ValueError for NaN and infinity."""
    if not pictures.isfinite().all():
        raise ValueError("There is NaN or infinity in the pictures; leave those out.")
    return ((pictures + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_pictures(pixels):
    """uint8 as pictures in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def new_client_app(mods=()):
    """A `ClientApp` that says who it is when a server of real nodes asks; a `LabGrid` knows. mods: Flower's."""
    app = ClientApp(mods=list(mods))

    @app.query()
    def say_who(message, context):
        return Message(
            RecordDict(
                {"metrics": MetricRecord({"partition-id": context.node_config["partition-id"]})}
            ),
            reply_to=message,
        )

    return app


class Clients:
    """The clients as their server sees them: who still takes part, in the order of partition ids, and who was refused.

    A client that answers with an error, with NaN or infinity, with arrays of other names or shapes than it should, or
    not in time is named in `refused` and not asked again. `nodes`: partition id -> node id of those who take part.
    """

    def __init__(self, grid, num_clients, refused):
        self.grid, self.refused = grid, refused
        self.nodes = _meet(grid, num_clients)

    def ask(self, action, server_round, records=lambda client: {}, expected=None, iteration=0):
        """One exchange: `records(client)` -> {name: record} go down, {client: RecordDict} come back.

        expected: {record name: {array name: tensor}}, whose names and shapes the answers must have. Raises `Stopped`
        when nobody is left.
        """
        config, sent = ConfigRecord({"server-round": server_round, "iteration": iteration}), {}
        for client, node in self.nodes.items():
            content = RecordDict({"config": config, **records(client)})
            sent[client] = Message(content, node, f"train.{action}" if action else "train")
        replies, answers = ask(self.grid, sent, PATIENCE_SECONDS), {}
        for client in sent:
            try:
                content = content_of(replies.get(client))
                for record, tensors in (expected or {}).items():
                    checked(content[record], tensors)
                answers[client] = content
            except Exception as why:  # from outside: anything can be wrong with it
                self.refuse(server_round, client, why)
        if not answers:
            self.refused.append(
                Refusal(server_round, "everyone", "No client is left; the run ended here.")
            )
            raise Stopped("No client is left.")
        return answers

    def refuse(self, server_round, client, fault):
        """Go on without this client."""
        del self.nodes[client]
        reason = f"Client {client} {fault}; the run went on without it."
        self.refused.append(Refusal(server_round, f"client {client}", reason))

    def each(self, scenario, state):
        """`state` once per client of the scenario, and None for those who are gone."""
        return [state if client in self.nodes else None for client in range(scenario.num_clients)]


def play(scenario, server_app, client_app, what, should_stop=None, on_event=None, dealt=None):
    """Run a rival in this process on a `LabGrid`: its `GanOutcome`.

    server_app, client_app: the rival's functions that make them; `what`: its `WHAT`. dealt: whose pictures the clients
    hold, else the scenario's. Raises what the server raises.
    """
    history, generators, refused = [], [], []

    def keep_round(event):
        if isinstance(event, GanRound):
            history.append(replace(event, generators=[]))
            generators[:] = event.generators

    hear = listener(keep_round, on_event, should_stop=should_stop)
    run = run_app(
        server_app(on_round=hear, on_step=hear, refused=refused),
        client_app(dealt, on_step=hear),
        scenario.num_clients,
        scenario.to_run_config(),
        should_stop,
    )
    return GanOutcome(
        scenario, list(generators), history, run.trace, run.stopped, tuple(refused), dict(what)
    )


def _meet(grid, num_clients, patience=60.0):
    """The nodes by partition id, once `num_clients` are connected or patience is over."""
    node_ids, partitions = gather(grid, num_clients, patience), getattr(grid, "partitions", None)
    if partitions is None:
        replies = ask(
            grid,
            {node: Message(RecordDict(), node, "query") for node in node_ids},
            PATIENCE_SECONDS,
        )
        partitions = {
            node: reply.content["metrics"]["partition-id"]
            for node, reply in replies.items()
            if not reply.has_error()
        }
    return dict(sorted((client, node) for node, client in partitions.items()))
