"""A client may lie about anything it sends: no strategy ends, no model is spoiled, and the liar is named."""

import math

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedgen_lab.federation import CheckedFedAvg, LabGrid
from fedgen_lab.federation.averages import private_mean, robust_combine
from fedgen_lab.federation.secure import SecureFedAvg
from fedgen_lab.federation.secure_device import secured
from fedgen_lab.lora.strategies import RuleProtocol
from fedgen_lab.scenario import Scenario
from fedgen_lab.wireless.channel import Network
from fedgen_lab.wireless.fedbuff import FedBuff
from fedgen_lab.wireless.reacting import ReactingFedAvg

CLIENTS, LIAR, ROUNDS = 4, 2, 3
START = {
    "one.lora_A.default.weight": np.zeros((2, 5), np.float32),
    "one.lora_B.default.weight": np.zeros((3, 2), np.float32),
}
COMMON = {"min_available_nodes": CLIENTS}
STRATEGIES = {
    "mean": lambda: CheckedFedAvg(**COMMON),
    "median": lambda: CheckedFedAvg(
        combine=robust_combine(Scenario(num_clients=CLIENTS, defence="median")), **COMMON
    ),
    "private mean": lambda: CheckedFedAvg(combine=private_mean(1.0, 0.1, CLIENTS), **COMMON),
    "rule flexlora": lambda: CheckedFedAvg(protocol=protocol("flexlora"), **COMMON),
    "rule fedex": lambda: CheckedFedAvg(protocol=protocol("fedex"), **COMMON),
    "secure": lambda: SecureFedAvg(most_examples=8, **COMMON),
    "deadline": lambda: ReactingFedAvg(Network(CLIENTS), deadline_seconds=60.0, **COMMON),
    "fastest": lambda: ReactingFedAvg(Network(CLIENTS), select="fastest", fraction=0.75, **COMMON),
    "FedBuff": lambda: FedBuff(Network(CLIENTS), buffer=2, **COMMON),
}


def protocol(rule):
    return RuleProtocol(Scenario(num_clients=CLIENTS, rank=2, rule=rule))


numbers = st.one_of(
    st.floats(width=64), st.integers(-(2**62), 2**62), st.sampled_from([0.0, -0.0, 1e308, -1e12])
)
values = st.one_of(numbers, st.lists(st.floats(), max_size=3))
kinds = st.sampled_from(["float32", "float64", "int8", "uint32", "bool", "complex64"])
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
arrays = st.one_of(
    st.tuples(shapes, kinds, numbers).map(
        lambda a: Array(
            np.full(a[0], 7 if math.isnan(a[2]) else np.clip(a[2], -100, 100)).astype(a[1])
        )
    ),
    st.tuples(shapes, st.sampled_from([math.nan, math.inf, -1e30])).map(
        lambda a: Array(np.full(a[0], a[1], np.float32))
    ),
    st.binary(max_size=20).map(lambda data: Array("float32", (2, 5), "numpy.ndarray", data)),
    st.just(Array("object", (1,), "numpy.ndarray", b"\x93NUMPY")),
)
names = st.sampled_from([*START, "other", ""])
metrics = st.dictionaries(
    st.sampled_from(["num-examples", "partition-id", "flops", "loss", "norm", ""]), values
)
nonsense = st.fixed_dictionaries(
    {},
    optional={
        "arrays": st.dictionaries(names, arrays, max_size=3).map(ArrayRecord),
        "scaled": st.sampled_from([1e4, 1e20, -1e6, math.nan]),
        "metrics": metrics.map(MetricRecord),
        "second": metrics.map(MetricRecord),
        "config": st.just(ConfigRecord({"server-round": "never", "step": 3})),
        "secure": st.just(ConfigRecord({"mask-key": 3, "sealed": [b""], "shares": "none"})),
        "error": st.sampled_from(["", "\ud800", "x" * 5000]),
    },
)


def honest(message, client):
    """What came, changed a little at random."""
    rng, trained = np.random.default_rng([client, message.content["config"]["server-round"]]), {}
    received = message.content["arrays"] or ArrayRecord({k: Array(v) for k, v in START.items()})
    for name, array in received.items():
        value = array.numpy()
        trained[name] = Array((value + rng.normal(size=value.shape)).astype(value.dtype))
    told = {"num-examples": 4, "partition-id": client, "loss": 0.5, "flops": 1e9}
    return {"arrays": ArrayRecord(trained), "metrics": MetricRecord(told)}


def lie(truth, told):
    """The records of an honest answer with those of nonsense in their place or beside them."""
    told, factor = dict(told), told.get("scaled")
    if told.pop("error", None) is not None:
        raise RuntimeError("sent nothing")
    told.pop("scaled", None)
    if factor is not None:
        scaled = {
            name: Array(a.numpy() * np.float32(factor)) for name, a in truth["arrays"].items()
        }
        truth = {**truth, "arrays": ArrayRecord(scaled)}
    return {**truth, **told}


@pytest.mark.parametrize("name", STRATEGIES)
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(told=nonsense)
def test_nonsense_ends_no_run_and_spoils_no_model(name, told):
    app, strategy = ClientApp(), STRATEGIES[name]()

    @app.train()
    def train(message: Message, context):
        client = int(context.node_config["partition-id"])
        records = honest(message, client)
        records = lie(records, told) if client == LIAR else records
        return Message(RecordDict(records), reply_to=message)

    app = secured(app) if name == "secure" else app
    start = ArrayRecord({key: Array(value) for key, value in START.items()})
    with np.errstate(all="ignore"), LabGrid(app, CLIENTS) as grid:
        strategy.start(grid, start, num_rounds=ROUNDS)
    latest = {key: array.numpy() for key, array in strategy.latest.items()}
    assert set(latest) == set(START) and all(np.isfinite(v).all() for v in latest.values())
    # Three honest clients moved it, and no further than a liar can who stays within what is usual. Who merges whatever
    # comes first has nothing to compare it with, if the liar is the fastest.
    furthest = max(np.abs(value).max() for value in latest.values())
    assert 0 < furthest and (furthest < 1e3 or name == "FedBuff")
    named = {refusal.client for refusal in strategy.refused}
    named -= (
        {"everyone"} if name == "FedBuff" else set()
    )  # a merge of the liar's uploads alone is none
    assert named <= {f"client {LIAR}"} | {f"node {node}" for node in grid.partitions}
    frame = grid.trace.frame()
    assert np.isfinite(frame["flops"]).all() and (frame["flops"] >= 0).all()
    if hasattr(strategy, "clock"):
        assert math.isfinite(strategy.clock.now) and strategy.clock.now > 0
