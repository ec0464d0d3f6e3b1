"""LabGrid delivers messages as a real Flower engine does, in one process."""

import threading

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_to_proto
from flwr.serverapp import ServerApp
from flwr.supercore.task_identity import TaskIdentity

from fedgen_lab.federation import SERVER, LabGrid, Stopped, run_app


def app_of(handler):
    app = ClientApp()
    app.train()(handler)
    return app


def echo(message, context):
    return Message(message.content, reply_to=message)


def content(size=4, server_round=1):
    return RecordDict(
        {
            "arrays": ArrayRecord({"w": Array(np.arange(size, dtype=np.float32))}),
            "config": ConfigRecord({"server-round": server_round}),
        }
    )


def ask_everyone(grid, content):
    return grid.send_and_receive(
        [Message(content, node_id, "train") for node_id in grid.get_node_ids()]
    )


def test_every_client_gets_the_message_and_answers_once():
    with LabGrid(app_of(echo), 3) as grid:
        replies = ask_everyone(grid, content())
    assert [reply.metadata.src_node_id for reply in replies] == list(grid.get_node_ids())
    assert all(
        np.array_equal(reply.content["arrays"]["w"].numpy(), np.arange(4)) for reply in replies
    )


def test_a_client_knows_its_partition_and_the_run_config_but_node_ids_are_not_partition_ids():
    def who(message, context):
        node = context.node_config
        assert context.run_config == {"seed": 3}
        return Message(
            RecordDict(
                {"m": MetricRecord({"id": node["partition-id"], "of": node["num-partitions"]})}
            ),
            reply_to=message,
        )

    with LabGrid(app_of(who), 3, {"seed": 3}) as grid:
        replies = ask_everyone(grid, content())
        assert not set(grid.get_node_ids()) & {0, 1, 2}
    assert [(reply.content["m"]["id"], reply.content["m"]["of"]) for reply in replies] == [
        (0, 3),
        (1, 3),
        (2, 3),
    ]


def test_a_client_remembers_its_state_between_messages_and_no_other_clients_state():
    def count(message, context):
        before = context.state["seen"]["times"] if "seen" in context.state else 0
        context.state["seen"] = MetricRecord({"times": before + 1})
        return Message(RecordDict({"m": MetricRecord({"times": before + 1})}), reply_to=message)

    with LabGrid(app_of(count), 2) as grid:
        first, second = grid.get_node_ids()
        for _ in range(2):
            (reply,) = grid.send_and_receive([Message(content(), first, "train")])
        (other,) = grid.send_and_receive([Message(content(), second, "train")])
    assert reply.content["m"]["times"] == 2 and other.content["m"]["times"] == 1


def test_server_and_clients_share_no_memory():
    kept = []

    def scribble(message, context):
        kept.append(message.content)
        message.content["config"]["server-round"] = 99
        message.content["arrays"]["w"] = Array(np.zeros(4, np.float32))
        return Message(message.content, reply_to=message)

    sent = content()
    with LabGrid(app_of(scribble), 2) as grid:
        replies = ask_everyone(grid, sent)
    assert sent["config"]["server-round"] == 1 and sent["arrays"]["w"].numpy()[3] == 3
    assert kept[1]["config"] is not kept[0]["config"]
    assert replies[0].content is not kept[0]


def test_the_trace_counts_the_bytes_that_flower_serialises():
    sent = content(size=1000)
    with LabGrid(app_of(echo), 2) as grid:
        ask_everyone(grid, sent)
        ask_everyone(grid, sent)
    frame, size = grid.trace.frame(), recorddict_to_proto(sent).ByteSize()
    assert len(frame) == 8 and (frame.bytes == size).all() and size > 4000
    assert list(frame.sender[:4]) == [SERVER, 0, SERVER, 1]
    assert list(frame.receiver[:4]) == [0, SERVER, 1, SERVER]
    assert (frame["round"] == 1).all() and list(frame.step) == [0] * 4 + [1] * 4
    assert (frame.kind == "train").all()


def test_a_clients_exception_becomes_a_flower_error_reply_and_the_others_still_answer():
    def fragile(message, context):
        if context.node_config["partition-id"] == 1:
            raise ZeroDivisionError("no pictures")
        return echo(message, context)

    with LabGrid(app_of(fragile), 3) as grid:
        replies = ask_everyone(grid, content())
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert "no pictures" in replies[1].error.reason and replies[1].error.code == 2
    assert "ZeroDivisionError" in grid.trace.frame().error.iloc[3]


