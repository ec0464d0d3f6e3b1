"""A device's half of federated LoRA: before its training, after it, and the two odd jobs that some rules ask for.

Labs 03, 04, 05 and 08. `begin` and `end` stand around the training itself; what differs from rule to rule is the
rule's own (`lora/rules.py`).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from torch import nn

from fedgen_lab.federation.accountant import privacy_spent
from fedgen_lab.federation.arrays import tensors_of
from fedgen_lab.federation.secret import noise_source, secret_of
from fedgen_lab.lora.adapter import (
    add_adapter,
    load_adapter,
    load_trainable,
    lora_layers,
    trainable_state,
)
from fedgen_lab.lora.backdoor import boost, is_attacker, poison
from fedgen_lab.lora.data import deal, own_pictures
from fedgen_lab.lora.factors import compact, fold, part, stacked
from fedgen_lab.lora.local import denoising_loss, noise_schedule, noised_batch, step_flops
from fedgen_lab.lora.pipeline import encode, load_pipeline
from fedgen_lab.lora.real_size import make_light
from fedgen_lab.lora.rules import MERGED, RULES, Seat
from fedgen_lab.lora.upload import pack
from fedgen_lab.scenario import Scenario

VERSION = "version"  # in a device's memory: how many merges it holds
STEPS = "private steps"  # in a device's memory: how many steps of DP-SGD it took in all


@dataclass(frozen=True)
class Turn:
    """One client's share of a round: the message that came, and what its training needs (see `local.train`)."""

    message: Message
    context: Context
    scenario: Scenario
    unet: nn.Module  # with what came down in it
    schedule: object
    encoded: object  # the client's pictures
    state: dict  # what trains, by name, as it came
    seed: int


def prepare(scenario):
    """A pipeline whose UNet has the scenario's trainable parameters: an adapter ("lora") or every weight ("full").

    The adapter has the largest of the clients' ranks. With precision "bfloat16" the frozen weights take half the bytes
    and the UNet's activations are computed again instead of kept (`real_size.make_light`).
    """
    light = scenario.precision == "bfloat16"
    pipeline = load_pipeline(
        scenario.base_model or None, dtype=torch.bfloat16 if light else torch.float32
    )
    if scenario.method == "lora":
        rank, alpha = max(scenario.client_ranks), scenario.lora_alpha or None
        add_adapter(pipeline.unet, rank, alpha, scenario.seed, scenario.targets)
    else:
        pipeline.unet.requires_grad_(True)
    if light:
        make_light(pipeline.unet)
    return pipeline


def local_seed(scenario, client, job):
    """The seed of one client's batches in one round (or FedBuff's job), spawned from the scenario's."""
    return int(np.random.SeedSequence(scenario.seed, spawn_key=(client, job)).generate_state(1)[0])


class Base:
    """What simulated clients in one process share: the frozen model, and the pictures encoded once. `folder`: where
    this device's own pictures are, all of which are its; empty where the scenario deals them."""

    def __init__(self, scenario, folder=""):
        self.pipeline = prepare(scenario)
        self.dealt = lru_cache(None)(lambda: deal(scenario))
        self.unet, self.schedule = self.pipeline.unet, noise_schedule(self.pipeline)
        self.start = trainable_state(self.unet)  # the same on every device, by the seed
        self.pristine = {}  # W0 of the layers that a rule adds to
        self.pictures = lru_cache(None)(
            lambda client: (
                own_pictures(scenario, folder) if folder else self.dealt().clients[client]
            )
        )
        self.encoded = lru_cache(None)(
            lambda client: encode(self.pipeline, self._trained_on(scenario, client))
        )
        self.held_out = lru_cache(None)(lambda: encode(self.pipeline, self.dealt().held_out))
        self.flops = lru_cache(None)(
            lambda client: step_flops(self.unet, self.encoded(client), scenario.batch_size)
        )

    def _trained_on(self, scenario, client):
        pictures = self.pictures(client)
        return poison(pictures, scenario.seed) if is_attacker(client, scenario) else pictures


