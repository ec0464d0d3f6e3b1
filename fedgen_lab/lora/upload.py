"""Smaller uploads: int8 with stochastic rounding, and top-k with error feedback, on a client's update.

What travels is the difference between what a client trained and what it received, because the server knows the
second. int8: one scale a row, and rounding up or down by chance, so that the mean over many rounds is right (QSGD:
Alistarh et al. 2017, arXiv 1610.02132). Top-k: the largest entries only; the rest is remembered on the device and added
to the next update, so that it arrives later instead of never (Stich et al. 2018, arXiv 1809.07599). Taught in lab 05.
"""

import numpy as np
import torch
from flwr.app import Array, ArrayRecord

from fedgen_lab.federation.clients import checked

MEMORY = "top-k-memory"  # where a client's Context.state keeps what it has not sent yet
LARGEST = 127  # of an int8; -128 is not used, so that both signs reach equally far


def pack(trained, received, scenario, state, seed):
    """What a client uploads, as the `ArrayRecord` that crosses the wire.

    `trained`: name -> tensor, what the client has now; `received`: the same names and shapes, the start that the server
    knows too. `scenario.upload` says how: "float32" sends `trained` as it is; "int8" sends int8 "values" (n,) and
    float16 "scales" (rows,) of the difference; "top-k" sends its largest `scenario.keep` * n entries, float32 "values"
    (k,) and their "places", and keeps the rest in `state` (a Flower `RecordDict` that outlives the round). `seed`
    decides the rounding.

    Raises ValueError when a number is not finite, or an update is too large for int8.
    """
    if scenario.upload == "float32":
        return ArrayRecord(trained)
    update = {name: (trained[name] - received[name]).float().cpu() for name in sorted(trained)}
    for name, value in update.items():
        if not torch.isfinite(value).all():
            raise ValueError(
                f"The update of {name!r} has NaN or infinity in it; lower the learning rate."
            )
    if scenario.upload == "int8":
        generator = torch.Generator().manual_seed(int(seed))
        rows = [_round_by_chance(name, _rows(value), generator) for name, value in update.items()]
        upload = {
            "values": torch.cat([values.flatten() for values, _ in rows]),
            "scales": torch.cat([scales for _, scales in rows]),
        }
    else:
        memory = state[MEMORY].to_torch_state_dict() if MEMORY in state else {}
        meant = {name: value + memory.get(name, 0) for name, value in update.items()}
        flat = torch.cat([value.flatten() for value in meant.values()])  # (n,)
        largest = flat.abs().topk(_number_kept(len(flat), scenario.keep))
        places = largest.indices.sort().values  # (k,)
        upload = {"values": flat[places], "places": _write_places(places, len(flat))}
        unsent = flat.clone()
        unsent[places] = 0
        state[MEMORY] = ArrayRecord(memory | _cut(unsent, update))
    return ArrayRecord({name: Array(value.numpy()) for name, value in upload.items()})


def unpack(arrays, received, scenario):
    """What `pack` meant: name -> float32 tensor, from the `ArrayRecord` that arrived and the start the client had.

    Raises ValueError with the end of a sentence (see `federation.clients`), naming the array, when one is missing or
    too many, or has another shape or kind than the upload's form asks for, or holds NaN or infinity, or a place that is
    none.
    """
    start = {name: received[name] for name in sorted(received)}
    number = sum(value.numel() for value in start.values())
    if scenario.upload == "float32":
        return _tensors(checked(arrays, received))
    if scenario.upload == "int8":
        rows = [_rows(value).shape for value in start.values()]  # (rows, columns) of every tensor
        columns = torch.tensor([width for high, width in rows for _ in range(high)])
        form = {"values": np.empty(number, np.int8), "scales": np.empty(len(columns), np.float16)}
        upload = _tensors(checked(arrays, form))
        flat = upload["values"].float() * upload["scales"].float().repeat_interleave(columns)
    else:
        kept = _number_kept(number, scenario.keep)
        form = {"values": np.empty(kept, np.float32), "places": _form_of_places(kept, number)}
        upload = checked(arrays, form)
        places = _read_places(upload["places"], number, kept)
        flat = torch.zeros(number)
        flat[places] = torch.from_numpy(upload["values"])
    return {name: start[name].float().cpu() + change for name, change in _cut(flat, start).items()}


def _round_by_chance(name, rows, generator):
    """int8 values (R, C) and float16 scales (R,) whose product is `rows` (R, C) on average: up or down, by chance."""
    exact = rows.abs().amax(1) / LARGEST  # (R,)
    scales = exact.half()
    if not torch.isfinite(scales).all():
        raise ValueError(
            f"The update of {name!r} reaches {rows.abs().max():.3g}, too large for int8; send float32."
        )
    too_small = scales.float() < exact  # rounding to half must not cut off a row's largest value
    scales = torch.where(
        too_small, torch.nextafter(scales, torch.tensor(torch.inf, dtype=torch.half)), scales
    )
    steps = rows / scales.float().clamp_min(2.0**-24)[:, None]  # a row of zeros has scale zero
    values = torch.floor(steps + torch.rand(rows.shape, generator=generator))
    return values.clamp(-LARGEST, LARGEST).to(torch.int8), scales


def _rows(value):
    """A tensor as rows (R, C): a matrix as it is, a convolution by output channel, a vector as one row."""
    return value.reshape(len(value), -1) if value.dim() > 1 else value.reshape(1, -1)


def _cut(flat, like):
    """A vector (n,) as tensors with the names and shapes of `like`, in its order."""
    pieces = flat.split([value.numel() for value in like.values()])
    return {
        name: piece.view(value.shape)
        for (name, value), piece in zip(like.items(), pieces, strict=True)
    }


def _number_kept(number, keep):
    return max(1, round(number * keep))


def _form_of_places(kept, number):
    """An empty array for the places in the shorter form: four bytes each, or a bit for every place there is."""
    marks = -(-number // 8)
    return np.empty(kept, np.int32) if 4 * kept <= marks else np.empty(marks, np.uint8)


def _write_places(places, number):
    if _form_of_places(len(places), number).dtype == np.int32:
        return places.to(torch.int32)
    marked = np.zeros(number, bool)
    marked[places.numpy()] = True
    return torch.from_numpy(np.packbits(marked))


def _read_places(written, number, kept):
    is_marked = written.dtype == np.uint8
    places = np.flatnonzero(np.unpackbits(written)) if is_marked else written
    in_order = len(places) == kept and (np.diff(places) > 0).all()
    if not (in_order and places[0] >= 0 and places[-1] < number):
        raise ValueError(
            f"sent 'places' that are not {kept} different places below {number}, in order"
        )
    return torch.from_numpy(places).long()


def _tensors(values):
    return {name: torch.from_numpy(value) for name, value in values.items()}
