"""The copying dashboard: train a model until it copies, beside what was recorded; and pictures beside their originals.

Lab 09. Knobs say how many private pictures there are, how often some of them are repeated, and for how long a model
trains on them. A live run draws from the training captions and says how many drawings are copies; the chart holds the
recorded sweep. All science is in `fedgen_lab.memorization`, which is imported here because it takes some seconds.
"""

import html

import ipywidgets as widgets
import numpy as np
import pandas as pd
from IPython.display import HTML, display

from fedgen_lab.dashboards import charts, controls
from fedgen_lab.dashboards.job import give_memory_back, runs_inline
from fedgen_lab.dashboards.panel import Panel

SHOWN = 8  # pictures side by side
AXES = {  # what the chart can stand against: words -> the knob of `Copying`
    "repetitions": "times",
    "steps": "steps",
    "private pictures": "pictures",
    "rank": "rank",
    "one caption for all": "unique_captions",
    "DP noise": "noise_multiplier",
}
KINDS = {  # what the chart can show: words -> (a number of the sweep, the axis' title)
    "copies": ("copied", "share of drawings that are copies"),
    "nearest ratio": ("ratio", "median ratio of the two nearest distances"),
    "membership": ("auc", "AUC of membership inference"),
}
DP_CLIP = 1.0  # the longest gradient of one picture while DP noise is on


class CopyingRun:
    """One live run: its knobs and, once it has drawn, the model (`making.Trained`) and what its drawings are."""

    def __init__(self, copying):
        self.copying, self.trained, self.judged = copying, None, None

    @property
    def computed(self):
        """True once there is something to show."""
        return self.judged is not None

    def version(self):
        """Changes when the page should."""
        return self.computed

    def summary(self):
        """What came out, in a sentence."""
        if not self.computed:
            return "nothing was drawn yet, and a model that is half trained is not judged."
        judged, often = self.judged, self.copying.times
        others = "" if judged.others is None else f", for others {judged.others:.0%}"
        return (
            f"copies came back of {judged.captions} of the 4 pictures that were there {often} times. Of the drawings "
            f"for these {judged.copied:.0%} are copies{others}. Membership: AUC {judged.auc:.2f}; 0.5 is guessing."
        )

    def strip(self):
        """Drawings above the training pictures that they are nearest to, as HTML."""
        if not self.computed:
            return ""
        order = np.argsort(self.judged.ratios)[:SHOWN]
        drawn, training = self.judged.drawn.numpy(), self.judged.training.numpy()
        headings = [f"ratio {self.judged.ratios[i]:.2f}" for i in order]
        rows = [
            ("drawn", drawn[order]),
            ("nearest training picture", training[self.judged.nearest[order]]),
        ]
        return charts.strip_html(rows, headings)


def run_copying(run, job):
    """Train and draw as the run's knobs say; a stop leaves nothing half done on the page."""
    job.report("Loading the model and drawing the private pictures.")
    from fedgen_lab.memorization.making import train_copying
    from fedgen_lab.memorization.sweep_copying import judge_copies

    def heard(step, steps, loss):
        job.report(f"Step {step} of {steps}, loss {loss:.3f}.")

    trained = train_copying(run.copying, heard, job.should_stop)
    give_memory_back()  # 100 MB, before drawing takes as much
    if job.report("Drawing from the captions of the training pictures."):
        judged = judge_copies(trained, should_stop=job.should_stop)
        if judged is not None:
            run.trained, run.judged = trained, judged


class CopyingDashboard:
    """What `copying_dashboard` shows: knobs, one panel, one chart. `panel.runs` holds the live runs."""

    def __init__(self, copying, recorded):
        self.first, self.recorded = copying, recorded
        self.times = controls.knob(
            "Repetitions", copying.times, 1, 32, help="of each repeated picture"
        )
        self.pictures = controls.knob(
            "Private pictures", copying.pictures, 4, 512, help="4 of them repeated"
        )
        self.steps = controls.knob(
            "Steps", copying.steps, 10, 500, 10, help="of training, 16 pictures each"
        )
        self.canaries = controls.knob(
            "Canaries", copying.canaries, 0, 4, help="planted as often as the repeated ones"
        )
        self.rank = controls.knob(
            "Rank", copying.rank, 1, 32, help="of the adapter: room to remember"
        )
        self.noise = controls.knob(
            "DP noise",
            float(copying.noise_multiplier),
            0.0,
            2.0,
            0.1,
            help="on clipped gradients; slow",
        )
        self.seed = controls.knob(
            "Seed", copying.seed, 0, 99, help="decides pictures, start and noise"
        )
        self.knobs = (
            self.times,
            self.pictures,
            self.canaries,
            self.steps,
            self.rank,
            self.noise,
            self.seed,
        )
        self.captions = controls.choice(
            "Captions", [("one for each", True), ("one for all", False)], True
        )
        self.panel = Panel(
            "Train a copier", CopyingRun, run_copying, self.copying, lambda _: self.draw()
        )
        self.kind = controls.choice("Show", list(KINDS))
        self.axis = controls.choice("against", list(AXES))
        for menu in (self.kind, self.axis):
            menu.observe(lambda _: self.draw(), names="value")
        self.chart = charts.LiveChart("copies")

    def show(self):
        """Put everything into the output of the running cell; for HTML copies a first run, without the knobs."""
        live = not runs_inline()
        if live:
            knobs = controls.grid([knob.box for knob in self.knobs])
            parts = [controls.style(), knobs, controls.row([self.captions]), self.panel.box]
            display(
                widgets.VBox(
                    [*parts, controls.row([self.kind, self.axis])], layout={"width": "100%"}
                )
            )
        self.chart.show()
        self.draw()
        if not live:
            self.panel.start()
            words = html.escape(self.panel.status.sentence)
            display(HTML(f"{controls.STYLE}<p>{words}</p>{self.panel.latest().strip()}"))
        return self

    def copying(self):
        """The `Copying` that the knobs describe now."""
        from dataclasses import replace

        noise = round(self.noise.value, 2)
        return replace(
            self.first,
            times=self.times.value,
            pictures=self.pictures.value,
            canaries=self.canaries.value,
            steps=self.steps.value,
            rank=self.rank.value,
            seed=self.seed.value,
            unique_captions=self.captions.value,
            noise_multiplier=noise,
            clip=DP_CLIP if noise else 0.0,
        )

    def draw(self):
        """Draw the chart anew: recorded points, and live runs on top."""
        self.chart.update(
            *copies_chart(self.recorded, self.panel.runs, self.kind.value, self.axis.value)
        )


