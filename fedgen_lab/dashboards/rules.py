"""The dashboard of lab 04: one federation, ten ways to make one adapter out of many.

Knobs for the rule, the clients' ranks, their number and how much they differ. The same run against rounds, megabytes
and wireless seconds; what averaging factors would miss, layer by layer and as pictures from the same seeds; and how
many directions of the adapter are in use.
"""

from dataclasses import replace

import ipywidgets as widgets
import pandas as pd
from IPython.display import HTML, display

from fedgen_lab.dashboards import charts, controls
from fedgen_lab.dashboards.job import runs_inline
from fedgen_lab.dashboards.lora_live import LiveRun, duration, estimate_seconds, loss_chart
from fedgen_lab.dashboards.lora_recorded import AXES
from fedgen_lab.dashboards.lora_runs import draw_each, federated
from fedgen_lab.dashboards.panel import Panel
from fedgen_lab.dashboards.take_home import TakeHome
from fedgen_lab.scenario import MIXED_RANKS, RULES, Scenario

RANKS = [
    ("8 for everyone", ""),
    ("4, 8 in turn", "4,8"),
    ("2, 4, 8 in turn", "2,4,8"),
    ("1, 16 in turn", "1,16"),
]
MIXTURES = ("mean of factors", "exact mixture")


def rules_dashboard(**changes):
    """Show the dashboard in the running cell and return it. `changes` are the knobs' first values, as in `Scenario`.

    With FEDGEN_RUN=inline it also makes a first run.
    """
    return RulesDashboard(Scenario.for_profile(**{"skew": 1.0, **changes})).show()


class RuleRun(LiveRun):
    """A live run, and what its last round's uploads say about the rule."""

    def __init__(self, scenario, prompts=()):
        super().__init__(scenario, prompts)
        self.label = scenario.rule
        self.bias = {}  # layer -> what averaging the factors of the last uploads misses
        self.energy = ()  # the share of the model's change in its first 1, 2, ... directions

    @property
    def name(self):
        """The rule, then the knobs in words."""
        ranks = f", ranks {self.scenario.ranks}" if self.scenario.ranks else ""
        return f"{self.scenario.rule}, {super().name}{ranks}"

    def version(self):
        """Changes whenever there is something new to draw."""
        return (*super().version(), len(self.bias), len(self.energy))

    def strip(self, scale=2):
        """The pictures as HTML: base, clients, and below each other the mean of factors, the mixture and the model."""
        pictures = dict(self.pictures)
        clients = sorted(
            (row for row in pictures if row.startswith("client ")),
            key=lambda row: int(row.split()[1]),
        )
        rows = [
            (row, pictures.get(row)) for row in ("base model", *clients, *MIXTURES, "federated")
        ]
        return charts.strip_html(rows, self.prompts, scale) if pictures else ""


def run_rule(run, job):
    """Federated LoRA by the scenario's rule; then the last uploads' own pictures, their mean's and their mixture's."""
    outcome, dealt = federated(run, job)
    from fedgen_lab.lora.rules import bias_by_layer, mean, rank_energy, resized, stacked

    states = outcome.client_states
    if not states:
        return
    rank = max(run.scenario.client_ranks)
    padded, weights = (
        [resized(state, rank) for state in states.values()],
        [1 / len(states)] * len(states),
    )
    run.energy = tuple(rank_energy(outcome.state).tolist())
    run.bias = bias_by_layer(padded, weights)
    draw_each(run, job, dealt, states, "client {}")
    draw_each(
        run,
        job,
        dealt,
        dict(zip(MIXTURES, (mean(padded, weights), stacked(padded, weights)), strict=True)),
        "{}",
    )


