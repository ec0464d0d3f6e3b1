"""What LabGrid costs over a bare training loop, and what it saves over Flower's simulation.

    python tests/benchmarks/bench_grid.py            # some minutes
    python tests/benchmarks/bench_grid.py --quick    # without the lesson

All on one thread per process, each pair side by side in this run. Training is timed in CPU seconds, which on an idle
machine are seconds; Flower's simulation in seconds from the `flwr run` command to the end of the run, its SuperLink
already running. LabGrid runs in this process, as in a notebook whose imports are done. Needs Ray: pip install
".[simulation]".
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/engines"), str(ROOT / "tests/engines/tiny_app")]

import numpy as np  # noqa: E402
import tiny  # noqa: E402
import torch  # noqa: E402
from flower import Flower  # noqa: E402
from flwr.app import ArrayRecord  # noqa: E402
from flwr.serverapp import ServerApp  # noqa: E402

from fedgen_lab.federation import CheckedFedAvg, run_app  # noqa: E402
from fedgen_lab.lora.adapter import load_trainable, trainable_state  # noqa: E402
from fedgen_lab.lora.data import deal  # noqa: E402
from fedgen_lab.lora.federated import local_seed, lora_client_app, lora_server_app, prepare  # noqa: E402
from fedgen_lab.lora.local import noise_schedule, train  # noqa: E402
from fedgen_lab.lora.pipeline import encode  # noqa: E402
from fedgen_lab.scenario import Scenario  # noqa: E402

TRAINING = Scenario(num_clients=2, rounds=1)  # a repeat is 2 x 20 steps of a batch of 16
EXCHANGE = {
    "num-clients": 8,
    "rounds": 10,
    "size": 100_000,
    "slow": -1,
    "until": "",
    "buffer": 0,
    "notes": "",
    "save-to": "",
}


def cpu_seconds(work):
    """The CPU seconds that `work()` takes in this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def wall_seconds(work):
    """The seconds that `work()` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def overhead(repeats=5):
    """(federated, bare): CPU seconds of the same steps on a LabGrid and in a plain loop, the fastest of each."""
    scenario, pipeline, dealt = TRAINING, prepare(TRAINING), deal(TRAINING)
    schedule, encoded = (
        noise_schedule(pipeline),
        [encode(pipeline, pictures) for pictures in dealt.clients],
    )
    start = trainable_state(pipeline.unet)
    client_app, server_app = lora_client_app(), ServerApp()

    @server_app.main()
    def average(grid, context):
        CheckedFedAvg(min_available_nodes=2).start(
            grid, ArrayRecord(start), num_rounds=scenario.rounds
        )

    def federated():
        run_app(server_app, client_app, scenario.num_clients, scenario.to_run_config())

    def bare():
        for server_round in range(1, scenario.rounds + 1):
            for client in range(scenario.num_clients):
                load_trainable(pipeline.unet, start)
                seed = local_seed(scenario, client, server_round)
                steps, batch, rate = (
                    scenario.local_steps,
                    scenario.batch_size,
                    scenario.rate,
                )
                train(pipeline.unet, schedule, encoded[client], steps, batch, rate, seed)

    federated(), bare()  # warm up: the client loads its model and pictures once
    pairs = np.array([(cpu_seconds(federated), cpu_seconds(bare)) for _ in range(repeats)])
    return pairs.min(axis=0)


def exchange():
    """(LabGrid, simulation): seconds for 8 clients x 10 rounds of exchanging 100,000 parameters without training."""
    run_app(
        tiny.server_app, tiny.client_app, 8, EXCHANGE
    )  # the first run also loads code; time the second
    ours = wall_seconds(lambda: run_app(tiny.server_app, tiny.client_app, 8, EXCHANGE))
    with tempfile.TemporaryDirectory() as folder, Flower(folder, simulation=True) as flower:
        config = {key: value for key, value in EXCHANGE.items() if value != ""}
        theirs = wall_seconds(lambda: flower.run(ROOT / "tests/engines/tiny_app", config, nodes=8))
    return ours, theirs


def lesson():
    """(LabGrid, simulation): seconds for the lesson's default run, models loaded and pictures drawn included."""
    scenario = Scenario()
    config = scenario.to_run_config()
    ours = wall_seconds(
        lambda: run_app(lora_server_app(), lora_client_app(), scenario.num_clients, config)
    )
    with tempfile.TemporaryDirectory() as folder, Flower(folder, simulation=True) as flower:
        given = {key: value for key, value in config.items() if value != ""}
        theirs = wall_seconds(
            lambda: flower.run(ROOT, given, nodes=scenario.num_clients, timeout=1800)
        )
    return ours, theirs


def show(what, ours, other, ratio):
    """One line of the table."""
    print(f"{what:55}  {ours:11.2f}  {other:9.2f}  {ratio:7.3f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="leave the lesson's run out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    print(f"{'what':55}  {'LabGrid (s)':>11}  {'other (s)':>9}  {'ratio':>7}")
    federated, bare = overhead()
    results = {"grid_overhead": federated / bare}
    show("training on LabGrid over a bare loop (CPU seconds)", federated, bare, federated / bare)
    ours, theirs = exchange()
    results["grid_vs_simulation"] = theirs / ours
    show("8 clients x 10 rounds, no training: simulation over it", ours, theirs, theirs / ours)
    if not arguments.quick:
        ours, theirs = lesson()
        results["grid_vs_simulation_lesson"] = theirs / ours
        show("the lesson's default run: simulation over it", ours, theirs, theirs / ours)
    for name, value in results.items():
        print(f"RESULT {name} {value:.3f}")
