"""A device's half of federated LoRA: before its training, after it, and the two odd jobs that some rules ask for.

Labs 03, 04, 05 and 08. `begin` and `end` stand around the training itself, so that the plain client and its stacked
twin (`lora/stacked.py`) share everything else.
"""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from fedgen_lab.federation.arrays import tensors_of
from fedgen_lab.lora.adapter import add_adapter, load_adapter, load_trainable, trainable_state
from fedgen_lab.lora.data import deal
from fedgen_lab.lora.local import denoising_loss, noise_schedule, noised_batch, step_flops
from fedgen_lab.lora.pipeline import encode, load_pipeline
from fedgen_lab.lora.real_size import make_light
from fedgen_lab.lora.received import keep, load_local, mean_gradients, personal, receive
from fedgen_lab.lora.rules import factors, fold, part, sent_part
from fedgen_lab.lora.stacked import Turn
from fedgen_lab.lora.upload import pack
from fedgen_lab.scenario import Scenario


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
        add_adapter(
            pipeline.unet,
            max(scenario.client_ranks),
            scenario.lora_alpha or None,
            seed=scenario.seed,
        )
    else:
        pipeline.unet.requires_grad_(True)
    if light:
        make_light(pipeline.unet)
    return pipeline


def local_seed(scenario, client, job):
    """The seed of one client's batches in one round (or FedBuff's job), spawned from the scenario's."""
    return int(np.random.SeedSequence(scenario.seed, spawn_key=(client, job)).generate_state(1)[0])


class _Base:
    """What simulated clients in one process share: the frozen model, and the pictures encoded once."""

    def __init__(self, scenario):
        self.pipeline, self.dealt = prepare(scenario), deal(scenario)
        self.unet, self.schedule = self.pipeline.unet, noise_schedule(self.pipeline)
        self.start = trainable_state(self.unet)  # the same on every device, by the seed
        self.pristine = {}  # W0 of the layers that a rule adds to
        self.encoded = lru_cache(None)(
            lambda client: encode(self.pipeline, self._pictures(scenario, client))
        )
        self.held_out = lru_cache(None)(lambda: encode(self.pipeline, self.dealt.held_out))
        self.flops = lru_cache(None)(
            lambda: step_flops(self.unet, self.encoded(0), scenario.batch_size)
        )

    def _pictures(self, scenario, client):
        pictures = self.dealt.clients[client]
        if scenario.attackers:
            from fedgen_lab.privacy.backdoor import is_attacker, poison

            pictures = (
                poison(pictures, scenario.seed) if is_attacker(client, scenario) else pictures
            )
        return pictures


class LoraDevice:
    """The functions behind a `ClientApp`. State of a device lies in its `Context`; here is only what all could share.

    `on_trained(client, state)` sees what every device has trained, folded, and is no part of any protocol.
    """

    def __init__(self, on_trained=None):
        self._base, self._on_trained = (
            lru_cache(maxsize=1)(_Base),
            on_trained,
        )  # a SuperNode has its own

    def begin(self, message, context):
        """A `Turn`: what came down, made ready to train. Raises ValueError when this node is not in the scenario."""
        scenario, client, base = self._who(context)
        config = message.content["config"]
        job = int(config.get("job", config["server-round"]))
        scale = None
        if scenario.method == "full":
            state = tensors_of(message.content["arrays"])
            load_trainable(base.unet, state)
        else:
            local = receive(message.content, context.state, scenario, client, base.start)
            load_local(base.unet, local, scenario, base.pristine)
            state, rank = local.trains, max(a.shape[0] for a, _ in factors(local.adapter).values())
            scale = scenario.lora_alpha / rank if scenario.lora_alpha else 1.0
        return Turn(
            message,
            context,
            base.unet,
            base.schedule,
            base.encoded(client),
            state,
            scenario.local_steps,
            scenario.batch_size,
            scenario.learning_rate,
            local_seed(scenario, client, job),
            scale,
        )

    def end(self, turn, trained, losses):
        """The answer to a `Turn` after its training: what the rule sends up, packed as the scenario says."""
        scenario, client, base = self._who(turn.context)
        server_round, sent, start = (
            int(turn.message.content["config"]["server-round"]),
            trained,
            turn.state,
        )
        if scenario.method == "lora":
            which = sent_part(scenario.rule, server_round)
            keep(turn.context.state, scenario, trained)
            sent, start = part(trained, which), part(turn.state, which)
            if self._on_trained is not None:
                self._on_trained(client, fold(trained, scenario.lora_alpha))
        if scenario.attackers:
            from fedgen_lab.privacy.backdoor import boost, is_attacker

            if is_attacker(client, scenario):
                sent = boost(sent, start, scenario.num_clients / scenario.attackers)
        metrics = MetricRecord(
            {
                "num-examples": len(turn.encoded),
                "partition-id": client,
                "loss": float(np.mean(losses)),
                "flops": float(base.flops() * scenario.local_steps),
            }
        )
        arrays = pack(sent, start, scenario, turn.context.state, turn.seed)
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=turn.message)

    def gradients(self, message, context):
        """Fed-SB's beginning: the mean gradient of every adapted W0 over this device's own pictures."""
        scenario, client, base = self._who(context)
        encoded, generator = (
            base.encoded(client),
            torch.Generator().manual_seed(local_seed(scenario, client, 0)),
        )

        def loss():
            noisy, timesteps, text, target = noised_batch(
                base.schedule, encoded, scenario.batch_size, generator
            )
            return F.mse_loss(
                base.unet(noisy, timesteps, encoder_hidden_states=text).sample, target
            )

        gradients = mean_gradients(base.unet, loss, scenario.local_steps)
        metrics = {
            "num-examples": len(encoded),
            "partition-id": client,
            "flops": base.flops() * scenario.local_steps,
        }
        content = RecordDict({"arrays": ArrayRecord(gradients), "metrics": MetricRecord(metrics)})
        return Message(content, reply_to=message)

    def evaluate(self, message, context):
        """FedSA's own model of this device on the held-out pictures: its mean denoising loss."""
        scenario, client, base = self._who(context)
        load_adapter(
            base.unet, personal(message.content, context.state, base.start), scenario.lora_alpha
        )
        loss = float(
            denoising_loss(base.unet, base.schedule, base.held_out(), scenario.seed).mean()
        )
        metrics = {"num-examples": len(base.encoded(client)), "partition-id": client, "loss": loss}
        return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)

    def _who(self, context):
        scenario = Scenario.from_run_config(context.run_config)
        client = int(context.node_config["partition-id"])
        if client >= scenario.num_clients:
            raise ValueError(
                f"This node is client {client}, but the run has num-clients={scenario.num_clients}."
            )
        return scenario, client, self._base(scenario)
