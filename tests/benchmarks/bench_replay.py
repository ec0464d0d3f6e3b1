"""How long it takes to put a recorded run on another network's clock: what a learner waits for when moving a knob.

python tests/benchmarks/bench_replay.py
"""

import statistics
import time

from fedgen_lab.federation import SERVER, Trace
from fedgen_lab.wireless.channel import Network
from fedgen_lab.wireless.replay import replay


def trace_of(clients, rounds, size=600_000, flops=1.3e11):
    """A run of plain federated averaging: everybody gets the model and answers, each round."""
    trace = Trace()
    for server_round in range(1, rounds + 1):
        for client in range(clients):
            trace.add(server_round, 0, SERVER, client, "train", size)
            trace.add(server_round, 0, client, SERVER, "train", size, flops)
    return trace


def milliseconds(clients, rounds, repeats=9, **radio):
    """The median time of a replay, each at another bandwidth."""
    trace, times = trace_of(clients, rounds), []
    replay(trace, Network(clients, **radio))
    for i in range(repeats):
        start = time.perf_counter()
        replay(trace, Network(clients, bandwidth_hz=(i + 1) * 1e6, **radio))
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


if __name__ == "__main__":
    print("clients  rounds  messages  replay (ms)")
    for clients, rounds in ((4, 5), (16, 10), (50, 50), (100, 100)):
        took = milliseconds(clients, rounds)
        print(f"{clients:7}  {rounds:6}  {2 * clients * rounds:8}  {took:11.1f}")
        if (clients, rounds) == (50, 50):
            result = took
    print(f"RESULT replay_ms {result:.1f}")
    print(f"RESULT replay_min_max_ms {milliseconds(50, 50, allocation='min-max'):.1f}")
    print(f"RESULT replay_cqi_ms {milliseconds(50, 50, allocation='min-max', rate_law='cqi'):.1f}")
