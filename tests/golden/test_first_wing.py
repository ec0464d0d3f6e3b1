"""Golden outcomes: what the first wing computed before its rebuild, it computes after it. See golden.py and record.py.

Every number was recorded by `python tests/golden/freeze.py` and must hold on three instruction sets
(ATEN_CPU_CAPABILITY=default with ONEDNN_MAX_CPU_ISA=SSE41, avx2 with AVX2, and as the processor is), on one thread and
two. Who means to change one says so: `python tests/golden/freeze.py --accept "NAME"`.
"""

from copy import deepcopy
from unittest.mock import patch

import pytest
import wing
from averages import merged
from first_wing import OUTCOMES
from freeze import record
from golden import DOUBLE, SINGLE, Outcome, differences, plain, read_frozen

FROZEN = read_frozen()


@pytest.mark.parametrize("name", OUTCOMES)
def test_it_computes_what_was_frozen(name):
    assert name in FROZEN, f"{name} was never recorded: python tests/golden/freeze.py"
    now = plain(OUTCOMES[name].compute())
    assert not (
        apart := differences(name, FROZEN[name]["values"], now, FROZEN[name]["tolerance"])
    ), "\n".join(apart)


def test_every_frozen_outcome_is_still_computed_within_the_tolerance_that_is_stated():
    assert {name: frozen["tolerance"] for name, frozen in FROZEN.items()} == {
        name: outcome.tolerance for name, outcome in OUTCOMES.items()
    }


def test_a_rule_that_weighs_its_clients_in_another_order_is_noticed():
    name, mean = "rule fedit: one merge", wing.rules.mean
    with patch(wing.AGGREGATOR, lambda uploads, weights: mean(uploads, weights[::-1])):
        (*apart,) = differences(name, FROZEN[name]["values"], plain(merged("fedit")), SINGLE)
    assert apart and all("adapter" in sentence for sentence in apart)
    assert not differences(name, FROZEN[name]["values"], plain(merged("fedit")), SINGLE)


def numbers_in(value, path=()):
    """Where the measured numbers of some values stand, as paths of keys."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [found for key, each in items for found in numbers_in(each, (*path, key))]
    return [path] if isinstance(value, int | float) and not isinstance(value, bool) else []


def at(values, path):
    """What stands at a path."""
    for key in path:
        values = values[key]
    return values


@pytest.mark.parametrize("name", FROZEN)
def test_any_one_number_that_is_off_by_three_tolerances_is_noticed(name):
    frozen, tolerance = FROZEN[name]["values"], FROZEN[name]["tolerance"]
    moved, paths = deepcopy(frozen), numbers_in(frozen)
    for path in paths[:: 1 + len(paths) // 20]:  # about twenty of each outcome
        around, number = at(moved, path[:-1]), at(frozen, path)
        norm = around["norm"] if isinstance(around, dict) and "along" in around else None
        within = 1e-2 if path[0] in ("bytes up", "bytes down", "seconds of rounds") else tolerance
        apart = (
            3 * within * (abs(number) if norm is None else norm) if isinstance(number, float) else 0
        )
        around[path[-1]] = number + (apart or 1 + int(3 * within * abs(number)))
        assert differences(name, frozen, moved, tolerance), f"{path} may be anything"
        around[path[-1]] = number


def test_recording_refuses_to_overwrite_a_number_that_differs_unless_it_is_accepted(tmp_path):
    path, number = tmp_path / "outcomes.json", [1.0]
    outcomes = {
        "a": Outcome(lambda: {"loss": number[0]}),
        "b": Outcome(lambda: {"names": ["client 1"]}),
    }
    assert not record(outcomes, path) and not record(outcomes, path)
    before = path.read_text(encoding="utf-8")
    number[0] += 1e-6
    refused = record(outcomes, path)
    assert refused[0] == f"a: loss was 1.0 and is now {number[0]!r}; the tolerance is {DOUBLE:g}."
    assert '--accept "a"' in refused[1] and path.read_text(encoding="utf-8") == before
    assert not record(outcomes, path, accepted=["a"])
    assert read_frozen(path)["a"]["values"] == {"loss": number[0]}
    assert read_frozen(path)["b"]["values"] == {"names": ["client 1"]}


@pytest.mark.parametrize(
    ("frozen", "now"),
    [
        ({"loss": 1.0}, {"loss": float("nan")}),
        ({"loss": 1.0}, {}),
        ({"loss": 1.0}, {"loss": "1.0"}),
        ({"who": ["client 1"]}, {"who": ["client 2"]}),
        ({"who": [1, 2]}, {"who": [1]}),
        ({"n": 3}, {"n": 4}),
        ({"yes": True}, {"yes": 1}),
        ({"bytes up": 100}, {"bytes up": 102}),
        ({"bytes up": 1.0}, {"bytes up": "nan"}),
        ({"shape": {"norm": 1.0, "along": 0.0}}, {"shape": {"norm": 1.0, "along": 0.1}}),
    ],
)
def test_what_differs_is_said(frozen, now):
    (sentence,) = differences("x", frozen, plain(now), 1e-3)
    assert sentence.startswith("x: ")
    assert not differences("x", frozen, frozen, 1e-3)
