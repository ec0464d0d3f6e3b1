"""One Start button, one Stop button, a status line and the pictures so far: what every kind of live run needs.

`Panel` keeps runs to compare (labs 03 and 07); `Measuring` adds a row to a table for each start (labs 06 and 08).
"""

import gc
import html

import ipywidgets as widgets
import pandas as pd
from IPython.display import HTML, display

from fedgen_lab.dashboards import charts, controls
from fedgen_lab.dashboards.job import Job, runs_inline

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
        self.status = controls.StatusLine(
            f"Ready. {start_words} begins a live run on this machine."
        )
        self.job = Job(self._work, self._update, self.status)
        self._new_run, self._do, self._scenario, self._changed = new_run, work, scenario, changed
        self._drawn = None  # what of the run is on the page already
        self.start_button = controls.button(start_words, self.start, main=True)
        self.stop_button = controls.button("Stop", self.stop)
        self.stop_button.disabled = True
        self.pictures = widgets.HTML(layout={"width": "100%"})
        buttons = controls.row([self.start_button, self.stop_button])
        self.box = widgets.VBox(
            [buttons, self.status.widget, self.pictures], layout={"width": "100%"}
        )

    def start(self):
        """Start a live run, unless one is going on."""
        self.job.start()

    def stop(self):
        """Stop after the present step; what was computed stays."""
        self.job.stop()
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
        self.stop_button.disabled = not job.can_stop()
        sentence = job.message
        if sentence in ("Done.", "Stopped.") and run is not None:
            sentence = f"{sentence.rstrip('.')}: {run.summary()}"
        self.status.say(sentence, job.state)


class Measuring:
    """Every start measures what the knobs say, shows pictures, and adds a row to a table.

    start_words: what the Start button says; ready: the first sentence of the status line. A dashboard of this kind
    gives `_work(job)`, which adds to `rows` and returns a result or None; `_show(result)`; `_sentence(job)` for the
    status line; and `box`, made of its knobs, `buttons`, `status.widget`, `shown` and `table`.
    """

    def __init__(self, start_words, ready):
        self.rows = []
        self.status = controls.StatusLine(ready)
        self.job = Job(self._work, self._update, self.status)
        self.start_button = controls.button(start_words, self.start, main=True)
        self.stop_button = controls.button("Stop", self.stop)
        self.stop_button.disabled = True
        self.buttons = controls.row([self.start_button, self.stop_button])
        self.shown, self.table = (widgets.HTML(layout={"width": "100%"}) for _ in range(2))

    def start(self):
        """Measure, unless something is being measured."""
        self.job.start()

    def stop(self):
        """Stop soon; what is half measured is not shown."""
        self.job.stop()
        self._tell()

    def frame(self):
        """One row for each start so far: its knobs and its numbers."""
        return pd.DataFrame(self.rows)

    def display(self):
        """Show the dashboard; with FEDGEN_RUN=inline one measurement runs at once. Returns itself."""
        if runs_inline():  # an HTML copy shows no widgets
            self.start()
            said = f"<p>{html.escape(self.status.sentence)}</p>"
            display(HTML(f"{controls.STYLE}{said}{self.shown.value}{self.table.value}"))
        else:
            display(self.box)
        return self

    def _update(self, job):
        self._tell()
        if job.state == "done" and job.result is not None:
            self._show(job.result)
            self.table.value = charts.table_html(self.frame())

    def _tell(self):
        job = self.job
        self.start_button.disabled = job.state == "running"
        self.stop_button.disabled = not job.can_stop()
        self.status.say(self._sentence(job), job.state)

    def _ipython_display_(self):
        """Shown already by `display`."""


def start_idle():
    """Start every panel of this kernel that was not started yet: so a test sees what each dashboard takes."""
    for panel in [one for one in gc.get_objects() if isinstance(one, Panel | Measuring)]:
        if panel.job.state == "idle" and not panel.start_button.disabled:
            panel.start()