class LoraDevice:
    """The functions behind a `ClientApp`. State of a device lies in its `Context`; here is only what all could share.

    `on_trained(client, state)` sees what every device has trained, folded, and is no part of any protocol.
    """

    def __init__(self, on_trained=None):
        self._base = lru_cache(maxsize=1)(Base)  # a SuperNode has one for itself
        self._on_trained = on_trained
        self.spent = {}  # client -> what DP-SGD has told about any one of its pictures, a `Spent`

    def begin(self, message, context):
        """A `Turn`: what came down, made ready to train.

        Raises ValueError when this node is not in the scenario, or its privacy budget is spent.
        """
        scenario, client, base = self._who(context)
        if scenario.sample_noise:
            self.spent[client] = spend(context.state, scenario, len(base.encoded(client)))
        content, config = message.content, message.content["config"]
        arrays = tensors_of(content["arrays"])
        if scenario.method == "full":
            load_trainable(base.unet, arrays)
            trains = arrays
        else:
            rule, seat = RULES[scenario.rule], _seat(scenario, client, config["server-round"])
            merged = catch_up(content, context.state) if rule.has_merges else {}
            adapter, trains = rule.receive(arrays, context.state, base.start, seat)
            rule.load(base.unet, adapter, trains, scenario.lora_alpha, merged, base.pristine)
        job = int(config.get("job", config["server-round"]))
        seed = local_seed(scenario, client, job)
        if scenario.sample_noise:  # coins and noise that nobody else can draw
            seed = int(noise_source(secret_of(context), job).integers(2**62))
        return Turn(
            message, context, scenario, base.unet, base.schedule, base.encoded(client), trains, seed
        )

    def end(self, turn, trained, losses):
        """The answer to a `Turn` after its training: what the rule sends up, packed as the scenario says."""
        scenario, client, base = self._who(turn.context)
        sent, start = trained, turn.state
        if scenario.method == "lora":
            rule = RULES[scenario.rule]
            rule.keep(turn.context.state, trained)
            factors = rule.sends(int(turn.message.content["config"]["server-round"]))
            sent, start = part(trained, factors), part(turn.state, factors)
            if self._on_trained is not None:
                self._on_trained(client, fold(trained, scenario.lora_alpha))
        if is_attacker(client, scenario):
            sent = boost(sent, start, scenario.num_clients / scenario.attackers)
        arrays = pack(sent, start, scenario, turn.context.state, turn.seed)
        metrics = self._metrics(client, base)
        if not scenario.sample_noise:  # a loss has no noise on it
            metrics["loss"] = float(np.mean(losses))
        metrics["flops"] = float(base.flops(client) * scenario.local_steps)
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=turn.message)

    def gradients(self, message, context):
        """Fed-SB's beginning: the mean gradient of every adapted W0 over this device's pictures, {layer: (out, in)}."""
        scenario, client, base = self._who(context)
        layers, generator = dict(lora_layers(base.unet)), torch.Generator()
        generator.manual_seed(local_seed(scenario, client, 0))
        for layer in layers.values():
            layer.base_layer.weight.requires_grad_(True)
        for _ in range(scenario.local_steps):
            noisy, timesteps, text, target = noised_batch(
                base.schedule, base.encoded(client), scenario.batch_size, generator
            )
            guess = base.unet(noisy, timesteps, encoder_hidden_states=text).sample
            (F.mse_loss(guess, target) / scenario.local_steps).backward()
        gradients = {
            name: layer.base_layer.weight.grad.cpu().clone() for name, layer in layers.items()
        }
        # the UNet as it was: no gradients left, W0 frozen
        base.unet.zero_grad(set_to_none=True)
        for layer in layers.values():
            layer.base_layer.weight.requires_grad_(False)
        metrics = self._metrics(client, base, flops=base.flops(client) * scenario.local_steps)
        content = RecordDict({"arrays": ArrayRecord(gradients), "metrics": metrics})
        return Message(content, reply_to=message)

    def evaluate(self, message, context):
        """FedSA's model of this device on the held-out pictures: its mean denoising loss."""
        scenario, client, base = self._who(context)
        content, seat = message.content, _seat(scenario, client, 0)
        arrays = tensors_of(content["arrays"])
        adapter = RULES[scenario.rule].complete(arrays, context.state, base.start, seat)
        load_adapter(base.unet, adapter, scenario.lora_alpha)
        losses = denoising_loss(base.unet, base.schedule, base.held_out(), scenario.seed)
        metrics = self._metrics(client, base, loss=float(losses.mean()))
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    def _who(self, context):
        scenario = Scenario.from_run_config(context.run_config)
        client = int(context.node_config["partition-id"])
        if client >= scenario.num_clients:
            raise ValueError(
                f"This node is client {client}, but the run has num-clients={scenario.num_clients}."
            )
        return scenario, client, self._base(scenario, str(context.node_config.get("pictures", "")))

    def _metrics(self, client, base, **numbers):
        number = len(
            base.pictures(client)
        )  # an attacker does not count its poison: it would be noticed
        return MetricRecord({"num-examples": number, "partition-id": client, **numbers})


def spend(memory, scenario, num_pictures):
    """The `Spent` of DP-SGD after one more round, whose steps are written down in a device's `memory`.

    Raises ValueError, and writes nothing down, when that is more than the scenario's budget.
    """
    steps = scenario.local_steps + (int(memory[STEPS]["steps"]) if STEPS in memory else 0)
    rate = min(1.0, scenario.batch_size / num_pictures)
    spent = privacy_spent(scenario.sample_noise, steps, rate)
    if 0 < scenario.epsilon_budget < spent.epsilon:
        raise ValueError(
            f"its privacy budget is spent: one more round would come to {spent}, over {scenario.epsilon_budget:g}"
        )
    memory[STEPS] = MetricRecord({"steps": steps})
    return spent


def _seat(scenario, client, server_round):
    return Seat(client, scenario.client_ranks[client], int(server_round), scenario.seed)


def catch_up(content, memory):
    """All merges this device was ever sent, with those of the message `content`, as one adapter; kept in `memory`.

    Raises ValueError when it missed some that the server takes for granted; the server sends everything again after
    such an answer.
    """
    config = content["config"]
    since, version = int(config["merge-from"]), 0
    if VERSION in memory:
        version = int(memory[VERSION]["version"])
    if since not in (0, version):
        raise ValueError(
            f"This device holds {version} merges and was sent those after {since}; send it all of them."
        )
    new = tensors_of(content["merge"]) if "merge" in content else {}
    earlier = tensors_of(memory[MERGED]) if MERGED in memory and since else {}
    merged = compact(stacked([earlier, new])) if earlier and new else earlier or new
    memory[MERGED] = ArrayRecord(merged)
    memory[VERSION] = MetricRecord({"version": int(config["merge-to"])})
    return merged
