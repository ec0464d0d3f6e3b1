"""Claims about secure aggregation: fedgen_lab/privacy/{masks,secure}.py (lab 08)."""

import math
import re
from itertools import combinations

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.serverapp import ServerApp
from scipy import stats

from fedgen_lab.federation import secure_device
from fedgen_lab.federation.averages import change_of, flat, noise_like, private_mean
from fedgen_lab.federation.masks import (
    PRIME,
    from_ring,
    mask_of,
    new_key_pair,
    pair_masks,
    public_of,
    recover_secret,
    ring_bits,
    shared_seed,
    split_secret,
    to_ring,
)
from fedgen_lab.federation.run import run_app
from fedgen_lab.federation.secret import VARIABLE, noise_source, secret_for, secret_of
from fedgen_lab.federation.secure import SecureFedAvg
from fedgen_lab.federation.secure_device import secured

EXAMPLES = (5, 16, 9, 12, 3, 7)  # of the six clients
START = {"a": torch.zeros(40, 25), "b": torch.ones(300)}


def trained(client, server_round=1):
    """What a client of the test has after training: the same on every call."""
    draws = torch.Generator().manual_seed(100 * server_round + client)
    return {
        name: value + 0.1 * torch.randn(value.shape, generator=draws)
        for name, value in START.items()
    }


def as_numpy(state):
    return {name: value.numpy() for name, value in state.items()}


def plain_client(trouble=None):
    """A client that answers with `trained`. `trouble`: partition id -> function of its arrays, which may raise."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        i, server_round = (
            int(context.node_config["partition-id"]),
            int(message.content["config"]["server-round"]),
        )
        state = (trouble or {}).get(i, lambda state, server_round: state)(
            trained(i, server_round), server_round
        )
        metrics = MetricRecord(
            {"num-examples": EXAMPLES[i], "partition-id": i, "loss": 0.5, "flops": 10.0}
        )
        return Message(
            RecordDict({"arrays": ArrayRecord(state), "metrics": metrics}), reply_to=message
        )

    return app


def lost(state, server_round):
    raise ConnectionError("out of reach")


def run(num_clients=4, trouble=None, rounds=1, client=None, **settings):
    """Run the protocol and return the strategy."""
    server, kept = ServerApp(), []

    @server.main()
    def main(grid, context):
        kept.append(
            SecureFedAvg(**{"most_examples": 16, "min_available_nodes": num_clients, **settings})
        )
        kept[0].start(grid, ArrayRecord(START), num_rounds=rounds)

    done = run_app(server, client or secured(plain_client(trouble)), num_clients, {"secure": 1})
    kept[0].trace = done.trace
    return kept[0]


def fixed_point_mean(clients, num_clients, most_examples=16):
    """The new arrays by the ring's arithmetic alone, without a mask anywhere."""
    bits, total = ring_bits(num_clients, 8.0), np.zeros(1301, dtype=np.uint32)
    for i in clients:
        total = total + to_ring(as_numpy(trained(i)), EXAMPLES[i] / most_examples, bits, 8.0)
    flat, weight = from_ring(total, bits)
    mean = (flat / weight).astype(np.float32)
    return {"a": mean[:1000].reshape(40, 25), "b": mean[1000:]}


def as_bytes(arrays):
    return {name: array.data for name, array in arrays.items()}


def same_bits(arrays, expected):
    return all(np.array_equal(arrays[name].numpy(), value) for name, value in expected.items())


# -- shares -----------------------------------------------------------------------------------------------------------


def test_any_threshold_of_shares_give_the_secret_back():
    secret = bytes(range(32))
    shares = split_secret(secret, 3, [0, 2, 5, 6, 9])
    for some in combinations(shares, 3):
        assert recover_secret({x: shares[x] for x in some}) == secret
    assert recover_secret(shares) == secret


def test_fewer_shares_fit_every_secret_as_well_as_the_true_one():
    shares = split_secret(bytes(32), 2, [0, 1])
    # Two shares of a line: with one point and any secret there is a line through both.
    one = int.from_bytes(shares[0])
    for guess in (0, 1, 12345678901234567890):
        other = (guess + 2 * (one - guess)) % PRIME
        fake = {0: shares[0], 1: other.to_bytes(66)}
        assert int.from_bytes(recover_secret(fake)) == guess
    with pytest.raises(ValueError, match="do not belong to one secret, or are too few"):
        recover_secret({0: split_secret(bytes(32), 3, [0, 1, 2])[0]})


