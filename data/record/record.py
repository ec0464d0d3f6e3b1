"""Record a sweep: run one experiment at every point of a grid and with three seeds, and keep what came out.

What takes longer than a learner should wait is recorded once and ships as `data/sweeps/NAME.json`; labs show it as
recorded, and a learner can run any of its points live. Record, or go on after a break:

    python data/record/record.py federated_lora

The sweep NAME is the module NAME.py beside this file, with `POINTS` (dicts, in the order to run them), `SEEDS` and
`measure(point, seed) -> dict`. `fedgen_lab.recorded` reads what is written here.
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

from tqdm.auto import tqdm

from fedgen_lab.files import patiently
from fedgen_lab.recorded import SWEEPS, read_sweep

FOLDER = Path(__file__).parents[1] / "sweeps"
PACKAGES = ("torch", "diffusers", "peft", "flwr", "numpy")


def made_with():
    """The package versions that decide a sweep's last digits."""
    return {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}


def record(name, path, workers=None, limit=None):
    """Record every point of sweep `name` that `path` does not hold yet; returns the sweep.

    Each finished point is written at once, so a break loses only what was being computed. A point that is there is
    never computed again. `workers`: one-thread processes, as many as cores unless given; `limit`: at most so many runs.
    Raises ValueError for an unknown sweep, for a file that is no sweep, and when the file was recorded with other
    package versions.
    """
    if name not in SWEEPS:
        raise ValueError(f"There is no sweep {name!r}; there are {', '.join(SWEEPS)}.")
    recorder, path = importlib.import_module(name), Path(path)
    sweep = read_sweep(path) if path.exists() else {"name": name, "made": {}, "points": []}
    versions = made_with()
    if sweep["points"] and sweep["made"].get("versions") != versions:
        raise ValueError(
            f"{path} was recorded with {sweep['made'].get('versions')}, this is {versions}. "
            "Move the file away to record everything anew; points of different versions don't mix."
        )
    sweep["made"] = sweep["made"] or {
        "versions": versions,
        "command": f"python data/record/record.py {name}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
    }

    # What is still to do, in the order of the grid.
    places = {_key(point): place for place, point in enumerate(recorder.POINTS)}
    done = {(_key(run["point"]), run["seed"]) for run in sweep["points"]}
    grid = [(point, seed) for point in recorder.POINTS for seed in recorder.SEEDS]
    todo = [(point, seed) for point, seed in grid if (_key(point), seed) not in done][:limit]

    # Workers of one thread each; what one has finished is written before the next is waited for.
    os.environ.update(OMP_NUM_THREADS="1", GOMP_SPINCOUNT="0")  # the workers inherit this
    with (
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
        tqdm(total=len(todo), desc=name, unit="point") as bar,
    ):
        futures = [pool.submit(_measure, name, point, seed) for point, seed in todo]
        for future in as_completed(futures):
            run = future.result()
            sweep["points"].append(run)
            sweep["points"].sort(
                key=lambda run: (places.get(_key(run["point"]), len(places)), run["seed"])
            )
            _write(path, sweep)
            bar.set_postfix_str(f"{run['point']} seed {run['seed']}: {run['seconds']:.0f} s")
            bar.update()
    return sweep


def _key(point):
    """A point as a text that is the same for the same knobs."""
    return json.dumps(point, sort_keys=True)


def _measure(name, point, seed):
    """One point with one seed, in a worker process of its own with one thread."""
    import torch

    torch.set_num_threads(1)
    start, cpu = time.time(), time.process_time()
    result = importlib.import_module(name).measure(point, seed)
    seconds = {
        "seconds": round(time.time() - start, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }
    return {"point": point, "seed": seed, **seconds, "result": result}


def _write(path, sweep):
    """Replace the file in one move, so that a break leaves the old one or the new one; one line a point."""
    path.parent.mkdir(parents=True, exist_ok=True)
    points = ",\n".join(json.dumps(run) for run in sweep["points"])
    head = json.dumps({"name": sweep["name"], "made": sweep["made"]})[:-1]
    half = path.with_suffix(".part")
    half.write_text(f'{head}, "points": [\n{points}\n]}}\n', encoding="utf-8")
    patiently(lambda: half.replace(path))


def main():
    """The command line: python data/record/record.py NAME [--workers N] [--limit N] [--out FILE]."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=SWEEPS)
    parser.add_argument(
        "--workers", type=int, help="one-thread processes; as many as cores unless given"
    )
    parser.add_argument("--limit", type=int, help="record at most so many points this time")
    parser.add_argument("--out", type=Path, help="the file; data/sweeps/NAME.json unless given")
    options = parser.parse_args()
    path = options.out or FOLDER / f"{options.name}.json"
    record(options.name, path, options.workers, options.limit)


if __name__ == "__main__":
    main()