def copying_dashboard(**changes):
    """Show the copying dashboard. changes: of the knobs' first values, as for `memorization.making.Copying`.

    Returns the `CopyingDashboard`. With FEDGEN_RUN=inline one run starts at once.
    """
    from fedgen_lab.memorization.making import Copying
    from fedgen_lab.memorization.sweep_copying import recorded_copying

    return CopyingDashboard(Copying(**changes), recorded_copying()).show()


def copies_chart(recorded, runs, kind="copies", axis="repetitions"):
    """What was recorded along one knob, the others as in the lesson, and the live runs: (figure, sentence, table).

    recorded: the frame of `sweep_copying.recorded_copying`; runs: `CopyingRun`s. The line is the mean over seeds, the
    bars reach from the lowest to the highest.
    """
    column, title = KINDS[kind]
    knob = AXES[axis]
    along = along_knob(recorded, knob)
    live = [run for run in runs if run.computed]
    if along.empty and not live:
        sentence = f"Nothing is recorded along {axis} yet. A live run adds a point."
        return charts.empty_figure(sentence), sentence, None
    chart = charts.figure(x_title=axis, y_title=title)
    words = {True: "no", False: "yes"}
    named = (lambda v: words[bool(v)]) if knob == "unique_captions" else float
    told = []
    if not along.empty:
        mean = along.groupby(knob)[column].agg(["mean", "min", "max", "count"])
        chart.add_scatter(
            x=[named(x) for x in mean.index],
            y=mean["mean"].tolist(),
            name="recorded, mean over seeds",
            mode="lines+markers",
            error_y={
                "type": "data",
                "symmetric": False,
                "array": (mean["max"] - mean["mean"]).tolist(),
                "arrayminus": (mean["mean"] - mean["min"]).tolist(),
            },
            line={"color": charts.PALETTE["adapter"], "dash": charts.DASHES["adapter"]},
            marker={
                "color": charts.PALETTE["adapter"],
                "symbol": charts.MARKERS["adapter"],
                "size": 9,
            },
        )
        told = [
            f"{y:.2f} at {named(x) if knob == 'unique_captions' else f'{x:g}'}"
            for x, y in mean["mean"].items()
        ]
    for run in live:
        chart.add_scatter(
            x=[named(getattr(run.copying, knob))],
            y=[getattr(run.judged, column)],
            mode="markers",
            name="live",
            showlegend=run is live[0],
            marker={
                "color": charts.PALETTE["generated"],
                "symbol": charts.MARKERS["generated"],
                "size": 13,
            },
        )
    if column != "auc":
        chart.update_yaxes(range=[-0.03, 1.05])
    if knob in ("times", "pictures", "rank"):
        chart.update_xaxes(type="log", dtick=np.log10(2))
    recordings = (
        f"Recorded by {axis}, {title}: {', '.join(told)}."
        if told
        else f"Nothing is recorded along {axis}."
    )
    lives = f" {len(live)} live, marked by a star, whatever the other knobs were." if live else ""
    table = (
        along[[knob, "seed", "copied", "others", "ratio", "auc", "tpr"]]
        if not along.empty
        else None
    )
    return chart, recordings + lives, table


