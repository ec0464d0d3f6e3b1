"""The dashboard of lab 10: what it says of a run, who built on whom, the votes, the rewards, one model in detail."""

import json
from dataclasses import replace

import numpy as np
import pytest

from fedgen_lab.dashboards import peers as dashboard
from fedgen_lab.dashboards.peers import (
    PeersDashboard,
    PeersRun,
    facts_of,
    log_html,
    model_html,
    play,
)
from fedgen_lab.dashboards.peers_charts import provenance_chart, rewards_chart, votes_chart
from fedgen_lab.peers.run import run_peers
from fedgen_lab.peers.scenario import PeersScenario

pytestmark = pytest.mark.usefixtures("quickly_drawn")
TINY = PeersScenario(
    num_peers=2, seconds=4, steps=2, samples=64, pictures_per_peer=128, width=8, objective="fld-fid"
)


class Job:
    """A job that only listens."""

    def __init__(self, stops_after=10**6):
        self.said, self.stops_after = [], stops_after

    def report(self, sentence):
        self.said.append(sentence)

    def should_stop(self):
        return len(self.said) > self.stops_after


@pytest.fixture(autouse=True)
def inline(monkeypatch):
    monkeypatch.setenv("FEDGEN_RUN", "inline")


@pytest.fixture(scope="module")
def outcome():
    return run_peers(TINY)


@pytest.fixture(scope="module")
def paid():
    run = PeersRun(TINY, "evm")
    job = Job()
    play(run, job)
    return run, job


def test_every_model_is_a_point_of_its_author_and_every_parent_a_line(outcome):
    chart, sentence, table = provenance_chart(outcome, chosen=1)
    models = outcome.models()
    assert (
        sum(len(trace.x) for trace in chart.data if trace.name.startswith("peer"))
        == len(models)
        == len(table)
    )
    assert len(chart.data[0].x) == 3 * sum(map(len, models["parents"]))
    looks = {
        (trace.marker.color, trace.marker.symbol)
        for trace in chart.data
        if trace.name.startswith("peer")
    }
    assert len(looks) == 2 and chart.data[-1].name == "chosen"
    assert (
        sentence.startswith(f"{len(models)} models by 2 peers")
        and table["cid"].tolist() == models["cid"].tolist()
    )
    json.loads(chart.to_json())


def test_the_matrix_of_votes_is_that_of_the_chain_with_gaps_for_ones_own(outcome):
    chart, sentence, table = votes_chart(outcome)
    assert np.allclose(
        np.array(chart.data[0].z, dtype=float), outcome.votes().to_numpy(), equal_nan=True
    )
    for row, author in enumerate(outcome.models()["author"]):
        assert chart.data[0].text[row][author] == ""
    assert (
        f"{int(outcome.votes().notna().sum().sum())} votes" in sentence
        and list(table)[0] == "model"
    )


def test_before_anything_has_happened_every_chart_says_so(outcome):
    nothing = replace(outcome, moments=())
    for chart, sentence, table in (
        provenance_chart(nothing),
        votes_chart(nothing),
        rewards_chart(nothing, None),
    ):
        assert table is None and sentence.endswith(".") and chart.layout.height == 90
    assert log_html(nothing) == ""


def test_a_models_page_has_its_pictures_its_manifest_and_everybodys_opinion(outcome):
    facts = facts_of(outcome, 0).set_index("of this model")["is"]
    assert facts["manifest: steps"] == "2" and facts["manifest: signature"].startswith("verified")
    author = outcome.models()["author"][0]
    assert "own score" in facts[f"peer {1 - author}"] and "voted" in facts[f"peer {1 - author}"]
    assert "voted" not in facts[f"peer {author}"]
    page = model_html(outcome, 0)
    assert page.count("<img") == dashboard.SHOWN and 'alt="model 0, class 3"' in page


def test_a_damaged_manifest_is_said_on_the_models_page(outcome):
    from fedgen_lab.peers.store import Shelf

    facts = facts_of(replace(outcome, store=Shelf()), 0).set_index("of this model")["is"]
    assert "withheld" in facts["manifest"]


def test_the_log_tells_in_words_who_did_what(paid):
    run, job = paid
    log = log_html(run.outcome)
    for words in ("submits model", "promises a vote", "reveals its vote"):
        assert words in log
    assert any(said.startswith("Second") and "of 4 (simulated): peer" in said for said in job.said)
    assert run.computed and "revealed votes in 4 simulated seconds" in run.summary()


def test_rewards_are_paid_for_revealed_votes_and_no_wei_gets_lost(paid):
    run, _ = paid
    rewarded = [
        event for moment in run.moments for event in moment.events if event.kind == "Rewarded"
    ]
    assert rewarded and sum(run.rewards.values()) == sum(
        event.values["amount"] for event in rewarded
    )
    chart, sentence, table = rewards_chart(run.outcome, run.rewards)
    assert list(chart.data[0].y) == table["wei"].tolist() == list(run.rewards.values())
    assert "has earned the most" in sentence


def test_while_a_run_goes_on_its_models_are_there_already(paid):
    run, _ = paid
    half = PeersRun(TINY, "evm")
    half.chain, half.moments = run.chain, run.moments[:-1]
    assert len(half.so_far().models()) == len(run.outcome.models())
    assert "shown when the run has ended" in model_html(half.so_far(), 0)


def test_a_stop_keeps_what_is_on_the_chain():
    run = PeersRun(TINY, "ledger")
    play(run, Job(stops_after=8))
    assert run.outcome.stopped and run.rewards is None and "models and" in run.summary()


def test_the_knobs_describe_what_is_played(monkeypatch):
    asked = []
    monkeypatch.setattr(
        dashboard, "play", lambda run, job: asked.append((run.scenario, run.machine))
    )
    board = PeersDashboard(TINY)
    for name, value in {
        "num_peers": 3,
        "skew": 0.3,
        "attackers": 1,
        "staleness": 0.2,
        "bandwidth_hz": 1.0,
    }.items():
        board.numbers[name].set(value)
    board.words["attack"].value, board.words["vote_rule"].value = "sybils", "median"
    board.machine.value = "ledger"
    assert board.scenario() == replace(
        TINY,
        num_peers=3,
        skew=0.3,
        attackers=1,
        staleness=0.2,
        bandwidth_hz=1e6,
        attack="sybils",
        vote_rule="median",
        seconds=10.0,
    )
    board.panel.start()
    assert asked == [(board.scenario(), "ledger")]


def test_a_finished_run_fills_the_page(monkeypatch, paid):
    run, _ = paid

    def again(made, job):
        made.__dict__.update(run.__dict__)

    monkeypatch.setattr(dashboard, "play", again)
    board = PeersDashboard(TINY)
    board.panel.start()
    assert len(board.chosen.options) == len(run.outcome.models())
    board.chosen.value = 0
    assert "Model 0 draws" in board.model.value and "<img" in board.model.value
    assert board.panel.status.sentence.startswith("Done: ")
    colours = {button.style.button_color for button in board.clicks.children}
    assert len(board.clicks.children) == len(board.chosen.options) and len(colours) == 2
    board.clicks.children[1].click()
    assert board.chosen.value == 1 and "Model 1 draws" in board.model.value
    for chart in (board.provenance, board.votes, board.rewards):
        assert chart.sentence and isinstance(chart.sentence, str)


def test_knobs_that_do_not_fit_are_named_in_the_status_line():
    board = PeersDashboard(TINY)
    board.words["attack"].value = "sybils"
    board.numbers["attackers"].set(5)
    board.panel.start()
    assert board.panel.job.state == "failed" and "attackers must be" in board.panel.status.sentence
