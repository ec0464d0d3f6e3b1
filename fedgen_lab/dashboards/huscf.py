"""The dashboard of lab 07: GANs learn together on devices of several domains, and you turn the knobs.

Lab 07. HuSCF-GAN (arXiv 2507.12979) and its rivals on the same data, nets and seeds: each client's pictures, the scores
against rounds, megabytes and wireless seconds, the clusters by round, and the weights that alpha gives.
"""

from dataclasses import replace

import ipywidgets as widgets
from IPython.display import HTML, display

from fedgen_lab.dashboards import charts, controls
from fedgen_lab.dashboards.huscf_live import (
    AXES,
    MEASURES,
    METHOD_NAMES,
    GanRun,
    estimate_seconds,
    run_live,
    score_chart,
)
from fedgen_lab.dashboards.job import runs_inline
from fedgen_lab.dashboards.lora_live import duration
from fedgen_lab.dashboards.panel import Panel
from fedgen_lab.split.scenario import GanScenario

DOMAINS = {
    "digits and letters": "digits,letters",
    "digits": "digits",
    "digits and garments": "digits,garments",
    "digits, garments, runes, letters": "digits,garments,runes,letters",
}
LABELS = {  # how labels are dealt inside a domain
    "by the knob Skew": "skew",
    "all (S1, S3, S6)": "iid",
    "some left out (S2, S4)": "non-iid",
    "more left out (S5)": "highly-non-iid",
}


def huscf_dashboard(**changes):
    """Show the dashboard in the running cell and return it. `changes` are the knobs' first values, as in `GanScenario`.

    With FEDGEN_RUN=inline it also makes a first run.
    """
    return HuscfDashboard(GanScenario.for_profile(**changes)).show()


