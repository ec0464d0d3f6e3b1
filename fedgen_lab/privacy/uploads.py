"""One round of federated LoRA, kept whole, so that attacks and defences can be tried on the very same uploads.

Lab 08. What clients train does not depend on what the server does with it in the end. So the round runs once as a
Flower app; then clipping, noise, robust averages and secure aggregation only combine its uploads anew, and each
combination is judged three ways: what it is worth (a loss, and pictures), what it tells about a client, and how much
of a backdoor it took.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from safetensors.torch import load_file

from fedgen_lab.federation.arrays import record_of, values_of
from fedgen_lab.federation.averages import change_of, combine, private_mean, shortening
from fedgen_lab.federation.grid import LabGrid
from fedgen_lab.federation.secret import SERVER_PARTY, secret_for
from fedgen_lab.federation.secure import SecureFedAvg
from fedgen_lab.federation.secure_device import secured
from fedgen_lab.federation.trace import SERVER
from fedgen_lab.lora.adapter import load_trainable, trainable_state
from fedgen_lab.lora.backdoor import poison, triggered
from fedgen_lab.lora.data import deal
from fedgen_lab.lora.federated import prepare, run_federated
from fedgen_lab.lora.local import denoising_loss, noise_schedule
from fedgen_lab.lora.pipeline import draw, encode
from fedgen_lab.privacy.membership import judge_fit
from fedgen_lab.scores import prompt_fidelity
from fedgen_lab.shipped import shipped

DRAWING_STEPS = 12
SHOWN = 4  # pictures that are drawn with the trigger
VICTIM = 0  # the client whose pictures are looked for; attackers are the last ones


class Losses(NamedTuple):
    """Denoising losses under one adapter."""

    members: np.ndarray  # (M,) of the victim's pictures
    held_out: np.ndarray  # (N,) of pictures that nobody trained on
    marked: float  # mean, of the backdoor's target under the trigger


@dataclass(frozen=True)
class Uploads:
    """A round's uploads, and what they are judged with. States are name -> NumPy array."""

    scenario: object
    pipeline: object  # its UNet carries an adapter to load states into
    received: dict  # what all clients started from
    states: tuple  # one upload a client; an attacker's is boosted
    members: object  # `Encoded` pictures of client 0
    held_out: object  # of all kinds, which nobody trained on: what the adapter is worth
    kin: np.ndarray  # rows of `held_out` of client 0's kinds, to guess among: others differ by kind
    marked: object  # the backdoor's target under captions with the trigger, not those it was trained with
    prompts: tuple  # to draw, for each kind of picture
    attributes: object  # what each prompt asks for; None for a learner's own pictures
    draws: int  # noises a picture in every measurement of a loss

    def losses(self, state):
        """The `Losses` under an adapter, which the UNet carries afterwards."""
        unet, schedule = self.pipeline.unet, noise_schedule(self.pipeline)
        load_trainable(unet, as_tensors(state))
        members, held_out, marked = (
            denoising_loss(unet, schedule, pictures, draws=self.draws)
            for pictures in (self.members, self.held_out, self.marked)
        )
        return Losses(members.double().numpy(), held_out.double().numpy(), float(marked.mean()))

    @cached_property
    def losses_before(self):
        """The `Losses` under what all clients started from."""
        return self.losses(self.received)

    @property
    def loss_before(self):
        """Of the adapter that all clients started from, on pictures nobody trained on."""
        return float(self.losses_before.held_out.mean())

    @cached_property
    def overheard(self):
        """The `Membership` that client 0's upload tells the server, whatever it does with it."""
        return self.membership(self.losses(self.states[VICTIM]))

    def membership(self, losses):
        """Who fits better than before? A `Membership`; of the held-out pictures only `kin` count."""
        start = self.losses_before
        return judge_fit(
            (start.members, start.held_out[self.kin]), (losses.members, losses.held_out[self.kin])
        )


def first_adapter():
    """An adapter that was trained on sprites of the server's own (data/first-adapter): name -> tensor."""
    state = load_file(shipped("first-adapter") / "adapter.safetensors")  # rank 8, half precision
    return {name: tensor.float() for name, tensor in state.items()}


def run_uploads(scenario, should_stop=None, on_event=None, start=None, draws=4):
    """Run one round of `scenario` as a Flower app and keep its uploads; None if it was stopped.

    start: the adapter that the server sends out, like `first_adapter()`; a fresh one unless given. draws: noises a
    picture in every measurement of a loss. Defences, noise and secure aggregation are left out of the run: `measure`
    tries them on what came of it. Raises ValueError for a start of another rank or model.
    """
    plain = replace(scenario, rounds=1, defence="mean", clip=0.0, noise_multiplier=0.0, secure=0)
    outcome = run_federated(plain, should_stop, on_event, start=start)
    if outcome.stopped or len(outcome.client_states) < plain.num_clients:
        return None
    states = [outcome.client_states[client] for client in range(plain.num_clients)]

    # What all clients started from.
    pipeline, dealt = prepare(plain), deal(plain)
    if start is not None:
        load_trainable(pipeline.unet, start)
    received = trainable_state(pipeline.unet)

    # Pictures to judge by: the victim's, pictures nobody trained on, and the backdoor's target under the trigger.
    victim, held_out = dealt.clients[VICTIM], dealt.held_out
    same_kind = held_out.attributes[plain.concept].isin(victim.attributes[plain.concept])
    shown = held_out.take(range(0, len(held_out), 4))
    poisoned = poison(shown, plain.seed)
    return Uploads(
        plain,
        pipeline,
        as_arrays(received),
        tuple(map(as_arrays, states)),
        encode(pipeline, victim),
        encode(pipeline, held_out),
        np.flatnonzero(same_kind),
        encode(pipeline, poisoned.take(range(len(shown), len(poisoned)))),
        dealt.prompts or dealt.strip,
        dealt.requests,
        draws,
    )