# -- masks and the ring -----------------------------------------------------------------------------------------------


def test_both_of_a_pair_find_the_same_seed_and_a_third_does_not():
    (ours, our_key), (theirs, their_key), (other, _) = (new_key_pair() for _ in range(3))
    assert shared_seed(ours, their_key, b"mask") == shared_seed(theirs, our_key, b"mask")
    assert shared_seed(other, their_key, b"mask") != shared_seed(ours, their_key, b"mask")
    assert shared_seed(ours, their_key, b"letter") != shared_seed(ours, their_key, b"mask")
    assert public_of(ours) == our_key


def test_all_pair_masks_together_vanish_and_none_of_them_alone():
    pairs = [new_key_pair() for _ in range(5)]
    masks = [
        pair_masks(i, secret, {j: key for j, (_, key) in enumerate(pairs) if j != i}, 50)
        for i, (secret, _) in enumerate(pairs)
    ]
    assert not np.any(sum(masks)) and all(np.any(mask) for mask in masks)


@pytest.mark.parametrize(("num_clients", "limit"), [(2, 1.0), (7, 8.0), (50, 8.0), (1000, 30.0)])
def test_the_ring_never_overflows_however_large_the_allowed_updates_are(num_clients, limit):
    bits = ring_bits(num_clients, limit)
    vector = to_ring({"w": np.array([limit, -limit])}, 1.0, bits, limit)
    total = (vector.astype(np.uint64) * num_clients % 2**32).astype(np.uint32)
    flat, weight = from_ring(total, bits)
    assert flat.tolist() == [num_clients * limit, -num_clients * limit] and weight == num_clients
    assert ring_bits(num_clients, limit) >= 30 - math.log2(num_clients * limit) - 1


def test_rounding_is_towards_zero_and_finer_than_a_float32_of_the_weights():
    values = np.random.default_rng(0).normal(size=500)
    bits = ring_bits(10, 8.0)
    flat, _ = from_ring(to_ring({"w": values}, 1.0, bits, 8.0), bits)
    assert np.all(np.abs(flat) <= np.abs(values)) and np.abs(flat - values).max() < 1e-6


@pytest.mark.parametrize("value", [9.0, math.nan, math.inf], ids=["large", "nan", "infinite"])
def test_the_device_sends_nothing_that_the_ring_cannot_hold(value):
    with pytest.raises(ValueError, match="the numbers to send reach"):
        to_ring({"w": np.array([0.0, value])}, 1.0, 20, 8.0)


def test_a_weight_beyond_the_agreed_one_is_refused():
    with pytest.raises(ValueError, match="weight must lie in"):
        to_ring({"w": np.zeros(2)}, 1.5, 20, 8.0)


def test_a_mask_is_uniform_on_the_ring():
    mask = mask_of(b"\x07" * 32, 20_000)
    assert stats.kstest(mask / 2**32, "uniform").pvalue > 1e-7
    assert np.array_equal(mask[:10], mask_of(b"\x07" * 32, 10))


# -- the protocol -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_clients", [2, 3, 6])
def test_the_sum_is_exact_bit_for_bit_and_the_mean_is_fedavgs(num_clients):
    strategy = run(num_clients)
    assert strategy.refused == [] and strategy.client_arrays == {}
    assert same_bits(strategy.latest, fixed_point_mean(range(num_clients), num_clients))
    share = np.array(EXAMPLES[:num_clients]) / sum(EXAMPLES[:num_clients])
    for name in START:
        mean = sum(p * trained(i)[name].numpy() for i, p in enumerate(share))
        assert np.allclose(strategy.latest[name].numpy(), mean, atol=1e-6)


def test_the_server_sees_noise():
    seen, again = run(4).seen, run(4).seen
    for i, vector in seen.items():
        assert stats.kstest(vector / 2**32, "uniform").pvalue > 1e-7
        flat = np.concatenate([value.numpy().ravel() for value in trained(i).values()])
        assert abs(stats.spearmanr(vector[:-1].view(np.int32), flat).statistic) < 0.2
        assert np.mean(vector == again[i]) < 0.01  # the same update, other masks
    # A negative control: without masks the same tests find the update at once.
    bare = to_ring({"w": flat}, 1.0, 20, 8.0)
    assert stats.kstest(bare / 2**32, "uniform").pvalue < 1e-12
    assert stats.spearmanr(bare[:-1].view(np.int32), flat).statistic > 0.99


