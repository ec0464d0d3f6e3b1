"""Lab 05's dashboard: every knob only replays, the charts say what they show, and both ends of each knob hold."""

import json

import numpy as np
import pytest

from fedgen_lab.dashboards.radio import (
    RadioDashboard,
    cell_map,
    radio_dashboard,
    round_chart,
    sweep,
    sweep_chart,
)
from fedgen_lab.wireless.channel import Network
from fedgen_lab.wireless.payload import adapter, trace_of, whole_unet
from fedgen_lab.wireless.replay import replay

CELL = Network(10, flops_per_second=1.5e12, downlink="broadcast")


@pytest.fixture
def dashboard():
    made = RadioDashboard(CELL)
    made.draw()
    return made


def test_an_adapter_is_compute_bound_and_the_whole_unet_link_bound(dashboard):
    assert "compute-bound" in dashboard.gantt.sentence
    dashboard.payload.value = "full"
    assert "link-bound" in dashboard.gantt.sentence


def test_the_sentence_of_a_round_is_that_of_its_replay():
    timeline = replay(trace_of(adapter(4), 10), CELL)
    chart, sentence, table = round_chart(timeline, 2)
    seconds = timeline.rounds.set_index("round").loc[2, "seconds"]
    assert f"Round 2 takes {seconds:.3g} s" in sentence and len(table) == 30
    assert {bar.name for bar in chart.data} == {"download", "compute", "upload"}


def test_a_deadline_names_who_is_late_and_is_drawn_where_it_cuts():
    timeline = replay(trace_of(adapter(4), 10), CELL)
    seconds = timeline.rounds.seconds[0]
    chart, sentence, _ = round_chart(timeline, 1, seconds * 0.99)
    assert (
        f"too late is: {timeline.rounds.straggler[0]}." in sentence
        and len(chart.layout.shapes) == 1
    )
    chart, sentence, _ = round_chart(timeline, 1, seconds * 2)
    assert "too late is: nobody." in sentence and not chart.layout.shapes


def test_a_sweep_says_what_replay_says_and_never_beats_computing():
    found = sweep("rank", CELL, adapter(4))
    here = found[(found.x == 4) & (found.allocation == "equal")].iloc[0]
    timeline = replay(trace_of(adapter(4), 10), CELL)
    assert here.seconds == pytest.approx(timeline.rounds.seconds.median())
    assert here.computing == pytest.approx(timeline.clients.compute_seconds.max() / 5)
    assert (found.seconds > found.computing).all()
    both = found.pivot(index="x", columns="allocation", values="seconds")
    assert (both["min-max"] <= both["equal"] * (1 + 1e-6)).all() and both[
        "equal"
    ].is_monotonic_increasing
    chart, sentence, _ = sweep_chart(found, "rank", 4)
    assert [line.name for line in chart.data] == [
        "equal shares",
        "min-max shares",
        "computing alone",
    ]
    assert "100% at the right end" in sentence


def test_more_band_shortens_rounds_along_the_sweep():
    seconds = sweep("bandwidth", CELL, whole_unet(), "int8").query("allocation == 'equal'").seconds
    assert seconds.is_monotonic_decreasing


def test_the_map_tells_walls_by_shape_and_signals_in_words():
    timeline = replay(trace_of(adapter(4), 10), CELL)
    chart, sentence, table = cell_map(timeline, CELL, 1)
    looks = {
        trace.name: trace.marker.symbol
        for trace in chart.data
        if trace.name in ("sees the station", "behind a wall")
    }
    assert len(set(looks.values())) == 2
    words = [text for trace in chart.data if trace.text for text in trace.text]
    assert len(words) == 10 and all("dB" in word for word in words)
    worst = table.loc[table.snr_db.idxmin()]
    assert f"client {int(worst.client)} worst" in sentence


def test_every_knob_holds_at_both_ends():
    dashboard = RadioDashboard(Network(3, flops_per_second=1.5e12, downlink="broadcast"))
    for knob in dashboard.knobs:
        first = knob.value
        for value in (knob.number.min, knob.number.max):
            knob.set(value)
            for chart in (dashboard.gantt, dashboard.map, dashboard.curve):
                assert (
                    chart.sentence and "nan" not in chart.sentence and "inf " not in chart.sentence
                )
        knob.set(first)
    for menu in (*dashboard.choices, dashboard.sweep):
        for option in menu.options:
            menu.value = option[1] if isinstance(option, tuple) else option
    assert "Round 1 takes" in dashboard.gantt.sentence


def test_charts_are_plain_json(dashboard):
    timeline = replay(trace_of(adapter(4), 10), CELL)
    for chart in (
        cell_map(timeline, CELL, 1)[0],
        sweep_chart(sweep("rank", CELL, adapter(4)), "rank")[0],
    ):
        numbers = json.loads(chart.to_json())
        assert numbers["data"] and np.isfinite(chart.layout.height)


def test_it_shows_inline(monkeypatch, capsys):
    monkeypatch.setenv("FEDGEN_RUN", "inline")
    assert radio_dashboard(num_clients=3).clients.value == 3
