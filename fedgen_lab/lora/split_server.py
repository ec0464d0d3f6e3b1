"""The edge server in split training of the UNet: a copy of the blocks behind the cut per client, and the rounds.

`split_step` has the method. A client that errs, goes away or sends what can't be right is named and left out of the
round; the others go on, because nobody's copy depends on anybody else's. SplitFed: Thapa et al., arXiv 2004.12088.
"""

import logging
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedgen_lab.federation.averages import change_of, norm, weighted_mean
from fedgen_lab.federation.clients import Refusal, ask, checked, content_of, gather
from fedgen_lab.federation.protocol import advance, packed
from fedgen_lab.federation.run import run_app
from fedgen_lab.lora.adapter import load_trainable, save_state, trainable_state
from fedgen_lab.lora.federated import Outcome, RoundDone
from fedgen_lab.lora.local import denoising_loss, new_adam
from fedgen_lab.lora.split_client import lora_task, split_client_app
from fedgen_lab.lora.split_step import edge_step
from fedgen_lab.lora.split_unet import EdgeHalf, on_device, smashed_shapes
from fedgen_lab.scenario import Scenario

_log = logging.getLogger("flwr")
TIMEOUT_SECONDS = 300.0  # that an exchange waits for a client
JOIN_SECONDS = 60.0  # to wait until all clients are there
TOO_LARGE = 100  # times the median of the clients' changes: left out
NOT_HERE = (  # knobs of aggregation by uploads, which split training does not have
    "rule",
    "ranks",
    "upload",
    "select",
    "deadline_seconds",
    "buffer",
    "clip",
    "noise_multiplier",
    "defence",
    "attackers",
    "secure",
    "precision",
)


def split_server_app(on_round=None, keep=None):
    """The edge's half, with a copy of its blocks per client.

    `on_round(RoundDone)` hears of every round; `keep(SplitServer)` gets the server before the run begins, so that its
    state survives a stop. Run config "save-to": a safetensors file for the final parameters.
    """
    app = ServerApp()

    @app.main()
    def train_behind_the_cut(grid: Grid, context: Context) -> None:
        scenario = Scenario.from_run_config(context.run_config)
        check_knobs(scenario)
        server = SplitServer(lora_task(scenario), scenario, grid)
        if keep is not None:
            keep(server)
        server.try_out(on_round)
        gather(grid, scenario.num_clients, JOIN_SECONDS)
        try:
            for _ in range(scenario.rounds):
                server.train_round()
                server.try_out(on_round)
        finally:  # also after a stop: what was averaged so far is kept
            save_state(server.state, context.run_config)

    return app


def check_knobs(scenario):
    """Raises ValueError for a knob that split training does not have and that isn't at its default."""
    for name in NOT_HERE:
        default, value = getattr(Scenario, name), getattr(scenario, name)
        if value != default:
            raise ValueError(
                f"Split training knows no {name}={value!r}; leave it at {default!r}, or leave cut empty."
            )


