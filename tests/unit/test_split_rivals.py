"""Claims about the rivals of HuSCF-GAN: what each exchanges, and what each is equal to in a simple case."""

from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict

from fedgen_lab.federation.grid import LabGrid
from fedgen_lab.federation.run import run_app
from fedgen_lab.federation.trace import SERVER
from fedgen_lab.pictures.domains import load_domain
from fedgen_lab.split.batch import draw_batch, start_nets
from fedgen_lab.split.deal import deal
from fedgen_lab.split.local import adversarial_loss, gan_step, new_adam
from fedgen_lab.split.nets import SIZES, generate, new_discriminator, run_blocks
from fedgen_lab.split.rivals import core, feedback, fslgan, hflgan, mdgan
from fedgen_lab.split.rivals.likeness import likeness
from fedgen_lab.split.run import GanStep
from fedgen_lab.split.scenario import METHODS, GanRound, GanScenario

RIVALS = [method for method in METHODS if method != "huscf"]
SMALL = GanScenario(num_clients=3, rounds=2, iterations=2, batch_size=4, pictures_per_client=12)
KEEPING = (
    "local",
    "mdgan",
    "fslgan",
    "pflgan",
)  # those whose devices may keep their nets in memory
KINDS = {  # what each may say, spelled out here so that a new kind of message doesn't slip in
    "local": {"train.alone"},
    "centralised": {"train.pictures"},
    "fedgan": {"train"},
    "mdgan": {"train.feedback", "train.give", "train.take"},
    "fslgan": {"train.feedback", "train.give", "train.take"},
    "pflgan": {"train.alone", "train.share", "train.receive"},
    "hflgan": {"train"},
}


def rival(method):
    return import_module(f"fedgen_lab.split.rivals.{method}")


@contextmanager
def in_float64():
    """Everything in float64, uint8 pictures too: a bias before BatchNorm has no gradient but rounding, which Adam makes
    a full step of."""
    before = torch.get_default_dtype()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "to_pictures", lambda pixels: pixels.double() / 127.5 - 1)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


@pytest.fixture
def double():
    with in_float64():
        yield


def held(scenario):
    """What the scenario's clients hold, in float64 where that is on."""
    dealt = deal(scenario)
    pictures = [core.to_pictures(core.to_bytes(own)) for own in dealt.pictures]
    return SimpleNamespace(pictures=pictures, labels=dealt.labels)


@lru_cache
def watched(method):
    """A run of SMALL in float64: (its outcome, its events, every tensor on the wire as (sender, kind, name, tensor),
    and what each client was left with in Flower's state)."""
    module, wire, events, left = rival(method), [], [], {}

    def note(sender, kind, content):
        for record_name, record in content.array_records.items():
            for name, tensor in record.to_torch_state_dict().items():
                wire.append((sender, kind, f"{record_name}/{name}", tensor))

    def listening(dealt, on_step):
        app = module.client_app(dealt, on_step)

        def client(message, context):
            note(SERVER, message.metadata.message_type, message.content)
            reply = app(message, context)
            note(context.node_config["partition-id"], message.metadata.message_type, reply.content)
            left[context.node_config["partition-id"]] = context.state
            return reply

        return client

    with in_float64():
        outcome = core.play(
            replace(SMALL, method=method),
            module.server_app,
            listening,
            module.WHAT,
            None,
            events.append,
            held(SMALL),
        )
    return outcome, events, wire, left


@lru_cache
def outcome_of(method):
    if method not in KEEPING:
        return watched(method)[0]
    with in_float64():
        return rival(method).run(replace(SMALL, method=method), dealt=held(SMALL))


def alone(scenario, client, rounds):
    """What a client has after some rounds with nobody else, by the unsplit step."""
    generator, discriminator = start_nets(scenario)
    adams = (
        new_adam(generator, scenario.learning_rate),
        new_adam(discriminator, scenario.learning_rate),
    )
    own = held(scenario).pictures[client], held(scenario).labels[client]
    for server_round in range(1, rounds + 1):
        for i in range(scenario.iterations):
            gan_step(
                generator,
                discriminator,
                *adams,
                *draw_batch(scenario, *own, client, server_round, i),
            )
    return generator, discriminator


