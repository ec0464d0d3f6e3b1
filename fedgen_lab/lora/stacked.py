"""All clients' adapters in one pass through the frozen UNet they share.

Lab 03. Clients that fine-tune the same base differ in their adapters alone. So the pictures of N clients go through
every frozen layer as one batch, and each adapted layer is one batched product: y_i = (W + (alpha / r) B_i A_i) x_i.
Clients never mix, AdamW works number by number, and gradients are clipped client by client, so the result equals N
times `local.train`. Serving many adapters at once this way: Punica (arXiv 2310.18547), S-LoRA (arXiv 2311.03285).
"""

from contextlib import contextmanager
from dataclasses import dataclass

import torch
from flwr.app import Context, Message
from torch import nn

from fedgen_lab.federation.grid import Stopped
from fedgen_lab.lora.local import noised_batch

MERGED = 8  # up to so many times the numbers of A and B, one large product with W + BA beats two thin ones beside W
PICTURES = 16  # in one pass: 32 are a tenth faster, and take 115 MB more


@dataclass(frozen=True)
class Turn:
    """One client's share of a round: the message that came, and what its training needs (see `local.train`)."""

    message: Message
    context: Context
    unet: nn.Module  # carries an adapter; clients with the same UNet can be computed together
    schedule: object
    encoded: object  # the client's own pictures
    state: dict  # what trains, by name, as it came; factors that are not in it are frozen and lie in the UNet
    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    scale: float | None = None  # alpha / rank of this client; None: as the UNet's adapter has it


def stacked_handler(begin, end, on_step=None):
    """A handler for `LabGrid(stacked=...)`: answers "train" messages as the plain client does, in few passes.

    `begin(message, context) -> Turn` and `end(turn, trained, losses) -> Message` are the plain client's own halves,
    before and after its training; either may raise, and only that client fails. `on_step(turn, step, steps, loss)` is
    called for every client after every step and may raise `Stopped`. Leaves to the plain client what has no stacked
    form: other messages, a single client, and full fine-tuning.
    """

    def handle(messages, contexts):
        if messages[0].metadata.message_type != "train" or len(messages) == 1:
            return None
        replies = [
            _attempt(begin, *pair) for pair in zip(messages, contexts, strict=True)
        ]  # a turn, or an exception
        turns = {number: turn for number, turn in enumerate(replies) if isinstance(turn, Turn)}
        if not all(_is_adapter(turn.state) for turn in turns.values()):
            return None
        for group in _groups(turns):
            done = _attempt(train_stacked, [turns[number] for number in group], on_step)
            for place, number in enumerate(group):
                one = done if isinstance(done, Exception) else done[place]
                replies[number] = (
                    one if isinstance(one, Exception) else _attempt(end, turns[number], *one)
                )
        return replies

    return handle