class RulesDashboard:
    """Knobs, one panel, and three charts of its runs."""

    def __init__(self, scenario):
        s = self.first = scenario
        self.rule = controls.choice("Rule", list(RULES), s.rule)
        self.ranks = controls.choice("Ranks", RANKS, s.ranks)
        self.clients = controls.knob(
            "Clients", s.num_clients, 2, 16, help="devices that train together"
        )
        self.skew = controls.knob(
            "Skew",
            float(s.skew),
            0.0,
            1.0,
            0.05,
            help="0: everyone holds everything; 1: one concept each",
        )
        self.local_steps = controls.knob(
            "Local steps", s.local_steps, 1, 100, help="training steps between uploads"
        )
        self.bandwidth = controls.log_knob(
            "Bandwidth (MHz)",
            s.bandwidth_hz / 1e6,
            0.1,
            100,
            help="uplink band; re-times a finished run at once",
        )
        self.seed = controls.knob(
            "Seed", s.seed, 0, 99, help="decides pictures, split, noise and fading"
        )
        self.knobs = (self.clients, self.skew, self.local_steps, self.bandwidth, self.seed)
        self.estimate = widgets.HTML()
        self.panel = Panel("Start", RuleRun, run_rule, self.scenario, self.changed)
        self.take_home = TakeHome(self.panel)
        self.axis = controls.choice("Loss against", list(AXES))
        self.charts = {name: charts.LiveChart(name) for name in ("loss", "bias", "directions")}
        self.rule.observe(lambda _: self._fit_ranks(), names="value")
        self.ranks.observe(lambda _: self.tell_estimate(), names="value")
        self.axis.observe(lambda _: self.draw(), names="value")
        self.bandwidth.observe(lambda _: self.draw())
        for one in (self.clients, self.local_steps):
            one.observe(lambda _: self.tell_estimate())
        self._fit_ranks()

    def show(self):
        """Put everything into the output of the running cell; for HTML copies a first run, without the knobs."""
        live = not runs_inline()
        top = [
            controls.style(),
            controls.row([self.rule, self.ranks]),
            controls.grid([knob.box for knob in self.knobs]),
            self.estimate,
            self.panel.box,
            controls.row([self.axis]),
        ]
        if live:
            display(widgets.VBox(top, layout={"width": "100%"}))
        for chart in self.charts.values():
            chart.show()
        self.draw()
        if not live:
            self.panel.start()
            words = self.panel.status.sentence
            display(HTML(f"{controls.STYLE}<p>{words}</p>{self.panel.latest().strip()}"))
        return self

    def scenario(self):
        """The scenario that the knobs describe now."""
        return replace(
            self.first,
            rule=self.rule.value,
            ranks=self.ranks.value,
            num_clients=self.clients.value,
            skew=round(self.skew.value, 2),
            local_steps=self.local_steps.value,
            seed=self.seed.value,
            bandwidth_hz=self.bandwidth.value * 1e6,
        )

    def _fit_ranks(self):
        """Only some rules let clients differ in rank."""
        mixed = self.rule.value in MIXED_RANKS
        self.ranks.disabled = not mixed
        if not mixed:
            self.ranks.value = ""
        self.tell_estimate()

    def tell_estimate(self):
        """Say how long a live run with these knobs takes here."""
        measured = [run.seconds_per_step for run in self.panel.runs if run.seconds_per_step]
        long = duration(estimate_seconds(self.scenario(), measured[-1] if measured else None))
        only = (
            ""
            if self.rule.value in MIXED_RANKS
            else f" Clients of different rank: {', '.join(MIXED_RANKS)} only."
        )
        self.estimate.value = (
            f'<p class="fedgen-note">{self.first.rounds} rounds take {long} here.{only}</p>'
        )

    def changed(self, panel):
        """A run has come to a new round, or has ended."""
        self.take_home.update()
        self.draw()

    def draw(self):
        """Draw the charts anew, which also re-times every run at the present bandwidth."""
        runs, s = self.panel.runs, self.scenario()
        self.charts["loss"].update(
            *loss_chart(runs, None, self.axis.value, s.bandwidth_hz, s.num_clients, s.skew)
        )
        self.charts["bias"].update(*bias_chart([run for run in runs if run.bias]))
        self.charts["directions"].update(*directions_chart([run for run in runs if run.energy]))


def bias_chart(runs):
    """What averaging the factors of the newest run's last uploads misses, by layer: (figure, sentence, table)."""
    if not runs:
        return (
            charts.empty_figure(""),
            "What averaging A and B would miss stands here after a run.",
            None,
        )
    bias = runs[-1].bias
    chart = charts.figure(
        x_title="adapted layer, from the input of the UNet to its output", y_title="missed share"
    )
    chart.add_bar(
        x=list(range(1, len(bias) + 1)),
        y=list(bias.values()),
        name=runs[-1].scenario.rule,
        hovertext=list(bias),
        marker={"color": charts.PALETTE["server"]},
    )
    mean = sum(bias.values()) / len(bias)
    sentence = (
        f"Last uploads of {runs[-1].scenario.rule}: averaging A and B one by one would miss {mean:.0%} of the mean "
        f"change in the mean layer, from {min(bias.values()):.0%} to {max(bias.values()):.0%}."
    )
    return chart, sentence, pd.DataFrame({"layer": list(bias), "missed share": list(bias.values())})


def directions_chart(runs):
    """How much of each run's model change lies in its first directions: (figure, sentence, table)."""
    if not runs:
        return (
            charts.empty_figure(""),
            "How many directions the model's change uses stands here after a run.",
            None,
        )
    chart = charts.figure(x_title="directions, the strongest first", y_title="share of the change")
    rows = []
    for run in runs:
        numbers = list(range(1, len(run.energy) + 1))
        charts.add_line(
            chart, numbers, run.energy, run.scenario.rule, "server", faint=run is not runs[-1]
        )
        rows += [
            {"run": run.name, "directions": n, "share": e}
            for n, e in zip(numbers, run.energy, strict=True)
        ]
    last = runs[-1]
    two = last.energy[min(1, len(last.energy) - 1)]
    sentence = f"{last.scenario.rule}: the two strongest of {len(last.energy)} directions hold {two:.0%} of the change."
    return chart, sentence, pd.DataFrame(rows)
