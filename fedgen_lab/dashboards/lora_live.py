"""What is known of a live run of federated LoRA while it goes on, and the charts it makes. No widgets here.

Lab 03. A run is heard, not driven: `run_federated` says what happened, `LiveRun.hear` keeps it, and the functions below
draw it. The trace of a run does not depend on the radio, so another bandwidth only replays it.
"""

import time
from dataclasses import replace

import numpy as np
import pandas as pd

from fedgen_lab.dashboards import charts
from fedgen_lab.dashboards.lora_recorded import AXES

SECONDS_PER_PICTURE_STEP = (
    0.0125  # one training step for one picture: 0.0085 and 0.016 on cores of two machines
)
SECONDS_TO_TRY = 2.0  # the held-out loss of one model, and a strip of pictures
SECONDS_TO_LOAD = (
    12.0  # importing torch and diffusers, loading the model, drawing the base model's pictures
)


def estimate_seconds(scenario, seconds_per_step=None, own=False):
    """About how long a live run of `scenario` takes here.

    seconds_per_step: as measured by an earlier run. own: on own pictures, where every client also trains alone.
    """
    if seconds_per_step is None:
        seconds_per_step = SECONDS_PER_PICTURE_STEP * scenario.batch_size
    steps = scenario.rounds * scenario.num_clients * scenario.local_steps
    federated = steps * seconds_per_step + scenario.rounds * SECONDS_TO_TRY
    alone = steps * seconds_per_step + scenario.rounds * scenario.num_clients * SECONDS_TO_TRY
    return SECONDS_TO_LOAD + federated + (alone if own else 0)


def duration(seconds):
    """A length of time in words: "about 50 seconds", "about 4 minutes"."""
    if seconds < 90:
        return f"about {max(5, round(seconds / 5) * 5)} seconds"
    return f"about {round(seconds / 60)} minutes"


