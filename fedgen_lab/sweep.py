"""Recorded sweeps: run one experiment at every point of a grid and with three seeds, and keep what came out.

What takes longer than a learner should wait is recorded once and shipped as `data/sweeps/NAME.json`; labs show it as
recorded, and a learner can run any of its points live. Record, or go on after a break:

    python -m fedgen_lab.sweep federated_lora

A sweep is a module with `POINTS` (dicts, in the order to run them), `SEEDS` and `measure(point, seed) -> dict`.
"""

import argparse
import importlib
import json
import os
import platform
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

from fedgen_lab.files import patiently

SWEEPS = {
    "federated_lora": "fedgen_lab.lora.sweep_methods",
    "own_pictures": "fedgen_lab.lora.sweep_own",
    "smashed_data": "fedgen_lab.privacy.sweep_smashed",
    "huscf_gan": "fedgen_lab.split.sweep_gan",
    "what_leaks": "fedgen_lab.privacy.sweep_leaks",
    "copying": "fedgen_lab.memorization.sweep_copying",
    "pdfed": "fedgen_lab.peers.sweep_pdfed",
    "peers_attacks": "fedgen_lab.peers.sweep_attacks",
}
PACKAGES = ("torch", "diffusers", "peft", "flwr", "numpy")


def made_with():
    """The package versions that decide a sweep's last digits."""
    return {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}


def read_sweep(path):
    """The sweep in `path`, or an empty one. Raises ValueError if the file is no sweep."""
    path = Path(path)
    if not path.exists():
        return {"name": path.stem, "made": {}, "points": []}
    sweep = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(sweep, dict) or not {"name", "made", "points"} <= set(sweep):
        raise ValueError(f"{path} is not a recorded sweep; move it away to record a new one.")
    return sweep


def _measure(module, point, seed):
    """One point with one seed, in a worker process of its own with one thread."""
    import torch

    torch.set_num_threads(1)
    start, cpu = time.time(), time.process_time()
    result = importlib.import_module(module).measure(point, seed)
    seconds = {
        "seconds": round(time.time() - start, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }
    return {"point": point, "seed": seed, **seconds, "result": result}


def record(name, path, workers=None, limit=None):
    """Record every point of sweep `name` that `path` does not hold yet; returns the sweep.

    Each finished point is written at once, so a break loses only what was being computed. A point that is there is
    never computed again. `workers`: one-thread processes, as many as cores unless given; `limit`: at most so many runs.
    Raises KeyError for an unknown sweep, ValueError when the file was recorded with other package versions.
    """
    from tqdm.auto import tqdm

    if name not in SWEEPS:
        raise KeyError(f"There is no sweep {name!r}; there are {', '.join(SWEEPS)}.")
    module, path = importlib.import_module(SWEEPS[name]), Path(path)
    sweep = read_sweep(path)
    now = {"versions": made_with(), "command": f"python -m fedgen_lab.sweep {name}"}
    if sweep["points"] and sweep["made"].get("versions") != now["versions"]:
        raise ValueError(
            f"{path} was recorded with {sweep['made'].get('versions')}, this is {now['versions']}. "
            "Move the file away to record everything anew; points of different versions don't mix."
        )
    sweep["made"] = sweep["made"] or now | {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M")}
    done = {
        (json.dumps(entry["point"], sort_keys=True), entry["seed"]) for entry in sweep["points"]
    }
    todo = [
        (point, seed)
        for point in module.POINTS
        for seed in module.SEEDS
        if (json.dumps(point, sort_keys=True), seed) not in done
    ][:limit]
    os.environ.update(OMP_NUM_THREADS="1", GOMP_SPINCOUNT="0")  # the workers inherit this
    workers = workers or os.cpu_count() or 1
    with (
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
        tqdm(total=len(todo), desc=name, unit="point") as bar,
    ):
        futures = [pool.submit(_measure, SWEEPS[name], point, seed) for point, seed in todo]
        for future in as_completed(futures):
            entry = future.result()
            sweep["points"].append(entry)
            order = {json.dumps(point, sort_keys=True): i for i, point in enumerate(module.POINTS)}
            sweep["points"].sort(
                key=lambda e: (order.get(json.dumps(e["point"], sort_keys=True), 1e9), e["seed"])
            )
            _write(path, sweep)
            bar.set_postfix_str(f"{entry['point']} seed {entry['seed']}: {entry['seconds']:.0f} s")
            bar.update()
    return sweep


def _write(path, sweep):
    """Replace the file in one move, so that a break leaves the old one or the new one; one line a point."""
    path.parent.mkdir(parents=True, exist_ok=True)
    points = ",\n".join(json.dumps(entry) for entry in sweep["points"])
    head = json.dumps({"name": sweep["name"], "made": sweep["made"]})[:-1]
    half = path.with_suffix(".part")
    half.write_text(f'{head}, "points": [\n{points}\n]}}\n', encoding="utf-8")
    patiently(lambda: half.replace(path))


def main():
    """The command line: python -m fedgen_lab.sweep NAME [--workers N] [--limit N] [--out FILE]."""
    parser = argparse.ArgumentParser(
        prog="python -m fedgen_lab.sweep", description=__doc__.split("\n")[0]
    )
    parser.add_argument("name", choices=SWEEPS)
    parser.add_argument(
        "--workers", type=int, help="one-thread processes; as many as cores unless given"
    )
    parser.add_argument("--limit", type=int, help="record at most so many points this time")
    parser.add_argument("--out", type=Path, help="the file; data/sweeps/NAME.json unless given")
    asked = parser.parse_args()
    record(
        asked.name,
        asked.out or Path("data/sweeps") / f"{asked.name}.json",
        asked.workers,
        asked.limit,
    )


if __name__ == "__main__":
    main()
