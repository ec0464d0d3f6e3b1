"""What peers are compared with: FedAvg on their task, and measures that no objective saw."""

from dataclasses import replace

import pytest
import torch

from fedgen_lab.memorization.ddpm import train_ddpm, weights
from fedgen_lab.peers.fedavg import rounds_in, run_fedavg
from fedgen_lab.peers.measure import measure_model
from fedgen_lab.peers.peer import start_model
from fedgen_lab.peers.run import paces
from fedgen_lab.peers.scenario import PeersScenario, deal

TINY = PeersScenario(
    num_peers=2,
    seconds=1.2,
    steps=2,
    samples=64,
    pictures_per_peer=128,
    width=8,
    objective="fld-fid",
)


@pytest.fixture(scope="module")
def states():
    return run_fedavg(TINY)


def test_a_round_is_the_mean_of_what_the_clients_train(states):
    mean = None
    for client, holding in enumerate(deal(TINY)[:2]):
        model = start_model(TINY)
        images, labels = holding.train.as_tensor(), holding.train.labels
        train_ddpm(
            model,
            images,
            labels,
            TINY.steps,
            TINY.batch_size,
            TINY.learning_rate,
            seed=TINY.seed_of(2, client, 0),
        )
        half = {name: tensor / 2 for name, tensor in weights(model).items()}
        mean = half if mean is None else {name: mean[name] + half[name] for name in half}
    assert max((states[0][name] - mean[name]).abs().max() for name in mean) < 1e-6


def test_rounds_fill_the_time_at_the_pace_of_the_slowest(states):
    slowest = max(TINY.steps * pace.step for pace in paces(TINY))
    assert (
        len(states) == rounds_in(TINY) == int(TINY.seconds / slowest)
    )  # the link is fast: a few milliseconds a round
    assert rounds_in(replace(TINY, bandwidth_hz=1e5)) < rounds_in(TINY)


def test_a_model_that_copies_is_found_by_measures_of_its_own(states, monkeypatch):
    from fedgen_lab.peers import measure

    honest = measure_model(TINY, states[-1])
    assert (
        honest["copied"] == 0 and 0.3 < honest["auc"] < 0.7 and honest["kid"] > 0.05
    )  # it has hardly learned
    copies = deal(TINY)[0].train.as_tensor()[: TINY.samples]
    monkeypatch.setattr(measure, "draw_samples", lambda *_: copies)
    caught = measure_model(TINY, states[-1])
    assert caught["copied"] == 1 and caught["kid"] < honest["kid"] / 2


def test_a_stop_keeps_the_rounds_that_were_done():
    told = []

    def stop():
        return len(told) > 0

    states = run_fedavg(TINY, should_stop=stop, on_round=lambda *round_: told.append(round_))
    assert len(states) == 1 and all(torch.isfinite(tensor).all() for tensor in states[0].values())


def test_everybody_begins_from_the_same_model_however_many_they_are():
    ours, theirs = weights(start_model(TINY)), weights(start_model(replace(TINY, num_peers=4)))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
