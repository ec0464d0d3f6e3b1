"""Print the recorded sweeps as Markdown tables: means over seeds, in brackets the lowest and the highest.

python data/show_sweeps.py
"""

import pandas as pd

from fedgen_lab.dashboards.huscf_recorded import recorded_gans
from fedgen_lab.peers.sweep_attacks import recorded_attacks
from fedgen_lab.recorded import recorded


def table(name, measures):
    """One row for each point of sweep `name`: every measure after the last round."""
    runs = recorded(name)
    knobs = runs.attrs["knobs"]
    runs[knobs] = runs[knobs].fillna({"model": "lora"})  # sweep copying names its other model only
    if "base loss" in measures:
        runs["base loss"] = runs["loss"].str[0]
    for measure in measures:
        runs[measure] = runs[measure].map(after_last_round)
    return with_spread(runs.groupby(knobs, sort=False), measures, ".3g")


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
    runs = recorded_gans()
    text = runs[["scenario", "method"]].copy()
    for measure in measures:
        spread = zip(runs[measure], runs[f"{measure}_low"], runs[f"{measure}_high"], strict=True)
        text[measure] = [f"{mean:.3g} ({low:.3g}-{high:.3g})" for mean, low, high in spread]
    for price in ("megabytes", "wireless_seconds", "gigaflops"):
        text[price] = [f"{value:.3g}" for value in runs[price]]
    return text.join(runs["seeds"])


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


MEASURES = {  # the columns of README.md's tables
    "federated_lora": [
        "loss",
        "object",
        "old_all",
        "kid",
        "megabytes_up",
        "wireless_seconds",
        "base loss",
    ],
    "own_pictures": ["loss", "base loss"],
    "smashed_data": [
        "labels_from_generator",
        "labels_from_discriminator",
        "mse",
        "baseline_mse",
        "image_score",
        "kid",
    ],
    "copying": ["captions", "copied", "others", "ratio", "auc", "tpr"],
    "what_leaks": [
        "loss",
        "fidelity",
        "server's auc",
        "server's tpr",
        "auc",
        "backdoor",
        "loss before",
    ],
    "pdfed": ["qn", "fid", "kid", "rc", "copied", "auc", "tpr", "authpct", "ct", "fld"],
}
ATTACKS = [
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

if __name__ == "__main__":
    for name, measures in MEASURES.items():
        print(markdown(table(name, measures)), end="\n\n")
    print(markdown(attacks_table(ATTACKS)), end="\n\n")
    print(markdown(gan_table(["image_score", "kid", "precision", "recall", "accuracy"])))
