"""The cut editor: say for each kind of device which blocks it holds, and see one iteration on the clock.

Lab 07. The Gantt chart marks the critical path; one button finds the exact optimum, another races the genetic algorithm
against it. The clock and both searches are `fedgen_lab.split.latency` and `cuts`: HuSCF-GAN, arXiv 2507.12979.
"""

import html
import time
from dataclasses import replace

import ipywidgets as widgets
import numpy as np
import pandas as pd
from IPython.display import HTML, display

from fedgen_lab.dashboards import charts, controls
from fedgen_lab.dashboards.job import Job, runs_inline
from fedgen_lab.split.cuts import exact_cuts, genetic_cuts
from fedgen_lab.split.latency import (
    DEVICES,
    SERVER,
    SERVER_ROW,
    block_flops,
    deal_devices,
    iteration_gantt,
    iteration_seconds,
)

BLOCKS = ("G1", "G3", "D1", "D3")  # the four bits of a cut
IN_WORDS = (
    "generator block 1",
    "generator block 3",
    "discriminator block 1",
    "discriminator block 3",
)
HELP = (
    "G1 and G3 are blocks 1 and 3 of the generator, D1 and D3 of the discriminator; each button moves one between "
    "device and server. Heads and tails always lie on the devices, the blocks 2 on the server."
)
GENERATIONS, POPULATION = 300, 1000  # the published recipe, which goes on for 1,000 generations
TILE = 4  # clients that share a cut in the race, as published; one where there are fewer than 28
CRITICAL = "#D55E00"
_LOOKS = {  # kind of bar: role that gives the colour, pattern
    "device computes": ("client", ""),
    "upload": ("adapter", "\\"),
    "download": ("generated", "/"),
    "server computes": ("server", ""),
}


def cut_editor(num_clients=7, size="reference", batch_size=64, reference=False):
    """Show the cut editor in the running cell and return it.

    num_clients: the seven published kinds of device are dealt in turn. size: a name in `fedgen_lab.split.nets.SIZES`.
    reference: begin with the published code's way of counting. With FEDGEN_RUN=inline it shows the optimum and a race.
    """
    return CutEditor(num_clients, size, batch_size, reference).show()


