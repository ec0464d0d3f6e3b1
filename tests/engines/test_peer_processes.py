"""Peers as processes on a real Ethereum node: killed again and again, they lose nothing and submit nothing twice."""

import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from fedgen_lab.memorization.ddpm import weights
from fedgen_lab.peers.chain import Chain, Terms
from fedgen_lab.peers.manifest import read_manifest
from fedgen_lab.peers.peer import Pace, Peer, start_model
from fedgen_lab.peers.process import main
from fedgen_lab.peers.scenario import PeersScenario
from fedgen_lab.peers.store import Folder, cid_of, unpack_weights

TURNS = 2
KNOBS = {
    "num_peers": 2,
    "steps": 2,
    "samples": 64,
    "pictures_per_peer": 128,
    "width": 8,
    "objective": "fld-fid",
}


@pytest.fixture
def node(start_anvil):
    """Address of an anvil that makes a block a second."""
    return start_anvil("--block-time", "1")


def test_who_was_killed_while_a_submission_was_on_its_way_does_not_make_it_again(
    start_anvil, tmp_path, monkeypatch
):
    """The peer's transaction is known to the node and in no block yet when the peer starts again."""
    node = start_anvil("--block-time", "1")
    chain, scenario = (
        Chain(node, terms=Terms(commit_blocks=8)),
        PeersScenario(**KNOBS | {"num_peers": 1}),
    )
    store, rpc = Folder(tmp_path / "store"), chain.w3.provider.make_request
    first = Peer(0, scenario, chain, store, Pace(0, 0, 0, 0))
    chain.register(first.account)
    rpc("evm_setIntervalMining", [0])
    monkeypatch.setattr(
        chain, "_receipt", lambda sent: (_ for _ in ()).throw(KeyboardInterrupt)
    )  # killed there
    with pytest.raises(KeyboardInterrupt):
        for _ in first.life(until=1):
            pass
    assert chain.models() == []
    settings = [part for knob in KNOBS for part in ("--set", f"{knob}={getattr(scenario, knob)}")]
    command = [
        "0",
        "--endpoint",
        node,
        "--contract",
        chain.address,
        "--store",
        str(store.path),
        *settings,
    ]
    command += ["--folder", str(tmp_path / "peer")]
    monkeypatch.setattr(sys, "argv", ["process", *command])
    wait_for_own = Chain.wait_for_own

    def waited(chain, account):  # blocks are made again while it waits
        threading.Timer(1.0, rpc, ("evm_setIntervalMining", [1])).start()
        wait_for_own(chain, account)

    monkeypatch.setattr(Chain, "wait_for_own", waited)
    main()
    assert [chain.model(content).author for content in chain.models()] == [first.account]


def test_what_is_missing_is_told_in_a_sentence(start_anvil, tmp_path, monkeypatch):
    chain = Chain(start_anvil(), terms=Terms())
    there = [
        "--endpoint",
        chain.w3.provider.endpoint_uri,
        "--contract",
        chain.address,
        "--store",
        str(tmp_path),
    ]
    there += ["--folder", str(tmp_path / "peer")]
    for arguments, reason in (
        (
            ["0", "--endpoint", "http://127.0.0.1:9", *there[2:]],
            "peer 0: No Ethereum node answers at http://127.0.0",
        ),
        (
            ["0", *there[:2], "--contract", "0x" + 40 * "1", *there[4:]],
            "peer 0: There is no contract at 0x1111",
        ),
        (["0", *there, "--key", "0xme"], "peer 0: A key must be 0x and 64 hexadecimal digits"),
        (["7", *there, "--set", "num_peers=2"], "peer 7: number must lie in 0 to 1"),
        (["0", *there, "--set", "steps=many"], "peer 0: steps must be of the kind int; got 'many'"),
        (["0", *there, "--set", "speed=9"], "peer 0: 'speed' is no knob"),
    ):
        monkeypatch.setattr(sys, "argv", ["process", *arguments])
        with pytest.raises(SystemExit, match=reason):
            main()