class SplitServer:
    """The edge server. `state`: the trainable parameters of the whole UNet as last averaged; `losses` and `refused` of
    the run so far; `client_states`: partition id -> both halves as that client left them in the last round."""

    def __init__(self, task, scenario, grid):
        unet, cut = task.unet, scenario.cut
        self.task = task
        self.scenario = scenario
        self.grid = grid
        self.place = next(unet.parameters()).device
        self.half = EdgeHalf(unet, cut)
        self.is_device = on_device(unet, cut)  # a parameter's name -> whether it is the device's
        self.state = trainable_state(unet)
        self.held_out = task.held_out()
        self.round = 0
        self.losses = []
        self.refused = []
        self.client_states = {}
        # Node id -> partition id. A LabGrid knows them; on other engines clients say who they are.
        self.names = dict(getattr(grid, "partitions", {}))
        self.metrics = {}  # node id -> the numbers of its last answer
        self.silent = set()  # nodes that did not answer in time
        # What belongs into each kind of answer: {name: a tensor of that shape and type}.
        latents = (scenario.batch_size, *self.held_out.latents.shape[1:])
        text = (scenario.batch_size, *self.held_out.text.shape[1:])
        smashed = {**smashed_shapes(unet, cut, latents, text), "text": text}
        self.expected = {
            "smashed": {name: torch.empty(shape, device="meta") for name, shape in smashed.items()},
            "guess": {"guess": torch.empty(latents, device="meta")},
            "weights": {name: p for name, p in self.state.items() if self.is_device(name)},
        }

    def train_round(self):
        """One round with every client that is connected; who fails in it is named and left out until the next."""
        self.round += 1

        # Each device gets the first blocks as last averaged; each copy at the edge begins with the last ones.
        weights = {name: p for name, p in self.state.items() if self.is_device(name)}
        nodes = [node for node in self.grid.get_node_ids() if node not in self.silent]
        up = self._exchange("start", dict.fromkeys(nodes, weights), "smashed")
        copies = {node: self._new_copy() for node in up}

        for step in range(1, self.scenario.local_steps + 1):
            is_last = step == self.scenario.local_steps
            edges = {node: edge_step(self.half, *copies[node]) for node in up}
            for edge in edges.values():
                advance(edge)
            up = self._exchange("loss", self._advance(edges, up), "guess")
            down = self._advance(edges, up)
            up = self._exchange("learn", down, "weights" if is_last else "smashed")
            self._advance(edges, {node: {"norm": self.metrics[node]["norm"]} for node in up})

        # Both halves of every client that came so far.
        whole = {node: {**first_blocks, **copies[node][0]} for node, first_blocks in up.items()}
        self._average(whole)

    def try_out(self, on_round):
        """The held-out loss of the present state, and pictures for who listens."""
        unet, scenario = self.task.unet, self.scenario
        load_trainable(unet, self.state)
        losses = denoising_loss(unet, self.task.schedule, self.held_out, scenario.seed)
        self.losses.append(float(losses.mean()))
        if on_round is not None:
            pictures, trace = self.task.strip(), getattr(self.grid, "trace", None)
            on_round(
                RoundDone(self.round, scenario.rounds, self.losses[-1], pictures, self.state, trace)
            )

    def _new_copy(self):
        """The blocks behind the cut for one client: {name: parameter}, and their optimiser."""
        weights = {
            name: value.to(self.place, copy=True).requires_grad_()
            for name, value in self.state.items()
            if not self.is_device(name)
        }
        return weights, new_adam(weights.values(), self.scenario.rate)

    def _advance(self, edges, up):
        """Hand each copy at the edge what its device sent: {node: what it sends back}."""
        down = {}
        for node, message in up.items():
            try:
                down[node] = advance(edges[node], message)
            except ValueError as why:
                self._refuse(node, f"is left out of round {self.round}: {why}")
        return down

    def _exchange(self, action, down, kind):
        """One message to each node; {node: tensors} of the answers that can be right, each of this `kind`."""
        messages = {}
        for node, message in down.items():
            tensors, numbers = packed(message)
            config = {
                "server-round": self.round,
                "go-on": kind != "weights",
                "norm": 0.0,
                **numbers,
            }
            record = "weights" if action == "start" else "tensors"
            content = RecordDict({record: tensors, "config": ConfigRecord(config)})
            messages[node] = Message(content, node, f"train.{action}")
        replies = ask(self.grid, messages, TIMEOUT_SECONDS)
        self.silent |= messages.keys() - replies.keys()

        up = {}
        for node in messages:
            try:
                up[node] = self._checked(node, content_of(replies.get(node)), kind, action)
            except Exception as why:  # from outside: anything can be wrong with it
                self._refuse(node, f"is left out of round {self.round} (train.{action}): it {why}")
        return dict(sorted(up.items(), key=lambda answer: self.names.get(answer[0], math.inf)))

    def _checked(self, node, content, kind, action):
        """The tensors of an answer. Raises an error when they, or the numbers beside them, can't be right."""
        metrics = dict(content["metrics"])
        self.names.setdefault(node, int(metrics["partition-id"]))
        required = ["num-examples"]
        if action == "learn":
            required.append("norm")
        for name in required:
            if not 0 <= metrics[name] < math.inf:
                raise ValueError(f"gave {name!r} as {metrics[name]!r}")
        self.metrics[node] = metrics
        record = "weights" if kind == "weights" else "tensors"
        arrays = checked(content[record], self.expected[kind])
        return {name: torch.from_numpy(array).to(self.place) for name, array in arrays.items()}

    def _average(self, states):
        """Both halves averaged over clients, weighted by their pictures; a change out of all proportion is left out."""
        start = {name: value.numpy() for name, value in self.state.items()}
        states = {
            node: {name: state[name].detach().cpu().numpy() for name in start}
            for node, state in states.items()
        }
        changes = {node: norm(change_of(state, start)) for node, state in states.items()}
        usual = float(np.median(list(changes.values()))) if changes else 0.0
        for node, change in changes.items():
            if change > TOO_LARGE * usual:
                del states[node]
                self._refuse(
                    node,
                    f"is left out of round {self.round}: it changed by {change:.3g}, not about {usual:.3g}",
                )
        self.client_states = {self.names[node]: _tensors(state) for node, state in states.items()}

        pictures = [self.metrics[node]["num-examples"] for node in states]
        if not sum(pictures):
            reason = "No client sent a usable update; the model stays as it was."
            self.refused.append(Refusal(self.round, "everyone", reason))
            return
        self.state = _tensors(weighted_mean(self.round, start, list(states.values()), pictures))

    def _refuse(self, node, reason):
        client = f"client {self.names[node]}" if node in self.names else f"node {node}"
        self.refused.append(Refusal(self.round, client, f"{client.capitalize()} {reason}"))
        _log.warning("Round %d: %s", self.round, self.refused[-1].reason)


def run_split(scenario, cut):
    """Split training in this process, on a `LabGrid`: the same kind of `Outcome` as `run_federated` gives.

    cut: one of `split_unet.cuts`, for example "down_blocks.0". Raises ValueError for another.
    """
    scenario = replace(scenario, cut=cut)
    rounds, servers = [], []
    run = run_app(
        split_server_app(rounds.append, servers.append),
        split_client_app(),
        scenario.num_clients,
        scenario.to_run_config(),
    )
    (server,) = servers
    return Outcome(
        scenario=scenario,
        method=f"split after {cut}",
        rounds=pd.DataFrame(
            {"round": [done.round for done in rounds], "loss": [done.loss for done in rounds]}
        ),
        state=server.state,
        client_states=server.client_states,
        trace=run.trace,
        refused=tuple(server.refused),
    )


def _tensors(state):
    return {name: torch.from_numpy(array) for name, array in state.items()}