class CutEditor:
    """A row of four buttons for each kind of device, two knobs, the Gantt chart of one iteration, and the race."""

    def __init__(self, num_clients=7, size="reference", batch_size=64, reference=False):
        self.size, self.batch_size = size, batch_size
        block_flops(size, batch_size)  # refuses a size that is not known
        self._redraw = True
        self.clients = controls.knob(
            "Clients", num_clients, 1, 100, help="the seven kinds of device, dealt in turn"
        )
        self.links = controls.log_knob(
            "Link rates, times",
            1.0,
            0.01,
            100,
            help="all links, devices' and server's, so many times as fast",
        )
        self.counting = controls.choice(
            "Counting", [("corrected", False), ("as published", True)], reference
        )
        self.toggles = [[self._toggle(device, bit) for bit in range(4)] for device in DEVICES]
        self.labels = [widgets.HTML(layout={"flex": "1 1 270px"}) for _ in DEVICES]
        self.rows = [  # the four buttons stay together: beside the label, or below it where the page is narrow
            controls.row(
                [label, widgets.HBox(toggles, layout={"flex": "0 1 412px", "min_width": "0"})]
            )
            for label, toggles in zip(self.labels, self.toggles, strict=True)
        ]
        self.buttons = [
            controls.button("Exact optimum", self.set_optimum, main=True),
            controls.button(
                "All on the server", lambda: self.set_cuts([(0, 0, 0, 0)] * len(DEVICES))
            ),
            controls.button(
                "All on the devices", lambda: self.set_cuts([(1, 1, 1, 1)] * len(DEVICES))
            ),
        ]
        self.gantt = charts.LiveChart("iteration")

        self.status = controls.StatusLine(
            "Ready. The race begins at random cuts, with the devices and links above."
        )
        self.race = Job(self._race, self._show_race, self.status)
        self.race_so_far, self._drawn_at = None, 0.0
        self.race_button = controls.button("Race the genetic algorithm", self.race.start)
        self.stop_button = controls.button("Stop", self._stop)
        self.stop_button.disabled = True
        self.race_chart = charts.LiveChart("race")

        for knob in (self.clients, self.links):
            knob.observe(lambda _: self.draw())
        self.counting.observe(lambda _: self.draw(), names="value")

    def show(self):
        """Put everything into the output of the running cell; for HTML copies the optimum and a race, without knobs."""
        if runs_inline():
            self.gantt.show()
            self.set_optimum()
            self.race_chart.show()
            self.race.start()
            display(HTML(f"{controls.STYLE}<p>{html.escape(self.status.sentence)}</p>"))
            return self
        top = [
            controls.style(),
            controls.grid([self.clients.box, self.links.box]),
            controls.row([self.counting]),
            *self.rows,
            widgets.HTML(f'<span class="fedgen-help">{HELP}</span>'),
            controls.row(self.buttons),
        ]
        display(widgets.VBox(top, layout={"width": "100%"}))
        self.gantt.show()
        race = [controls.row([self.race_button, self.stop_button]), self.status.widget]
        display(widgets.VBox(race, layout={"width": "100%"}))
        self.race_chart.show()
        self.draw()
        return self

    # ---- what the knobs say

    def setting(self):
        """What `iteration_seconds` takes besides cuts, as keywords: devices, work, reference, server."""
        reference = self.counting.value
        return {
            "devices": [self._faster(device) for device in deal_devices(self.clients.value)],
            "work": block_flops(self.size, self.batch_size, reference),
            "reference": reference,
            "server": self._faster(SERVER),
        }

    def cuts(self):
        """The cut (g1, g3, d1, d3) of each client, as the buttons stand."""
        kinds = [tuple(int(toggle.value) for toggle in toggles) for toggles in self.toggles]
        return [kinds[client % len(kinds)] for client in range(self.clients.value)]

    def set_cuts(self, cuts):
        """Set the buttons of each kind of device to one cut of `cuts`; kinds without one stay."""
        self._redraw = False
        for toggles, cut in zip(self.toggles, cuts, strict=False):
            for toggle, bit in zip(toggles, cut, strict=True):
                toggle.value = bool(bit)
        self._redraw = True
        self.draw()

    def set_optimum(self):
        """Set the buttons to the proven optimum; clients of one kind always share it."""
        cuts, _ = exact_cuts(**self.setting())
        self.set_cuts(cuts[: len(DEVICES)])

    # ---- what is drawn

    def draw(self):
        """Draw the iteration with the present cuts, and say how far from the optimum it is."""
        if not self._redraw:
            return
        kinds = min(len(DEVICES), self.clients.value)
        unit = "MB/s" if self.counting.value else "Mbit/s"
        setting = self.setting()
        for kind, (row, label) in enumerate(zip(self.rows, self.labels, strict=True)):
            row.layout.display = "" if kind < kinds else "none"
            if kind < kinds:
                device, number = (
                    setting["devices"][kind],
                    len(range(kind, self.clients.value, len(DEVICES))),
                )
                rate = device.bits_per_second / 1e6
                label.value = (
                    f'<span class="fedgen-note"><b>{device.name}</b> ({number}): {device.flops_per_second / 1e9:.4g} '
                    f"GFLOP/s, {rate:{',.0f' if rate >= 1000 else '.4g'}} {unit}</span>"
                )
        self.gantt.update(*iteration_chart(self.cuts(), **setting))

    def _faster(self, device):
        return replace(device, bits_per_second=device.bits_per_second * self.links.value)

    def _toggle(self, device, bit):
        made = widgets.ToggleButton(
            layout={"flex": "1 1 0", "min_width": "0", "padding": "0 2px"},
            tooltip=f"{IN_WORDS[bit]} of {device.name}",
        )

        def say(_=None):
            made.description = f"{BLOCKS[bit]}: {'device' if made.value else 'server'}"

        say()
        made.observe(say, names="value")
        made.observe(lambda _: self.draw(), names="value")
        return made

    # ---- the race

    def _race(self, job):
        setting = self.setting()
        began = time.perf_counter()
        _, optimum = exact_cuts(**setting)
        self.race_so_far = race = Race(
            len(setting["devices"]), optimum, time.perf_counter() - began
        )
        began = time.perf_counter()

        def hear(generation, seconds, cuts):
            race.best.append(seconds)
            race.took_seconds = time.perf_counter() - began
            job.report(race.sentence())

        genetic_cuts(
            **setting,
            generations=GENERATIONS,
            population=POPULATION,
            tile=race.tile,
            on_generation=hear,
            should_stop=lambda: job.should_stop() or race.reached(),
        )
        return race

    def _stop(self):
        self.race.stop()
        self._show_race(self.race)

    def _show_race(self, job):
        running, race = job.state == "running", self.race_so_far
        self.race_button.disabled = running
        self.stop_button.disabled = not job.can_stop()
        words = {"done": "Done: ", "cancelled": "Stopped: "}.get(job.state, "")
        self.status.say(
            words + race.sentence() if words and race is not None else job.message, job.state
        )
        # A new chart keeps the browser busy for a moment: once a second leaves it free for the Stop button.
        if (
            race is not None
            and race.best
            and (not running or time.monotonic() - self._drawn_at > 1)
        ):
            self.race_chart.update(*race_chart(race))
            self._drawn_at = time.monotonic()


