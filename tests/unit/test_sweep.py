"""Claims about recorded sweeps: they resume and never overwrite. tests/recordings computes shipped points again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from recorders import FOLDER, recorder

from fedgen_lab.privacy.sweep_leaks import recorded_leaks
from fedgen_lab.recorded import SWEEPS, read_sweep, recorded
from fedgen_lab.shipped import shipped

record = recorder("record")

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
    """A sweep of two points and two seeds that notes its calls; worker processes find it and the harness."""
    (tmp_path / "tiny.py").write_text(TINY_SWEEP, encoding="utf-8")
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(record, "SWEEPS", ("tiny",))
    yield tmp_path
    sys.modules.pop("tiny", None)


def test_a_sweep_resumes_where_it_stopped_and_computes_nothing_twice(tiny):
    path = tiny / "tiny.json"
    assert len(record.record("tiny", path, workers=1, limit=3)["points"]) == 3
    done = record.record("tiny", path, workers=1)
    assert [(e["point"]["x"], e["seed"], e["result"]["y"]) for e in done["points"]] == [
        (1, 0, 10),
        (1, 1, 11),
        (2, 0, 20),
        (2, 1, 21),
    ]
    assert read_sweep(path) == done
    assert sorted((tiny / "calls.txt").read_text(encoding="utf-8").split("\n")[:-1]) == [
        "1 0",
        "1 1",
        "2 0",
        "2 1",
    ]
    assert {"versions", "command", "date"} <= set(done["made"])


def test_a_file_that_is_no_sweep_is_not_written_over(tiny):
    path = tiny / "tiny.json"
    path.write_text("[1, 2]", encoding="utf-8")
    with pytest.raises(ValueError, match="not a recorded sweep"):
        record.record("tiny", path, workers=1)
    assert path.read_text(encoding="utf-8") == "[1, 2]"


def test_points_of_other_package_versions_are_never_mixed(tiny):
    path = tiny / "tiny.json"
    made = {"versions": record.made_with() | {"torch": "1.0"}}
    old = {
        "name": "tiny",
        "made": made,
        "points": [{"point": {"x": 1}, "seed": 0, "result": {"y": 10}}],
    }
    path.write_text(json.dumps(old), encoding="utf-8")
    with pytest.raises(ValueError, match="Move the file away"):
        record.record("tiny", path, workers=1)
    assert json.loads(path.read_text(encoding="utf-8")) == old


@pytest.mark.parametrize("read", [recorded, lambda name: record.record(name, "x.json")])
def test_an_unknown_sweep_names_the_known_ones(read):
    with pytest.raises(ValueError, match="no sweep 'nothing'.*federated_lora.*copying"):
        read("nothing")


def test_every_sweep_has_a_recorder_of_its_name_and_the_command_offers_it():
    modules = {path.stem for path in Path(FOLDER).glob("*.py")}
    assert modules == {*SWEEPS, "record"}
    command = [sys.executable, f"{FOLDER}/record.py", "--help"]
    told = subprocess.check_output(command, encoding="utf-8", timeout=120)
    assert all(name in told for name in SWEEPS) and "--workers" in told and "--limit" in told


def test_the_old_command_says_where_the_new_one_is():
    command = [sys.executable, "-m", "fedgen_lab.sweep", "huscf_gan"]
    ended = subprocess.run(command, stderr=subprocess.PIPE, encoding="utf-8", timeout=120)
    assert ended.returncode == 1 and "python data/record/record.py" in ended.stderr


@pytest.mark.parametrize("name", SWEEPS)
def test_what_ships_is_small_and_says_how_it_was_made(name):
    path = shipped("sweeps") / f"{name}.json"
    sweep = read_sweep(path)
    assert path.stat().st_size < 300_000
    # All were recorded before the recorders had a folder of their own.
    assert sweep["made"]["command"] == f"python -m fedgen_lab.sweep {name}"
    assert {"torch", "diffusers", "peft", "flwr"} <= set(sweep["made"]["versions"])
    keys = [(json.dumps(run["point"], sort_keys=True), run["seed"]) for run in sweep["points"]]
    assert len(keys) == len(set(keys)) and all(run["seconds"] > 0 for run in sweep["points"])


@pytest.mark.parametrize("name", SWEEPS)
def test_a_recorded_sweep_is_a_data_frame_of_knobs_seed_and_results(name):
    sweep, table = read_sweep(shipped("sweeps") / f"{name}.json"), recorded(name)
    assert table.attrs["made"] == sweep["made"] and len(table) == len(sweep["points"])
    knobs, last = table.attrs["knobs"], sweep["points"][-1]
    row = table.iloc[-1].to_dict()
    assert set(last["point"]) <= set(knobs) and row["seed"] == last["seed"]
    assert last["point"].items() <= row.items()
    assert set(table) == {*knobs, "seed"} | {
        key for run in sweep["points"] for key in run["result"]
    }
    assert not table.astype(str).duplicated([*knobs, "seed"]).any()


def test_a_sweep_whose_file_is_missing_is_an_empty_table(monkeypatch, tmp_path):
    monkeypatch.setattr("fedgen_lab.recorded.shipped", lambda name: tmp_path)
    table = recorded("copying")
    assert table.empty and table.attrs == {"made": {}, "knobs": []}


def test_what_leaks_is_recorded_whole_and_a_seeds_points_judge_the_same_uploads():
    leaks, table = recorder("what_leaks"), recorded_leaks()
    assert len(table) == len(leaks.POINTS) * len(leaks.SEEDS)
    assert table.groupby("seed")["server's auc"].nunique().eq(1).all()


def test_openmoji_is_learned_better_together():
    """On real pictures, read off the recorded runs: every seed, both ways of spreading the groups."""
    runs = recorded("own_pictures").set_index(["method", "skew", "seed"])["loss"]
    assert len(runs["lora"]) == 6
    for (skew, seed), losses in runs["lora"].items():
        assert losses[-1] < 0.9 * losses[0], "clearly below the base"
        assert losses[-1] < runs["local_only", skew, seed][-1], "below local-only"