def test_the_sum_of_all_but_one_is_noise_too():
    strategy = run(4)
    assert stats.kstest(sum(list(strategy.seen.values())[:3]) / 2**32, "uniform").pvalue > 1e-7


@pytest.mark.parametrize("gone", [(0,), (3,), (1, 4)], ids=["first", "middle", "two"])
def test_clients_lost_before_uploading_leave_no_trace_in_the_sum(gone):
    strategy = run(6, {i: lost for i in gone})
    assert same_bits(strategy.latest, fixed_point_mean([i for i in range(6) if i not in gone], 6))
    assert [refusal.client for refusal in strategy.refused] == [f"client {i}" for i in gone]
    assert "out of reach" in strategy.refused[0].reason


def test_too_many_lost_clients_skip_the_round_by_name_and_the_next_one_works():
    def absent_at_first(state, server_round):
        return lost(state, server_round) if server_round == 1 else state

    strategy = run(4, {i: absent_at_first for i in (0, 1)}, rounds=2)
    last = strategy.refused[-1]
    assert last.client == "everyone" and last.round == 1
    assert "2 of 4 clients uploaded where 3 are needed" in strategy.refused[-2].reason
    assert "the model stays as it was" in last.reason
    assert np.allclose(strategy.latest["b"].numpy(), 1, atol=0.3) and not same_bits(
        strategy.latest, as_numpy(START)
    )


@pytest.mark.parametrize("step", ["keys", "shares", "reveal"])
def test_a_client_may_vanish_at_any_step(monkeypatch, step):
    inner = getattr(secure_device, f"_{step}")

    def vanish(told, context):
        if context.node_config["partition-id"] == 1:
            raise ConnectionError("out of reach")
        return inner(told, context)

    monkeypatch.setattr(secure_device, f"_{step}", vanish)
    strategy = run(4)
    who = [0, 1, 2, 3] if step == "reveal" else [0, 2, 3]  # what was uploaded counts
    assert same_bits(strategy.latest, fixed_point_mean(who, 4))
    assert [r.client for r in strategy.refused] == ["client 1"] and f"'{step}'" in strategy.refused[
        0
    ].reason


@pytest.mark.parametrize("step", ["keys", "shares", "reveal"])
def test_too_few_at_any_step_leave_the_model_as_it_was(monkeypatch, step):
    def vanish(told, context):
        raise ConnectionError("out of reach")

    monkeypatch.setattr(secure_device, f"_{step}", vanish)
    strategy = run(3)
    assert same_bits(strategy.latest, as_numpy(START)) and strategy.refused[-1].client == "everyone"


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        (lambda state, _: {**state, "b": state["b"] * math.nan}, "the numbers to send reach nan"),
        (lambda state, _: {**state, "b": state["b"] * 1000}, "the numbers to send reach 1"),
        (lambda state, _: {"a": state["a"]}, "where uint32"),
        (lambda state, _: {**state, "b": state["b"][:7]}, "where uint32"),
    ],
    ids=["nan", "large", "missing", "rank"],
)
def test_a_device_that_cannot_be_summed_leaves_itself_out_by_name(trouble, told):
    strategy = run(4, {2: trouble})
    assert [r.client for r in strategy.refused] == ["client 2"]
    assert re.search(told, strategy.refused[0].reason)
    assert same_bits(strategy.latest, fixed_point_mean([0, 1, 3], 4))


def test_a_wrong_share_spoils_the_round_and_not_the_model(monkeypatch):
    inner = secure_device._reveal

    def lie(told, context):
        answer = inner(told, context)
        return {"shares": [bytes(66) for _ in answer["shares"]]}

    monkeypatch.setattr(secure_device, "_reveal", lie)
    strategy = run(4)
    assert same_bits(strategy.latest, as_numpy(START))
    assert "do not belong to one secret" in strategy.refused[-2].reason


def test_a_device_may_start_a_fresh_process_for_every_message():
    def fresh(message, context):
        context.state = recorddict_from_proto(recorddict_to_proto(context.state))
        return secured(plain_client())(message, context)

    assert same_bits(run(4, client=fresh).latest, fixed_point_mean(range(4), 4))


