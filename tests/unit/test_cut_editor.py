"""The cut editor without a browser: real clocks, real searches, a real race."""

import io
from contextlib import redirect_stdout

import pytest

from fedgen_lab.dashboards.cut_editor import cut_editor
from fedgen_lab.split.cuts import exact_cuts
from fedgen_lab.split.latency import iteration_seconds


def show(**changes):
    with redirect_stdout(io.StringIO()):  # without a notebook, display() prints
        return cut_editor(**changes)


@pytest.fixture
def editor(monkeypatch):
    monkeypatch.delenv("FEDGEN_RUN", raising=False)
    return show(num_clients=9)


@pytest.fixture
def inline(monkeypatch):
    monkeypatch.setenv("FEDGEN_RUN", "inline")


def seconds(editor):
    return iteration_seconds(editor.cuts(), **editor.setting())


def test_the_buttons_say_where_each_block_is_and_the_sentence_how_long_that_takes(editor):
    assert [toggle.description for toggle in editor.toggles[0]] == [
        f"{b}: server" for b in ("G1", "G3", "D1", "D3")
    ]
    before = seconds(editor)
    assert f"One iteration of 9 clients takes {before:.4g} s" in editor.gantt.sentence
    editor.toggles[0][1].value = True
    assert editor.toggles[0][1].description == "G3: device"
    assert editor.cuts()[0] == editor.cuts()[7] == (0, 1, 0, 0)  # clients of one kind share a cut
    assert editor.cuts()[1] == (0, 0, 0, 0)
    assert seconds(editor) > before
    assert f"takes {seconds(editor):.4g} s" in editor.gantt.sentence
    assert "the computing of device1" in editor.gantt.sentence


def test_the_exact_optimum_is_one_press_away(editor):
    editor.buttons[0].click()
    assert seconds(editor) == pytest.approx(exact_cuts(**editor.setting())[1], rel=1e-12)
    assert "which is the optimum" in editor.gantt.sentence
    editor.buttons[2].click()
    assert set(editor.cuts()) == {(1, 1, 1, 1)}
    assert "above the optimum" in editor.gantt.sentence
    editor.buttons[1].click()
    assert set(editor.cuts()) == {(0, 0, 0, 0)}


def test_as_published_the_clock_shows_the_published_seconds(editor):
    editor.clients.set(80)
    editor.counting.value = True
    assert "80 clients takes 14.02 s, 100 % above the optimum of 7.002 s" in editor.gantt.sentence
    assert "MB/s" in editor.labels[0].value


def test_faster_links_shorten_the_iteration_and_move_the_cuts(editor):
    slow = seconds(editor)
    editor.buttons[0].click()
    before = editor.cuts()
    editor.links.set(100)
    editor.buttons[0].click()
    assert seconds(editor) < slow
    assert editor.cuts() != before


@pytest.mark.parametrize("end", ["low", "high"])
def test_every_knob_may_be_pushed_to_both_ends(editor, end):
    for knob in (editor.clients, editor.links):
        knob.set(knob.number.min if end == "low" else knob.number.max)
    number = editor.clients.value
    assert number in (1, 100)
    assert editor.gantt.sentence.startswith(
        f"One iteration of {number} client{'s' * (number > 1)} takes"
    )
    shown = [row.layout.display != "none" for row in editor.rows]
    assert sum(shown) == min(7, number)
    editor.buttons[0].click()
    assert "which is the optimum" in editor.gantt.sentence


def test_the_race_ends_when_the_genetic_algorithm_meets_the_optimum(editor):
    editor.clients.set(3)
    editor.race_button.click()
    assert editor.race.join(60)
    assert editor.race.state == "done", editor.race.message
    race = editor.race_so_far
    assert race.reached() and race.best == sorted(race.best, reverse=True)
    assert editor.status.sentence.startswith("Done: 3 clients, generation")
    assert "it has met the optimum, which it can't know" in editor.race_chart.sentence
    assert editor.stop_button.disabled and not editor.race_button.disabled


def test_a_stopped_race_keeps_its_line(editor):
    editor.clients.set(60)
    editor.race_button.click()
    while editor.race.state == "running" and not (editor.race_so_far and editor.race_so_far.best):
        editor.race.join(0.02)
    editor.stop_button.click()
    assert editor.race.join(60) and editor.race.state == "cancelled"
    assert editor.status.sentence.startswith("Stopped: 60 clients (each 4 share a cut), generation")
    assert "above the optimum" in editor.race_chart.sentence


def test_a_html_copy_shows_the_optimum_and_a_finished_race(inline):
    editor = show(num_clients=4, size="lab14", batch_size=16)
    assert "which is the optimum" in editor.gantt.sentence
    assert editor.race.state == "done" and editor.race_so_far.best


def test_a_size_that_is_not_known_is_refused(inline):
    with pytest.raises(ValueError, match="size must be one of"):
        show(size="huge")
