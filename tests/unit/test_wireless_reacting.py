"""Servers that react to simulated time, on clients that only know numbers, and once on adapters."""

import math
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from pandas.testing import assert_frame_equal

from fedgen_lab.federation import CheckedFedAvg, LabGrid
from fedgen_lab.federation.fedavg import Averaging
from fedgen_lab.scenario import Scenario
from fedgen_lab.wireless.channel import Network, place_clients
from fedgen_lab.wireless.fedbuff import FedBuff
from fedgen_lab.wireless.reacting import ReactingFedAvg, reacting_strategy
from fedgen_lab.wireless.replay import meet_deadline, replay

NUMBERS, FLOPS = 20_000, 1e11
START = ArrayRecord({"w": Array(np.zeros(NUMBERS, np.float32))})
WIDE = Network(
    6,
    bandwidth_hz=1e12,
    downlink_hz=1e12,
    device_power_dbm=100,
    station_power_dbm=100,
    fading=False,
)


class Tried(Averaging):
    """Every client tries the new arrays out."""

    fraction_evaluate = 1.0


def change_of(client, job):
    """What a client adds to the model in its n-th piece of work."""
    return np.random.default_rng([client, job]).normal(size=NUMBERS).astype(np.float32)


def run(strategy, num_clients=6, rounds=3, fault=None, evaluates=False):
    """A run with clients that add numbers of their own; `fault(client, job, reply)` may spoil an answer."""
    app, jobs = ClientApp(), dict.fromkeys(range(num_clients), 0)

    @app.train()
    def add(message, context):
        client = context.node_config["partition-id"]
        jobs[client] += 1
        received = message.content["arrays"]["w"].numpy()
        arrays = ArrayRecord({"w": Array(received + change_of(client, jobs[client]))})
        metrics = MetricRecord({"num-examples": client + 1, "partition-id": client, "flops": FLOPS})
        reply = Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
        return reply if fault is None else fault(client, jobs[client], reply)

    if evaluates:

        @app.evaluate()
        def tell(message, context):
            metrics = MetricRecord({"num-examples": 1, "loss": 0.5, "flops": FLOPS})
            return Message(RecordDict({"metrics": metrics}), reply_to=message)

    with LabGrid(app, num_clients) as grid:
        strategy.start(grid, START, num_rounds=rounds)
    strategy.trace, strategy.jobs = grid.trace, jobs
    return strategy


def asked_by_round(strategy):
    sent = strategy.trace.frame()
    return sent[sent.sender == -1].groupby("round").receiver.apply(sorted).to_dict()


def late_of(strategy):
    """(round, client) of the uploads that came too late."""
    late = [refusal for refusal in strategy.refused if "was too late" in refusal.reason]
    return [(refusal.round, int(refusal.client.removeprefix("client "))) for refusal in late]


def assert_same_timeline(ours, theirs):
    for name in ("events", "rounds", "clients"):
        assert_frame_equal(getattr(ours, name), getattr(theirs, name), check_dtype=False, rtol=1e-9)


@pytest.mark.parametrize("allocation", ["equal", "proportional", "min-max"])
@pytest.mark.parametrize("downlink", ["unicast", "broadcast"])
def test_its_clock_agrees_with_the_replay_of_its_trace(allocation, downlink):
    network = Network(6, allocation=allocation, downlink=downlink, kappa=1e-28, seed=5)
    strategy = run(ReactingFedAvg(network))
    assert_same_timeline(strategy.clock.timeline(), replay(strategy.trace, network))


@pytest.mark.parametrize("num_clients", [1, 6])
def test_its_clock_agrees_with_the_replay_when_clients_evaluate_too(num_clients):
    strategy = run(
        ReactingFedAvg(Network(6, seed=5), protocol=Tried()), num_clients, evaluates=True
    )
    assert set(strategy.trace.frame().kind) == {"train", "evaluate"}
    assert_same_timeline(strategy.clock.timeline(), replay(strategy.trace, Network(6, seed=5)))


def test_only_who_trains_is_chosen():
    chosen = {
        "select": "fastest",
        "fraction": 0.5,
        "deadline_seconds": 0.001,
    }  # too late to train, not to evaluate
    strategy = run(ReactingFedAvg(Network(6), protocol=Tried(), **chosen), rounds=1, evaluates=True)
    kinds = strategy.trace.frame().query("sender < 0").groupby("kind").receiver.nunique()
    assert kinds.to_dict() == {"train": 3, "evaluate": 6}
    assert (
        len(late_of(strategy)) == 3 and len(strategy.refused) == 4
    )  # the three, and that nobody is left


