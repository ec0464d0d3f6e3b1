"""A peer's process: it dies at every point where something is sent or written down; keys, judgements, lost causes.

The chain is the ledger and training costs nothing here; the process is the real one, from its command line on.
"""

import json
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fedgen_lab.memorization.ddpm import weights
from fedgen_lab.peers import peer as peer_room
from fedgen_lab.peers import process
from fedgen_lab.peers.chain import Chain, Refused, Terms
from fedgen_lab.peers.ledger import Ledger
from fedgen_lab.peers.manifest import new_key, read_manifest
from fedgen_lab.peers.peer import Pace, Peer
from fedgen_lab.peers.scenario import PeersScenario
from fedgen_lab.peers.store import Folder, Shelf, cid_of, digest_of, pack_weights

KNOBS = {
    "num_peers": 2,
    "steps": 2,
    "samples": 64,
    "pictures_per_peer": 128,
    "width": 8,
    "objective": "qn",
}
SCENARIO = PeersScenario(**KNOBS)
METHODS = ("register", "submit", "commit", "reveal")
FREE = Pace(0, 0, 0, 0)


class Killed(BaseException):
    """The process ends here; nobody catches it."""


class Node(Ledger):
    """A ledger whose transactions may be on their way while their sender dies."""

    def __init__(self, budget=100.0):
        super().__init__(3, Terms(commit_blocks=6, budget=budget))
        self.on_their_way, self.refusals = [], []

    def wait_for_own(self, account):
        while self.on_their_way:
            self.on_their_way.pop(0)()


@pytest.fixture
def node():
    return Node()


@pytest.fixture(autouse=True)
def cheap(monkeypatch, node):
    """Training adds noise, judging reads one weight, a wait is a block, and the process finds this node."""

    def train(model, images, labels, steps, batch_size, rate, seed, on_step=None):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in model.unet.parameters():
                tensor += 1e-3 * torch.randn(tensor.shape, generator=generator)

    def judge(scenario, model, drawn, holding):
        return float(next(model.unet.parameters()).detach().abs().sum()), [0, 1]

    monkeypatch.setattr(peer_room, "train_ddpm", train)
    monkeypatch.setattr(peer_room, "draw_samples", lambda *_: torch.zeros(1))
    monkeypatch.setattr(peer_room, "judge_samples", judge)
    monkeypatch.setattr(process, "Chain", lambda *_, **__: node)
    monkeypatch.setattr(process, "paces", lambda _: [FREE] * 2)
    clock = SimpleNamespace(monotonic=lambda: node.block(), sleep=lambda _: node.wait_blocks(1))
    monkeypatch.setattr(process, "time", clock)


def start(tmp_path, monkeypatch, turns=2, **knobs):
    """Peer 0 as a process, in this one."""
    command = [
        "0",
        "--endpoint",
        "here",
        "--contract",
        "0x",
        "--store",
        f"{tmp_path}/store",
        "--turns",
        str(turns),
    ]
    knobs = [
        part for knob, value in (KNOBS | knobs).items() for part in ("--set", f"{knob}={value}")
    ]
    monkeypatch.setattr(sys, "argv", ["process", *command, "--folder", f"{tmp_path}/peer", *knobs])
    process.main()


def other_models(node, tmp_path, turns=2):
    """Peer 1 submits its models and is away from then on."""
    life = Peer(1, SCENARIO, node, Folder(tmp_path / "store"), FREE, account=node.accounts[2]).life(
        until=turns
    )
    while next(life)[0] != "wait":
        pass


