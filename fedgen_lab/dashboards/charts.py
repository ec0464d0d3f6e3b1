"""Charts that update while they are watched, and pictures with words beside them.

Used by every lab. A chart is a plotly figure behind one display handle: an update sends a few kilobytes, while a plotly
figure widget sends five megabytes. Each chart says in one sentence what it shows and offers its numbers as a table.
"""

import base64
import contextvars
import html
import io
import json
import threading
import time

import ipywidgets as widgets
import numpy as np
from IPython.display import HTML, display

from fedgen_lab.dashboards import controls
from fedgen_lab.dashboards.job import (
    SECONDS_BETWEEN_UPDATES,
    drawing_job,
    error_sentence,
    runs_inline,
)
from fedgen_lab.dashboards.still import still_html

# Each role looks the same everywhere in the lab: Okabe and Ito's colours, which colour-blind eyes tell apart, and a
# dash and a marker for eyes and printers that see none.
_LOOKS = {
    "server": ("#0072B2", "solid", "circle"),
    "client": ("#E69F00", "dash", "square"),
    "base": ("#8C8C8C", "dot", "x"),
    "adapter": ("#009E73", "solid", "diamond"),
    "real": ("#CC79A7", "longdash", "triangle-up"),
    "generated": ("#56B4E9", "dashdot", "star"),
}
PALETTE, DASHES, MARKERS = ({role: looks[i] for role, looks in _LOOKS.items()} for i in range(3))

PLOTLY = "application/vnd.plotly.v1+json"
# Not "responsive": JupyterLab resizes charts itself, and with it they vanish when the theme changes.
CONFIG = {"showSendToCloud": False, "displaylogo": False}
NOTHING_YET = "There is nothing to show yet."
SECONDS_UNTIL_STILL = (
    1.0  # of rest after the last update: a still picture costs some 0.1 s of computing
)
_plotly_js_shown = False


def figure(x_title="", y_title="", title="", height=320):
    """An empty plotly figure in the lab's style, readable on light and dark pages."""
    import plotly.graph_objects as go

    axis = {
        "gridcolor": "rgba(128,128,128,0.3)",
        "zerolinecolor": "rgba(128,128,128,0.5)",
        "linecolor": "#808080",
        "automargin": True,
    }
    return go.Figure(
        layout={
            "template": "none",
            "title": {
                "text": title,
                "font": {"size": 14},
                "x": 0,
                "xanchor": "left",
                "xref": "paper",
            },
            "xaxis": {**axis, "title": {"text": x_title, "standoff": 10}},
            "yaxis": {**axis, "title": {"text": y_title, "standoff": 12}},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"color": "#767676", "size": 12},
            "margin": {"l": 60, "r": 20, "t": 40 if title else 20, "b": 50},
            # At the figure's top, not on the plot's: there it would stay behind when a page becomes wider.
            "legend": {
                "font": {"size": 11},
                "orientation": "h",
                "x": 0,
                "yref": "container",
                "yanchor": "top",
                "y": 1 - (36 / height if title else 0),
            },
            "showlegend": True,
            "height": height,
            "autosize": True,
        }
    )


def empty_figure(sentence):
    """A low chart without axes that only says `sentence`: for charts whose numbers are still to come."""
    chart = figure(height=90)
    chart.update_xaxes(visible=False, range=[0, 1])
    chart.update_yaxes(visible=False, range=[0, 1])
    return chart.add_annotation(x=0.5, y=0.5, text=sentence, showarrow=False)


def add_line(chart, x, y, name, role, faint=False, **more):
    """Draw one line in its role's colour, dash and marker; faint: for context behind the main line."""
    chart.add_scatter(
        x=list(map(float, x)),
        y=list(map(float, y)),
        name=name,
        mode="lines+markers",
        opacity=0.7 if faint else 1,
        line={"color": PALETTE[role], "dash": DASHES[role], "width": 1.5 if faint else 2.5},
        marker={"symbol": MARKERS[role], "size": 6 if faint else 8, "color": PALETTE[role]},
        **more,
    )
    return chart