def assert_same(state, other, tolerance=0.0):
    assert state.keys() == other.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=tolerance)


@pytest.mark.parametrize("method", RIVALS)
def test_every_rival_sends_the_kinds_of_message_it_declares_and_no_others(method):
    outcome = outcome_of(method)
    sent = outcome.trace.frame()
    assert set(sent["kind"]) == set(outcome.what) == set(rival(method).WHAT) == KINDS[method]
    assert (sent["error"] == "").all() and not outcome.refused and not outcome.stopped


@pytest.mark.parametrize("method", RIVALS)
def test_every_rival_leaves_a_generator_for_each_client_and_says_how_far_it_is(method, double):
    outcome, events, _, _ = watched(method)
    start = start_nets(SMALL)[0].state_dict()
    rounds = [event for event in events if isinstance(event, GanRound)]
    assert (
        [event.round for event in rounds] == [0, 1, 2] == [event.round for event in outcome.history]
    )
    assert all(event.generators == [] for event in outcome.history)
    steps = [event for event in events if isinstance(event, GanStep)]
    assert [step.round for step in steps if step.iteration == step.iterations] == [1, 2]
    if method in ("local", "pflgan"):  # where nobody can look into the devices
        assert outcome.generators == [None] * 3
        outcome = outcome_of(method)
    else:
        assert_same(rounds[0].generators[0], start)
    for state in outcome.generators:
        assert {n: t.shape for n, t in state.items()} == {n: t.shape for n, t in start.items()}
        assert all(tensor.isfinite().all() for tensor in state.values())
        assert not torch.equal(state["4.0.weight"], start["4.0.weight"])


@pytest.mark.parametrize("method", ["mdgan", "fslgan"])
def test_what_a_device_keeps_in_memory_and_in_flowers_state_gives_the_same_generators(
    method, double
):
    both = outcome_of(method).generators, watched(method)[0].generators
    for fast, plain in zip(*both, strict=True):
        assert_same(fast, plain, 1e-9)


@pytest.mark.parametrize("method", ["local", "pflgan"])
def test_a_lone_devices_memory_is_as_good_as_flowers_state(method, double):
    left = watched(method)[3]
    for client, state in enumerate(outcome_of(method).generators):
        kept = left[client]["gan"].to_torch_state_dict()
        assert_same(
            state,
            {name.removeprefix("g."): t for name, t in kept.items() if name.startswith("g.")},
            1e-9,
        )


@pytest.mark.parametrize("method", RIVALS)
def test_only_centralised_ever_sends_a_real_picture_or_a_clients_labels(method, double):
    dealt, leaked = held(SMALL), set()
    real = torch.cat(dealt.pictures).flatten(1)  # (N, pixels)
    for _, _, name, tensor in watched(method)[2]:
        if tensor.shape[1:] == dealt.pictures[0].shape[1:]:
            tensor = core.to_pictures(tensor) if tensor.dtype == torch.uint8 else tensor
            if (torch.cdist(tensor.flatten(1), real) < 1e-3).any():
                leaked.add(name)
        if tensor.dtype == torch.int64 and tensor.ndim == 1 and len(tensor) > 1:
            if any(len(own) == len(tensor) and torch.equal(own, tensor) for own in dealt.labels):
                leaked.add(name)
    assert leaked == ({"data/pictures", "data/labels"} if method == "centralised" else set())


@pytest.mark.parametrize("method", RIVALS)
def test_devices_say_how_much_they_computed(method):
    sent = outcome_of(method).trace.frame()
    work = sent.groupby("sender")["flops"].sum()
    steps, many = SMALL.rounds * SMALL.iterations, SMALL.pictures_per_client
    both, only_d = (float(steps * core.step_flops(SMALL, many, nets)) for nets in ("gd", "d"))
    expected = {"centralised": 0, "mdgan": only_d, "fslgan": only_d}.get(method, both)
    assert work[SERVER] == 0 and list(work.drop(SERVER)) == [expected] * 3


