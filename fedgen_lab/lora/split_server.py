"""The edge server in split training of the UNet: a copy of the blocks behind the cut per client, and the rounds.

`split_client` has the method. A client that errs, goes away or sends what can't be right is named and left out of the
round; the others go on, because nobody's copy depends on anybody else's. SplitFed: Thapa et al., arXiv 2004.12088.
"""

import logging
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedgen_lab.federation.exchange import ask, checked, content_of, gather
from fedgen_lab.federation.fedavg import Refusal
from fedgen_lab.federation.grid import Stopped, run_app
from fedgen_lab.lora.adapter import load_trainable, trainable_state
from fedgen_lab.lora.federated import Outcome, RoundDone
from fedgen_lab.lora.local import denoising_loss
from fedgen_lab.lora.split_client import lora_task, new_adam, split_client_app, step_clipped
from fedgen_lab.lora.split_unet import EdgeHalf, on_device, smashed_shapes
from fedgen_lab.scenario import Scenario

_log = logging.getLogger("flwr")
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


def split_server_app(on_round=None, keep=None, task_of=lora_task, timeout=300.0, join_timeout=60.0):
    """The edge's half, with a copy of its blocks per client. `on_round(RoundDone)` hears of every round;
    `keep(SplitServer)` gets the server before the run begins, so that its state survives a stop. timeout: seconds that
    an exchange waits for a client; join_timeout: seconds to wait until all clients are there. Run config "save-to": a
    safetensors file for the final parameters."""
    app = ServerApp()

    @app.main()
    def train_behind_the_cut(grid: Grid, context: Context) -> None:
        from safetensors.torch import save_file

        scenario = Scenario.from_run_config(context.run_config)
        check_knobs(scenario)
        server = SplitServer(task_of(scenario), scenario, grid, timeout)
        if keep is not None:
            keep(server)
        server.try_out(on_round)
        gather(grid, scenario.num_clients, join_timeout)
        try:
            for _ in range(scenario.rounds):
                server.train_round()
                server.try_out(on_round)
        finally:  # also after a stop: what was averaged so far is kept
            if path := context.run_config.get("save-to"):
                Path(str(path)).parent.mkdir(parents=True, exist_ok=True)
                save_file(server.state, str(path))

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

    def __init__(self, task, scenario, grid, timeout):
        cut, self.task, self.scenario, self.grid, self.timeout = (
            scenario.cut,
            task,
            scenario,
            grid,
            timeout,
        )
        self.place = next(task.unet.parameters()).device
        self.half, self.is_device = EdgeHalf(task.unet, cut), on_device(task.unet, cut)
        self.state, self.held_out = trainable_state(task.unet), task.held_out()
        self.round, self.losses, self.refused, self.client_states = 0, [], [], {}
        self.names = dict(
            getattr(grid, "partitions", {})
        )  # node id -> partition id; other engines' clients tell
        self.silent = set()
        latents = (scenario.batch_size, *self.held_out.latents.shape[1:])
        text = (scenario.batch_size, *self.held_out.text.shape[1:])
        shapes = {
            "start": {**smashed_shapes(task.unet, cut, latents, text), "text": text},
            "loss": {"guess": latents},
        }
        self.expected = {
            kind: {name: torch.empty(shape, device="meta") for name, shape in of.items()}
            for kind, of in shapes.items()
        }
        self.expected["weights"] = {
            name: p for name, p in self.state.items() if self.is_device(name)
        }

    def train_round(self):
        """One round with every client that is connected; who fails in it is named and left out until the next."""
        scenario, self.round = self.scenario, self.round + 1
        device = ArrayRecord(
            {name: value for name, value in self.state.items() if self.is_device(name)}
        )
        nodes = [node for node in self.grid.get_node_ids() if node not in self.silent]
        smashed = self._exchange("start", {node: RecordDict({"weights": device}) for node in nodes})
        edges = {}
        for node in smashed:
            mine = {
                n: v.to(self.place, copy=True)
                for n, v in self.state.items()
                if not self.is_device(n)
            }
            mine = {name: value.requires_grad_() for name, value in mine.items()}
            edges[node] = mine, new_adam(mine.values(), scenario.learning_rate)
        for step in range(1, scenario.local_steps + 1):
            leaves, guesses, norms = {}, {}, {}
            for node, (tensors, _) in smashed.items():
                leaves[node] = {
                    name: t.requires_grad_() for name, t in tensors.items() if name != "text"
                }
                weights = {f"unet.{name}": value for name, value in edges[node][0].items()}
                guesses[node] = torch.func.functional_call(
                    self.half, weights, (leaves[node], tensors["text"])
                )
            gradients = self._exchange(
                "loss", {n: _tensors({"guess": guess}) for n, guess in guesses.items()}
            )
            down = {}
            for node, (tensors, _) in gradients.items():
                guesses[node].backward(tensors["guess"])
                grads = [p.grad for p in edges[node][0].values() if p.grad is not None]
                norms[node] = float(torch.nn.utils.get_total_norm(grads))
                if not math.isfinite(norms[node]):
                    self._refuse(
                        node,
                        f"is left out of round {self.round}: its gradient overflowed at the edge",
                    )
                    continue
                down[node] = _tensors({name: leaf.grad for name, leaf in leaves[node].items()})
            smashed = self._exchange("learn", down, step < scenario.local_steps, norms)
            for node, (_, metrics) in smashed.items():
                step_clipped(edges[node][1], list(edges[node][0].values()), metrics["norm"])
        self._average(
            {
                node: ({**tensors, **edges[node][0]}, metrics)
                for node, (tensors, metrics) in smashed.items()
            }
        )

    def try_out(self, on_round=None):
        """The held-out loss of the present state, and pictures for who listens."""
        load_trainable(self.task.unet, self.state)
        losses = denoising_loss(
            self.task.unet, self.task.schedule, self.held_out, self.scenario.seed
        )
        self.losses.append(float(losses.mean()))
        if on_round is not None:
            trace = getattr(self.grid, "trace", None)
            on_round(
                RoundDone(
                    self.round,
                    self.scenario.rounds,
                    self.losses[-1],
                    self.task.strip(),
                    self.state,
                    trace,
                )
            )

    def _exchange(self, action, contents, go_on=True, norms=None):
        """One message to each node; {node: (tensors, metrics)} of the answers that can be right."""
        messages = {}
        for node, content in contents.items():
            config = {
                "server-round": self.round,
                "go-on": go_on,
                "norm": (norms or {}).get(node, 0.0),
            }
            content["config"] = ConfigRecord(config)
            messages[node] = Message(content, node, f"train.{action}")
        replies = ask(self.grid, messages, self.timeout)
        kind = ("start" if go_on else "weights") if action == "learn" else action
        good = {}
        self.silent |= messages.keys() - replies.keys()
        for node in messages:
            try:
                good[node] = self._checked(node, content_of(replies.get(node)), kind, action)
            except Exception as why:  # from outside: anything can be wrong with it
                self._refuse(node, f"is left out of round {self.round} (train.{action}): it {why}")
        return dict(sorted(good.items(), key=lambda item: self.names.get(item[0], math.inf)))

    def _checked(self, node, content, kind, action):
        metrics = dict(content["metrics"])
        self.names.setdefault(node, int(metrics["partition-id"]))
        for name in ("num-examples", *["norm"] * (action == "learn")):
            if not 0 <= metrics[name] < math.inf:
                raise ValueError(f"gave {name!r} as {metrics[name]!r}")
        tensors = checked(
            content["weights" if kind == "weights" else "tensors"], self.expected[kind]
        )
        return {
            name: torch.from_numpy(value).to(self.place) for name, value in tensors.items()
        }, metrics

    def _average(self, uploads):
        """Both halves averaged over clients, weighted by their pictures; a change out of all proportion is left out."""
        uploads = {
            node: ({name: state[name].detach().cpu() for name in self.state}, metrics)
            for node, (state, metrics) in uploads.items()
        }
        changes = {node: _distance(state, self.state) for node, (state, _) in uploads.items()}
        usual = float(np.median(list(changes.values()))) if changes else 0.0
        for node, change in changes.items():
            if change > TOO_LARGE * usual:
                del uploads[node]
                self._refuse(
                    node,
                    f"is left out of round {self.round}: it changed by {change:.3g}, not about {usual:.3g}",
                )
        self.client_states = {self.names[node]: state for node, (state, _) in uploads.items()}
        total = sum(metrics["num-examples"] for _, metrics in uploads.values())
        if not total:
            reason = "No client sent a usable update; the model stays as it was."
            self.refused.append(Refusal(self.round, "everyone", reason))
            return
        self.state = {
            name: sum(
                state[name] * (metrics["num-examples"] / total)
                for state, metrics in uploads.values()
            )
            for name in self.state
        }

    def _refuse(self, node, reason):
        client = f"client {self.names[node]}" if node in self.names else f"node {node}"
        self.refused.append(Refusal(self.round, client, f"{client.capitalize()} {reason}"))
        _log.warning("Round %d: %s", self.round, self.refused[-1].reason)


