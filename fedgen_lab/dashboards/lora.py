"""The dashboard of lab 03: several simulated devices fine-tune one Stable Diffusion, and you turn the knobs.

Lab 03. Six knobs, two sources of pictures (drawn sprites, your own), the picture strip, the loss against rounds,
megabytes and wireless seconds, and one round on the clock. Recorded runs are there at once; a live run confirms one.
"""

from dataclasses import replace

import ipywidgets as widgets
from IPython.display import HTML, display

from fedgen_lab.dashboards import charts, controls
from fedgen_lab.dashboards.job import runs_inline
from fedgen_lab.dashboards.lora_live import LiveRun, duration, estimate_seconds, loss_chart
from fedgen_lab.dashboards.lora_own import OwnPictures
from fedgen_lab.dashboards.lora_recorded import AXES, Recorded
from fedgen_lab.dashboards.lora_runs import run_sprites
from fedgen_lab.dashboards.panel import Panel
from fedgen_lab.dashboards.take_home import TakeHome
from fedgen_lab.scenario import Scenario
from fedgen_lab.shipped import shipped


def lora_dashboard(sweep=None, **changes):
    """Show the dashboard in the running cell and return it. `changes` are the knobs' first values, as in `Scenario`.

    sweep: a recorded sweep's file; None takes the one that ships. With FEDGEN_RUN=inline it also makes a first run.
    """
    return LoraDashboard(Scenario.for_profile(**changes), sweep).show()


