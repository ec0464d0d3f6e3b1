"""What was recorded: every sweep that ships in `data/sweeps`, as one data frame.

A sweep is one experiment at many points of a grid, with three seeds each: what takes longer than a learner should wait.
`data/record/`, which is not part of the package, records them; here they are only read.
"""

import json
from pathlib import Path

import pandas as pd

from fedgen_lab.shipped import shipped

SWEEPS = (
    "federated_lora",
    "own_pictures",
    "smashed_data",
    "huscf_gan",
    "what_leaks",
    "copying",
    "pdfed",
    "peers_attacks",
)


def read_sweep(path):
    """The sweep in the file `path`: {"name", "made": versions, date, command, "points": [{"point", "seed", "result"}]}.

    Raises FileNotFoundError when the file is not there, ValueError when it is no sweep.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no recorded sweep at {path}. Make it: python data/record/record.py {path.stem}"
        )
    sweep = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(sweep, dict) or not {"name", "made", "points"} <= set(sweep):
        raise ValueError(
            f"{path} is not a recorded sweep: it has no 'name', 'made' and 'points'. "
            "Get the file again, or move it away to record a new one."
        )
    return sweep


def recorded(name):
    """Sweep `name` as a data frame: a row for each point and seed; its columns are knobs, "seed" and results.

    A result by round is a list, or a dict of rounds. Empty where the file is missing. In `attrs`: "made" (versions,
    date, command) and "knobs" (the names of the knobs). Raises ValueError for a name that is not one of `SWEEPS`.
    """
    if name not in SWEEPS:
        raise ValueError(f"There is no sweep {name!r}; there are {', '.join(SWEEPS)}.")
    path = shipped("sweeps") / f"{name}.json"
    sweep = read_sweep(path) if path.is_file() else {"made": {}, "points": []}
    runs = sweep["points"]
    table = pd.DataFrame([run["point"] | {"seed": run["seed"]} | run["result"] for run in runs])
    knobs = list(dict.fromkeys(knob for run in runs for knob in run["point"]))
    table.attrs = {"made": sweep["made"], "knobs": knobs}
    return table
