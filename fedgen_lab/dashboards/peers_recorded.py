"""The recorded sweep of lab 10 beside PDFed's Table 1: does the score of novelty do what the paper says?

Lab 10. `data/record/pdfed.py` says what was run and what its numbers are; nothing here computes anything new. Whatever
points the file holds are shown, and no others.
"""

import pandas as pd
from IPython.display import display

from fedgen_lab.dashboards import charts, controls
from fedgen_lab.dashboards.job import runs_inline
from fedgen_lab.recorded import recorded

SCORES = {
    "Q-N (lower is better)": "qn",
    "FID (lower is better)": "fid",
    "KID (lower is better)": "kid",
    "confirmed copies, percent": "rc",
    "membership AUC (0.5 is no leak)": "auc",
    "copies by the 1/3 rule": "copied",
    "FLD (lower is better)": "fld",
    "C_T (below -3 is copying)": "ct",
    "AuthPct": "authpct",
}
NAMES = {
    "fld-fid": "FLD + FID",
    "qn": "Q-N",
    "qn-dedup": "Q-N, de-duplicated",
    "calibrated": "calibrated novelty (ours)",
    "soup": "soup (FLD + FID)",
    "fedasync": "FedAsync",
    "fedavg": "FedAvg",
}
PAPERS = ("fld-fid", "qn", "qn-dedup")  # the columns of the paper's Table 1
# arXiv 2409.18245, Table 1: Q-N in thousands and FID by clients, for each of `PAPERS`; CIFAR-10, DINOv2 features.
PUBLISHED = {
    "qn": {
        2: (3.721, 3.730, 1.643),
        4: (2.364, 2.053, 1.607),
        6: (2.043, 1.840, 1.228),
        8: (1.705, 1.573, 1.103),
    },
    "fid": {
        2: (624.22, 640.68, 692.01),
        4: (750.02, 676.68, 709.85),
        6: (738.6, 723.56, 741.31),
        8: (755.02, 800.07, 725.23),
    },
}


def directions(score="qn"):
    """By how many percent a score changes against "fld-fid" with as many peers: ours, its seeds' range, published.

    score: "qn" or "fid". One row for each number of peers and each of the paper's two other objectives, as far as they
    were recorded: peers, method, ours, lowest, highest (of single seeds), published.
    """
    runs = recorded("pdfed").reindex(columns=["peers", "method", "seed", score])
    base, rows = PAPERS[0], []
    for peers, published in sorted(PUBLISHED[score].items()):
        seeds = runs[runs["peers"] == peers].pivot(index="seed", columns="method", values=score)
        for method, score_of_paper in zip(PAPERS[1:], published[1:], strict=True):
            pairs = seeds.reindex(columns=[base, method]).dropna()
            if len(pairs):
                changes = 100 * (pairs[method] / pairs[base] - 1)
                mean = 100 * (pairs[method].mean() / pairs[base].mean() - 1)
                of_paper = 100 * (score_of_paper / published[0] - 1)
                rows.append((peers, NAMES[method], mean, changes.min(), changes.max(), of_paper))
    columns = ["peers", "method", "ours", "lowest", "highest", "published"]
    return pd.DataFrame(rows, columns=columns).round(0)


def table_chart(runs, score="Q-N (lower is better)"):
    """A score of the last models by number of peers, one line a method. Returns (figure, sentence, table)."""
    key = SCORES[score]
    if runs.empty:
        return charts.empty_figure(""), "Nothing was recorded.", None
    grouped = (
        runs.groupby(["method", "peers"], sort=False)[key]
        .agg(["mean", "min", "max", "size"])
        .reset_index()
    )
    chart = charts.figure("peers", score, height=380)
    looks = list(
        zip(charts.PALETTE.values(), charts.DASHES.values(), charts.MARKERS.values(), strict=True)
    )
    drawn = [method for method in NAMES if method in set(grouped["method"])]
    for place, (method, name) in enumerate(NAMES.items()):
        rows = grouped[grouped["method"] == method].sort_values("peers")
        if len(rows):
            aside = 0.12 * (
                drawn.index(method) - (len(drawn) - 1) / 2
            )  # bars must not lie on each other
            colour, dash, shape = looks[place % len(looks)]
            chart.add_scatter(
                x=(rows["peers"] + aside).tolist(),
                y=rows["mean"].tolist(),
                name=name,
                mode="lines+markers" if len(rows) > 1 else "markers",
                line={"color": colour, "dash": dash, "width": 2},
                marker={
                    "color": colour,
                    "symbol": shape + ("-open" if place >= len(looks) else ""),
                    "size": 10,
                },
                error_y={
                    "array": (rows["max"] - rows["mean"]).tolist(),
                    "arrayminus": (rows["mean"] - rows["min"]).tolist(),
                    "thickness": 1,
                },
            )
    chart.update_xaxes(tickvals=sorted(runs["peers"].unique().tolist()))
    remarks = [
        f"Recorded, {grouped['size'].max()} seeds: bars reach from the lowest to the highest."
    ]
    plain = grouped[grouped["method"] == PAPERS[0]].set_index("peers")["mean"]
    if len(plain) > 1:
        fewest, largest = plain.index.min(), plain.index.max()
        remarks.append(
            f"With FLD + FID it goes from {plain[fewest]:.3g} with {fewest} peers "
            f"to {plain[largest]:.3g} with {largest}."
        )
    shown = grouped.rename(
        columns={"mean": key, "min": "lowest", "max": "highest", "size": "seeds"}
    )
    return chart, " ".join(remarks), shown.assign(method=shown["method"].map(NAMES))


class TableView:
    """A choice of score and the chart of what was recorded for it."""

    def __init__(self, runs):
        self.recorded = runs
        self.score = controls.choice("Score", list(SCORES))
        self.chart = charts.LiveChart("table-one")
        self.score.observe(lambda _: self.draw(), names="value")

    def show(self):
        """Put the choice and the chart into the output of the running cell."""
        if not runs_inline():
            display(controls.style(), controls.row([self.score]))
        self.chart.show()
        self.draw()
        return self

    def draw(self):
        """Draw the chart anew."""
        self.chart.update(*table_chart(self.recorded, self.score.value))


def table_view():
    """Show what was recorded in the running cell, with a choice of score; returns the view."""
    return TableView(recorded("pdfed")).show()
