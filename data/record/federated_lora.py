"""The recorded sweep of lab 03: federated LoRA and its rivals over clients and skew, ten rounds each.

Lab 03's dashboard reads it (`fedgen_lab.dashboards.lora_recorded`).
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from fedgen_lab.federation.trace import SERVER, Trace
from fedgen_lab.lora.adapter import load_model, trainable_state
from fedgen_lab.lora.baselines import run_centralised, run_local_only
from fedgen_lab.lora.data import deal
from fedgen_lab.lora.device import prepare
from fedgen_lab.lora.federated import RoundDone, run_federated
from fedgen_lab.lora.local import denoising_loss, noise_schedule
from fedgen_lab.lora.pipeline import draw, encode
from fedgen_lab.scenario import Scenario
from fedgen_lab.scores import kid, load_judge, prompt_fidelity
from fedgen_lab.wireless.channel import Network
from fedgen_lab.wireless.replay import replay

SEEDS = (0, 1, 2)
ROUNDS = 10
SCORED = (5, 10)  # the live run's last round, and the sweep's
FULL_LEARNING_RATE = 3e-4  # every weight trains: the adapter's rate would destroy the base model

# Four clients carry the comparison of methods; other numbers of clients only show what becomes of federated LoRA.
POINTS = [
    {"method": method, "num_clients": num_clients, "skew": skew}
    for method, num_clients, skew in (
        ("lora", 4, 0.0),
        ("lora", 4, 1.0),
        ("local_only", 4, 1.0),
        ("centralised", 4, 0.0),
        ("local_only", 4, 0.0),
        ("full", 4, 0.0),
        ("full", 4, 1.0),
        ("lora", 4, 0.5),
        ("lora", 2, 0.0),
        ("lora", 2, 1.0),
        ("lora", 16, 0.0),
        ("lora", 16, 1.0),
        ("lora", 8, 0.0),
        ("lora", 8, 1.0),
    )
]


def scenario_of(point, seed):
    """The scenario of a recorded point: the lesson's defaults, but ten rounds."""
    scenario = Scenario(
        num_clients=point["num_clients"], skew=point["skew"], seed=seed, rounds=ROUNDS
    )
    if point["method"] == "full":
        scenario = replace(scenario, method="full", learning_rate=FULL_LEARNING_RATE)
    return scenario


def measure(point, seed):
    """Run one point; returns loss by round, scores by round, and what crossed the wire by round (totals so far)."""
    scenario = scenario_of(point, seed)
    if point["method"] in ("lora", "full"):
        return _federated(scenario)
    if point["method"] == "local_only":
        outcome = run_local_only(scenario)
        scores = score(scenario, list(outcome.client_states.values())).mean()
        return _result(scenario, outcome.rounds["loss"], {ROUNDS: scores}, Trace())
    outcome = run_centralised(scenario)
    scores = score(scenario, [outcome.state]).iloc[0]
    trace = Trace()
    # Every picture is sent to the centre, once.
    for client, pictures in enumerate(deal(scenario).clients):
        trace.add(1, 0, client, SERVER, "pictures", pictures.images.numel())
    return _result(scenario, outcome.rounds["loss"], {ROUNDS: scores}, trace)


def score(scenario, states):
    """Measure models on one scenario: a list of parameter states in, one row each out. An empty state is the base.

    Columns: loss (held-out denoising loss); for sprites also object and all (prompt fidelity on the clients' concepts),
    old_all (on prompts the base already knew: what is left of it), and kid (against held-out pictures, in the judge's
    features).
    """
    pipeline, dealt = prepare(scenario), deal(scenario)
    unet, schedule = pipeline.unet, noise_schedule(pipeline)
    held_out, start = encode(pipeline, dealt.held_out), trainable_state(unet)
    rows = []
    for state in states:
        load_model(unet, state or start)
        row = {"loss": float(denoising_loss(unet, schedule, held_out, scenario.seed).mean())}
        rows.append(row)
        if not dealt.prompts:
            continue

        # What it draws for prompts of both kinds, before the judge.
        judge, seeds = load_judge(), range(len(dealt.prompts))
        drawn = draw(pipeline, dealt.prompts, seeds)
        fidelity = prompt_fidelity(drawn, dealt.requests, judge)
        old = draw(pipeline, dealt.old_prompts, seeds)
        row["object"] = fidelity["object"]
        row["all"] = fidelity["all"]
        row["old_all"] = prompt_fidelity(old, dealt.old_requests, judge)["all"]

        # How far they are from held-out pictures.
        size = min(50, len(seeds), len(dealt.held_out))
        real = dealt.held_out.images
        row["kid"] = kid(real, drawn, judge, subset_size=size, seed=scenario.seed)
    return pd.DataFrame(rows)


def _federated(scenario):
    states = {}

    def keep(event):
        if isinstance(event, RoundDone) and event.round in SCORED:
            states[event.round] = event.state

    outcome = run_federated(scenario, on_event=keep)
    scores = score(scenario, [{}, *states.values()])  # the base first, for what it knew before
    by_round = {number: scores.iloc[row] for row, number in enumerate([0, *states])}
    return _result(scenario, outcome.rounds["loss"], by_round, outcome.trace)


def _result(scenario, losses, scores, trace):
    """One point's figures as plain numbers, rounded to what is worth keeping."""
    network = Network(
        num_clients=scenario.num_clients, bandwidth_hz=scenario.bandwidth_hz, seed=scenario.seed
    )
    clock = replay(trace, network).rounds.set_index("round") if len(trace.frame()) else None

    def so_far(column, unit):
        if clock is None:
            return [0.0] * (ROUNDS + 1)
        steps = clock[column].reindex(range(ROUNDS + 1), fill_value=0.0)
        return [round(float(total), 4) for total in np.cumsum(steps) / unit]

    result = {"loss": [round(float(loss), 5) for loss in losses]}
    for name in next(iter(scores.values())).index.drop("loss"):
        result[name] = {str(number): round(float(row[name]), 4) for number, row in scores.items()}
    return result | {
        "megabytes_up": so_far("bytes_up", 1e6),
        "megabytes_down": so_far("bytes_down", 1e6),
        "wireless_seconds": so_far("seconds", 1),
    }
