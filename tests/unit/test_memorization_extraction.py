"""Extraction: the pull of a prompt by hand and in several pipelines, edges as published, prompts learned by heart."""

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDPMScheduler, StableDiffusionXLPipeline
from scipy import ndimage

from fedgen_lab.lora.pipeline import load_pipeline, text_states
from fedgen_lab.memorization.ddpm import any_class, new_ddpm, train_ddpm
from fedgen_lab.memorization.denoiser import denoiser_of
from fedgen_lab.memorization.extraction import edge_overlap, known_prompts, one_step, text_noise


def smooth(number, seed):
    """8x8 pictures, smooth and random, in [-1, 1]."""
    small = torch.rand(number, 1, 3, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(small, (8, 8), mode="bicubic").clamp(-1, 1)


@pytest.fixture(scope="module")
def trained():
    """A small DDPM with six labels: 0 and 1 always the same picture, 2 to 5 a new one every time."""
    fixed = smooth(2, seed=0).repeat_interleave(128, 0)
    images = torch.cat([fixed, smooth(512, seed=1)])
    labels = torch.cat([torch.arange(2).repeat_interleave(128), torch.arange(512) % 4 + 2])
    model = new_ddpm(side=8, num_classes=6, width=16)
    train_ddpm(model, images, labels, steps=200, batch_size=32, learning_rate=5e-3)
    return model, fixed[::128]


def test_prompts_learned_by_heart_pull_harder(trained):
    model, _ = trained
    pulls = text_noise(model, range(6), steps=10)
    assert pulls.shape == (6,) and pulls[:2].min() > 2 * pulls[2:].max()


def test_one_step_gives_back_what_was_learned_by_heart(trained):
    model, fixed = trained
    pictures = one_step(model, range(6))
    assert pictures.shape == (6, 4, 1, 8, 8)
    off = (pictures[:2].mean(1) - fixed).square().mean((1, 2, 3)).sqrt() / 2
    assert off.max() < 0.12
    edges = edge_overlap(pictures, edge=0.5)  # smooth pictures have soft edges
    assert edges[:2].min() > 3 * edges[2:].max()


def test_prompts_of_every_kind_are_asked_and_codes_that_were_never_planted(tiny):
    from fedgen_lab.memorization.making import Copying, Trained, private_pictures

    copying, pipeline = Copying(pictures=6, duplicated=2, canaries=1), tiny
    private = private_pictures(copying)
    table, pictures = known_prompts(
        Trained(copying, private, pipeline, []), number=2, seeds=(0,), steps=2
    )
    asked = table.groupby("kind")["prompt"].agg(list)
    assert (
        asked["canary"] == private.pictures.captions[6:]
        and asked["repeated"] == private.pictures.captions[:2]
    )
    assert asked["once"] == private.pictures.captions[2:4] and len(asked["other codes"]) == 4
    assert not set(asked["other codes"] + asked["never seen"]) & set(private.pictures.captions)
    assert pictures.shape == (len(table), 4, 3, 32, 32)
    np.testing.assert_allclose(
        table["pull"][:1], text_noise(pipeline, asked["canary"], [0], 2), rtol=1e-4
    )
    assert table["spread"][0] == pytest.approx(float(pictures[0].std(0).mean()), rel=1e-4)


@pytest.mark.parametrize("target", ["v_prediction", "epsilon"])
def test_the_pull_is_the_distance_of_two_guesses(target):
    model = new_ddpm(side=8, width=8)
    model.scheduler = DDPMScheduler(
        prediction_type=target
    )  # at its last step something of the picture is left
    x = torch.stack(
        [torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (4, 4, 4)]
    )
    eps = denoiser_of(model).eps
    wanted = (
        eps(x, 999, torch.tensor([0, 1, 2])) - eps(x, 999, torch.tensor([any_class(model)] * 3))
    ).flatten(1)
    np.testing.assert_allclose(
        text_noise(model, [0, 1, 2], seeds=[4], steps=1), wanted.norm(dim=1), rtol=1e-3
    )


@pytest.fixture(scope="module")
def tiny(small_folder):
    return load_pipeline(small_folder)


def test_in_a_stable_diffusion_too(tiny):
    prompts = ["a red star on a blue background", "a green moon on a white background"]
    found = text_noise(tiny, prompts, seeds=[1], steps=1)
    x = torch.stack([torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(1))] * 2)
    eps, states = denoiser_of(tiny).eps, text_states(tiny, [*prompts, "", ""])
    np.testing.assert_allclose(
        found, (eps(x, 999, states[:2]) - eps(x, 999, states[2:])).flatten(1).norm(dim=1), rtol=1e-3
    )
    np.testing.assert_allclose(
        found[1:], text_noise(tiny, prompts[1:], seeds=[1], steps=1), rtol=1e-4
    )
    assert one_step(tiny, prompts, seeds=(0, 1)).shape == (2, 2, 3, 32, 32)


