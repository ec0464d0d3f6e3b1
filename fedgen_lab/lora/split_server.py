"""The edge server in split training of the UNet: a copy of the blocks behind the cut per client, and the rounds.

`split_step` has the method. A client that errs, goes away or sends what can't be right is named and left out of the
round; the others go on, because nobody's copy depends on anybody else's. SplitFed: Thapa et al., arXiv 2004.12088.
"""

import math
from dataclasses import replace

import pandas as pd
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedgen_lab.federation.averages import change_of, norm, weighted_mean
from fedgen_lab.federation.clients import Clients, checked
from fedgen_lab.federation.protocol import advance, packed
from fedgen_lab.federation.run import run_app
from fedgen_lab.federation.saving import keep_result, tried_path
from fedgen_lab.lora.adapter import load_trainable, trainable_state
from fedgen_lab.lora.device import Base
from fedgen_lab.lora.export import provenance_of, save_result
from fedgen_lab.lora.federated import Outcome
from fedgen_lab.lora.local import denoising_loss, new_adam, noised_batch
from fedgen_lab.lora.split_client import split_client_app
from fedgen_lab.lora.split_step import edge_steps
from fedgen_lab.lora.split_unet import EdgeHalf, on_device, smashed_on_meta
from fedgen_lab.scenario import Scenario

TIMEOUT_SECONDS = 300.0  # that an exchange waits for a client
JOIN_SECONDS = 60.0  # to wait until all clients are there
NOT_HERE = (  # knobs of aggregation by uploads, which split training does not have
    "rule",
    "ranks",
    "upload",
    "select",
    "deadline_seconds",
    "buffer",
    "clip",
    "noise_multiplier",
    "sample_clip",
    "sample_noise",
    "epsilon_budget",
    "defence",
    "attackers",
    "secure",
    "precision",
)


