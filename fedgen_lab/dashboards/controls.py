"""Knobs, buttons and status lines that work by mouse, by keyboard and with a screen reader.

Used by every dashboard. JupyterLab's sliders carry no accessible name, so each has a number box with one, linked to it;
buttons carry words; what a colour says is also said in words.
"""

import html
from dataclasses import dataclass

import ipywidgets as widgets


@dataclass(frozen=True)
class Knob:
    """One number a learner may turn. `box` is what a dashboard shows; `number` and `slider` always agree.

    `value` reads and sets the number; `observe(handler)` calls `handler(value)` after each change.
    """

    box: widgets.VBox
    number: widgets.BoundedFloatText
    slider: widgets.FloatSlider

    @property
    def value(self):
        return self.number.value

    def set(self, value):
        """Turn the knob to `value` (clipped to its range)."""
        self.number.value = value

    def observe(self, handler):
        """Call `handler(value)` whenever the value has changed."""
        self.number.observe(lambda change: handler(change["new"]), names="value")

    def enable(self, on=True):
        """Let the knob be turned, or not."""
        self.number.disabled = self.slider.disabled = not on


def knob(label, value, low, high, step=1, help=""):
    """A slider with a linked number box named `label`; whole numbers when value, low, high and step are."""
    whole = all(isinstance(number, int) for number in (value, low, high, step))
    slider_kind, number_kind = (
        (widgets.IntSlider, widgets.BoundedIntText)
        if whole
        else (widgets.FloatSlider, widgets.BoundedFloatText)
    )
    slider = slider_kind(
        value=value, min=low, max=high, step=step, readout=False, continuous_update=False
    )
    number = number_kind(value=value, min=low, max=high, step=step)
    widgets.link((slider, "value"), (number, "value"))
    return _knob(label, number, slider, help)


def log_knob(label, value, low, high, help="", steps_per_decade=10):
    """A knob over powers of ten: each slider step multiplies by the same factor. The box shows three digits."""
    from math import log10

    slider = widgets.FloatLogSlider(
        value=value,
        base=10,
        min=log10(low),
        max=log10(high),
        step=1 / steps_per_decade,
        readout=False,
        continuous_update=False,
    )
    # No step in the box: any number in the range may be typed.
    number = widgets.BoundedFloatText(value=value, min=low, max=high)
    widgets.link(
        (slider, "value"), (number, "value"), transform=(lambda x: float(f"{x:.3g}"), float)
    )
    return _knob(label, number, slider, help)


def _knob(label, number, slider, help):
    number.description, number.style.description_width = label, "initial"
    number.layout.width, number.layout.max_width = "auto", "260px"
    slider.layout.width, slider.layout.max_width = "auto", "420px"
    number.layout.margin, slider.layout.margin = (
        "2px 0 0 0",
        "2px 8px 0 0",
    )  # the handle needs room at its ends
    parts = [number, slider]
    if help:
        parts.append(widgets.HTML(f'<span class="fedgen-help">{html.escape(help)}</span>'))
    return Knob(widgets.VBox(parts, layout={"width": "auto", "overflow": "hidden"}), number, slider)


def choice(label, options, value=None, help=""):
    """A drop-down list named `label`. options: texts, or (text, value) pairs."""
    menu = widgets.Dropdown(
        options=options,
        description=label,
        style={"description_width": "initial"},
        layout={"width": "auto", "max_width": "100%"},
    )
    if value is not None:
        menu.value = value
    if help:
        menu.tooltip = help
    return menu


def text_field(label, value="", placeholder=""):
    """A line of text named `label`."""
    return widgets.Text(
        value=value,
        placeholder=placeholder,
        description=label,
        continuous_update=False,
        style={"description_width": "initial"},
        layout={"width": "auto"},
    )


def button(words, on_click, main=False):
    """A button that says in words what it does; `on_click()` takes no arguments. main: the one to press next."""
    made = widgets.Button(
        description=words, button_style="primary" if main else "", layout={"width": "max-content"}
    )
    made.on_click(lambda _: on_click())
    return made


