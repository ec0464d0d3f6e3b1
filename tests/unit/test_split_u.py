"""The U as Flower messages: equal to the unsplit step for every cut; in memory, in records and stacked alike."""

from types import SimpleNamespace

import pytest
import torch

from fedgen_lab.federation.run import run_app
from fedgen_lab.split.batch import draw_batch, start_nets
from fedgen_lab.split.local import adversarial_loss, gan_step, new_adam
from fedgen_lab.split.run import GanStep, run_gan
from fedgen_lab.split.scenario import CUTS, GanRound, GanScenario
from fedgen_lab.split.u_client import stacked_clients, u_client_app
from fedgen_lab.split.u_server import u_server_app
from fedgen_lab.split.wire import read

MIXED = "0000,1111,0110,1001"


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def noise_pictures(num_clients, each=9):
    """Stand-ins for pictures: what they show doesn't matter to the arithmetic. Labels differ in order."""
    draw = torch.Generator().manual_seed(5)
    pictures = [torch.rand(each + i, 1, 14, 14, generator=draw) * 2 - 1 for i in range(num_clients)]
    return SimpleNamespace(
        pictures=pictures, labels=[torch.randperm(len(p), generator=draw) % 10 for p in pictures]
    )


def scenario_of(num_clients, cuts, **changes):
    few = {"rounds": 1, "iterations": 2, "batch_size": 4, "domains": "digits"}
    return GanScenario(num_clients=num_clients, cuts=cuts, **{**few, **changes})


def train(scenario, dealt, keep=True, stacked=False, heard=None):
    """The server after a run, and the grid's run; `heard` collects (kind, content) of what the clients answer."""
    servers, app = [], u_client_app(dealt, keep)
    twin = stacked_clients(dealt) if stacked else lambda *together: None

    def overheard(messages, contexts):
        replies = twin(messages, contexts)
        if replies is None:
            replies = [
                app(message, context) for message, context in zip(messages, contexts, strict=True)
            ]
        if heard is not None:
            heard.extend((reply.metadata.message_type, reply.content) for reply in replies)
        return replies

    server_app = u_server_app(keep=servers.append)
    run = run_app(
        server_app, app, scenario.num_clients, scenario.to_run_config(), stacked=overheard
    )
    assert not servers[0].refused
    return servers[0], run


def whole_state(server, client):
    """All ten blocks as that client sees them: {"g.0.embedding.weight": tensor, ...}."""
    return {**server.state(), **server.clients[client].state}


def named(generator, discriminator):
    return {
        f"{net}.{name}": tensor.detach()
        for net, blocks in (("g", generator), ("d", discriminator))
        for name, tensor in blocks.state_dict().items()
    }


def tensors_of(content):
    return (
        {name: read(array) for name, array in content["tensors"].items()}
        if "tensors" in content
        else {}
    )


def distance(one, other):
    assert one.keys() == other.keys()
    return max(((one[name] - other[name]).abs().max().item() for name in one), default=0.0)


@pytest.mark.parametrize("cut", CUTS)
def test_with_one_client_a_training_step_equals_the_unsplit_one_whatever_the_cut(double, cut):
    scenario, dealt = scenario_of(1, cut, iterations=1), noise_pictures(1)
    generator, discriminator = start_nets(scenario)
    g_adam, d_adam = (new_adam(net, scenario.learning_rate) for net in (generator, discriminator))
    before = {name: tensor.clone() for name, tensor in named(generator, discriminator).items()}
    for iteration in range(scenario.iterations):
        pictures, labels = dealt.pictures[0].double(), dealt.labels[0]
        pictures, labels, z = draw_batch(scenario, pictures, labels, 0, 1, iteration)
        gan_step(generator, discriminator, g_adam, d_adam, pictures, labels, z)
    server, _ = train(scenario, dealt)
    assert (
        distance(whole_state(server, 0), named(generator, discriminator)) < 1e-9
    )  # with BatchNorm's buffers
    assert distance(whole_state(server, 0), before) > 1e-4
    assert distance(server.generators[0], generator.state_dict()) < 1e-9


