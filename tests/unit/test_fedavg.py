"""CheckedFedAvg averages what is sound and names what is not."""

import re

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fedgen_lab.federation import CheckedFedAvg, LabGrid, Stopped
from fedgen_lab.federation.fedavg import Averaging

START = {"w": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float32)}


def record(arrays):
    return ArrayRecord({name: Array(value) for name, value in arrays.items()})


def honest(partition):
    rng = np.random.default_rng(partition)
    return {name: rng.normal(size=value.shape).astype(np.float32) for name, value in START.items()}


def answer(message, partition, arrays=None, examples=None, **metrics):
    arrays = honest(partition) if arrays is None else arrays
    metrics = {
        "num-examples": partition + 1 if examples is None else examples,
        "partition-id": partition,
        "loss": 0.5,
        **metrics,
    }
    return Message(
        RecordDict({"arrays": record(arrays), "metrics": MetricRecord(metrics)}), reply_to=message
    )


def run(train, num_clients=3, rounds=1, evaluate=None, should_stop=None, **options):
    app = ClientApp()
    app.train()(lambda message, context: train(message, context.node_config["partition-id"]))
    if evaluate:
        app.evaluate()(
            lambda message, context: evaluate(message, context.node_config["partition-id"])
        )
    with LabGrid(app, num_clients, should_stop=should_stop) as grid:
        strategy = CheckedFedAvg(**options)
        strategy.start(grid, record(START), num_rounds=rounds)
    return strategy


def mean_of(partitions):
    total = sum(p + 1 for p in partitions)
    return {name: sum(honest(p)[name] * ((p + 1) / total) for p in partitions) for name in START}


def assert_equals(arrays, expected):
    assert all(np.allclose(arrays[name].numpy(), expected[name], atol=1e-6) for name in expected)


def test_the_average_is_weighted_by_the_number_of_examples():
    strategy = run(answer)
    assert_equals(strategy.latest, mean_of([0, 1, 2]))
    assert strategy.refused == []


def test_without_faults_it_is_flowers_own_fedavg():
    app = ClientApp()
    app.train()(lambda message, context: answer(message, context.node_config["partition-id"]))
    with LabGrid(app, 3) as grid:
        theirs = FedAvg(fraction_evaluate=0.0).start(grid, record(START), num_rounds=1).arrays
        ours = CheckedFedAvg().start(grid, record(START), num_rounds=1).arrays
    assert_equals(ours, {name: array.numpy() for name, array in theirs.items()})


FAULTS = {
    "NaN or infinity in 'w'": {"w": np.full((2, 3), np.nan, np.float32), "b": START["b"]},
    "NaN or infinity in 'b'": {"w": START["w"], "b": np.array([0, np.inf, 0], np.float32)},
    r"'w' as float32 \(3, 2\) where float32 \(2, 3\) belongs": {
        "w": np.zeros((3, 2), np.float32),
        "b": START["b"],
    },
    "'b' as float64": {"w": START["w"], "b": np.zeros(3)},
    "left out 1 arrays, the first is 'b'": {"w": START["w"]},
    "nobody asked for, the first is 'extra'": {**START, "extra": np.zeros(1, np.float32)},
    r"changed its arrays [\d,]+ times as much as the median": {
        name: 1000 * value for name, value in honest(1).items()
    },
}


@pytest.mark.parametrize("reason", FAULTS)
def test_a_faulty_upload_is_refused_by_name_and_the_round_completes_without_it(reason):
    strategy = run(
        lambda message, partition: answer(
            message, partition, FAULTS[reason] if partition == 1 else None
        )
    )
    ((server_round, client, sentence),) = strategy.refused
    assert (server_round, client) == (1, "client 1")
    assert sentence.startswith("Client 1 ") and re.search(reason, sentence)
    assert_equals(strategy.latest, mean_of([0, 2]))
    assert sorted(strategy.client_arrays) == [0, 2]


@pytest.mark.parametrize("examples", [0, -3, float("nan"), float("inf"), [1, 2]])
def test_a_senseless_number_of_examples_is_refused(examples):
    strategy = run(
        lambda message, partition: answer(
            message, partition, examples=examples if partition == 0 else None
        )
    )
    assert [refusal.client for refusal in strategy.refused] == ["client 0"]
    assert "num-examples" in strategy.refused[0].reason
    assert_equals(strategy.latest, mean_of([1, 2]))