def test_another_protocol_can_stand_behind_the_clock():
    class Doubling(Averaging):
        def merge(self, strategy, server_round, uploads, weights):
            mean = super().merge(strategy, server_round, uploads, weights)
            return ArrayRecord({"w": Array(2 * mean["w"].numpy())})

    scenario = Scenario(num_clients=2, select="deadline", deadline_seconds=1e6)
    strategy = run(reacting_strategy(scenario, protocol=Doubling(), seed=3), 2, rounds=1)
    plain = run(CheckedFedAvg(), 2, rounds=1)
    np.testing.assert_allclose(
        strategy.latest["w"].numpy(), 2 * plain.latest["w"].numpy(), rtol=1e-6
    )


def test_without_selection_and_deadline_it_is_the_plain_average():
    plain, ours = run(CheckedFedAvg()), run(ReactingFedAvg(Network(6)))
    assert np.array_equal(plain.latest["w"].numpy(), ours.latest["w"].numpy()) and not ours.refused


def test_a_random_half_is_another_half_in_another_round_and_the_same_for_the_same_seed():
    first, again, other = (
        run(ReactingFedAvg(Network(6), select="random", fraction=0.5, seed=s)) for s in (1, 1, 2)
    )
    asked = asked_by_round(first)
    assert [len(clients) for clients in asked.values()] == [3, 3, 3] and len(
        set(map(tuple, asked.values()))
    ) > 1
    assert asked == asked_by_round(again) != asked_by_round(other)


def test_the_fastest_are_those_who_would_finish_first():
    network = Network(6, seed=2)
    strategy = run(ReactingFedAvg(network, select="fastest", fraction=0.5, work_flops=FLOPS))
    everyone = replay(run(ReactingFedAvg(network)).trace, network).events
    everyone = everyone.groupby(["round", "client"]).end_seconds.max().unstack()
    for server_round, clients in asked_by_round(strategy).items():
        assert clients == sorted(everyone.loc[server_round].nsmallest(3).index)
    assert strategy.clock.now < run(ReactingFedAvg(network)).clock.now


def test_without_fading_and_radio_the_fastest_are_the_fastest_computers():
    speeds = place_clients(WIDE).flops_per_second
    strategy = run(ReactingFedAvg(WIDE, select="fastest", fraction=1 / 3, work_flops=FLOPS))
    assert set(map(tuple, asked_by_round(strategy).values())) == {
        tuple(sorted(speeds.nlargest(2).index))
    }


@pytest.mark.parametrize("allocation", ["equal", "min-max"])
def test_a_deadline_takes_as_many_as_make_it_and_all_of_them_do(allocation):
    network = Network(6, fading=False, allocation=allocation, seed=3)
    slow = run(ReactingFedAvg(network), rounds=1).clock.now
    strategy = run(
        ReactingFedAvg(network, select="deadline", deadline_seconds=0.6 * slow, work_flops=FLOPS)
    )
    asked = asked_by_round(strategy)
    assert 0 < len(asked[1]) < 6 and not strategy.refused
    assert (strategy.clock.timeline().rounds.seconds <= 0.6 * slow * (1 + 1e-9)).all()
    left_out = set(range(6)) - set(asked[1])
    one_more = [  # with anyone else, someone is late
        late_of(run(Only(asked[1] + [client], network, deadline_seconds=0.6 * slow), rounds=1))
        for client in left_out
    ]
    assert all(one_more)


class Only(ReactingFedAvg):
    """Asks these clients."""

    def __init__(self, clients, network, **options):
        super().__init__(network, **options)
        self.only = clients

    def _connected(self, server_round, grid):
        return [
            node
            for node in super()._connected(server_round, grid)
            if self.clients.partitions[node] in self.only
        ]


def test_nobody_is_asked_when_nobody_can_make_the_deadline():
    strategy = run(
        ReactingFedAvg(Network(6), select="deadline", deadline_seconds=0.01, work_flops=FLOPS),
        rounds=2,
    )
    assert (
        len(strategy.trace) == 0
        and np.all(strategy.latest["w"].numpy() == 0)
        and strategy.clock.now == 0
    )
    assert [(r.round, r.client) for r in strategy.refused] == [(1, "everyone"), (2, "everyone")]
    assert "No client can make the deadline of 0.01 s" in strategy.refused[0].reason


