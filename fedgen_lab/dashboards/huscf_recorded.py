"""The recorded sweep of lab 07: HuSCF-GAN and its rivals over scenarios and seeds, as a table, a chart and duels.

Lab 07. `data/record/huscf_gan.py` says what was run; nothing here computes anything new. Whatever points the file holds
are shown, and no others.
"""

import pandas as pd
from IPython.display import display

from fedgen_lab.dashboards import charts, controls
from fedgen_lab.dashboards.huscf_live import METHOD_NAMES, level
from fedgen_lab.dashboards.job import runs_inline
from fedgen_lab.recorded import recorded

MEASURES = {  # words -> (key in the sweep, whether more is better)
    "image score": ("image_score", True),
    "accuracy of a classifier that learned from it": ("accuracy", True),
    "KID": ("kid", False),
    "FID": ("fid", False),
    "right label": ("right_label", True),
    "precision": ("precision", True),
    "recall": ("recall", True),
}
CEILINGS = {"image_score": "ceiling", "accuracy": "accuracy_ceiling"}
PRICES = {
    "megabytes": "megabytes",
    "wireless seconds": "wireless_seconds",
    "gigaflops of the devices": "gigaflops",
}
KEYS = tuple(key for key, _ in MEASURES.values())


def recorded_gans():
    """The sweep as a table with a row per scenario and method; empty when nothing was recorded.

    Columns: scenario, method, seeds (how many), refused; for every measure its mean over domains and seeds after the
    last round, and `_low` and `_high`, its lowest and highest seed; ceiling and accuracy_ceiling of real pictures;
    megabytes up and down, wireless_seconds, gigaflops, means over seeds.
    """
    runs = recorded("huscf_gan")
    if runs.empty:
        columns = ["scenario", "method", "seeds", *KEYS, *CEILINGS.values(), *PRICES.values()]
        return pd.DataFrame(columns=columns)
    table = runs[["scenario", "method", "refused", "gigaflops"]].copy()
    for key in (*KEYS, *CEILINGS.values()):
        table[key] = runs[key].map(_mean_of_domains)
    table["megabytes"] = runs["megabytes_up"].str[-1] + runs["megabytes_down"].str[-1]
    table["wireless_seconds"] = runs["wireless_seconds"].str[-1]

    # Over the seeds: means, and of each measure the lowest and the highest.
    seeds = table.groupby(["scenario", "method"], sort=False)
    table = seeds.mean()
    table.insert(0, "seeds", seeds.size())
    for key in KEYS:
        table[f"{key}_low"], table[f"{key}_high"] = seeds[key].min(), seeds[key].max()
    places = {method: place for place, method in enumerate(METHOD_NAMES)}
    return table.reset_index().sort_values(
        ["scenario", "method"],
        key=lambda column: column.map(places) if column.name == "method" else column,
        ignore_index=True,
    )


def _mean_of_domains(domains):
    """The mean over domains of a number or of the last number by round; NaN for what was not measured."""
    last = [value[-1] if isinstance(value, list) else value for value in domains]
    return pd.Series(last, dtype=float).mean()


def duels(table, measure):
    """HuSCF-GAN against every other, scenario by scenario: a table of "better", "worse", "level" or "too few seeds".

    Better and worse only where every seed of one beats every seed of the other; where seeds overlap it is level.
    table: of `recorded_gans`; measure: a key of it such as "image_score".
    """
    more_is_better = dict(MEASURES.values())[measure]
    verdicts = {}
    for scenario, rows in table.groupby("scenario", sort=False):
        rows = rows.set_index("method")
        if "huscf" in rows.index:
            champion = rows.loc["huscf"]
            rivals = rows.drop(index="huscf").to_dict("index")
            verdicts[scenario] = {
                METHOD_NAMES[name]: _duel(champion, rival, measure, more_is_better)
                for name, rival in rivals.items()
            }
    return pd.DataFrame(verdicts).T.rename_axis("scenario")


