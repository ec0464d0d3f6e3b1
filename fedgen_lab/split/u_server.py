"""The server of the U: one generator body and one discriminator body for all clients, and the rounds around them.

All clients go through the server's blocks in one batch, whatever their cuts. At the end of a round the clients hand in
their blocks, which are averaged layer by layer, within clusters once the warm-up is over. A client that errs, goes away
or sends what can't be right is named and left out, and the iteration starts again without it. Labs 06 and 07;
HuSCF-GAN, arXiv 2507.12979.
"""

import logging
from dataclasses import dataclass, field

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedgen_lab.federation.clients import Refusal, ask, content_of, gather
from fedgen_lab.federation.saving import keep_result, tried_path
from fedgen_lab.split.batch import start_nets
from fedgen_lab.split.clusters import aggregate_layers, cluster, kld_scores, scale_free, weights
from fedgen_lab.split.cuts import parse_cuts
from fedgen_lab.split.half import HOPS, segments
from fedgen_lab.split.local import new_adam
from fedgen_lab.split.scenario import GanRound, GanScenario
from fedgen_lab.split.wire import array, checked_blocks, checked_tensors

_log = logging.getLogger("flwr")
_PUBLISHED_SEED = 42  # of k-means in the published code


def u_server_app(on_round=None, on_step=None, keep=None, timeout=300.0, join_timeout=60.0):
    """The server's `ServerApp`.

    `on_round(GanRound)` and `on_step(round, iteration)` hear of the run's progress; `keep(server)` gets the `UServer`
    before it begins, so that its results survive a stop. timeout: seconds that an exchange waits for a client;
    join_timeout: seconds to wait until all clients are there. Run config "save-to" names a safetensors file for the
    generators: "client-0.4.0.weight" and so on.
    """
    app = ServerApp()

    @app.main()
    def train_through_the_u(grid: Grid, context: Context) -> None:
        scenario = GanScenario.from_run_config(context.run_config)
        path = tried_path(context.run_config)
        server = UServer(scenario, grid, timeout)
        if keep is not None:
            keep(server)
        try:
            server.meet(join_timeout)
            server.report(on_round)
            for _ in range(scenario.rounds):
                server.train_round(on_step)
                server.average()
                server.report(on_round)
            server.finish()
        except NobodyLeft as why:
            server.refuse("everyone", str(why))
        finally:
            keep_result(lambda file: save_generators(server.generators, file), path)

    return app


class NobodyLeft(Exception):
    """No client can be used any more."""


class _Lost(Exception):
    """A client was lost in the middle of an iteration."""


@dataclass
class _Client:
    node_id: int
    cut: tuple
    count: int  # pictures it holds
    state: dict  # its blocks, as last averaged
    holds: set = field(init=False)

    def __post_init__(self):
        self.holds = {name for part in segments(self.cut).values() for name in part}


