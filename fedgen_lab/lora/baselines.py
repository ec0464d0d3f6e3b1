"""What federated LoRA is measured against, on the same pictures, seeds and number of gradient steps.

Lab 03. The base untouched; every client on its own (local-only: federation without averaging); all pictures in one
place (centralised: as many gradient steps as all clients take together). Full-model federated averaging needs no code
here: it is `Scenario(method="full")`. And `score`, which measures any of them the same way.
"""

import numpy as np
import pandas as pd
import torch

from fedgen_lab.federation.run import Stopped, listener
from fedgen_lab.lora.adapter import load_model, load_trainable, trainable_state
from fedgen_lab.lora.data import deal
from fedgen_lab.lora.device import local_seed, prepare
from fedgen_lab.lora.factors import fold
from fedgen_lab.lora.federated import Outcome, StepDone
from fedgen_lab.lora.local import denoising_loss, noise_schedule, train
from fedgen_lab.lora.pipeline import Encoded, draw, encode
from fedgen_lab.scores import kid, load_judge, prompt_fidelity

CENTRE = -1  # stands where a client's number would: the one who holds all pictures


def run_local_only(scenario, should_stop=None, on_event=None):
    """Every client trains its own adapter from the same start with the same batches as in the federation, alone.

    The `Outcome` has every client's parameters in `client_states`, and the loss averaged over clients in `rounds`.
    """
    pipeline, dealt = prepare(scenario), deal(scenario)
    owners = {client: encode(pipeline, pictures) for client, pictures in enumerate(dealt.clients)}
    on_step = listener(on_event, should_stop=should_stop)
    return _alone(
        scenario, "local_only", pipeline, dealt.held_out, owners, scenario.local_steps, on_step
    )


def run_centralised(scenario):
    """All clients' pictures in one place, trained for as many steps a round as all clients take together."""
    pipeline, dealt = prepare(scenario), deal(scenario)
    shares = [encode(pipeline, pictures) for pictures in dealt.clients]
    latents = torch.cat([encoded.latents for encoded in shares])
    text = torch.cat([encoded.text for encoded in shares])
    owners = {CENTRE: Encoded(latents, text)}
    steps = scenario.local_steps * scenario.num_clients
    return _alone(scenario, "centralised", pipeline, dealt.held_out, owners, steps, listener())


def _alone(scenario, method, pipeline, held_out, owners, steps, on_step):
    """Train each of `owners`, {name: its `Encoded`}, round by round without any averaging."""
    unet, schedule = pipeline.unet, noise_schedule(pipeline)
    held_out, start = encode(pipeline, held_out), trainable_state(unet)
    losses = np.full((len(owners), scenario.rounds + 1), np.nan)
    states, stopped = {}, False
    try:
        for row, (owner, encoded) in enumerate(owners.items()):
            # Everyone begins with the same parameters.
            load_trainable(unet, start)
            losses[row, 0] = denoising_loss(unet, schedule, held_out, scenario.seed).mean()
            for server_round in range(1, scenario.rounds + 1):

                def report(step, steps, loss, server_round=server_round, owner=owner):
                    on_step(StepDone(server_round, owner, step, steps, loss))

                # The batches that this client would train on in this round of the federation.
                seed = local_seed(scenario, row, server_round)
                rate = scenario.rate
                train(unet, schedule, encoded, steps, scenario.batch_size, rate, seed, report)
                states[owner] = fold(trainable_state(unet), scenario.lora_alpha)
                loss = denoising_loss(unet, schedule, held_out, scenario.seed).mean()
                losses[row, server_round] = loss
    except Stopped:
        stopped = True
    # The mean over those who came so far.
    complete = np.flatnonzero(np.isfinite(losses).any(axis=0))
    return Outcome(
        scenario=scenario,
        method=method,
        rounds=pd.DataFrame({"round": complete, "loss": np.nanmean(losses[:, complete], axis=0)}),
        state=states.get(CENTRE, {}),
        client_states=states,
        stopped=stopped,
    )


def score(scenario, states, on_step=None):
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
        drawn = draw(pipeline, dealt.prompts, seeds, on_step=on_step)
        fidelity = prompt_fidelity(drawn, dealt.requests, judge)
        old = draw(pipeline, dealt.old_prompts, seeds, on_step=on_step)
        row["object"] = fidelity["object"]
        row["all"] = fidelity["all"]
        row["old_all"] = prompt_fidelity(old, dealt.old_requests, judge)["all"]

        # How far they are from held-out pictures.
        size = min(50, len(seeds), len(dealt.held_out))
        real = dealt.held_out.images
        row["kid"] = kid(real, drawn, judge, subset_size=size, seed=scenario.seed)
    return pd.DataFrame(rows)
