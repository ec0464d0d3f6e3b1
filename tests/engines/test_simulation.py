"""Flower's simulation gives the notebook's adapter: the app of `pyproject.toml`, its clients in Ray's processes.

Real processes on loopback, nothing mocked. Most of the time goes into starting them. `make test` runs this file alone,
for Ray gives its parts seconds to start.
"""

import importlib.util
from concurrent.futures import ThreadPoolExecutor

import pytest
from flower import Flower, adapter_of_the_notebook, assert_equal_and_trained, course_app
from safetensors.torch import load_file

from fedgen_lab.scenario import Scenario

SCENARIO = Scenario(  # FLoRA's second round needs what came down in the first
    rule="flora",
    num_clients=2,
    rounds=2,
    local_steps=2,
    batch_size=2,
    pictures_per_client=4,
    rank=2,
    skew=1.0,
)


@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="Flower's simulation needs Ray: pip install .[simulation]",
)
def test_flowers_simulation_gives_the_notebooks_adapter(tmp_path):
    path = tmp_path / "adapter.safetensors"
    config = {**SCENARIO.to_run_config(), "save-to": str(path)}
    with ThreadPoolExecutor() as beside:
        here = beside.submit(
            adapter_of_the_notebook, SCENARIO, tmp_path
        )  # it is there before Ray starts
        for attempt in range(
            3
        ):  # Ray gives itself half a minute to start, and a starved machine takes longer
            with Flower(tmp_path / f"flower{attempt}", simulation=True) as flower:
                flower.run(course_app(tmp_path), config, nodes=2)
                logs = flower.logs(lines=1000)
            print(logs)  # `flwr run` ends well even where the simulation did not
            if "timed out during startup" not in logs:
                break
    assert_equal_and_trained(load_file(path), here.result())
