"""Does a turn of a peer get slower as the chain gets longer?

    python tests/benchmarks/bench_chain.py [--submissions 1000] [--endpoint http://127.0.0.1:8545]

A turn here is everything but training and drawing: read the new events, verify the newest model's manifest, store a
model of 1 MB, and submit it. Prints the median of the last hundred turns over the median of the first hundred, and the
times of each part. Measured on one chain in one run, so a busy machine moves both ends alike, more or less.
"""

import argparse
import tempfile
import time

import numpy as np
from tqdm.auto import tqdm

from fedgen_lab.peers.chain import Chain, Terms
from fedgen_lab.peers.manifest import new_key, read_manifest, write_manifest
from fedgen_lab.peers.store import Folder, cid_of, digest_of

MODEL_BYTES = 1_000_000
PARTS = ("read events", "check a manifest", "store", "submit")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--submissions", type=int, default=1000)
    parser.add_argument(
        "--endpoint", help="a node's JSON-RPC address; the embedded machine unless given"
    )
    asked = parser.parse_args()
    chain = Chain(asked.endpoint, terms=Terms())
    account, key, rng = chain.accounts[1], new_key(0), np.random.default_rng(0)
    chain.register(account)
    cursor, newest, seconds = 0, None, []
    with tempfile.TemporaryDirectory() as folder:
        store = Folder(folder)
        for _ in tqdm(range(asked.submissions), unit="turn"):
            data = rng.bytes(MODEL_BYTES)
            times = [time.perf_counter()]
            events, cursor = chain.events(cursor)
            newest = next(
                (event.values["content"] for event in events[::-1] if event.kind == "Submitted"),
                newest,
            )
            times.append(time.perf_counter())
            if newest:
                submission = chain.model(newest)
                read_manifest(store.get(cid_of(submission.manifest)), submission)
            times.append(time.perf_counter())
            parents = [newest] if newest else []
            manifest = write_manifest(key, account, digest_of(data), parents, {"steps": 1})
            store.put(data)
            store.put(manifest)
            times.append(time.perf_counter())
            chain.submit(account, digest_of(data), digest_of(manifest), parents)
            times.append(time.perf_counter())
            seconds.append(np.diff(times))
    seconds = np.array(seconds)
    edge = min(100, len(seconds) // 2)
    first, last = np.median(seconds[:edge], axis=0), np.median(seconds[-edge:], axis=0)
    for part, early, late in zip(PARTS, first, last, strict=True):
        print(f"{part:18s} {1000 * early:7.1f} ms at first, {1000 * late:7.1f} ms in the end")
    turns = seconds.sum(1)
    print(f"RESULT submit_growth {np.median(turns[-edge:]) / np.median(turns[:edge]):.3f}")


if __name__ == "__main__":
    main()
