"""Claims about lab 05's live dashboard: every way makes the scenario it names, and a run is drawn on its own clock."""

import pandas as pd
import pytest
import torch

from fedgen_lab.dashboards.air import WAYS, AirDashboard, AirRun, run_on_the_clock
from fedgen_lab.dashboards.lora_live import loss_chart
from fedgen_lab.lora import device, federated
from fedgen_lab.lora.on_air import ways
from fedgen_lab.lora.pipeline import encode
from fedgen_lab.scenario import Scenario
from fedgen_lab.wireless.channel import Network

pytestmark = pytest.mark.usefixtures("small_base")
SMALL = Scenario(
    num_clients=3,
    rounds=2,
    local_steps=1,
    batch_size=2,
    pictures_per_client=4,
    num_prompts=4,
    seed=2,
)
CELL = Network(3, flops_per_second=1e9, speed_spread=1.0, seed=2)


class Here:
    """What a `Job` is to a run: it hears sentences, and may say stop after so many of them."""

    def __init__(self, patience=10_000):
        self.heard, self.patience = [], patience

    def report(self, sentence):
        self.heard.append(sentence)

    def should_stop(self):
        return len(self.heard) >= self.patience


@pytest.fixture
def quick(monkeypatch):
    """Pictures, losses and operations are not what is tested here."""
    monkeypatch.setattr(federated, "draw_strip", lambda *_: torch.zeros(4, 3, 8, 8))
    monkeypatch.setattr(
        federated, "encode", lambda pipeline, pictures: encode(pipeline, pictures.take([0]))
    )
    monkeypatch.setattr(federated, "denoising_loss", lambda unet, *_: torch.ones(1))
    for module in (federated, device):
        monkeypatch.setattr(module, "step_flops", lambda *_: 1e9)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_makes_its_scenario_with_every_knob_at_both_ends(way):
    dashboard = AirDashboard(SMALL, CELL, 1.0)
    assert tuple(dashboard.way.options) == tuple(ways(SMALL, 1.0)) == WAYS
    dashboard.way.value = way
    for knob in dashboard.knobs:
        first = knob.value
        for end in (knob.number.min, knob.number.max):
            knob.set(end)
            run = dashboard.new_run(dashboard.scenario())
            assert run.network.num_clients == run.scenario.num_clients == dashboard.clients.value
        knob.set(first)
    knobs = {"deadline": "deadline_seconds", "fastest": "select", "FedBuff": "buffer"}
    knobs |= {"int8": "upload", "top-k": "upload"}
    changed = {
        name
        for name in set(knobs.values())
        if getattr(dashboard.scenario(), name) != getattr(SMALL, name)
    }
    assert changed == {knobs[way]} if way in knobs else not changed


def test_a_run_with_a_buffer_is_told_and_drawn_by_its_own_clock(quick):
    run, job = AirRun(ways(SMALL, 1.0, buffer=2)["FedBuff"], "FedBuff", CELL), Here()
    run_on_the_clock(run, job)
    assert run.rounds == 3 and run.table(5e6)["wireless_seconds"].equals(run.progress["seconds"])
    chart, sentence, _ = loss_chart([run], None, "wireless seconds", 5e6, 3, 0.0)
    assert [line.name for line in chart.data] == ["live, FedBuff"] and "round 3 of 3" in sentence
    assert "FedBuff, 3 of 3 rounds in" in run.summary() and any(
        "step 1 of 1" in words for words in job.heard
    )


def test_a_stopped_run_keeps_what_it_has(quick):
    run = AirRun(SMALL, "wait for all", CELL)
    run_on_the_clock(run, Here(patience=6))
    assert 0 < run.rounds < SMALL.rounds or len(run.losses) == 1
    assert len(run.progress) == len(run.losses) and run.computed


def test_before_anything_is_complete_it_says_so():
    run = AirRun(SMALL, "deadline", CELL)
    assert run.table(5e6).empty and "nothing" in run.summary()
    run.losses, run.progress = (
        {0: 1.0},
        pd.DataFrame(
            {
                "round": [0],
                "loss": [1.0],
                "seconds": [0.0],
                "joules": [0.0],
                "left_out": [0],
                "staleness": [0.0],
            }
        ),
    )
    assert "0 of 2 rounds in 0 s" in run.summary()
