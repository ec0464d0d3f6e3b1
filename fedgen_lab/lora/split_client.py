"""The device in split training of the UNet, as a Flower app: it runs `split_step.device_step`, message after message.

After a round both halves are averaged over clients (SplitFed's first form: Thapa et al., arXiv 2004.12088). With a copy
of the edge's half per client that is the same arithmetic as federated averaging of whole UNets
(`Scenario(method="full")`), at another price in bytes and in memory on the device; with method "lora" the adapters are
split in the same way. arXiv 2307.07146; labs 04 and 05.
"""

from functools import cache, lru_cache, partial

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedgen_lab.federation.arrays import tensors_of
from fedgen_lab.federation.protocol import next_message, packed
from fedgen_lab.lora.device import Base, local_seed
from fedgen_lab.lora.local import new_adam, noised_batch
from fedgen_lab.lora.split_step import device_step
from fedgen_lab.lora.split_unet import DeviceHalf, device_flops, on_device
from fedgen_lab.scenario import Scenario


def split_client_app():
    """The device's half. It answers three kinds of messages, whose tensors are

    "train.start"  down: the device's weights; up: smashed data of the round's first batch.
    "train.loss"   down: the guess; up: the gradient of the loss at it.
    "train.learn"  down: gradients at the smashed data; up: the next batch's smashed data, in the end the weights.

    Weights, Adam's moments, the state of the random numbers and what came in this step lie in `Context.state`. A step
    is replayed from them, so any process can answer any message. "flops" in an answer is the work behind it: a forward
    pass for smashed data, a backward pass for "learn"; what is replayed is not counted.
    """
    app = ClientApp()
    base_of = lru_cache(maxsize=1)(Base)

    @cache
    def flops_of(scenario, folder, client):
        """Operations of a forward pass, and of a backward pass, on one batch."""
        base = base_of(scenario, folder)
        batch = noised_batch(
            base.schedule, base.encoded(client), scenario.batch_size, torch.Generator()
        )
        return device_flops(base.unet, scenario.cut, batch)

    def answer(message: Message, context: Context) -> Message:
        scenario = Scenario.from_run_config(context.run_config)
        client = int(context.node_config["partition-id"])
        if client >= scenario.num_clients:
            raise ValueError(
                f"This node is client {client}, but the run has num-clients={scenario.num_clients}."
            )
        folder = str(context.node_config.get("pictures", ""))
        base, content, state = base_of(scenario, folder), message.content, context.state

        # A round begins: the averaged weights, a fresh optimiser, this round's random numbers.
        is_start = message.metadata.message_type == "train.start"
        if is_start:
            seed = local_seed(scenario, client, int(content["config"]["server-round"]))
            state["weights"] = content["tensors"]
            state["adam"] = ArrayRecord()
            state["draw"] = ArrayRecord({"state": torch.Generator().manual_seed(seed).get_state()})
        device = _Device(base, scenario, client, state)
        forward, backward = flops_of(scenario, folder, client)
        up = device.send(None if is_start else content)
        flops = forward if is_start else 0

        # A step ends; another begins, or the round ends, too.
        if "norm" in up:
            device.remember()
            flops = backward
            if content["config"]["go-on"]:
                up |= device.send()
                flops += forward
            else:
                up |= device.parameters

        tensors, numbers = packed(up)
        numbers |= {"partition-id": client, "num-examples": len(base.encoded(client))}
        if flops:
            numbers["flops"] = float(flops)
        records = {"tensors": tensors, "metrics": MetricRecord(numbers)}
        return Message(RecordDict(records), reply_to=message)

    for action in ("start", "loss", "learn"):
        app.train(action)(answer)
    return app


class _Device:
    """A device between two messages: its half of the UNet, as `state` has it."""

    def __init__(self, base, scenario, client, state):
        self.state = state
        self.half = DeviceHalf(base.unet, scenario.cut)
        is_device = on_device(base.unet, scenario.cut)
        self.parameters = {
            name: parameter
            for name, parameter in base.unet.named_parameters()
            if parameter.requires_grad and is_device(name)
        }
        if not self.parameters:
            raise ValueError(
                f"With method={scenario.method!r} nothing trains before cut={scenario.cut!r}; cut deeper."
            )
        self.adam = new_adam(self.parameters.values(), scenario.rate)
        self.draw = torch.Generator()
        self.new_batch = partial(
            noised_batch, base.schedule, base.encoded(client), scenario.batch_size, self.draw
        )

        # Weights, moments and random numbers as `remember` left them.
        self.draw.set_state(tensors_of(state["draw"])["state"])
        with torch.no_grad():
            for name, value in tensors_of(state["weights"]).items():
                self.parameters[name].copy_(value)
        for name, value in tensors_of(state["adam"]).items():
            name, key = name.split(":")
            parameter = self.parameters[name]
            self.adam.state[parameter][key] = value.to(parameter.device)

    def send(self, content=None):
        """What `device_step` sends next: after the records that came now, or at its beginning."""
        return next_message(
            device_step(self.half, self.adam, self.new_batch()), self.state, content
        )

    def remember(self):
        """The end of a step: weights, moments and random numbers, for the process that does the next."""
        moments = {
            f"{name}:{key}": value
            for name, parameter in self.parameters.items()
            for key, value in self.adam.state[parameter].items()
        }
        self.state["weights"] = ArrayRecord(self.parameters)
        self.state["adam"] = ArrayRecord(moments)
        self.state["draw"] = ArrayRecord({"state": self.draw.get_state()})
