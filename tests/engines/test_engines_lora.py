"""Other ways to train an adapter, on real SuperNodes: a rule that adds to the base, sums under masks, a UNet in two.

Each asks for more than plain averaging: FLoRA for what a device remembers, secure aggregation for four exchanges a
round, split training for two a step. All must give what the notebook's LabGrid gives.
"""

from pathlib import Path

import pytest
from flower import Flower
from safetensors.torch import load_file

from fedgen_lab.federation import run_app
from fedgen_lab.federation.app import client_app, server_app
from fedgen_lab.scenario import Scenario

ROOT = Path(__file__).resolve().parents[2]
FEW = {"num_clients": 2, "local_steps": 1, "batch_size": 2, "pictures_per_client": 4, "rank": 2}
WAYS = {
    "flora": {"rule": "flora", "rounds": 2},
    "secure": {"secure": 1, "rounds": 1},
    "split": {"cut": "down_blocks.1", "rounds": 1},
}


@pytest.fixture(scope="module")
def flower(tmp_path_factory):
    with Flower(tmp_path_factory.mktemp("flower")) as flower:
        flower.add_supernodes(2)
        yield flower


@pytest.mark.parametrize("way", WAYS)
def test_real_nodes_give_the_notebooks_adapter(way, flower, tmp_path):
    config = {**Scenario(**FEW, **WAYS[way]).to_run_config(), "experiment": "lora"}
    there, here = tmp_path / "there.safetensors", tmp_path / "here.safetensors"
    flower.run(ROOT, {**config, "save-to": str(there)})
    run_app(server_app, client_app, 2, {**config, "save-to": str(here)})
    one, other = load_file(there), load_file(here)
    assert one.keys() == other.keys(), flower.logs()
    assert max((one[name] - other[name]).abs().max().item() for name in one) < 1e-4, flower.logs()
    assert max(value.abs().max().item() for name, value in one.items() if ".lora_B." in name) > 1e-4  # it did learn
