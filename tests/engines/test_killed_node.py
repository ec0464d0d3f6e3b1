"""A SuperNode dies during a round: it is noticed, named, and not waited for again.

Real processes on loopback, nothing mocked. About a minute and a half, most of it waiting for the SuperLink to miss the
node.
"""

import json
import time
from pathlib import Path

from flower import Flower

TINY_APP = Path(__file__).parent / "tiny_app"


def test_a_supernode_killed_during_a_round_is_named_and_the_run_goes_on(tmp_path):
    notes, result = tmp_path / "notes", tmp_path / "result.json"
    notes.mkdir()
    config = {"rounds": 2, "seconds": 2.0, "notes": str(notes), "save-to": str(result)}
    with Flower(tmp_path / "flower") as flower:
        flower.add_supernodes(2)
        run = flower.start_run(TINY_APP, config)
        wait_for(notes / "client-1-round-1", flower)
        flower.kill("supernode-1")
        assert run.wait(180) == 0, flower.logs()
    end = json.loads(result.read_text(encoding="utf-8"))
    assert [client for _, client, _ in end["refused"]] == ["client 1"]
    assert "lost its connection" in end["refused"][0][2]
    rounds, values, _ = zip(*end["completed"], strict=True)
    assert rounds == (1, 2) and values == (1.0, 3.0)  # client 0 alone adds 1, then 2


def wait_for(path, flower, seconds=90):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} did not appear.\n{flower.logs()}"
        time.sleep(0.1)