class UServer:
    """The server's blocks and what it knows of the clients.

    `clients`: partition id -> client, those still there. `refused`: every `Refusal`. `round`: the round in progress.
    `groups`, `weights`, `taps`: those of the last aggregation, NaN or -1 where a client is gone.
    """

    def __init__(self, scenario, grid, timeout):
        self.scenario, self.grid, self.timeout = scenario, grid, timeout
        generator, discriminator = start_nets(scenario)
        self.blocks = {
            f"{net}.{i}": block
            for net, blocks in (("g", generator), ("d", discriminator))
            for i, block in enumerate(blocks)
        }
        bodies = {net: [self.blocks[f"{net}.{i}"] for i in (1, 2, 3)] for net in "gd"}
        self.adam = {
            net: new_adam(blocks, scenario.learning_rate) for net, blocks in bodies.items()
        }
        self.dtype = next(generator.parameters()).dtype
        self.clients, self.refused, self.round = {}, [], 0
        self.groups = self.weights = self.taps = None
        self._tap = {}

    # ---- talking to clients

    def meet(self, join_timeout):
        """Wait for the clients, and ask each who it is and how many pictures it holds."""
        wanted = self.scenario.num_clients
        node_ids = gather(self.grid, wanted, join_timeout)
        cuts = parse_cuts(
            self.scenario.cuts,
            wanted,
            self.scenario.size,
            self.scenario.batch_size,
            self.scenario.reference,
        )
        whole = self.state()
        messages = {node_id: Message(RecordDict(), node_id, "query.hello") for node_id in node_ids}
        for node_id, reply in ask(self.grid, messages, self.timeout).items():
            try:
                metrics = content_of(reply)["metrics"]
                partition, count = int(metrics["partition-id"]), int(metrics["num-examples"])
                if partition in self.clients or not 0 <= partition < wanted or count < 2:
                    raise ValueError(f"says that it is client {partition} with {count} pictures")
            except Exception as why:
                self.refuse(f"node {node_id}", f"Node {node_id} is not used: it {why}")
                continue
            cut = tuple(cuts[partition])
            self.clients[partition] = _Client(node_id, cut, count, {})
            self.clients[partition].state = _part(whole, self.clients[partition].holds)
        self.clients = dict(sorted(self.clients.items()))
        if (
            not self.scenario.num_clusters
            and not self.scenario.reference
            and wanted <= len(self.scenario.domain_names)
        ):
            _log.warning(
                "Every client has a domain of its own, which silhouettes can't find: give num_clusters."
            )
        self._some_left()

    def exchange(self, action, iteration, down=None, blocks=False, go_on=True):
        """One hop with all clients: {client: {name: tensor}} up for those down. Refuses replies that can't be right."""
        messages = {}
        for partition, client in self.clients.items():
            config = {
                "server-round": self.round,
                "iteration": iteration,
                "go-on": go_on,
                "cut": "".join(map(str, client.cut)),
            }
            content = RecordDict({"config": ConfigRecord(config)})
            if down:
                content["tensors"] = ArrayRecord(
                    {name: array(tensor) for name, tensor in down[partition].items()}
                )
            if blocks:
                content["blocks"] = ArrayRecord(client.state)
            messages[partition] = Message(content, client.node_id, f"train.{action}")
        replies, good = ask(self.grid, messages, self.timeout), {}
        for partition, client in list(self.clients.items()):
            try:
                content = content_of(replies.get(partition))
                if action == "learn_g" and not go_on:
                    good[partition] = checked_blocks(content["blocks"], client.state, self.scenario)
                elif up := HOPS[action].up:
                    batch = min(self.scenario.batch_size, client.count)
                    good[partition] = checked_tensors(
                        content["tensors"], up, client.cut, batch, self.dtype, self.scenario
                    )
            except Exception as why:  # from outside: anything can be wrong with it
                del self.clients[partition]
                self.refuse(
                    f"client {partition}",
                    f"Client {partition} is left out from now on ({action}): it {why}",
                )
        self._some_left()
        return good

    def refuse(self, client, reason):
        """Write down that a client is left out, and why."""
        self.refused.append(Refusal(self.round, client, reason))
        _log.warning("Round %d: %s", self.round, reason)

    def _some_left(self):
        if not self.clients:
            raise NobodyLeft("No client is left; the run ends with what was averaged so far.")

    # ---- an iteration

    def train_round(self, on_step=None):
        """All iterations of a round; afterwards `uploads` holds each client's blocks."""
        self.round += 1
        self._tap, heads, iteration, blocks = {}, None, 0, True
        while iteration < self.scenario.iterations:
            try:
                if heads is None:
                    heads = self.exchange("start", iteration, blocks=blocks)
                    blocks = False
                heads = self._iterate(iteration, heads)
            except _Lost:
                heads = None
                continue
            iteration += 1
            if on_step is not None:
                on_step(self.round, iteration)
        self.uploads = heads

    def _iterate(self, iteration, heads):
        def hop(action, **down):  # down: name -> {client: tensor}
            present = list(self.clients)
            got = self.exchange(
                action, iteration, {c: {name: of[c] for name, of in down.items()} for c in present}
            )
            if len(got) < len(present):
                raise _Lost
            return {name: {c: got[c][name] for c in got} for name in HOPS[action].up}

        inputs = _leaves({c: heads[c]["g_head"] for c in self.clients})
        outputs, _ = self._body("g", inputs)
        up = hop("fakes", g_body=outputs)
        fake, real = _leaves(up["d_head_fake"]), _leaves(up["d_head_real"])
        of_fake, _ = self._body("d", fake)
        of_real, middle = self._body("d", real)
        up = hop("judge", d_body_fake=of_fake, d_body_real=of_real)
        gradients = [*up["d_body_fake"].values(), *up["d_body_real"].values()]
        self._learn("d", [*of_fake.values(), *of_real.values()], gradients)
        up = hop("learn_d", d_head_fake=_gradients(fake), d_head_real=_gradients(real))
        fool = _leaves(up["d_head_fool"])
        of_fool, _ = self._body("d", fool)
        up = hop("fool", d_body_fool=of_fool)
        at_fool = torch.autograd.grad(
            [*of_fool.values()], [*fool.values()], [*up["d_body_fool"].values()]
        )
        up = hop("back_to_g", d_head_fool=dict(zip(fool, at_fool, strict=True)))
        self._learn("g", [*outputs.values()], [*up["g_body"].values()])
        self._note_tap(middle)
        down, last = (
            {c: {"g_head": x.grad} for c, x in inputs.items()},
            iteration + 1 == self.scenario.iterations,
        )
        return self.exchange("learn_g", iteration, down, go_on=not last)

    def _body(self, net, inputs):
        """All clients' activations through the server's blocks in one batch: what goes down, and block 2's output."""
        first, middle, third = (self.blocks[f"{net}.{i}"] for i in (1, 2, 3))
        place = {"g": 0, "d": 2}[net]
        rows = dict(inputs)
        rows = _through(first, rows, [c for c in rows if not self.clients[c].cut[place]])
        rows = _through(middle, rows, list(rows))
        tap = rows
        return _through(third, rows, [c for c in rows if not self.clients[c].cut[place + 1]]), tap

    def _learn(self, net, outputs, gradients):
        torch.autograd.backward(outputs, gradients)
        self.adam[net].step()
        self.adam[net].zero_grad()

    def _note_tap(self, middle):
        """The tap of each client: the middle of the discriminator on real pictures, averaged over the batch."""
        for partition, out in middle.items():
            tap = out.detach().mean(0).flatten(1)  # (C, P)
            total, times = self._tap.get(partition, (0, 0))
            last_only = self.scenario.tap == "last-batch" or self.scenario.reference
            self._tap[partition] = (tap, 1) if last_only else (total + tap, times + 1)

    # ---- the end of a round

    def average(self):
        """Average the blocks that were handed in with the server's, layer by layer; each client gets its part back."""
        scenario, present = self.scenario, list(self.clients)
        counts = [self.clients[c].count for c in present]
        taps = torch.stack([self._tap[c][0] / self._tap[c][1] for c in present])  # (N, C, P)
        groups, own, over_all = (
            np.zeros(len(present), int),
            np.zeros(len(present)),
            np.zeros(len(present)),
        )
        if self.round > scenario.warm_up:
            number = scenario.num_clusters or (
                len(scenario.domain_names) if scenario.reference else 0
            )
            seed = _PUBLISHED_SEED if scenario.reference else scenario.seed
            groups = cluster(taps.flatten(1), min(number, len(present)), seed)
            own, over_all = (kld_scores(taps, of, scenario.reference) for of in (groups, None))
            if scenario.scale_free:
                own, over_all = scale_free(own), scale_free(over_all)
        own_weights = weights(counts, own, groups, scenario.kld_alpha)
        clusters, server = aggregate_layers(
            [self.uploads[c] for c in present],
            self.state(),
            [self.clients[c].holds for c in present],
            own_weights,
            groups,
            weights(counts, over_all, None, scenario.kld_alpha),
            "cluster" if scenario.reference else scenario.batch_norm,
        )
        for name, block in self.blocks.items():
            block.load_state_dict({key: server[f"{name}.{key}"] for key in block.state_dict()})
        for c, group in zip(present, groups, strict=True):
            self.clients[c].state = {
                **self.uploads[c],
                **_part(clusters[group], self.clients[c].holds),
            }
        everyone = scenario.num_clients
        self.groups, self.weights = np.full(everyone, -1), np.full(everyone, np.nan)
        self.taps = np.full((everyone, taps[0].numel()), np.nan)
        self.groups[present], self.weights[present] = groups, own_weights
        self.taps[present] = taps.flatten(1).numpy()

    def finish(self):
        """Give each client its last blocks."""
        self.exchange("finish", self.scenario.iterations, blocks=True)

    @property
    def generators(self):
        """One whole generator's state dict per client, None for a client that is gone."""
        server, clients = self.state(), self.clients
        return [
            assemble(server, clients[c].state) if c in clients else None
            for c in range(self.scenario.num_clients)
        ]

    def report(self, on_round):
        """Tell `on_round` how things stand."""
        if on_round is not None:
            on_round(
                GanRound(
                    self.round,
                    self.scenario.rounds,
                    self.generators,
                    self.groups,
                    self.weights,
                    self.taps,
                    getattr(self.grid, "trace", None),
                )
            )

    def state(self):
        """All ten blocks by name. Of those that every client holds, such as block 0, the server has an average only."""
        return {
            f"{name}.{key}": value.detach().clone()
            for name, block in self.blocks.items()
            for key, value in block.state_dict().items()
        }