def along_knob(recorded, knob):
    """The recorded runs in which only `knob` (and what must go with it) differs from the lesson's values."""
    from fedgen_lab.memorization.sweep_copying import LESSON

    if recorded.empty:
        return recorded
    lesson = (
        dict(LESSON, times=1) if knob == "pictures" else dict(LESSON)
    )  # few pictures copy without repetitions
    free = {knob, "clip"} if knob == "noise_multiplier" else {knob}
    same = [recorded[name] == value for name, value in lesson.items() if name not in free]
    same.append(recorded["model"] == "lora")
    return recorded[np.logical_and.reduce(same)].sort_values([knob, "seed"])


# -- pictures beside their originals ----------------------------------------------------------------------------------
class Originals:
    """What `originals_view` shows. `score`: a drop-down list; `page`: a knob; `order()`: rows, likest copies first."""

    def __init__(self, generated, training, rows, scores):
        self.generated, self.training, self.rows, self.scores = (
            generated,
            training,
            np.asarray(rows),
            scores,
        )
        pages = max(1, -(-len(self.rows) // SHOWN))
        self.score = controls.choice("Sorted by", list(scores))
        self.page = controls.knob(
            "Page", 1, 1, pages, help=f"{SHOWN} pictures each; page 1 looks most like copies"
        )
        self.status = controls.StatusLine()
        self.pictures = widgets.HTML(layout={"width": "100%"})
        self.score.observe(lambda _: self.draw(), names="value")
        self.page.observe(lambda _: self.draw())
        top = [
            controls.style(),
            controls.row([self.score]),
            self.page.box,
            self.status.widget,
            self.pictures,
        ]
        self.box = widgets.VBox(top, layout={"width": "100%"})
        self.draw()

    def order(self):
        """Rows of the generated pictures, from the likest copy to the least."""
        return np.argsort(-np.asarray(self.scores[self.score.value]), kind="stable")

    def draw(self):
        """Draw the page that the knobs ask for."""
        start = (int(self.page.value) - 1) * SHOWN
        shown = self.order()[start : start + SHOWN]
        values = np.asarray(self.scores[self.score.value])[shown]
        rows = [
            ("generated", self.generated[shown]),
            ("nearest training picture", self.training[self.rows[shown]]),
        ]
        self.pictures.value = charts.strip_html(rows, [f"{value:.3g}" for value in values])
        self.status.say(
            f"{self.score.value}: pictures {start + 1} to {start + len(shown)} of {len(self.rows)}, the likest copy "
            f"first. Their scores run from {values[0]:.3g} to {values[-1]:.3g}; higher means copy."
        )

    def _ipython_display_(self):
        """Shown already by `originals_view`."""


def originals_view(generated, training, scores, match="robust"):
    """Show generated pictures beside the training picture each is nearest to, sorted by a score to choose.

    generated (N, C, H, W), training (M, C, H, W); scores: {name: (N,) numbers, higher means copy}; match: as for
    `memorization.distance.nearest`. Returns the `Originals`. Raises ValueError when a score has another length.
    """
    from fedgen_lab.memorization.distance import nearest

    for name, values in scores.items():
        if len(values) != len(generated):
            raise ValueError(
                f"The score {name!r} has {len(values)} numbers for {len(generated)} pictures. Give one for each."
            )
    _, rows = nearest(generated, training, 1, match)
    made = Originals(np.asarray(generated), np.asarray(training), rows[:, 0], scores)
    if runs_inline():  # an HTML copy shows no widgets
        display(
            HTML(f"{controls.STYLE}<p>{html.escape(made.status.sentence)}</p>{made.pictures.value}")
        )
    else:
        display(made.box)
    return made


def roc_chart(races):
    """ROC curves of several detectors on one logarithmic axis of false positives: (figure, sentence, table).

    races: {name: `privacy.membership.Membership`}, the copies as members. The table has AUC and TPR at 1 % FPR.
    """
    chart = charts.figure(
        x_title="share of honest pictures flagged", y_title="share of copies found"
    )
    dashes, symbols = (
        ("solid", "dash", "dot", "dashdot", "longdash"),
        tuple(charts.MARKERS.values()),
    )
    rows = []
    for number, (name, race) in enumerate(races.items()):
        false, true = race.curve()
        colour = list(charts.PALETTE.values())[number % len(charts.PALETTE)]
        look = {"color": colour, "dash": dashes[number % len(dashes)]}
        chart.add_scatter(
            x=np.maximum(false, 1e-3).tolist(), y=true.tolist(), name=name, mode="lines", line=look
        )
        chart.add_scatter(
            x=[0.01],
            y=[race.tpr],
            mode="markers",
            showlegend=False,
            name=name,
            marker={"color": colour, "symbol": symbols[number % len(symbols)], "size": 9},
        )
        rows.append({"detector": name, "AUC": race.auc, "found at 1 % false alarms": race.tpr})
    chart.update_xaxes(type="log", range=[-3, 0])
    table = pd.DataFrame(rows).sort_values(
        "found at 1 % false alarms", ascending=False, ignore_index=True
    )
    best, worst = table.iloc[0], table.iloc[-1]
    sentence = (
        f"At 1 % false alarms {best['detector']} finds {best.iloc[2]:.0%} of the copies, {worst['detector']} "
        f"{worst.iloc[2]:.0%}."
    )
    return chart, sentence, table