class Race:
    """What is known of one race: `best` seconds so far by generation, against the proven optimum."""

    def __init__(self, num_clients, optimum, proof_seconds):
        self.num_clients, self.optimum, self.proof_seconds = num_clients, optimum, proof_seconds
        self.tile = TILE if num_clients >= TILE * len(DEVICES) else 1
        self.best, self.took_seconds = [], 0.0

    def reached(self):
        """True once the optimum is met (the genetic algorithm itself can't know it)."""
        return bool(self.best) and self.best[-1] <= self.optimum * (1 + 1e-9)

    def sentence(self):
        """The state of the race in words."""
        who = _clients(self.num_clients) + (
            f" (each {self.tile} share a cut)" if self.tile > 1 else ""
        )
        if not self.best:
            return f"{who}; the genetic algorithm has not finished a generation yet."
        above = f"{_percent(self.best[-1] / self.optimum)} above the optimum"
        where = "it has met the optimum, which it can't know" if self.reached() else above
        return (
            f"{who}, generation {len(self.best)}: {self.best[-1]:.4g} s an iteration, {where}. "
            f"The genetic algorithm has computed for {self.took_seconds:.1f} s, the proof of {self.optimum:.4g} s took "
            f"{self.proof_seconds:.3f} s."
        )


def race_chart(race):
    """Best seconds so far by generation, and the optimum. Returns (figure, sentence, table)."""
    chart = charts.figure(x_title="generation", y_title="seconds an iteration", height=300)
    generations = np.arange(1, len(race.best) + 1)
    chart.add_scatter(
        x=generations.tolist(),
        y=list(race.best),
        name="genetic algorithm, best so far",
        mode="lines",
        line={
            "color": charts.PALETTE["client"],
            "dash": charts.DASHES["client"],
            "width": 2.5,
            "shape": "hv",
        },
    )
    chart.add_scatter(
        x=[1, max(len(race.best), 2)],
        y=[race.optimum] * 2,
        name="proven optimum",
        mode="lines",
        line={"color": charts.PALETTE["server"], "dash": charts.DASHES["server"], "width": 2},
    )
    table = pd.DataFrame(
        {"generation": generations, "best_seconds": race.best, "optimum_seconds": race.optimum}
    )
    better = table["best_seconds"].diff() != 0  # only where something changed
    return chart, race.sentence(), table[better]


