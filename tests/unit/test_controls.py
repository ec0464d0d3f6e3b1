"""Knobs agree with their boxes, stay in range, and everything has a name."""

import re
from pathlib import Path

import pytest

import fedgen_lab
from fedgen_lab.dashboards import controls


def test_slider_and_number_box_always_agree():
    clients = controls.knob("Clients", 4, 2, 16)
    clients.slider.value = 7
    assert clients.number.value == clients.value == 7
    clients.number.value = 12
    assert clients.slider.value == 12


def test_a_knob_of_whole_numbers_stays_whole():
    assert isinstance(controls.knob("Clients", 4, 2, 16).value, int)
    assert isinstance(controls.knob("Skew", 0, 0.0, 1.0, 0.1).value, float)


@pytest.mark.parametrize("typed, kept", [(-3, 2), (99, 16), (2, 2), (16, 16)])
def test_a_number_out_of_range_becomes_the_nearest_end(typed, kept):
    clients = controls.knob("Clients", 4, 2, 16)
    clients.number.value = typed
    assert clients.value == clients.slider.value == kept


def test_a_log_knob_reaches_both_ends_and_any_number_between():
    band = controls.log_knob("Bandwidth (MHz)", 5, 0.1, 100)
    for value in (0.1, 100, 33.0):
        band.set(value)
        assert band.value == pytest.approx(value)
        assert band.slider.value == pytest.approx(value)
    band.slider.value = band.slider.base**0.05
    assert band.value == 1.12  # three digits, not seventeen


def test_each_change_is_heard_once():
    heard = []
    clients = controls.knob("Clients", 4, 2, 16)
    clients.observe(heard.append)
    clients.slider.value = 5
    clients.number.value = 6
    assert heard == [5, 6]


def test_every_number_box_menu_and_button_has_a_name_in_words():
    assert controls.knob("Clients", 4, 2, 16).number.description == "Clients"
    assert controls.choice("Chart", ["a", "b"]).description == "Chart"
    assert controls.text_field("Folder").description == "Folder"
    start = controls.button("Start", lambda: None)
    assert start.description == "Start" and not start.icon


def test_a_button_calls_its_handler():
    pressed = []
    controls.button("Start", lambda: pressed.append(1)).click()
    assert pressed == [1]


def test_the_status_line_shows_words_as_words_and_names_a_problem():
    line = controls.StatusLine("Ready.")
    line.say("<script>alert(1)</script>", "failed")
    assert "<script>" not in line.widget.value and "&lt;script&gt;" in line.widget.value
    assert "Problem" in line.widget.value
    line.say("Round 1 of 5.", "running")
    assert 'aria-live="off"' in line.widget.value and "Problem" not in line.widget.value


def test_words_with_a_colour_have_a_background_too():
    # A page in dark colours that lacks JupyterLab's variables would show dark words on dark.
    for path in Path(fedgen_lab.__file__).parent.rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if re.search(r"(?<![-\w])color: ?(var|#)", line):
                assert "background: " in line, f"{path.name}: {line.strip()}"
