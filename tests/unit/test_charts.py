"""Charts say what they show, never call home, and pictures carry words."""

import base64
import contextvars
import functools
import io
import json
import re
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fedgen_lab.dashboards import charts, controls
from fedgen_lab.dashboards.job import Job
from fedgen_lab.dashboards.still import still_png


class Handle:
    """What IPython's display handle looks like to a chart, keeping what it was sent.

    fails(): whether the next update raises, as each did in a thread of ipykernel 7.0.
    """

    def __init__(self, fails=lambda: False):
        self.sent, self.fails = [], fails

    def update(self, bundle, raw):
        assert raw
        if self.fails():
            raise LookupError("parent_header")
        if charts.PLOTLY in bundle:  # else it is the blank that makes room for it
            self.sent.append(bundle)


def line(y):
    return charts.add_line(charts.figure("round", "loss"), range(len(y)), y, "adapter", "adapter")


def live_chart(fails=lambda: False):
    chart = charts.LiveChart("loss")
    chart._handle = Handle(fails)
    return chart, chart._handle.sent


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


PLOTLY = charts.PLOTLY


def test_a_chart_offers_no_button_that_sends_it_away():
    chart, sent = live_chart()
    chart.update(line([1.0, 0.5]), "Loss 0.5.")
    assert sent[0][PLOTLY]["config"]["showSendToCloud"] is False
    assert sent[0]["text/plain"] == "Loss 0.5."
    json.dumps(sent[0])


def test_an_update_is_small():
    chart, sent = live_chart()
    chart.update(line(np.linspace(1, 0, 20)), "Loss 0.")
    assert len(json.dumps(sent[0])) < 10_000


def test_many_updates_are_thinned_out_and_the_last_is_drawn(monkeypatch):
    monkeypatch.delenv("FEDGEN_RUN", raising=False)
    monkeypatch.setattr(
        charts, "SECONDS_BETWEEN_UPDATES", 3.0
    )  # so that also a slow machine makes all 20 in between
    monkeypatch.setattr(charts, "SECONDS_UNTIL_STILL", 60.0)
    chart, sent = live_chart()
    for number in range(20):
        chart.update(line([number]), f"Update {number}.")
    until(lambda: sent[-1]["text/plain"] == "Update 19.")
    assert [bundle["text/plain"] for bundle in sent] == ["Update 0.", "Update 19."]
    assert "Update 19." in chart.caption.value


def test_run_inline_every_update_is_drawn_and_shows_without_a_network(monkeypatch):
    monkeypatch.setenv("FEDGEN_RUN", "inline")
    chart, sent = live_chart()
    for number in range(3):
        chart.update(line([number]), f"Update {number}.")
    assert len(sent) == 3
    assert "Plotly.newPlot" in sent[-1]["text/html"]
    assert "https://" not in sent[-1]["text/html"].replace("https://plot.ly", "")
    assert "src=" not in sent[-1]["text/html"]


# ---- runs, and what fails in them


@pytest.fixture
def threads(monkeypatch):
    monkeypatch.delenv("FEDGEN_RUN", raising=False)
    monkeypatch.setattr(charts, "SECONDS_UNTIL_STILL", 0.05)


def at_rest(chart):
    """True when no timer of the chart is left."""
    timers = (chart._timer, chart._still_timer)
    return not any(timer is not None and timer.is_alive() for timer in timers)


def run(chart, updates=1):
    """A run that draws `chart` as it goes and once at its end. Returns (job, its status line)."""
    status = controls.StatusLine("Ready.")

    def work(job):
        for number in range(updates):
            chart.update(line([1.0, number]), f"Step {number}.")

    def draw(job):
        status.say(job.message, job.state)
        if job.state != "running":
            chart.update(line([1.0, 0.5]), "The end.")

    job = Job(work, draw, status)
    job.start()
    return job, status


def test_a_charts_timer_runs_in_the_context_of_the_cell(threads):
    cell = contextvars.ContextVar("cell")
    cell.set("cell-1")
    seen = []
    chart, sent = live_chart(fails=lambda: seen.append(cell.get()))
    chart.update(line([1.0]), "First.")
    chart.update(line([0.5]), "Second, by the timer.")
    until(lambda: sent[-1]["text/plain"].startswith("Second"))
    assert set(seen) == {"cell-1"}


@pytest.mark.parametrize("failing", [1, 2, 4, 5], ids=["first", "second", "by the timer", "still"])
def test_a_display_that_fails_reaches_the_status_line_wherever_it_fails(threads, failing):
    # A run sends a blank and a chart, its end the same by the timer, and then the still.
    calls = []
    chart, sent = live_chart(fails=lambda: calls.append(1) or len(calls) == failing)
    job, status = run(chart)
    until(lambda: job.state == "failed")
    until(lambda: "Problem" in status.widget.value)  # written after the sentence
    assert "parent_header" in status.sentence and isinstance(job.error, LookupError)