def iteration_chart(cuts, devices, work, reference=False, server=SERVER):
    """One iteration with these cuts, a row for each kind of device. Returns (figure, sentence, table).

    Clients of one kind (one name) must share a cut: the first of each stands for all.
    """
    pieces = iteration_gantt(cuts, devices, work, reference, server)
    names = [device.name for device in devices]
    kinds = list(dict.fromkeys(names))
    shown = [SERVER_ROW, *(names.index(kind) for kind in kinds)]
    pieces = pieces[pieces["client"].isin(shown)]
    row_of = {
        SERVER_ROW: "server",
        **{names.index(kind): f"{kind} ({names.count(kind)})" for kind in kinds},
    }
    pieces = pieces.assign(
        row=pieces["client"].map(row_of),
        seconds=pieces["end_seconds"] - pieces["start_seconds"],
        kind=np.where(
            pieces["client"] == SERVER_ROW,
            "server computes",
            pieces["phase"].replace("compute", "device computes"),
        ),
    )
    chart = charts.figure(
        x_title="seconds since the iteration began", height=190 + 30 * len(row_of)
    )
    _add_stages(chart, pieces)
    for kind, (role, pattern) in _LOOKS.items():
        part = pieces[pieces["kind"] == kind]
        chart.add_bar(
            orientation="h",
            name=kind,
            y=part["row"].tolist(),
            x=part["seconds"].tolist(),
            base=part["start_seconds"].tolist(),
            marker={
                "color": charts.PALETTE[role],
                "pattern": {"shape": pattern, "fgcolor": "white", "size": 6, "fillmode": "overlay"},
            },
            customdata=part[["net", "direction", "phase"]].to_numpy().tolist(),
            hovertemplate="%{y}, %{customdata[0]} %{customdata[1]}, %{customdata[2]}: %{x:.3g} s<extra></extra>",
        )
    path = pieces[pieces["on_critical_path"]].sort_values("start_seconds", kind="stable")
    chart.add_scatter(
        x=path[["start_seconds", "end_seconds"]].to_numpy().ravel().tolist(),
        y=np.repeat(path["row"], 2).tolist(),
        name="critical path",
        mode="lines",
        line={"color": CRITICAL, "width": 3},
        hoverinfo="skip",
    )
    # A step too short for its name goes without.
    chart.update_layout(barmode="overlay", uniformtext={"minsize": 9, "mode": "hide"})
    rows = ["step", *row_of.values()]
    chart.update_yaxes(
        type="category", autorange="reversed", categoryorder="array", categoryarray=rows
    )

    total = iteration_seconds(cuts, devices, work, reference, server)
    _, optimum = exact_cuts(devices, work, reference, server)
    spent = path.groupby(["row", "kind"])["seconds"].sum()
    where, what = spent.idxmax()
    above = f"{_percent(total / optimum)} above the optimum of {optimum:.4g} s"
    gap = "which is the optimum" if total <= optimum * (1 + 1e-9) else above
    what = "computing" if what.endswith("computes") else what
    sentence = (
        f"One iteration of {_clients(len(devices))} takes {total:.4g} s, {gap}. The largest part of its critical "
        f"path is the {what} of {'the ' if where == 'server' else ''}{where.split(' (')[0]}: {spent.max():.3g} s."
    )
    columns = [
        "row",
        "net",
        "direction",
        "phase",
        "start_seconds",
        "end_seconds",
        "on_critical_path",
    ]
    return chart, sentence, pieces[columns].rename(columns={"row": "who"})


def _clients(number):
    return "1 client" if number == 1 else f"{number} clients"


def _percent(ratio):
    """By how much `ratio` is above one, in words."""
    above = 100 * (ratio - 1)
    return f"{above:,.0f} %" if above >= 10 else f"{above:.2g} %"


def _add_stages(chart, pieces):
    """A first row that says which of the four steps is going on."""
    steps = pieces.groupby(["net", "direction"], sort=False)
    starts, ends = steps["start_seconds"].min().sort_values(), steps["end_seconds"].max()
    chart.add_bar(
        orientation="h",
        name="step",
        showlegend=False,
        y=["step"] * len(starts),
        base=starts.tolist(),
        x=(ends[starts.index] - starts).tolist(),
        text=[f"{net[0].upper()} {direction}" for net, direction in starts.index],
        textposition="inside",
        textangle=0,
        insidetextanchor="middle",
        textfont={"color": "white"},
        marker={"color": "#6E6E6E", "line": {"color": "white", "width": 1}},
        hovertext=[f"{net}, {direction}" for net, direction in starts.index],
        hovertemplate="%{hovertext}: %{x:.3g} s<extra></extra>",
    )
