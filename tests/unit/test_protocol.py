"""Claims about protocols of two generator functions: fedgen_lab/federation/protocol.py."""

import pytest
import torch
from flwr.app import ConfigRecord, RecordDict

from fedgen_lab.federation.protocol import advance, crossings, next_message, packed


def asker(x):
    """Sends x, then what came back plus its factor, and keeps nothing in between but local variables."""
    down = yield {"x": x}
    x = x + down["factor"] * down["y"]
    down = yield {"x": x, "size": 1.5}
    yield {"x": x * down["y"]}


def doubler(ended):
    """Waits, then doubles what it gets until a third message comes."""
    up = yield
    up = yield {"y": 2 * up["x"], "factor": 3}
    up = yield {"y": 2 * up["x"], "factor": 0}
    ended.append(up["x"])


def test_both_sides_in_one_process_take_turns_until_one_ends():
    ended = []
    crossed = list(crossings(asker(torch.ones(2)), doubler(ended)))
    assert [way for way, _ in crossed] == ["up", "down", "up", "down", "up"]
    assert [message.get("factor") for way, message in crossed if way == "down"] == [3, 0]
    assert crossed[2][1]["size"] == 1.5
    assert ended[0].tolist() == [98.0, 98.0]  # x = 1 + 3 * 2 = 7, and 7 * (2 * 7)


def test_what_crosses_is_a_copy_without_its_history():
    sent, received = torch.ones(2, requires_grad=True), []

    def sender():
        yield {"x": sent}

    def receiver():
        up = yield
        received.append(up["x"])
        with torch.no_grad():
            up["x"] += 1

    assert len(list(crossings(sender(), receiver()))) == 1
    assert not received[0].requires_grad and sent.tolist() == [1, 1]


def records(message):
    tensors, numbers = packed(message)
    return RecordDict({"tensors": tensors, "config": ConfigRecord(numbers)})


def test_a_side_replayed_for_every_message_says_what_one_says_that_lives_on():
    state, alive = RecordDict(), asker(torch.ones(2))
    answers = [None, *({"y": torch.full((2,), value), "factor": 2} for value in (4.0, 5.0))]
    for down in answers:
        content = None if down is None else records(down)
        replayed = next_message(asker(torch.ones(2)), state, content)
        expected = advance(alive, down)
        assert replayed.keys() == expected.keys() and torch.equal(replayed["x"], expected["x"])
    assert next_message(asker(torch.ones(2)), state, records(answers[-1])) is None  # at its end


@pytest.mark.parametrize("heard", [1, 2])
def test_a_side_that_begins_again_forgets_what_it_received(heard):
    state, down = RecordDict(), records({"y": torch.ones(2), "factor": 2})
    next_message(asker(torch.ones(2)), state)
    for _ in range(heard):
        next_message(asker(torch.ones(2)), state, down)
    assert next_message(asker(torch.zeros(2)), state)["x"].tolist() == [0, 0]
    assert next_message(asker(torch.zeros(2)), state, down)["x"].tolist() == [2, 2]
    assert len(state) == 2