class LiveChart:
    """One chart in a cell's output that can be drawn again and again, from any thread.

    name: what the chart shows ("Loss"), used in the button's words, so that two buttons never sound alike.
    """

    def __init__(self, name):
        self.name = name
        self.sentence = ""
        self.caption = widgets.HTML(layout={"width": "100%"})
        self.table = widgets.HTML(layout={"display": "none", "width": "100%"})
        self.button = controls.button(f"Show {name} as table", self._toggle_table)
        self._handle = None
        self._lock = threading.Lock()
        self._shown = None
        self._waiting = None  # the newest bundle that was too early to be sent
        self._timer = None
        self._still_timer = None
        self._sent_at = 0.0

    def show(self):
        """Put the chart, its sentence and its table button into the output of the running cell."""
        if runs_inline():
            _show_plotly_js()
        self._handle = display(
            self._bundle(empty_figure(NOTHING_YET), NOTHING_YET, None), raw=True, display_id=True
        )
        if not runs_inline():
            display(
                widgets.VBox(
                    [controls.style(), self.caption, self.button, self.table],
                    layout={"width": "100%"},
                )
            )
        return self

    def update(self, chart, sentence, table=None):
        """Draw `chart` (a plotly figure) with `sentence` in words and `table` (a DataFrame) behind the button.

        More than five updates a second are thinned out; the last one is always drawn. After the last one, when no run
        goes on, a still picture joins it, for front ends that can't draw a plotly figure.
        """
        self.sentence = sentence
        bundle = self._bundle(chart, sentence, table)
        with self._lock:
            wait = self._sent_at + SECONDS_BETWEEN_UPDATES - time.monotonic()
            if wait > 0 and not runs_inline():
                self._waiting = (bundle, table, chart)
                if self._timer is None:
                    self._timer = _timer(wait, self._send_waiting)
                return
            self._waiting = None
            self._send(bundle, table, chart)

    def _send_waiting(self):
        try:
            with self._lock:
                self._timer = None
                if self._waiting is not None:
                    waiting, self._waiting = self._waiting, None
                    self._send(*waiting)
        except Exception as error:
            self._tell(error)

    def _still_soon(self, bundle, chart):
        """Let `bundle` have its still picture once the chart has come to rest; a newer one takes its place."""
        if self._still_timer is not None:
            self._still_timer.cancel()
            self._still_timer = None
        job = drawing_job()
        if chart.data and not runs_inline() and (job is None or job.state != "running"):
            self._still_timer = _timer(SECONDS_UNTIL_STILL, self._send_still, bundle, chart)

    def _send_still(self, bundle, chart):
        # As HTML: JupyterLab prefers the figure to it, while an image/png in the bundle would take the figure's place.
        try:
            still = {"text/html": still_html(chart, bundle["text/plain"])}
        except Exception:
            return  # a chart of a kind that no lab has stays without
        try:
            with self._lock:
                if self._handle is not None and bundle is self._shown:
                    self._handle.update(bundle | still, raw=True)
        except Exception as error:
            self._tell(error)

    def _tell(self, error):
        """An error in a timer has no caller who would hear of it: the run's status line says it, and the caption."""
        job = drawing_job()
        if job is not None:
            job.fail(error)
        problem = html.escape(error_sentence(error))
        self.caption.value = f'<p class="fedgen-note" role="status"><b>Problem:</b> {problem}</p>'

    def _send(self, bundle, table, chart):
        self._sent_at = time.monotonic()
        sentence = bundle["text/plain"]
        if self._handle is not None and bundle != self._shown:
            if not runs_inline():
                # JupyterLab's plotly renderer draws once and then ignores updates: a blank of the same height (7 is
                # the padding of HTML output) takes its place first.
                height = bundle[PLOTLY]["layout"].get("height", 360) - 7
                blank = {
                    "text/html": f'<div style="height: {height}px"></div>',
                    "text/plain": sentence,
                }
                self._handle.update(blank, raw=True)
            self._handle.update(bundle, raw=True)
        self._shown = bundle
        self.caption.value = f'<p class="fedgen-note">{html.escape(sentence)}</p>'
        self.table.value = "" if table is None else table_html(table)
        self.button.disabled = table is None
        self._still_soon(bundle, chart)

    def _toggle_table(self):
        hidden = self.table.layout.display == "none"
        self.table.layout.display = "" if hidden else "none"
        self.button.description = f"{'Hide' if hidden else 'Show'} {self.name} as table"

    def _bundle(self, chart, sentence, table):
        plot = json.loads(chart.to_json())
        bundle = {PLOTLY: {**plot, "config": CONFIG}, "text/plain": sentence}
        if runs_inline():
            # For HTML copies of the notebook, which know nothing of JupyterLab's plotly extension and of its widgets.
            import plotly.io

            words = html.escape(sentence, quote=True)
            plot_html = plotly.io.to_html(
                chart,
                config={**CONFIG, "responsive": True},
                include_plotlyjs=False,
                full_html=False,
                default_height=f"{chart.layout.height or 400}px",
            )
            numbers = ""
            if table is not None:
                numbers = (
                    f"<details><summary>{self.name} as table</summary>{table_html(table)}</details>"
                )
            bundle["text/html"] = (
                f'<div role="img" aria-label="{words}">{plot_html}</div><p>{words}</p>{numbers}'
            )
        return bundle


