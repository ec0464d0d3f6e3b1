"""Compressed uploads: what arrives is what was meant, on average or in the end, and damage is named."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flwr.app import Array, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from fedgen_lab.lora.upload import MEMORY, pack, unpack

SHAPES = {
    "q.lora_B.default.weight": (32, 8),
    "q.lora_A.default.weight": (8, 48),
    "conv": (6, 4, 3, 3),
    "bias": (5,),
}
NUMBERS = sum(math.prod(shape) for shape in SHAPES.values())


def scenario(upload, keep=0.1):
    return SimpleNamespace(upload=upload, keep=keep)


def tensors(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def trained_from(received, seed, scale=1e-3):
    """A client's tensors: what it received, changed a little."""
    return {name: received[name] + value for name, value in tensors(seed, scale).items()}


def across_the_wire(arrays):
    wire = recorddict_to_proto(RecordDict({"arrays": arrays}))
    return recorddict_from_proto(wire)["arrays"], wire.ByteSize()


def send(trained, received, how, state=None, seed=0):
    arrays, _ = across_the_wire(
        pack(trained, received, how, RecordDict() if state is None else state, seed)
    )
    return unpack(
        arrays, dict(reversed(received.items())), how
    )  # the server's order of names does not matter


def distance(some, others):
    return torch.sqrt(sum(((some[name] - others[name]) ** 2).sum() for name in some)).item()


def test_float32_arrives_bit_for_bit():
    received, trained = tensors(0), trained_from(tensors(0), 1)
    arrived = send(trained, received, scenario("float32"))
    assert all(torch.equal(arrived[name], value) for name, value in trained.items())


@pytest.mark.parametrize("scale", [1e-7, 1e-3, 1.0, 1e5])
def test_int8_is_never_off_by_more_than_one_step_of_its_row(scale):
    received = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    trained = tensors(3, scale)
    arrived = send(trained, received, scenario("int8"))
    for name, value in trained.items():
        rows = value.reshape(len(value), -1) if value.dim() > 1 else value.reshape(1, -1)
        step = (rows.abs().amax(1) / 127).clamp_min(
            2**-24
        ) * 1.002 + 2**-24  # float16 rounds the step up
        error = (arrived[name] - value).reshape(rows.shape).abs()
        assert (error <= step[:, None] * (1 + 1e-3)).all()


def test_int8_is_right_on_average_where_rounding_to_the_nearest_is_not():
    torch.manual_seed(0)
    received = {"w": torch.zeros(4, 50)}
    trained = {"w": torch.full((4, 50), 0.3) / 127}  # three tenths of a step: the nearest is zero
    trained["w"][:, 0] = 1.0  # sets the step
    arrived = torch.stack(
        [send(trained, received, scenario("int8"), seed=s)["w"] for s in range(400)]
    )  # (400, 4, 50)
    mean, spread = arrived.mean(0), arrived.std(0) / math.sqrt(400)
    assert ((mean - trained["w"]).abs() <= 5 * spread + 1e-9).all() and spread[:, 1:].min() > 0
    assert (mean[:, 1:].mean() - 0.3 / 127).abs() < 0.02 / 127


def test_the_same_seed_rounds_alike_and_another_seed_does_not():
    received, trained = tensors(0), trained_from(tensors(0), 1)
    first, again, other = (send(trained, received, scenario("int8"), seed=s) for s in (7, 7, 8))
    assert distance(first, again) == 0 < distance(first, other)


def test_an_unchanged_client_sends_no_change():
    received = tensors(0)
    for upload in ("int8", "top-k"):
        assert distance(send(received, received, scenario(upload)), received) == 0


@pytest.mark.parametrize("keep", [0.01, 0.1, 0.5])
def test_top_k_sends_the_largest_entries_exactly_and_nothing_else(keep):
    received, trained = tensors(0), trained_from(tensors(0), 1)
    arrived, number = send(trained, received, scenario("top-k", keep)), round(keep * NUMBERS)
    meant = torch.cat([(trained[n] - received[n]).flatten() for n in sorted(SHAPES)])
    got = torch.cat([(arrived[n] - received[n]).flatten() for n in sorted(SHAPES)])
    largest = torch.zeros(NUMBERS, dtype=bool)
    largest[meant.abs().topk(number).indices] = True
    torch.testing.assert_close(got[largest], meant[largest], rtol=1e-3, atol=1e-6)
    assert (got[~largest] == 0).all()


def test_with_error_feedback_the_sum_of_what_arrived_becomes_the_sum_of_what_was_meant():
    received, state, how = tensors(0), RecordDict(), scenario("top-k", 0.1)
    arrived, meant = (
        {name: torch.zeros(shape) for name, shape in SHAPES.items()},
        dict.fromkeys(SHAPES, 0),
    )
    for _ in range(60):
        trained = trained_from(received, 1)  # the same change every time
        got = send(trained, received, how, state)
        arrived = {name: arrived[name] + got[name] - received[name] for name in SHAPES}
        meant = {name: meant[name] + trained[name] - received[name] for name in SHAPES}
        unsent = state[MEMORY].to_torch_state_dict()
        assert (
            distance({n: arrived[n] + unsent[n] for n in SHAPES}, meant) < 1e-4
        )  # nothing is ever lost
    size = distance(meant, {name: torch.zeros(shape) for name, shape in SHAPES.items()})
    without = send(
        trained_from(received, 1), received, how
    )  # no memory: the same tenth again and again
    lost = distance({n: 60 * (without[n] - received[n]) for n in SHAPES}, meant)
    assert distance(arrived, meant) < 0.25 * size < 0.5 * lost


