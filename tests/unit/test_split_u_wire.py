"""What crosses the wire of the U: smashed data, gradients and blocks, and never a picture, a label, noise or a loss."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedgen_lab.federation.run import run_app
from fedgen_lab.split.batch import draw_batch, start_nets
from fedgen_lab.split.half import HOPS
from fedgen_lab.split.nets import SIZES, run_blocks
from fedgen_lab.split.run import WHAT
from fedgen_lab.split.scenario import GanScenario
from fedgen_lab.split.u_client import u_client_app
from fedgen_lab.split.u_server import u_server_app
from fedgen_lab.split.wire import read

BATCH, EACH = 6, 9


def pictures_of_noise(num_clients):
    draw = torch.Generator().manual_seed(5)
    pictures = [torch.rand(EACH, 1, 14, 14, generator=draw) * 2 - 1 for _ in range(num_clients)]
    return SimpleNamespace(
        pictures=pictures, labels=[torch.randperm(EACH, generator=draw) for _ in pictures]
    )


def every_message(scenario, dealt):
    """(kind, "down" or "up", client, content) of all messages of a run, as they left the wire."""
    app, heard = u_client_app(dealt, keep=True), []

    def listen(message, context):
        reply = app(message, context)
        kind, client = message.metadata.message_type, int(context.node_config["partition-id"])
        heard.extend([(kind, "down", client, message.content), (kind, "up", client, reply.content)])
        return reply

    servers = []
    run_app(
        u_server_app(keep=servers.append), listen, scenario.num_clients, scenario.to_run_config()
    )
    assert not servers[0].refused
    return heard


@pytest.fixture(scope="module", params=["0000,1111", "0110,1001"])
def run(request):
    scenario = GanScenario(
        num_clients=2,
        rounds=2,
        iterations=2,
        batch_size=BATCH,
        cuts=request.param,
        warm_up=1,
        domains="digits",
    )
    dealt = pictures_of_noise(2)
    return scenario, dealt, every_message(scenario, dealt)


def tensors(messages):
    return [
        (kind, way, client, name, read(array))
        for kind, way, client, content in messages
        if "tensors" in content
        for name, array in content["tensors"].items()
    ]


def test_every_message_holds_what_its_kind_declares_and_nothing_else(run):
    scenario, dealt, messages = run
    assert {kind for kind, *_ in messages} == set(WHAT)
    for kind, way, _, content in messages:
        if kind == "query.hello":
            assert set(content) == ({"metrics"} if way == "up" else set())
            continue
        hop = HOPS[kind.removeprefix("train.")]
        assert set(content) <= {"config" if way == "down" else "metrics", "tensors", "blocks"}
        if "tensors" in content:
            assert tuple(content["tensors"]) == (hop.down if way == "down" else hop.up)
        if "blocks" in content:
            assert (kind, way) in {
                ("train.start", "down"),
                ("train.learn_g", "up"),
                ("train.finish", "down"),
            }
        if way == "down":
            assert set(content["config"]) == {"server-round", "iteration", "go-on", "cut"}
        else:
            assert set(content["metrics"]) == {"partition-id", "num-examples", "flops"}


def test_what_a_client_reports_of_itself_is_the_same_in_every_round_so_it_tells_no_loss(run):
    _, _, messages = run
    reports = {}
    for kind, way, client, content in messages:
        if way == "up":
            reports.setdefault((kind, client), set()).add(tuple(content["metrics"].items()))
    assert all(len(different) == 1 for different in reports.values())


def test_every_tensor_has_the_shape_of_a_feature_map_not_of_pictures_labels_noise_or_a_loss(run):
    scenario, _, messages = run
    size = SIZES[scenario.size]
    for _, _, _, _, tensor in tensors(messages):
        assert tensor.ndim == 4 and tensor.is_floating_point() and len(tensor) == BATCH
        assert (
            tensor.shape[1] in {*size.generator, *size.discriminator}
            and tuple(tensor.shape[1:]) != size.picture
        )


def test_no_tensor_holds_or_copies_a_clients_pictures_fakes_labels_or_noise(run):
    scenario, dealt, messages = run
    generator, _ = start_nets(scenario)
    secrets, sights = [], []  # numbers that may be nowhere; pictures that no channel may look like
    for client in range(2):
        for server_round, iteration in ((1, 0), (1, 1), (2, 0), (2, 1)):
            batch = draw_batch(
                scenario,
                dealt.pictures[client],
                dealt.labels[client],
                client,
                server_round,
                iteration,
            )
            secrets += [batch[0].flatten(), batch[2].flatten()]
            sights.append(batch[0][:, 0])
            sights.append(
                run_blocks(generator, batch[2], batch[1]).detach()[:, 0]
            )  # true fakes in the first iteration
    secrets = torch.cat(secrets).numpy()
    assert len(tensors(messages)) == 2 * 2 * 2 * 16
    for kind, way, client, name, tensor in tensors(messages):
        assert np.isin(secrets, tensor.numpy()).mean() < 0.005, (
            kind,
            way,
            name,
        )  # one noise vector: 0.007
        assert not set(tensor.unique().tolist()) <= set(range(10)), (
            "labels are whole numbers from 0 to 9"
        )
        if tensor.shape[-1] == 14:
            for sight in sights:
                assert likeness(tensor, sight) < 0.999, (kind, way, client, name)


def likeness(tensor, sight):
    """The largest correlation of a channel of `tensor` (B, C, h, w) with pictures (B, h, w)."""
    channels = tensor.transpose(0, 1).flatten(1).double()  # (C, B * h * w)
    channels, sight = (
        channels - channels.mean(1, keepdim=True),
        sight.flatten().double() - sight.double().mean(),
    )
    return ((channels @ sight).abs() / (channels.norm(dim=1) * sight.norm() + 1e-12)).max()


def test_blocks_on_the_wire_are_the_clients_own_and_no_others(run):
    _, _, messages = run
    for *_, content in messages:
        if "blocks" in content:
            names = {name[:3] for name in content["blocks"]}
            assert {"g.0", "g.4", "d.0", "d.4"} <= names and not names & {"g.2", "d.2"}


def test_with_8_bits_the_heads_activations_are_bytes_on_the_wire():
    scenario = GanScenario(
        num_clients=2, rounds=1, iterations=1, batch_size=BATCH, cuts="0110", bits=8
    )
    heard = tensors(every_message(scenario, pictures_of_noise(2)))
    smashed = [
        tensor
        for _, way, _, name, tensor in heard
        if way == "up" and name in ("g_head", "d_head_real")
    ]
    assert len(smashed) == 4 and all(tensor.dtype == torch.uint8 for tensor in smashed)


def test_noise_is_drawn_anew_for_every_tensor_and_from_the_seed():
    changes = {"num_clients": 1, "rounds": 1, "iterations": 1, "batch_size": BATCH, "cuts": "0000"}
    plain, noisy, again = (
        {
            name: x
            for _, way, _, name, x in tensors(every_message(scenario, pictures_of_noise(1)))
            if way == "up"
        }
        for scenario in (GanScenario(**changes), *(GanScenario(noise=0.5, **changes),) * 2)
    )
    difference = noisy["g_head"] - plain["g_head"]
    assert difference.std() / plain["g_head"].std() == pytest.approx(0.5, rel=0.05)
    assert all(torch.equal(noisy[name], again[name]) for name in noisy)
