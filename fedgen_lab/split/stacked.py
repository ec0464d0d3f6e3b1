"""Many clients in one pass: N blocks of equal shape become one block whose tensors have a first axis for the client.

Labs 06 and 07. Clients never mix: client i's slice of every tensor goes through client i's weights, and BatchNorm takes
its mean and spread per client and channel, so results equal N separate passes. What is saved is the overhead of many
small calls, and of many optimisers: one Adam over the stacked tensors is N Adams, because Adam works number by number.
Convolution for many at once is convolution in groups (Krizhevsky et al. 2012), one group a client. Large convolutions
are different: there the arithmetic is the cost, and a loop over clients that keeps channels last in memory wins.
"""

from copy import copy

import torch
import torch.nn.functional as F
from torch import nn

from fedgen_lab.split.nets import DiscriminatorHead, GeneratorHead

LITTLE_WORK = 10e6  # multiplications of one client's convolution; beyond it, calls cost nothing and layout decides


def stack(blocks):
    """One module that does what these N equal-shaped `blocks` do: (N, B, ...) -> (N, B, ...).

    Takes any block of `fedgen_lab.split.nets`, or a chain of them (`nn.Sequential`, `nn.ModuleList`). A head takes
    (N, B, Z) or (N, B, C, H, W) and labels (N, B). The stacked tensors are copies and have the names of the plain ones,
    so `run_blocks`, `new_adam` and `state_dict` work as they do there. The training mode is that of the first block.

    Raises ValueError for no blocks, for blocks that differ in shape, or for a layer that has no stacked form.
    """
    blocks = list(blocks)
    if not blocks:
        raise ValueError("There is no block to stack; give a list of at least one.")
    shapes = [
        {name: (tensor.shape, tensor.dtype) for name, tensor in block.state_dict().items()}
        for block in blocks
    ]
    for i, other in enumerate(shapes):
        if other != shapes[0]:
            name = next(n for n in (*shapes[0], *other) if shapes[0].get(n) != other.get(n))
            raise ValueError(
                f"Block {i} can't be stacked on block 0: their tensor {name!r} is {_words(other.get(name))} and "
                f"{_words(shapes[0].get(name))}. Stack clients only where they hold the same block of one size."
            )
    module = _stacked(blocks[0], len(blocks))
    load(module, [block.state_dict() for block in blocks])
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(blocks[0].get_parameter(name).requires_grad)
    return module.train(blocks[0].training)


@torch.no_grad()
def load(module, states):
    """Copy N plain state dicts into a stacked module: the one at place i becomes client i. Optimisers stay valid.

    Raises ValueError when their number or their names don't fit.
    """
    for name, tensor in module.state_dict().items():
        if len(states) != len(tensor):
            raise ValueError(
                f"This stack holds {len(tensor)} clients, but {len(states)} state dicts were given."
            )
        for i, state in enumerate(states):
            if name not in state:
                raise ValueError(
                    f"State dict {i} has no tensor {name!r}; it has {', '.join(state)}."
                )
            tensor[i].copy_(state[name])


def unstack(module):
    """The N plain state dicts of a stacked module, with the plain names and shapes; the tensors are copies."""
    stacked = module.state_dict()
    num_clients = len(next(iter(stacked.values())))
    return [
        {name: tensor[i].clone() for name, tensor in stacked.items()} for i in range(num_clients)
    ]


class StackedLinear(nn.Module):
    """N linear layers: (N, B, in) -> (N, B, out)."""

    def __init__(self, layer, num_clients):
        super().__init__()
        self.weight = _room_for(layer.weight, num_clients)  # (N, out, in)
        self.bias = _room_for(layer.bias, num_clients)  # (N, out)

    def forward(self, x):
        clients = zip(x.unbind(), self.weight.unbind(), self.bias.unbind(), strict=True)
        rows = [
            F.linear(*client) for client in clients
        ]  # one large product would copy the gradient of its weights
        return torch.stack(rows, dim=1).transpose(0, 1)  # lies in memory as BatchNorm wants it


