"""One round's uploads, combined in many ways: what `measure` says, and the panel of lab 08 that shows it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from fedgen_lab.dashboards.leaks import LeaksPanel
from fedgen_lab.federation.averages import combine, norm
from fedgen_lab.lora.adapter import add_adapter, trainable_state
from fedgen_lab.lora.pipeline import Encoded
from fedgen_lab.pictures.sprites import prompts
from fedgen_lab.privacy import uploads as module
from fedgen_lab.privacy.uploads import (
    Uploads,
    as_arrays,
    first_adapter,
    judge,
    measure,
    run_uploads,
    summed_securely,
)
from fedgen_lab.scenario import Scenario


def encoded(number, seed):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(number, 4, 4, 4, generator=generator)
    return Encoded(latents, torch.randn(number, 3, 8, generator=generator))


@pytest.fixture(scope="module")
def uploads():
    """Five clients on a tiny random UNet, which draws grey; the last one shouts ten times as loud."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=4,
            in_channels=4,
            out_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=8,
            norm_num_groups=4,
            attention_head_dim=4,
        )
    add_adapter(unet, rank=2)
    start = as_arrays(trainable_state(unet))
    draw = np.random.default_rng(0)
    states = [
        {
            k: v + draw.normal(0, 0.01 if client < 4 else 0.1, v.shape).astype(np.float32)
            for k, v in start.items()
        }
        for client in range(5)
    ]
    pipeline = SimpleNamespace(unet=unet, scheduler=DDPMScheduler(prediction_type="v_prediction"))
    members, held_out, marked = encoded(4, 1), encoded(8, 2), encoded(4, 3)
    captions, asked = prompts(4, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            module,
            "draw",
            lambda pipeline, prompts, seeds, steps: torch.zeros(len(prompts), 3, 32, 32),
        )
        yield Uploads(
            Scenario(num_clients=5, attackers=1),
            pipeline,
            start,
            tuple(states),
            members,
            held_out,
            np.arange(8),
            marked,
            tuple(captions),
            asked,
            draws=4,
        )


def test_the_mean_is_the_mean_and_the_unet_carries_it_afterwards(uploads):
    found = measure(uploads)
    for name, array in found["state"].items():
        assert np.allclose(
            array, np.mean([state[name] for state in uploads.states], axis=0), atol=1e-6
        )
    carried = as_arrays(trainable_state(uploads.pipeline.unet))
    assert all(np.array_equal(carried[name], found["state"][name]) for name in carried)


def test_an_adapter_that_nobody_changed_has_the_loss_before_and_tells_nothing(uploads):
    found = judge(uploads, uploads.received)
    assert found["loss"] == pytest.approx(uploads.loss_before, rel=1e-6)
    assert found["auc"] == pytest.approx(0.5, abs=1e-9) or found["tpr"] == 0.0
    assert found["fidelity"] == 0.0, "grey pictures show nothing"
    assert [len(pictures) for pictures in found["pictures"]] == [4, 4]
    assert judge(uploads, uploads.received, drawn=False) == {
        name: found[name] for name in ("loss", "auc", "tpr", "backdoor")
    }


def test_what_the_server_overheard_does_not_depend_on_what_it_does_with_it(uploads):
    for defence in ("mean", "median", "krum"):
        assert measure(uploads, defence=defence)["server's auc"] == uploads.overheard.auc


@pytest.mark.parametrize("defence", ["clip", "median", "trimmed", "krum"])
def test_a_defence_takes_in_less_of_the_client_that_shouts(uploads, defence):
    assert measure(uploads)["attacker's share"] == 1.0
    assert measure(uploads, defence=defence)["attacker's share"] < 0.3


def test_under_secure_aggregation_the_server_knows_what_everybody_knows(uploads):
    found = measure(uploads, secure=True)
    assert found["server's auc"] == found["auc"] and found["server's tpr"] == found["tpr"]
    with pytest.raises(ValueError, match="sees no single upload, so 'krum' can't compare"):
        measure(uploads, defence="krum", secure=True)


def test_noise_needs_a_clip_and_is_as_strong_as_promised(uploads):
    with pytest.raises(ValueError, match="a clip above 0"):
        measure(uploads, noise_multiplier=1.0)
    quiet, loud = (measure(uploads, clip=2.0, noise_multiplier=z)["state"] for z in (0.0, 0.5))
    off = np.concatenate([(loud[name] - quiet[name]).ravel() for name in quiet])
    assert off.std() == pytest.approx(0.5 * 2.0 / 5, rel=0.1)


