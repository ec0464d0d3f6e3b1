"""The recorded sweep of lab 03, read from the file that ships, as curves over seeds.

Lab 03. `python -m fedgen_lab.sweep federated_lora` wrote the file; nothing here computes anything new. A learner scrubs
the knobs over it at once, and runs a point live to see whether their machine agrees.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

AXES = ("rounds", "megabytes", "wireless seconds")
NAMES = {
    "local_only": "local only",
    "lora": "federated LoRA",
    "full": "federated full model",
    "centralised": "centralised LoRA",
}


@dataclass(frozen=True)
class Curve:
    """One method at one recorded point: the mean over its seeds, and the lowest and the highest seed."""

    method: str
    point: dict
    seeds: tuple
    x: np.ndarray  # (rounds + 1,)
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def name(self):
        """The method in words."""
        return NAMES.get(self.method, self.method)


class Recorded:
    """A recorded sweep. `path`: the JSON file; `made`: who made it, when and with which versions.

    Raises FileNotFoundError when the file is not there, ValueError when it is not a sweep.
    """

    def __init__(self, path):
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no recorded sweep at {path}. Make it: python -m fedgen_lab.sweep {path.stem}"
            )
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not {"made", "points"} <= set(content):
            raise ValueError(
                f"{path} is not a recorded sweep: it has no 'made' and 'points'. Get the file again."
            )
        self.made = content["made"]
        self.points = content["points"]

    def methods(self):
        """The methods that were recorded, in the file's order."""
        return list(dict.fromkeys(entry["point"]["method"] for entry in self.points))

    def nearest(self, method, num_clients, skew):
        """The recorded point of `method` closest to the knobs, as (num_clients, skew); None without any.

        Clients are compared by their ratio (2 to 4 is as far as 4 to 8). A key that was not swept counts as a match.
        """
        found = [entry["point"] for entry in self.points if entry["point"]["method"] == method]
        if not found:
            return None

        def distance(point):
            clients, held = point.get("num_clients", num_clients), point.get("skew", skew)
            return abs(np.log2(clients / num_clients)) + 4 * abs(held - skew), clients

        return min(found, key=distance)

    def runs(self, method, point):
        """The runs of `method` at exactly `point`, one per seed."""
        return [
            entry
            for entry in self.points
            if entry["point"] == point and entry["point"]["method"] == method
        ]

    def curve(self, method, num_clients, skew, axis="rounds", measure="loss"):
        """`measure` against `axis` at the recorded point nearest to the knobs, over its seeds; None where not recorded.

        axis: one of AXES. measure: "loss" (denoising loss on held-out pictures), or a score that was taken at some
        rounds: "object" or "all" (prompt fidelity in [0, 1]).
        """
        point = self.nearest(method, num_clients, skew)
        if point is None:
            return None
        runs = self.runs(method, point)
        results = [run["result"] for run in runs if run["result"].get(measure)]
        if not results:
            return None
        rounds, values = zip(*[_series(result[measure]) for result in results], strict=True)
        shortest = min(len(series) for series in values)
        values = np.array([series[:shortest] for series in values], float)
        x = _axis(results, np.array(rounds[0][:shortest]), axis)
        if x is None:  # nothing was sent: only where it ends can be compared
            x, values = np.zeros(1), values[:, -1:]
        seeds = tuple(run["seed"] for run in runs)
        return Curve(
            method, point, seeds, x, values.mean(axis=0), values.min(axis=0), values.max(axis=0)
        )

    def ends(self):
        """One row per recorded point: method, num_clients, skew, seeds, and after its last round the mean over seeds.

        loss with loss_low and loss_high (the best and the worst seed), the scores that were taken (object, all,
        old_all, kid), megabytes up and down together, and wireless_seconds. The base model's row is where federated
        LoRA starts.
        """
        rows, points = (
            [],
            {json.dumps(entry["point"], sort_keys=True): entry["point"] for entry in self.points},
        )
        for point in points.values():
            results = [run["result"] for run in self.runs(point["method"], point)]
            if point["method"] == "lora" and "base" not in [row["method"] for row in rows]:
                rows.append({"method": "base", "seeds": len(results), **_at(results, 0)})
            rows.append({**point, "seeds": len(results), **_at(results, -1)})
        return pd.DataFrame(rows)

    def provenance(self):
        """One sentence that says when the sweep was recorded, with what, and over which seeds."""
        versions = self.made.get(
            "versions", {k: v for k, v in self.made.items() if k not in ("date", "command")}
        )
        packages = ", ".join(
            f"{name} {version}" for name, version in versions.items() if isinstance(version, str)
        )
        seeds = sorted({entry["seed"] for entry in self.points})
        date = str(self.made.get("date", "an unknown day"))[:10]
        return f"Recorded on {date} with {packages}; seeds {', '.join(map(str, seeds))}."


def _at(results, place):
    """The mean over `results` at their first (0) or last (-1) round."""
    row = {}
    for name in (
        "loss",
        "object",
        "all",
        "old_all",
        "kid",
        "megabytes_up",
        "megabytes_down",
        "wireless_seconds",
    ):
        values = [_series(result[name])[1][place] for result in results if result.get(name)]
        if values:
            row[name] = float(np.mean(values))
            if name == "loss":
                row |= {"loss_low": min(values), "loss_high": max(values)}
    row["megabytes"] = row.pop("megabytes_up", 0.0) + row.pop("megabytes_down", 0.0)
    return row


def _series(value):
    """(rounds, values) of a result that is one number, a list per round, or a dict {round: number}."""
    if isinstance(value, dict):
        rounds = sorted(value, key=int)
        return [int(r) for r in rounds], [value[r] for r in rounds]
    if isinstance(value, (int, float)):
        return [0], [value]
    return list(range(len(value))), list(value)


def _axis(results, rounds, axis):
    """Where on `axis` those rounds lie, averaged over seeds; None for a method without an uplink."""
    if axis == "rounds":
        return rounds.astype(float)
    if axis not in AXES:
        raise ValueError(f"axis must be one of {', '.join(AXES)}; got {axis!r}.")
    keys = ("megabytes_up", "megabytes_down") if axis == "megabytes" else ("wireless_seconds",)
    if not all(result.get(key) is not None for result in results for key in keys):
        return None
    totals = []
    for result in results:
        series = np.sum([np.atleast_1d(np.asarray(result[key], float)) for key in keys], axis=0)
        if len(series) <= rounds.max():  # one entry a round, without the zero at the start
            series = np.concatenate([[0.0], series])
        if len(series) <= rounds.max() or not series.any():
            return None
        totals.append(series[rounds])
    return np.mean(totals, axis=0)
