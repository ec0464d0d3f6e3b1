"""Tensors on the wire of the U: written and read fast, and looked at before they are used.

What a client sends comes from outside: it may be an error, have another shape, or hold NaN, and the server's blocks are
everybody's. Labs 06 and 07.
"""

from functools import lru_cache

import torch

from fedgen_lab.federation import arrays
from fedgen_lab.federation.clients import checked
from fedgen_lab.split.defence import from_bytes
from fedgen_lab.split.nets import SIZES, new_discriminator, new_generator

SMASHED = {
    "g_head": 0,
    "d_head_fake": 1,
    "d_head_real": 2,
    "d_head_fool": 3,
}  # a head's activations; keys of noise
LARGEST = (
    1e6  # honest activations, gradients and weights are of the order of ten; noise adds to them
)


def array(tensor):
    """A tensor as Flower's `Array`."""
    return arrays.write(tensor.detach().cpu().contiguous().numpy())


def read(array):
    """A tensor from Flower's `Array`, which may come from anywhere."""
    return torch.from_numpy(arrays.read(array))


def checked_tensors(record, names, cut, batch, dtype, scenario):
    """The tensors `names` of an `ArrayRecord`, as floats. Raises ValueError when one has another shape or type than
    belongs at this cut, is not finite, or holds a number that honest training never makes."""
    tensors, largest = {}, LARGEST * (1 + scenario.noise)
    for name in names:
        tensor = read(record[name])
        if name in SMASHED and scenario.bits == 8:
            tensor = from_bytes(tensor, *read(record[f"{name}.scale"]).tolist(), dtype=dtype)
        shape = (batch, *_shape_at_the_cut(scenario.size, name, cut))
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise ValueError(
                f"sent {name!r} as {tensor.dtype} {tuple(tensor.shape)}, not {dtype} {shape}"
            )
        _check_size(name, tensor, largest)
        tensors[name] = tensor
    return tensors


def checked_blocks(record, expected, scenario):
    """The state of a client's blocks. Raises ValueError unless it is like `expected` in names, shapes and types, finite
    and no larger than honest training makes it."""
    blocks = {name: torch.from_numpy(value) for name, value in checked(record, expected).items()}
    largest = LARGEST * (1 + scenario.noise)
    for name, tensor in blocks.items():
        if tensor.is_floating_point():
            _check_size(
                name, tensor, largest**2 if name.endswith("running_var") else largest
            )  # a variance is a square
    return blocks


def _check_size(name, tensor, largest):
    """Raise ValueError when a number is NaN, infinite or larger than `largest`: one such spoils everybody's blocks."""
    found = max(abs(float(bound)) for bound in tensor.aminmax())
    if not found < float("inf"):
        raise ValueError(f"sent NaN or infinity in {name!r}")
    if found > largest:
        raise ValueError(
            f"sent a number of size {found:.3g} in {name!r}, where at most {largest:.3g} is taken"
        )


@lru_cache(maxsize=1024)
def _shape_at_the_cut(size_name, name, cut):
    """What one picture's activation looks like where this tensor crosses: behind block 0 or 1, or 3 or 2: (C, h, w)."""
    size, net = SIZES[size_name], name[0]
    first, third = cut[:2] if net == "g" else cut[2:]
    with torch.device("meta"):  # shapes without numbers
        blocks = new_generator(size, 0) if net == "g" else new_discriminator(size, 0)
        x = torch.zeros(2, size.z_dim) if net == "g" else torch.zeros(2, *size.picture)
        x = blocks[0](x, torch.zeros(2, dtype=torch.long))
        for block in list(blocks)[1 : 1 + (first if "head" in name else 3 - third)]:
            x = block(x)
    return tuple(x.shape[1:])
