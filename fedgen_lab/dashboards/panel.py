"""One Start button, one Stop button, a status line and the pictures so far: what every kind of live run needs.

Labs 03 and 07.
"""

import ipywidgets as widgets

from fedgen_lab.dashboards import controls
from fedgen_lab.dashboards.job import Job

RUNS_KEPT = 3  # earlier runs stay as faint lines, to compare one change of a knob; more would hide each other


class Panel:
    """Runs `work` for the scenario the knobs describe, and keeps the last few runs.

    start_words: what the Start button says. new_run(scenario): an object that keeps what is known of a run, with
    `computed` (false while there is nothing to show), `summary()`, `version()` (changes when the page should) and
    `strip()` (its pictures as HTML). work(run, job): computes, telling both. scenario(): what to run. changed(panel):
    called, from the worker, when a round is complete or the run has ended.
    """

    def __init__(self, start_words, new_run, work, scenario, changed):
        self.runs = []
        self.job = Job(self._work, self._update)
        self._new_run, self._do, self._scenario, self._changed = new_run, work, scenario, changed
        self._drawn = None  # what of the run is on the page already
        self.start_button = controls.button(start_words, self.start, main=True)
        self.stop_button = controls.button("Stop", self.stop)
        self.stop_button.disabled = True
        self.status = controls.StatusLine(f"Ready. {start_words} begins a live run on this machine.")
        self.pictures = widgets.HTML(layout={"width": "100%"})
        buttons = controls.row([self.start_button, self.stop_button])
        self.box = widgets.VBox([buttons, self.status.widget, self.pictures], layout={"width": "100%"})

    def start(self):
        """Start a live run, unless one is going on."""
        self.job.start()

    def stop(self):
        """Stop after the present step; what was computed stays."""
        self.job.cancel()
        self._tell()

    def running(self):
        """True while this panel's run computes."""
        return self.job.state == "running"

    def latest(self):
        """The newest run, or None."""
        return self.runs[-1] if self.runs else None

    def _work(self, job):
        run = self._new_run(self._scenario())
        self.runs = [earlier for earlier in self.runs if earlier.computed][-RUNS_KEPT:] + [run]
        self._drawn = None
        self._do(run, job)
        return run

    def _update(self, job):
        self._tell()
        run = self.latest()
        if run is None:
            return
        now = (id(run), run.version(), job.state)
        if now != self._drawn:
            self._drawn = now
            self.pictures.value = run.strip()
            self._changed(self)

    def _tell(self):
        job, run = self.job, self.latest()
        self.start_button.disabled = self.running()
        self.stop_button.disabled = not self.running() or job.should_stop()
        sentence = job.message
        if sentence in ("Done.", "Stopped.") and run is not None:
            sentence = f"{sentence.rstrip('.')}: {run.summary()}"
        self.status.say(sentence, job.state)
