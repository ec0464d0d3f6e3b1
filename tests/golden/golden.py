"""Golden outcomes: what one part of the package computed before it was rebuilt, kept as numbers, and how to compare.

An outcome is a name, a function that computes {what: value}, and a tolerance. Values may be whole numbers, texts and
lists of these (equal), other numbers (within the tolerance, relative), or the `fingerprint` of an array (each of its
numbers within the tolerance, relative to the array's norm). What is named in `WIRE` hangs on how Flower spells things.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

FILE = Path(__file__).with_name("outcomes.json")

DOUBLE = 1e-9  # computed in float64 from fixed numbers
SINGLE = 1e-5  # in float32 somewhere on the way, without training
PIXELS = 1e-3  # pictures: libraries of fonts and codecs may differ in a shade
TRAINED = 1e-3  # after steps of AdamW in float32, which makes whole steps even of the noise of a gradient near zero
COARSE = 2e-2  # a base in bfloat16
WIRE = {
    "bytes up",
    "bytes down",
    "seconds of rounds",
}  # within WIRE_TOLERANCE: a record's name may get longer
WIRE_TOLERANCE = 1e-2


class Outcome(NamedTuple):
    """What is computed, and how exactly it must come out again."""

    compute: Callable  # () -> {what: value}
    tolerance: float = DOUBLE


def fingerprint(array):
    """Three numbers and the shape of an array; no number and no pair of places can change unseen."""
    array = np.asarray(array, dtype=np.float64)
    flat, place = array.ravel(), np.arange(array.size)
    directions = (
        np.ones(array.size),
        np.cos(1 + 2.39996 * place),
    )  # all alike; every place with a weight of its own
    level, along = (float(flat @ one / max(np.linalg.norm(one), 1e-300)) for one in directions)
    return {
        "shape": list(array.shape),
        "norm": float(np.linalg.norm(flat)),
        "level": level,
        "along": along,
    }


def fingerprint_of(state):
    """The fingerprint of a dict of arrays or tensors, laid end to end in the order of their names."""
    return fingerprint(
        np.concatenate(
            [np.asarray(state[name], dtype=np.float64).ravel() for name in sorted(state)]
        )
    )


def plain(value):
    """A value as JSON gives it back: lists, dicts, texts, whole and other numbers."""
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def differences(name, frozen, now, tolerance):
    """Sentences that say where the values of an outcome are not what was frozen; an empty list if they are."""
    if frozen.keys() != now.keys():
        odd = ", ".join(sorted(frozen.keys() ^ now.keys()))
        return [f"{name}: {odd} is only in one of the frozen and the new outcome."]
    found = []
    for what in frozen:
        within = WIRE_TOLERANCE if what in WIRE else tolerance
        found += _apart(f"{name}: {what}", frozen[what], now[what], within, scale=None)
    return found


def _apart(what, frozen, now, within, scale):
    """The same for one value. `scale`: what the tolerance is relative to; the frozen number itself unless given."""
    if isinstance(frozen, dict) and isinstance(now, dict) and frozen.keys() == now.keys():
        scale = max(frozen["norm"], 1e-300) if "norm" in frozen and "along" in frozen else scale
        return [
            s
            for key in frozen
            for s in _apart(f"{what}, {key}", frozen[key], now[key], within, scale)
        ]
    if isinstance(frozen, list) and isinstance(now, list) and len(frozen) == len(now):
        pairs = enumerate(zip(frozen, now, strict=True))
        return [s for i, pair in pairs for s in _apart(f"{what}[{i}]", *pair, within, scale)]
    are_numbers = all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in (frozen, now)
    )
    is_measured = (
        isinstance(frozen, float) or isinstance(now, float) or any(name in what for name in WIRE)
    )
    if are_numbers and is_measured:
        if abs(frozen - now) <= within * (abs(frozen) if scale is None else scale):
            return []
        return [f"{what} was {frozen!r} and is now {now!r}; the tolerance is {within:g}."]
    return (
        []
        if frozen == now and type(frozen) is type(now)
        else [f"{what} was {frozen!r} and is now {now!r}."]
    )


def read_frozen(path=FILE):
    """{name: {"tolerance": ..., "values": {what: value}}} as recorded; empty before the first recording."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_frozen(frozen, path=FILE):
    """Write the outcomes, one line a value, in the order of their names."""
    lines = []
    for name in sorted(frozen):
        values = [
            f"      {json.dumps(what)}: {json.dumps(value)}"
            for what, value in frozen[name]["values"].items()
        ]
        head = f'  {json.dumps(name)}: {{\n    "tolerance": {frozen[name]["tolerance"]!r},\n    "values": {{\n'
        lines.append(head + ",\n".join(values) + "\n    }\n  }")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
