"""Robust averages: median, trimmed mean and Krum as in Flower, and norm clipping, as rules of a checked server."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedMedian, FedTrimmedAvg, Krum

from fedgen_lab.federation.averages import combine, norm, robust_combine
from fedgen_lab.federation.fedavg import CheckedFedAvg
from fedgen_lab.federation.run import run_app
from fedgen_lab.scenario import Scenario


def states(number, seed, shapes=((4, 3), (5,))):
    draw = np.random.default_rng(seed)
    return [
        {f"w{i}": draw.normal(size=shape).astype(np.float32) for i, shape in enumerate(shapes)}
        for _ in range(number)
    ]


def flat(state):
    return np.concatenate([array.ravel() for array in state.values()])


@pytest.mark.parametrize("seed", range(3))
def test_the_mean_weighs_by_pictures(seed):
    received, *sent = states(5, seed)
    found, shares = combine(received, sent, [1, 2, 3, 4])
    assert np.allclose(
        flat(found), np.average([flat(s) for s in sent], axis=0, weights=[1, 2, 3, 4]), atol=1e-6
    )
    assert shares == [1.0] * 4


@pytest.mark.parametrize("number", [4, 5])
def test_the_median_is_that_of_every_single_number(number):
    received, *sent = states(number + 1, seed=number)
    found, shares = combine(received, sent, defence="median")
    assert np.allclose(flat(found), np.median([flat(s) for s in sent], axis=0), atol=1e-6)
    assert sum(shares) == pytest.approx(1 if number % 2 else 2)  # one middle value, or two


@pytest.mark.parametrize("attackers", [1, 2])
def test_the_trimmed_mean_leaves_out_the_ends_on_both_sides(attackers):
    received, *sent = states(8, seed=attackers)
    found, shares = combine(received, sent, defence="trimmed", attackers=attackers)
    kept = np.sort([flat(s) for s in sent], axis=0)[attackers:-attackers]
    assert np.allclose(flat(found), kept.mean(0), atol=1e-6)
    assert sum(shares) == pytest.approx(7 - 2 * attackers)


def by_flower(strategy, states):
    """What one of Flower's strategies makes of clients' states, each of one example."""
    replies = []
    for client, state in enumerate(states):
        arrays = ArrayRecord({name: Array(array) for name, array in state.items()})
        metrics = MetricRecord({strategy.weighted_by_key: 1.0})
        about = Metadata(1, str(client), client, 0, "", "1", 0.0, 3600.0, "train")
        content = RecordDict({"arrays": arrays, "metrics": metrics})
        replies.append(Message(content, metadata=about))
    arrays, _ = strategy.aggregate_train(1, replies)
    return {name: array.numpy() for name, array in arrays.items()}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("number", "attackers"), [(5, 1), (7, 2), (8, 1)])
def test_median_trimmed_mean_and_krum_are_flowers(number, attackers, seed):
    received, *sent = states(number + 1, seed)
    sent[-1] = {name: 5 * array for name, array in sent[-1].items()}
    for defence, strategy in {
        "median": FedMedian(),
        "trimmed": FedTrimmedAvg(beta=(attackers + 1e-9) / number),
        "krum": Krum(num_malicious_nodes=attackers),
    }.items():
        found, _ = combine(received, sent, None, defence, attackers)
        assert np.allclose(flat(found), flat(by_flower(strategy, sent)), atol=1e-6), defence


def test_krum_takes_the_whole_upload_of_one_client_from_the_crowd():
    received, *_ = states(1, seed=0)
    draw = np.random.default_rng(1)
    sent = [
        {k: v + draw.normal(size=v.shape).astype(np.float32) for k, v in received.items()}
        for _ in range(5)
    ]
    sent[4] = {k: v + 10 for k, v in received.items()}
    found, shares = combine(received, sent, defence="krum", attackers=1)
    chosen = shares.index(1.0)
    assert sum(shares) == 1 and chosen != 4
    assert np.allclose(flat(found), flat(sent[chosen]), atol=1e-5)


def test_clipping_shortens_long_changes_and_leaves_short_ones_alone():
    received, *sent = states(4, seed=3)
    changes = [{k: s[k] - received[k] for k in received} for s in sent]
    clip = sorted(norm(change) for change in changes)[1]
    found, shares = combine(received, sent, defence="clip", clip=clip)
    expected = np.mean([flat(c) * min(1, clip / norm(c)) for c in changes], axis=0)
    assert np.allclose(flat(found) - flat(received), expected, atol=1e-5)
    assert shares.count(1.0) == 2 and min(shares) > 0
    assert combine(received, sent, defence="clip")[1].count(1.0) == 2  # 0: the median of three


@pytest.mark.parametrize("defence", ["clip", "median", "trimmed", "krum"])
def test_one_client_that_shouts_moves_a_robust_average_little_and_the_mean_far(defence):
    received, *_ = states(1, seed=5)
    draw = np.random.default_rng(6)
    honest = [
        {k: v + draw.normal(1, 0.2, v.shape).astype(np.float32) for k, v in received.items()}
        for _ in range(4)
    ]
    shout = {k: v - 50 for k, v in received.items()}
    truth = flat(received) + 1
    off = {
        one: np.abs(flat(combine(received, [*honest, shout], None, one, 1)[0]) - truth).mean()
        for one in ("mean", defence)
    }
    assert off["mean"] > 9 and off[defence] < 0.7


def test_nothing_changes_where_nobody_changed_anything():
    received, *_ = states(1, seed=7)
    for defence in ("mean", "clip", "median", "trimmed", "krum"):
        found, _ = combine(received, [received] * 5, defence=defence)
        assert np.array_equal(flat(found), flat(received))
        assert all(found[name].dtype == received[name].dtype for name in received)


def test_nonsense_is_named():
    received, *sent = states(5, seed=8)
    with pytest.raises(ValueError, match="defence must be one of mean, clip.* got 'prayer'"):
        combine(received, sent, defence="prayer")
    with pytest.raises(ValueError, match="no uploads"):
        combine(received, [])
    with pytest.raises(ValueError, match="clip must be at least 0; got -1"):
        combine(received, sent, defence="clip", clip=-1)
    with pytest.raises(
        ValueError, match="Krum bears attackers=1 only among 5 clients or more; got 4"
    ):
        combine(received, sent, defence="krum", attackers=1)
    with pytest.raises(ValueError, match="can't cut 2 uploads on either side of 4"):
        robust_combine(Scenario(num_clients=4, defence="trimmed", attackers=2))


def shouting_app(kind):
    app = ClientApp()

    @app.train()
    def train(message, context):
        client = context.node_config["partition-id"]
        (array,) = message.content["arrays"].to_numpy_ndarrays()
        change = {"nan": np.nan, "long": 40.0}[kind] if client == 4 else 1.0 + 0.01 * client
        arrays = ArrayRecord({"w": array_of(array + np.float32(change))})
        metrics = MetricRecord({"num-examples": 8, "partition-id": client})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    return app


def array_of(value):
    return Array(np.asarray(value, dtype=np.float32))


@pytest.mark.parametrize("kind", ["nan", "long"])
@pytest.mark.parametrize("defence", ["clip", "median", "trimmed"])
def test_a_flower_run_with_a_defence_still_refuses_by_name_first(defence, kind):
    rule = robust_combine(Scenario(num_clients=5, defence=defence, attackers=1, clip=2.5))
    strategy = CheckedFedAvg(min_available_nodes=5, combine=rule)
    app = ServerApp()

    @app.main()
    def main(grid, context):
        strategy.start(grid, ArrayRecord({"w": array_of(np.zeros(6))}), num_rounds=1)

    run_app(app, shouting_app(kind), 5)
    (latest,) = strategy.latest.to_numpy_ndarrays()
    assert 0.9 < latest.mean() < 1.3
    assert [refusal.client for refusal in strategy.refused] == (
        ["client 4"] if kind == "nan" else []
    )
