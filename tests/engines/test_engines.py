"""One app, three engines: the notebook's LabGrid, Flower's simulation, and a SuperLink with SuperNodes over TLS.

Real processes on loopback, nothing mocked. Most of the time goes into starting processes.
"""

import importlib.util
from pathlib import Path

import pytest
import torch
from flower import Flower
from safetensors.torch import load_file

from fedgen_lab.federation import run_app
from fedgen_lab.lora.federated import lora_client_app, lora_server_app
from fedgen_lab.scenario import Scenario

ROOT = Path(__file__).resolve().parents[2]
SCENARIO = Scenario(num_clients=2, rounds=2, local_steps=2, batch_size=4, pictures_per_client=8, skew=1.0)


@pytest.fixture(scope="module")
def adapter_of_the_notebook(tmp_path_factory):
    path = tmp_path_factory.mktemp("notebook") / "adapter.safetensors"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the other engines' processes
    try:
        run_app(lora_server_app(), lora_client_app(), 2, run_config(path))
    finally:
        torch.set_num_threads(threads)
    return load_file(path)


def run_config(path):
    return {**SCENARIO.to_run_config(), "save-to": str(path)}


def assert_equal_adapters(one, other):
    assert one.keys() == other.keys()
    difference = max((one[name] - other[name]).abs().max().item() for name in one)
    assert difference < 1e-5
    assert max(tensor.abs().max().item() for tensor in one.values()) > 1e-3  # it did learn something


@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Flower's simulation needs Ray: pip install .[simulation]"
)
def test_flowers_simulation_gives_the_notebooks_adapter(adapter_of_the_notebook, tmp_path):
    path = tmp_path / "adapter.safetensors"
    for attempt in range(3):  # Ray gives itself half a minute to start, and a starved machine takes longer
        with Flower(tmp_path / f"flower{attempt}", simulation=True) as flower:
            flower.run(ROOT, run_config(path), nodes=2)
            logs = flower.logs(lines=1000)
        print(logs)  # `flwr run` ends well even where the simulation did not
        if "timed out during startup" not in logs:
            break
    assert_equal_adapters(load_file(path), adapter_of_the_notebook)


def test_a_superlink_with_two_supernodes_gives_the_notebooks_adapter(adapter_of_the_notebook, tmp_path):
    path = tmp_path / "adapter.safetensors"
    for attempt in range(3):  # a starved machine can lose a SuperNode; a run that went on without it has another result
        with Flower(tmp_path / f"flower{attempt}") as flower:
            flower.add_supernodes(2)
            flower.run(ROOT, run_config(path))
            logs = flower.logs(lines=1000)
        print(logs)  # shown when the test fails: whoever was refused is named there
        if "the round went on" not in logs:
            break
    assert_equal_adapters(load_file(path), adapter_of_the_notebook)
