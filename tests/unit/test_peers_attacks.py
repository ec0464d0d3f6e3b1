"""Attackers among peers: what a copier of votes reads, what the contract would pay, what stands in the sweep."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from recorders import recorder

from fedgen_lab.peers import peer as peer_room
from fedgen_lab.peers.chain import Chain
from fedgen_lab.peers.run import run_peers, terms_of
from fedgen_lab.peers.scenario import PeersScenario
from fedgen_lab.peers.sweep_attacks import recorded_attacks
from fedgen_lab.peers.tally import agreement, best_chosen, rewards_of

peers_attacks = recorder("peers_attacks")
QUICK = PeersScenario(**peers_attacks.SMALL, seconds=6, commit_blocks=6, seed=1, attackers=1)


@pytest.fixture(autouse=True)
def toy_models(monkeypatch):
    """Training adds noise, and a score is a number that follows from the model and differs a little by peer."""
    import torch

    def train(model, *arguments, seed, **more):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in model.unet.parameters():
                weight.add_(1e-3 * torch.randn(weight.shape, generator=generator))

    def judge(scenario, model, drawn, holding):
        return float(drawn) + holding.train.images.float().mean().item() / 1000, np.zeros(0, int)

    monkeypatch.setattr(peer_room, "train_ddpm", train)
    monkeypatch.setattr(
        peer_room, "draw_samples", lambda scenario, model, content: torch.tensor(content[0] + 100.0)
    )
    monkeypatch.setattr(peer_room, "judge_samples", judge)


def test_a_vote_copier_reads_open_votes_and_guesses_closed_ones():
    copied = replace(QUICK, attack="vote-copier", seconds=12)
    closed, opened = (run_peers(replace(copied, open_votes=is_open)) for is_open in (False, True))
    gap, _ = agreement(opened.votes(), 3, [3])
    guess, _ = agreement(closed.votes(), 3, [3])
    assert gap < 0.001 < 0.05 < guess
    for outcome in (closed, opened):  # it reveals what it committed, whatever it learnt since
        assert not any("not what was committed" in line for line in outcome.peers[3].log)


def test_open_votes_change_nothing_where_everybody_is_honest():
    honest = replace(QUICK, attackers=0)
    closed, opened = (run_peers(replace(honest, open_votes=is_open)) for is_open in (False, True))
    assert opened.votes().equals(closed.votes()) and opened.models().equals(closed.models())


def test_rewards_are_those_that_the_contract_pays():
    from fedgen_lab.dashboards.peers_charts import pay

    scenario = replace(QUICK, attack="sybils", attackers=2, reward_wei=10**12)
    chain = Chain(terms=terms_of(scenario))
    chain.fund(chain.accounts[0], 10**15)
    outcome = run_peers(scenario, chain=chain)
    paid = pay(chain, chain.accounts[0])
    expected = [paid.get(peer.account, 0) / 10**12 for peer in outcome.peers]
    assert rewards_of(outcome) == pytest.approx(expected, abs=1e-6) and sum(expected) > 1


def test_what_is_known_from_another_run_changes_no_model_and_no_vote():
    known, scenario = {}, replace(QUICK, attackers=0)
    first = run_peers(scenario, known=known)
    filled = len(known)
    again, alone = run_peers(scenario, known=known), run_peers(scenario)
    assert first.models().equals(again.models()) and again.models().equals(alone.models())
    assert first.votes().equals(again.votes()) and again.votes().equals(alone.votes())
    assert len(known) == filled > 10


def test_agreement_leaves_liars_out():
    votes = pd.DataFrame(
        {0: [1.0, 2.0, 3.0, np.nan], 1: [1.0, 2.0, np.nan, 4.0], 2: [9.0, 9.0, 9.0, 9.0]}
    )
    assert agreement(votes, 0, liars=[2]) == (0.0, pytest.approx(np.nan, nan_ok=True))
    gap, correlation = agreement(votes, 2)
    assert gap == pytest.approx(np.mean([8, 7 / 2, 2, 5 / 4])) and np.isnan(correlation)


def test_recorded_points_are_of_the_grid_and_shares_are_shares():
    table, points = recorded_attacks(), peers_attacks.POINTS
    knobs = list(points[0])
    assert all(point in points for point in table[knobs].to_dict("records"))
    assert set(table["seed"]) <= set(peers_attacks.SEEDS)
    assert not table.duplicated([*knobs, "seed"]).any() and len(table) >= 3
    for share in ("built_on", "paid", "copied"):
        assert table[share].dropna().between(0, 1).all()
    assert (table["built_on"][table["attack"] == "withholder"].fillna(0) == 0).all()


def test_noise_hides_the_best_model_only_where_it_is_wider_than_the_gap():
    scores, quality = [[10.0, 11.0], [20.0, 21.0], [30.0, 31.0]], [0.1, 0.2, 0.5]
    table = best_chosen(scores, quality, sensitivity=1.0, epsilons=(10.0, 0.001)).set_index(
        "epsilon"
    )
    assert table["chosen"][np.inf] == table["chosen"][10.0] == 1 and table["loses"][np.inf] == 0
    assert table["chosen"][0.001] < 0.7 and 0 < table["loses"][0.001] < 0.4
    worst_first = best_chosen(scores, quality[::-1], sensitivity=1.0, epsilons=())
    assert worst_first["chosen"][0] == 0 and worst_first["loses"][0] == pytest.approx(0.4)