def test_memory_is_kept_by_name_when_rounds_alternate_between_factors():
    received, state, how = tensors(0), RecordDict(), scenario("top-k", 0.1)
    trained, names = trained_from(received, 1), sorted(SHAPES)

    def turn(which):
        pack({n: trained[n] for n in which}, {n: received[n] for n in which}, how, state, 0)
        return state[MEMORY].to_torch_state_dict()

    first, both = turn(names[:1]), turn(names[1:])
    assert set(both) == set(names) and torch.equal(first[names[0]], both[names[0]])


def test_fewer_bytes_cross_the_wire():
    big = {"a": torch.zeros(400, 100), "b": torch.zeros(100, 400)}
    change = {
        name: torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
        for name, value in big.items()
    }
    number = 80_000

    def size(upload, keep=0.1):
        return across_the_wire(pack(change, big, scenario(upload, keep), RecordDict(), 0))[1]

    slack = 700  # headers of two arrays
    assert size("float32") - 4 * number < slack
    assert 0 < size("int8") - (number + 2 * 500) < slack
    assert (
        0 < size("top-k", 0.1) - (4 * 8_000 + number // 8) < slack
    )  # one bit says whether a number was sent
    assert 0 < size("top-k", 0.01) - (4 + 4) * 800 < slack  # four bytes say where a number belongs


@pytest.mark.parametrize("upload", ["int8", "top-k"])
def test_an_update_that_is_not_finite_is_refused_on_the_device(upload):
    received, trained = tensors(0), tensors(1)
    trained["conv"][0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="'conv' has NaN or infinity"):
        pack(trained, received, scenario(upload), RecordDict(), 0)


def test_an_update_too_large_for_int8_is_refused_on_the_device():
    with pytest.raises(ValueError, match="'conv' reaches .* too large for int8"):
        pack(
            {"conv": torch.full((2, 2), 1e9)},
            {"conv": torch.zeros(2, 2)},
            scenario("int8"),
            RecordDict(),
            0,
        )


def damaged(upload, name, value):
    received, how = tensors(0), scenario(upload, 0.01 if upload == "top-k" else 0.1)
    arrays = pack(trained_from(received, 1), received, how, RecordDict(), 0)
    if value is None:
        del arrays[name]
    else:
        arrays[name] = (
            value if isinstance(value, Array) else Array(value(arrays[name].numpy().copy()))
        )
    return unpack(arrays, received, how)


def at_0(value):
    def put(numbers):
        numbers.flat[0] = value
        return numbers

    return put


KEPT = round(0.01 * NUMBERS)
DAMAGE = {
    "int8-values-missing": ("int8", "values", None, "left out 1 arrays, the first is 'values'"),
    "int8-scale-nan": ("int8", "scales", at_0(np.nan), "NaN or infinity in 'scales'"),
    "int8-one-scale-too-few": (
        "int8",
        "scales",
        lambda v: v[1:],
        "'scales' as float16 .* where float16",
    ),
    "int8-values-as-floats": (
        "int8",
        "values",
        lambda v: v.astype(np.float32),
        "'values' as float32",
    ),
    "int8-extra": ("int8", "extra", lambda v: v, "'extra'"),
    "int8-garbage": (
        "int8",
        "values",
        Array("int8", (3,), "numpy.ndarray", b"none"),
        "'values' in a form that cannot",
    ),
    "top-k-values-infinite": ("top-k", "values", at_0(np.inf), "NaN or infinity in 'values'"),
    "top-k-too-many-values": (
        "top-k",
        "values",
        lambda v: np.append(v, v),
        f"where float32 \\({KEPT},\\) belongs",
    ),
    "top-k-negative-place": ("top-k", "places", at_0(-1), "are not .* different places below"),
    "top-k-place-too-large": (
        "top-k",
        "places",
        lambda v: np.append(v[:-1], np.int32(NUMBERS)),
        "places below",
    ),
    "top-k-same-place-twice": (
        "top-k",
        "places",
        lambda v: np.repeat(v[:1], len(v)),
        "different places",
    ),
    "float32-nan": ("float32", "bias", at_0(np.nan), "NaN or infinity in 'bias'"),
    "float32-wrong-rank": (
        "float32",
        "q.lora_A.default.weight",
        lambda v: v[:4],
        r"as float32 \(4, 48\)",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_refused_by_name(case):
    upload, name, value, sentence = DAMAGE[case]
    if case == "int8-extra":
        value = Array(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=sentence):
        damaged(upload, name, value)


def test_a_mask_with_another_number_of_places_is_refused():
    received, how = tensors(0), scenario("top-k", 0.5)
    arrays = pack(trained_from(received, 1), received, how, RecordDict(), 0)
    arrays["places"] = Array(np.zeros_like(arrays["places"].numpy()))
    with pytest.raises(ValueError, match="different places"):
        unpack(arrays, received, how)