def show_chart(chart, sentence, table=None, name="chart"):
    """Show one finished plotly figure with its sentence and its table."""
    live = LiveChart(name)
    live.show()
    live.update(chart, sentence, table)
    if live._still_timer is not None:  # nothing newer will come, so there is no rest to wait for
        live._still_timer.cancel()
        live._send_still(live._shown, chart)
    return live


def _timer(seconds, call, *arguments):
    """Calls `call(*arguments)` in so many seconds, in a copy of this context, as a job's thread runs in one."""
    timer = threading.Timer(seconds, contextvars.copy_context().run, [call, *arguments])
    timer.daemon = True
    timer.start()
    return timer


def _show_plotly_js():
    """Plotly's own script once per page, from the installed package, so that an HTML copy needs no network."""
    global _plotly_js_shown
    if not _plotly_js_shown:
        from plotly.offline import get_plotlyjs

        _plotly_js_shown = True
        # Some pages carry require.js, which would swallow the library: hide its `define` while the script runs.
        display(
            HTML(
                f"<script>(function (define, module, exports) {{{get_plotlyjs()}}}).call(window);</script>"
            )
        )


def table_html(table):
    """A DataFrame as an HTML table with headings, four significant digits, scrolling when long."""
    return f'<div class="fedgen-table">{table.to_html(index=False, border=0, float_format=lambda x: f"{x:.4g}")}</div>'


# ---- pictures


def picture_png(image):
    """One picture (3 or 1, H, W), float in [-1, 1] or uint8, as an <img> source: a data address holding a PNG."""
    from PIL import Image

    pixels = np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
        raise ValueError(
            f"a picture must have the shape (3, H, W) or (1, H, W), channels first; got {pixels.shape}."
        )
    if pixels.dtype != np.uint8:
        pixels = ((np.clip(pixels, -1, 1) + 1) * 127.5).round().astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.broadcast_to(pixels, (3, *pixels.shape[1:])).transpose(1, 2, 0)).save(
        file, format="PNG"
    )
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _img(image, alt, scale):
    side = tuple(np.shape(image))[1:]
    size = f'width="{side[1] * scale}" height="{side[0] * scale}"'
    words = html.escape(alt, quote=True)
    return f'<img alt="{words}" title="{words}" {size} style="image-rendering: pixelated" src="{picture_png(image)}">'


def pictures_html(images, alts, columns=8, scale=3):
    """Pictures (N, 3, H, W) in rows of `columns`, each with its words in `alts`, `scale` times as large. Returns HTML.

    Raises ValueError unless there is one text per picture.
    """
    alts = list(alts)
    if len(images) != len(alts):
        raise ValueError(
            f"each picture needs a text; got {len(images)} pictures and {len(alts)} texts."
        )
    cells = "".join(_img(image, alt, scale) for image, alt in zip(images, alts, strict=True))
    width = (np.shape(images)[-1] * scale + 4) * columns if len(alts) else 0
    look = f"display: flex; flex-wrap: wrap; gap: 4px; max-width: {width}px"
    return f'<div class="fedgen-pictures" style="{look}">{cells}</div>'