class LiveRun:
    """One run on this machine: its losses by round, its pictures by model, its trace.

    scenario: what is run; prompts: the texts its pictures are drawn for. `label`: what legends say first.
    """

    label = ""

    def __init__(self, scenario, prompts=()):
        self.scenario = scenario
        self.prompts = list(prompts)
        self.losses = {}  # round -> held-out denoising loss; round 0 is the base model
        self.pictures = {}  # row name -> (P, 3, H, W) in [-1, 1]
        self.rivals = {}  # name -> {round: loss}: trained beside the federation, on the same held-out pictures
        self.refused = []  # a sentence for each upload that was not averaged
        self.trace = None  # of complete rounds only
        self.adapter = {}  # the trained parameters by name, once the run has ended
        self.provenance = {}  # where they come from, for a file's header
        self.seconds_per_step = None
        self._clock = None  # (bandwidth_hz, trace, timeline) of the last replay
        self._steps_since = None  # (when, count): the present stretch of steps without a pause

    @property
    def name(self):
        """The knobs in words, for legends."""
        s = self.scenario
        extra = f", rank {s.rank}" if s.rank != 8 else ""
        return f"{s.num_clients} clients, skew {s.skew:g}, {s.local_steps} local steps{extra}, seed {s.seed}"

    @property
    def rounds(self):
        """How many rounds are complete."""
        return max(self.losses, default=0)

    def summary(self):
        """What was computed, in one or two sentences."""
        if not self.losses:
            return "nothing was complete yet."
        said = f"{self.rounds} of {self.scenario.rounds} rounds are complete."
        if self.rounds:
            said += (
                f" Held-out loss {self.losses[0]:.3f} before, {self.losses[self.rounds]:.3f} now."
            )
        return " ".join([said, *self.refused])

    @property
    def computed(self):
        """True once there is anything to show."""
        return bool(self.losses)

    def version(self):
        """Changes whenever there is something new to draw."""
        rows = tuple((row, id(pictures)) for row, pictures in list(self.pictures.items()))
        return len(self.losses), len(self.rivals), rows

    def strip(self, scale=2):
        """The picture strip as HTML: base, each client's last upload, global; same prompts, same seeds."""
        pictures = dict(self.pictures)  # the run goes on adding rows
        clients = sorted(
            (row for row in pictures if row.startswith("client ")),
            key=lambda row: int(row.split()[1]),
        )
        rows = [
            (row, pictures.get(row))
            for row in ("your pictures", "base model", *clients, "federated")
        ]
        return charts.strip_html(rows, self.prompts, scale) if pictures else ""

    def hear(self, event):
        """Keep what an event of `run_federated` tells; returns it as a sentence for the status line."""
        if hasattr(event, "pictures"):
            return self._hear_round(event)
        now = time.monotonic()
        if self._steps_since is None or event.step == 1:
            self._steps_since = (now, event.step)
        else:
            since, first = self._steps_since
            self.seconds_per_step = (now - since) / max(event.step - first, 1)
        return (
            f"Round {event.round} of {self.scenario.rounds}, client {event.client}, "
            f"step {event.step} of {event.steps}, loss {event.loss:.3f}."
        )

    def _hear_round(self, event):
        self.losses[event.round] = float(event.loss)
        if event.pictures is not None:
            self.pictures["base model" if event.round == 0 else "federated"] = np.asarray(
                event.pictures
            )
        if event.trace is not None:
            self.trace = event.trace.until(event.round)
        if event.round == 0:
            return f"The base model has a held-out loss of {event.loss:.3f}. Training begins."
        return f"Round {event.round} of {event.rounds} is complete: held-out loss {event.loss:.3f}."

    def timeline(self, bandwidth_hz):
        """The trace so far on the clock of a network with that uplink bandwidth; None before the first message."""
        if self.trace is None or not self.rounds:
            return None
        clock = self._clock
        if clock is None or clock[:2] != (bandwidth_hz, self.trace):  # both charts ask for the same
            from fedgen_lab.wireless.replay import replay

            trace = self.trace
            timeline = replay(trace, network_of(replace(self.scenario, bandwidth_hz=bandwidth_hz)))
            self._clock = clock = (bandwidth_hz, trace, timeline)
        return clock[2]

    def table(self, bandwidth_hz):
        """One row per round: round, loss, megabytes and wireless_seconds so far (both 0 for the base model)."""
        rounds = sorted(self.losses)
        table = pd.DataFrame({"round": rounds, "loss": [self.losses[r] for r in rounds]})
        megabytes, seconds = {0: 0.0}, {0: 0.0}
        timeline = self.timeline(bandwidth_hz)
        if timeline is not None:
            total = 0.0
            for row in timeline.rounds.sort_values("round").itertuples():
                total += (row.bytes_up + row.bytes_down) / 1e6
                megabytes[int(row.round)], seconds[int(row.round)] = total, float(row.end_seconds)
        table["megabytes"] = [megabytes.get(r, np.nan) for r in rounds]
        table["wireless_seconds"] = [seconds.get(r, np.nan) for r in rounds]
        return table


def network_of(scenario):
    """The wireless network of a scenario: its clients share its uplink bandwidth."""
    from fedgen_lab.wireless.channel import Network

    return Network(
        num_clients=scenario.num_clients, bandwidth_hz=scenario.bandwidth_hz, seed=scenario.seed
    )


COLUMNS = dict(zip(AXES, ("round", "megabytes", "wireless_seconds"), strict=True))
COLUMNS["joules"] = "joules"  # of runs on a clock of their own
X_TITLES = dict(
    zip(
        AXES, ("rounds", "megabytes sent, up and down", "seconds on the wireless link"), strict=True
    )
)
X_TITLES["joules"] = "joules spent by all devices together"
ROLES = {"local_only": "client", "lora": "server", "centralised": "real", "full": "generated"}


