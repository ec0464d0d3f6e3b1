"""Federated LoRA as a Flower app: what a client does with a message, what the server does with the answers.

Lab 03; the case study of arXiv 2307.07146 (base model frozen, a small adapter trained on every device and averaged on
the server), with plain federated averaging of A and B. The same `ServerApp` and `ClientApp` run in a notebook
(`run_federated`), in Flower's simulation (`flwr run .`) and on SuperLink + SuperNodes.
"""

import logging
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedgen_lab.federation.accountant import Spent, spent_by
from fedgen_lab.federation.arrays import tensors_of
from fedgen_lab.federation.run import listener, run_app
from fedgen_lab.federation.saving import keep_result, tried_path
from fedgen_lab.federation.secret import secret_of
from fedgen_lab.federation.secure_device import secured
from fedgen_lab.federation.trace import Trace
from fedgen_lab.lora.adapter import load_model, load_trainable, trainable_state
from fedgen_lab.lora.data import deal
from fedgen_lab.lora.device import LoraDevice, local_seed, prepare  # noqa: F401 (others take them from here)
from fedgen_lab.lora.export import provenance_of, save_result
from fedgen_lab.lora.local import denoising_loss, noise_schedule, step_flops, train
from fedgen_lab.lora.pipeline import draw, encode
from fedgen_lab.lora.private import train_privately
from fedgen_lab.lora.rules import RULES
from fedgen_lab.lora.strategies import strategy_of
from fedgen_lab.scenario import Scenario
from fedgen_lab.wireless.replay import Timeline

_log = logging.getLogger("flwr")  # `flwr log` shows it; a LabGrid keeps it quiet
STRIP_SEED = 1000  # every strip of pictures starts from the same noise, whichever model draws it
STRIP_STEPS = 20


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
    seconds: float = 0.0  # simulated time, under strategies that have a clock


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
    timeline: Timeline | None = None  # the run on its own clock, under strategies that have one
    spent: Spent | None = None  # about any one client; with DP-SGD, about any one picture


def lora_client_app(on_step=None, device=None):
    """The device's half. `on_step(StepDone)` is called after every local step and may raise `Stopped`.

    A "train" message carries what the rule sends down; the answer carries what the rule sends up after `local_steps`
    steps on the client's own pictures (see `lora/rules.py`), and how many pictures, how large a loss and how many
    floating-point operations that was. `device`: a `LoraDevice` of one's own, to look over its shoulder.
    """
    device, app = device or LoraDevice(), ClientApp()

    @app.train()
    def train_on_own_pictures(message: Message, context: Context) -> Message:
        if "setup" in message.content["config"]:
            return device.gradients(message, context)
        turn = device.begin(message, context)
        report = None if on_step is None else lambda *step: on_step(_step_done(turn, *step))
        scenario, steps = turn.scenario, train
        if scenario.sample_noise:
            steps = partial(
                train_privately,
                clip=scenario.sample_clip,
                noise_multiplier=scenario.sample_noise,
            )
        losses = steps(
            turn.unet,
            turn.schedule,
            turn.encoded,
            scenario.local_steps,
            scenario.batch_size,
            scenario.rate,
            turn.seed,
            report,
        )
        return device.end(turn, trainable_state(turn.unet), losses)

    @app.evaluate()
    def try_own_model(message: Message, context: Context) -> Message:
        return device.evaluate(message, context)

    return secured(app)


def _step_done(turn, step, steps, loss):
    server_round, client = (
        turn.message.content["config"]["server-round"],
        turn.context.node_config["partition-id"],
    )
    return StepDone(int(server_round), int(client), step, steps, loss)


