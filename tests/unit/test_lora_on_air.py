"""Federated LoRA on the clock: what deadlines, FedBuff and small uploads do to a run of a few steps."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedgen_lab.federation.run import Stopped
from fedgen_lab.lora import device, federated
from fedgen_lab.lora.on_air import run_on_air, ways
from fedgen_lab.lora.pipeline import encode
from fedgen_lab.scenario import Scenario
from fedgen_lab.wireless.channel import Network
from fedgen_lab.wireless.replay import replay

SMALL = Scenario(
    num_clients=3,
    rounds=2,
    local_steps=1,
    batch_size=2,
    pictures_per_client=4,
    num_prompts=4,
    seed=2,
)
NETWORK = Network(
    3, flops_per_second=1e9, speed_spread=1.0, seed=2
)  # so slow that a step of the tiny model counts


@pytest.fixture(scope="module", autouse=True)
def nothing_is_drawn(small_base):
    """Held-out losses, pictures and counted operations are other tests' business; here they would take most of the
    time.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(federated, "draw_strip", lambda *_: torch.zeros(4, 3, 8, 8))
        patch.setattr(
            federated, "encode", lambda pipeline, pictures: encode(pipeline, pictures.take([0]))
        )
        for module in (federated, device):
            patch.setattr(module, "step_flops", lambda *_: 1e9)
        patch.setattr(
            federated,
            "denoising_loss",
            lambda unet, *_: sum(p.detach().norm() for p in unet.parameters()),
        )
        yield


@pytest.fixture(scope="module")
def plain():
    return run_on_air(SMALL, NETWORK)


def test_waiting_for_all_is_the_plain_run_and_its_replay(plain):
    outcome = federated.run_federated(SMALL)
    assert all(torch.equal(plain.state[name], value) for name, value in outcome.state.items())
    rounds = replay(outcome.trace, NETWORK).rounds
    np.testing.assert_allclose(plain.progress["seconds"], [0, *rounds.seconds.cumsum()])
    np.testing.assert_allclose(plain.progress["megabytes_up"], [0, *rounds.bytes_up.cumsum() / 1e6])
    np.testing.assert_array_equal(plain.progress["loss"], outcome.rounds["loss"])
    joules = plain.progress["joules"]
    assert joules[0] == 0 and np.isclose(joules.iloc[-1], plain.timeline.clients["joules"].sum())
    assert not plain.refused and not plain.progress[["left_out", "staleness"]].any(axis=None)


def test_a_deadline_shortens_the_rounds_and_leaves_the_slowest_out(plain):
    longest = float(plain.timeline.rounds.seconds.max())
    cut = run_on_air(ways(SMALL, deadline_seconds=0.7 * longest)["deadline"], NETWORK)
    assert (cut.timeline.rounds.seconds <= 0.7 * longest + 1e-9).all()
    stragglers = {f"client {client}" for client in plain.timeline.rounds.straggler}
    assert cut.refused and {client for _, client, _ in cut.refused} <= stragglers
    assert cut.progress["left_out"].sum() == len(cut.refused)
    assert any(not torch.equal(cut.state[name], value) for name, value in plain.state.items())


def test_fedbuff_merges_as_many_uploads_in_less_time(plain):
    buffered = ways(SMALL, deadline_seconds=1.0, buffer=2)["FedBuff"]
    assert buffered.rounds == 3  # of two uploads each, as two rounds of three
    run = run_on_air(buffered, NETWORK)
    assert run.progress["round"].tolist() == [0, 1, 2, 3] and not run.refused
    assert run.progress["seconds"].iloc[-1] < plain.progress["seconds"].iloc[-1]
    assert run.progress["staleness"].max() > 0 and np.isfinite(run.progress["loss"]).all()


@pytest.mark.parametrize("upload, at_most", [("int8", 0.45), ("top-k", 0.25)])
def test_small_uploads_arrive_through_the_whole_app(plain, upload, at_most):
    run = run_on_air(replace(SMALL, upload=upload), NETWORK)
    total = run.progress["megabytes_up"].iloc[-1] / plain.progress["megabytes_up"].iloc[-1]
    assert 0 < total < at_most and not run.refused
    assert run.progress["megabytes_down"].iloc[-1] == pytest.approx(
        plain.progress["megabytes_down"].iloc[-1], rel=1e-3
    )
    assert any(not torch.equal(run.state[name], value) for name, value in plain.state.items())


def test_every_round_is_heard_of_and_a_stop_keeps_what_there_is():
    heard = []

    def hear(done, progress):
        heard.append((done.round, len(progress)))
        if done.round == 1:
            raise Stopped("enough")

    run = run_on_air(SMALL, NETWORK, on_round=hear)
    assert (
        heard == [(0, 1), (1, 2)]
        and run.stopped
        and run.progress["round"].tolist() == [0, 1]
        and run.state
    )


def test_too_small_a_network_is_named_before_anything_trains():
    with pytest.raises(ValueError, match="network has only 2; give it num_clients=3"):
        run_on_air(SMALL, Network(2))
