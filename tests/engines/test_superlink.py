"""A SuperLink with SuperNodes over TLS: a node that dies, uploads that count as they arrive.

Real processes on loopback, nothing mocked; the app is tiny_app, which learns nothing. One SuperLink with two SuperNodes
serves both tests, run after run. A SuperNode takes one message at a time and starts a process for each; that a client's
state survives them is the point.
"""

import json
from pathlib import Path

import pytest
from flower import ATTEMPTS, Flower

TINY_APP = Path(__file__).parent / "tiny_app"


@pytest.fixture(scope="module")
def flower(tmp_path_factory):
    with Flower(tmp_path_factory.mktemp("flower")) as flower:
        flower.add_supernodes(2)
        yield flower


def test_a_supernode_killed_during_a_round_is_named_and_the_run_goes_on(flower, tmp_path):
    notes, result = tmp_path / "notes", tmp_path / "result.json"
    notes.mkdir()
    never = {"slow": 2, "until": str(tmp_path / "never")}  # it is at work when it dies
    config = {"num-clients": 3, "rounds": 2, "notes": str(notes), "save-to": str(result), **never}
    for _ in range(ATTEMPTS):
        said = flower.run_and_kill_a_third_node(
            TINY_APP, config, lambda: (notes / "client-2-round-1").exists()
        )
        if said.count("the round went on") == 1:
            break
        (notes / "client-2-round-1").unlink()
    print(flower.logs())
    end = json.loads(result.read_text(encoding="utf-8"))
    assert [client for _, client, _ in end["refused"]] == ["client 2"]
    assert "lost its connection" in end["refused"][0][2]
    rounds, values, _ = zip(*end["completed"], strict=True)
    mean = (
        1 * 1 + 2 * 2
    ) / 3  # client 0 adds 1; client 1, who weighs twice as much, adds 2; then both add twice that
    assert rounds == (1, 2) and values == pytest.approx((mean, mean + 2 * mean))


def test_the_fast_client_goes_on_while_the_slow_one_works(flower, tmp_path):
    """FedBuff: uploads count as they really arrive. The slow client is at work until the run is over."""
    result, over = tmp_path / "result.json", tmp_path / "over"
    try:
        flower.run(
            TINY_APP,
            {"rounds": 3, "buffer": 1, "slow": 0, "until": str(over), "save-to": str(result)},
        )
    finally:
        over.touch()  # its SuperNode is free again
    print(flower.logs())
    end = json.loads(result.read_text(encoding="utf-8"))
    assert [completed for completed, _, _ in end["completed"]] == [1, 2, 3] and end["refused"] == []
    assert [(client, staleness) for _, client, staleness in end["merged"]] == [(1, 0)] * 3
    assert [value for _, value, _ in end["completed"]] == [
        2,
        2 + 4,
        2 + 4 + 6,
    ]  # client 1 adds twice its n-th time