def test_late_uploads_are_dropped_by_name_and_the_others_are_averaged():
    network = Network(6, seed=4)
    trace = run(CheckedFedAvg(), rounds=1).trace
    finish = replay(trace, network).events.groupby("client").end_seconds.max()
    deadline = float(finish.sort_values().iloc[2:4].mean())  # three in time, three late
    strategy = run(ReactingFedAvg(network, deadline_seconds=deadline), rounds=1)
    late = set(finish[finish > deadline].index)
    assert {client for _, client in late_of(strategy)} == late and len(late) == 3
    assert {r.client for r in strategy.refused} == {f"client {client}" for client in late}
    assert all(
        "too late" in r.reason and f"deadline of {deadline:.3g} s" in r.reason
        for r in strategy.refused
    )
    weights = {client: client + 1 for client in range(6) if client not in late}
    mean = sum(
        change_of(client, 1) * (weight / sum(weights.values()))
        for client, weight in weights.items()
    )
    np.testing.assert_allclose(strategy.latest["w"].numpy(), mean, atol=1e-6)
    timeline = strategy.clock.timeline()
    assert timeline.rounds.seconds.item() == pytest.approx(deadline)
    assert timeline.events.end_seconds.max() == pytest.approx(deadline)
    uploads = timeline.events[timeline.events.phase == "upload"].set_index("client").bytes
    whole = trace.frame().query("sender >= 0").set_index("sender").bytes
    assert all(
        uploads.get(client, 0) < whole[client]
        if client in late
        else uploads[client] == whole[client]
        for client in range(6)
    )


@pytest.mark.parametrize("allocation", ["equal", "proportional", "min-max"])
def test_who_is_late_while_the_run_goes_on_is_who_would_be_late_in_a_recorded_run(allocation):
    network = Network(6, allocation=allocation, seed=4)
    whole = replay(run(CheckedFedAvg()).trace, network)
    deadline = float(whole.rounds.seconds.median() * 0.999)
    recorded = meet_deadline(whole, deadline)
    strategy = run(ReactingFedAvg(network, deadline_seconds=deadline))
    late = {
        r: tuple(sorted(c for at, c in late_of(strategy) if at == r)) for r in recorded["round"]
    }
    assert late == dict(zip(recorded["round"], recorded["late"], strict=True)) and any(
        late.values()
    )
    np.testing.assert_allclose(strategy.clock.timeline().rounds.seconds, recorded.seconds)


def test_a_client_that_was_late_is_asked_again_in_the_next_round():
    network = Network(6, seed=4)
    deadline = 0.5 * run(ReactingFedAvg(network), rounds=1).clock.now
    strategy = run(ReactingFedAvg(network, deadline_seconds=deadline), rounds=3)
    assert late_of(strategy) and all(
        clients == list(range(6)) for clients in asked_by_round(strategy).values()
    )


def test_a_faulty_client_is_still_refused_for_its_fault():
    def fault(client, job, reply):
        if client == 2:
            reply.content["arrays"]["w"] = Array(np.full(NUMBERS, np.nan, np.float32))
        return reply

    for strategy in (
        ReactingFedAvg(Network(6), deadline_seconds=1e6),
        FedBuff(Network(6), buffer=3),
    ):
        run(strategy, fault=fault)
        assert {r.client for r in strategy.refused} == {"client 2"} and "NaN" in strategy.refused[
            0
        ].reason
        assert np.isfinite(strategy.latest["w"].numpy()).all()


def test_fedbuff_by_hand():
    """An independent event loop: who uploads when, from which model, and what a merge makes of it."""
    network = replace(WIDE, speed_spread=0.8, seed=1)
    buffer, rounds = 3, 5
    strategy = run(FedBuff(network, buffer=buffer), rounds=rounds)
    lasts = FLOPS / place_clients(network).flops_per_second.to_numpy()  # the radio takes no time
    ends, began, jobs = lasts.copy(), np.zeros(6, int), np.ones(6, int)
    model, collected, merged, version = np.zeros(NUMBERS), [], [], 0
    while version < rounds:
        client, now = int(ends.argmin()), ends.min()
        collected.append((client, version - began[client], jobs[client]))
        if len(collected) == buffer:
            total = sum(client + 1 for client, _, _ in collected)
            for client_, stale, job in collected:
                model = model + (client_ + 1) / total / math.sqrt(1 + stale) * change_of(
                    client_, job
                )
            version += 1
            merged += [(version, client_, stale) for client_, stale, _ in collected]
            collected = []
        began[client], jobs[client] = version, jobs[client] + 1
        ends[client] += lasts[client]
    assert strategy.merged == merged and max(stale for _, _, stale in merged) > 0
    np.testing.assert_allclose(strategy.latest["w"].numpy(), model, atol=1e-5)
    assert strategy.clock.now == pytest.approx(now, rel=1e-3)


def test_fedbuff_merges_sooner_than_a_round_of_all_ends():
    network = Network(6, speed_spread=1.0, seed=1)
    synchronous, asynchronous = run(ReactingFedAvg(network)), run(FedBuff(network, buffer=2))
    assert asynchronous.clock.now < synchronous.clock.now


def test_fedbuff_with_one_client_and_a_buffer_of_one_is_a_federation_of_one():
    plain, ours = run(CheckedFedAvg(), 1), run(FedBuff(Network(1), buffer=1), 1)
    np.testing.assert_allclose(ours.latest["w"].numpy(), plain.latest["w"].numpy(), atol=1e-6)
    seconds = replay(plain.trace, Network(1)).rounds.seconds
    np.testing.assert_allclose(
        ours.clock.timeline().rounds.seconds, seconds, rtol=1e-4
    )  # "job" takes a few bytes, too


