"""What federated LoRA is measured against, on the same pictures, seeds and number of gradient steps.

Lab 03. The base untouched; every client on its own (local-only: federation without averaging); all pictures in one
place (centralised: as many gradient steps as all clients take together). Full-model federated averaging needs no code
here: it is `Scenario(method="full")`.
"""

from contextlib import suppress
from functools import partial

import numpy as np
import pandas as pd
import torch

from fedgen_lab.federation.run import Stopped, listener
from fedgen_lab.lora.adapter import load_trainable, trainable_state
from fedgen_lab.lora.data import deal
from fedgen_lab.lora.device import local_seed, prepare
from fedgen_lab.lora.factors import fold
from fedgen_lab.lora.federated import Outcome, StepDone
from fedgen_lab.lora.local import denoising_loss, noise_schedule, train
from fedgen_lab.lora.pipeline import Encoded, encode

CENTRE = -1  # stands where a client's number would: the one who holds all pictures


def run_local_only(scenario, should_stop=None, on_event=None):
    """Every client trains its own adapter from the same start with the same batches as in the federation, alone.

    The `Outcome` has every client's parameters in `client_states`, and the loss averaged over clients in `rounds`.
    """
    on_step = listener(on_event, should_stop=should_stop)
    return _alone(scenario, "local_only", lambda shares: dict(enumerate(shares)), 1, on_step)


def run_centralised(scenario):
    """All clients' pictures in one place, trained for as many steps a round as all clients take together."""

    def together(shares):
        latents = torch.cat([encoded.latents for encoded in shares])
        return {CENTRE: Encoded(latents, torch.cat([encoded.text for encoded in shares]))}

    return _alone(scenario, "centralised", together, scenario.num_clients, listener())


def _alone(scenario, method, owners_of, effort, on_step):
    """Train each owner of pictures round by round without any averaging.

    owners_of: from the clients' `Encoded` to {owner: its `Encoded`}; effort: how many clients' steps an owner takes.
    """
    pipeline, dealt = prepare(scenario), deal(scenario)
    owners = owners_of([encode(pipeline, pictures) for pictures in dealt.clients])
    unet, schedule = pipeline.unet, noise_schedule(pipeline)
    held_out, start = encode(pipeline, dealt.held_out), trainable_state(unet)
    losses = np.full((len(owners), scenario.rounds + 1), np.nan)
    states, stopped = {}, True

    def report(server_round, owner, *step):
        on_step(StepDone(server_round, owner, *step))

    with suppress(Stopped):
        for row, (owner, encoded) in enumerate(owners.items()):
            # Everyone begins with the same parameters.
            load_trainable(unet, start)
            for server_round in range(scenario.rounds + 1):
                if server_round:
                    # The batches that this client would train on in this round of the federation.
                    train(
                        unet,
                        schedule,
                        encoded,
                        scenario.local_steps * effort,
                        scenario.batch_size,
                        scenario.rate,
                        local_seed(scenario, row, server_round),
                        partial(report, server_round, owner),
                    )
                    states[owner] = fold(trainable_state(unet), scenario.lora_alpha)
                loss = denoising_loss(unet, schedule, held_out, scenario.seed).mean()
                losses[row, server_round] = loss
        stopped = False
    # The mean over those who came so far.
    rounds = pd.DataFrame(losses).mean().dropna().rename_axis("round").reset_index(name="loss")
    return Outcome(
        scenario=scenario,
        method=method,
        rounds=rounds,
        state=states.get(CENTRE, {}),
        client_states=states,
        stopped=stopped,
    )
