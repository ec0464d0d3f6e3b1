"""How long the proof of the best cuts takes at 80 clients, and how long a genetic algorithm takes to come near.

python tests/benchmarks/bench_cuts.py

The devices are the published profiles dealt in turn, the nets the reference's, the batch 64. Times are CPU seconds of
one thread, both in one run. The genetic algorithm has the published recipe (population 1,000, four clients share a cut,
300 generations at most), judged for the whole population at once, and is timed until its best cuts are within 1 % of
the optimum; the median of five seeds. A seed that never comes so near counts with the time it was given: a lower bound.
"""

import argparse
import statistics
import time

import numpy as np

from fedgen_lab.split.cuts import exact_cuts, genetic_cuts
from fedgen_lab.split.latency import (
    Device,
    block_flops,
    deal_devices,
    iteration_seconds,
    memory_bytes,
)

CLIENTS, REPEATS, SEEDS, CLOSE = 80, 9, 5, 1.01
GENERATIONS = 300


def median_seconds(work, repeats=REPEATS):
    """The median of some runs of `work()`."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


def seconds_to_come_close(devices, work, optimum, seed, reference):
    """(seconds, generation, reached / optimum) of the genetic algorithm until it is within 1 %, or gives up."""
    last = [0, np.inf]
    start = time.process_time()
    genetic_cuts(
        devices,
        work,
        seed,
        GENERATIONS,
        reference=reference,
        tile=4,
        on_generation=lambda generation, seconds, cuts: last.__setitem__(
            slice(None), (generation, seconds)
        ),
        should_stop=lambda: last[1] <= CLOSE * optimum,
    )
    return time.process_time() - start, last[0], last[1] / optimum


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--reference", action="store_true", help="count as the published code does")
    reference = parser.parse_args().reference
    work, devices = block_flops("reference", 64, reference), deal_devices(CLIENTS)

    draw = np.random.default_rng(0)
    strangers = [
        Device(str(i), 10 ** draw.uniform(8, 12), 10 ** draw.uniform(6, 9.5))
        for i in range(CLIENTS)
    ]
    _, optimum = exact_cuts(devices, work, reference)
    zeros = iteration_seconds([(0, 0, 0, 0)] * CLIENTS, devices, work, reference)
    exact = median_seconds(lambda: exact_cuts(devices, work, reference))
    print(
        f"{CLIENTS} clients of seven kinds: optimum {optimum:.4f} s (all on the server {zeros:.4f} s), ",
        end="",
    )
    print(f"proven in {exact:.4f} s")
    different = median_seconds(lambda: exact_cuts(strangers, work, reference))
    print(f"{CLIENTS} different devices: proven in {different:.4f} s")
    least, most = memory_bytes((0, 0, 0, 0), work), memory_bytes((1, 1, 1, 1), work)
    limited = [
        Device(d.name, d.flops_per_second, d.bits_per_second, draw.uniform(least, most))
        for d in devices
    ]
    print(
        f"with a memory limit on each: {median_seconds(lambda: exact_cuts(limited, work, reference), 1):.2f} s"
    )

    times = []
    for seed in range(SEEDS):
        took, generation, ratio = seconds_to_come_close(devices, work, optimum, seed, reference)
        times.append(took)
        said = (
            "within 1 %"
            if ratio <= CLOSE
            else f"still {100 * (ratio - 1):.1f} % above: a lower bound"
        )
        print(
            f"genetic algorithm, seed {seed}: {took:.1f} s, {generation} generations, {said}",
            flush=True,
        )
    print(f"RESULT cuts_seconds {exact:.4f}")
    print(f"RESULT cuts_vs_ga {statistics.median(times) / exact:.0f}")