def train_stacked(turns, on_step=None):
    """`local.train` for several clients, `PICTURES` pictures at once; the turns have UNet, knobs and names in common.

    Returns for each client (state, losses), or the ValueError that its own training would have raised.
    """
    first, number = turns[0], len(turns)
    most = max(1, PICTURES // first.batch_size)
    if number > most:
        return train_stacked(turns[:most], on_step) + train_stacked(turns[most:], on_step)
    adapters = StackedAdapters(
        first.unet, [turn.state for turn in turns], [turn.scale for turn in turns]
    )
    factors = list(adapters.factors.values())
    optimizer = torch.optim.AdamW(factors, lr=first.learning_rate, weight_decay=1e-2, fused=True)
    generators = [torch.Generator().manual_seed(turn.seed) for turn in turns]
    losses, broken = [[] for _ in turns], {}
    with adapters.inside(first.unet):
        for step in range(1, first.steps + 1):
            drawn = [
                noised_batch(turn.schedule, turn.encoded, turn.batch_size, generator)
                for turn, generator in zip(turns, generators, strict=True)
            ]
            noisy, timesteps, text, target = map(
                torch.cat, zip(*drawn, strict=True)
            )  # (N * B, ...) each
            guess = first.unet(noisy, timesteps, encoder_hidden_states=text).sample
            loss = ((guess - target) ** 2).unflatten(0, (number, -1)).flatten(1).mean(dim=1)  # (N,)
            optimizer.zero_grad()
            loss.sum().backward()  # the gradient of a sum is each client's own
            _clip_each(factors, 1.0)
            optimizer.step()
            for i, value in enumerate(loss.tolist()):
                losses[i].append(value)
                if not torch.isfinite(loss[i]) and i not in broken:
                    why = f"The loss became {value} at step {step}; lower the learning rate ({first.learning_rate})."
                    broken[i] = ValueError(why)
                if on_step is not None and i not in broken:
                    on_step(turns[i], step, first.steps, value)
    return [broken.get(i) or (adapters.of(i), losses[i]) for i in range(number)]


class StackedAdapters:
    """The adapters of N clients: each factor one tensor (N, rows, columns), and the layers that use them."""

    def __init__(self, unet, states, scales=None):
        """states: N dicts of what trains (see `adapter.trainable_state`). scales: alpha / rank of each, or None.

        Ranks may differ: short factors are padded with zeros, which get no gradient and so stay zero.
        Raises ValueError when the states differ in names or in more than rank, or name what this UNet has not.
        """
        plain = {name: layer for name, layer in unet.named_modules() if hasattr(layer, "lora_A")}
        known = {f"{name}.lora_{factor}.default.weight" for name in plain for factor in "AB"}
        for i, state in enumerate(states):
            if odd := sorted((state.keys() ^ states[0].keys()) | (state.keys() - known)):
                raise ValueError(
                    f"Client {i} can't join this stack: {odd[0]!r} is not a factor that all of them train."
                )
            for name, tensor in state.items():
                across = 1 if ".lora_A." in name else 0  # the axis that is not the rank
                if tensor.shape[across] != (width := unet.get_parameter(name).shape[across]):
                    raise ValueError(
                        f"{name} has shape {tuple(tensor.shape)}; its axis {across} must be {width}."
                    )
        frozen = {name: unet.get_parameter(name).detach() for name in known - states[0].keys()}
        self.shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
        device = unet.device  # asked once: diffusers walks through the whole model to answer
        self.factors = {
            name: nn.Parameter(_padded([state[name].to(device) for state in states]))
            for name in states[0]
        }
        self.layers = {}
        for name, layer in plain.items():
            names = [f"{name}.lora_{factor}.default.weight" for factor in "AB"]
            a, b = (
                self.factors[n] if n in self.factors else frozen[n].expand(len(states), -1, -1)
                for n in names
            )
            own = layer.scaling["default"]
            scale = torch.tensor(
                [own if s is None else s for s in scales or [None] * len(states)], device=device
            )
            self.layers[name] = StackedLora(layer.base_layer, a, b, scale.view(-1, 1, 1))

    @contextmanager
    def inside(self, unet):
        """Put these layers in the place of peft's, channels last in memory; afterwards the UNet is as it was."""
        plain = {name: unet.get_submodule(name) for name in self.layers}
        try:
            for name, layer in self.layers.items():
                unet.set_submodule(name, layer)
            unet.to(
                memory_format=torch.channels_last
            )  # for the convolutions: one large batch likes it
            yield
        finally:
            for name, layer in plain.items():
                unet.set_submodule(name, layer)
            unet.to(memory_format=torch.contiguous_format)

    def of(self, client):
        """One client's state, with the names and shapes it came with; the tensors are copies on the CPU."""
        return {
            name: self.factors[name].data[client, :rows, :columns].to("cpu", copy=True)
            for name, (rows, columns) in self.shapes[client].items()
        }


class StackedLora(nn.Module):
    """One adapted linear layer of N clients: (N * B, ..., in) -> (N * B, ..., out)."""

    def __init__(self, base, a, b, scale):
        super().__init__()
        self.base, self.a, self.b, self.scale = (
            base,
            a,
            b,
            scale,
        )  # A (N, r, in), B (N, out, r), (N, 1, 1)

    def forward(self, x):
        number, rank, _ = self.a.shape
        weight, bias, b = self.base.weight, self.base.bias, self.b * self.scale
        rows = x.reshape(number, -1, x.shape[-1])  # (N, B * L, in)
        if weight.numel() <= MERGED * rank * sum(weight.shape):
            merged = torch.baddbmm(weight, b, self.a).mT  # (N, in, out)
            y = torch.bmm(rows, merged) if bias is None else torch.baddbmm(bias, rows, merged)
        else:
            y = torch.baddbmm(self.base(rows), torch.bmm(rows, self.a.mT), b.mT)
        return y.view(*x.shape[:-1], -1)


def _padded(factors):
    """(N, rows, columns) of N factors, the short ones padded with zeros."""
    rows, columns = (max(factor.shape[axis] for factor in factors) for axis in (0, 1))
    pad = torch.nn.functional.pad
    return torch.stack(
        [pad(f.detach(), (0, columns - f.shape[1], 0, rows - f.shape[0])) for f in factors]
    )


def _clip_each(factors, longest):
    """`clip_grad_norm_` client by client."""
    lengths = torch.stack(
        [torch.linalg.vector_norm(factor.grad, dim=(1, 2)) for factor in factors]
    ).norm(dim=0)  # (N,)
    for factor in factors:
        factor.grad.mul_((longest / (lengths + 1e-6)).clamp(max=1.0).view(-1, 1, 1))


def _attempt(work, *arguments):
    """What `work` returns, or the exception it raises: one client's trouble is not the others'."""
    try:
        return work(*arguments)
    except Stopped:
        raise
    except Exception as error:
        return error


def _is_adapter(state):
    return all(
        name.endswith((".lora_A.default.weight", ".lora_B.default.weight")) for name in state
    )


def _groups(turns):
    """Lists of keys of `turns` that can be trained together."""
    alike = {}
    for key, turn in turns.items():
        kind = (id(turn.unet), turn.steps, turn.batch_size, turn.learning_rate, *turn.state)
        alike.setdefault(kind, []).append(key)
    return alike.values()
