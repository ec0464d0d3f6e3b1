"""Charts say what they show, never call home, and pictures carry words."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from fedgen_lab.dashboards import charts


class Handle:
    """What IPython's display handle looks like to a chart, keeping what it was sent."""

    def __init__(self):
        self.sent = []

    def update(self, bundle, raw):
        assert raw
        if charts.PLOTLY in bundle:  # else it is the blank that makes room for it
            self.sent.append(bundle)


def line(y):
    return charts.add_line(charts.figure("round", "loss"), range(len(y)), y, "adapter", "adapter")


def live_chart():
    chart = charts.LiveChart("loss")
    chart._handle = Handle()
    return chart, chart._handle.sent


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
    monkeypatch.setattr(charts, "SECONDS_BETWEEN_UPDATES", 3.0)  # so that also a slow machine makes all 20 in between
    chart, sent = live_chart()
    for number in range(20):
        chart.update(line([number]), f"Update {number}.")
    end = time.monotonic() + 10
    while (not sent or sent[-1]["text/plain"] != "Update 19.") and time.monotonic() < end:
        time.sleep(0.01)
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
    import base64
    import io

    from PIL import Image

    picture = np.random.default_rng(0).integers(0, 256, (3, 5, 7), dtype=np.uint8)

    def decode(source):
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1])))).transpose(2, 0, 1)

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
    assert sentence == "Round 1 takes 5 s. Everyone waits for client 1, which spends most of its time on the upload."
    assert {bar.name for bar in chart.data} == {"download", "compute", "upload"}
    assert len({bar.marker.pattern.shape for bar in chart.data}) == 3
    assert table["start_seconds"].min() == 0
    _, sentence, table = charts.gantt(SimpleNamespace(events=events), 7)
    assert "Round 7 has no messages" in sentence and table is None