def test_a_client_with_less_than_a_batch_computes_for_the_pictures_that_it_has():
    few = replace(SMALL, rounds=1, batch_size=16, pictures_per_client=4)
    work = {}
    for method in ("local", "fedgan", "mdgan"):
        sent = rival(method).run(few).trace.frame()
        work[method] = sent.groupby("sender")["flops"].sum().drop(SERVER).unique().tolist()
    part, whole = (
        few.iterations * core.step_flops(replace(few, batch_size=size), 16) for size in (4, 16)
    )
    assert work["local"] == work["fedgan"] == [part] and part == pytest.approx(whole / 4)
    d_part, d_whole = (few.iterations * core.step_flops(few, count, "d") for count in (4, 16))
    assert work["mdgan"] == [pytest.approx((d_part + 2 * d_whole) / 3)], (
        "the fakes of the server fill their batch"
    )


def test_local_only_sends_nothing_but_the_word(double):
    sent = outcome_of("local").trace.frame()
    assert len(sent) == 2 * 3 * SMALL.rounds and sent["bytes"].max() < 200
    assert not watched("local")[2]
    for client, state in enumerate(outcome_of("local").generators):
        assert_same(state, alone(SMALL, client, SMALL.rounds)[0].state_dict(), 1e-9)


def test_centralised_trains_on_everybodys_batches_put_together(double):
    scenario = replace(SMALL, method="centralised", rounds=1, iterations=1)
    generator, discriminator = start_nets(scenario)
    own = held(scenario)
    batches = [
        draw_batch(scenario, own.pictures[client], own.labels[client], client, 1, 0)
        for client in range(3)
    ]
    adams = (
        new_adam(generator, scenario.learning_rate),
        new_adam(discriminator, scenario.learning_rate),
    )
    gan_step(
        generator,
        discriminator,
        *adams,
        *(torch.cat(parts) for parts in zip(*batches, strict=True)),
    )
    assert_same(
        rival("centralised").run(scenario, dealt=own).generators[2], generator.state_dict(), 1e-9
    )
    sent = outcome_of("centralised").trace.frame()
    assert len(sent) == 6, "each client sends its pictures once"


def test_one_step_of_fedgan_on_equal_data_is_the_average_of_the_clients_steps(double):
    scenario = replace(SMALL, method="fedgan", rounds=1, iterations=1)
    steps = [alone(scenario, client, 1)[0].state_dict() for client in range(3)]
    mean = {
        name: torch.stack([s[name].double() for s in steps]).mean(0).to(steps[0][name].dtype)
        for name in steps[0]
    }
    for state in rival("fedgan").run(scenario, dealt=held(scenario)).generators:
        assert_same(state, mean, 1e-9)


def test_fedgan_weighs_clients_by_their_pictures(double):
    scenario = replace(SMALL, method="fedgan", rounds=1, iterations=1, num_clients=2)
    dealt = SimpleNamespace(
        pictures=[p[:n] for p, n in zip(held(scenario).pictures, (4, 12), strict=True)],
        labels=[p[:n] for p, n in zip(deal(scenario).labels, (4, 12), strict=True)],
    )
    few, many = (
        rival("local").run(scenario, dealt=dealt).generators[c]["4.0.weight"] for c in (0, 1)
    )
    average = rival("fedgan").run(scenario, dealt=dealt).generators[0]["4.0.weight"]
    torch.testing.assert_close(average, 0.25 * few + 0.75 * many)


@pytest.mark.parametrize("method", ["fedgan", "hflgan", "centralised"])
def test_with_one_client_the_federation_is_local_training(method, double):
    one = replace(SMALL, num_clients=1, domains="digits", rounds=2, method=method)
    assert_same(
        rival(method).run(one, dealt=held(one)).generators[0],
        alone(one, 0, 2)[0].state_dict(),
        1e-9,
    )