@pytest.mark.parametrize(
    "lie", [{"flops": float("nan")}, {"flops": -1e12}, {"loss": float("nan")}, {"loss": np.inf}]
)
def test_a_metric_that_cannot_be_is_refused_by_name(lie):
    (name,) = lie
    strategy = run(lambda message, p: answer(message, p, **(lie if p == 1 else {"flops": 1.0})))
    assert [refusal.client for refusal in strategy.refused] == ["client 1"]
    assert f"gave '{name}' as" in strategy.refused[0].reason
    assert_equals(strategy.latest, mean_of([0, 2]))


def test_a_giant_is_refused_even_among_two_but_only_by_what_is_usual():
    def giant(message, partition, since):
        server_round, size = (
            message.content["config"]["server-round"],
            1000 if partition == 1 else 1,
        )
        return answer(
            message,
            partition,
            {k: v * (size if server_round >= since else 1) for k, v in honest(0).items()},
        )

    both = run(lambda message, partition: giant(message, partition, 1), num_clients=2)
    assert [refusal.client for refusal in both.refused] == ["client 1"]
    assert_equals(both.latest, honest(0))
    quiet = run(lambda message, partition: answer(message, partition, START), num_clients=2)
    assert not quiet.refused, "where nobody changes anything, nothing is unusual"


def test_another_rule_may_take_the_place_of_the_mean():
    def largest(server_round, sent, uploads, weights):
        assert server_round == 1 and not sent["w"].any() and weights == [1, 2, 3]
        return {name: np.max([upload[name] for upload in uploads], axis=0) for name in sent}

    strategy = run(answer, combine=largest)
    assert_equals(
        strategy.latest,
        {name: np.max([honest(p)[name] for p in range(3)], axis=0) for name in START},
    )


def test_bytes_that_are_no_array_are_refused():
    def garbage(message, partition):
        reply = answer(message, partition)
        if partition == 2:
            reply.content["arrays"]["w"] = Array(
                "float32", (2, 3), "numpy.ndarray", b"not an array"
            )
        return reply

    strategy = run(garbage)
    assert (
        "cannot be read" in strategy.refused[0].reason and strategy.refused[0].client == "client 2"
    )


def test_a_client_that_raises_is_refused_by_name_and_the_others_are_averaged():
    def fragile(message, partition):
        if partition == 0:
            raise ZeroDivisionError("no pictures")
        return answer(message, partition)

    strategy = run(fragile, rounds=2)
    assert [(refusal.round, refusal.client) for refusal in strategy.refused] == [
        (1, "client 0"),
        (2, "client 0"),
    ]
    assert "no pictures" in strategy.refused[0].reason
    assert_equals(strategy.latest, mean_of([1, 2]))


def test_a_client_with_different_metrics_does_not_spoil_the_round():
    seen = []
    strategy = run(
        lambda message, partition: answer(
            message, partition, **({"more": 1.0, "curve": [1.0] * partition} if partition else {})
        ),
        on_round=lambda server_round, arrays, metrics: seen.append(dict(metrics)),
    )
    assert strategy.refused == [] and seen == [{"loss": 0.5}]


def test_two_clients_with_one_partition_id_are_not_both_averaged():
    strategy = CheckedFedAvg()
    app = ClientApp()
    app.train()(lambda message, context: answer(message, 0))
    with LabGrid(app, 2) as grid:
        strategy.start(_Anonymous(grid), record(START), num_rounds=1)
    assert len(strategy.refused) == 1 and "same partition id" in strategy.refused[0].reason
    assert_equals(strategy.latest, mean_of([0]))


def test_if_nobody_is_left_the_model_stays_and_the_reason_is_kept():
    nan = {name: np.full_like(value, np.nan) for name, value in START.items()}
    rounds = []
    strategy = run(
        lambda message, partition: answer(message, partition, nan),
        num_clients=2,
        rounds=2,
        on_round=lambda *round: rounds.append(round),
    )
    assert_equals(strategy.latest, START)
    assert [refusal.client for refusal in strategy.refused] == [
        "client 0",
        "client 1",
        "everyone",
    ] * 2
    assert [server_round for server_round, _, _ in rounds] == [1, 2]


def test_one_client_alone_is_enough():
    assert_equals(run(answer, num_clients=1, rounds=2).latest, mean_of([0]))