class HuscfDashboard:
    """Knobs, a panel that runs a method, a chart of scores and one of clusters."""

    def __init__(self, scenario):
        s = self.first = scenario
        self.method = controls.choice(
            "Method", [(name, key) for key, name in METHOD_NAMES.items()], s.method
        )
        domains = (
            {**DOMAINS} if s.domains in DOMAINS.values() else {s.domains: s.domains, **DOMAINS}
        )
        self.domains = controls.choice("Domains", list(domains.items()), s.domains)
        self.share = controls.choice("Labels", list(LABELS.items()), s.share)
        self.clients = controls.knob(
            "Clients", s.num_clients, 2, 16, help="devices; they share the domains in turn"
        )
        self.bandwidth = controls.log_knob(
            "Bandwidth (MHz)",
            s.bandwidth_hz / 1e6,
            1,
            1000,
            help="uplink band they share; re-times a run at once",
        )
        self.skew = controls.knob(
            "Skew",
            float(s.skew),
            0.0,
            1.0,
            0.05,
            help="0: all labels of its domain; 1: one label each",
        )
        self.alpha = controls.log_knob(
            "KLD alpha",
            max(s.kld_alpha, 0.1),
            0.1,
            1000,
            help="weighs down clients that differ from their cluster",
        )
        self.warm_up = controls.knob(
            "Warm-up", s.warm_up, 0, s.rounds, help="rounds of plain FedAvg before clusters"
        )
        self.seed = controls.knob(
            "Seed", s.seed, 0, 99, help="decides pictures, split, nets, batches and fading"
        )
        self.knobs = (self.clients, self.bandwidth, self.skew, self.alpha, self.warm_up, self.seed)

        self.panel = Panel("Start", GanRun, run_live, self.scenario, self.changed)
        self.measure = controls.choice("Score", list(MEASURES))
        self.axis = controls.choice("against", list(AXES))
        self.round = controls.knob("Clusters of round", s.rounds, 1, max(s.rounds, 2))
        self.score_chart, self.tap_chart = charts.LiveChart("scores"), charts.LiveChart("clusters")
        self.weight_chart = charts.LiveChart("weights")
        for chooser in (self.measure, self.axis):
            chooser.observe(lambda _: self.draw_scores(), names="value")
        self.estimate = widgets.HTML(layout={"width": "100%"})
        self.clients.observe(lambda _: self.tell_estimate())
        self.tell_estimate()
        self.share.observe(lambda _: self.skew.enable(self.share.value == "skew"), names="value")
        self.skew.enable(s.share == "skew")
        self.bandwidth.observe(lambda _: self.draw_scores())
        for knob in (self.round, self.alpha):
            knob.observe(lambda _: self.draw_clusters())

    def show(self):
        """Put everything into the output of the running cell; for HTML copies a first run, without the knobs."""
        live = not runs_inline()
        if live:
            choices = controls.row([self.method, self.domains, self.share])
            knobs = controls.grid([knob.box for knob in self.knobs])
            top = [controls.style(), choices, knobs, self.estimate, self.panel.box]
            display(
                widgets.VBox(
                    [*top, controls.row([self.measure, self.axis])], layout={"width": "100%"}
                )
            )
        self.score_chart.show()
        if live:
            display(self.round.box)
        self.tap_chart.show()
        self.weight_chart.show()
        self.draw()
        if not live:
            self.panel.start()
            display(
                HTML(
                    f"{controls.STYLE}<p>{self.panel.status.sentence}</p>{self.panel.latest().strip()}"
                )
            )
        return self

    def scenario(self):
        """The scenario that the knobs describe now."""
        cuts = (
            self.first.cuts if "," not in self.first.cuts else "optimum"
        )  # one cut each fits one number of clients
        return replace(
            self.first,
            method=self.method.value,
            domains=self.domains.value,
            share=self.share.value,
            num_clients=self.clients.value,
            bandwidth_hz=self.bandwidth.value * 1e6,
            skew=round(self.skew.value, 2),
            kld_alpha=self.alpha.value,
            warm_up=self.warm_up.value,
            seed=self.seed.value,
            cuts=cuts,
        )

    def tell_estimate(self):
        """Say how long a run with these knobs takes, by the newest run's own pace where there is one."""
        pace = next(
            (
                run.seconds_per_picture
                for run in reversed(self.panel.runs)
                if run.seconds_per_picture
            ),
            None,
        )
        where = "at the pace of your last run" if pace else "on one core"
        s = self.first
        self.estimate.value = (
            f'<p class="fedgen-note">{s.rounds} rounds of {s.iterations} iterations take '
            f"{duration(estimate_seconds(self.scenario(), pace))} {where}. You can stop at any time.</p>"
        )

    def changed(self, panel):
        """The run has come to a new round, or has ended."""
        run = panel.latest()
        if run is not None and run.rounds:
            following = (
                self.round.value >= self.round.number.max or self.round.value == run.rounds - 1
            )
            self.round.number.max = self.round.slider.max = max(run.scenario.rounds, 2)
            if following:
                self.round.set(run.rounds)
        if not panel.running():
            self.tell_estimate()
        self.draw()

    def draw(self):
        """Draw all charts anew, which also re-times every run at the present bandwidth."""
        self.draw_scores()
        self.draw_clusters()

    def draw_scores(self):
        """The chosen score of every run that is kept."""
        bandwidth = self.bandwidth.value * 1e6
        self.score_chart.update(
            *score_chart(self.panel.runs, self.measure.value, self.axis.value, bandwidth)
        )

    def draw_clusters(self):
        """Where the clients' taps lie, and what each client weighs, in the chosen round."""
        from fedgen_lab.dashboards.cluster_view import scores_of, tap_map, weight_bars

        run = self.panel.latest()
        known = [] if run is None else [event for event in run.history if event.taps is not None]
        if not known:
            sentence = "HuSCF-GAN's clusters appear here after the first round of a live run; its rivals have none."
            self.tap_chart.update(charts.empty_figure(""), sentence)
            self.weight_chart.update(charts.empty_figure(""), "The weights stand here.")
            return
        chosen = min(known, key=lambda event: abs(event.round - self.round.value))
        self.tap_chart.update(*tap_map(chosen, run.dealt, run.scenario.warm_up))
        counts, scores = run.dealt.counts.to_numpy().sum(axis=1), scores_of(chosen, run.scenario)
        chart, sentence, table = weight_bars(counts, scores, chosen.groups, self.alpha.value)
        if chosen.round <= run.scenario.warm_up:
            sentence += " This round was warm-up: the run itself took FedAvg's weights."
        self.weight_chart.update(chart, sentence, table)
