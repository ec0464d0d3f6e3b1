"""Claims about lab 02's guidance knob: it draws when turned, the newest value last, and says what it drew."""

import time

import pytest

from fedgen_lab.dashboards.guidance import GuidanceKnob
from fedgen_lab.lora.pipeline import load_pipeline
from fedgen_lab.pictures.sprites import prompts


@pytest.fixture(scope="module")
def pipeline(small_folder):
    return load_pipeline(small_folder, device="cpu")


@pytest.fixture
def knob(pipeline):
    asked, wanted = prompts(2, seed=5)
    return GuidanceKnob(pipeline, asked, wanted, seeds=range(2), columns=2)


def test_turning_the_knob_draws_and_says_what_was_drawn(knob, monkeypatch):
    monkeypatch.setenv("FEDGEN_RUN", "inline")
    knob.knob.set(5.0)
    first = knob.shown.value
    assert "Guidance 5:" in knob.status.sentence and "of 2 pictures" in knob.status.sentence
    assert first.count("<img alt=") == 2
    knob.knob.set(1.0)
    assert "Guidance 1:" in knob.status.sentence and knob.shown.value != first


def test_the_knob_stays_in_its_range(knob, monkeypatch):
    monkeypatch.setenv("FEDGEN_RUN", "inline")
    knob.knob.set(1000)
    assert knob.knob.value == 9 and "Guidance 9:" in knob.status.sentence


def test_a_quick_series_of_turns_ends_at_the_last_one(knob, monkeypatch):
    monkeypatch.setenv("FEDGEN_RUN", "live")
    for value in (2.0, 4.0, 6.0, 8.0):
        knob.knob.set(value)
        time.sleep(0.05)
    assert knob.job.join(timeout=60)
    assert knob.job.state == "done" and "Guidance 8:" in knob.status.sentence
