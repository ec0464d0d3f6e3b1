"""Federated LoRA as a Flower app: what a client does with a message, what the server does with the answers.

Lab 03; the case study of arXiv 2307.07146 (base model frozen, a small adapter trained on every device and averaged on
the server), with plain federated averaging of A and B. The same `ServerApp` and `ClientApp` run in a notebook
(`run_federated`), in Flower's simulation (`flwr run .`) and on SuperLink + SuperNodes.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedgen_lab.federation.grid import Stopped, run_app
from fedgen_lab.federation.trace import Trace
from fedgen_lab.lora.adapter import add_adapter, load_trainable, trainable_state
from fedgen_lab.lora.data import deal
from fedgen_lab.lora.local import denoising_loss, noise_schedule, step_flops, train
from fedgen_lab.lora.pipeline import draw, encode, load_pipeline
from fedgen_lab.lora.strategies import strategy_of
from fedgen_lab.scenario import Scenario

STRIP_SEED = 1000  # every strip of pictures starts from the same noise, whichever model draws it


@dataclass(frozen=True)
class StepDone:
    """A client did one local step. Rounds count from 1, clients from 0."""

    round: int
    client: int
    step: int
    steps: int
    loss: float


@dataclass(frozen=True)
class RoundDone:
    """A round ended and the new adapter was tried. Round 0 is the base model, before anything was sent."""

    round: int
    rounds: int
    loss: float  # mean denoising loss on held-out pictures
    pictures: torch.Tensor  # (P, 3, H, W) in [-1, 1], one per strip prompt
    state: dict  # the new global parameters, by name
    trace: Trace | None  # None on engines that keep no ledger


@dataclass(frozen=True)
class Outcome:
    """What a finished or stopped run leaves behind."""

    scenario: Scenario
    method: str
    rounds: pd.DataFrame  # one row a round: round, loss
    state: dict  # the last global parameters, by name
    client_states: dict  # partition id -> what that client sent (or trained) last
    trace: Trace | None = None
    stopped: bool = False
    refused: tuple = ()  # (round, client, reason) of every upload that was not averaged


def prepare(scenario):
    """A pipeline whose UNet has the scenario's trainable parameters: an adapter ("lora") or every weight ("full")."""
    pipeline = load_pipeline(scenario.base_model or None)
    if scenario.method == "lora":
        add_adapter(pipeline.unet, scenario.rank, seed=scenario.seed)
    else:
        pipeline.unet.requires_grad_(True)
    return pipeline


def local_seed(scenario, client, server_round):
    """The seed of one client's batches in one round, spawned from the scenario's."""
    return int(np.random.SeedSequence(scenario.seed, spawn_key=(client, server_round)).generate_state(1)[0])


def lora_client_app(on_step=None):
    """The device's half. `on_step(StepDone)` is called after every local step and may raise `Stopped`.

    A "train" message carries the global parameters; the answer carries the client's own after `local_steps` steps on
    its own pictures, and how many pictures, how large a loss and how many floating-point operations that was.
    """
    app = ClientApp()

    @lru_cache(maxsize=1)
    def base(scenario):  # simulated clients in one process share the frozen model; a SuperNode has its own
        pipeline, dealt = prepare(scenario), deal(scenario)
        return pipeline, noise_schedule(pipeline), dealt, lru_cache(None)(lambda i: encode(pipeline, dealt.clients[i]))

    @lru_cache(maxsize=1)
    def flops_of_a_step(scenario):
        pipeline, _, _, encoded = base(scenario)
        return step_flops(pipeline.unet, encoded(0), scenario.batch_size)

    @app.train()
    def train_on_own_pictures(message: Message, context: Context) -> Message:
        scenario = Scenario.from_run_config(context.run_config)
        client = int(context.node_config["partition-id"])
        if client >= scenario.num_clients:
            raise ValueError(f"This node is client {client}, but the run has num-clients={scenario.num_clients}.")
        server_round = int(message.content["config"]["server-round"])
        pipeline, schedule, _, encoded = base(scenario)

        load_trainable(pipeline.unet, message.content["arrays"].to_torch_state_dict())
        report = None
        if on_step is not None:

            def report(step, steps, loss):
                on_step(StepDone(server_round, client, step, steps, loss))

        losses = train(
            pipeline.unet, schedule, encoded(client), scenario.local_steps, scenario.batch_size,
            scenario.learning_rate, local_seed(scenario, client, server_round), report,
        )  # fmt: skip

        metrics = MetricRecord({
            "num-examples": len(encoded(client)),
            "partition-id": client,
            "loss": float(np.mean(losses)),
            "flops": float(flops_of_a_step(scenario) * scenario.local_steps),
        })  # fmt: skip
        arrays = ArrayRecord(trainable_state(pipeline.unet))
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    return app