def loss_chart(runs, recorded, axis, bandwidth_hz, num_clients, skew):
    """Held-out loss of live runs (newest last) over recorded curves. Returns (figure, sentence, table).

    axis: one of lora_recorded.AXES. recorded: a `Recorded` or None; its curves are those nearest to the two knobs.
    """
    chart = charts.figure(
        x_title=X_TITLES[axis], y_title="denoising loss on held-out pictures", height=380
    )
    rows, said = [], []
    curves = (
        [recorded.curve(m, num_clients, skew, axis) for m in recorded.methods()] if recorded else []
    )
    main = next(
        (curve.point for curve in curves if curve is not None and curve.method == "lora"), None
    )
    for curve in filter(None, curves):
        name = f"recorded {curve.name}"
        if (
            main is not None and curve.point | {"method": "lora"} != main
        ):  # not recorded at this point of the knobs
            name += f" ({curve.point['num_clients']} clients, skew {curve.point['skew']:g})"
        _draw_recorded(chart, curve, name)
        rows += [
            {"run": name, axis: x, "loss": y, "lowest seed": low, "highest seed": high}
            for x, y, low, high in zip(curve.x, curve.mean, curve.low, curve.high, strict=True)
        ]
        if curve.method == "lora":
            said.append(
                f"Recorded ({main['num_clients']} clients, skew {main['skew']:g}, {len(curve.seeds)} seeds): "
                f"loss {curve.mean[0]:.3f} at the start, {curve.mean[-1]:.3f} at the end."
            )
    for run, name in zip(runs, _names(runs), strict=True):
        table = run.table(bandwidth_hz).dropna()
        if table.empty or COLUMNS[axis] not in table:
            continue
        newest = run is runs[-1]
        x, y = table[COLUMNS[axis]], table["loss"]
        charts.add_line(chart, x, y, name, "adapter", faint=not newest)
        rows += [
            {"run": f"live: {run.name}", axis: at, "loss": loss}
            for at, loss in zip(x, y, strict=True)
        ]
        if newest:
            last = table.iloc[-1]
            words = (
                f"Live, on this machine ({run.name}): round {int(last['round'])} of {run.scenario.rounds}, loss "
                f"{last['loss']:.3f} after {last['megabytes']:.3g} MB and {last['wireless_seconds']:.3g} s "
                f"on the wireless link at {bandwidth_hz / 1e6:g} MHz."
            )
            said.insert(0, words)
    for name, losses in (runs[-1].rivals if runs else {}).items():
        rounds, values = list(losses), list(losses.values())
        if axis == "rounds":
            charts.add_line(chart, rounds, values, f"live {name}", "client")
            rows += [{"run": f"live {name}", axis: x, "loss": y} for x, y in losses.items()]
        else:  # nothing is sent, so there is only a level to compare with
            _level(chart, values[-1], f"live {name}, at its end", "client")
        said.append(f"{name.capitalize()} ends at {values[-1]:.3f}.")
    sentence = " ".join(said) or "Nothing has run yet: turn the knobs and press Start."
    return chart, sentence, pd.DataFrame(rows) if rows else None


def _names(runs):
    """A short name for each live run: its label, and the knobs by which the runs differ."""
    knobs = {
        "ranks": "ranks {}",
        "num_clients": "{} clients",
        "skew": "skew {:g}",
        "local_steps": "{} steps",
        "rank": "rank {}",
        "seed": "seed {}",
    }
    values = [{knob: getattr(run.scenario, knob) for knob in knobs} for run in runs]
    differ = [knob for knob in knobs if len({value[knob] for value in values}) > 1]
    told = [
        [knobs[knob].format(value[knob]) for knob in differ if value[knob] != ""]
        for value in values
    ]
    return [
        ", ".join(["live", *filter(None, [run.label]), *knobs_of_run])
        for run, knobs_of_run in zip(runs, told, strict=True)
    ]


def _draw_recorded(chart, curve, name):
    role = ROLES.get(curve.method, "base")
    if len(curve.x) == 1:  # nothing was sent, so there is only a level to compare with
        _level(chart, curve.mean[0], f"{name}, at its end", role)
        return
    spread = [*curve.high, *curve.low[::-1]]
    chart.add_scatter(
        x=[*curve.x.tolist(), *curve.x[::-1].tolist()],
        y=[float(y) for y in spread],
        fill="toself",
        mode="none",
        fillcolor=charts.PALETTE[role],
        opacity=0.2,
        hoverinfo="skip",
        showlegend=False,
        name=f"seeds of {curve.name}",
    )
    charts.add_line(chart, curve.x, curve.mean, name, role, faint=True)


def _level(chart, y, words, role):
    chart.add_hline(
        y=float(y),
        line={"color": charts.PALETTE[role], "dash": charts.DASHES[role], "width": 1.5},
        annotation_text=words,
        annotation_position="top right",
    )
