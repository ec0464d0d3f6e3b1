"""The U on a SuperLink with two SuperNodes: the notebook's result, and one killed in mid-iteration.

Real processes on loopback, nothing mocked. A SuperNode starts a new process for every message, so a run of nine
exchanges takes minutes; that its state survives them is the point.
"""

import time
from pathlib import Path

import pytest
import torch
from flower import Flower
from safetensors.torch import load_file

from fedgen_lab.federation import run_app
from fedgen_lab.split.scenario import GanScenario
from fedgen_lab.split.u_client import u_client_app
from fedgen_lab.split.u_server import u_server_app

ROOT = Path(__file__).resolve().parents[2]
SCENARIO = GanScenario(
    num_clients=2, rounds=1, iterations=1, batch_size=4, pictures_per_client=8, domains="runes", cuts="0110,1001"
)


def run_config(path):
    """The run config of `flwr run`; the knobs of the U stand under "gan."."""
    knobs = {f"gan.{key}": value for key, value in SCENARIO.to_run_config().items()}
    return {"experiment": "gan", **knobs, "save-to": str(path)}


@pytest.fixture(scope="module")
def generators_of_the_notebook(tmp_path_factory):
    path = tmp_path_factory.mktemp("notebook") / "generators.safetensors"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the SuperNodes' processes
    try:
        run_app(u_server_app(), u_client_app(keep=True), 2, {**SCENARIO.to_run_config(), "save-to": str(path)})
    finally:
        torch.set_num_threads(threads)
    return load_file(path)


def test_two_supernodes_give_the_notebooks_generators(generators_of_the_notebook, tmp_path):
    path = tmp_path / "generators.safetensors"
    for attempt in range(3):  # a starved machine can lose a SuperNode; a run that went on without it has another result
        with Flower(tmp_path / f"flower{attempt}") as flower:
            flower.add_supernodes(2)
            flower.run(ROOT, run_config(path), timeout=1200)  # ten seconds an exchange on a quiet machine
            logs = flower.logs(lines=1000)
        print(logs)  # shown when the test fails: whoever was refused is named there
        if "left out" not in logs:
            break
    there, here = load_file(path), generators_of_the_notebook
    assert there.keys() == here.keys() and {name.split(".")[0] for name in here} == {"client-0", "client-1"}
    assert max((there[name].double() - here[name].double()).abs().max().item() for name in here) < 1e-5


def test_a_supernode_killed_in_mid_iteration_is_named_and_the_run_goes_on_without_it(tmp_path):
    path = tmp_path / "generators.safetensors"
    with Flower(tmp_path / "flower") as flower:
        flower.add_supernodes(2)
        run = flower.start_run(ROOT, run_config(path))
        wait_for(flower, "supernode-1", "Receiving: train.fakes")
        flower.kill("supernode-1")
        assert run.wait(1200) == 0, flower.logs()
        logs = flower.logs(lines=1000)
    assert "Client 1 is left out from now on" in logs, logs
    assert {name.split(".")[0] for name in load_file(path)} == {"client-0"}


def wait_for(flower, name, words, seconds=400):
    end = time.monotonic() + seconds
    while words not in (flower.folder / f"{name}.log").read_text(errors="replace", encoding="utf-8"):
        assert time.monotonic() < end, f"{name} did not say {words!r}.\n{flower.logs()}"
        time.sleep(0.1)
