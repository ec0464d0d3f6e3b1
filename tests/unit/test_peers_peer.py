"""Peers on one clock: who did what is the same every time, and a crash loses nothing and does nothing twice."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedgen_lab.memorization.ddpm import weights
from fedgen_lab.peers.attackers import ATTACKS
from fedgen_lab.peers.chain import MOST_SCORE, Chain, Terms
from fedgen_lab.peers.ledger import Ledger
from fedgen_lab.peers.manifest import read_manifest, training_facts
from fedgen_lab.peers.peer import Pace, Peer, start_model
from fedgen_lab.peers.run import paces, run_peers, terms_of
from fedgen_lab.peers.scenario import PeersScenario, deal, outsiders
from fedgen_lab.peers.store import Shelf, cid_of, unpack_weights

pytestmark = pytest.mark.usefixtures("quickly_drawn")
TINY = PeersScenario(
    num_peers=2,
    seconds=4,
    steps=2,
    samples=64,
    pictures_per_peer=128,
    width=8,
    side=14,
    objective="fld-fid",
)
QUICK = replace(TINY, objective="qn")  # judged in half the time, where it doesn't matter by what
PACE = Pace(1e-9, 1e-9, 1.0, 0.001)


@pytest.fixture(scope="module")
def known():
    """What peers trained and judged, for runs of the same seed that differ in what their attackers do."""
    return {}


@pytest.fixture(scope="module")
def known_to_two():
    """The same for two peers, whose pictures are dealt in another way."""
    return {}


@pytest.fixture(scope="module")
def outcome():
    return run_peers(TINY)


def test_the_same_scenario_gives_the_same_models_and_votes(outcome):
    again = run_peers(TINY)
    assert again.models().equals(outcome.models()) and len(again.models()) >= 3
    assert again.votes().equals(outcome.votes())
    assert set(outcome.models()["author"]) == {0, 1}


def test_a_chain_and_a_ledger_tell_the_same_story(outcome):
    there = run_peers(TINY, chain=Chain(terms=terms_of(TINY)))
    assert there.models()["parents"].tolist() == outcome.models()["parents"].tolist()
    # accounts differ, and with them the wallets in the manifests, but not the weights
    assert there.models()["cid"].tolist() == outcome.models()["cid"].tolist()
    assert there.votes().equals(outcome.votes())


def test_every_model_on_the_chain_can_be_fetched_and_was_trained_by_who_says_so(outcome):
    like = weights(start_model(TINY))
    for content in outcome.models()["content"]:
        submission = outcome.chain.model(content)
        facts = training_facts(
            read_manifest(outcome.store.get(cid_of(submission.manifest)), submission)
        )
        assert facts["steps"] == 2 and facts["pictures"] == 64
        unpack_weights(cid_of(content), outcome.store.get(cid_of(content)), like)


def test_peers_vote_on_each_others_models_and_not_on_their_own(outcome):
    votes, models = outcome.votes(), outcome.models()
    for row, author in enumerate(models["author"]):
        assert votes[author].isna()[row]
    assert votes.notna().sum().sum() >= 2


def test_peers_go_on_from_a_model_that_was_there(outcome):
    for row, parents in enumerate(outcome.models()["parents"]):
        assert all(parent < row for parent in parents)
    assert any(outcome.models()["parents"])


@pytest.mark.parametrize(
    "score", [float("nan"), float("inf"), 2 * MOST_SCORE], ids=["NaN", "infinite", "too large"]
)
def test_a_score_that_no_vote_can_say_is_the_worst_there_is_and_ends_nobody(monkeypatch, score):
    monkeypatch.setattr("fedgen_lab.peers.peer.judge_samples", lambda *_: (score, ()))
    votes = run_peers(replace(QUICK, steps=1)).votes().to_numpy()
    assert (votes[~np.isnan(votes)] == MOST_SCORE).all() and not np.isnan(votes).all()


def one_peer(chain, store, folder=None):
    return Peer(0, replace(QUICK, num_peers=1), chain, store, PACE, folder=folder)


@pytest.mark.parametrize("cached", [False, True], ids=["nothing kept", "judgements kept"])
def test_a_peer_that_crashes_again_and_again_submits_the_same_models_once(tmp_path, cached):
    folder, crash_after = (
        (tmp_path, 3) if cached else (None, 7)
    )  # who keeps nothing must live to judge again

    def submitted(crash_after):
        chain, store = Ledger(2, Terms(commit_blocks=2)), Shelf()
        for lived in range(30):
            peer = one_peer(chain, store, folder)
            for number, (what, _) in enumerate(peer.life(until=3)):
                if what == "wait":
                    return chain, store
                if number >= crash_after + lived % 2:  # the object is dropped; chain and store stay
                    break
        raise AssertionError("it never got three models done")

    whole, _ = submitted(crash_after=1000)
    broken, store = submitted(crash_after)
    assert broken.models() == whole.models() and len(whole.models()) == 3
    assert all(store.get(cid_of(content)) for content in broken.models())
    assert [event.kind for event in broken.events()[0]].count("Registered") == 1


def test_a_crash_between_a_promise_and_its_reveal_forgets_no_vote():
    scenario = replace(TINY, objective="qn", vote_epsilon=2.0)
    chain, store = Ledger(3, Terms(commit_blocks=3)), Shelf()

    def peer(number):
        return Peer(number, scenario, chain, store, PACE)

    author = peer(0).life(until=1)
    while next(author)[0] != "wait":
        pass
    voter = peer(1)
    chain.register(voter.account)
    for _ in voter.look():
        pass
    content = chain.models()[0]
    promised = voter.vote_on(content)
    assert (
        chain.vote(content, voter.account) == "committed"
        and promised != voter.judged[content]["score"]
    )
    chain.wait_blocks(3)
    again = peer(1)  # it knows nothing but its key
    for _ in again.look():
        pass
    assert chain.vote(content, again.account) == pytest.approx(promised, abs=1e-6)


def test_a_damaged_model_costs_that_model_only(outcome):
    chain, store = Ledger(3, Terms(commit_blocks=50)), Shelf()
    author = Peer(0, TINY, chain, store, PACE).life(until=2)
    while next(author)[0] != "wait":
        pass
    first, second = chain.models()
    store.kept[cid_of(first)] = store.kept[cid_of(first)][:-1]
    reader = Peer(1, TINY, chain, store, PACE)
    chain.register(reader.account)
    for _ in reader.look():
        pass
    assert set(reader.refused) == {first} and "is damaged" in reader.refused[first]
    assert set(reader.judged) == {second} and reader.choose()[0] == (second,)
    del store.kept[cid_of(second)]  # and withheld after it was judged
    assert reader.choose()[0] == () and "withheld" in reader.refused[second]


@pytest.mark.parametrize("choice", ["soup", "fedasync"])
def test_other_ways_to_go_on(choice, known_to_two):
    outcome = run_peers(replace(QUICK, choice=choice, soup_of=2), known=known_to_two)
    parents = outcome.models()["parents"].tolist()
    assert max(map(len, parents)) == (2 if choice == "soup" else 1)
    assert not any(peer.refused for peer in outcome.peers)


@pytest.mark.parametrize("attack", ATTACKS)
def test_attackers_do_what_they_are_called_after(attack, known):
    scenario = replace(QUICK, num_peers=3, attackers=1, attack=attack, seconds=2.5)
    outcome = run_peers(scenario, known=known)
    models, attacker = outcome.models(), outcome.peers[2]
    theirs = models[models["author"] == 2]
    assert len(theirs) and not outcome.stopped
    if attack == "withholder":
        honest = outcome.peers[0]
        assert honest.refused and set(honest.refused) <= set(theirs["content"])
        assert all("withheld" in reason for reason in honest.refused.values())
    if attack == "copycat":
        assert not any(theirs["parents"])
    if attack in ("free-rider", "copycat"):
        base = weights(start_model(scenario))
        state, _ = attacker.reader.fetch(theirs["content"].iloc[0])
        assert max((state[name] - base[name]).abs().max() for name in base) < 1e-3
    if attack == "sybils":
        votes = outcome.votes()[2].dropna()
        assert len(votes) and (votes > 100).all()  # there is no second attacker to vote for


def test_half_time_comers_and_goers(known):
    outcome = run_peers(replace(QUICK, num_peers=3, late=1, leavers=1, seconds=5), known=known)
    models = outcome.models()
    assert models[models["author"] == 2]["seconds"].min() > 2.5
    assert models[models["author"] == 0]["seconds"].max() < 5


def test_a_stop_keeps_what_is_on_the_chain(known_to_two):
    asked = []
    outcome = run_peers(
        QUICK, should_stop=lambda: asked.append(1) or len(asked) > 12, known=known_to_two
    )
    assert outcome.stopped and 0 < len(outcome.models()) < 4


def test_a_slow_link_shows_in_the_pace():
    slow, fast = paces(replace(TINY, bandwidth_hz=1e5))[0], paces(TINY)[0]
    assert slow.upload > 5 * fast.upload and slow.step == fast.step


def test_nobody_holds_a_picture_twice_or_an_outsiders():
    for skew in (0.0, 1.0):
        scenario = replace(TINY, skew=skew, num_peers=8, pictures_per_peer=160)
        for holding in deal(scenario):
            seen = torch.cat([holding.train.images, holding.held_out.images]).flatten(1)
            assert len(torch.unique(seen, dim=0)) == len(seen) >= 128
    others = outsiders(TINY).images.flatten(1)
    mine = deal(TINY)[0].train.images.flatten(1)
    assert not any((others == one).all(1).any() for one in mine)


KNOBS = {
    "num_peers": 0,
    "skew": 1.5,
    "seconds": float("nan"),
    "objective": "best",
    "vote_rule": "loudest",
    "late": 2,
    "samples": 5,
    "soup_of": 9,
    "vote_epsilon": 1.0,
}


@pytest.mark.parametrize(("knob", "value"), KNOBS.items(), ids=KNOBS)
def test_a_knob_out_of_range_is_named(knob, value):
    with pytest.raises(ValueError, match=f"^{knob} must"):
        replace(TINY, **{knob: value})


def test_an_unknown_attack_is_named():
    with pytest.raises(ValueError, match="attack must be one of free-rider"):
        run_peers(replace(TINY, attackers=1, attack="magic"))
