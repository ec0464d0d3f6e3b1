"""Knobs above pictures: turn one, and the pictures are drawn again. The shape that the small dashboards of labs 04 and
05 share; what is drawn is theirs.
"""

import ipywidgets as widgets
from IPython.display import HTML, display

from fedgen_lab.dashboards import controls
from fedgen_lab.dashboards.job import Job, runs_inline


class Redrawn:
    """knobs: name -> `Knob`; draw(**values) -> (HTML, sentence): called in a thread with what the knobs say now.

    `sentence` says what the pictures on the page show; `job` draws them.
    """

    def __init__(self, knobs, draw):
        self.knobs, self._paint, self.sentence = knobs, draw, ""
        self.status = controls.StatusLine("Turn a knob to draw.")
        self.shown = widgets.HTML(layout={"width": "100%"})
        self.job = Job(self._draw, self._update, self.status)
        for one in knobs.values():
            one.observe(lambda _: self.job.start())
        boxes = controls.grid([one.box for one in knobs.values()])
        self.box = widgets.VBox(
            [controls.style(), boxes, self.status.widget, self.shown], layout={"width": "100%"}
        )

    def show(self):
        """Put it into the output of the running cell and draw for the first time; pictures alone in HTML copies."""
        if not runs_inline():
            display(self.box)
        self.job.start()
        if runs_inline():
            display(HTML(f"{controls.STYLE}<p>{self.sentence}</p>{self.shown.value}"))
        return self

    def _ipython_display_(self):
        """Shown already by `show`."""

    def _draw(self, job):
        drawn = None
        while not job.should_stop() and drawn != (
            now := {name: one.value for name, one in self.knobs.items()}
        ):
            job.report("Drawing.")
            self.shown.value, self.sentence = self._paint(**now)
            drawn = now

    def _update(self, job):
        self.status.say(self.sentence if job.state == "done" else job.message, job.state)