def test_with_one_client_md_gan_is_the_unsplit_step(double):
    """The server draws labels and noise; a client that holds those very labels does exactly what `gan_step` does."""
    one = replace(
        SMALL,
        num_clients=1,
        domains="digits",
        method="mdgan",
        rounds=1,
        iterations=1,
        pictures_per_client=4,
    )
    generator, discriminator = start_nets(one)
    _, labels = feedback.make_fakes(one, generator, 1, 0, 0)
    generator, discriminator = start_nets(
        one
    )  # making fakes moved the generator's running statistics
    own = held(one).pictures[0]
    order = draw_batch(one, torch.arange(4.0), torch.arange(4), 0, 1, 0)[
        1
    ]  # the batch holds these rows
    dealt = SimpleNamespace(
        pictures=[own], labels=[torch.empty(4, dtype=torch.int64).scatter(0, order, labels)]
    )
    draw = torch.Generator().manual_seed(one.seed_of(1, 0, 0, 0))
    torch.randint(10, (4,), generator=draw)
    z = torch.randn(4, 100, generator=draw)
    adams = new_adam(generator, one.learning_rate), new_adam(discriminator, one.learning_rate)
    gan_step(generator, discriminator, *adams, own[order], labels, z)
    assert_same(rival("mdgan").run(one, dealt=dealt).generators[0], generator.state_dict(), 1e-9)


def test_md_gan_sends_two_different_batches_once_there_are_eight_clients():
    eight = replace(SMALL, num_clients=8, rounds=1, iterations=1, method="mdgan")
    sent = {}

    def listening(dealt, on_step):
        app = mdgan.client_app(dealt, on_step)

        def client(message, context):
            sent[context.node_config["partition-id"]] = message.content[
                "fakes"
            ].to_torch_state_dict()
            return app(message, context)

        return client

    core.play(eight, mdgan.server_app, listening, mdgan.WHAT)
    assert torch.equal(sent[0]["judged"], sent[2]["judged"]) and torch.equal(
        sent[0]["judged"], sent[1]["learned"]
    )
    assert not torch.equal(sent[0]["judged"], sent[0]["learned"])
    assert "learned" not in next(c for n, c in _downs("mdgan") if n == "train.feedback"), (
        "with three clients k is 1"
    )


def _downs(method):
    """(kind, names of arrays) of each message down."""
    kinds = {}
    for sender, kind, name, _ in watched(method)[2]:
        if sender == SERVER:
            kinds.setdefault(kind, set()).add(name.split("/")[1])
    return kinds.items()


def test_md_gans_discriminators_all_move_to_another_client():
    given = {client: {"w": torch.tensor(float(client))} for client in (0, 2, 3, 5)}
    moved = mdgan.around_a_ring(SMALL, 1, given)
    assert sorted(float(state["w"]) for state in moved.values()) == [0, 2, 3, 5]
    assert all(float(state["w"]) != client for client, state in moved.items())
    up, down = _discriminators("mdgan")
    assert len(up) == len(down) == 3, "after every round but the last"
    assert sorted(up) == sorted(down)


def test_federated_split_gan_averages_discriminators_evenly():
    up, down = _discriminators("fslgan")
    assert len(up) == len(down) == 3 and len(set(down)) == 1
    assert down[0] == pytest.approx(np.mean(up), abs=1e-6)


def _discriminators(method):
    """One number out of each discriminator that went up, and down."""
    up, down = [], []
    for sender, _, name, tensor in watched(method)[2]:
        if name == "discriminator/d.4.1.weight":
            (down if sender == SERVER else up).append(float(tensor[0, 0]))
    return up, down


def test_a_discriminator_in_three_parts_is_the_whole_discriminator():
    blocks, ledger = new_discriminator(SIZES["lab14"], 0).double(), {"bytes": 0}
    whole, pictures = (
        deepcopy(blocks),
        torch.randn(4, 1, 14, 14, dtype=torch.float64, requires_grad=True),
    )
    labels = torch.arange(4)
    logits, expected = (
        fslgan.in_parts(blocks, pictures, labels, ledger),
        run_blocks(whole, pictures, labels),
    )
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    (gradient,) = torch.autograd.grad(adversarial_loss(logits, True), pictures)
    (other,) = torch.autograd.grad(adversarial_loss(expected, True), pictures)
    torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-9)
    handed = 4 * (
        16 * 14 * 14 + 32 * 7 * 7
    )  # numbers between the first and second device, and second and third
    assert ledger["bytes"] == 2 * 8 * handed, "activations one way, gradients the other"