def test_in_any_pipeline_that_guides_by_a_double_batch(tiny):
    from diffusers import EulerDiscreteScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tiny.tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        projection_dim=16,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=tiny.tokenizer.bos_token_id,
        eos_token_id=tiny.tokenizer.eos_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=12,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        cross_attention_dim=32,
        attention_head_dim=2,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=16 + 6 * 4,
    )
    large = StableDiffusionXLPipeline(
        tiny.vae,
        CLIPTextModel(config),
        CLIPTextModelWithProjection(config),
        tiny.tokenizer,
        tiny.tokenizer,
        unet,
        EulerDiscreteScheduler(),
        add_watermarker=False,
    )
    large.set_progress_bar_config(disable=True)
    pulls = text_noise(large, ["a red star", "a blue moon"], seeds=[0], steps=2)
    assert pulls.shape == (2,) and (pulls > 0).all()
    assert not large.unet._forward_hooks  # it has stopped listening
    with pytest.raises(ValueError, match="text_noise"):
        denoiser_of(large)


@pytest.mark.parametrize("seed", range(3))
def test_edges_are_those_of_the_published_code(seed):
    pictures = np.random.default_rng(seed).random((2, 4, 3, 256, 256), dtype=np.float32)
    pictures = ndimage.gaussian_filter(pictures, (0, 0, 0, 2, 2)) * 1.3
    wanted = []
    for group in pictures.transpose(
        0, 1, 3, 4, 2
    ):  # as in run_bb_attack.py: (4, 256, 256, 3) in [0, 1]
        size = [
            np.hypot(ndimage.sobel(image, axis=0), ndimage.sobel(image, axis=1)).sum(2) > 1.5
            for image in group
        ]
        wanted.append((np.mean(size, axis=0) > 0.5).mean())
    assert 0.01 < min(wanted) and max(wanted) < 0.99
    np.testing.assert_allclose(edge_overlap(torch.from_numpy(pictures) * 2 - 1), wanted, atol=1e-4)


def test_the_same_sharp_picture_for_all_seeds_has_edges_in_common():
    sharp = (
        torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(0)) > 0.5
    ).float() * 2 - 1
    sharp = sharp.repeat_interleave(8, 2).repeat_interleave(8, 3)  # (4, 3, 32, 32)
    same = sharp[:1].expand(4, -1, -1, -1)[None]
    different = torch.stack(
        [torch.roll(picture, (2 * i, 2 * i), (1, 2)) for i, picture in enumerate(sharp)]
    )[None]
    blurred = 0.1 * same
    assert edge_overlap(same)[0] > 10 * max(edge_overlap(different)[0], edge_overlap(blurred)[0])
    grey = same.mean(2, keepdim=True)
    np.testing.assert_allclose(
        edge_overlap(grey), edge_overlap(grey.expand(-1, -1, 3, -1, -1)), atol=1e-4
    )


def test_questions_without_sense_are_refused(trained):
    model, _ = trained
    with pytest.raises(ValueError, match="guidance=1"):
        text_noise(model, [0], guidance=1)
    with pytest.raises(ValueError, match="got 0 prompts"):
        text_noise(model, [])
    with pytest.raises(ValueError, match="as `one_step` gives"):
        edge_overlap(torch.zeros(2, 3, 32, 32))
    unet = new_ddpm(side=8, width=8).unet
    unet.register_to_config(num_class_embeds=None)
    with pytest.raises(ValueError, match="takes no prompts"):
        text_noise(DDIMPipeline(unet, model.scheduler), ["a star"])
