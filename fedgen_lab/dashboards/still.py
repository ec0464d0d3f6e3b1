"""A chart as a still picture, for front ends that draw no plotly figures: Colab, VS Code, some hubs.

Used by every chart at its last update. It draws what the lab's charts are made of (lines, markers, areas, bars, heat
maps, lines across, notes) in the chart's own colours.
"""

import base64
import html
import io
import re
import threading

WIDTH = 760  # pixels on the page; a chart says its own height
SHARP = 1.5  # pixels of the picture for each: screens of phones and new laptops show more than one
INK, PAPER, GRID = (
    "#404040",
    "white",
    "#d9d9d9",
)  # an opaque page of its own: readable on light and dark ones
COLOURS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
)  # for traces that name none
_DASHES = {
    "dash": (0, (5, 3)),
    "dot": (0, (1, 2)),
    "longdash": (0, (9, 3)),
    "dashdot": (0, (5, 2, 1, 2)),
    "longdashdot": (0, (9, 2, 1, 2)),
}
_MARKERS = {"square": "s", "x": "X", "cross": "P", "diamond": "D", "star": "*", "triangle-up": "^"}
_MARKERS |= {"triangle-down": "v", "pentagon": "p", "hexagon": "h"}
_HATCHES = {"/": "///", "\\": "\\\\\\", "x": "xxx", "-": "---", "|": "|||", "+": "+++", ".": "..."}
_matplotlib = (
    threading.Lock()
)  # charts are drawn from several threads, and it draws one picture at a time


def still_html(chart, sentence):
    """The plotly figure `chart` as an <img> with `sentence` as its words."""
    source = "data:image/png;base64," + base64.b64encode(still_png(chart)).decode()
    words = html.escape(sentence, quote=True)
    return f'<img alt="{words}" src="{source}" width="{WIDTH}" style="max-width: 100%">'


