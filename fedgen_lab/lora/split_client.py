"""The device in split training of the UNet: it holds the first blocks; `split_server` holds the rest, a copy a client.

A step is two exchanges. Smashed data goes up and the server's guess comes down; the client, which alone knows what the
guess should have been, sends the gradient at it and gets the gradient at its smashed data. After a round both parts are
averaged over clients (SplitFed's first form: Thapa et al., arXiv 2004.12088). With a copy per client that is the same
arithmetic as federated averaging of whole UNets (`Scenario(method="full")`), at another price in bytes and in memory
on the device; with method "lora" the adapters are split in the same way. arXiv 2307.07146; labs 04 and 05.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedgen_lab.federation.arrays import tensors_of
from fedgen_lab.lora.data import deal
from fedgen_lab.lora.federated import draw_strip, local_seed, prepare
from fedgen_lab.lora.local import noise_schedule, target_of
from fedgen_lab.lora.pipeline import encode
from fedgen_lab.lora.split_unet import DeviceHalf, device_flops, on_device
from fedgen_lab.scenario import Scenario

MAX_NORM = 1.0  # gradients are clipped as in `local.train`, by the norm over both halves


@dataclass(frozen=True)
class Task:
    """What is trained on what: a UNet of one's own, and pictures by client. `strip` draws pictures of the present."""

    unet: torch.nn.Module
    schedule: object
    own: Callable  # client -> its `Encoded`
    held_out: Callable  # () -> `Encoded`
    strip: Callable = lambda: None


def lora_task(scenario):
    """The `Task` of a scenario: the pipeline and the pictures that `run_federated` uses, too."""
    pipeline, dealt = prepare(scenario), deal(scenario)
    own = lru_cache(None)(lambda client: encode(pipeline, dealt.clients[client]))
    held_out, strip = lambda: encode(pipeline, dealt.held_out), lambda: draw_strip(pipeline, dealt)
    return Task(pipeline.unet, noise_schedule(pipeline), own, held_out, strip)


def split_client_app(task_of=lora_task):
    """The device's half: answers "train.start", "train.loss" and "train.learn".

    Weights, Adam's moments and the state of the random numbers live in `Context.state` between messages, and forward
    passes are computed again, so any process can answer any message. "flops" in an answer is the work behind it: a
    forward pass for smashed data, a backward pass for "learn"; the repeated forward passes are not counted.
    """
    app, task_of = ClientApp(), lru_cache(maxsize=1)(task_of)

    @cache
    def flops_of(scenario, client):
        task, own = task_of(scenario), task_of(scenario).own(client)
        shapes = ((scenario.batch_size, *part.shape[1:]) for part in (own.latents, own.text))
        return device_flops(task.unet, scenario.cut, *shapes)

    def step_of(message, context):
        scenario, client = (
            Scenario.from_run_config(context.run_config),
            int(context.node_config["partition-id"]),
        )
        if client >= scenario.num_clients:
            raise ValueError(
                f"This node is client {client}, but the run has num-clients={scenario.num_clients}."
            )
        return _DeviceStep(task_of(scenario), scenario, client, context.state), *flops_of(
            scenario, client
        )

    @app.train("start")
    def start(message: Message, context: Context) -> Message:
        """Down: the device's weights. Up: smashed data of the round's first batch."""
        step, forward, _ = step_of(message, context)
        step.begin(message.content["weights"], int(message.content["config"]["server-round"]))
        return step.reply(message, tensors=step.forward(), flops=float(forward))

    @app.train("loss")
    def loss(message: Message, context: Context) -> Message:
        """Down: the guess. Up: the gradient of the loss at it. The target stays here: with it, the edge would know the
        picture behind the noise."""
        step, _, _ = step_of(message, context)
        gradient, value = step.judge(tensors_of(message.content["tensors"])["guess"])
        return step.reply(message, tensors={"guess": gradient}, loss=value)

    @app.train("learn")
    def learn(message: Message, context: Context) -> Message:
        """Down: gradients at the smashed data. Up: the next batch's smashed data; after the last step the weights."""
        (step, forward, backward), config = step_of(message, context), message.content["config"]
        norm = step.learn(tensors_of(message.content["tensors"]), float(config["norm"]))
        if config["go-on"]:
            return step.reply(
                message, tensors=step.forward(), norm=norm, flops=float(forward + backward)
            )
        return step.reply(message, weights=step.weights(), norm=norm, flops=float(backward))

    return app


