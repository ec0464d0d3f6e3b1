"""Claims about federated LoRA and what it is measured against, on scenarios of a few steps."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from flwr.app import Context, RecordDict
from PIL import Image
from recorders import recorder

from fedgen_lab.federation.accountant import privacy_spent
from fedgen_lab.federation.run import run_app
from fedgen_lab.federation.secret import VARIABLE
from fedgen_lab.federation.trace import SERVER
from fedgen_lab.lora.adapter import adapter_bytes
from fedgen_lab.lora.baselines import run_centralised, run_local_only
from fedgen_lab.lora.data import deal
from fedgen_lab.lora.device import LoraDevice
from fedgen_lab.lora.federated import (
    RoundDone,
    StepDone,
    lora_client_app,
    lora_server_app,
    run_federated,
)
from fedgen_lab.lora.pipeline import load_pipeline
from fedgen_lab.lora.real_size import write_random_pipeline
from fedgen_lab.lora.split_server import check_knobs
from fedgen_lab.lora.strategies import strategy_of
from fedgen_lab.partition import mean_js_distance
from fedgen_lab.pictures.sprites import HELD_OUT_OBJECTS
from fedgen_lab.scenario import Scenario
from fedgen_lab.shipped import shipped

score = recorder("federated_lora").score  # lab 03's sweep
pytestmark = pytest.mark.usefixtures("small_base")
SMALL = Scenario(
    num_clients=2,
    rounds=2,
    local_steps=2,
    batch_size=4,
    pictures_per_client=8,
    num_prompts=4,
    skew=1.0,
)


@pytest.fixture(scope="module")
def outcome():
    return run_federated(SMALL)


def test_clients_own_what_the_base_model_never_saw():
    dealt = deal(replace(SMALL, num_clients=6))
    for number, pictures in enumerate(dealt.clients):
        assert set(pictures.attributes["object"]) == {sorted(HELD_OUT_OBJECTS)[number % 4]}
    assert set(deal(replace(SMALL, skew=0)).clients[0].attributes["object"]) == set(
        HELD_OUT_OBJECTS
    )


def test_no_held_out_picture_is_trained_on():
    dealt = deal(replace(SMALL, num_clients=4, pictures_per_client=64))
    trained = {
        bytes(image.numpy().tobytes()) for pictures in dealt.clients for image in pictures.images
    }
    assert not trained & {bytes(image.numpy().tobytes()) for image in dealt.held_out.images}


def test_the_server_averages_what_the_clients_sent(outcome):
    sent = outcome.client_states
    assert set(sent) == {0, 1}
    for name, average in outcome.state.items():
        torch.testing.assert_close(
            average, (sent[0][name] + sent[1][name]) / 2, rtol=1e-5, atol=1e-7
        )
        assert name.split(".")[-3] in ("lora_A", "lora_B")


def test_only_adapters_cross_the_wire(outcome):
    sent = outcome.trace.frame()
    assert len(sent) == SMALL.rounds * SMALL.num_clients * 2
    assert (sent["bytes"] >= adapter_bytes(outcome.state)).all()
    assert (
        sent["bytes"] < adapter_bytes(outcome.state) + 250 * len(outcome.state) + 500
    ).all()  # names and shapes
    assert (sent.loc[sent["sender"] != SERVER, "flops"] > 0).all()


def test_the_same_seed_gives_the_same_bits(outcome):
    again, other = run_federated(SMALL), run_federated(replace(SMALL, seed=1))
    assert all(torch.equal(again.state[name], tensor) for name, tensor in outcome.state.items())
    assert not all(torch.equal(other.state[name], tensor) for name, tensor in outcome.state.items())


def test_one_client_alone_is_a_federation_of_one():
    one = replace(SMALL, num_clients=1)
    federated, alone = run_federated(one), run_local_only(one)
    for name, tensor in federated.state.items():  # B was zero: all of it is learned
        assert (alone.client_states[0][name] - tensor).norm() < 0.01 * tensor.norm(), name
    np.testing.assert_allclose(federated.rounds["loss"], alone.rounds["loss"], rtol=1e-5)


def test_all_methods_start_from_the_same_base(outcome):
    short = replace(SMALL, rounds=1)
    losses = [run(short).rounds["loss"].iloc[0] for run in (run_local_only, run_centralised)]
    full = run_federated(replace(short, method="full", learning_rate=3e-4))
    np.testing.assert_allclose(
        [*losses, full.rounds["loss"].iloc[0]], outcome.rounds["loss"].iloc[0], rtol=1e-5
    )
    assert adapter_bytes(full.state) > 3 * adapter_bytes(outcome.state)


def test_training_on_the_clients_pictures_lowers_the_held_out_loss():
    steps = Scenario(
        num_clients=2, rounds=1, local_steps=10, batch_size=8, pictures_per_client=16, num_prompts=8
    )
    for run in (run_federated, run_centralised):
        losses = run(steps).rounds["loss"]
        assert losses.iloc[-1] < losses.iloc[0]


def test_a_stop_half_way_keeps_the_rounds_that_were_complete():
    heard = []

    def stop_in_round_two():
        return bool(heard) and isinstance(heard[-1], StepDone) and heard[-1].round == 2

    stopped = run_federated(SMALL, should_stop=stop_in_round_two, on_event=heard.append)
    assert stopped.stopped
    assert list(stopped.rounds["round"]) == [0, 1]
    first = next(event for event in heard if isinstance(event, RoundDone) and event.round == 1)
    assert all(torch.equal(stopped.state[name], tensor) for name, tensor in first.state.items())
    assert heard[-1].client == 0 and heard[-1].step == 1, "Stop acts at the very next step"


def test_stopped_rivals_keep_what_they_trained():
    heard = []
    stopped = run_local_only(SMALL, should_stop=lambda: len(heard) > 2, on_event=heard.append)
    assert stopped.stopped and 0 in stopped.client_states


def test_scores_know_the_base_from_an_adapter(outcome):
    base, trained = score(SMALL, [{}, outcome.state])["loss"]
    assert base == pytest.approx(outcome.rounds["loss"].iloc[0], abs=1e-6)
    assert trained == pytest.approx(outcome.rounds["loss"].iloc[-1], abs=1e-6)


def test_the_shipped_base_scores_high_on_what_it_was_trained_on_and_low_on_the_new_objects(
    monkeypatch,
):
    monkeypatch.setattr("fedgen_lab.lora.pipeline.shipped", shipped)
    monkeypatch.setattr("fedgen_lab.lora.device.load_pipeline", load_pipeline)
    (base,) = score(replace(SMALL, num_prompts=12), [{}]).to_dict("records")
    assert base["object"] <= 0.25, "the base never saw these objects"
    assert base["old_all"] >= 0.75, "it draws what it was trained on"


@pytest.fixture
def own_folder(tmp_path):
    rng, rows = np.random.default_rng(0), ["file_name,text,kind"]
    for number in range(20):
        Image.fromarray(rng.integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(
            tmp_path / f"{number}.png"
        )
        rows.append(f"{number}.png,a picture of {number},{'even' if number % 2 == 0 else 'odd'}")
    (tmp_path / "metadata.csv").write_text("\n".join(rows), encoding="utf-8")
    return tmp_path


def test_the_same_job_runs_on_a_learners_own_pictures(own_folder):
    own = replace(SMALL, pictures=str(own_folder), concept="kind", rounds=1)
    dealt, outcome = deal(own), run_federated(own)
    assert dealt.concepts == ("even", "odd")
    assert [set(pictures.attributes["kind"]) for pictures in dealt.clients] == [{"even"}, {"odd"}]
    assert len(outcome.rounds) == 2 and list(score(own, [outcome.state])) == ["loss"]


def test_no_picture_is_held_out_and_trained_on_whatever_its_captions_and_copies(own_folder):
    table = (own_folder / "metadata.csv").read_text(encoding="utf-8").splitlines()
    for number in range(
        20
    ):  # five captions a picture, and a copy of every other one under another name
        kind = "even" if number % 2 == 0 else "odd"
        table += [f"{number}.png,caption {i} of {number},{kind}" for i in range(4)]
        if number % 4 < 2:
            shutil.copy(own_folder / f"{number}.png", own_folder / f"copy of {number}.png")
            table.append(f"copy of {number}.png,a copy,{kind}")
    (own_folder / "metadata.csv").write_text("\n".join(table), encoding="utf-8")
    dealt = deal(replace(SMALL, pictures=str(own_folder), concept="kind", num_clients=3, skew=0.5))
    held, trained = (
        {image.numpy().tobytes() for pictures in sets for image in pictures.images}
        for sets in ([dealt.held_out], dealt.clients)
    )
    assert len(held) == 2 and trained and not held & trained
    assert set(dealt.held_out.attributes["kind"]) == {"even", "odd"}


def test_concepts_that_share_all_their_pictures_leave_some_to_train_on(own_folder):
    rows = ["file_name,text,kind"]
    rows += [f"{number}.png,a picture,{kind}" for kind in "ab" for number in range(2)]
    (own_folder / "metadata.csv").write_text("\n".join(rows), encoding="utf-8")
    for seed in range(4):
        own = replace(SMALL, pictures=str(own_folder), concept="kind", seed=seed)
        assert all(len(pictures) for pictures in deal(own).clients)


def test_one_picture_with_many_captions_is_too_few(own_folder):
    rows = ["file_name,text,kind", *(f"0.png,caption {i},a" for i in range(5))]
    (own_folder / "metadata.csv").write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(ValueError, match="two different ones, .* got 1"):
        deal(replace(SMALL, pictures=str(own_folder), concept="kind"))


@pytest.mark.parametrize("knobs", [{}, {"concept": "kind"}])
def test_dealt_unequally_clients_differ_in_number_and_weigh_by_it(own_folder, knobs):
    own = {"pictures": str(own_folder), **knobs} if knobs else {}
    scenario = replace(SMALL, num_clients=3, rounds=1, dealing="unequal", ratio=4.0, **own)
    dealt, weights = deal(scenario), []
    sizes = [len(pictures) for pictures in dealt.clients]
    assert sum(sizes) == (18 if knobs else 24) and sizes == sorted(sizes)
    assert 2.5 < sizes[-1] / sizes[0] <= 4.5

    def watch(strategy):
        rule = strategy.combine
        strategy.combine = lambda *what: weights.append(what[-1]) or rule(*what)

    run_app(lora_server_app(keep=watch), lora_client_app(), 3, scenario.to_run_config())
    assert weights == [sizes]


def test_dealt_by_dirichlet_a_small_alpha_makes_clients_differ():
    def distance(alpha):
        scenario = replace(SMALL, num_clients=4, dealing="dirichlet", dirichlet_alpha=alpha)
        clients = deal(scenario).clients
        counts = [pictures.attributes["object"].value_counts() for pictures in clients]
        assert sum(len(pictures) for pictures in clients) == 32
        return mean_js_distance(pd.DataFrame(counts).fillna(0))

    assert distance(0.1) > 0.4 > 0.2 > distance(1000.0)


def test_a_devices_own_pictures_are_all_its_own_and_their_number_is_theirs(own_folder):
    scenario = replace(SMALL, rounds=1)
    device = LoraDevice()
    for pictures, number in (("", 8), (str(own_folder), 20)):
        node = {"partition-id": 1, "num-partitions": 2, "pictures": pictures}
        context = Context(1, 7, node, RecordDict(), scenario.to_run_config())
        _, _, base = device._who(context)
        assert len(base.encoded(1)) == device._metrics(1, base)["num-examples"] == number


def test_pictures_come_at_the_size_of_the_base(tmp_path, own_folder):
    from test_lora_real_size import SMALL as SMALL_BASE

    for side, blocks in ((128, 3), (512, 4)):
        kinds = {"down": "DownEncoderBlock2D", "up": "UpDecoderBlock2D"}
        vae = SMALL_BASE["vae"] | {"block_out_channels": (8,) * blocks, "sample_size": side}
        vae |= {f"{way}_block_types": (kind,) * blocks for way, kind in kinds.items()}
        unet = SMALL_BASE["unet"] | {"sample_size": side // 2 ** (blocks - 1)}
        folder = write_random_pipeline(
            tmp_path / str(side), {**SMALL_BASE, "vae": vae, "unet": unet}, 0, torch.float32
        )
        one = {"num_clients": 1, "local_steps": 1, "batch_size": 1, "pictures_per_client": 2}
        real = replace(SMALL, pictures=str(own_folder), concept="kind", rounds=1, **one)
        real = replace(real, base_model=str(folder), num_prompts=1, rank=2)
        Image.effect_noise((600, 600), 90).convert("RGB").save(own_folder / "0.png")
        dealt = deal(real)
        assert (
            dealt.clients[0].images.shape[-2:] == dealt.held_out.images.shape[-2:] == (side, side)
        )
        assert torch.isfinite(torch.tensor(run_federated(real).rounds["loss"])).all()


PRIVATE = replace(SMALL, rounds=3, batch_size=2, sample_clip=0.1, sample_noise=2.0)


def test_a_federation_by_dp_sgd_counts_what_each_picture_is_told_of(monkeypatch):
    monkeypatch.setenv(VARIABLE, "1")
    outcome, again = run_federated(PRIVATE), run_federated(PRIVATE)
    # every device took two steps in each of three rounds, with two of eight pictures by coin
    assert outcome.spent == privacy_spent(2.0, 6, 0.25) and outcome.spent.epsilon < 2
    assert not outcome.refused and len(outcome.rounds) == 4

    def same(one, other):
        return all(torch.equal(one.state[name], value) for name, value in other.state.items())

    assert same(outcome, again)
    monkeypatch.setenv(VARIABLE, "2")
    assert not same(outcome, run_federated(PRIVATE)), "its noise follows from the secret seed"


def test_a_device_whose_budget_is_spent_trains_no_more_and_says_so():
    budget = privacy_spent(2.0, 4, 0.25).epsilon + 1e-9  # enough for two rounds
    outcome = run_federated(replace(PRIVATE, epsilon_budget=budget))
    told = [refusal for refusal in outcome.refused if refusal.client != "everyone"]
    assert [(refusal.round, refusal.client) for refusal in told] == [
        (3, "client 0"),
        (3, "client 1"),
    ]
    assert all("its privacy budget is spent: one more round" in refusal.reason for refusal in told)
    assert outcome.spent == privacy_spent(2.0, 4, 0.25)
    assert outcome.rounds["loss"].iloc[-1] == outcome.rounds["loss"].iloc[-2]


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"sample_noise": 1.0}, "sample_noise=1.0 and sample_clip=0.0"),
        ({"epsilon_budget": 3.0}, "epsilon_budget=3.0 and sample_noise=0.0"),
        ({"sample_noise": 1.0, "sample_clip": 1.0, "rule": "fed-sb"}, "gradients in the clear"),
        ({"sample_noise": 1.0, "sample_clip": 1.0, "cut": "conv_in"}, "knows no sample_clip"),
    ],
)
def test_dp_sgd_refuses_what_makes_no_sense_with_it(knobs, words):
    scenario = replace(SMALL, **knobs)
    with pytest.raises(ValueError, match=words):
        check_knobs(scenario) if scenario.cut else strategy_of(scenario)


def test_an_unknown_concept_names_the_columns_there_are(own_folder):
    with pytest.raises(ValueError, match="kind"):
        deal(replace(SMALL, pictures=str(own_folder), concept="colour"))


def test_a_client_too_many_is_told_so_and_the_round_goes_on():
    from fedgen_lab.federation.run import run_app
    from fedgen_lab.lora.federated import lora_client_app, lora_server_app

    kept = []
    run_app(
        lora_server_app(keep=kept.append),
        lora_client_app(),
        3,
        replace(SMALL, rounds=1).to_run_config(),
    )
    assert [client for _, client, _ in kept[0].refused] == ["client 2"]
    assert set(kept[0].client_arrays) == {0, 1}