def run_split(scenario, cut, should_stop=None, on_event=None, task_of=lora_task):
    """Split training in this process, on a `LabGrid`: the same kind of `Outcome` as `run_federated` gives.

    cut: one of `split_unet.cuts`, for example "down_blocks.0". Raises ValueError for another.
    """
    scenario, servers = replace(scenario, cut=cut), []

    def hear(event):
        if on_event is not None:
            on_event(event)
        if should_stop is not None and should_stop():
            raise Stopped("The run was stopped.")

    run = run_app(
        split_server_app(hear, servers.append, task_of),
        split_client_app(task_of),
        scenario.num_clients,
        scenario.to_run_config(),
        should_stop,
    )
    server = servers[0]
    return Outcome(
        scenario=scenario,
        method=f"split after {cut}",
        rounds=pd.DataFrame({"round": range(len(server.losses)), "loss": server.losses}),
        state=server.state,
        client_states=server.client_states,
        trace=run.trace,
        stopped=run.stopped,
        refused=tuple(server.refused),
    )


def _tensors(tensors):
    return RecordDict(
        {"tensors": ArrayRecord({n: t.detach().cpu().contiguous() for n, t in tensors.items()})}
    )


def _distance(one, other):
    return math.sqrt(sum(float((one[name] - other[name]).square().sum()) for name in other))
