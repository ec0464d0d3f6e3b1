"""One round of federated LoRA, kept whole, so that attacks and defences can be tried on the very same uploads.

Lab 08. What clients train does not depend on what the server does with it in the end. So the round runs once as a
Flower app; then clipping, noise, robust averages and secure aggregation only combine its uploads anew, and each
combination is measured three ways: what it is worth, what it tells about a client, and how much of a backdoor it took.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from fedgen_lab.lora.adapter import load_trainable, trainable_state
from fedgen_lab.lora.data import deal
from fedgen_lab.lora.federated import prepare, run_federated
from fedgen_lab.lora.local import denoising_loss, noise_schedule
from fedgen_lab.lora.pipeline import encode
from fedgen_lab.privacy.backdoor import poison
from fedgen_lab.privacy.dp import private_mean
from fedgen_lab.privacy.membership import attack, errors_of, without_adapter
from fedgen_lab.privacy.robust import combine

DRAWS = 4  # noises a picture in every measurement
VICTIM = 0  # the client whose pictures are looked for; attackers are the last ones


@dataclass(frozen=True)
class Uploads:
    """A round's uploads, and what they are judged with. States are name -> NumPy array."""

    scenario: object
    pipeline: object  # its UNet carries an adapter to load states into
    received: dict  # what all clients started from
    states: tuple  # one upload a client; an attacker's is boosted
    members: object  # `Encoded` pictures of client 0
    others: object  # of the kinds client 0 has, which nobody trained on: with other kinds in it, kind would be told
    held_out: object  # of all kinds, which nobody trained on: what the adapter is worth
    marked: object  # the backdoor's target under captions with the trigger, not those it was trained with
    before: tuple  # errors of members and others under the base model
    base_loss: float  # of `held_out` under the base model
    base_backdoor: float  # loss of `marked` under the base model
    prompts: tuple  # one prompt for each kind of picture, to draw


def run_uploads(scenario, should_stop=None, on_event=None):
    """Run one round of `scenario` as a Flower app and keep its uploads; None if it was stopped.

    Defences, noise and secure aggregation are left out of the run: `measure` tries them on what came of it.
    """
    plain = replace(scenario, rounds=1, defence="mean", clip=0.0, noise_multiplier=0.0, secure=0)
    outcome = run_federated(plain, should_stop, on_event)
    if outcome.stopped or len(outcome.client_states) < plain.num_clients:
        return None
    pipeline, dealt = prepare(plain), deal(plain)
    start = trainable_state(pipeline.unet)
    states = [outcome.client_states[client] for client in range(plain.num_clients)]
    unet, schedule = pipeline.unet, noise_schedule(pipeline)
    of_kind = dealt.held_out.attributes[plain.concept].isin(dealt.clients[VICTIM].attributes[plain.concept])
    members, held_out = encode(pipeline, dealt.clients[VICTIM]), encode(pipeline, dealt.held_out)
    others = encode(pipeline, dealt.held_out.take(np.flatnonzero(of_kind)))
    shown = dealt.held_out.take(range(0, len(dealt.held_out), 4))
    both = poison(shown, plain.seed)
    marked = encode(pipeline, both.take(range(len(shown), len(both))))
    with without_adapter(unet):
        before = errors_of(unet, schedule, members, others, draws=DRAWS)
        base_loss = float(denoising_loss(unet, schedule, held_out, draws=DRAWS).mean())
        base_backdoor = float(denoising_loss(unet, schedule, marked, draws=DRAWS).mean())
    return Uploads(
        plain, pipeline, as_arrays(start), tuple(map(as_arrays, states)), members, others, held_out, marked, before,
        base_loss, base_backdoor, dealt.strip,
    )  # fmt: skip


def measure(uploads, clip=0.0, noise_multiplier=0.0, defence="mean", secure=False):
    """Combine the uploads in one way and judge the result. Returns a dict of numbers, and "state".

    clip: the length that a client's change is clipped to, 0 for none; with noise_multiplier, the rule of DP-FedAvg.
    secure: the server sees the sum of the uploads alone, so it can only take their mean (clipped on the devices).
    Keys: "loss" of the combined adapter on pictures nobody trained on (lower is better); "auc" and "tpr" of membership
    inference by the server about client 0, on its upload, or on the sum where `secure`; "auc of all" by anybody who
    gets the combined adapter; "backdoor", by how much the loss of the target under the trigger fell, in percent of the
    base model's; "attacker's share", how much of the last client's upload went in.
    Afterwards the UNet carries the combined adapter. Raises ValueError for a combination that makes no sense.
    """
    if secure and defence not in ("mean", "clip"):
        raise ValueError(
            f"Under secure aggregation the server sees no single upload, so {defence!r} can't compare them. "
            "Choose the defence 'mean' or 'clip', or turn secure aggregation off."
        )
    if noise_multiplier and (defence != "mean" or not clip):
        raise ValueError("Noise belongs to a mean of clipped uploads: choose the defence 'mean' and a clip above 0.")
    shares = [1.0] * len(uploads.states)
    if defence == "mean" and clip:
        rule = private_mean(clip, noise_multiplier, len(uploads.states), uploads.scenario.seed)
        state = rule(1, uploads.received, list(uploads.states), shares)
    else:
        state, shares = combine(
            uploads.received, uploads.states, None, defence, max(1, uploads.scenario.attackers), clip
        )  # fmt: skip
    unet, schedule = uploads.pipeline.unet, noise_schedule(uploads.pipeline)

    def member_attack(of):
        load_trainable(unet, as_tensors(of))
        return attack(unet, schedule, uploads.members, uploads.others, before=uploads.before, draws=DRAWS)

    server = None if secure else member_attack(uploads.states[VICTIM])
    everybody = member_attack(state)  # the combined adapter stays in the UNet, to draw with
    loss = float(denoising_loss(unet, schedule, uploads.held_out, draws=DRAWS).mean())
    backdoor = float(denoising_loss(unet, schedule, uploads.marked, draws=DRAWS).mean())
    server = server or everybody
    return {
        "loss": loss, "auc": server.auc, "tpr": server.tpr, "auc of all": everybody.auc,
        "backdoor": 100 * (1 - backdoor / uploads.base_backdoor), "attacker's share": shares[-1], "state": state,
    }  # fmt: skip


def as_arrays(state):
    """A state of tensors as NumPy arrays."""
    return {name: tensor.numpy() for name, tensor in state.items()}


def as_tensors(state):
    """A state of NumPy arrays as float32 tensors."""
    return {name: torch.from_numpy(np.asarray(array, dtype=np.float32)) for name, array in state.items()}
