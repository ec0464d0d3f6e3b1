"""The recorded sweep of lab 03, read from the file that ships, as curves over seeds.

Lab 03. `data/record/federated_lora.py` says what was run; nothing here computes anything new. A learner scrubs the
knobs over it at once, and runs a point live to see whether their machine agrees.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from fedgen_lab.recorded import read_sweep

AXES = ("rounds", "megabytes", "wireless seconds")
NAMES = {
    "local_only": "local only",
    "lora": "federated LoRA",
    "full": "federated full model",
    "centralised": "centralised LoRA",
}
SENT = ("megabytes_up", "megabytes_down")  # totals so far, by round from 0
NUMBERS = ("loss", "object", "all", "old_all", "kid", *SENT, "wireless_seconds")


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
        sweep = read_sweep(path)
        self.made, self.points = sweep["made"], sweep["points"]

    def methods(self):
        """The methods that were recorded, in the file's order."""
        return list(dict.fromkeys(run["point"]["method"] for run in self.points))

    def nearest(self, method, num_clients, skew):
        """The recorded point of `method` closest to the knobs; None without any.

        Clients are compared by their ratio (2 to 4 is as far as 4 to 8).
        """

        def distance(point):
            ratio = abs(np.log2(point["num_clients"] / num_clients))
            return ratio + 4 * abs(point["skew"] - skew), point["num_clients"]

        points = [run["point"] for run in self.points if run["point"]["method"] == method]
        return min(points, key=distance, default=None)

    def curve(self, method, num_clients, skew, axis="rounds"):
        """The loss on held-out pictures at the recorded point nearest to the knobs; None where not recorded.

        axis: one of AXES. What sends nothing has no megabytes and no seconds: its curve is the last loss alone, at 0.
        """
        point = self.nearest(method, num_clients, skew)
        if point is None:
            return None
        runs = [run for run in self.points if run["point"] == point]
        results = [run["result"] for run in runs]
        losses = np.array([result["loss"] for result in results])  # (seeds, rounds + 1)
        x = _axis(results, axis)
        if x is None:
            x, losses = np.zeros(1), losses[:, -1:]
        seeds = tuple(run["seed"] for run in runs)
        return Curve(method, point, seeds, x, losses.mean(0), losses.min(0), losses.max(0))

    def ends(self):
        """One row per recorded point: method, num_clients, skew, seeds, and after its last round the mean over seeds.

        loss with loss_low and loss_high (the best and the worst seed), the scores that were taken (object, all,
        old_all, kid), megabytes up and down together, and wireless_seconds. The base model's row, the first, is where
        federated LoRA starts.
        """
        points = [run["point"] for run in self.points]
        federated = next((point for point in points if point["method"] == "lora"), None)
        starts = [
            {"method": "base"} | _numbers(run["result"], 0)
            for run in self.points
            if run["point"] == federated
        ]
        ends = [run["point"] | _numbers(run["result"], -1) for run in self.points]
        runs = pd.DataFrame(starts + ends).groupby(list(points[0]), sort=False, dropna=False)
        table = runs.mean().assign(
            seeds=runs.size(), loss_low=runs["loss"].min(), loss_high=runs["loss"].max()
        )
        return table.reset_index()

    def provenance(self):
        """One sentence that says when the sweep was recorded, with what, and over which seeds."""
        packages = ", ".join(f"{name} {version}" for name, version in self.made["versions"].items())
        seeds = sorted({run["seed"] for run in self.points})
        date = self.made["date"][:10]
        return f"Recorded on {date} with {packages}; seeds {', '.join(map(str, seeds))}."


def _numbers(result, place):
    """A run's numbers at the first (0) or last (-1) of the rounds at which each was taken."""
    numbers = {}
    for name in NUMBERS:
        series = result.get(name, [0.0] if name in SENT else None)
        if series is not None:
            numbers[name] = list(series.values() if isinstance(series, dict) else series)[place]
    numbers["megabytes"] = sum(numbers.pop(name) for name in SENT)
    return numbers


def _axis(results, axis):
    """Where on `axis` the rounds from 0 on lie, averaged over seeds; None where nothing was sent."""
    if axis not in AXES:
        raise ValueError(f"axis must be one of {', '.join(AXES)}; got {axis!r}.")
    if axis == "rounds":
        return np.arange(len(results[0]["loss"]), dtype=float)
    names = SENT if axis == "megabytes" else ("wireless_seconds",)
    if not all(name in result for result in results for name in names):
        return None
    totals = np.mean(
        [np.sum([result[name] for name in names], axis=0) for result in results], axis=0
    )
    return totals if totals.any() else None
