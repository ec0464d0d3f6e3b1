"""A client of the U that errs, sends nonsense or goes away is named and left out, and the others go on."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flwr.app import Array

from fedgen_lab.federation.run import run_app
from fedgen_lab.split import u_server
from fedgen_lab.split.scenario import GanScenario
from fedgen_lab.split.u_client import stacked_clients, u_client_app
from fedgen_lab.split.u_server import u_server_app

SCENARIO = GanScenario(
    num_clients=3, rounds=2, iterations=2, batch_size=4, cuts="0110", warm_up=1, domains="digits"
)
SHORT = replace(SCENARIO, rounds=1)


def pictures_of_noise(num_clients):
    draw = torch.Generator().manual_seed(5)
    pictures = [torch.rand(9, 1, 14, 14, generator=draw) * 2 - 1 for _ in range(num_clients)]
    return SimpleNamespace(
        pictures=pictures, labels=[torch.randperm(9, generator=draw) for _ in pictures]
    )


def run_with(trouble, scenario=SCENARIO, dealt=None, stacked=False):
    """A run in which `trouble(kind, client, config, reply)` may spoil a reply; the server afterwards and the rounds."""
    dealt = pictures_of_noise(scenario.num_clients) if dealt is None else dealt
    servers, rounds, app = [], [], u_client_app(dealt, keep=True)
    twin = stacked_clients(dealt)

    def spoilt(message, context, reply):
        config = message.content["config"] if "config" in message.content else {}
        kind = message.metadata.message_type.partition(".")[2]
        trouble(kind, int(context.node_config["partition-id"]), config, reply)
        return reply

    def plain(message, context):
        return spoilt(message, context, app(message, context))

    def together(messages, contexts):
        replies = twin(messages, contexts)
        return replies and [spoilt(*one) for one in zip(messages, contexts, replies, strict=True)]

    run_app(
        u_server_app(keep=servers.append, on_round=rounds.append),
        plain,
        scenario.num_clients,
        scenario.to_run_config(),
        stacked=together if stacked else None,
    )
    return servers[0], rounds


def put(name, value):
    """A trouble: client 1 sends `value(its own array)` as `name` in the first iteration."""

    def spoil(kind, client, config, reply):
        here = (
            client == 1
            and config.get("server-round") == 1
            and config["iteration"] == 0
            and kind != "start"
        )
        if here and "tensors" in reply.content and name in reply.content["tensors"]:
            reply.content["tensors"][name] = Array(value(reply.content["tensors"][name].numpy()))

    return spoil


@pytest.mark.parametrize(
    "name", ["g_head", "d_head_real", "d_body_fake", "d_head_fool", "d_body_fool", "g_body"]
)
def test_nan_from_one_client_is_named_and_touches_nobody_else(name):
    stacked = name.startswith("d_head")
    server, rounds = run_with(
        put(name, lambda array: array * np.float32("nan")), SHORT, stacked=stacked
    )
    ((server_round, client, reason),) = server.refused
    assert (server_round, client) == (1, "client 1") and f"NaN or infinity in '{name}'" in reason
    assert list(server.clients) == [0, 2] and len(rounds) == 2
    assert (
        server.generators[1] is None
        and rounds[-1].groups[1] == -1
        and np.isnan(rounds[-1].weights[1])
    )
    assert all(tensor.isfinite().all() for i in (0, 2) for tensor in server.generators[i].values())


def test_nan_in_a_first_hop_leaves_the_others_exactly_as_if_the_client_had_never_been_there():
    """Lost at the very start, so nothing of theirs has to begin again."""

    def nan_at_once(kind, client, config, reply):
        if client == 2 and kind == "start":
            array = reply.content["tensors"]["g_head"].numpy()
            reply.content["tensors"]["g_head"] = Array(array * np.float32("nan"))

    with_it, _ = run_with(nan_at_once, SHORT)
    dealt = pictures_of_noise(3)
    without = replace(SHORT, num_clients=2)
    alone, _ = run_with(
        lambda *_: None,
        without,
        SimpleNamespace(pictures=dealt.pictures[:2], labels=dealt.labels[:2]),
    )
    assert all(
        torch.equal(with_it.generators[0][name], tensor)
        for name, tensor in alone.generators[0].items()
    )


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("g_head", lambda array: array[:1], "not torch.float32"),
        ("g_head", lambda array: array.astype(np.float64), "torch.float64"),
        ("g_body", lambda array: array[:, :, :1], "not torch.float32"),
        ("d_head_real", lambda array: np.array(["x"]), "client 1"),
    ],
    ids=["fewer", "other-type", "other-shape", "words"],
)
def test_a_tensor_that_cannot_be_right_is_refused_in_words(name, value, words):
    server, _ = run_with(put(name, value), SHORT)
    ((_, client, reason),) = server.refused
    assert client == "client 1" and words in reason.lower() and list(server.clients) == [0, 2]


def test_a_client_that_raises_an_error_is_left_out_and_the_run_goes_on():
    servers, app = [], u_client_app(pictures_of_noise(3), keep=True)

    def fragile(message, context):
        is_judge = (
            message.metadata.message_type == "train.judge"
            and message.content["config"]["server-round"] == 2
        )
        if context.node_config["partition-id"] == 0 and is_judge:
            raise ZeroDivisionError("a flat battery")
        return app(message, context)

    run_app(u_server_app(keep=servers.append), fragile, 3, SCENARIO.to_run_config())
    ((server_round, client, reason),) = servers[0].refused
    assert (
        (server_round, client) == (2, "client 0")
        and "a flat battery" in reason
        and "(judge)" in reason
    )
    assert servers[0].round == 2 and list(servers[0].clients) == [1, 2]


def test_blocks_with_nan_in_them_are_not_averaged():
    def poison(kind, client, config, reply):
        if client == 1 and kind == "learn_g" and "blocks" in reply.content:
            array = reply.content["blocks"]["g.0.body.0.bias"].numpy()
            reply.content["blocks"]["g.0.body.0.bias"] = Array(array * np.float32("inf"))

    server, _ = run_with(poison, SHORT)
    assert [client for _, client, _ in server.refused] == [
        "client 1"
    ] and "g.0.body.0.bias" in server.refused[0][2]
    assert all(tensor.isfinite().all() for tensor in server.generators[0].values())


def test_with_nobody_left_the_run_ends_with_a_sentence_and_keeps_the_rounds_that_were_done():
    def everyone_fails(kind, client, config, reply):
        if kind == "fakes" and config["server-round"] == 2:
            for name in ("d_head_fake", "d_head_real"):
                array = reply.content["tensors"][name].numpy()
                reply.content["tensors"][name] = Array(array * np.float32("nan"))

    server, rounds = run_with(everyone_fails)
    assert [event.round for event in rounds] == [0, 1]
    assert (
        server.refused[-1].client == "everyone" and "No client is left" in server.refused[-1].reason
    )
    assert {refusal.client for refusal in server.refused[:-1]} == {
        "client 0",
        "client 1",
        "client 2",
    }


def test_a_client_with_fewer_than_two_pictures_is_named_before_the_first_round():
    dealt = pictures_of_noise(3)
    dealt.pictures[1], dealt.labels[1] = dealt.pictures[1][:1], dealt.labels[1][:1]
    server, rounds = run_with(lambda *_: None, SHORT, dealt, stacked=True)
    ((server_round, client, reason),) = server.refused
    assert server_round == 0 and "Client 1 holds 1 pictures" in reason and len(rounds) == 2


KINDS = [
    "g_head",
    "d_head_fake",
    "d_head_real",
    "d_body_fake",
    "d_body_real",
    "d_head_fool",
    "d_body_fool",
    "g_body",
]


@pytest.mark.parametrize(("name", "size"), list(zip(KINDS, [1e20, 1e38] * 4, strict=True)))
def test_a_huge_number_from_one_client_is_named_and_touches_nobody_else(name, size):
    server, rounds = run_with(put(name, lambda array: np.full_like(array, size)), SHORT)
    ((server_round, client, reason),) = server.refused
    assert (server_round, client) == (
        1,
        "client 1",
    ) and f"a number of size {size:.3g} in '{name}'" in reason
    assert list(server.clients) == [0, 2] and len(rounds) == 2 and server.generators[1] is None
    assert all(tensor.isfinite().all() for i in (0, 2) for tensor in server.generators[i].values())


@pytest.mark.parametrize("name", ["g.0.body.0.bias", "d.0.embedding.weight"])
def test_blocks_with_huge_numbers_are_not_averaged(name):
    def poison(kind, client, config, reply):
        if client == 1 and kind == "learn_g" and "blocks" in reply.content:
            array = reply.content["blocks"][name].numpy()
            reply.content["blocks"][name] = Array(np.full_like(array, 1e38))

    server, _ = run_with(poison, SHORT)
    ((_, client, reason),) = server.refused
    assert client == "client 1" and f"a number of size 1e+38 in '{name}'" in reason


def test_a_huge_scale_of_bytes_is_refused_too():
    def spoil(kind, client, config, reply):
        if client == 1 and kind == "fakes":
            reply.content["tensors"]["d_head_real.scale"] = Array(np.array([1e20, 1e20]))

    server, _ = run_with(spoil, replace(SHORT, bits=8))
    assert [client for _, client, _ in server.refused] == [
        "client 1"
    ] and "'d_head_real'" in server.refused[0][2]


@pytest.mark.parametrize(
    "changes", [{"noise": 1e8}, {"learning_rate": 1.0}], ids=["strong noise", "a wild rate"]
)
def test_odd_but_honest_training_is_not_taken_for_an_error(changes):
    server, _ = run_with(lambda *_: None, replace(SCENARIO, **changes))
    assert not server.refused


def test_with_as_many_clients_as_domains_the_log_says_that_silhouettes_find_nothing(monkeypatch):
    said = []  # a LabGrid keeps the log itself quiet
    monkeypatch.setattr(u_server._log, "warning", lambda sentence, *_: said.append(sentence))
    alone = replace(SHORT, domains="digits,letters,runes", iterations=1)
    run_with(lambda *_: None, alone)
    assert len(said) == 1 and "give num_clusters" in said[0]
    run_with(lambda *_: None, replace(alone, num_clusters=3))
    assert len(said) == 1
