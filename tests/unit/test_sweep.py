"""Claims about recorded sweeps: they resume, never overwrite, and what ships can be computed again."""

import json
from dataclasses import replace

import pytest

from fedgen_lab import sweep
from fedgen_lab.shipped import shipped

TINY_SWEEP = '''
from pathlib import Path
SEEDS = (0, 1)
POINTS = [{"x": 1}, {"x": 2}]
def measure(point, seed):
    with open(Path(__file__).with_name("calls.txt"), "a") as calls:
        calls.write(f"{point['x']} {seed}\\n")
    return {"y": point["x"] * 10 + seed}
'''


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    (tmp_path / "tiny_sweep_of_test.py").write_text(TINY_SWEEP)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.setitem(sweep.SWEEPS, "tiny", "tiny_sweep_of_test")
    return tmp_path


def test_a_sweep_resumes_where_it_stopped_and_computes_nothing_twice(tiny):
    path = tiny / "tiny.json"
    assert len(sweep.record("tiny", path, workers=1, limit=3)["points"]) == 3
    done = sweep.record("tiny", path, workers=1)
    assert [(e["point"]["x"], e["seed"], e["result"]["y"]) for e in done["points"]] == [
        (1, 0, 10), (1, 1, 11), (2, 0, 20), (2, 1, 21),
    ]  # fmt: skip
    assert sweep.read_sweep(path) == done
    assert sorted((tiny / "calls.txt").read_text().split("\n")[:-1]) == ["1 0", "1 1", "2 0", "2 1"]
    assert {"versions", "command", "date"} <= set(done["made"])


def test_points_of_other_package_versions_are_never_mixed(tiny):
    path = tiny / "tiny.json"
    sweep.record("tiny", path, workers=1, limit=1)
    old = json.loads(path.read_text())
    old["made"]["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(old))
    with pytest.raises(ValueError, match="Move the file away"):
        sweep.record("tiny", path, workers=1)
    assert json.loads(path.read_text()) == old


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


@pytest.mark.parametrize("method", ["lora", "local_only"])
def test_a_recorded_point_can_be_computed_again(method):
    """Rounds do not know how many will follow, so the first round of a fresh run is the first of the recorded one."""
    from fedgen_lab.lora.baselines import run_local_only
    from fedgen_lab.lora.federated import run_federated
    from fedgen_lab.lora.sweep_methods import scenario_of

    recorded = sweep.read_sweep(shipped("sweeps") / "federated_lora.json")["points"]
    entry = next(e for e in recorded if e["point"]["method"] == method and e["point"]["skew"] == 1.0)
    scenario = replace(scenario_of(entry["point"], entry["seed"]), rounds=1)
    outcome = (run_federated if method == "lora" else run_local_only)(scenario)
    assert list(outcome.rounds["loss"]) == pytest.approx(entry["result"]["loss"][:2], rel=0.01)  # processors differ
    if method == "lora":
        up = outcome.trace.frame().query("receiver == -1")["bytes"].sum()
        assert up / 1e6 == pytest.approx(entry["result"]["megabytes_up"][1], rel=1e-3)


def test_a_recorded_defence_can_be_judged_again():
    from fedgen_lab.privacy import sweep_leaks

    entries = sweep.read_sweep(shipped("sweeps") / "what_leaks.json")["points"]
    entry = next(e for e in entries if e["point"]["defence"] == "clip" and e["seed"] == 0)
    found = sweep_leaks.measure(entry["point"], 0)
    assert found == pytest.approx(entry["result"], rel=0.01, abs=0.05)  # processors differ; a picture is 0.04
    table = sweep_leaks.recorded_leaks()
    assert len(table) == len(sweep_leaks.POINTS) * len(sweep_leaks.SEEDS)
    assert table.groupby("seed")["server's auc"].nunique().eq(1).all(), "a seed's points judge the same uploads"


def test_openmoji_is_learned_better_together():
    """On real pictures, read off the recorded runs: every seed, both ways of spreading the groups."""
    points = sweep.read_sweep(shipped("sweeps") / "own_pictures.json")["points"]
    last = {(e["point"]["method"], e["point"]["skew"], e["seed"]): e["result"]["loss"] for e in points}
    federated = [key for key in last if key[0] == "lora"]
    assert federated
    for _, skew, seed in federated:
        losses = last["lora", skew, seed]
        assert losses[-1] < 0.9 * losses[0], "clearly below the base"
        assert losses[-1] < last["local_only", skew, seed][-1], "below local-only"
