"""Numbers in Flower's records, written and read fast: the bytes of `Array(values)`, the values of `array.numpy()`.

Every array on the wire is a small .npy file. Its header is parsed once for each shape and type instead of each time,
which makes reading an adapter tens of times as fast. Used by everything federated.
"""

from functools import lru_cache
from io import BytesIO

import numpy as np
from flwr.app import Array, ArrayRecord


def write(values):
    """A NumPy array as Flower's `Array`."""
    data = _npy_header(values.dtype, values.shape) + values.tobytes()
    return Array(dtype=str(values.dtype), shape=values.shape, stype="numpy.ndarray", data=data)


def read(array):
    """The NumPy array in Flower's `Array`, which may come from anywhere; one's own to change."""
    shape, dtype = tuple(array.shape), np.dtype(array.dtype)
    header = _npy_header(dtype, shape)
    if not array.data.startswith(header) or len(array.data) == len(header):
        return array.numpy()
    return np.frombuffer(array.data, dtype, offset=len(header)).reshape(shape).copy()


def values_of(record):
    """The NumPy arrays in an `ArrayRecord` by name."""
    return {name: read(array) for name, array in record.items()}


def record_of(values):
    """NumPy arrays by name as an `ArrayRecord`."""
    return ArrayRecord({name: write(np.asarray(value)) for name, value in values.items()})


def tensors_of(record):
    """The tensors in an `ArrayRecord` by name, as its `to_torch_state_dict` gives them."""
    import torch

    return {name: torch.from_numpy(value) for name, value in values_of(record).items()}


@lru_cache(maxsize=1024)
def _npy_header(dtype, shape):
    """How a .npy file of such an array begins."""
    file = BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": dtype.str, "fortran_order": False, "shape": shape}
    )
    return file.getvalue()
