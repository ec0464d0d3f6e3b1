"""Lab 05's live dashboard: the same federation on the clock of one cell, with different answers to slow devices.

Wait for all, stop at a deadline, ask the fastest, never wait (FedBuff), or send less: `lora.on_air` trains for real
while simulated time decides who counts. The runs are drawn against rounds, megabytes or those seconds.
"""

from dataclasses import replace

import ipywidgets as widgets
from IPython.display import HTML, display

from fedgen_lab.dashboards import charts, controls
from fedgen_lab.dashboards.job import runs_inline
from fedgen_lab.dashboards.lora_live import LiveRun, loss_chart
from fedgen_lab.dashboards.lora_recorded import AXES
from fedgen_lab.dashboards.panel import Panel

WAYS = (
    "wait for all",
    "deadline",
    "fastest",
    "FedBuff",
    "int8",
    "top-k",
)  # as `lora.on_air.ways` names them


def air_dashboard(scenario, network, deadline_seconds=1.0):
    """Show the dashboard in the running cell and return it. scenario and network: what the knobs start from.

    With FEDGEN_RUN=inline it also makes a first run.
    """
    return AirDashboard(scenario, network, deadline_seconds).show()


class AirRun(LiveRun):
    """A live run on the clock; its seconds are the run's own, since who counted depended on them."""

    def __init__(self, scenario, way, network):
        super().__init__(scenario)
        self.label, self.network, self.progress = way, network, None

    @property
    def name(self):
        """The way, then the knobs in words."""
        return f"{self.label}, {super().name}"

    def summary(self):
        """What was computed, how long it took in simulated time, and whose uploads were left out."""
        if not self.losses or self.progress is None:
            return "nothing was complete yet."
        last = self.progress.iloc[-1]
        left_out, age = self.progress["left_out"].sum(), self.progress["staleness"].max()
        return (
            f"{self.label}, {self.rounds} of {self.scenario.rounds} rounds in {last['seconds']:.3g} s on the clock, "
            f"{last['joules']:.3g} J of all devices. Loss {self.losses[0]:.3f} before, {last['loss']:.3f} now; "
            f"{left_out} uploads left out, and what was merged is {age:.2g} versions old at most."
        )

    def table(self, bandwidth_hz):
        """One row per round, as `LiveRun.table`; the bandwidth is the run's own and can't be changed afterwards."""
        if self.progress is None:
            return super().table(bandwidth_hz)
        table = self.progress.rename(columns={"seconds": "wireless_seconds"})
        return table.assign(megabytes=table["megabytes_up"] + table["megabytes_down"])


class AirDashboard:
    """A list of ways, knobs for the cell, one panel, one chart."""

    def __init__(self, scenario, network, deadline_seconds):
        self.first, self.cell = scenario, network
        self.way = controls.choice("Slow clients", list(WAYS))
        self.clients = controls.knob(
            "Clients", scenario.num_clients, 2, 8, help="devices that train together"
        )
        self.bandwidth = controls.log_knob(
            "Bandwidth (MHz)",
            network.bandwidth_hz / 1e6,
            0.1,
            100,
            help="the uplink band that they share",
        )
        self.deadline = controls.log_knob(
            "Deadline (s)",
            deadline_seconds,
            0.01,
            100,
            help='for "deadline": later uploads are refused',
        )
        self.fraction = controls.knob(
            "Share asked",
            0.5,
            0.1,
            1.0,
            0.1,
            help='for "fastest": so many of the clients train in a round',
        )
        self.buffer = controls.knob(
            "Buffer", 2, 1, 8, help='for "FedBuff": so many uploads make a new model'
        )
        self.seed = controls.knob(
            "Seed", scenario.seed, 0, 99, help="decides pictures, places, fading and speeds"
        )
        self.knobs = (
            self.clients,
            self.bandwidth,
            self.deadline,
            self.fraction,
            self.buffer,
            self.seed,
        )
        self.panel = Panel(
            "Start", self.new_run, run_on_the_clock, self.scenario, lambda _: self.draw()
        )
        self.axis = controls.choice("Loss against", [*AXES, "joules"], AXES[-1])
        self.axis.observe(lambda _: self.draw(), names="value")
        self.chart = charts.LiveChart("loss on air")

    def show(self):
        """Put everything into the output of the running cell; for HTML copies a first run, without the knobs."""
        live = not runs_inline()
        if live:
            knobs = controls.grid([knob.box for knob in self.knobs])
            parts = [
                controls.style(),
                controls.row([self.way]),
                knobs,
                self.panel.box,
                controls.row([self.axis]),
            ]
            display(widgets.VBox(parts, layout={"width": "100%"}))
        self.chart.show()
        self.draw()
        if not live:
            self.panel.start()
            display(HTML(f"<p>{self.panel.status.sentence}</p>{self.panel.latest().strip()}"))
        return self

    def scenario(self):
        """The scenario of the chosen way with the knobs as they stand."""
        from fedgen_lab.lora.on_air import ways

        clients = self.clients.value
        plain = replace(self.first, num_clients=clients, seed=self.seed.value)
        buffer = min(self.buffer.value, clients)
        return ways(plain, self.deadline.value, buffer, round(self.fraction.value, 2))[
            self.way.value
        ]

    def new_run(self, scenario):
        """An `AirRun` of this scenario in the cell of the present knobs."""
        network = replace(
            self.cell,
            num_clients=self.clients.value,
            bandwidth_hz=self.bandwidth.value * 1e6,
            seed=self.seed.value,
        )
        return AirRun(scenario, self.way.value, network)

    def draw(self):
        """Draw the losses of the runs so far."""
        runs, s = self.panel.runs, self.first
        band = (runs[-1].network if runs else self.cell).bandwidth_hz
        self.chart.update(*loss_chart(runs, None, self.axis.value, band, s.num_clients, s.skew))


def run_on_the_clock(run, job):
    """Train for real on the clock of the run's cell; `run` hears of every step and round."""
    job.report("Loading the model and the pictures.")
    from fedgen_lab.federation.run import Stopped
    from fedgen_lab.lora.data import deal
    from fedgen_lab.lora.on_air import run_on_air

    run.prompts = list(deal(run.scenario).strip)

    def hear(event, progress=None):
        if progress is not None:
            run.progress = progress
        job.report(run.hear(event))
        if job.should_stop():
            raise Stopped("The run was stopped.")

    done = run_on_air(run.scenario, run.network, job.should_stop, on_round=hear, on_step=hear)
    run.refused = [refusal.reason for refusal in done.refused]