def assemble(server_state, client_state):
    """A whole generator's state dict: the server's blocks, and the client's wherever it holds one."""
    whole = {**server_state, **client_state}
    return {
        name.removeprefix("g."): tensor for name, tensor in whole.items() if name.startswith("g.")
    }


def _through(block, rows, these):
    """The tensors {client: (B, ...)}, those of `these` clients sent through a block in one batch."""
    if not these:
        return rows
    out = block(torch.cat([rows[c] for c in these])).split([len(rows[c]) for c in these])
    return {**rows, **dict(zip(these, out, strict=True))}


def _leaves(tensors):
    return {c: tensor.requires_grad_() for c, tensor in tensors.items()}


def _gradients(leaves):
    return {c: leaf.grad for c, leaf in leaves.items()}


def _part(state, holds):
    """Those tensors of a state that belong to the blocks `holds`."""
    return {name: tensor for name, tensor in state.items() if name[:3] in holds}


def save_generators(generators, path):
    """Write whole generators into one safetensors file, as "client-0.0.embedding.weight" and so on, but for None."""
    from safetensors.torch import save_file

    save_file(
        {
            f"client-{c}.{name}": tensor.clone()
            for c, state in enumerate(generators)
            if state is not None
            for name, tensor in state.items()
        },
        path,
    )