def test_the_panel_adds_a_row_and_a_sentence_for_every_combination(uploads, monkeypatch):
    monkeypatch.setenv("FEDGEN_RUN", "inline")
    panel = LeaksPanel(uploads.scenario, uploads)
    panel.start()
    panel.defence.value = "median"
    panel.start()
    panel.clip.set(2.0), panel.noise.set(0.5)
    panel.defence.value, panel.secure.value = "mean", True
    panel.start()
    assert panel.frame()["defence"].tolist() == ["mean", "median", "mean"]
    assert panel.status.sentence.startswith(
        "Defence mean, clip 2, noise 0.5, secure aggregation: held-out loss "
    )
    assert panel.shown.value.count("<img alt=") == 8, "four prompts, without and with the trigger"


def test_a_combination_that_makes_no_sense_is_said_in_the_status_line(uploads, monkeypatch):
    monkeypatch.setenv("FEDGEN_RUN", "inline")
    panel = LeaksPanel(uploads.scenario, uploads)
    panel.defence.value, panel.secure.value = "krum", True
    panel.start()
    assert panel.job.state == "failed" and "turn secure aggregation off" in panel.status.sentence
    assert panel.rows == []


@pytest.mark.parametrize("lost", [(), (3,), (0, 4)])
def test_the_server_adds_up_masked_uploads_exactly_whoever_is_lost_and_sees_only_noise(
    uploads, lost
):
    summed = summed_securely(uploads, lost)
    there = [state for client, state in enumerate(uploads.states) if client not in lost]
    plain, _ = combine(uploads.received, there)
    assert all(np.allclose(summed.state[name], plain[name], atol=1e-6) for name in plain)
    assert sorted(summed.seen) == [client for client in range(5) if client not in lost]
    assert len(summed.refused) == len(lost) and all(
        "out of reach" in reason for reason in summed.refused
    )
    for (
        client,
        view,
    ) in (
        summed.seen.items()
    ):  # 32-bit numbers, evenly spread, that have nothing to do with the upload
        sent = np.concatenate(
            [uploads.states[client][name].ravel() for name in sorted(uploads.received)]
        )
        assert (
            abs(np.corrcoef(view[-1 - len(sent) :][: len(sent)], sent)[0, 1]) < 5 / len(sent) ** 0.5
        )
        assert abs(view.mean() / 2**32 - 0.5) < 5 / (12 * len(view)) ** 0.5


def test_a_round_of_the_flower_app_gives_five_uploads_of_which_the_attackers_is_the_longest(
    small_folder, monkeypatch
):
    from fedgen_lab.lora.federated import prepare

    monkeypatch.setattr("fedgen_lab.lora.data.HELD_OUT_PER_CONCEPT", 4)
    scenario = Scenario(
        num_clients=5,
        attackers=1,
        local_steps=2,
        batch_size=2,
        pictures_per_client=4,
        num_prompts=1,
        base_model=str(small_folder),
    )
    start = {
        name: tensor + 0.01 for name, tensor in trainable_state(prepare(scenario).unet).items()
    }
    found = run_uploads(scenario, start=start, draws=1)
    lengths = [
        norm({name: state[name] - found.received[name] for name in state}) for state in found.states
    ]
    assert len(found.members) == 4 and max(lengths) == lengths[4] > 2 * max(lengths[:4])
    assert len(found.kin) == len(found.held_out) == 16  # without skew, client 0 has every kind
    assert all(np.array_equal(found.received[name], start[name].numpy()) for name in start)
    assert run_uploads(scenario, should_stop=lambda: True) is None


def test_the_first_adapter_taught_the_four_objects():
    from fedgen_lab.lora.adapter import load_trainable
    from fedgen_lab.lora.data import deal
    from fedgen_lab.lora.federated import prepare
    from fedgen_lab.lora.local import denoising_loss, noise_schedule
    from fedgen_lab.lora.pipeline import encode

    scenario = Scenario()
    pipeline = prepare(scenario)
    held_out = encode(pipeline, deal(scenario).held_out)
    schedule, losses = noise_schedule(pipeline), []
    for state in (trainable_state(pipeline.unet), first_adapter()):
        load_trainable(pipeline.unet, state)
        losses.append(float(denoising_loss(pipeline.unet, schedule, held_out, draws=1).mean()))
    assert losses[1] < 0.6 * losses[0]
