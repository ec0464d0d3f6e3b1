"""FedBuff on a SuperLink with SuperNodes: uploads count as they really arrive, and nobody waits for the slow one."""

import json
from pathlib import Path

from flower import Flower

TINY_APP = Path(__file__).parent / "tiny_app"


def test_the_fast_client_goes_on_while_the_slow_one_works(tmp_path):
    result = tmp_path / "result.json"
    with Flower(tmp_path / "flower") as flower:
        flower.add_supernodes(2)
        slow = {"seconds": 0.1, "slowness-of-0": 1000.0}  # longer than the whole run
        flower.run(TINY_APP, {"num-clients": 2, "rounds": 3, "buffer": 1, "save-to": str(result), **slow})
        print(flower.logs())
    told = json.loads(result.read_text(encoding="utf-8"))
    assert [completed for completed, _, _ in told["completed"]] == [1, 2, 3] and told["refused"] == []
    assert [(client, staleness) for _, client, staleness in told["merged"]] == [(1, 0)] * 3
    assert [value for _, value, _ in told["completed"]] == [2, 2 + 4, 2 + 4 + 6]  # client 1 adds twice its n-th time