def unsplit_round(scenario, dealt, cuts):
    """What the U computes, in one place and one graph: own blocks per client, the server's for all at once."""
    nets = [dict(zip("gd", start_nets(scenario), strict=True)) for _ in range(scenario.num_clients)]
    shared = dict(zip("gd", start_nets(scenario), strict=True))

    def through(net, inputs):
        place = 0 if net == "g" else 2
        rows = [nets[i][net][0](*given) for i, given in enumerate(inputs)]
        for block in range(1, 5):
            on_client = [block == 4 or block != 2 and cut[place + (block == 3)] for cut in cuts]
            there = [i for i, own in enumerate(on_client) if not own]
            if there:
                out = shared[net][block](torch.cat([rows[i] for i in there])).split(
                    [len(rows[i]) for i in there]
                )
                rows = [out[there.index(i)] if i in there else row for i, row in enumerate(rows)]
            rows = [nets[i][net][block](row) if on_client[i] else row for i, row in enumerate(rows)]
        return rows

    adam = {
        net: new_adam([own[net] for own in nets] + [shared[net]], scenario.learning_rate)
        for net in "gd"
    }
    for iteration in range(scenario.iterations):
        drawn = [
            draw_batch(scenario, dealt.pictures[i].double(), dealt.labels[i], i, 1, iteration)
            for i in range(scenario.num_clients)
        ]
        labels = [batch[1] for batch in drawn]
        fakes = through("g", [(z, y) for _, y, z in drawn])
        adam["d"].zero_grad()
        on_fakes = through("d", [(x.detach(), y) for x, y in zip(fakes, labels, strict=True)])
        on_real = through("d", [(x, y) for x, y, _ in drawn])
        loss = sum(adversarial_loss(logits, real=False) for logits in on_fakes)
        (loss + sum(adversarial_loss(logits, real=True) for logits in on_real)).backward()
        adam["d"].step()
        adam["g"].zero_grad()
        fooled = through("d", list(zip(fakes, labels, strict=True)))
        sum(adversarial_loss(logits, real=True) for logits in fooled).backward()
        adam["g"].step()
    return [named(own["g"], own["d"]) for own in nets], named(shared["g"], shared["d"])


def test_clients_of_different_cuts_train_together_as_if_nothing_were_split(double):
    scenario, dealt = (
        scenario_of(4, MIXED, batch_size=10),
        noise_pictures(4),
    )  # client 0 has only nine pictures
    cuts = [tuple(map(int, cut)) for cut in MIXED.split(",")]
    own, shared = unsplit_round(scenario, dealt, cuts)
    server, _ = train(scenario, dealt)
    for i, client in server.clients.items():
        sent = server.uploads[i]
        assert distance(sent, {name: own[i][name] for name in sent}) < 1e-9
        assert {name[:3] for name in sent} == client.holds
    middle = {
        name: tensor for name, tensor in shared.items() if name[2] == "2"
    }  # what no client holds
    assert distance({name: server.state()[name] for name in middle}, middle) < 1e-9


def test_a_client_that_keeps_nothing_in_memory_gives_the_same_bits():
    scenario, dealt = (
        scenario_of(2, "0110,1001", rounds=2, warm_up=1, decorrelation=0.1, noise=0.1),
        noise_pictures(2),
    )
    (kept, _), (woken, _) = train(scenario, dealt), train(scenario, dealt, keep=False)
    assert all(distance(whole_state(kept, i), whole_state(woken, i)) == 0 for i in range(2))


def test_stacked_clients_give_the_same_result_and_the_same_trace(double):
    changes = {"rounds": 2, "warm_up": 1, "decorrelation": 0.1, "noise": 0.1}
    scenario, dealt = scenario_of(4, "0110,1001,0110,0110", **changes), noise_pictures(4)
    (plain, run), (stacked, other) = train(scenario, dealt), train(scenario, dealt, stacked=True)
    assert all(distance(whole_state(plain, i), whole_state(stacked, i)) < 1e-9 for i in range(4))
    assert run.trace.frame().equals(other.trace.frame())


