"""Claims about recorded sweeps: they resume and never overwrite. tests/recordings computes shipped points again."""

import json

import pytest

from fedgen_lab import sweep
from fedgen_lab.shipped import shipped

TINY_SWEEP = """
from pathlib import Path
SEEDS = (0, 1)
POINTS = [{"x": 1}, {"x": 2}]
def measure(point, seed):
    with open(Path(__file__).with_name("calls.txt"), "a") as calls:
        calls.write(f"{point['x']} {seed}\\n")
    return {"y": point["x"] * 10 + seed}
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    (tmp_path / "tiny_sweep_of_test.py").write_text(TINY_SWEEP, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.setitem(sweep.SWEEPS, "tiny", "tiny_sweep_of_test")
    return tmp_path


def test_a_sweep_resumes_where_it_stopped_and_computes_nothing_twice(tiny):
    path = tiny / "tiny.json"
    assert len(sweep.record("tiny", path, workers=1, limit=3)["points"]) == 3
    done = sweep.record("tiny", path, workers=1)
    assert [(e["point"]["x"], e["seed"], e["result"]["y"]) for e in done["points"]] == [
        (1, 0, 10),
        (1, 1, 11),
        (2, 0, 20),
        (2, 1, 21),
    ]
    assert sweep.read_sweep(path) == done
    assert sorted((tiny / "calls.txt").read_text(encoding="utf-8").split("\n")[:-1]) == [
        "1 0",
        "1 1",
        "2 0",
        "2 1",
    ]
    assert {"versions", "command", "date"} <= set(done["made"])


def test_points_of_other_package_versions_are_never_mixed(tiny):
    path = tiny / "tiny.json"
    made = {"versions": sweep.made_with() | {"torch": "1.0"}}
    old = {
        "name": "tiny",
        "made": made,
        "points": [{"point": {"x": 1}, "seed": 0, "result": {"y": 10}}],
    }
    path.write_text(json.dumps(old), encoding="utf-8")
    with pytest.raises(ValueError, match="Move the file away"):
        sweep.record("tiny", path, workers=1)
    assert json.loads(path.read_text(encoding="utf-8")) == old


def test_an_unknown_sweep_names_the_known_ones(tmp_path):
    with pytest.raises(KeyError, match="federated_lora"):
        sweep.record("nothing", tmp_path / "x.json")


@pytest.mark.parametrize("name", sweep.SWEEPS)
def test_what_ships_is_small_and_says_how_it_was_made(name):
    path = shipped("sweeps") / f"{name}.json"
    recorded = sweep.read_sweep(path)
    assert path.stat().st_size < 300_000
    assert recorded["made"]["command"] == f"python -m fedgen_lab.sweep {name}"
    assert {"torch", "diffusers", "peft", "flwr"} <= set(recorded["made"]["versions"])
    keys = [(json.dumps(e["point"], sort_keys=True), e["seed"]) for e in recorded["points"]]
    assert len(keys) == len(set(keys)) and all(e["seconds"] > 0 for e in recorded["points"])


def test_what_leaks_is_recorded_whole_and_a_seeds_points_judge_the_same_uploads():
    from fedgen_lab.privacy import sweep_leaks

    table = sweep_leaks.recorded_leaks()
    assert len(table) == len(sweep_leaks.POINTS) * len(sweep_leaks.SEEDS)
    assert table.groupby("seed")["server's auc"].nunique().eq(1).all()


def test_openmoji_is_learned_better_together():
    """On real pictures, read off the recorded runs: every seed, both ways of spreading the groups."""
    points = sweep.read_sweep(shipped("sweeps") / "own_pictures.json")["points"]
    last = {
        (e["point"]["method"], e["point"]["skew"], e["seed"]): e["result"]["loss"] for e in points
    }
    federated = [key for key in last if key[0] == "lora"]
    assert federated
    for _, skew, seed in federated:
        losses = last["lora", skew, seed]
        assert losses[-1] < 0.9 * losses[0], "clearly below the base"
        assert losses[-1] < last["local_only", skew, seed][-1], "below local-only"
