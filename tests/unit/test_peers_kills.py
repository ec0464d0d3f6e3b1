"""A peer's process that dies at every point in turn at which something is sent or written down.

The chain is the ledger and training costs nothing here; the process is the real one, from its command line on.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fedgen_lab.peers import peer as peer_room
from fedgen_lab.peers import process
from fedgen_lab.peers.chain import Refused, Terms
from fedgen_lab.peers.ledger import Ledger
from fedgen_lab.peers.manifest import read_manifest
from fedgen_lab.peers.peer import Pace, Peer
from fedgen_lab.peers.scenario import PeersScenario
from fedgen_lab.peers.store import Folder, cid_of

KNOBS = {"num_peers": 2, "steps": 2, "samples": 64, "pictures_per_peer": 128, "width": 8, "objective": "qn"}
SCENARIO = PeersScenario(**KNOBS)
METHODS = ("register", "submit", "commit", "reveal")
FREE = Pace(0, 0, 0, 0)


class Killed(BaseException):
    """The process ends here; nobody catches it."""


class Node(Ledger):
    """A ledger whose transactions may be on their way while their sender dies."""

    def __init__(self):
        super().__init__(3, Terms(commit_blocks=6))
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


def start(tmp_path, monkeypatch, turns=2):
    """Peer 0 as a process, in this one."""
    command = ["0", "--endpoint", "here", "--contract", "0x", "--store", f"{tmp_path}/store", "--turns", str(turns)]
    knobs = [part for knob, value in KNOBS.items() for part in ("--set", f"{knob}={value}")]
    monkeypatch.setattr(sys, "argv", ["process", *command, "--folder", f"{tmp_path}/peer", *knobs])
    process.main()


def other_models(node, tmp_path, turns=2):
    """Peer 1 submits its models and is away from then on."""
    life = Peer(1, SCENARIO, node, Folder(tmp_path / "store"), FREE, account=node.accounts[2]).life(until=turns)
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
        (event.kind, event.account, sorted((k, v) for k, v in event.values.items() if k != "manifest"))
        for event in node.events()[0]
    ]
    return sorted(told, key=str)


WHEN = {
    "before it is sent": 7, "on its way": 7, "in a block": 7, "before a file is written": 17,
    "half a file is written": 8, "a file is written": 17,
}  # fmt: skip


@pytest.mark.parametrize("forgets", [False, True], ids=["judgements kept", "judgements lost"])
@pytest.mark.parametrize(("when", "at_least"), WHEN.items(), ids=WHEN)
def test_a_peer_that_dies_at_every_point_does_nothing_twice(node, tmp_path, monkeypatch, when, at_least, forgets):
    whole = Node()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "Chain", lambda *_, **__: whole)
        patch.setattr(process.time, "sleep", lambda _: whole.wait_blocks(1))
        other_models(whole, tmp_path / "whole")
        start(tmp_path / "whole", patch)
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