def test_one_client_alone_is_not_hidden_and_so_is_not_asked():
    strategy = run(1)
    assert same_bits(strategy.latest, as_numpy(START)) and not strategy.seen
    assert "1 of 1 clients agreed on keys where 2 are needed" in strategy.refused[0].reason


@pytest.mark.parametrize(
    "answer", [{}, {"mask-key": 7, "box-key": 7}, {"mask-key": b"", "box-key": b"7" * 32}]
)
def test_an_answer_of_another_form_leaves_its_client_out_by_name(monkeypatch, answer):
    inner = secure_device._keys

    def garble(told, context):
        return answer if context.node_config["partition-id"] == 1 else inner(told, context)

    monkeypatch.setattr(secure_device, "_keys", garble)
    strategy = run(4)
    assert [r.client for r in strategy.refused] == [
        "client 1"
    ] and "mask-key and box-key" in strategy.refused[0].reason
    assert same_bits(strategy.latest, fixed_point_mean([0, 2, 3], 4))


# -- what a device refuses --------------------------------------------------------------------------------------------


def test_a_secured_device_does_not_train_in_the_clear():
    from fedgen_lab.federation.fedavg import CheckedFedAvg

    server, kept = ServerApp(), []

    @server.main()
    def main(grid, context):
        kept.append(CheckedFedAvg(min_available_nodes=2))
        kept[-1].start(grid, ArrayRecord(START), num_rounds=1)

    run_app(server, secured(plain_client()), 2, {"secure": 1})
    assert (
        same_bits(kept[0].latest, as_numpy(START)) and "in the clear" in kept[0].refused[0].reason
    )
    run_app(server, secured(plain_client()), 2, {"secure": 0})
    assert not kept[1].refused and not same_bits(kept[1].latest, as_numpy(START))


def test_a_device_reveals_once_and_only_for_enough_survivors(monkeypatch):
    inner, told_why = secure_device._reveal, []

    def ask_for_more(told, context):
        for survivors in ([told["survivors"][0]], [9, 10, 11]):
            with pytest.raises(ValueError, match="too few to unmask") as why:
                copy = {key: value for key, value in context.state["secure"].items()}
                inner({**told, "survivors": survivors}, context)
            context.state["secure"] = secure_device.ConfigRecord(copy)
            told_why.append(str(why.value))
        answer = inner(told, context)
        with pytest.raises(ValueError, match="out of turn"):
            inner(told, context)
        return answer

    monkeypatch.setattr(secure_device, "_reveal", ask_for_more)
    strategy = run(3)
    assert len(told_why) == 6 and not strategy.refused


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda told: {"threshold": 1}, "hides nobody"),
        (
            lambda told: {"mask-keys": [told["mask-keys"][0]] * len(told["mask-keys"])},
            "not the clients' own",
        ),
    ],
    ids=["threshold", "keys"],
)
def test_a_device_refuses_a_list_or_threshold_that_would_not_hide_it(monkeypatch, change, why):
    inner = secure_device._shares
    monkeypatch.setattr(
        secure_device, "_shares", lambda told, context: inner({**told, **change(told)}, context)
    )
    strategy = run(3)
    assert same_bits(strategy.latest, as_numpy(START))
    assert all(why in refusal.reason for refusal in strategy.refused[:3])


# -- with differential privacy; what it costs -------------------------------------------------------------------------


def shares_of_noise(clients, scale, server_round=1, secret_of_client=secret_for):
    """The noise that these devices add together, (D,) with D = 1300."""
    like = {name: np.zeros(value.shape) for name, value in START.items()}
    drawn = [noise_like(like, scale, secret_of_client(i), server_round) for i in clients]
    return sum(flat({name: noise[name] for name in sorted(noise)}) for noise in drawn)


def noise_in(strategy, clients, clip, num_clients):
    """What the server's result holds beside the clipped updates, (D,)."""
    start = as_numpy(START)
    plain = private_mean(clip, 0.0, num_clients)(
        1, start, [as_numpy(trained(i)) for i in clients], [1] * len(clients)
    )
    latest = {name: strategy.latest[name].numpy() for name in sorted(start)}
    return num_clients * flat(change_of(latest, {name: plain[name] for name in sorted(plain)}))