def _duel(champion, rival, measure, more_is_better):
    low, high = f"{measure}_low", f"{measure}_high"
    if min(champion["seeds"], rival["seeds"]) < 2:
        return "too few seeds"
    if champion[low] > rival[high]:  # all seeds of one against all of the other
        return "better" if more_is_better else "worse"
    if champion[high] < rival[low]:
        return "worse" if more_is_better else "better"
    return "level"


def rivals_chart(table, scenario, measure="image score", price="megabytes"):
    """A score against what it costs, one point a method, in one scenario. Returns (figure, sentence, table)."""
    rows = table[table["scenario"] == scenario]
    key, more_is_better = MEASURES[measure]
    if rows.empty or rows[key].isna().all():
        return (
            charts.empty_figure(""),
            f"{measure} was not recorded for {scenario or 'any scenario'}.",
            None,
        )
    column = PRICES[price]
    chart = charts.figure(price, f"{measure}, mean over domains", height=420)
    looks = list(zip(charts.PALETTE.values(), charts.MARKERS.values(), strict=True))
    for row in rows.sort_values(column).to_dict("records"):
        place = list(METHOD_NAMES).index(row["method"])
        colour, shape = looks[place % len(looks)]
        chart.add_scatter(
            x=[max(row[column], 1e-2)],
            y=[row[key]],
            mode="markers",
            name=METHOD_NAMES[row["method"]],
            cliponaxis=False,
            marker={
                "color": colour,
                "symbol": shape + ("-open" if place >= len(looks) else ""),
                "size": 12,
            },
            error_y={
                "array": [row[f"{key}_high"] - row[key]],
                "arrayminus": [row[key] - row[f"{key}_low"]],
            },
        )
    prices = rows[column].clip(lower=1e-2)
    chart.update_xaxes(type="log", dtick=1 if prices.max() > 100 * prices.min() else "D2")
    remarks = []
    if key in CEILINGS and rows[CEILINGS[key]].notna().any():
        ceiling = rows[CEILINGS[key]].mean()
        level(chart, ceiling, "real pictures", "real")
        remarks.append(f"Real pictures reach {ceiling:.3g}.")
    ranked = rows.sort_values(key, ascending=not more_is_better)
    best, cheapest = ranked.iloc[0], rows.loc[rows[column].idxmin()]
    sentence = (
        f"Recorded, {scenario}, up to {int(rows['seeds'].max())} seeds: the best {measure} has "
        f"{METHOD_NAMES[best['method']]}, {best[key]:.3g} for {best[column]:,.0f} {price}; the fewest {price}, "
        f"{cheapest[column]:,.0f}, takes {METHOD_NAMES[cheapest['method']]}, with {cheapest[key]:.3g}. "
    )
    shown = rows[["method", "seeds", key, f"{key}_low", f"{key}_high", *PRICES.values()]]
    remarks.append("Bars reach from the lowest seed to the highest.")
    return (
        chart,
        sentence + " ".join(remarks),
        shown.assign(method=shown["method"].map(METHOD_NAMES)),
    )


def rivals_view(table=None):
    """Show the recorded methods in the running cell, with a choice of scenario, score and price; returns the view."""
    return RivalsView(recorded_gans() if table is None else table).show()


class RivalsView:
    """Three choices and a chart of recorded methods."""

    def __init__(self, table):
        self.table = table
        scenarios = list(dict.fromkeys(table["scenario"])) or [""]
        self.scenario = controls.choice("Scenario", scenarios)
        self.measure = controls.choice("Score", list(MEASURES))
        self.price = controls.choice("against", list(PRICES))
        self.chart = charts.LiveChart("rivals")
        for chooser in (self.scenario, self.measure, self.price):
            chooser.observe(lambda _: self.draw(), names="value")

    def show(self):
        """Put everything into the output of the running cell."""
        if not runs_inline():
            display(controls.style(), controls.row([self.scenario, self.measure, self.price]))
        self.chart.show()
        self.draw()
        return self

    def draw(self):
        """Draw what is chosen."""
        self.chart.update(
            *rivals_chart(self.table, self.scenario.value, self.measure.value, self.price.value)
        )

    def _ipython_display_(self):
        """Shown already by `show`."""
