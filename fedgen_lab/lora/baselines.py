"""What federated LoRA is measured against, on the same pictures, seeds and number of gradient steps.

Lab 03. The base untouched; every client on its own (local-only: federation without averaging); all pictures in one
place (centralised: as many gradient steps as all clients take together). Full-model federated averaging needs no code
here: it is `Scenario(method="full")`. And `score`, which measures any of them the same way.
"""

import numpy as np
import pandas as pd
import torch

from fedgen_lab.federation.grid import Stopped
from fedgen_lab.lora.adapter import load_model, load_trainable, trainable_state
from fedgen_lab.lora.data import deal
from fedgen_lab.lora.device import local_seed, prepare
from fedgen_lab.lora.federated import Outcome, StepDone
from fedgen_lab.lora.local import denoising_loss, noise_schedule, train
from fedgen_lab.lora.pipeline import Encoded, draw, encode
from fedgen_lab.lora.rules import fold

CENTRE = -1  # stands where a client's number would: the one who holds all pictures


def run_local_only(scenario, should_stop=None, on_event=None):
    """Every client trains its own adapter from the same start with the same batches as in the federation, alone.

    The `Outcome` has every client's parameters in `client_states`, and the loss averaged over clients in `rounds`.
    """
    pipeline, dealt = prepare(scenario), deal(scenario)
    start = trainable_state(pipeline.unet)
    encoded = [encode(pipeline, pictures) for pictures in dealt.clients]
    return _alone(
        scenario, pipeline, dealt, start, encoded, scenario.local_steps, should_stop, on_event
    )


def run_centralised(scenario, should_stop=None, on_event=None):
    """All clients' pictures in one place, trained for as many steps a round as all clients take together."""
    pipeline, dealt = prepare(scenario), deal(scenario)
    start = trainable_state(pipeline.unet)
    parts = [encode(pipeline, pictures) for pictures in dealt.clients]
    everything = Encoded(torch.cat([p.latents for p in parts]), torch.cat([p.text for p in parts]))
    steps = scenario.local_steps * scenario.num_clients
    return _alone(scenario, pipeline, dealt, start, [everything], steps, should_stop, on_event)


def _alone(scenario, pipeline, dealt, start, owners, steps, should_stop, on_event):
    """Train each owner of pictures round by round without any averaging. One owner alone is the centre."""
    schedule, held_out = noise_schedule(pipeline), encode(pipeline, dealt.held_out)
    centralised = len(owners) == 1 and scenario.num_clients > 1 or steps > scenario.local_steps
    states, losses, stopped = {}, np.full((len(owners), scenario.rounds + 1), np.nan), False

    def stop_if_asked(*_):
        if should_stop is not None and should_stop():
            raise Stopped("The run was stopped.")

    try:
        for owner, encoded in enumerate(owners):
            name = CENTRE if centralised else owner
            load_trainable(pipeline.unet, start)
            losses[owner, 0] = denoising_loss(
                pipeline.unet, schedule, held_out, scenario.seed
            ).mean()
            for server_round in range(1, scenario.rounds + 1):

                def report(step, total, loss, at=(server_round, name)):
                    if on_event is not None:
                        on_event(StepDone(*at, step, total, loss))
                    stop_if_asked()

                seed = local_seed(scenario, owner, server_round)
                train(
                    pipeline.unet,
                    schedule,
                    encoded,
                    steps,
                    scenario.batch_size,
                    scenario.learning_rate,
                    seed,
                    report,
                )
                states[name] = fold(trainable_state(pipeline.unet), scenario.lora_alpha)
                losses[owner, server_round] = denoising_loss(
                    pipeline.unet, schedule, held_out, scenario.seed
                ).mean()
    except Stopped:
        stopped = True
    complete = [r for r in range(scenario.rounds + 1) if np.isfinite(losses[:, r]).any()]
    return Outcome(
        scenario=scenario,
        method="centralised" if centralised else "local_only",
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
    from fedgen_lab.scores import kid, load_judge, prompt_fidelity

    pipeline, dealt = prepare(scenario), deal(scenario)
    schedule, held_out = noise_schedule(pipeline), encode(pipeline, dealt.held_out)
    start = trainable_state(pipeline.unet)
    rows = []
    for state in states:
        load_model(pipeline.unet, state or start)
        row = {
            "loss": float(denoising_loss(pipeline.unet, schedule, held_out, scenario.seed).mean())
        }
        if dealt.prompts:
            judge, number = load_judge(), len(dealt.prompts)
            drawn = draw(pipeline, dealt.prompts, range(number), on_step=on_step)
            fidelity = prompt_fidelity(drawn, dealt.asked, judge)
            old = draw(pipeline, dealt.old_prompts, range(number), on_step=on_step)
            old_fidelity = prompt_fidelity(old, dealt.old_asked, judge)
            row |= {
                "object": fidelity["object"],
                "all": fidelity["all"],
                "old_all": old_fidelity["all"],
            }
            subset = min(50, number, len(dealt.held_out))
            row["kid"] = kid(
                dealt.held_out.images, drawn, judge, subset_size=subset, seed=scenario.seed
            )
        rows.append(row)
    return pd.DataFrame(rows)