def test_pfl_gan_is_local_training_until_the_exchange_and_not_after_it(double):
    rounds = []
    rival("pflgan").run(
        replace(SMALL, method="pflgan"),
        dealt=held(SMALL),
        on_event=lambda e: rounds.append(e) if isinstance(e, GanRound) else None,
    )
    assert_same(rounds[1].generators[2], alone(SMALL, 2, 1)[0].state_dict(), 1e-9)
    local = outcome_of("local").generators[2]["4.0.weight"]
    assert (rounds[2].generators[2]["4.0.weight"] - local).abs().max() > 1e-4


def test_a_client_of_pfl_gan_gets_as_many_fakes_as_it_has_pictures():
    wire = [
        (name, tensor)
        for sender, kind, name, tensor in watched("pflgan")[2]
        if kind == "train.receive" and sender == SERVER
    ]
    assert {name for name, _ in wire} == {"fakes/pictures", "fakes/labels"}
    assert all(len(tensor) == SMALL.pictures_per_client for _, tensor in wire)


def test_likeness_finds_clients_of_the_same_domain():
    pictures = [load_domain(name, 256, 14).as_tensor() for name in ("letters", "runes")]
    weights = likeness([pictures[0][:128], pictures[1][:128], pictures[0][128:], pictures[1][128:]])
    np.testing.assert_allclose(weights.sum(1), 1)
    np.testing.assert_array_equal(np.diag(weights), 0)
    assert weights[0].argmax() == 2 and weights[1].argmax() == 3 and weights[2].argmax() == 0
    with pytest.raises(ValueError, match="two at least"):
        likeness(pictures[:1])


def test_with_one_edge_a_round_of_hfl_gan_is_one_of_fedgan(double):
    one_edge = replace(SMALL, num_clusters=1, method="hflgan", rounds=1)
    fedgan = rival("fedgan").run(replace(one_edge, method="fedgan"), dealt=held(one_edge))
    hflgan_run = rival("hflgan").run(one_edge, dealt=held(one_edge))
    for state, other in zip(hflgan_run.generators, fedgan.generators, strict=True):
        assert_same(state, other, 1e-9)


def test_the_edges_of_hfl_gan_keep_their_generators_and_share_discriminators_through_the_cloud():
    scenario, sent = replace(SMALL, num_clusters=2, rounds=4, iterations=1, method="hflgan"), []

    def listening(dealt, on_step):
        app = hflgan.client_app(dealt, on_step)

        def client(message, context):
            sent.append(message.content["arrays"].to_torch_state_dict())
            return app(message, context)

        return client

    outcome = core.play(scenario, hflgan.server_app, listening, hflgan.WHAT)
    groups = outcome.history[3].groups
    assert sorted(set(groups)) == [0, 1]
    third, fourth = sent[6:9], sent[9:12]  # what went down at the start of rounds 3 and 4
    one, other = int(np.flatnonzero(groups == 0)[0]), int(np.flatnonzero(groups == 1)[0])
    assert not torch.equal(third[one]["d.4.1.weight"], third[other]["d.4.1.weight"])
    assert torch.equal(fourth[one]["d.4.1.weight"], fourth[other]["d.4.1.weight"])
    assert not torch.equal(fourth[one]["g.4.0.weight"], fourth[other]["g.4.0.weight"])


def test_directions_are_of_length_one_and_at_the_edges_pictures_count():
    before = {"d.0.w": torch.zeros(2), "g.0.w": torch.zeros(2)}
    states = [
        {"d.0.w": torch.tensor(w), "g.0.w": torch.tensor(w)}
        for w in ([3.0, 4.0], [0.6, 0.8], [-1.0, 0.0])
    ]
    went = hflgan.directions(states, before)
    np.testing.assert_allclose(went, [[0.6, 0.8], [0.6, 0.8], [-1, 0]], atol=1e-6)
    edges = hflgan.at_the_edges(states, np.array([1, 3, 5]), np.array([4, 4, 7]))
    torch.testing.assert_close(edges[0]["g.0.w"], torch.tensor([1.2, 1.6]))
    assert torch.equal(edges[2]["d.0.w"], states[2]["d.0.w"])