def still_png(chart):
    """The plotly figure `chart` as a PNG of at most 256 colours."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    inches = (WIDTH / 100, (chart.layout.height or 360) / 100)
    with _matplotlib:
        # Not pyplot: its figures belong to the learner's own cells.
        figure = Figure(figsize=inches, dpi=100 * SHARP, facecolor=PAPER, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        _Still(chart, figure.subplots())
        canvas.draw()
        picture = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert(
            "RGB"
        )
    file = io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(file, format="PNG", optimize=True)
    return file.getvalue()


class _Still:
    """One plotly figure drawn on matplotlib's axes."""

    def __init__(self, chart, axes):
        self.axes = axes
        self.layout = chart.layout
        self.sides = {"x": chart.layout.xaxis, "y": chart.layout.yaxis}
        self.categories = {
            side: list(axis.categoryarray or ()) for side, axis in self.sides.items()
        }
        self.bars = [trace for trace in chart.data if trace.type == "bar"]
        drawings = {"scatter": self.scatter, "bar": self.bar, "heatmap": self.heatmap}
        for number, trace in enumerate(chart.data):
            drawings[trace.type](trace, COLOURS[number % len(COLOURS)])
        for side in self.sides:
            self.dress(side)
        for shape in chart.layout.shapes:
            self.line_across(shape)
        for note in chart.layout.annotations:
            self.note(note)
        self.legend()

    def places(self, side, values):
        """Where values stand on an axis: numbers as they are, a category at its number."""
        values = list(values)
        known = self.categories[side]
        if (
            self.sides[side].type != "category"
            and not known
            and not any(isinstance(one, str) for one in values)
        ):
            return [float("nan") if value is None else float(value) for value in values]
        known += [value for value in dict.fromkeys(values) if value not in known]
        return [known.index(value) for value in values]

    # ---- traces

    def scatter(self, trace, otherwise):
        x, y = self.places("x", trace.x), self.places("y", trace.y)
        mode = trace.mode or "lines+markers"
        marker = trace.marker
        colour = _colour(trace.line.color) or _colour(marker.color) or otherwise
        look = {"color": colour, "alpha": trace.opacity, "label": _label(trace)}
        if trace.fill == "toself":
            self.axes.fill(
                x, y, **look | {"color": _colour(trace.fillcolor) or colour, "linewidth": 0}
            )
            return
        if "markers" in mode and isinstance(marker.color, tuple):
            self.coloured_markers(trace, x, y)
        else:
            self.axes.errorbar(
                x,
                y,
                yerr=_error_bars(trace.error_y),
                elinewidth=1,
                capsize=3,
                linestyle=_dash(trace.line) if "lines" in mode else "none",
                linewidth=trace.line.width or 2,
                drawstyle="steps-post" if trace.line.shape == "hv" else "default",
                **(_mark(marker, colour) if "markers" in mode else {}),
                **look,
            )
        if "text" in mode:
            for place, words in zip(zip(x, y, strict=True), trace.text, strict=True):
                self.axes.annotate(
                    _words(words),
                    place,
                    (0, 8),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8,
                    color=INK,
                )

    def coloured_markers(self, trace, x, y):
        """Markers whose colours are numbers on a scale."""
        marker = trace.marker
        shape = _mark(marker, None)
        shown = self.axes.scatter(
            x,
            y,
            s=shape["markersize"] ** 2,
            marker=shape["marker"],
            label=_label(trace),
            edgecolors="#808080",
            c=marker.color,
            cmap=_colour_map(marker.colorscale),
            vmin=marker.cmin,
            vmax=marker.cmax,
        )
        if x and marker.colorbar.title.text:
            self.axes.figure.colorbar(
                shown, ax=self.axes, shrink=0.8, label=_words(marker.colorbar.title.text)
            )

    def bar(self, trace, otherwise):
        across = trace.orientation == "h"
        lengths, names = (trace.x, trace.y) if across else (trace.y, trace.x)
        places = self.places("y" if across else "x", names)
        thickness = 0.8
        if self.layout.barmode != "overlay":  # side by side
            thickness /= len(self.bars)
            number = next(i for i, bar in enumerate(self.bars) if bar is trace)
            aside = (number - (len(self.bars) - 1) / 2) * thickness
            places = [place + aside for place in places]
        colours = (
            trace.marker.color
            if isinstance(trace.marker.color, tuple)
            else [trace.marker.color] * len(places)
        )
        paint = self.axes.barh if across else self.axes.bar
        drawn = paint(
            places,
            list(lengths),
            thickness,
            **{"left" if across else "bottom": list(trace.base or [0] * len(places))},
            color=[_colour(colour) or otherwise for colour in colours],
            hatch=_HATCHES.get(trace.marker.pattern.shape),
            edgecolor="white",
            linewidth=0.5,
            label=_label(trace),
        )
        if trace.text is not None:
            inside = trace.textposition == "inside"
            self.axes.bar_label(
                drawn,
                [_words(words) for words in trace.text],
                label_type="center" if inside else "edge",
                color="white" if inside else INK,
                fontsize=8,
            )

    def heatmap(self, trace, otherwise):
        cells = [[float("nan") if cell is None else float(cell) for cell in row] for row in trace.z]
        x, y = self.places("x", trace.x), self.places("y", trace.y)
        shown = self.axes.pcolormesh(
            x,
            y,
            cells,
            cmap=_colour_map(trace.colorscale),
            vmin=trace.zmin,
            vmax=trace.zmax,
            shading="nearest",
            edgecolors="white",
        )
        if trace.showscale is not False:
            self.axes.figure.colorbar(shown, ax=self.axes, label=_words(trace.colorbar.title.text))
        if trace.texttemplate:
            for row, words_of_row in enumerate(trace.text):
                for column, words in enumerate(words_of_row):
                    dark = sum(shown.to_rgba(cells[row][column])[:3]) < 1.6
                    self.axes.text(
                        x[column],
                        y[row],
                        _words(words),
                        ha="center",
                        va="center",
                        fontsize=8,
                        color="white" if dark else INK,
                    )

    # ---- what stands around them

    def dress(self, side):
        """Title, scale, range, ticks and grid of an axis."""
        axis, axes, names = self.sides[side], self.axes, self.categories[side]
        which = getattr(axes, f"{side}axis")
        which.set_label_text(_words(axis.title.text), color=INK, fontsize=9)
        which.set_tick_params(labelsize=8, colors=INK)
        which.set_visible(axis.visible is not False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines["bottom" if side == "x" else "left"].set(
            color="#808080", visible=axis.visible is not False
        )
        axes.grid(True, color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        if axis.type == "log":
            getattr(axes, f"set_{side}scale")("log")
        if axis.tickvals is not None:
            which.set_ticks(
                list(axis.tickvals), [_words(words) for words in axis.ticktext or axis.tickvals]
            )
        elif names:
            which.set_ticks(range(len(names)), [_words(name) for name in names])
        if axis.range is not None:
            getattr(axes, f"set_{side}lim")(
                [10**end if axis.type == "log" else end for end in axis.range]
            )
        if axis.autorange == "reversed":
            which.set_inverted(True)
        if axis.scaleanchor:
            axes.set_aspect("equal", adjustable="datalim")

    def line_across(self, shape):
        """What `add_hline` and `add_vline` draw."""
        look = {
            "color": _colour(shape.line.color) or INK,
            "linestyle": _dash(shape.line),
            "linewidth": 1.5,
        }
        if str(shape.xref).endswith("domain"):
            self.axes.axhline(shape.y0, **look)
        elif str(shape.yref).endswith("domain"):
            self.axes.axvline(shape.x0, **look)

    def note(self, note):
        """Words at a place that is a share of the plot or a number on an axis, each for itself."""
        places, shares = [], []
        for side, place in (("x", note.x), ("y", note.y)):
            share = str(note[f"{side}ref"]).endswith(("domain", "paper"))
            if not share:
                # On a logarithmic axis plotly's notes stand at the logarithm.
                place = (
                    10**place if self.sides[side].type == "log" else self.places(side, [place])[0]
                )
            places.append(place)
            shares.append(share)
        axes = self.axes
        transform = {
            (True, True): axes.transAxes,
            (True, False): axes.get_yaxis_transform(),
            (False, True): axes.get_xaxis_transform(),
            (False, False): axes.transData,
        }[tuple(shares)]
        across = note.xanchor if note.xanchor in ("left", "right") else "center"
        down = note.yanchor if note.yanchor in ("top", "bottom") else "center"
        look = {"ha": across, "va": down, "color": INK, "fontsize": 8, "clip_on": True}
        axes.text(*places, _words(note.text), transform=transform, **look)

    def legend(self):
        self.axes.set_title(_words(self.layout.title.text), loc="left", fontsize=10, color=INK)
        handles, labels = self.axes.get_legend_handles_labels()
        if labels and self.layout.showlegend is not False:
            self.axes.figure.legend(
                handles,
                labels,
                loc="outside upper left",
                ncols=3,
                fontsize=8,
                frameon=False,
                labelcolor=INK,
            )


def _label(trace):
    return _words(trace.name) if trace.name and trace.showlegend is not False else None


def _words(text):
    """Plain words: plotly's texts may hold HTML, and matplotlib takes a dollar sign for mathematics."""
    lines = re.sub(r"<br ?/?>", "\n", str("" if text is None else text))
    return html.unescape(re.sub(r"<[^>]+>", "", lines)).replace("$", r"\$")


def _error_bars(error):
    if error.array is None:
        return None
    return [list(error.array if error.arrayminus is None else error.arrayminus), list(error.array)]


def _dash(line):
    return _DASHES.get(line.dash, "-")


def _mark(marker, colour):
    """The look of a trace's markers; a name that ends in "-open" means a ring."""
    name = str(marker.symbol or "circle")
    face = "none" if name.endswith("-open") else _colour(marker.color) or colour
    edge = _colour(marker.line.color) or (colour if face == "none" else face)
    size = 0.75 * (marker.size or 6)  # plotly counts pixels, matplotlib points
    return {
        "marker": _MARKERS.get(name.removesuffix("-open"), "o"),
        "markersize": size,
        "markerfacecolor": face,
        "markeredgecolor": edge,
    }


def _colour(colour):
    """A CSS colour as matplotlib reads it; None for what is no single colour."""
    if not isinstance(colour, str):
        return None
    numbers = re.fullmatch(r"rgba?\((.*)\)", colour)
    if numbers is None:
        return colour
    red, green, blue, *alpha = map(float, numbers[1].split(","))
    return (red / 255, green / 255, blue / 255, *alpha)


def _colour_map(scale):
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list(
        "chart", [(at, _colour(colour)) for at, colour in scale]
    )