class StackedEmbedding(nn.Module):
    """N tables of K rows: whole numbers (N, B) -> (N, B, E)."""

    def __init__(self, layer, num_clients):
        super().__init__()
        self.weight = _room_for(layer.weight, num_clients)  # (N, K, E)

    def forward(self, rows):
        num_clients, num_rows, _ = self.weight.shape
        offsets = num_rows * torch.arange(num_clients, device=rows.device).unsqueeze(1)
        return F.embedding(rows + offsets, self.weight.flatten(0, 1))  # one table of N * K rows


class StackedConv(nn.Module):
    """N convolutions, or N transposed ones, as one with N groups: (N, B, C, H, W) -> (N, B, C', H', W')."""

    def __init__(self, layer, num_clients):
        super().__init__()
        self.weight = _room_for(
            layer.weight, num_clients
        )  # (N, C', C, k, k), transposed: (N, C, C', k, k)
        self.bias = _room_for(layer.bias, num_clients)  # (N, C')
        self.convolve = F.conv_transpose2d if isinstance(layer, nn.ConvTranspose2d) else F.conv2d
        self.stride, self.padding = layer.stride, layer.padding

    def forward(self, x):
        weight, bias = self.weight.flatten(0, 1), self.bias.flatten()
        return _apart(
            self.convolve(_side_by_side(x), weight, bias, self.stride, self.padding, groups=len(x)),
            len(x),
        )

    def one_by_one(self, xs):
        """A list of N inputs (B, C, H, W) -> a list of outputs."""
        clients = zip(
            xs, self.weight.unbind(), self.bias.unbind(), strict=True
        )  # unbind: one gradient for the stack
        return [
            self.convolve(x, weight, bias, self.stride, self.padding) for x, weight, bias in clients
        ]

    def work(self, x):
        """How many multiplications one client's share of x (N, B, C, H, W) takes."""
        positions = x[0, :, 0].numel()
        if self.convolve is F.conv2d:
            positions //= self.stride[0] * self.stride[1]
        return positions * self.weight[0].numel()


class StackedBatchNorm(nn.Module):
    """N BatchNorms: (N, B, C, ...) -> the same shape, each (client, channel) by its own mean and spread.

    Behaves as `nn.BatchNorm2d` does: `training` and `track_running_stats` decide what is used and what is updated.
    """

    def __init__(self, layer, num_clients):
        super().__init__()
        self.weight = _room_for(layer.weight, num_clients)  # (N, C), and so are the next three
        self.bias = _room_for(layer.bias, num_clients)
        self.register_buffer("running_mean", _room_for(layer.running_mean, num_clients))
        self.register_buffer("running_var", _room_for(layer.running_var, num_clients))
        self.register_buffer(
            "num_batches_tracked", _room_for(layer.num_batches_tracked, num_clients)
        )  # (N,)
        self.eps, self.momentum, self.track_running_stats = (
            layer.eps,
            layer.momentum,
            layer.track_running_stats,
        )

    def forward(self, x):
        mean, var = self._running()
        flat = [
            None if tensor is None else tensor.view(-1)
            for tensor in (mean, var, self.weight, self.bias)
        ]
        return _apart(
            F.batch_norm(_side_by_side(x), *flat, self.training, self.momentum, self.eps), len(x)
        )

    def one_by_one(self, xs):
        """A list of N inputs (B, C, ...) -> a list of outputs."""
        mean, var = (x if x is not None else [None] * len(xs) for x in self._running())
        clients = zip(xs, mean, var, self.weight.unbind(), self.bias.unbind(), strict=True)
        return [F.batch_norm(*client, self.training, self.momentum, self.eps) for client in clients]

    def _running(self):
        """The statistics that this pass uses or updates: none while training without tracking."""
        if self.training and not self.track_running_stats:
            return None, None
        if self.training:
            self.num_batches_tracked.add_(1)
        return self.running_mean, self.running_var


