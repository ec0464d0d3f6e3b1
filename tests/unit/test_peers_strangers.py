"""A chain is open to all: what strangers submit, withhold and vote costs nobody more than the model it is about."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedgen_lab.memorization.ddpm import weights
from fedgen_lab.peers import peer as peer_room
from fedgen_lab.peers.chain import Chain, Terms
from fedgen_lab.peers.ledger import Ledger
from fedgen_lab.peers.manifest import new_key, write_manifest
from fedgen_lab.peers.objectives import sensitivity_of
from fedgen_lab.peers.peer import Pace, Peer, start_model
from fedgen_lab.peers.reader import RECENT, Reader
from fedgen_lab.peers.run import run_peers, terms_of
from fedgen_lab.peers.scenario import PeersScenario
from fedgen_lab.peers.store import Shelf, cid_of, digest_of, pack_weights
from fedgen_lab.peers.tally import rewards_of
from fedgen_lab.peers.votes import merge_async

TINY = PeersScenario(
    num_peers=2,
    seconds=4,
    steps=2,
    samples=64,
    pictures_per_peer=128,
    width=8,
    objective="qn",
    commit_blocks=20,
)
PACE = Pace(1e-9, 1e-9, 1.0, 0.001)
SALT = b"s" * 32


@pytest.fixture
def cheap(monkeypatch):
    """A score is a number that follows from the model, training adds noise."""

    def train(model, *arguments, seed, **more):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in model.unet.parameters():
                weight.add_(1e-3 * torch.randn(weight.shape, generator=generator))

    monkeypatch.setattr(peer_room, "train_ddpm", train)
    monkeypatch.setattr(
        peer_room, "draw_samples", lambda scenario, model, content: torch.tensor(content[0] + 1.0)
    )
    monkeypatch.setattr(
        peer_room, "judge_samples", lambda scenario, model, drawn, holding: (float(drawn), [])
    )


def blown_up(state):
    """Finite, in canonical form, and nothing that training can go on from."""
    return {name: tensor * (1e19 if "conv_out" in name else 1.0) for name, tensor in state.items()}


class Stranger:
    """An account that no peer has, on a chain and a store of its own making."""

    def __init__(self, scenario=TINY, chain=None, commit_blocks=20):
        self.scenario = scenario
        self.chain = chain or Ledger(scenario.voters + 2, Terms(commit_blocks=commit_blocks))
        self.store, self.account, self.start = (
            Shelf(),
            self.chain.accounts[scenario.voters + 1],
            None,
        )
        self.start = weights(start_model(scenario))
        self.chain.register(self.account)

    def submits(self, number=0, change=lambda state: state, offered=True):
        """Another model each number; returns its content, its weights and its manifest."""
        state = change({name: tensor + 1e-3 * number for name, tensor in self.start.items()})
        data = pack_weights(state)
        manifest = write_manifest(new_key(7), self.account, digest_of(data), (), {"steps": number})
        if offered:
            self.offers(data, manifest)
        self.chain.submit(self.account, digest_of(data), digest_of(manifest))
        return digest_of(data), data, manifest

    def offers(self, *what):
        for data in what:
            self.store.put(data)

    def meets(self, number=0):
        """Peer `number`, registered."""
        peer = Peer(number, self.scenario, self.chain, self.store, PACE)
        if not self.chain.participant(peer.account)["registered"]:
            self.chain.register(peer.account)
        return peer


def look(peer):
    return [what for what, _ in peer.look()]


def live(peer, until):
    for what, _ in peer.life(until=until):
        if what == "wait":
            return


def test_what_is_revealed_takes_the_noise_off_no_vote(cheap):
    scenario = replace(TINY, vote_epsilon=0.5)
    stranger = Stranger(scenario, Chain(terms=Terms(commit_blocks=2)))
    content, *_ = stranger.submits()
    peer = stranger.meets()
    look(peer)
    told = peer.vote_on(content)
    stranger.chain.wait_blocks(3)
    again = stranger.meets()  # it was killed, and knows nothing but its key
    look(again)
    assert stranger.chain.vote(content, peer.account) == pytest.approx(told, abs=1e-6)
    chain, salts = stranger.chain, []
    for number in range(chain.block() + 1):
        for sent in chain.w3.eth.get_block(number, True).transactions:
            if sent.to == chain.address:
                method, values = chain.contract.decode_function_input(
                    sent.get("input") or sent.get("data")
                )
                salts += [values["salt"]] if method.fn_name == "reveal" else []
    exact, scale = peer.judged[content]["score"], sensitivity_of(scenario) / 0.5
    assert len(salts) == 1 and told != exact
    for seed in (salts[0][:8], salts[0]):
        noise = np.random.default_rng(int.from_bytes(seed, "big")).laplace(scale=scale)
        assert max(0.0, exact + noise) != pytest.approx(told, abs=1e-6)


def test_on_another_contract_a_peer_has_other_salts_and_other_noise():
    one, other = (Stranger(chain=Chain(terms=Terms())).meets() for _ in range(2))
    other.chain.address = one.chain.address[:-1] + ("0" if one.chain.address[-1] != "0" else "1")
    secrets = {
        peer._secret(purpose, bytes(32)) for peer in (one, other) for purpose in (b"salt", b"noise")
    }
    assert len(secrets) == 4 and all(len(secret) == 32 for secret in secrets)


@pytest.mark.parametrize("choice", ["best", "soup", "fedasync"])
def test_a_model_that_cannot_be_trained_on_costs_itself_only(choice, monkeypatch):
    scenario = replace(TINY, choice=choice)
    stranger = Stranger(scenario)
    good, *_ = stranger.submits(1)
    bomb, *_ = stranger.submits(2, blown_up)
    monkeypatch.setattr(
        peer_room,
        "draw_samples",
        lambda scenario, model, content: torch.tensor(float(content != bomb)),
    )
    monkeypatch.setattr(
        peer_room, "judge_samples", lambda scenario, model, drawn, holding: (float(drawn), [])
    )
    for _ in range(2):  # killed, and started anew
        peer = stranger.meets()
        live(peer, until=len(stranger.chain.models()) - 1)
        assert (
            set(peer.refused) == {bomb}
            and "can't be trained on (The loss became inf" in peer.refused[bomb]
        )
    newest = [stranger.chain.model(content) for content in stranger.chain.models()[2:]]
    assert len(newest) == 2 and newest[0].parents == (good,) and bomb not in newest[1].parents


def test_weights_that_are_not_finite_after_training_are_not_submitted(monkeypatch):
    def train(model, *arguments, **more):
        with torch.no_grad():
            next(model.unet.parameters()).fill_(float("inf"))

    monkeypatch.setattr(peer_room, "train_ddpm", train)
    monkeypatch.setattr(peer_room, "judge_samples", lambda *_: (1.0, []))
    stranger = Stranger()
    content, *_ = stranger.submits()
    peer = stranger.meets()
    with pytest.raises(
        ValueError, match="Trained weights are not finite"
    ):  # from its own start too
        live(peer, until=1)
    assert "can't be trained on" in peer.refused[content] and stranger.chain.models() == [content]


def test_fedasync_merges_nothing_that_was_refused_and_each_model_once(cheap, monkeypatch):
    stranger = Stranger(replace(TINY, choice="fedasync"))
    broken, *_ = stranger.submits(0)
    monkeypatch.setattr(
        peer_room,
        "draw_samples",
        lambda scenario, model, content: torch.tensor(float("nan") if content == broken else 1.0),
    )
    peer, states, state = stranger.meets(), [], stranger.start
    for number in (1, 2, 3):
        content, *_ = stranger.submits(number)
        look(peer)
        states.append(peer.reader.fetch(content)[0])
        parents, merged = peer.choose()
        state = merge_async(state, states[-1], number, stranger.scenario.staleness)
        assert parents == (content,) and all(
            torch.equal(merged[name], state[name]) for name in state
        )
    assert set(peer.refused) == {broken}
    fetched = []
    monkeypatch.setattr(peer.reader, "fetch", lambda content: fetched.append(content))
    assert peer.choose()[0] == (content,) and not fetched
    peer.refused[content] = "for a reason"
    monkeypatch.undo()
    assert peer.choose()[0] == (stranger.chain.models()[2],)  # made anew without it


@pytest.mark.parametrize("worthless", ["withheld", "damaged"])
def test_worthless_submissions_hide_no_honest_model(cheap, worthless):
    stranger = Stranger(commit_blocks=100)
    good, *_ = stranger.submits(0)
    for number in range(1, RECENT + 3):
        content, *_ = stranger.submits(number, offered=worthless == "damaged")
        if worthless == "damaged":
            stranger.store.kept[cid_of(content)] = b"else"
    peer = stranger.meets()
    assert look(peer) == ["fetch", "judge"]
    assert (
        set(peer.judged) == {good}
        and len(peer.refused) == RECENT + 2
        and peer.choose()[0] == (good,)
    )


def test_of_many_good_models_the_newest_are_judged(cheap):
    stranger = Stranger(commit_blocks=100)
    contents = [stranger.submits(number)[0] for number in range(RECENT + 2)]
    peer = stranger.meets()
    look(peer)
    assert list(peer.judged) == contents[2:]


def test_a_model_whose_content_comes_late_is_judged_and_voted_on(cheap):
    stranger = Stranger()
    content, *late = stranger.submits(offered=False)
    peer = stranger.meets()
    assert look(peer) == [] and "is withheld" in peer.refused[content] and peer.choose()[0] == ()
    stranger.offers(*late)
    assert look(peer) == []  # not at once again
    stranger.chain.wait_blocks(1)
    assert look(peer) == ["fetch", "judge"] and not peer.refused
    assert stranger.chain.vote(content, peer.account) == "committed" and peer.choose()[0] == (
        content,
    )


def test_a_withheld_model_is_asked_for_ever_less_and_a_damaged_one_once(cheap, monkeypatch):
    stranger = Stranger()
    withheld, *_ = stranger.submits(0, offered=False)
    damaged, *_ = stranger.submits(1)
    stranger.store.kept[cid_of(damaged)] = b"else"
    peer, asked, fetch = stranger.meets(), [], Reader.fetch
    monkeypatch.setattr(
        Reader, "fetch", lambda self, content: asked.append(content) or fetch(self, content)
    )
    first = stranger.chain.block()
    for _ in range(40):
        look(peer)
        stranger.chain.wait_blocks(1)
    assert asked.count(damaged) == 1
    assert asked.count(withheld) == 5, (
        "at once, then after 1, 2, 4 and 8 blocks; after 16 more the vote is closed"
    )
    assert stranger.chain.block() > first + 30


def test_strangers_votes_and_rewards_are_nobody_elses(cheap):
    scenario = replace(TINY, commit_blocks=4)
    stranger = Stranger(scenario, Ledger(4, terms_of(scenario)))
    content, *_ = stranger.submits()
    alone = rewards_of(run_peers(scenario))
    voted = []

    def on_moment(moment):
        for event in moment.events:
            if event.kind == "Submitted" and event.account != stranger.account and not voted:
                voted.append(event.values["content"])
                stranger.chain.commit(stranger.account, voted[0], 0.0, SALT)
        if (
            voted
            and len(voted) == 1
            and stranger.chain.block() > stranger.chain.model(voted[0]).block + 4
        ):
            stranger.chain.reveal(stranger.account, voted[0], 0.0, SALT)
            voted.append("revealed")

    outcome = run_peers(scenario, chain=stranger.chain, store=stranger.store, on_moment=on_moment)
    models, votes = outcome.models(), outcome.votes()
    assert voted[1:] == ["revealed"] and models["author"][0] == -1 and list(votes) == [0, 1]
    assert (votes.notna().sum(axis=1) <= 2).all() and votes.loc[0].notna().any()
    assert len(rewards_of(outcome)) == len(alone) == 2
    only = models["content"].eq(content)
    theirs = replace(
        outcome,
        moments=tuple(
            replace(
                moment, events=tuple(e for e in moment.events if e.values.get("content") == content)
            )
            for moment in outcome.moments
        ),
    )
    assert only.sum() == 1 and rewards_of(theirs).tolist() == [0, 0]


def test_a_leavers_deposit_comes_back_at_the_close(cheap):
    scenario = replace(TINY, leavers=1, seconds=6, commit_blocks=0)
    chain = Chain(terms=terms_of(scenario))
    outcome = run_peers(scenario, chain=chain)
    leaver, other = outcome.peers
    assert "leave: reveal your votes first" in leaver.log
    assert (
        not chain.participant(leaver.account)["registered"]
        and chain.participant(other.account)["registered"]
    )
    assert chain.balance(leaver.account) >= chain.terms.deposit_wei