def lora_server_app(on_round=None, keep=None, network=None, start=None):
    """The server's half: send an adapter out, aggregate what comes back, try every result on held-out pictures.

    `on_round(RoundDone)` hears of every round. `keep(strategy)` gets the strategy before the run begins, so that its
    `latest` arrays survive a stop. `network`: the cell whose clock a strategy with a deadline or a choice of clients
    looks at, the scenario's own unless given. `start`: the parameters to begin with, fresh ones unless given. Run
    config "save-to" names a safetensors file for the final parameters: an adapter that plain diffusers loads, or with
    method "full" the UNet's weights.
    """
    app = ServerApp()

    @app.main()
    def average_adapters(grid: Grid, context: Context) -> None:
        path = tried_path(context.run_config)
        scenario = Scenario.from_run_config(context.run_config)
        pipeline, dealt = prepare(scenario), deal(scenario)
        schedule, held_out = noise_schedule(pipeline), encode(pipeline, dealt.held_out)
        if start is not None:
            load_trainable(pipeline.unet, start)
        losses, strategy = (
            [],
            strategy_of(
                scenario, network, _work_flops(scenario, pipeline, held_out), secret_of(context)
            ),
        )

        def try_out(server_round, arrays):
            state = arrays.to_torch_state_dict()
            load_model(pipeline.unet, state)
            loss = float(denoising_loss(pipeline.unet, schedule, held_out, scenario.seed).mean())
            losses.append(strategy.protocol.personal_losses.get(server_round, loss))
            if on_round is not None:
                pictures, trace = draw_strip(pipeline, dealt), getattr(grid, "trace", None)
                seconds = strategy.clock.now if hasattr(strategy, "clock") else 0.0
                on_round(
                    RoundDone(
                        server_round, scenario.rounds, losses[-1], pictures, state, trace, seconds
                    )
                )
            return MetricRecord({"loss": losses[-1]})

        if keep is not None:
            keep(strategy)
        try:
            initial = ArrayRecord(trainable_state(pipeline.unet))
            strategy.start(grid, initial, num_rounds=scenario.rounds, evaluate_fn=try_out)
        finally:  # also after a Stop: what was aggregated so far is kept
            done = max(len(losses) - 1, 0)
            if spent := spent_by(scenario, done):
                _log.warning("The run told about any one client no more than %s.", spent)
            if losses:
                context.state["rounds"] = MetricRecord({"loss": losses})
            if strategy.latest is not None:
                state = strategy.latest.to_torch_state_dict()  # alpha / rank is in B already
                origin = provenance_of(scenario, done, spent and spent[:2])
                keep_result(lambda file: save_result(state, file, origin), path)

    return app


def _work_flops(scenario, pipeline, held_out):
    """A client's operations in a round, for strategies that choose clients before the first answer; else 0."""
    if scenario.select == "all" and not scenario.deadline_seconds:
        return 0.0
    return float(step_flops(pipeline.unet, held_out, scenario.batch_size) * scenario.local_steps)


def draw_strip(pipeline, dealt, on_step=None):
    """One picture per strip prompt, always from the same noise: (P, 3, H, W) in [-1, 1]."""
    seeds = range(STRIP_SEED, STRIP_SEED + len(dealt.strip))
    return draw(pipeline, dealt.strip, seeds, STRIP_STEPS, on_step=on_step)


def run_federated(scenario, should_stop=None, on_event=None, start=None):
    """Run the scenario as a Flower app in this process, on a `LabGrid`, and return its `Outcome`.

    `on_event` hears a `StepDone` after every local step and a `RoundDone` after every round. `should_stop()` is asked
    after every step and before every message; when it is true the run ends and what was averaged so far is in the
    `Outcome`. `start`: the parameters to begin with, by name; fresh ones unless given.
    """
    losses, strategies, trained = {}, [], {}
    device = LoraDevice(on_trained=trained.__setitem__)

    def note_loss(event):
        if isinstance(event, RoundDone):
            losses[event.round] = event.loss

    report = listener(note_loss, on_event, should_stop=should_stop)
    run = run_app(
        lora_server_app(report, strategies.append, start=start),
        lora_client_app(report, device),
        scenario.num_clients,
        scenario.to_run_config(),
        should_stop,
    )
    strategy = strategies[0] if strategies else None
    latest = strategy.latest if strategy else None
    return Outcome(
        scenario=scenario,
        method=scenario.method,
        rounds=pd.DataFrame({"round": list(losses), "loss": list(losses.values())}),
        state=latest.to_torch_state_dict() if latest is not None else {},
        client_states=_client_states(scenario, strategy, trained) if strategy else {},
        trace=run.trace,
        stopped=run.stopped,
        refused=tuple(strategy.refused) if strategy else (),
        timeline=strategy.clock.timeline() if hasattr(strategy, "clock") else None,
        spent=max(device.spent.values(), default=spent_by(scenario, max(losses, default=0))),
    )


def _client_states(scenario, strategy, trained):
    """What each accepted client of the last round has: from its upload, or with the B that FedSA leaves on devices."""
    arrays = strategy.client_arrays
    if scenario.method == "lora" and RULES[scenario.rule].is_personal:
        return {client: trained[client] for client in arrays}
    return {
        client: strategy.protocol.client_states.get(client) or tensors_of(record)
        for client, record in arrays.items()
    }