def test_a_display_that_always_fails_is_told_and_not_tried_for_ever(threads, monkeypatch):
    waiting = []  # timers, fired by hand

    def timer(seconds, call, *arguments):
        waiting.append(functools.partial(contextvars.copy_context().run, call, *arguments))
        return SimpleNamespace(cancel=lambda: None)

    monkeypatch.setattr(charts, "_timer", timer)
    chart, sent = live_chart(fails=lambda: True)
    job, status = run(chart)
    assert job.join(10) and job.state == "failed"
    for _ in range(10):
        if waiting:
            waiting.pop()()
    assert not waiting and not sent
    assert "parent_header" in status.sentence and "parent_header" in chart.caption.value


def test_without_a_run_the_caption_says_what_failed_in_the_timer(threads):
    broken = []
    chart, sent = live_chart(fails=lambda: bool(broken))
    chart.update(line([1.0]), "First.")
    broken.append(True)
    chart.update(line([0.5]), "Second, by the timer.")
    until(lambda: "Problem" in chart.caption.value)
    assert "parent_header" in chart.caption.value


# ---- the still picture


def picture(bundle):
    source = re.search(r'src="data:image/png;base64,([^"]+)"', bundle["text/html"])[1]
    return Image.open(io.BytesIO(base64.b64decode(source))).convert("RGB")


def test_only_the_last_update_of_a_run_carries_a_still_picture_and_it_stays_small(threads):
    chart, sent = live_chart()
    job, _ = run(chart, updates=30)
    until(lambda: sent and "text/html" in sent[-1])
    assert sent[-1]["text/plain"] == "The end." and charts.PLOTLY in sent[-1]
    assert 'alt="The end."' in sent[-1]["text/html"]
    assert not any("text/html" in bundle for bundle in sent[:-1])
    assert len(json.dumps(sent[-1])) < 60_000


def test_a_chart_that_comes_to_rest_after_a_knob_was_turned_gets_its_still_picture(threads):
    chart, sent = live_chart()
    for number in range(5):
        chart.update(line([number]), f"Update {number}.")
    until(
        lambda: "text/html" in sent[-1] and sent[-1]["text/plain"] == "Update 4."
    )  # starved, it rests earlier, too
    assert sum("text/html" in bundle for bundle in sent) < 5


def test_a_finished_chart_has_its_still_picture_at_once(monkeypatch):
    monkeypatch.delenv("FEDGEN_RUN", raising=False)
    handle = Handle()
    monkeypatch.setattr(charts, "display", lambda *shown, **how: handle)
    charts.show_chart(line([1.0, 0.5]), "Loss 0.5.")
    assert 'alt="Loss 0.5."' in handle.sent[-1]["text/html"]


@pytest.mark.parametrize(
    "figure", [charts.empty_figure("Nothing yet."), charts.figure().add_pie(values=[1, 2])]
)
def test_a_chart_without_numbers_and_one_of_an_unknown_kind_stay_without(threads, figure):
    chart, sent = live_chart()
    chart.update(figure, "Words.")
    until(lambda: at_rest(chart))
    assert [bundle.keys() & {"text/html"} for bundle in sent] == [set()]
    assert "Problem" not in chart.caption.value


def colours(chart):
    """The colours of a still picture that fill more than a handful of pixels, as #rrggbb."""
    pixels = Image.open(io.BytesIO(still_png(chart))).convert("RGB")
    return {
        "#{:02X}{:02X}{:02X}".format(*colour)
        for count, colour in pixels.getcolors(2**24)
        if count > 20
    }


FIGURES = {
    "line": (lambda: line([1.0, 0.5, 0.2]), "adapter"),
    "level": (lambda: line([1.0]).add_hline(y=0.5, line={"color": charts.PALETTE["real"]}), "real"),
    "bars": (
        lambda: charts.figure().add_bar(
            x=["a", "b"], y=[1, 2], marker={"color": charts.PALETTE["client"]}
        ),
        "client",
    ),
    "bars across": (
        lambda: charts.figure().add_bar(
            orientation="h",
            y=["a", "b"],
            x=[1, 2],
            base=[0, 1],
            marker={"color": charts.PALETTE["server"]},
        ),
        "server",
    ),
    "area": (
        lambda: charts.figure().add_scatter(
            x=[0, 1, 1],
            y=[0, 0, 1],
            fill="toself",
            mode="none",
            fillcolor=charts.PALETTE["generated"],
        ),
        "generated",
    ),
    "heat map": (
        lambda: charts.concept_heat_map(pd.DataFrame([[3, 0], [1, 2]], columns=["sun", "anchor"])),
        "server",
    ),
}