def test_fedbuffs_timeline_has_no_client_doing_two_things_at_once():
    strategy = run(FedBuff(Network(6, seed=1), buffer=2), rounds=6)
    timeline = strategy.clock.timeline()
    for _, rows in timeline.events.groupby("client"):
        rows = rows.sort_values("start_seconds")
        assert (rows.start_seconds.to_numpy()[1:] >= rows.end_seconds.to_numpy()[:-1] - 1e-9).all()
    assert np.allclose(timeline.rounds.seconds.cumsum(), timeline.rounds.end_seconds)
    assert timeline.events.end_seconds.max() <= strategy.clock.now + 1e-9
    assert timeline.rounds["round"].tolist() == [1, 2, 3, 4, 5, 6]


def test_fedbuff_refuses_an_upload_a_thousand_times_too_large_even_as_the_first():
    network = replace(WIDE, speed_spread=0.1)  # where nobody uploads twice before the others did
    first = int(place_clients(network).flops_per_second.argmax())

    def fault(client, job, reply):
        if client == first:
            reply.content["arrays"]["w"] = Array(
                reply.content["arrays"]["w"].numpy() * np.float32(1e3)
            )
        return reply

    strategy = run(FedBuff(network, buffer=3), fault=fault)
    assert {r.client for r in strategy.refused} == {
        f"client {first}"
    } and "times as much" in strategy.refused[0].reason
    assert (
        first not in {client for _, client, _ in strategy.merged}
        and abs(strategy.latest["w"].numpy()).max() < 50
    )


def test_fedbuff_ends_its_rounds_even_when_every_client_fails():
    def fault(client, job, reply):
        raise ZeroDivisionError("no pictures")

    strategy = run(FedBuff(Network(3), buffer=2), 3, rounds=2, fault=fault)
    for server_round in (1, 2):
        named = [refusal.client for refusal in strategy.refused if refusal.round == server_round]
        assert sorted(named) == ["client 0", "client 1", "client 2", "everyone"]
    assert np.all(strategy.latest["w"].numpy() == 0)


class Slow:
    """A grid that is no LabGrid: it hands answers out one by one, whenever asked, as a SuperLink might."""

    def __init__(self, grid, order):
        self.grid, self.order, self.waiting = grid, order, []

    def __getattr__(self, name):
        if name == "partitions":
            raise AttributeError
        return getattr(self.grid, name)

    def push_messages(self, messages):
        message_ids = self.grid.push_messages(messages)
        self.waiting += zip(
            message_ids,
            [self.grid.partitions[m.metadata.dst_node_id] for m in messages],
            strict=True,
        )
        return message_ids

    def pull_messages(self, message_ids):
        first = min(
            (w for w in self.waiting if w[0] in message_ids),
            key=lambda w: self.order[w[1]],
            default=None,
        )
        if first is None:
            return []
        self.waiting.remove(first)
        return self.grid.pull_messages([first[0]])


def test_elsewhere_than_on_a_labgrid_uploads_count_as_they_arrive():
    app = ClientApp()

    @app.train()
    def add(message, context):
        client = context.node_config["partition-id"]
        arrays = ArrayRecord({"w": Array(message.content["arrays"]["w"].numpy() + 1)})
        metrics = MetricRecord({"num-examples": 1, "partition-id": client})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    strategy = FedBuff(Network(3), buffer=1, min_available_nodes=3)
    with LabGrid(app, 3) as grid:
        strategy.start(Slow(grid, order=[2, 0, 1]), START, num_rounds=4)
    assert {client for _, client, _ in strategy.merged} == {
        1
    } and strategy.clock.now == 0  # the first, again and again
    np.testing.assert_allclose(strategy.latest["w"].numpy(), 4)


@pytest.mark.parametrize(
    "knobs, names",
    [
        ({"buffer": 2, "select": "fastest"}, ("buffer=2", "select='fastest'")),
        ({"buffer": 2, "deadline_seconds": 3.0}, ("buffer=2", "deadline_seconds=3.0")),
        ({"select": "deadline"}, ('select="deadline"', "deadline_seconds")),
    ],
    ids=["buffer-select", "buffer-deadline", "deadline-without-seconds"],
)
def test_knobs_that_contradict_each_other_are_both_named(knobs, names):
    with pytest.raises(ValueError) as error:
        reacting_strategy(Scenario(**knobs))
    assert all(name in str(error.value) for name in names)


def test_too_small_a_network_is_named():
    with pytest.raises(ValueError, match="num_clients=6"):
        run(ReactingFedAvg(Network(4)))
    with pytest.raises(ValueError, match="num_clients=6"):
        run(FedBuff(Network(4)))