def deadly(node, monkeypatch, when):
    """Who does one of these things dies of it, the first time: returns the list of what was died of."""
    died = []

    def once(*what):
        if what not in died:
            died.append(what)
            raise Killed

    def sending(method):
        real = getattr(node, method)

        def send(account, *arguments, **more):
            what = method, *arguments[:1]
            if when == "before it is sent":
                once(*what)
            if when == "on its way" and what not in died:
                node.on_their_way.append(lambda: real(account, *arguments, **more))
                once(*what)
            node.wait_for_own(account)  # what was sent before comes first
            try:
                real(account, *arguments, **more)
            except Refused as reason:
                node.refusals.append(str(reason))
                raise
            if when == "in a block":
                once(*what)

        return send

    def writing(real):
        def write(path, *arguments):
            size = path.stat().st_size if real.__name__ == "replace" else len(arguments[0])
            what = real.__name__, path.name, size
            if when == "before a file is written":
                once(*what)
            if when == "half a file is written" and real.__name__ != "replace" and what not in died:
                real(path, arguments[0][: size // 2])
                once(*what)
            done = real(path, *arguments)
            if when == "a file is written":
                once(*what)
            return done

        return write

    for method in METHODS:
        monkeypatch.setattr(node, method, sending(method))
    for name in ("write_text", "write_bytes", "replace"):
        monkeypatch.setattr(Path, name, writing(getattr(Path, name)))
    return died


def story(node):
    """All that happened, but for blocks (who starts anew looks once more) and manifests (each peer has its own key)."""
    told = [
        (
            event.kind,
            event.account,
            sorted((k, v) for k, v in event.values.items() if k != "manifest"),
        )
        for event in node.events()[0]
    ]
    return sorted(told, key=str)


WHEN = {
    "before it is sent": 7,
    "on its way": 7,
    "in a block": 7,
    "before a file is written": 17,
    "half a file is written": 8,
    "a file is written": 17,
}


@lru_cache
def undisturbed(folder):
    """The node of a peer that never dies; what a test compares with. It is played once."""
    whole = Node()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "Chain", lambda *_, **__: whole)
        patch.setattr(process.time, "sleep", lambda _: whole.wait_blocks(1))
        other_models(whole, folder)
        start(folder, patch)
    return whole


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("whole")


@pytest.mark.parametrize("forgets", [False, True], ids=["judgements kept", "judgements lost"])
@pytest.mark.parametrize(("when", "at_least"), WHEN.items(), ids=WHEN)
def test_a_peer_that_dies_at_every_point_does_nothing_twice(
    node, folder, tmp_path, monkeypatch, when, at_least, forgets
):
    whole = undisturbed(folder)
    other_models(node, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        died, lives = deadly(node, patch, when), 0
        while True:
            lives += 1
            assert lives < 100, died
            try:
                start(tmp_path, monkeypatch)
                break
            except Killed:
                for judged in (tmp_path / "peer").glob("judged*.json") if forgets else ():
                    judged.unlink()
    assert len(died) >= at_least and lives == len(died) + 1
    assert story(node) == story(whole) and node.refusals == []
    assert node.models() == whole.models() and len(node.models()) == 4
    assert sum(kind == "Revealed" for kind, *_ in story(node)) == 2
    store = Folder(tmp_path / "store")
    for content in node.models():
        store.get(cid_of(content))
        read_manifest(store.get(cid_of(node.model(content).manifest)), node.model(content))


def test_a_process_signs_with_a_key_of_its_own_that_stays(node, tmp_path, monkeypatch):
    start(tmp_path, monkeypatch, turns=1, num_peers=1)
    file, store = tmp_path / "peer" / "key", Folder(tmp_path / "store")
    kept = file.read_bytes()
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    start(tmp_path, monkeypatch, turns=2, num_peers=1)
    assert file.read_bytes() == kept and len(node.models()) == 2
    own = process.own_key(tmp_path / "peer").public_key().public_bytes_raw().hex()
    guessed = new_key(SCENARIO.seed_of(1, 0)).public_key().public_bytes_raw().hex()
    signed = [
        json.loads(store.get(cid_of(node.model(content).manifest))) for content in node.models()
    ]
    assert [one["signature"]["public_key"] for one in signed] == [own, own] and own != guessed
    start(tmp_path / "other", monkeypatch, turns=1, num_peers=1)
    assert (tmp_path / "other" / "peer" / "key").read_bytes() != kept
    file.write_bytes(kept[:-1])
    with pytest.raises(SystemExit, match=f"{file} holds 31 bytes, no key of 32"):
        start(tmp_path, monkeypatch, num_peers=1)


def test_a_process_must_be_given_a_folder(monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["process", "0", "--endpoint", "here", "--contract", "0x", "--store", "models"]
    )
    with pytest.raises(SystemExit, match="2"):
        process.main()
    assert "required: --folder" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["environment", "argument"])
def test_a_process_sends_from_the_account_whose_key_it_is_given(tmp_path, monkeypatch, capsys, how):
    there, key = Chain(terms=Terms()), "0x" + "44" * 32
    owner = there.w3.eth.account.from_key(key).address
    there.w3.eth.send_transaction({"from": there.accounts[0], "to": owner, "value": 10**18})
    monkeypatch.setattr(
        "web3.EthereumTesterProvider", lambda: there.w3.provider
    )  # the same machine, joined again
    monkeypatch.setattr(
        process, "Chain", lambda _, __, keys: Chain(contract=there.address, keys=keys)
    )
    command = [
        "0",
        "--endpoint",
        "here",
        "--contract",
        "0x",
        "--store",
        f"{tmp_path}",
        "--folder",
        f"{tmp_path}/peer",
    ]
    if how == "environment":
        monkeypatch.setenv("PEER_KEY", key)
    else:
        command += ["--key", key]
    knobs = [
        part
        for knob, value in (KNOBS | {"num_peers": 1}).items()
        for part in ("--set", f"{knob}={value}")
    ]
    monkeypatch.setattr(sys, "argv", ["process", *command, *knobs])
    process.main()
    assert [there.model(content).author for content in there.models()] == [owner]
    assert key[2:] not in capsys.readouterr().out


def test_what_was_judged_before_a_crash_is_not_judged_again(node, tmp_path, monkeypatch):
    """Judging here never gives the same score twice, so a vote that stays the same was remembered."""
    scores = {}

    def judge(scenario, model, drawn, holding):
        content = digest_of(pack_weights(weights(model)))
        scores.setdefault(content, []).append(1.0 + sum(map(len, scores.values())))
        return scores[content][-1], [0]

    monkeypatch.setattr(peer_room, "judge_samples", judge)
    other_models(node, tmp_path)
    theirs = node.models()
    scores.clear()
    for when in ("before it is sent", "in a block"):
        with pytest.MonkeyPatch.context() as patch:
            died = deadly(node, patch, when)
            while not died or died[-1][0] != "reveal":
                with pytest.raises(Killed):
                    start(tmp_path, monkeypatch)
    start(tmp_path, monkeypatch)
    assert len(scores) == 4 and all(len(given) == 1 for given in scores.values())
    assert [node.vote(content, node.accounts[1]) for content in theirs] == [
        scores[content][0] for content in theirs
    ]
    assert node.refusals == []


def promised_and_forgot(node, tmp_path, monkeypatch):
    """Peer 0 died when its vote was due, and its judgements are gone."""
    other_models(node, tmp_path, turns=1)
    with pytest.MonkeyPatch.context() as patch:
        died = deadly(node, patch, "before it is sent")
        while not died or died[-1][0] != "reveal":
            with pytest.raises(Killed):
                start(tmp_path, monkeypatch, turns=1)
    next((tmp_path / "peer").glob("judged*.json")).unlink()


def test_a_vote_that_can_not_be_revealed_any_more_is_tried_once(
    node, tmp_path, monkeypatch, capsys
):
    promised_and_forgot(node, tmp_path, monkeypatch)
    monkeypatch.setattr(
        peer_room, "judge_samples", lambda *_: (0.5, [])
    )  # another machine: other digits
    start(tmp_path, monkeypatch, turns=1)
    assert capsys.readouterr().out.count("reveal: not what was committed") == 1


@pytest.mark.parametrize("comes_back", [False, True])
def test_a_vote_on_a_model_that_is_withheld_is_given_up(
    node, tmp_path, monkeypatch, capsys, comes_back
):
    promised_and_forgot(node, tmp_path, monkeypatch)
    content = next(
        content for content in node.models() if node.model(content).author == node.accounts[2]
    )
    model = tmp_path / "store" / cid_of(content)
    data, begun = model.read_bytes(), node.block()
    model.unlink()

    def sleep(_):
        node.wait_blocks(1)
        if comes_back and node.block() == begun + 30:  # a block is a second here
            model.write_bytes(data)

    monkeypatch.setattr(process.time, "sleep", sleep)
    start(tmp_path, monkeypatch, turns=1)
    told = capsys.readouterr().out
    assert told.count(f"gave up what it promised to vote on: nobody offers {model.name}") == (
        not comes_back
    )
    assert node.block() - begun < (40 if comes_back else 80)
    revealed = [
        event
        for event in node.events()[0]
        if (event.kind, event.account) == ("Revealed", node.accounts[1])
    ]
    assert len(revealed) == comes_back and node.refusals == []


def test_a_voter_whose_budget_is_spent_says_so_once_and_goes_on(
    node, tmp_path, monkeypatch, capsys
):
    poor = Node(budget=1.5)
    monkeypatch.setattr(process, "Chain", lambda *_, **__: poor)
    monkeypatch.setattr(process.time, "sleep", lambda _: poor.wait_blocks(1))
    other_models(poor, tmp_path, turns=3)
    with pytest.MonkeyPatch.context() as patch:
        deadly(poor, patch, "never")  # notes what is refused
        start(tmp_path, monkeypatch, turns=3)
    told = capsys.readouterr().out
    assert (
        told.count("the privacy budget is spent: 0.5 is left and a vote takes 1.") == 1
        and poor.refusals == []
    )
    kinds = [event.kind for event in poor.events()[0] if event.account == poor.accounts[1]]
    assert (
        kinds.count("Committed") == kinds.count("Revealed") == 1 and kinds.count("Submitted") == 3
    )


def test_a_budget_is_spent_to_its_last_millionth(node):
    full, third = Node(budget=0.666666), replace(SCENARIO, vote_epsilon=1 / 3)
    voter = Peer(0, third, full, Shelf(), FREE, account=full.accounts[1])
    for account in full.accounts[1:]:
        full.register(account)
    for number in (b"a", b"b", b"c"):
        full.submit(full.accounts[2], number * 32, b"m" + number * 31)
        voter.judged[number * 32] = {"score": 1.0, "hits": []}
    for _ in voter.look():
        pass
    assert voter.promised == {b"a" * 32, b"b" * 32} and len(voter.log) == 1


@pytest.mark.parametrize("stolen", ["content", "manifest"])
def test_a_peer_whose_digest_was_taken_gives_that_model_up(
    node, tmp_path, monkeypatch, capsys, stolen
):
    """A withholder who sees the peer's submission before it is in a block makes it first."""
    thief, real, thefts = node.accounts[2], node.submit, []
    node.register(thief)

    def submit(account, content, manifest, parents=()):
        thefts.append(content)
        assert len(thefts) < 9, "it tries the same again and again"
        if len(thefts) == 1:
            real(thief, *((content, b"z" * 32) if stolen == "content" else (b"z" * 32, manifest)))
        real(account, content, manifest, parents)

    monkeypatch.setattr(node, "submit", submit)
    real(thief, b"x" * 32, b"y" * 32)
    for _ in range(2):  # and once more, when all is done
        start(tmp_path, monkeypatch)
        authors = [node.model(content).author for content in node.models()]
        assert authors.count(node.accounts[1]) == 2 and len(authors) == 4
    told = capsys.readouterr().out
    assert (
        told.count(
            f"this {stolen} was submitted before. Gave up {cid_of(thefts[0])}; trains another."
        )
        == 1
    )
    assert told.count("submitted before") == 1 and told.count("train,") == 3