def test_devices_add_the_noise_in_shares_before_they_mask():
    strategy = run(4, clip=0.5, noise_multiplier=0.3, seed=9)
    shares = shares_of_noise(range(4), 0.3 * 0.5 / 3**0.5)  # the threshold is three of four
    assert np.allclose(noise_in(strategy, range(4), 0.5, 4), shares, atol=1e-5)
    # What the server can read of a single upload is masked, and what it reads of all holds the noise.
    assert strategy.noise_multiplier == 0.3 and not strategy.refused


@pytest.mark.parametrize("gone", [(), (2,)])
def test_the_sum_has_all_the_noise_also_when_as_many_are_lost_as_masks_allow(gone):
    here = [i for i in range(4) if i not in gone]
    strategy = run(4, dict.fromkeys(gone, lost), clip=1.0, noise_multiplier=1.0)
    noise = noise_in(strategy, here, 1.0, 4)
    assert 0.92 * len(here) / 3 < noise.var() < 1.08 * len(here) / 3  # at least (z C)^2 = 1


def test_a_server_with_everything_it_has_cannot_take_the_noise_off(monkeypatch):
    monkeypatch.setenv(VARIABLE, "20261130")
    strategy = run(4, clip=1.0, noise_multiplier=1.0, seed=9)
    noise = noise_in(strategy, range(4), 1.0, 4)
    # It knows the run's seed, every node id and position, and how secrets are made, not from what.
    nodes = list(strategy.clients.partitions)
    for seed in (0, 9, *nodes):
        with monkeypatch.context() as its_guess:
            its_guess.setenv(VARIABLE, str(seed))
            for guess in (lambda i, s=seed: s, secret_for, lambda i: nodes[i]):
                left = noise - shares_of_noise(range(4), 3**-0.5, secret_of_client=guess)
                assert left.var() > 1.7 * noise.var()  # a wrong guess adds as much again
    right = noise - shares_of_noise(range(4), 3**-0.5)
    assert right.var() < 1e-6 * noise.var()


def test_a_run_with_noise_repeats_by_its_secret_seed_alone(monkeypatch):
    def result(secret_seed, seed):
        monkeypatch.setenv(VARIABLE, secret_seed)
        return as_bytes(run(3, clip=1.0, noise_multiplier=1.0, seed=seed).latest)

    assert result("1", 0) == result("1", 5) != result("2", 0)


def test_on_real_nodes_noise_comes_from_the_system_and_never_twice_alike(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    node = Context(1, 7, {"partition-id": 0, "num-partitions": 2}, RecordDict(), {"seed": 3})
    assert secret_of(node) is None
    assert noise_source(None, 1).random() != noise_source(None, 1).random()
    monkeypatch.setenv(VARIABLE, "4")  # Flower's simulation hands on the environment alone
    assert secret_of(node) == secret_for(0) != secret_for(1)


@pytest.mark.parametrize("clip", [1.0, 0.0])
def test_a_device_that_is_asked_for_less_noise_than_the_run_says_refuses(clip):
    server, kept = ServerApp(), []

    @server.main()
    def main(grid, context):
        kept.append(SecureFedAvg(most_examples=16, min_available_nodes=3, clip=clip))
        kept[0].start(grid, ArrayRecord(START), num_rounds=1)

    config = {"secure": 1, "clip": 1.0, "noise-multiplier": 0.5}
    run_app(server, secured(plain_client()), 3, config)
    assert all("noise of 0 clips, less than" in r.reason for r in kept[0].refused[:3])
    assert same_bits(kept[0].latest, as_numpy(START))


def test_a_device_that_was_not_told_its_start_does_not_clip_by_guess():
    strategy = run(3, {i: lambda state, _: {"c": state["a"]} for i in range(3)}, clip=1.0)
    assert all(
        "only where the server sent what it starts from" in r.reason for r in strategy.refused[:3]
    )


def test_noise_without_a_clip_is_refused():
    with pytest.raises(ValueError, match="needs a clip above 0"):
        SecureFedAvg(most_examples=16, noise_multiplier=1.0)


def test_uploads_are_as_large_as_float32_and_the_rest_is_small():
    frame = run(4).trace.frame()
    up = frame[(frame["sender"] >= 0) & (frame["kind"] == "train")]["bytes"]
    assert (up - 4 * 1301).between(0, 700).all()
    assert frame[frame["kind"] == "query"]["bytes"].max() < 1500