@pytest.mark.parametrize("method", RIVALS)
def test_a_stopped_rival_keeps_its_last_complete_round(method):
    events = []

    def stop():
        return isinstance(events[-1], GanStep) and events[-1].round == 2 if events else False

    stopped = rival(method).run(replace(SMALL, method=method, iterations=1), stop, events.append)
    assert stopped.stopped and [event.round for event in stopped.history] == [0, 1]
    first = next(event for event in events if isinstance(event, GanRound) and event.round == 1)
    for kept, told in zip(stopped.generators, first.generators, strict=True):
        assert_same(kept, told)


@pytest.mark.parametrize("method", RIVALS)
def test_a_client_with_nan_is_named_and_the_others_go_on(method):
    own = deal(SMALL)
    spoilt = [torch.full_like(p, torch.nan) if c == 2 else p for c, p in enumerate(own.pictures)]
    dealt = SimpleNamespace(pictures=spoilt, labels=own.labels)
    outcome = rival(method).run(replace(SMALL, method=method, iterations=1), dealt=dealt)
    assert {refusal.client for refusal in outcome.refused} == {"client 2"}
    assert outcome.refused[0].round == 1 and "client 2" in outcome.refused[0].reason.lower()
    assert outcome.history[-1].round == 2 and not outcome.stopped
    for client in (0, 1):
        assert all(tensor.isfinite().all() for tensor in outcome.generators[client].values())
    if method != "fedgan":  # whose clients may come back
        assert outcome.generators[2] is None


def test_with_nobody_left_the_run_ends_and_says_so():
    dealt = SimpleNamespace(
        pictures=[torch.full((12, 1, 14, 14), torch.nan)] * 3, labels=deal(SMALL).labels
    )
    outcome = rival("mdgan").run(replace(SMALL, method="mdgan"), dealt=dealt)
    assert outcome.stopped and outcome.refused[-1].client == "everyone"
    assert len(outcome.refused) == 4 and outcome.history[-1].round == 0


def test_a_client_too_many_is_told_so():
    refused, scenario = [], replace(SMALL, rounds=1, iterations=1)
    server = rival("local").server_app(refused=refused)
    run_app(server, rival("local").client_app(), 4, scenario.to_run_config())
    assert [refusal.client for refusal in refused] == ["client 3"]
    assert "num-clients=3" in refused[0].reason


def test_where_node_ids_tell_nothing_the_server_asks_who_is_who(double):
    scenario = replace(SMALL, rounds=1, iterations=1, method="mdgan")
    states = []
    server = mdgan.server_app(on_round=lambda event: states.append(event.generators[0]))
    with LabGrid(mdgan.client_app(held(scenario)), 3, scenario.to_run_config()) as grid:
        far = SimpleNamespace(
            get_node_ids=grid.get_node_ids,
            push_messages=grid.push_messages,
            pull_messages=grid.pull_messages,
        )
        server(far, Context(1, 1, {}, RecordDict(), scenario.to_run_config()))
    assert set(grid.trace.frame()["kind"]) == {"query", "train.feedback"}
    assert_same(states[-1], mdgan.run(scenario, dealt=held(scenario)).generators[0], 1e-9)


def test_another_seed_gives_other_pictures():
    other = rival("mdgan").run(replace(SMALL, method="mdgan", seed=1, rounds=1))
    generators = []
    for state in (outcome_of("mdgan").generators[0], other.generators[0]):
        generators.append(start_nets(SMALL)[0])
        generators[-1].load_state_dict(state)
    assert not torch.equal(*(generate(generator, torch.arange(4), 0) for generator in generators))


def test_colour_pictures_go_through_the_rivals_too():
    colour = replace(
        SMALL, size="colour", domains="sprites:plain", num_clients=2, rounds=1, iterations=1
    )
    size = SIZES["colour"]
    pictures = [(torch.rand(4, *size.picture) * 2 - 1)] * 2
    dealt = SimpleNamespace(pictures=pictures, labels=[torch.arange(4)] * 2)
    for method in ("mdgan", "centralised"):
        state = rival(method).run(replace(colour, method=method), dealt=dealt).generators[1]
        assert state["4.0.weight"].shape[1] == 3