class _DeviceStep:
    """A device between two messages: its half of the UNet, set up from `state` and the scenario."""

    def __init__(self, task, scenario, client, state):
        self.task, self.scenario, self.client, self.state = task, scenario, client, state
        self.half, is_ours = DeviceHalf(task.unet, scenario.cut), on_device(task.unet, scenario.cut)
        self.parameters = {
            n: p for n, p in task.unet.named_parameters() if p.requires_grad and is_ours(n)
        }
        if not self.parameters:
            raise ValueError(
                f"With method={scenario.method!r} nothing trains before cut={scenario.cut!r}; cut deeper."
            )
        self.encoded = task.own(client)
        if "weights" in state:
            self._load(state["weights"])

    def begin(self, weights, server_round):
        """A round's start: the averaged weights, a fresh optimiser, this round's random numbers."""
        self._load(weights)
        self.state["weights"], self.state["adam"] = weights, ArrayRecord()
        generator = torch.Generator().manual_seed(
            local_seed(self.scenario, self.client, server_round)
        )
        self.state["draw"] = self.state["next"] = ArrayRecord({"state": generator.get_state()})

    def forward(self):
        """Draw the next batch and compute its smashed data, with the text beside it."""
        self.state["draw"] = self.state["next"]
        noisy, timesteps, text, _ = self._batch()
        with torch.no_grad():
            return {**self.half(noisy, timesteps, text), "text": text}

    def judge(self, guess):
        """The gradient of the loss at the guess, and the loss."""
        guess = guess.to(self.encoded.latents.device).requires_grad_()
        loss = F.mse_loss(guess, self._batch()[3])
        if not torch.isfinite(loss):
            raise ValueError(
                f"the loss became {loss.item()}; lower the learning rate ({self.scenario.learning_rate})"
            )
        return torch.autograd.grad(loss, guess)[0], loss.item()

    def learn(self, gradients, edge_norm):
        """One step of AdamW from the gradients at the smashed data; returns the norm of this half's gradients."""
        noisy, timesteps, text, _ = self._batch()
        smashed = self.half(noisy, timesteps, text)
        live = [name for name, tensor in smashed.items() if tensor.requires_grad]
        torch.autograd.backward(
            [smashed[name] for name in live], [gradients[name].to(noisy.device) for name in live]
        )
        adam = new_adam(self.parameters.values(), self.scenario.learning_rate)
        moments = tensors_of(self.state["adam"])
        for name, parameter in self.parameters.items():
            if f"{name}:step" in moments:
                own = {
                    key: moments[f"{name}:{key}"].to(parameter.device)
                    for key in ("exp_avg", "exp_avg_sq")
                }
                adam.state[parameter] = {
                    **own,
                    "step": moments[f"{name}:step"],
                }  # the count stays on the CPU
        norm = step_clipped(adam, list(self.parameters.values()), edge_norm)
        self.state["weights"] = ArrayRecord(self.weights())
        self.state["adam"] = ArrayRecord(
            {
                f"{name}:{key}": value
                for name, p in self.parameters.items()
                for key, value in adam.state[p].items()
            }
        )
        return norm

    def weights(self):
        """This half's trainable parameters by name."""
        return {name: p.detach().cpu().clone() for name, p in self.parameters.items()}

    def reply(self, message, tensors=None, weights=None, **metrics):
        """The answer with what every answer says besides."""
        metrics |= {"partition-id": self.client, "num-examples": len(self.encoded)}
        content = RecordDict({"metrics": MetricRecord(metrics)})
        for name, part in (("tensors", tensors), ("weights", weights)):
            if part is not None:
                content[name] = ArrayRecord(
                    {key: value.detach().cpu().contiguous() for key, value in part.items()}
                )
        return Message(content, reply_to=message)

    def _load(self, record):
        with torch.no_grad():
            for name, value in tensors_of(record).items():
                self.parameters[name].copy_(value)

    def _batch(self):
        """The batch of the present step, drawn as `local.train` draws it: noisy latents, timesteps, text, target."""
        generator, encoded, schedule = torch.Generator(), self.encoded, self.task.schedule
        generator.set_state(tensors_of(self.state["draw"])["state"])
        pick = torch.randint(len(encoded), (self.scenario.batch_size,), generator=generator)
        latents, text = encoded.latents[pick], encoded.text[pick]  # (B, 4, h, w), (B, L, D)
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        timesteps = torch.randint(
            schedule.config.num_train_timesteps, (len(pick),), generator=generator
        )
        timesteps, self.state["next"] = (
            timesteps.to(text.device),
            ArrayRecord({"state": generator.get_state()}),
        )
        target = target_of(schedule, latents, noise, timesteps)
        return schedule.add_noise(latents, noise, timesteps), timesteps, text, target


def new_adam(parameters, learning_rate):
    """The optimiser of `local.train`."""
    return torch.optim.AdamW(list(parameters), lr=learning_rate, weight_decay=1e-2)


def step_clipped(adam, parameters, norm_elsewhere):
    """Clip by the norm over both halves, step, forget the gradients; returns the norm over these parameters alone."""
    norm = float(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    together = torch.tensor(math.hypot(norm, norm_elsewhere))
    torch.nn.utils.clip_grads_with_norm_(parameters, MAX_NORM, together)
    adam.step()
    adam.zero_grad()
    return norm