def test_a_client_that_returns_no_message_is_an_error_reply():
    with LabGrid(app_of(lambda message, context: None), 1) as grid:
        (reply,) = ask_everyone(grid, content())
    assert "must return" in reply.error.reason


def test_stop_ends_the_run_at_the_next_message():
    heard = []

    def note(message, context):
        heard.append(context.node_config["partition-id"])
        return echo(message, context)

    with (
        LabGrid(app_of(note), 4, should_stop=lambda: len(heard) == 2) as grid,
        pytest.raises(Stopped),
    ):
        ask_everyone(grid, content())
    assert heard == [0, 1]


def test_stopped_raised_by_a_client_passes_through():
    def give_up(message, context):
        raise Stopped("The run was stopped.")

    with LabGrid(app_of(give_up), 2) as grid, pytest.raises(Stopped):
        ask_everyone(grid, content())


def test_run_app_returns_what_was_done_when_it_is_stopped():
    app, rounds = ServerApp(), []

    @app.main()
    def main(grid, context):
        for server_round in range(1, 4):
            ask_everyone(grid, content(server_round=server_round))
            rounds.append(server_round)
            context.state["done"] = MetricRecord({"rounds": server_round})

    run = run_app(app, app_of(echo), 2, {"seed": 1}, should_stop=lambda: len(rounds) == 2)
    assert run.stopped and run.context.state["done"]["rounds"] == 2 and len(run.trace) == 8
    rounds.clear()
    run = run_app(app, app_of(echo), 2, {"seed": 1})
    assert not run.stopped and len(run.trace) == 12 and run.context.run_config == {"seed": 1}


def test_flowers_identity_and_log_are_put_back_after_a_run_even_a_failed_one():
    app = ServerApp()

    @app.main()
    def main(grid, context):
        assert (TaskIdentity.run_id, TaskIdentity.node_id) == (1, 1)
        raise RuntimeError("the server fell over")

    with pytest.raises(RuntimeError, match="fell over"):
        run_app(app, app_of(echo), 1)
    with pytest.raises(RuntimeError, match="not set"):
        TaskIdentity.run_id  # noqa: B018


def test_while_a_client_works_flower_sees_that_clients_node_id():
    seen = []

    def look(message, context):
        seen.append(TaskIdentity.node_id == context.node_id)
        return echo(message, context)

    with LabGrid(app_of(look), 2) as grid:
        ask_everyone(grid, content())
        assert TaskIdentity.node_id == 1
    assert seen == [True, True]


def test_two_runs_in_two_threads_take_turns():
    inside, most = [], []

    def slow(message, context):
        inside.append(1)
        most.append(len(inside))
        threading.Event().wait(0.02)
        inside.pop()
        return echo(message, context)

    def work():
        with LabGrid(app_of(slow), 2) as grid:
            for _ in range(3):
                ask_everyone(grid, content())

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert len(most) == 12 and max(most) == 1


def test_a_run_that_waits_for_its_turn_can_be_stopped():
    stopped = []

    def work():
        try:
            with LabGrid(app_of(echo), 1, should_stop=lambda: True):
                pass
        except Stopped:
            stopped.append(True)

    with LabGrid(app_of(echo), 1):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(timeout=20)
    assert stopped == [True]


def test_on_message_hears_every_message_as_it_is_sent():
    heard = []
    with LabGrid(app_of(echo), 2, on_message=heard.append) as grid:
        ask_everyone(grid, content())
    assert [(sent.sender, sent.receiver) for sent in heard] == [
        (SERVER, 0),
        (0, SERVER),
        (SERVER, 1),
        (1, SERVER),
    ]


@pytest.mark.parametrize("number", [0, -1, 1.5, True])
def test_a_grid_without_clients_is_an_error_that_says_so(number):
    with pytest.raises(ValueError, match="num_clients must be a whole number"):
        LabGrid(app_of(echo), number)


def test_a_message_to_nobody_is_an_error_that_says_so():
    with (
        LabGrid(app_of(echo), 1) as grid,
        pytest.raises(ValueError, match="No client has the node id 5"),
    ):
        grid.push_messages([Message(content(), 5, "train")])