@pytest.mark.parametrize("kind", FIGURES)
def test_a_still_picture_has_the_charts_colours_on_an_opaque_page(kind):
    make, role = FIGURES[kind]
    drawn = colours(make())
    assert charts.PALETTE[role] in drawn and "#FFFFFF" in drawn


def test_words_of_a_chart_are_drawn_as_words():
    chart = line([1.0]).update_layout(title="<b>$5 & $6</b>", yaxis_title="a_b^c$")
    chart.add_scatter(
        x=[0], y=[1], mode="markers+text", text=["50 $"], marker={"symbol": "star-open"}
    )
    assert still_png(chart)  # a single dollar sign would begin mathematics, which this is not


def test_the_table_button_shows_and_hides_the_numbers():
    chart, _ = live_chart()
    assert chart.button.description == "Show loss as table"
    chart.update(line([1.0]), "Loss 1.", pd.DataFrame({"round": [0], "loss": [1.23456]}))
    assert "1.235" in chart.table.value and chart.table.layout.display == "none"
    chart.button.click()
    assert chart.table.layout.display == "" and chart.button.description == "Hide loss as table"
    chart.button.click()
    assert chart.table.layout.display == "none"


def test_each_role_has_its_own_colour_dash_and_marker():
    for looks in (charts.PALETTE, charts.MARKERS):
        assert len(set(looks.values())) == len(looks)
    assert set(charts.PALETTE) == set(charts.DASHES) == set(charts.MARKERS)


@pytest.mark.parametrize("role", charts.PALETTE)
def test_every_colour_is_seen_on_white_and_on_black(role):
    def brightness(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright = brightness(charts.PALETTE[role])
    assert 1.05 / (bright + 0.05) > 2 and (bright + 0.05) / 0.05 > 3


def test_every_picture_carries_its_words():
    images = np.zeros((3, 3, 4, 4), np.uint8)
    page = charts.pictures_html(images, ["a red star", 'a "blue" moon', "a bolt"], columns=2)
    assert page.count("<img ") == page.count("alt=") == 3
    assert 'alt="a &quot;blue&quot; moon"' in page
    with pytest.raises(ValueError, match="3 pictures and 1 texts"):
        charts.pictures_html(images, ["one"])


def test_pixels_survive_the_way_to_the_page():
    picture = np.random.default_rng(0).integers(0, 256, (3, 5, 7), dtype=np.uint8)

    def decode(source):
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1])))).transpose(
            2, 0, 1
        )

    assert (decode(charts.picture_png(picture)) == picture).all()
    assert (decode(charts.picture_png(picture.astype(np.float32) / 127.5 - 1)) == picture).all()
    with pytest.raises(ValueError, match="channels first"):
        charts.picture_png(np.zeros((4, 4, 3)))


def test_a_strip_names_each_picture_by_model_and_prompt_and_leaves_out_what_is_not_there_yet():
    images = np.zeros((2, 3, 4, 4), np.float32)
    rows = [("base", images), ("client 0", None), ("federated", images)]
    page = charts.strip_html(rows, ["an umbrella", "an anchor"])
    assert 'alt="base: an umbrella"' in page and 'alt="federated: an anchor"' in page
    assert "client 0" not in page


def test_the_heat_map_has_a_row_for_each_client_and_a_number_in_each_cell():
    counts = pd.DataFrame([[3, 0], [1, 2], [0, 5]], columns=["umbrella", "anchor"])
    trace = charts.concept_heat_map(counts).data[0]
    assert list(trace.y) == ["client 0", "client 1", "client 2"]
    assert trace.text[2][1] == 5


def test_the_gantt_names_the_client_everyone_waits_for():
    events = pd.DataFrame(
        [
            (1, 0, "download", 10.0, 10.5),
            (1, 0, "compute", 10.5, 11.0),
            (1, 0, "upload", 11.0, 11.2),
            (1, 1, "download", 10.0, 10.5),
            (1, 1, "compute", 10.5, 11.0),
            (1, 1, "upload", 11.0, 15.0),
        ],
        columns=["round", "client", "phase", "start_seconds", "end_seconds"],
    ).assign(bytes=100, joules=0.1)
    chart, sentence, table = charts.gantt(SimpleNamespace(events=events), 1)
    assert (
        sentence
        == "Round 1 takes 5 s. Everyone waits for client 1, which spends most of its time on the upload."
    )
    assert {bar.name for bar in chart.data} == {"download", "compute", "upload"}
    assert len({bar.marker.pattern.shape for bar in chart.data}) == 3
    assert table["start_seconds"].min() == 0
    _, sentence, table = charts.gantt(SimpleNamespace(events=events), 7)
    assert "Round 7 has no messages" in sentence and table is None