def test_the_order_in_which_nodes_are_listed_does_not_change_one_bit():
    def start(reverse):
        app = ClientApp()
        app.train()(lambda message, context: answer(message, context.node_config["partition-id"]))
        with LabGrid(app, 5) as grid:
            listed = grid.get_node_ids()
            grid.get_node_ids = lambda: listed[::-1] if reverse else listed
            return CheckedFedAvg().start(_Anonymous(grid), record(START), num_rounds=2).arrays

    forward, backward = start(False), start(True)
    assert all(forward[name].data == backward[name].data for name in START)


def test_a_node_that_never_answers_is_named_and_not_waited_for_again():
    strategy = CheckedFedAvg(timeout=0.2)
    app = ClientApp()
    app.train()(lambda message, context: answer(message, context.node_config["partition-id"]))
    with LabGrid(app, 3) as grid:
        lost = grid.get_node_ids()[1]
        losing = _Anonymous(grid, lost)
        strategy.start(losing, record(START), num_rounds=3)
    assert [(refusal.round, refusal.client) for refusal in strategy.refused] == [(1, "client 1")]
    assert "did not answer" in strategy.refused[0].reason
    assert_equals(strategy.latest, mean_of([0, 2]))
    assert len(losing.asked) == 3 + 2 + 2


def test_a_client_that_never_joins_is_waited_for_only_so_long():
    strategy = run(answer, num_clients=2, min_available_nodes=3, join_timeout=0.1)
    assert strategy.refused == [
        (1, "everyone", "2 of 3 clients were connected after 0 s; the round went on with them.")
    ]
    assert_equals(strategy.latest, mean_of([0, 1]))


def test_when_every_client_has_left_the_model_stays():
    app = ClientApp()
    app.train()(lambda message, context: answer(message, context.node_config["partition-id"]))
    strategy = CheckedFedAvg(join_timeout=0.1)
    with LabGrid(app, 2) as grid:
        grid.get_node_ids = list
        strategy.start(grid, record(START), num_rounds=1)
    assert "No client is connected" in strategy.refused[-1].reason
    assert_equals(strategy.latest, START)


def test_what_was_aggregated_before_a_stop_is_kept():
    rounds = []
    with pytest.raises(Stopped):
        run(
            answer,
            rounds=5,
            should_stop=lambda: len(rounds) == 2,
            on_round=lambda *round: rounds.append(round),
        )
    assert len(rounds) == 2
    assert_equals(rounds[-1][1], mean_of([0, 1, 2]))


def test_with_a_fraction_the_seed_decides_who_trains():
    def who(seed):
        trained = []

        def train(message, partition):
            trained.append(partition)
            return answer(message, partition)

        run(train, num_clients=10, rounds=3, fraction_train=0.3, seed=seed)
        return trained

    assert len(who(0)) == 9 and who(0) == who(0) and who(0) != who(1)


def test_evaluation_is_averaged_over_those_who_answer():
    def evaluate(message, partition):
        if partition == 1:
            raise ValueError("no test pictures")
        return Message(
            RecordDict(
                {
                    "metrics": MetricRecord(
                        {"num-examples": 1, "partition-id": partition, "accuracy": float(partition)}
                    )
                }
            ),
            reply_to=message,
        )

    protocol = Averaging()
    protocol.fraction_evaluate = 1.0
    strategy = run(answer, evaluate=evaluate, protocol=protocol)
    assert [refusal.client for refusal in strategy.refused] == ["client 1"]


def test_the_round_number_reaches_every_client():
    rounds = []

    def train(message, partition):
        assert isinstance(message.content["config"], ConfigRecord)
        rounds.append(message.content["config"]["server-round"])
        return answer(message, partition)

    run(train, num_clients=2, rounds=3)
    assert rounds == [1, 1, 2, 2, 3, 3]


class _Anonymous:
    """A LabGrid as a SuperLink shows it: without partition ids, and with one node that is lost, if you like."""

    def __init__(self, grid, lost=None):
        self._grid, self._lost, self.asked = grid, lost, []

    def get_node_ids(self):
        return self._grid.get_node_ids()

    def send_and_receive(self, messages, timeout=None):
        messages = list(messages)
        self.asked += messages
        replies = self._grid.send_and_receive(messages)
        return [reply for reply in replies if reply.metadata.src_node_id != self._lost]
