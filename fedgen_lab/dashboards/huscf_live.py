"""What is known of a live run of a GAN method while it goes on, and the charts it makes. No widgets here.

Lab 07. `run_gan` says what happened, `GanRun.hear` keeps it and scores each round's pictures; the trace does not depend
on the radio, so another bandwidth only replays it.
"""

import textwrap
import time
from dataclasses import replace

import pandas as pd

from fedgen_lab.dashboards import charts
from fedgen_lab.dashboards.lora_live import network_of

AXES = {
    "rounds": ("round", "rounds"),
    "megabytes": ("megabytes", "megabytes sent, up and down"),
    "wireless seconds": ("wireless_seconds", "seconds on the wireless link"),
}
MEASURES = {
    "image score": "image_score",
    "KID": "kid",
    "right label": "right_label",
    "precision": "precision",
    "recall": "recall",
}
METHOD_NAMES = {
    "huscf": "HuSCF-GAN",
    "local": "local only",
    "centralised": "centralised",
    "fedgan": "FedGAN",
    "mdgan": "MD-GAN",
    "fslgan": "Federated Split GAN",
    "pflgan": "PFL-GAN",
    "hflgan": "HFL-GAN",
}
SCORED = 100  # pictures of each client by which a round is scored
SECONDS_PER_PICTURE = (
    0.0016  # one iteration for one picture at size "lab14", on one core of a small cloud machine
)
SECONDS_TO_SCORE = 0.12  # one client's pictures after a round
SECONDS_TO_DEAL = 4.0  # imports and pictures


def estimate_seconds(scenario, seconds_per_picture=None):
    """About how long a live run of `scenario` takes here; seconds_per_picture: as measured by an earlier run."""
    from fedgen_lab.split.latency import block_flops

    if seconds_per_picture is None:
        here, lab = (block_flops(size, scenario.batch_size) for size in (scenario.size, "lab14"))
        heavier = sum(here.generator.forward) / sum(lab.generator.forward)
        seconds_per_picture = SECONDS_PER_PICTURE * heavier
    each = scenario.iterations * scenario.batch_size * seconds_per_picture + SECONDS_TO_SCORE
    return SECONDS_TO_DEAL + scenario.rounds * scenario.num_clients * each


class GanRun:
    """One run on this machine: the scores of its rounds, its newest pictures, its clusters, its trace."""

    def __init__(self, scenario):
        self.scenario = scenario
        self.dealt = None
        self.scores = {}  # round -> a table with one row a domain, as `scoring.score` returns it
        self.history = []  # every `GanRound`, without its generators
        self.samples = ""  # the newest pictures, as HTML
        self.refused = []  # a sentence for each client that was left out
        self.trace = None  # of complete rounds only
        self.seconds = 0.0  # since the run began
        self.seconds_per_picture = None  # of training, once an iteration was timed
        self._began, self._clock, self._since = time.monotonic(), None, None

    @property
    def name(self):
        """Method and knobs in words, for legends."""
        s = self.scenario
        domains, alpha = (
            " + ".join(s.domain_names),
            f", alpha {s.kld_alpha:g}" if s.method == "huscf" else "",
        )
        labels = f"skew {s.skew:g}" if s.share == "skew" else s.share
        return f"{METHOD_NAMES[s.method]}, {domains}, {s.num_clients} clients, {labels}{alpha}, seed {s.seed}"

    @property
    def rounds(self):
        """How many rounds are complete."""
        return max(self.scores, default=0)

    @property
    def computed(self):
        """True once there is anything to show."""
        return bool(self.scores)

    def version(self):
        """Changes whenever there is something new to draw."""
        return len(self.scores), len(self.refused)

    def summary(self):
        """What was computed, in one or two sentences."""
        if not self.rounds:
            return "no round was complete yet."
        scores = ", ".join(
            f"{row.domain} {row.image_score:.2f}" for row in self.scores[self.rounds].itertuples()
        )
        said = f"{self.rounds} of {self.scenario.rounds} rounds in {self.seconds:.0f} s. Image score: {scores}."
        return " ".join([said, *self.refused])

    def hear(self, event):
        """Keep what an event of `run_gan` tells; returns it as a sentence for the status line."""
        self.seconds = time.monotonic() - self._began
        if not hasattr(event, "generators"):
            self._time(event)
            return f"Round {event.round} of {self.scenario.rounds}, iteration {event.iteration} of {event.iterations}."
        from fedgen_lab.dashboards.cluster_view import samples_html
        from fedgen_lab.split.nets import SIZES
        from fedgen_lab.split.scoring import score

        self.samples = samples_html(event.generators, self.dealt, SIZES[self.scenario.size])
        self.history.append(replace(event, generators=[]))
        if event.trace is not None:
            self.trace = event.trace.until(event.round)
        self.scores[event.round] = score(event.generators, self.dealt, self.scenario, number=SCORED)
        mean = self.scores[event.round]["image_score"].mean()
        return f"Round {event.round} of {event.rounds} is complete: image score {mean:.2f}."

    def _time(self, step):
        """Learn from a `GanStep` how long a picture takes, within one round so that scoring is not counted."""
        now, s = time.monotonic(), self.scenario
        if self._since is None or self._since[0] != step.round:
            self._since = step.round, step.iteration, now
        elif step.iteration > self._since[1]:
            share = (
                step.iteration - self._since[1]
            ) / step.iterations  # of one round of all clients
            pictures = share * s.iterations * s.num_clients * s.batch_size
            self.seconds_per_picture = (now - self._since[2]) / pictures

    def strip(self):
        """The newest pictures as HTML: a row for each client, one of each label, with a mark at those it never held."""
        return self.samples

    def timeline(self, bandwidth_hz):
        """The trace so far on the clock of a network with that uplink bandwidth; None before the first message."""
        if self.trace is None or not len(self.trace):
            return None
        clock = self._clock
        if clock is None or clock[:2] != (bandwidth_hz, self.trace):
            from fedgen_lab.wireless.replay import replay

            network = network_of(replace(self.scenario, bandwidth_hz=bandwidth_hz))
            self._clock = clock = (bandwidth_hz, self.trace, replay(self.trace, network))
        return clock[2]

    def table(self, bandwidth_hz):
        """One row per round and domain: round, domain, the scores, megabytes and wireless_seconds so far."""
        tables = [table.assign(round=number) for number, table in sorted(self.scores.items())]
        if not tables:
            return pd.DataFrame()
        table = pd.concat(tables, ignore_index=True)
        timeline = self.timeline(bandwidth_hz)
        megabytes, seconds = {}, {}
        if timeline is not None:
            per_round = timeline.rounds.sort_values("round").set_index("round")
            megabytes = ((per_round["bytes_up"] + per_round["bytes_down"]).cumsum() / 1e6).to_dict()
            seconds = per_round["end_seconds"].to_dict()
        table["megabytes"] = [_last(megabytes, number) for number in table["round"]]
        table["wireless_seconds"] = [_last(seconds, number) for number in table["round"]]
        return table


