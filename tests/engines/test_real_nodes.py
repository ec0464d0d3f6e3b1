"""The lab's experiments on a SuperLink with SuperNodes over TLS give the notebook's results, also when a node dies.

Real processes on loopback, nothing mocked: every message is answered by a process of its own, which finds the client's
state and nothing else. Those processes have libraries in memory when they start; tests/engines/quick says how.
"""

import pytest
from flower import (
    ATTEMPTS,
    Flower,
    adapter_of_the_notebook,
    assert_equal,
    assert_equal_and_trained,
    course_app,
    on_one_thread,
)
from safetensors.torch import load_file

from fedgen_lab.federation import run_app
from fedgen_lab.scenario import Scenario
from fedgen_lab.split.scenario import GanScenario
from fedgen_lab.split.u_client import u_client_app
from fedgen_lab.split.u_server import u_server_app

LIBRARIES = (
    "torch",
    "pandas",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "diffusers.schedulers.scheduling_ddpm",
    "peft.tuners.lora",
)
FEW = {"num_clients": 2, "local_steps": 1, "batch_size": 2, "pictures_per_client": 4, "rank": 2}
WAYS = {
    "secure": {"secure": 1, "rounds": 1},
    "split": {"cut": "down_blocks.1", "rounds": 1},
}
GAN = GanScenario(
    num_clients=3,
    rounds=1,
    iterations=1,
    batch_size=4,
    pictures_per_client=8,
    domains="runes",
    cuts="0110,1001,0110",
)


@pytest.fixture(scope="module")
def flower(tmp_path_factory):
    with Flower(tmp_path_factory.mktemp("flower"), libraries=LIBRARIES) as flower:
        flower.add_supernodes(2)
        yield flower


def test_a_supernode_killed_in_mid_iteration_is_named_and_the_others_give_the_notebooks_generators(
    flower, tmp_path
):
    path = tmp_path / "generators.safetensors"
    config = {f"gan.{key}": value for key, value in GAN.to_run_config().items()}
    config |= {"experiment": "gan", "save-to": str(path)}
    lost = "Client 2 is left out from now on (fakes): it lost its connection"
    for _ in range(ATTEMPTS):
        said = flower.run_and_kill_a_third_node(
            course_app(tmp_path),
            config,
            lambda: "Receiving: train.fakes" in flower.log("supernode-2"),
        )
        if lost in said and said.count("is left out") == 1:
            break
    print(flower.logs(lines=200))
    assert lost in said
    there, here = load_file(path), generators_of_the_notebook(tmp_path)
    assert {name.split(".")[0] for name in here} == {"client-0", "client-1"}
    assert_equal(there, here)


@pytest.mark.parametrize("way", WAYS)
def test_real_nodes_give_the_notebooks_adapter(way, flower, tmp_path):
    scenario, path = Scenario(**FEW, **WAYS[way]), tmp_path / "adapter.safetensors"
    for _ in range(ATTEMPTS):
        said = flower.run(
            course_app(tmp_path),
            {**scenario.to_run_config(), "experiment": "lora", "save-to": str(path)},
        )
        if "the round went on" not in said and "is left out" not in said:
            break
        flower.wait_for_supernodes(2)
    print(flower.logs())  # shown when the test fails
    assert_equal_and_trained(load_file(path), adapter_of_the_notebook(scenario, tmp_path))


def generators_of_the_notebook(folder):
    """Those of a notebook's run in which client 2 fails at the same place."""
    path, client = folder / "here.safetensors", u_client_app(keep=True)

    def fails(message, context):
        if (
            context.node_config["partition-id"] == 2
            and message.metadata.message_type == "train.fakes"
        ):
            raise RuntimeError("the power is out")
        return client(message, context)

    with on_one_thread():
        run_app(u_server_app(), fails, 3, {**GAN.to_run_config(), "save-to": str(path)})
    return load_file(path)
