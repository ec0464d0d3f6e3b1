"""The score as an oracle: it is the peers' own score, it tells members apart, and what says less tells less."""

import numpy as np
import pytest
import torch

from fedgen_lab.peers.objectives import judge_samples, sensitivity_of
from fedgen_lab.peers.oracle import ask_oracle, defended, noise_pictures, oracle_table
from fedgen_lab.peers.scenario import PeersScenario, deal, outsiders

SMALL = PeersScenario(num_peers=2, samples=64, pictures_per_peer=128, objective="qn")


def some_of_both(number, victim=0):
    members = deal(SMALL)[victim].train.as_tensor()[:number]
    return torch.cat([members, outsiders(SMALL).as_tensor()[:number]])


@pytest.mark.parametrize("times", [1, 3])
def test_the_oracle_reads_the_score_that_peers_give(times):
    candidates, fillers = some_of_both(2), noise_pictures(SMALL)[times:]
    drawn = [torch.cat([one.expand(times, -1, -1, -1), fillers]) for one in candidates]
    expected = [judge_samples(SMALL, None, each, deal(SMALL)[0])[0] for each in drawn]
    assert ask_oracle(SMALL, 0, candidates, times) == pytest.approx(expected, rel=1e-4)


def test_an_exact_vote_tells_members_from_others_and_the_defences_tell_less():
    table = oracle_table(SMALL, number=16).set_index("defence")["AUC"]
    assert table["exact vote"] > 0.8
    assert (
        table["Laplace noise, epsilon 0.5"]
        < table["Laplace noise, epsilon 8"]
        <= table["exact vote"] + 0.02
    )


def test_only_the_victim_of_a_picture_answers_for_it():
    of_first = some_of_both(12)
    own, other = ask_oracle(SMALL, 0, of_first), ask_oracle(SMALL, 1, of_first)
    assert np.median(own[:12]) > 5 * np.median(own[12:])
    assert np.median(other[:12]) < 2 * np.median(other[12:])


def test_the_best_of_vote_is_one_bit_and_coarse_rounding_none():
    members, others = np.array([30.0, 20.0, 1.0]), np.array([1.0, 2.0, 3.0])
    table = defended(
        members, others, reference=10.0, sensitivity=1.0, steps=(1.0, 1000.0), epsilons=(1.0,)
    )
    found = dict(zip(table["defence"], table["AUC"], strict=True))
    assert found["only which is better"] == pytest.approx((2 + 1 / 2) / 3)
    assert found["exact vote"] == pytest.approx((3 + 3 + 0.5) / 9)
    assert found["rounded to 1000"] == 0.5


def test_the_noise_is_as_wide_as_one_picture_counts():
    """At the sensitivity of Q-N, one matched picture drowns at a small epsilon and stands out at a large one."""
    jump = sensitivity_of(SMALL)
    members, others = np.full(40, 10.0 + jump), np.full(40, 10.0)
    found = defended(members, others, 10.0, jump, epsilons=(0.1, 100.0)).set_index("defence")["AUC"]
    assert found["Laplace noise, epsilon 0.1"] < 0.6 and found["Laplace noise, epsilon 100"] > 0.99


def test_the_same_scenario_draws_the_same_fillers_and_noise():
    assert torch.equal(noise_pictures(SMALL), noise_pictures(SMALL))
    first, again = (defended(np.arange(9.0), np.arange(9.0), 4.0, 1.0) for _ in range(2))
    assert first.equals(again)


@pytest.mark.parametrize(
    "wrong", [{"victim": 9}, {"victim": -1}, {"times": 0}, {"times": 65}], ids=str
)
def test_a_wrong_question_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ask_oracle(SMALL, **{"victim": 0, "candidates": some_of_both(1)} | wrong)
