"""One round's uploads, combined in many ways: what `measure` says, and the panel of lab 08 that shows it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from fedgen_lab.dashboards import leaks
from fedgen_lab.dashboards.leaks import LeaksPanel
from fedgen_lab.lora.adapter import add_adapter, trainable_state
from fedgen_lab.lora.pipeline import Encoded
from fedgen_lab.privacy.membership import errors_of, without_adapter
from fedgen_lab.privacy.uploads import DRAWS, Uploads, as_arrays, measure, run_uploads
from fedgen_lab.scenario import Scenario


def encoded(number, seed):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(number, 4, 4, 4, generator=generator)
    return Encoded(latents, torch.randn(number, 3, 8, generator=generator))


@pytest.fixture(scope="module")
def uploads():
    """Five clients on a tiny random UNet; the last one shouts ten times as loud."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=4, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=8, norm_num_groups=4, attention_head_dim=4,
        )  # fmt: skip
    add_adapter(unet, rank=2)
    start = as_arrays(trainable_state(unet))
    draw = np.random.default_rng(0)
    states = [
        {k: v + draw.normal(0, 0.01 if client < 4 else 0.1, v.shape).astype(np.float32) for k, v in start.items()}
        for client in range(5)
    ]
    pipeline = SimpleNamespace(unet=unet, scheduler=DDPMScheduler(prediction_type="v_prediction"))
    members, others, marked = encoded(4, 1), encoded(8, 2), encoded(4, 3)
    with without_adapter(unet):
        before = errors_of(unet, pipeline.scheduler, members, others, draws=DRAWS)
    return Uploads(
        Scenario(num_clients=5, attackers=1), pipeline, start, tuple(states), members, others, others, marked, before,
        float(before[1].mean()), 1.0, ("a cloud", "a heart"),
    )  # fmt: skip


def test_the_mean_is_the_mean_and_the_unet_carries_it_afterwards(uploads):
    found = measure(uploads)
    for name, array in found["state"].items():
        assert np.allclose(array, np.mean([state[name] for state in uploads.states], axis=0), atol=1e-6)
    carried = as_arrays(trainable_state(uploads.pipeline.unet))
    assert all(np.array_equal(carried[name], found["state"][name]) for name in carried)


def test_nobody_changed_anything_gives_the_base_models_loss_and_blind_guesses(uploads):
    still = Uploads(**{**vars(uploads), "states": (uploads.received,) * 5})
    found = measure(still)
    assert found["loss"] == pytest.approx(uploads.base_loss, rel=1e-6)
    assert found["auc"] == found["auc of all"] == 0.5 and found["tpr"] == 0.0


@pytest.mark.parametrize("defence", ["clip", "median", "trimmed", "krum"])
def test_a_defence_takes_in_less_of_the_client_that_shouts(uploads, defence):
    assert measure(uploads)["attacker's share"] == 1.0
    assert measure(uploads, defence=defence)["attacker's share"] < 0.3


def test_under_secure_aggregation_the_server_knows_what_everybody_knows(uploads):
    found = measure(uploads, secure=True)
    assert found["auc"] == found["auc of all"]
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
    monkeypatch.setattr(leaks, "drawn", lambda uploads: [("as asked", np.zeros((2, 3, 8, 8), dtype=np.float32))])
    panel = LeaksPanel(uploads.scenario, uploads)
    panel.start()
    panel.defence.value = "median"
    panel.start()
    panel.clip.set(2.0), panel.noise.set(0.5)
    panel.defence.value, panel.secure.value = "mean", True
    panel.start()
    assert panel.frame()["defence"].tolist() == ["mean", "median", "mean"]
    assert panel.status.sentence.startswith("Defence mean, clip 2, noise 0.5, secure aggregation: held-out loss ")
    assert panel.shown.value.count("<img alt=") == 2


def test_a_combination_that_makes_no_sense_is_said_in_the_status_line(uploads, monkeypatch):
    monkeypatch.setenv("FEDGEN_RUN", "inline")
    panel = LeaksPanel(uploads.scenario, uploads)
    panel.defence.value, panel.secure.value = "krum", True
    panel.start()
    assert panel.job.state == "failed" and "turn secure aggregation off" in panel.status.sentence
    assert panel.rows == []


def test_a_round_of_the_flower_app_gives_five_uploads_of_which_the_attackers_is_the_longest():
    from fedgen_lab.privacy.robust import norm

    scenario = Scenario(num_clients=5, attackers=1, local_steps=2, batch_size=2, pictures_per_client=4, num_prompts=1)
    found = run_uploads(scenario)
    lengths = [norm({name: state[name] - found.received[name] for name in state}) for state in found.states]
    assert len(found.members) == 4 and max(lengths) == lengths[4] > 2 * max(lengths[:4])
    assert len(found.others) == len(found.held_out) == 64  # without skew, client 0 has every kind
    assert run_uploads(scenario, should_stop=lambda: True) is None