def measure(uploads, clip=0.0, noise_multiplier=0.0, defence="mean", secure=False):
    """Combine the uploads in one way and judge the result: a dict of what `judge` finds, and of more.

    clip: the length that a client's change is clipped to, 0 for none; with noise_multiplier, the rule of DP-FedAvg: a
    server that is trusted adds the noise. secure: the server sees the sum of the uploads alone, so it can only take
    their mean; devices clip, and add the noise in shares before they mask, so that the sum has it already.
    More keys: "server's auc" and "server's tpr" of membership inference by the server about client 0, on its upload, or
    on the sum where `secure`; "attacker's share", how much of the last client's upload went in; "state".
    Raises ValueError for a combination that makes no sense.
    """
    if secure and defence not in ("mean", "clip"):
        raise ValueError(
            f"Under secure aggregation the server sees no single upload, so {defence!r} can't compare them. "
            "Choose the defence 'mean' or 'clip', or turn secure aggregation off."
        )
    if noise_multiplier and (defence != "mean" or not clip):
        raise ValueError(
            "Noise belongs to a mean of clipped uploads: choose the defence 'mean' and a clip above 0."
        )
    overheard = uploads.overheard  # before `judge`, for the same reason as there
    if defence == "mean" and clip:
        number = len(uploads.states)
        # Under secure aggregation each device adds a share that is enough for the fewest whom masks allow.
        surplus = (number / (number // 2 + 1)) ** 0.5 if secure else 1.0
        rule = private_mean(clip, surplus * noise_multiplier, number, secret_for(SERVER_PARTY))
        state = rule(1, uploads.received, uploads.states, [1.0] * number)
        changes = [change_of(upload, uploads.received) for upload in uploads.states]
        shares = [shortening(change, clip) for change in changes]
    else:
        attackers = max(1, uploads.scenario.attackers)
        state, shares = combine(uploads.received, uploads.states, None, defence, attackers, clip)
    measured = judge(uploads, state)
    # The server has every upload, unless it sees their sum alone, as everybody does.
    return measured | {
        "server's auc": measured["auc"] if secure else overheard.auc,
        "server's tpr": measured["tpr"] if secure else overheard.tpr,
        "attacker's share": shares[-1],
        "state": state,
    }


def judge(uploads, state, drawn=True):
    """What an adapter is worth, and what it tells: a dict. Afterwards the UNet carries it.

    "loss": on pictures nobody trained on; lower is better. "fidelity": the share of drawn pictures that show all that
    their prompt asked for (NaN for a learner's own pictures, which no judge can read). "auc" and "tpr": of membership
    inference about client 0 by whoever has this adapter and the one before. "backdoor": by how much the loss of the
    target under the trigger fell, in percent. "pictures": two tensors in [-1, 1], drawn without and with the trigger
    from the same noise. Without `drawn`, nothing is drawn, which is faster: no "fidelity" and no "pictures".
    """
    # What it is worth, what it tells of client 0, and how well it knows the trigger.
    start = uploads.losses_before  # first: measuring it puts another adapter into the UNet
    losses = uploads.losses(state)
    membership = uploads.membership(losses)
    measured = {
        "loss": float(losses.held_out.mean()),
        "auc": membership.auc,
        "tpr": membership.tpr,
        "backdoor": 100 * (1 - losses.marked / start.marked),
    }
    if not drawn:
        return measured

    # What it draws, without and with the trigger.
    plain, marked = (
        draw(uploads.pipeline, captions, range(len(captions)), DRAWING_STEPS)
        for captions in (list(uploads.prompts), triggered(uploads.prompts[:SHOWN]))
    )
    fidelity = math.nan
    if uploads.attributes is not None:
        fidelity = prompt_fidelity(plain, uploads.attributes)["all"]
    return measured | {"fidelity": fidelity, "pictures": (plain, marked)}


class Summed(NamedTuple):
    """What `summed_securely` leaves behind."""

    state: dict  # the mean of the uploads that came through, as the server computed it
    seen: dict  # client -> (D + 1,) uint32: all that the server saw of its upload
    refused: list  # what the server says about clients that were lost on the way
    megabytes: float  # sent up, all messages of the protocol together


def summed_securely(uploads, lost=()):
    """Send the uploads once more, through the protocol of `federation.secure`, on Flower messages; returns a `Summed`.

    lost: clients that vanish when they should upload, after their masks are agreed.
    """
    number, app = len(uploads.states), ClientApp()
    strategy = SecureFedAvg(most_examples=1, min_available_nodes=number)

    @app.train()
    def upload(message, context):
        client = int(context.node_config["partition-id"])
        if client in lost:
            raise ConnectionError("out of reach")
        metrics = MetricRecord({"num-examples": 1, "partition-id": client})
        arrays = record_of(uploads.states[client])
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    with LabGrid(secured(app), number, {"secure": 1}) as grid:
        strategy.start(grid, record_of(uploads.received), num_rounds=1)
    messages = grid.trace.frame()
    bytes_up = messages.loc[messages["receiver"] == SERVER, "bytes"].sum()
    reasons = [refusal.reason for refusal in strategy.refused]
    return Summed(values_of(strategy.latest), strategy.seen, reasons, bytes_up / 1e6)


def as_arrays(state):
    """A state of tensors as NumPy arrays."""
    return {name: tensor.numpy() for name, tensor in state.items()}


def as_tensors(state):
    """A state of NumPy arrays as float32 tensors."""
    return {name: torch.as_tensor(array, dtype=torch.float32) for name, array in state.items()}