class StackedSequential(nn.Sequential):
    """A chain of stacked layers. One that starts with a large convolution goes through them client by client.

    Measured on one core (AVX2): at 64 pictures a client and the reference size, BatchNorm is three times as fast with
    channels last, and convolution a tenth faster than in groups; at 16 pictures and 32 channels groups are faster.
    """

    def forward(self, x):
        if not self._is_large(x):
            return super().forward(x)
        return torch.cat(self.one_by_one(x.unbind())).unflatten(
            0, (len(x), -1)
        )  # cat, unlike stack, keeps channels last

    def one_by_one(self, xs):
        """A list of N inputs (B, C, H, W) -> a list of outputs; spares a large chain the copies into one tensor."""
        if not self._is_large(xs[0].unsqueeze(0)):
            return self(torch.cat(xs).unflatten(0, (len(xs), -1))).unbind()
        xs = [x.contiguous(memory_format=torch.channels_last) for x in xs]
        for layer in self:
            xs = layer.one_by_one(xs) if hasattr(layer, "one_by_one") else [layer(x) for x in xs]
        return xs

    def _is_large(self, x):
        return isinstance(self[0], StackedConv) and self[0].work(x) >= LITTLE_WORK


class StackedGeneratorHead(nn.Module):
    """N of `nets.GeneratorHead`: z (N, B, Z), labels (N, B) -> (N, B, C, s, s)."""

    def __init__(self, head, num_clients):
        super().__init__()
        self.embedding, self.body = (
            _stacked(head.embedding, num_clients),
            _stacked(head.body, num_clients),
        )

    def forward(self, z, labels):
        return self.body(torch.cat([z, self.embedding(labels)], dim=2))

    def one_by_one(self, z, labels):
        """The same, as a list of N outputs."""
        return self(z, labels).unbind()


class StackedDiscriminatorHead(nn.Module):
    """N of `nets.DiscriminatorHead`: x (N, B, C, H, W), labels (N, B) -> (N, B, C', h, w)."""

    def __init__(self, head, num_clients):
        super().__init__()
        self.embedding, self.body = (
            _stacked(head.embedding, num_clients),
            _stacked(head.body, num_clients),
        )

    def forward(self, pictures, labels):
        return self.body(self._with_labels(pictures, labels))

    def one_by_one(self, pictures, labels):
        """The same, as a list of N outputs."""
        return self.body.one_by_one(self._with_labels(pictures, labels).unbind())

    def _with_labels(self, pictures, labels):
        drawn = self.embedding(labels).unflatten(2, (1, *pictures.shape[-2:]))  # (N, B, 1, H, W)
        return torch.cat([pictures, drawn], dim=2)


def _stacked(layer, num_clients):
    """The stacked form of one layer, still empty."""
    match layer:
        case nn.Sequential():
            return StackedSequential(*(_stacked(part, num_clients) for part in layer))
        case nn.ModuleList():
            return nn.ModuleList(_stacked(part, num_clients) for part in layer)
        case GeneratorHead():
            return StackedGeneratorHead(layer, num_clients)
        case DiscriminatorHead():
            return StackedDiscriminatorHead(layer, num_clients)
        case nn.Linear():
            return StackedLinear(layer, num_clients)
        case nn.Embedding():
            return StackedEmbedding(layer, num_clients)
        case nn.Conv2d() | nn.ConvTranspose2d():
            return StackedConv(layer, num_clients)
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            return StackedBatchNorm(layer, num_clients)
        case nn.Flatten():
            return nn.Flatten(layer.start_dim + 1, layer.end_dim)
        case nn.Unflatten():
            return nn.Unflatten(layer.dim + 1, layer.unflattened_size)
        case nn.ReLU() | nn.LeakyReLU() | nn.Tanh():
            return copy(layer)
    raise ValueError(
        f"A layer of type {type(layer).__name__} has no stacked form; only those of nets.py have one."
    )


def _room_for(tensor, num_clients):
    """An empty tensor like this one with a first axis for the client; a parameter stays a parameter."""
    room = tensor.detach().new_empty((num_clients, *tensor.shape))
    return nn.Parameter(room) if isinstance(tensor, nn.Parameter) else room


def _side_by_side(x):
    """(N, B, C, ...) -> (B, N * C, ...); no copy where the numbers lie that way already, as behind `_apart`."""
    return x.transpose(0, 1).flatten(1, 2)


def _apart(x, num_clients):
    """(B, N * C, ...) -> (N, B, C, ...), a view: clients come first in shape, not in memory."""
    return x.unflatten(1, (num_clients, -1)).transpose(0, 1)


def _words(shape_and_type):
    if shape_and_type is None:
        return "missing"
    shape, dtype = shape_and_type
    return f"{tuple(shape)} of {str(dtype).removeprefix('torch.')}"
