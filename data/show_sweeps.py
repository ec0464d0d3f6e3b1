"""Print the recorded sweeps as Markdown tables: means over seeds, in brackets the lowest and the highest.

python data/show_sweeps.py
"""

import json
from pathlib import Path

import pandas as pd

from fedgen_lab.dashboards.huscf_recorded import recorded_gans
from fedgen_lab.peers.sweep_attacks import recorded_attacks

SWEEPS = Path(__file__).parent / "sweeps"


def table(name, measures):
    """One row for each point of sweep `name`: every measure after the last round."""
    entries = json.loads((SWEEPS / f"{name}.json").read_text(encoding="utf-8"))["points"]
    rows = []
    for entry in entries:
        result = dict(entry["result"])
        if isinstance(result.get("loss"), list):
            result["base loss"] = result["loss"][0]
        rows.append(
            {
                **entry["point"],
                **{measure: after_last_round(result[measure]) for measure in measures},
            }
        )
    knobs = list(dict.fromkeys(knob for entry in entries for knob in entry["point"]))
    rows = pd.DataFrame(rows).fillna({"model": "lora"})  # sweep copying names its other model only
    return with_spread(rows.groupby(knobs, sort=False), measures, ".3g")


def with_spread(points, measures, digits):
    """Grouped runs as a table of texts, "mean (lowest-highest)", with the number of seeds."""
    spread = points[measures].agg(["mean", "min", "max"])
    text = pd.DataFrame(
        {
            measure: [
                f"{row['mean']:{digits}} ({row['min']:{digits}}-{row['max']:{digits}})"
                for _, row in spread[measure].iterrows()
            ]
            for measure in measures
        },
        index=spread.index,
    )
    return text.join(points.size().rename("seeds")).reset_index()


def after_last_round(value):
    """A measure that is a number, {round: number} or a list by round."""
    if isinstance(value, dict):
        return list(value.values())[-1]
    return value[-1] if isinstance(value, list) else value


def gan_table(measures):
    """One row for each scenario and method of sweep huscf_gan: means over domains and seeds after the last round."""
    recorded = recorded_gans(SWEEPS / "huscf_gan.json")
    text = recorded[["scenario", "method"]].copy()
    for measure in measures:
        spread = zip(
            recorded[measure], recorded[f"{measure}_low"], recorded[f"{measure}_high"], strict=True
        )
        text[measure] = [f"{mean:.3g} ({low:.3g}-{high:.3g})" for mean, low, high in spread]
    for price in ("megabytes", "wireless_seconds", "gigaflops"):
        text[price] = [f"{value:.3g}" for value in recorded[price]]
    return text.join(recorded["seeds"])


def attacks_table(measures):
    """One row for each point of sweep peers_attacks: means over seeds, without those where there was nothing."""
    points = recorded_attacks().groupby(
        ["attack", "attackers", "vote_rule", "open_votes", "seconds"], sort=False
    )
    return with_spread(points, measures, ".2f")


def markdown(rows):
    """A data frame as a Markdown table."""
    lines = [list(rows.columns), ["---"] * rows.shape[1], *rows.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    lora = ["loss", "object", "old_all", "kid", "megabytes_up", "wireless_seconds", "base loss"]
    leak = [
        "labels_from_generator",
        "labels_from_discriminator",
        "mse",
        "baseline_mse",
        "image_score",
        "kid",
    ]
    print(markdown(table("federated_lora", lora)), end="\n\n")
    print(markdown(table("own_pictures", ["loss", "base loss"])), end="\n\n")
    print(markdown(table("smashed_data", leak)), end="\n\n")
    print(
        markdown(table("copying", ["captions", "copied", "others", "ratio", "auc", "tpr"])),
        end="\n\n",
    )
    told = ["loss", "fidelity", "server's auc", "server's tpr", "auc", "backdoor", "loss before"]
    print(markdown(table("what_leaks", told)), end="\n\n")
    told = ["qn", "fid", "kid", "rc", "copied", "auc", "tpr", "authpct", "ct", "fld"]
    print(markdown(table("pdfed", told)), end="\n\n")
    told = [
        "models",
        "steps",
        "built_on",
        "paid",
        "fair",
        "vote_gap",
        "vote_correlation",
        "kid",
        "copied",
    ]
    print(markdown(attacks_table(told)), end="\n\n")
    print(markdown(gan_table(["image_score", "kid", "precision", "recall", "accuracy"])))