def show_pictures(images, alts, columns=8, scale=3):
    """Show pictures in the running cell (see `pictures_html`)."""
    display(HTML(pictures_html(images, alts, columns, scale)))


def strip_html(rows, headings, scale=2):
    """Rows of pictures under common headings, for comparing models on the same prompts and seeds. Returns HTML.

    rows: (name, pictures (P, 3, H, W) or None) pairs; None leaves the row out. headings: P texts.
    """
    head = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in headings)
    lines = []
    for name, images in rows:
        if images is not None:
            named = zip(images, headings, strict=True)
            cells = "".join(
                f"<td>{_img(image, f'{name}: {text}', scale)}</td>" for image, text in named
            )
            lines.append(f'<tr><th scope="row">{html.escape(name)}</th>{cells}</tr>')
    table = f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<div class="fedgen-strip">{table}</div>'


def show_strip(rows, headings, scale=2):
    """Show rows of pictures in the running cell (see `strip_html`)."""
    display(HTML(strip_html(rows, headings, scale)))


# ---- two figures that several labs need


def concept_heat_map(counts):
    """Who holds what: a heat map of `counts` (DataFrame, clients x concepts), each cell with its number."""
    chart = figure(x_title="concept", y_title="client", height=120 + 28 * len(counts))
    numbers = counts.to_numpy()
    chart.add_heatmap(
        z=numbers.tolist(),
        x=[str(name) for name in counts.columns],
        y=[f"client {name}" for name in counts.index],
        colorscale=[[0, "#F7FBFF"], [1, PALETTE["server"]]],
        zmin=0,
        showscale=False,
        xgap=1,
        ygap=1,
        text=numbers.tolist() if numbers.size <= 400 else None,
        texttemplate="%{text}" if numbers.size <= 400 else None,
        hovertemplate="%{y} holds %{z} of %{x}<extra></extra>",
    )
    chart.update_yaxes(autorange="reversed", type="category", title_text="")
    chart.update_xaxes(type="category")
    return chart


_PHASES = {"download": ("server", "/"), "compute": ("client", ""), "upload": ("adapter", "\\")}


def gantt(timeline, round):
    """One round on the clock: for each client a bar for its download, computing and upload.

    timeline: a `fedgen_lab.wireless.replay.Timeline`; round: which one. Returns (figure, sentence, table); the sentence
    names the client that all others wait for.
    """
    events = timeline.events
    events = events[(events["round"] == round) & events["phase"].isin(list(_PHASES))]
    if events.empty:
        sentence = f"Round {round} has no messages to show."
        return empty_figure(sentence), sentence, None
    began = events["start_seconds"].min()
    clients = sorted(events["client"].unique())
    chart = figure(x_title="seconds since the round began", height=140 + 24 * len(clients))
    for phase, (role, pattern) in _PHASES.items():
        part = events[events["phase"] == phase]
        chart.add_bar(
            orientation="h",
            name=phase,
            y=[f"client {client}" for client in part["client"]],
            x=(part["end_seconds"] - part["start_seconds"]).tolist(),
            base=(part["start_seconds"] - began).tolist(),
            marker={
                "color": PALETTE[role],
                "pattern": {"shape": pattern, "fgcolor": "white", "size": 6, "fillmode": "overlay"},
            },
            hovertemplate=f"%{{y}}, {phase}: %{{x:.3g}} s<extra></extra>",
        )
    chart.update_layout(barmode="overlay")
    chart.update_yaxes(
        type="category",
        autorange="reversed",
        categoryarray=[f"client {client}" for client in clients],
    )
    ends = events.groupby("client")["end_seconds"].max()
    slowest = ends.idxmax()
    phases = events[events["client"] == slowest].assign(
        seconds=lambda e: e["end_seconds"] - e["start_seconds"]
    )
    longest = phases.groupby("phase")["seconds"].sum().idxmax()
    sentence = (
        f"Round {round} takes {controls.in_words(ends.max() - began)} s. Everyone waits for client {slowest}, "
        f"which spends most of its time on {'computing' if longest == 'compute' else 'the ' + longest}."
    )
    table = events.assign(
        start_seconds=events["start_seconds"] - began, end_seconds=events["end_seconds"] - began
    )
    return chart, sentence, table.drop(columns=["round"]).reset_index(drop=True)