def lora_server_app(on_round=None, keep=None):
    """The server's half: start from a fresh adapter, average what comes back, try every average on held-out pictures.

    `on_round(RoundDone)` hears of every round. `keep(strategy)` gets the strategy before the run begins, so that its
    `latest` arrays survive a stop. Run config "save-to" names a safetensors file for the final parameters.
    """
    app = ServerApp()

    @app.main()
    def average_adapters(grid: Grid, context: Context) -> None:
        from safetensors.torch import save_file

        scenario = Scenario.from_run_config(context.run_config)
        pipeline, dealt = prepare(scenario), deal(scenario)
        schedule, held_out = noise_schedule(pipeline), encode(pipeline, dealt.held_out)
        losses = []

        def try_out(server_round, arrays):
            state = arrays.to_torch_state_dict()
            load_trainable(pipeline.unet, state)
            losses.append(float(denoising_loss(pipeline.unet, schedule, held_out, scenario.seed).mean()))
            if on_round is not None:
                pictures, trace = draw_strip(pipeline, dealt), getattr(grid, "trace", None)
                on_round(RoundDone(server_round, scenario.rounds, losses[-1], pictures, state, trace))
            return MetricRecord({"loss": losses[-1]})

        strategy = strategy_of(scenario)
        if keep is not None:
            keep(strategy)
        try:
            initial = ArrayRecord(trainable_state(pipeline.unet))
            strategy.start(grid, initial, num_rounds=scenario.rounds, evaluate_fn=try_out)
        finally:  # also after a Stop: what was aggregated so far is kept
            if losses:
                context.state["rounds"] = MetricRecord({"loss": losses})
            if strategy.latest is not None and context.run_config.get("save-to"):
                path = Path(str(context.run_config["save-to"]))
                path.parent.mkdir(parents=True, exist_ok=True)
                save_file(strategy.latest.to_torch_state_dict(), path)

    return app


def draw_strip(pipeline, dealt, steps=20, guidance=3.0, on_step=None):
    """One picture per strip prompt, always from the same noise: (P, 3, H, W) in [-1, 1]."""
    seeds = range(STRIP_SEED, STRIP_SEED + len(dealt.strip))
    return draw(pipeline, dealt.strip, seeds, steps, guidance, on_step=on_step)


def run_federated(scenario, should_stop=None, on_event=None):
    """Run the scenario as a Flower app in this process, on a `LabGrid`, and return its `Outcome`.

    `on_event` hears a `StepDone` after every local step and a `RoundDone` after every round. `should_stop()` is asked
    after every step and before every message; when it is true the run ends and what was averaged so far is in the
    `Outcome`.
    """
    losses, strategies = {}, []

    def hear(event):
        if isinstance(event, RoundDone):
            losses[event.round] = event.loss
        if on_event is not None:
            on_event(event)
        if should_stop is not None and should_stop():
            raise Stopped("The run was stopped.")

    run = run_app(
        lora_server_app(on_round=hear, keep=strategies.append), lora_client_app(on_step=hear),
        scenario.num_clients, scenario.to_run_config(), should_stop,
    )  # fmt: skip
    strategy = strategies[0] if strategies else None
    latest = strategy.latest if strategy else None
    return Outcome(
        scenario=scenario,
        method=scenario.method,
        rounds=pd.DataFrame({"round": list(losses), "loss": list(losses.values())}),
        state=latest.to_torch_state_dict() if latest is not None else {},
        client_states={c: arrays.to_torch_state_dict() for c, arrays in strategy.client_arrays.items()}
        if strategy
        else {},
        trace=run.trace,
        stopped=run.stopped,
        refused=tuple(strategy.refused) if strategy else (),
    )