def test_what_stacked_clients_send_agrees_to_1e_5_in_single_precision():
    """Not their weights: a bias before BatchNorm has no gradient but rounding, which Adam makes a full step of."""
    scenario, dealt = scenario_of(3, "0110", iterations=1), noise_pictures(3)
    plain, twin = [], []
    train(scenario, dealt, heard=plain)
    train(scenario, dealt, stacked=True, heard=twin)
    assert len(plain) == len(twin) > 20
    for (kind, one), (other_kind, other) in zip(plain, twin, strict=True):
        assert kind == other_kind and distance(tensors_of(one), tensors_of(other)) < 1e-5


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    dealt = noise_pictures(2)
    one, again, other = (
        run_gan(scenario_of(2, "0000", seed=seed), dealt=dealt) for seed in (3, 3, 4)
    )
    assert distance(one.generators[1], again.generators[1]) == 0
    assert distance(one.generators[1], other.generators[1]) > 0.01


def test_a_run_tells_of_every_step_and_round_and_names_every_kind_of_message():
    heard, scenario = [], scenario_of(2, "1010", rounds=2)
    outcome = run_gan(scenario, on_event=heard.append, dealt=noise_pictures(2))
    assert [(e.round, e.iteration) for e in heard if isinstance(e, GanStep)] == [
        (1, 1),
        (1, 2),
        (2, 1),
        (2, 2),
    ]
    rounds = [e for e in heard if isinstance(e, GanRound)]
    assert [e.round for e in rounds] == [0, 1, 2] and len(rounds[2].generators) == 2
    assert not outcome.history[2].generators and outcome.history[2].taps.shape == (2, 32 * 7 * 7)
    assert set(outcome.trace.frame().kind) == set(outcome.what)
    assert not outcome.stopped and (
        outcome.trace.frame().groupby("kind").size()["train.judge"] == 2 * 2 * 2 * 2
    )


def test_stop_ends_the_run_and_keeps_what_was_averaged():
    heard, scenario = [], scenario_of(2, "1010", rounds=3)
    outcome = run_gan(
        scenario,
        should_stop=lambda: any(isinstance(e, GanStep) and e.round == 2 for e in heard),
        on_event=heard.append,
        dealt=noise_pictures(2),
    )
    assert outcome.stopped and [event.round for event in outcome.history] == [0, 1]
    assert all(tensor.isfinite().all() for tensor in outcome.generators[0].values())


def test_warm_up_is_plain_fedavg_and_afterwards_clusters_form():
    scenario, dealt = scenario_of(3, "0000", rounds=2, warm_up=1, num_clusters=2), noise_pictures(3)
    outcome = run_gan(scenario, dealt=dealt)
    first, second = outcome.history[1:]
    counts = torch.tensor([len(labels) for labels in dealt.labels]).double()
    assert first.groups.tolist() == [0, 0, 0] and torch.allclose(
        torch.as_tensor(first.weights), counts / counts.sum()
    )
    assert set(second.groups) == {0, 1}
    heads = [outcome.generators[i]["0.embedding.weight"] for i in range(3)]
    for i in range(3):  # one head in a cluster, another in the other
        assert [torch.equal(heads[i], head) for head in heads] == (
            second.groups == second.groups[i]
        ).tolist()


@pytest.mark.parametrize("batch_norm", ["averaged", "local", "cluster"])
def test_whose_batchnorm_statistics_a_client_gets(batch_norm):
    scenario = scenario_of(3, "0000", warm_up=0, num_clusters=2, batch_norm=batch_norm)
    outcome = run_gan(scenario, dealt=noise_pictures(3))
    groups, means = (
        outcome.history[-1].groups,
        [g["0.body.1.running_mean"] for g in outcome.generators],
    )
    same = [[torch.equal(one, other) for other in means] for one in means]
    expected = {
        "averaged": [[True] * 3] * 3,
        "local": torch.eye(3).bool().tolist(),
        "cluster": (groups[:, None] == groups).tolist(),
    }[batch_norm]
    assert same == expected


def test_a_step_of_the_generator_leaves_no_gradient_in_the_discriminator():
    server, _ = train(scenario_of(2, "0110"), noise_pictures(2))
    assert all(p.grad is None for block in server.blocks.values() for p in block.parameters())
