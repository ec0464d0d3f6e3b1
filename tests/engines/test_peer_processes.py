"""Peers as processes on a real Ethereum node: killed again and again, they lose nothing and submit nothing twice."""

import random
import subprocess
import sys
import time

import pytest

from fedgen_lab.memorization.ddpm import weights
from fedgen_lab.peers.chain import Chain, Terms
from fedgen_lab.peers.manifest import read_manifest
from fedgen_lab.peers.peer import start_model
from fedgen_lab.peers.scenario import PeersScenario
from fedgen_lab.peers.store import Folder, cid_of, unpack_weights

TURNS = 2
KNOBS = {
    "num_peers": 2, "steps": 2, "samples": 64, "pictures_per_peer": 128, "width": 8, "objective": "fld-fid",
}  # fmt: skip


@pytest.fixture
def node(start_anvil):
    """Address of an anvil that makes a block a second."""
    return start_anvil("--block-time", "1")


def test_peers_that_are_killed_at_random_submit_everything_once(node, tmp_path):
    chain, store = Chain(node, terms=Terms(commit_blocks=8)), Folder(tmp_path / "store")
    settings = [part for knob, value in KNOBS.items() for part in ("--set", f"{knob}={value}")]

    def start(number):
        log = open(tmp_path / f"peer{number}.log", "ab")
        command = [
            sys.executable, "-m", "fedgen_lab.peers.process", str(number), "--endpoint", node,
            "--contract", chain.address, "--store", str(store.path), "--folder", str(tmp_path / f"peer{number}"),
            "--turns", str(TURNS), *settings,
        ]  # fmt: skip
        return subprocess.Popen(command, stdout=log, stderr=log)

    peers, rng, kills = [start(0), start(1)], random.Random(0), 0
    end = time.monotonic() + 600
    try:
        while any(peer.poll() is None for peer in peers):
            if time.monotonic() > end:  # a guard against hanging, no claim about speed
                pytest.fail("the peers did not come to an end")
            time.sleep(rng.uniform(0.5, 1.5))
            number = rng.randrange(2)
            began = (tmp_path / f"peer{number}.log").stat().st_size > 0  # past its imports
            if kills < 4 and began and peers[number].poll() is None:
                peers[number].kill()
                peers[number].wait()
                (tmp_path / f"peer{number}.log").write_bytes(b"")
                peers[number], kills = start(number), kills + 1
    finally:
        for peer in peers:
            peer.kill()
    logs = "\n".join((tmp_path / f"peer{number}.log").read_text() for number in (0, 1))
    assert [peer.returncode for peer in peers] == [0, 0], logs
    assert kills >= 2
    models, like = chain.models(), weights(start_model(PeersScenario(**KNOBS)))
    authors = [chain.model(content).author for content in models]
    assert sorted(authors) == sorted(TURNS * chain.accounts[1:3]), "each peer's turns, no more and no less"
    for content in models:
        submission = chain.model(content)
        read_manifest(store.get(cid_of(submission.manifest)), submission)
        unpack_weights(cid_of(content), store.get(cid_of(content)), like)
    registered = [event.account for event in chain.events()[0] if event.kind == "Registered"]
    assert sorted(registered) == sorted(chain.accounts[1:3])