def test_a_node_that_ends_and_comes_back_with_its_state_costs_nothing(
    start_anvil, tmp_path, monkeypatch
):
    """The node is away when the peer wants to submit; once it is there again the peer makes its model, once."""
    kept = ("--state", str(tmp_path / "state.json"))
    node = start_anvil(*kept)
    port, scenario = int(node.rsplit(":", 1)[1]), PeersScenario(**KNOBS | {"num_peers": 1})
    chain = Chain(node, terms=Terms(commit_blocks=8))
    settings = [part for knob in KNOBS for part in ("--set", f"{knob}={getattr(scenario, knob)}")]
    there = ["--endpoint", node, "--contract", chain.address, "--store", str(tmp_path / "store")]
    monkeypatch.setattr(
        sys, "argv", ["process", "0", *there, "--folder", str(tmp_path / "peer"), *settings]
    )
    with monkeypatch.context() as patch:
        put = Folder.put
        stops = iter([start_anvil.stop])  # as it puts its weights, the first thing
        patch.setattr(Folder, "put", lambda store, data: (next(stops, int)(), put(store, data))[1])
        with pytest.raises(
            SystemExit, match=f"No Ethereum node answers at {node} .*start this command again"
        ):
            main()
    start_anvil(*kept, port=port)
    before = chain.events()[0]
    assert [event.kind for event in before] == ["Registered"]
    main()
    events = chain.events()[0]
    assert events[:1] == before and [event.kind for event in events[1:]] == ["Submitted"]
    main()  # there is nothing left to do
    assert chain.events()[0] == events


def test_a_node_that_forgot_is_told_in_a_sentence(start_anvil, tmp_path, monkeypatch):
    kept = ("--state", str(tmp_path / "state.json"))
    node = start_anvil(*kept)
    port, chain = int(node.rsplit(":", 1)[1]), Chain(node, terms=Terms())
    one = chain.accounts[1]
    chain.register(one)
    start_anvil.stop()
    start_anvil(*kept, port=port)
    chain.submit(one, b"c" * 32, b"m" * 32)
    assert len(chain.events()[0]) == 2
    start_anvil.stop(signal.SIGKILL)
    start_anvil(*kept, port=port)
    chain.submit(one, b"d" * 32, b"n" * 32)  # it has as many blocks as before, and others
    with pytest.raises(
        ConnectionError, match=f"The chain of {node} lost blocks that were read.* with --state FILE"
    ):
        chain.events(1)
    again = Chain(node, contract=chain.address)
    assert again.models() == [b"d" * 32] and len(again.events()[0]) == 2
    start_anvil.stop()
    start_anvil(port=port)
    there = ["--endpoint", node, "--contract", chain.address, "--store", str(tmp_path / "store")]
    monkeypatch.setattr(sys, "argv", ["process", "0", *there, "--folder", str(tmp_path / "peer")])
    with pytest.raises(
        SystemExit, match=f"There is no contract at {chain.address} on the chain of {node}.*--state"
    ):
        main()
    with pytest.raises(ConnectionError, match=f"The chain of {node} lost blocks"):
        again.events()


# Last: pytest-xdist gives a worker its next file when two tests are left, and this one takes longest.
def test_peers_that_are_killed_at_random_submit_everything_once(node, tmp_path):
    chain, store = Chain(node, terms=Terms(commit_blocks=8)), Folder(tmp_path / "store")
    settings = [part for knob, value in KNOBS.items() for part in ("--set", f"{knob}={value}")]

    def start(number):
        log = open(tmp_path / f"peer{number}.log", "ab")
        command = [
            sys.executable,
            "-m",
            "fedgen_lab.peers.process",
            str(number),
            "--endpoint",
            node,
            "--contract",
            chain.address,
            "--store",
            str(store.path),
            "--folder",
            str(tmp_path / f"peer{number}"),
            "--turns",
            str(TURNS),
            *settings,
        ]
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
            if kills < 3 and began and peers[number].poll() is None:
                peers[number].kill()
                peers[number].wait()
                (tmp_path / f"peer{number}.log").write_bytes(b"")
                peers[number], kills = start(number), kills + 1
    finally:
        for peer in peers:
            peer.kill()
    logs = "\n".join(
        (tmp_path / f"peer{number}.log").read_text(encoding="utf-8") for number in (0, 1)
    )
    assert [peer.returncode for peer in peers] == [0, 0], logs
    assert kills >= 2
    models, like = chain.models(), weights(start_model(PeersScenario(**KNOBS)))
    authors = [chain.model(content).author for content in models]
    assert sorted(authors) == sorted(TURNS * chain.accounts[1:3]), (
        "each peer's turns, no more and no less"
    )
    for content in models:
        submission = chain.model(content)
        read_manifest(store.get(cid_of(submission.manifest)), submission)
        unpack_weights(cid_of(content), store.get(cid_of(content)), like)
    registered = [event.account for event in chain.events()[0] if event.kind == "Registered"]
    assert sorted(registered) == sorted(chain.accounts[1:3])
