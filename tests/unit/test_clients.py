"""Claims about one exchange with many clients: who answered is known by name, and nobody is waited for in vain."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from fedgen_lab.federation import LabGrid
from fedgen_lab.federation.arrays import read, write
from fedgen_lab.federation.clients import ask, checked, content_of, gather


@pytest.fixture
def grid():
    app = ClientApp()

    @app.query()
    def echo(message, context):
        if message.content["word"]["n"] == 1:
            raise ZeroDivisionError("a flat battery")
        return Message(message.content, reply_to=message)

    with LabGrid(app, 3) as grid:
        yield grid


def questions(grid):
    return {
        n: Message(RecordDict({"word": ConfigRecord({"n": n})}), node, "query")
        for n, node in enumerate(grid.get_node_ids())
    }


def test_answers_come_back_under_the_keys_of_their_questions(grid):
    replies = ask(grid, questions(grid), timeout=1)
    assert content_of(replies[0])["word"]["n"] == 0 and content_of(replies[2])["word"]["n"] == 2
    with pytest.raises(ValueError, match="^sent an error instead of an answer: .*flat battery"):
        content_of(replies[1])


def test_late_answers_are_waited_for_and_missing_ones_until_time_is_up(grid):
    held = []

    def pull(ids):
        held.append(list(ids))
        late = (
            [ids[0]] if len(held) == 1 else [i for i in ids if i != last] if len(held) == 2 else []
        )
        return grid.pull_messages(late)

    asked = questions(grid)
    slow = SimpleNamespace(push_messages=grid.push_messages, pull_messages=pull)
    last = str(len(asked))
    replies = ask(slow, asked, timeout=0.3)
    assert set(replies) == {0, 1} and len(held[1]) == 2 and all(ids == [last] for ids in held[2:])
    with pytest.raises(ValueError, match="^did not answer in time$"):
        content_of(replies.get(2))


def test_gathering_ends_when_all_are_there_or_patience_is_over(grid):
    assert gather(grid, 3, 60) == grid.get_node_ids() == gather(grid, 4, 0)


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ({}, "left out 1 arrays"),
        ({"w": torch.zeros(2), "x": torch.zeros(1)}, "nobody asked for"),
        ({"w": torch.zeros(3)}, r"'w' as float32 \(3,\) where float32 \(2,\)"),
        ({"w": torch.zeros(2).double()}, "'w' as float64"),
        ({"w": torch.tensor([0.0, torch.nan])}, "NaN or infinity"),
    ],
    ids=["left-out", "extra", "shape", "dtype", "nan"],
)
def test_arrays_that_cannot_be_right_are_refused_by_name(sent, words):
    with pytest.raises(ValueError, match=words):
        checked(ArrayRecord(sent), {"w": torch.ones(2)})
    assert checked(ArrayRecord({"w": torch.ones(2)}), {"w": torch.ones(2)})["w"].tolist() == [1, 1]


@pytest.mark.parametrize("kind", ["float32", "float16", "int64", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)], ids=str)
def test_arrays_are_written_and_read_as_flower_does(kind, shape):
    values = np.asarray(np.random.default_rng(0).random(shape) * 100).astype(kind)
    mine, flowers = write(values), Array(values)
    assert (mine.dtype, tuple(mine.shape), mine.stype, mine.data) == (
        flowers.dtype,
        tuple(flowers.shape),
        flowers.stype,
        flowers.data,
    )
    for array in (mine, flowers):
        assert (
            read(array).dtype == values.dtype
            and np.array_equal(read(array), values)
            and read(array).flags.writeable
        )


def test_an_array_whose_bytes_are_not_what_it_says_cannot_be_read():
    lying = Array(
        dtype="float32",
        shape=(4,),
        stype="numpy.ndarray",
        data=write(np.zeros(4, np.float32)).data[:-4],
    )
    with pytest.raises(ValueError):
        read(lying)