def run_live(run, job):
    """The work behind Start: deal the pictures, run the method, score every round."""
    job.report("Dealing the pictures.")
    from fedgen_lab.split.deal import deal
    from fedgen_lab.split.run import run_gan

    run.dealt = deal(run.scenario)
    outcome = run_gan(run.scenario, job.should_stop, lambda event: job.report(run.hear(event)))
    run.refused = [refusal.reason for refusal in outcome.refused]
    run.trace = outcome.trace if not outcome.stopped else run.trace


def score_chart(runs, measure, axis, bandwidth_hz):
    """One score of live runs (newest last) against rounds, megabytes or seconds. Returns (figure, sentence, table)."""
    column, (x_column, x_title) = MEASURES[measure], AXES[axis]
    runs = [
        run for run in runs if run.computed
    ]  # the newest may have failed before there was anything to show
    chart = charts.figure(
        x_title=x_title, y_title=f"{measure}, mean over domains", height=350 + 30 * len(runs)
    )
    rows, said, ceiling = [], [], None
    for run in runs:
        table = run.table(bandwidth_hz)
        newest = run is runs[-1]
        means = (
            table.groupby("round")[[column, "megabytes", "wireless_seconds", "ceiling"]]
            .mean()
            .reset_index()
        )
        place, roles = (
            list(METHOD_NAMES).index(run.scenario.method),
            list(charts.PALETTE),
        )  # looks as in `rivals_chart`
        name = "<br>".join(
            textwrap.wrap(f"live: {run.name}", 44)
        )  # a legend does not wrap by itself
        charts.add_line(
            chart, means[x_column], means[column], name, roles[place % len(roles)], faint=not newest
        )
        chart.data[-1].marker.symbol += "-open" if place >= len(roles) else ""
        rows.append(table.assign(run=run.name))
        if newest:
            last, ceiling = means.iloc[-1], means["ceiling"].iloc[-1]
            each = table[table["round"] == table["round"].max()]
            domains = ", ".join(f"{row['domain']} {row[column]:.3g}" for _, row in each.iterrows())
            said.append(
                f"Live, on this machine ({run.name}): round {int(last['round'])} of {run.scenario.rounds}, {measure} "
                f"{last[column]:.3g} ({domains}) after {_digits(last['megabytes'])} MB and "
                f"{_digits(last['wireless_seconds'])} s on the wireless link at {bandwidth_hz / 1e6:g} MHz."
            )
    if measure == "image score" and ceiling is not None:
        level(chart, ceiling, "real pictures", "real")
        said.append(f"Held-out real pictures score {ceiling:.3g}.")
    sentence = " ".join(said) or "Nothing has run yet: turn the knobs and press Start."
    wanted = ["run", "domain", "round", column, "ceiling", "megabytes", "wireless_seconds"]
    table = pd.concat(rows, ignore_index=True) if rows else None
    return (
        chart,
        sentence,
        None if table is None else table[[name for name in wanted if name in table]],
    )


def level(chart, y, words, role):
    """Draw a line across `chart` at height y, with words."""
    chart.add_hline(
        y=float(y),
        line={"color": charts.PALETTE[role], "dash": charts.DASHES[role], "width": 1.5},
        annotation_text=words,
        annotation_position="top left",
    )


def _digits(value):
    """Three digits, but no powers of ten."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _last(by_round, number):
    """The value at this round or the last one before it; 0 before the first message."""
    earlier = [at for at in by_round if at <= number]
    return by_round[max(earlier)] if earlier else 0.0
