"""The device in split training of the UNet, as a Flower app: it runs `split_step.device_step`, message after message.

After a round both halves are averaged over clients (SplitFed's first form: Thapa et al., arXiv 2004.12088). With a copy
of the edge's half per client that is the same arithmetic as federated averaging of whole UNets
(`Scenario(method="full")`), at another price in bytes and in memory on the device; with method "lora" the adapters are
split in the same way. arXiv 2307.07146; labs 04 and 05.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedgen_lab.federation.arrays import tensors_of
from fedgen_lab.federation.protocol import next_message, packed
from fedgen_lab.lora.data import deal
from fedgen_lab.lora.federated import draw_strip, local_seed, prepare
from fedgen_lab.lora.local import new_adam, noise_schedule, noised_batch
from fedgen_lab.lora.pipeline import encode
from fedgen_lab.lora.split_step import device_step
from fedgen_lab.lora.split_unet import DeviceHalf, device_flops, on_device
from fedgen_lab.scenario import Scenario


@dataclass(frozen=True)
class Task:
    """What is trained on what: a UNet, and pictures by client. `strip` draws pictures of the present."""

    unet: torch.nn.Module
    schedule: object
    pictures_of: Callable  # client -> its `Encoded`
    held_out: Callable  # () -> `Encoded`
    strip: Callable  # () -> (P, 3, H, W)


def lora_task(scenario):
    """The `Task` of a scenario: the pipeline and the pictures that `run_federated` uses, too."""
    pipeline, dealt = prepare(scenario), deal(scenario)
    return Task(
        pipeline.unet,
        noise_schedule(pipeline),
        cache(lambda client: encode(pipeline, dealt.clients[client])),
        lambda: encode(pipeline, dealt.held_out),
        lambda: draw_strip(pipeline, dealt),
    )


def split_client_app():
    """The device's half: answers "train.start", "train.loss" and "train.learn".

    Weights, Adam's moments, the state of the random numbers and what came in this step lie in `Context.state`. A step
    is replayed from them, so any process can answer any message. "flops" in an answer is the work behind it: a forward
    pass for smashed data, a backward pass for "learn"; what is replayed is not counted.
    """
    app = ClientApp()
    task_of = lru_cache(maxsize=1)(lora_task)

    @cache
    def flops_of(scenario, client):
        """Operations of a forward pass, and of a backward pass, on one batch."""
        task = task_of(scenario)
        encoded = task.pictures_of(client)
        latents = (scenario.batch_size, *encoded.latents.shape[1:])
        text = (scenario.batch_size, *encoded.text.shape[1:])
        return device_flops(task.unet, scenario.cut, latents, text)

    def device_of(context):
        """The device that a message is for, and the operations of its two passes."""
        scenario = Scenario.from_run_config(context.run_config)
        client = int(context.node_config["partition-id"])
        if client >= scenario.num_clients:
            raise ValueError(
                f"This node is client {client}, but the run has num-clients={scenario.num_clients}."
            )
        device = _Device(task_of(scenario), scenario, client, context.state)
        return device, *flops_of(scenario, client)

    @app.train("start")
    def start(message: Message, context: Context) -> Message:
        """Down: the device's weights. Up: smashed data of the round's first batch."""
        device, forward, _ = device_of(context)
        server_round = int(message.content["config"]["server-round"])
        device.begin(message.content["weights"], server_round)
        return device.reply(message, {**device.send(), "flops": float(forward)})

    @app.train("loss")
    def loss(message: Message, context: Context) -> Message:
        """Down: the guess. Up: the gradient of the loss at it, and the loss."""
        device, _, _ = device_of(context)
        return device.reply(message, device.send(message.content))

    @app.train("learn")
    def learn(message: Message, context: Context) -> Message:
        """Down: gradients at the smashed data. Up: the next batch's smashed data; after the last step the weights."""
        device, forward, backward = device_of(context)
        up = device.send(message.content)
        device.remember()
        if message.content["config"]["go-on"]:
            up |= {**device.send(), "flops": float(forward + backward)}
            return device.reply(message, up)
        reply = device.reply(message, {**up, "flops": float(backward)})
        reply.content["weights"] = context.state["weights"]
        return reply

    return app


class _Device:
    """A device between two messages: its half of the UNet, set up from the scenario and from `state`."""

    def __init__(self, task, scenario, client, state):
        self.task = task
        self.scenario = scenario
        self.client = client
        self.state = state
        self.half = DeviceHalf(task.unet, scenario.cut)
        is_device = on_device(task.unet, scenario.cut)
        self.parameters = {
            name: parameter
            for name, parameter in task.unet.named_parameters()
            if parameter.requires_grad and is_device(name)
        }
        if not self.parameters:
            raise ValueError(
                f"With method={scenario.method!r} nothing trains before cut={scenario.cut!r}; cut deeper."
            )
        self.adam = new_adam(self.parameters.values(), scenario.rate)
        self.encoded = task.pictures_of(client)
        if "weights" in state:
            self._recall()

    def begin(self, weights, server_round):
        """A round's start: the averaged weights, a fresh optimiser, this round's random numbers."""
        seed = local_seed(self.scenario, self.client, server_round)
        self.state["weights"] = weights
        self.state["adam"] = ArrayRecord()
        self.state["draw"] = ArrayRecord({"state": torch.Generator().manual_seed(seed).get_state()})
        self._recall()

    def send(self, content=None):
        """What `device_step` sends next: after the records that came now, or at its beginning."""
        self.draw = torch.Generator()
        self.draw.set_state(tensors_of(self.state["draw"])["state"])
        batch = noised_batch(self.task.schedule, self.encoded, self.scenario.batch_size, self.draw)
        return next_message(device_step(self.half, self.adam, batch), self.state, content)

    def remember(self):
        """The end of a step: weights, moments and random numbers, for the process that does the next."""
        weights = {name: p.detach().cpu() for name, p in self.parameters.items()}
        moments = self.adam.state_dict()["state"]  # by a parameter's number
        self.state["weights"] = ArrayRecord(weights)
        self.state["adam"] = ArrayRecord(
            {f"{i}:{key}": value for i, kept in moments.items() for key, value in kept.items()}
        )
        self.state["draw"] = ArrayRecord({"state": self.draw.get_state()})

    def reply(self, message, up):
        """The answer: tensors in one record, numbers in another, with what every answer says besides."""
        tensors, numbers = packed(up)
        numbers |= {"partition-id": self.client, "num-examples": len(self.encoded)}
        content = RecordDict({"metrics": MetricRecord(numbers)})
        if tensors:
            content["tensors"] = tensors
        return Message(content, reply_to=message)

    def _recall(self):
        """Weights and moments as `remember` left them."""
        with torch.no_grad():
            for name, value in tensors_of(self.state["weights"]).items():
                self.parameters[name].copy_(value)
        moments = defaultdict(dict)
        for name, value in tensors_of(self.state["adam"]).items():
            number, key = name.split(":")
            moments[int(number)][key] = value
        self.adam.load_state_dict({**self.adam.state_dict(), "state": moments})
