"""Print the recorded sweeps as Markdown tables: means over seeds, in brackets the lowest and the highest.

    python data/show_sweeps.py
"""

import json
from pathlib import Path

import pandas as pd

SWEEPS = Path(__file__).parent / "sweeps"


def table(name, measures):
    """One row for each point of sweep `name`: every measure after the last round, and megabytes and seconds sent."""
    rows = []
    for entry in json.loads((SWEEPS / f"{name}.json").read_text())["points"]:
        row = {key: entry["point"][key] for key in ("method", "num_clients", "skew")} | {"seed": entry["seed"]}
        for measure in measures:
            value = entry["result"][measure]
            row[measure] = list(value.values())[-1] if isinstance(value, dict) else value[-1]
        rows.append(row | {"base loss": entry["result"]["loss"][0]})
    points = pd.DataFrame(rows).groupby(["method", "num_clients", "skew"], sort=False)
    spread = points[[*measures, "base loss"]].agg(["mean", "min", "max"])
    seeds = points["seed"].count().rename("seeds")
    text = pd.DataFrame({
        measure: [f"{row['mean']:.3g} ({row['min']:.3g}-{row['max']:.3g})" for _, row in spread[measure].iterrows()]
        for measure in [*measures, "base loss"]
    }, index=spread.index)  # fmt: skip
    return text.join(seeds).reset_index()


def markdown(rows):
    """A data frame as a Markdown table."""
    lines = [list(rows.columns), ["---"] * rows.shape[1], *rows.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    print(markdown(table("federated_lora", ["loss", "object", "old_all", "kid", "megabytes_up", "wireless_seconds"])))
    print()
    print(markdown(table("own_pictures", ["loss"])))