class LoraDashboard:
    """Knobs, two panels that run things, and two charts that show the panel in front."""

    def __init__(self, scenario, sweep=None):
        self.first = scenario
        self.recorded, self.recorded_note = _recorded(sweep)
        s = scenario
        self.clients = controls.knob(
            "Clients", s.num_clients, 2, 16, help="devices that train together"
        )
        self.bandwidth = controls.log_knob(
            "Bandwidth (MHz)",
            s.bandwidth_hz / 1e6,
            0.1,
            100,
            help="uplink band they share; re-times a finished run at once",
        )
        self.skew = controls.knob(
            "Skew",
            float(s.skew),
            0.0,
            1.0,
            0.05,
            help="0: everyone holds everything; 1: one concept each",
        )
        self.rank = controls.knob(
            "Rank", s.rank, 1, 32, help="size of the LoRA adapter that travels"
        )
        self.local_steps = controls.knob(
            "Local steps", s.local_steps, 1, 100, help="training steps between two uploads"
        )
        self.seed = controls.knob(
            "Seed", s.seed, 0, 99, help="decides pictures, split, noise and fading"
        )
        self.knobs = (
            self.clients,
            self.bandwidth,
            self.skew,
            self.rank,
            self.local_steps,
            self.seed,
        )

        self.estimate = widgets.HTML()
        self.live = Panel(
            "Start", LiveRun, lambda run, job: run_sprites(run, job), self.scenario, self.changed
        )
        self.own = OwnPictures(self.scenario, self.changed)
        self.take_home = {panel: TakeHome(panel) for panel in (self.live, self.own.panel)}
        self.tabs = widgets.Tab(
            children=[self.live.box, self.own.box], titles=("Drawn sprites", "Your own pictures")
        )
        self.axis = controls.choice("Loss against", list(AXES))
        self.round = controls.knob("Round on the clock", s.rounds, 1, max(s.rounds, 2))
        self.loss_chart = charts.LiveChart("loss")
        self.gantt = charts.LiveChart("round")

        for knob in (self.clients, self.rank, self.local_steps):
            knob.observe(lambda _: self.tell_estimate())
        for knob in (self.clients, self.skew, self.bandwidth):
            knob.observe(lambda _: self.draw())
        self.round.observe(lambda _: self.draw_round())
        self.axis.observe(lambda _: self.draw_loss(), names="value")
        self.tabs.observe(lambda _: self.draw(), names="selected_index")
        self.tell_estimate()

    def show(self):
        """Put everything into the output of the running cell; for HTML copies a first run, without the knobs."""
        live = not runs_inline()
        top = [
            controls.style(),
            controls.grid([knob.box for knob in self.knobs]),
            self.estimate,
            self.tabs,
        ]
        note = widgets.HTML(f'<p class="fedgen-note">{self.recorded_note}</p>')
        if live:
            display(widgets.VBox([*top, controls.row([self.axis]), note], layout={"width": "100%"}))
        self.loss_chart.show()
        if live:
            display(self.round.box)
        self.gantt.show()
        self.draw()
        if not live:
            self.live.start()
            words = f"{self.live.status.sentence} {self.recorded_note}"
            display(HTML(f"{controls.STYLE}<p>{words}</p>{self.live.runs[-1].strip()}"))
        return self

    def scenario(self):
        """The scenario that the knobs describe now."""
        return replace(
            self.first,
            num_clients=self.clients.value,
            bandwidth_hz=self.bandwidth.value * 1e6,
            skew=round(self.skew.value, 2),
            rank=self.rank.value,
            local_steps=self.local_steps.value,
            seed=self.seed.value,
        )

    def panel(self):
        """The panel in front: its runs are what the charts show."""
        return self.own.panel if self.tabs.selected_index == 1 else self.live

    def tell_estimate(self):
        """Say how long a live run with these knobs takes here."""
        measured = [
            run.seconds_per_step
            for run in self.live.runs + self.own.panel.runs
            if run.seconds_per_step
        ]
        step = measured[-1] if measured else None
        sprites, own = (
            duration(estimate_seconds(self.scenario(), step, own)) for own in (False, True)
        )
        where = "at the speed of your last run" if measured else "on one core of a small machine"
        self.estimate.value = (
            f'<p class="fedgen-note">{self.first.rounds} rounds with these knobs take {sprites} {where}; '
            f"{own} on your own pictures, where every client also trains alone.</p>"
        )

    def changed(self, panel):
        """A panel's run has come to a new round, or has ended: draw it if it is in front."""
        self.take_home[panel].update()
        run = panel.latest()
        if run is not None and run.rounds:
            # The knob follows the run until the learner looks at one of its rounds.
            following = (
                self.round.value >= self.round.number.max or self.round.value == run.rounds - 1
            )
            self.round.number.max = self.round.slider.max = max(run.scenario.rounds, 2)
            if following:
                self.round.set(run.rounds)
        if panel is self.panel():
            self.draw()
        if not panel.running():
            self.tell_estimate()

    def draw(self):
        """Draw both charts anew, which also re-times every run at the present bandwidth."""
        self.draw_loss()
        self.draw_round()

    def draw_loss(self):
        """The loss chart: recorded curves nearest to the knobs, live runs over them."""
        front = self.panel()
        recorded = self.recorded if front is self.live else None
        self.loss_chart.update(
            *loss_chart(
                front.runs,
                recorded,
                self.axis.value,
                self.bandwidth.value * 1e6,
                self.clients.value,
                self.skew.value,
            )
        )

    def draw_round(self):
        """The chart of one round on the clock."""
        run = next((run for run in reversed(self.panel().runs) if run.rounds), None)
        timeline = run.timeline(self.bandwidth.value * 1e6) if run is not None else None
        if timeline is None:
            sentence = "The first complete round of a live run appears here."
            self.gantt.update(charts.empty_figure(""), sentence)
        else:
            self.gantt.update(*charts.gantt(timeline, min(self.round.value, run.rounds)))


def _recorded(sweep):
    """(Recorded or None, a sentence on it)."""
    try:
        recorded = Recorded(sweep or shipped("sweeps") / "federated_lora.json")
    except FileNotFoundError:
        return (
            None,
            "This copy of the lab has no recorded runs to compare with; live runs do without.",
        )
    except ValueError as error:
        return None, f"No recorded runs to compare with: {error}"
    return recorded, f"{recorded.provenance()} Lines called live are computed on this machine."