def split_server_app(keep=None):
    """The edge's half, with a copy of its blocks per client.

    `keep(SplitServer)` gets the server before the run begins, so that its state survives a stop. Run config "save-to":
    a safetensors file, as in `lora_server_app`.
    """
    app = ServerApp()

    @app.main()
    def train_behind_the_cut(grid: Grid, context: Context) -> None:
        scenario = Scenario.from_run_config(context.run_config)
        path = tried_path(context.run_config)
        check_knobs(scenario)
        server = SplitServer(scenario, grid)
        if keep is not None:
            keep(server)
        try:
            server.try_out()
            for _ in range(scenario.rounds):
                server.train_round()
                server.try_out()
        finally:  # also after a stop: what was averaged so far is kept
            origin = provenance_of(scenario, max(len(server.losses) - 1, 0))
            alpha = scenario.lora_alpha  # which no half has folded into its B
            keep_result(lambda file: save_result(server.state, file, origin, alpha), path)

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
    """The edge server. `state`: the trainable parameters of the whole UNet as last averaged; `losses` of the run so
    far; `client_states`: partition id -> both halves as that client left them in the last round."""

    def __init__(self, scenario, grid):
        self.scenario = scenario
        self.grid = grid
        self.base = Base(scenario, folder="")
        unet, cut = self.base.unet, scenario.cut
        self.half = EdgeHalf(unet, cut)
        self.state = trainable_state(unet)
        self.round = 0
        self.losses = []
        self.client_states = {}
        self.clients = Clients(scenario.num_clients)
        self.copies = {}  # node id -> its copy of the edge's half: {name: parameter}
        self.edges = {}  # node id -> that copy's side of the steps
        self.pictures = {}  # node id -> how many it trains on
        # What belongs into each kind of answer: {name: a tensor of that shape and type}.
        batch = noised_batch(
            self.base.schedule, self.base.held_out(), scenario.batch_size, torch.Generator()
        )
        noisy, _, text, _ = batch
        is_device = on_device(unet, cut)
        self.expected = {
            "smashed": {**smashed_on_meta(unet, cut, batch), "text": text},
            "guess": {"guess": noisy},
            "weights": {name: p for name, p in self.state.items() if is_device(name)},
        }

    def train_round(self):
        """One round with every client that is connected; who fails in it is named and left out until the next."""
        self.round += 1
        nodes = self.clients.connected(self.grid, self.round, JOIN_SECONDS)

        # Each copy at the edge begins with the last blocks as last averaged.
        for node in nodes:
            copy = {
                name: value.to(self.base.unet.device, copy=True).requires_grad_()
                for name, value in self.state.items()
                if name not in self.expected["weights"]
            }
            self.copies[node] = copy
            adam = new_adam(copy.values(), self.scenario.rate)
            self.edges[node] = edge_steps(self.half, copy, adam)
            advance(self.edges[node])

        # Each device gets the first ones. Then guesses and gradients cross, step after step.
        first_blocks = {name: self.state[name] for name in self.expected["weights"]}
        down = [(None, node, first_blocks) for node in nodes]
        down = self._exchange("start", down, "smashed")
        for step in range(1, self.scenario.local_steps + 1):
            kind = "smashed" if step < self.scenario.local_steps else "weights"
            down = self._exchange("loss", down, "guess")
            down = self._exchange("learn", down, kind)
        self._average(down)

    def try_out(self):
        """The held-out loss of the present state."""
        unet = self.base.unet
        load_trainable(unet, self.state)
        losses = denoising_loss(unet, self.base.schedule, self.base.held_out(), self.scenario.seed)
        self.losses.append(float(losses.mean()))

    def _exchange(self, action, down, kind):
        """Messages [(partition id, node id, what goes down)] and what the edge makes of each answer, in the same form.

        kind: of the answers, a key of `expected`. To "weights" it adds the last blocks: the whole state of that client.
        An answer that can't be right is refused.
        """
        messages = {}
        for _, node, message in down:
            tensors, numbers = packed(message)
            config = {"server-round": self.round, "go-on": kind != "weights", **numbers}
            content = RecordDict({"tensors": tensors, "config": ConfigRecord(config)})
            messages[node] = Message(content, node, f"train.{action}")

        def check(node, content):
            metrics = content["metrics"]
            numbers = {"num-examples": metrics["num-examples"]}
            if action == "learn":
                numbers["norm"] = metrics["norm"]
            for name, number in numbers.items():
                if not 0 <= number < math.inf:
                    raise ValueError(f"gave {name!r} as {number!r}")
            self.pictures[node] = numbers.pop("num-examples")
            arrays = checked(content["tensors"], self.expected[kind])
            tensors = {
                name: torch.from_numpy(array).to(self.base.unet.device)
                for name, array in arrays.items()
            }
            answer = advance(self.edges[node], {**tensors, **numbers})
            if kind != "weights":
                return answer
            whole = {**tensors, **self.copies[node]}
            return {name: whole[name].detach().cpu().numpy() for name in self.state}

        return self.clients.exchange(
            self.grid, self.round, messages, TIMEOUT_SECONDS, check, action
        )

    def _average(self, answers):
        """Both halves averaged over clients, weighted by their pictures; a change out of all proportion is left out.

        answers: [(partition id, node id, state)].
        """
        start = {name: value.numpy() for name, value in self.state.items()}
        changes = [norm(change_of(state, start)) for *_, state in answers]
        answers = self.clients.without_giants(self.round, answers, changes)
        self.client_states = {client: _tensors(state) for client, _, state in answers}

        pictures = [self.pictures[node] for _, node, _ in answers]
        if not sum(pictures):
            reason = "No client sent a usable update; the model stays as it was."
            self.clients.refuse(self.round, "everyone", reason)
            return
        states = [state for *_, state in answers]
        self.state = _tensors(weighted_mean(self.round, start, states, pictures))


def run_split(scenario, cut):
    """Split training in this process, on a `LabGrid`: the same kind of `Outcome` as `run_federated` gives.

    cut: one of `split_unet.cuts`, for example "down_blocks.0". Raises ValueError for another.
    """
    scenario, servers = replace(scenario, cut=cut), []
    run = run_app(
        split_server_app(servers.append),
        split_client_app(),
        scenario.num_clients,
        scenario.to_run_config(),
    )
    (server,) = servers
    return Outcome(
        scenario=scenario,
        method=f"split after {cut}",
        rounds=pd.DataFrame({"round": range(len(server.losses)), "loss": server.losses}),
        state=server.state,
        client_states=server.client_states,
        trace=run.trace,
        refused=tuple(server.clients.refused),
    )


def _tensors(state):
    return {name: torch.from_numpy(array) for name, array in state.items()}
