"""The guidance knob of lab 02: the same prompts and seeds, drawn again each time the knob is turned.

Classifier-free guidance: Ho and Salimans 2022, arXiv 2207.12598.
"""

import ipywidgets as widgets
from IPython.display import HTML, display

from fedgen_lab.dashboards.charts import pictures_html
from fedgen_lab.dashboards.controls import StatusLine, knob, style
from fedgen_lab.dashboards.job import Job, runs_inline
from fedgen_lab.lora.pipeline import draw
from fedgen_lab.scores import load_judge, prompt_fidelity


class _Turned(Exception):
    """The knob was turned while these pictures were being drawn: they are out of date."""


class GuidanceKnob:
    """What `guidance_knob` shows. `knob`: the knob; `job`: draws in a thread; `sentence`: what the pictures show."""

    def __init__(self, pipeline, prompts, wanted, seeds, columns):
        self.pipeline, self.prompts, self.wanted, self.seeds = (
            pipeline,
            list(prompts),
            wanted,
            list(seeds),
        )
        self.columns, self.sentence = columns, ""
        self.judge = load_judge()
        self.knob = knob(
            "Guidance",
            3.0,
            1.0,
            9.0,
            0.5,
            help="1: the guess with the prompt. More: further from the one without.",
        )
        self.status = StatusLine("Turn the knob to draw.")
        self.shown = widgets.HTML(layout={"width": "100%"})
        self.job = Job(self._draw, self._update, self.status)
        self.knob.observe(lambda value: self.job.start())
        self.box = widgets.VBox(
            [style(), self.knob.box, self.status.widget, self.shown], layout={"width": "100%"}
        )

    def _draw(self, job):
        while not job.should_stop():
            guidance = self.knob.value

            def before_step(guidance=guidance):
                if job.should_stop() or self.knob.value != guidance:
                    raise _Turned

            job.report(f"Drawing with guidance {guidance:g}.")
            try:
                pictures = draw(
                    self.pipeline, self.prompts, self.seeds, guidance=guidance, on_step=before_step
                )
            except _Turned:
                continue
            share = prompt_fidelity(pictures, self.wanted, self.judge)["all"]
            edge = float((pictures.abs() > 0.99).float().mean())
            self.sentence = (
                f"Guidance {guidance:g}: everything that was asked for is in {round(share * len(pictures))} of "
                f"{len(pictures)} pictures; {edge:.0%} of all colour values stand at the end of their range."
            )
            self.shown.value = pictures_html(pictures, self.prompts, columns=self.columns)
            if self.knob.value == guidance:
                return

    def _ipython_display_(self):
        """Shown already by `guidance_knob`."""

    def _update(self, job):
        done = job.state == "done" and self.sentence
        self.status.say(self.sentence if done else job.message, job.state)


def guidance_knob(pipeline, prompts, wanted, seeds, columns=8):
    """Show a knob for guidance above pictures of `prompts`; turning it draws them again with the same `seeds`.

    wanted: N rows of object, colour, background and style, as `fedgen_lab.pictures.sprites.prompts` returns them.
    """
    made = GuidanceKnob(pipeline, prompts, wanted, seeds, columns)
    made.job.start()
    display(made.box)
    if runs_inline():  # an HTML copy shows no widgets
        display(HTML(f"<p>{made.sentence}</p>{made.shown.value}"))
    return made