class StatusLine:
    """One sentence that says what is going on. `widget` is what a dashboard shows."""

    def __init__(self, sentence=""):
        self.widget = widgets.HTML(layout={"width": "100%"})
        self.sentence = ""
        self.say(sentence)

    def say(self, sentence, state="idle"):
        """Show `sentence`. state: a Job's state; a failure is marked by the word "Problem", not by colour alone."""
        self.sentence = sentence
        # A screen reader reads the end of a run aloud, not each of five sentences a second.
        live = "off" if state == "running" else "polite"
        problem = "<b>Problem:</b> " if state == "failed" else ""
        self.widget.value = (
            f'<div class="fedgen-status" role="status" aria-live="{live}" data-state="{state}">'
            f"{problem}{html.escape(sentence)}</div>"
        )


def grid(children, smallest="220px"):
    """Widgets side by side, as many in a row as fit, each at least `smallest` wide."""
    return widgets.GridBox(
        children,
        layout={
            "grid_template_columns": f"repeat(auto-fit, minmax(min({smallest}, 45%), 1fr))",
            "grid_gap": "4px 16px",
            "width": "100%",
        },
    )


def row(children):
    """Widgets in one line that wraps when it is too long."""
    return widgets.HBox(
        children, layout={"flex_flow": "row wrap", "align_items": "center", "width": "100%"}
    )


STYLE = """<style>
/* Colours come in pairs: where a page has no such variables, dark words must not meet its dark background. */
.fedgen-help, .fedgen-note, .fedgen-table, .fedgen-strip {
  color: var(--jp-ui-font-color1, #222); background: var(--jp-layout-color0, #fff); }
.fedgen-help { opacity: 0.85; font-size: 12px; line-height: 1.3; display: block; white-space: normal; }
.fedgen-status { padding: 6px 10px; border-left: 4px solid #0072B2; line-height: 1.4; white-space: normal;
  color: var(--jp-ui-font-color1, #222); background: var(--jp-layout-color2, #eee); }
.fedgen-status[data-state="failed"] { border-left: 4px double #D55E00; }
.fedgen-note { line-height: 1.4; margin: 2px 8px 2px 0; white-space: normal; }
.fedgen-table { overflow: auto; max-height: 320px; margin-bottom: 12px; }
.fedgen-table table { border-collapse: collapse; font-size: 12px; }
.fedgen-table td:first-child { min-width: 130px; }
.fedgen-table th, .fedgen-table td { padding: 2px 10px; text-align: right;
  border-bottom: 1px solid var(--jp-border-color2, #ccc); }
.fedgen-facts .fedgen-table td { text-align: left; overflow-wrap: anywhere; }
.fedgen-pictures { display: flex; flex-wrap: wrap; gap: 4px; }
.fedgen-pictures img, .fedgen-strip img { image-rendering: pixelated; display: block; }
.fedgen-strip { overflow-x: auto; }
.fedgen-strip table { border-collapse: collapse; }
.fedgen-strip th { font-size: 11px; font-weight: normal; text-align: left; padding: 2px 4px 2px 0; line-height: 1.2;
  white-space: normal; max-width: 150px; }
.fedgen-strip th[scope="col"] { overflow-wrap: anywhere; hyphens: auto; }
.fedgen-strip td { padding: 2px; text-align: left; }
.js-plotly-plot .infolayer text, .js-plotly-plot .xtick text, .js-plotly-plot .ytick text {
  fill: var(--jp-ui-font-color1, #767676) !important; }
</style>"""


def style():
    """The lab's few style rules as a widget: put it into every dashboard once."""
    return widgets.HTML(STYLE, layout={"height": "0", "margin": "0"})


def in_words(number):
    """Three digits, and thousands written out: 0.0412, 41.2, 11,934."""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"
