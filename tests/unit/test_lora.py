"""Claims about one Stable Diffusion and its adapter: fedgen_lab/lora/{pipeline,adapter,local}.py (labs 02 and 03)."""

import shutil
from threading import Thread

import numpy as np
import pytest
import torch

from fedgen_lab.lora.adapter import (
    adapter_bytes,
    add_adapter,
    load_trainable,
    remove_adapter,
    trainable_state,
)
from fedgen_lab.lora.local import denoising_loss, noise_schedule, step_flops, target_of, train
from fedgen_lab.lora.pipeline import decode, draw, encode, load_pipeline, prompt_states, text_states
from fedgen_lab.pictures.sprites import draw_sprites

PROMPTS = ["a striped red star on a blue background", "a solid white moon on a black background"]


@pytest.fixture(scope="module")
def pipeline(small_folder):
    return load_pipeline(small_folder, device="cpu")


@pytest.fixture(scope="module")
def shipped_pipeline():
    return load_pipeline(device="cpu")


@pytest.fixture
def unet(pipeline):
    yield pipeline.unet
    remove_adapter(pipeline.unet)
    pipeline.unet.requires_grad_(False)


@pytest.fixture(scope="module")
def umbrellas(pipeline):
    return encode(pipeline, draw_sprites(12, seed=0, objects=("umbrella",)))


@pytest.fixture(scope="module")
def schedule(pipeline):
    return noise_schedule(pipeline)


def guess(unet, encoded):
    with torch.no_grad():
        return unet(
            encoded.latents[:2], torch.tensor([300, 700]), encoder_hidden_states=encoded.text[:2]
        ).sample


# -- the pipeline ----------------------------------------------------------------------------------------------------


def test_a_loaded_pipeline_is_frozen_and_in_float32(pipeline):
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        assert not part.training
        assert all(p.dtype == torch.float32 and not p.requires_grad for p in part.parameters())


def test_the_kind_of_number_asked_for_is_what_all_but_the_vae_hold_without_a_warning(capfd):
    light = load_pipeline(device="cpu", dtype=torch.bfloat16)
    assert (
        light.unet.dtype == light.text_encoder.dtype == torch.bfloat16
        and light.vae.dtype == torch.float32
    )
    assert (
        capfd.readouterr().err == ""
    )  # an old diffusers says here that it ignores the word, a new one that it is old
    assert text_states(light, PROMPTS).dtype == torch.bfloat16


def test_a_folder_without_a_pipeline_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="model_index.json") as told:
        load_pipeline(tmp_path)
    assert str(tmp_path) in str(told.value)


def test_only_safetensors_weights_are_read(tmp_path, small_folder):
    folder = tmp_path / "pickled"
    shutil.copytree(small_folder, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(
        weights.with_name("diffusion_pytorch_model.bin")
    )  # a pickle would bear this name
    with pytest.raises(OSError, match="safetensors"):
        load_pipeline(folder)


def test_a_pipeline_saved_elsewhere_draws_the_same_picture(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "mine")
    again = load_pipeline(tmp_path / "mine", device="cpu")
    assert torch.equal(
        draw(again, PROMPTS[:1], [5], steps=3), draw(pipeline, PROMPTS[:1], [5], steps=3)
    )


def test_pictures_have_the_promised_shape_and_range(pipeline):
    pictures = draw(pipeline, PROMPTS, [0, 1], steps=2)
    assert pictures.shape == (2, 3, 32, 32)
    assert pictures.dtype == torch.float32 and pictures.min() >= -1 and pictures.max() <= 1


def test_the_same_prompt_and_seed_give_the_same_bits(pipeline):
    assert torch.equal(
        draw(pipeline, PROMPTS, [0, 1], steps=3), draw(pipeline, PROMPTS, [0, 1], steps=3)
    )


def test_a_picture_depends_only_on_its_own_prompt_and_seed(pipeline, monkeypatch):
    alone = draw(pipeline, PROMPTS[1:], [7], steps=4)
    in_company = draw(pipeline, [PROMPTS[0], PROMPTS[1], PROMPTS[0]], [1, 7, 2], steps=4)
    monkeypatch.setattr("fedgen_lab.lora.pipeline.DRAWN_AT_ONCE", 1)
    in_parts = draw(pipeline, [PROMPTS[0], PROMPTS[1]], [1, 7], steps=4)
    assert torch.allclose(alone[0], in_company[1], atol=1e-4)
    assert torch.allclose(alone[0], in_parts[1], atol=1e-4)


def test_another_seed_or_another_prompt_gives_another_picture(shipped_pipeline):
    first, other_seed, other_prompt = draw(
        shipped_pipeline, [PROMPTS[0], PROMPTS[0], PROMPTS[1]], [1, 2, 1], steps=4
    )
    assert not torch.allclose(first, other_seed, atol=0.1)
    assert not torch.allclose(first, other_prompt, atol=0.1)


def test_two_threads_can_draw_with_one_pipeline(pipeline):
    expected = [draw(pipeline, PROMPTS[:1], [3], steps=steps) for steps in (4, 7)]
    drawn = {}
    threads = [
        Thread(target=lambda n=n: drawn.update({n: draw(pipeline, PROMPTS[:1], [3], steps=n)}))
        for n in (4, 7)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.allclose(drawn[4], expected[0], atol=1e-4) and torch.allclose(
        drawn[7], expected[1], atol=1e-4
    )


def test_threads_that_read_words_of_different_lengths_at_once_do_not_disturb_each_other(pipeline):
    failed = []

    def read(number):
        try:
            for _ in range(60):
                text_states(pipeline, PROMPTS[:number])
                prompt_states(pipeline, PROMPTS[:number], guidance=2)
        except (
            RuntimeError
        ) as error:  # before transformers 5.17, without a lock: "Already borrowed"
            failed.append(error)

    threads = [Thread(target=read, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_prompts_and_seeds_must_be_equally_many(pipeline):
    with pytest.raises(ValueError, match="2 prompts and 1 seeds"):
        draw(pipeline, PROMPTS, [0])
    with pytest.raises(ValueError, match="0 prompts"):
        draw(pipeline, [], [])


def test_a_drawing_can_be_stopped_before_any_step(pipeline):
    class Enough(Exception):
        pass

    def stop():
        raise Enough

    with pytest.raises(Enough):
        draw(pipeline, PROMPTS, [0, 1], on_step=stop)


def test_numpy_seeds_are_welcome(pipeline):
    assert torch.equal(
        draw(pipeline, PROMPTS[:1], np.arange(1), steps=2),
        draw(pipeline, PROMPTS[:1], [0], steps=2),
    )


def test_encoding_does_not_depend_on_the_batch(pipeline, monkeypatch):
    pictures = draw_sprites(5, seed=1)
    whole = encode(pipeline, pictures)
    monkeypatch.setattr("fedgen_lab.lora.pipeline.ENCODED_AT_ONCE", 2)
    parts = encode(pipeline, pictures)
    assert len(whole) == 5 and whole.latents.shape == (5, 4, 16, 16) and whole.text.shape[0] == 5
    assert torch.allclose(whole.latents, parts.latents, atol=1e-4) and torch.allclose(
        whole.text, parts.text, atol=1e-4
    )


def test_latents_are_scaled_to_about_unit_spread(pipeline):
    assert 0.7 < float(encode(pipeline, draw_sprites(32, seed=2)).latents.std()) < 1.4


def test_decoding_gives_the_encoded_pictures_back(pipeline):
    pictures = draw_sprites(8, seed=3)
    again = decode(pipeline, encode(pipeline, pictures).latents)
    assert again.shape == (8, 3, 32, 32) and again.min() >= -1 and again.max() <= 1
    error = (again - pictures.as_tensor()).square().mean(dim=(1, 2, 3))
    assert float((10 * torch.log10(4 / error)).mean()) > 28  # decibels


def test_no_pictures_cannot_be_encoded(pipeline):
    with pytest.raises(ValueError, match="at least one"):
        encode(pipeline, draw_sprites(4, seed=0).take([]))


def test_text_states_stand_for_captions_one_by_one(pipeline):
    both = text_states(pipeline, PROMPTS)
    assert torch.allclose(both[1:], text_states(pipeline, PROMPTS[1:]), atol=1e-5)
    assert not torch.allclose(both[0], both[1], atol=0.1)


# -- the adapter -----------------------------------------------------------------------------------------------------


def test_a_fresh_adapter_changes_nothing(unet, umbrellas):
    before = guess(unet, umbrellas)
    add_adapter(unet, rank=4)
    assert torch.equal(guess(unet, umbrellas), before)


def test_only_the_adapter_trains(unet):
    add_adapter(unet, rank=4)
    assert all(".lora_A." in name or ".lora_B." in name for name in trainable_state(unet))


def test_removing_the_adapter_gives_the_base_back_bit_for_bit(unet, umbrellas, schedule):
    weights = {name: p.clone() for name, p in unet.state_dict().items()}
    before = guess(unet, umbrellas)
    add_adapter(unet, rank=2)
    train(unet, schedule, umbrellas, steps=2, batch_size=4, learning_rate=1e-2, seed=0)
    assert not torch.equal(guess(unet, umbrellas), before)
    remove_adapter(unet)
    after = unet.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], weights[name]) for name in weights)
    assert torch.equal(guess(unet, umbrellas), before)


def test_removing_an_adapter_that_is_not_there_changes_nothing(unet):
    before = list(unet.state_dict())
    remove_adapter(unet)
    assert list(unet.state_dict()) == before


def test_one_unet_carries_one_adapter(unet):
    add_adapter(unet, rank=2)
    with pytest.raises(ValueError, match="remove_adapter"):
        add_adapter(unet, rank=2)


def test_the_seed_decides_a_fresh_adapter_and_nothing_else_is_touched(unet):
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    states = []
    for seed in (5, 5, 6):
        add_adapter(unet, rank=2, seed=seed)
        states.append(trainable_state(unet))
        remove_adapter(unet)
    assert torch.equal(
        torch.rand(1), expected
    )  # the global generator went on as if nothing had been drawn
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_an_adapter_grows_in_step_with_its_rank(unet):
    sizes = {}
    for rank in (1, 3):
        add_adapter(unet, rank=rank)
        sizes[rank] = adapter_bytes(trainable_state(unet))
        remove_adapter(unet)
    assert sizes[3] == 3 * sizes[1]


def test_a_state_can_be_put_back(unet, umbrellas, schedule):
    add_adapter(unet, rank=2)
    train(unet, schedule, umbrellas, steps=2, batch_size=4, learning_rate=1e-2, seed=0)
    state, drawn = trainable_state(unet), guess(unet, umbrellas)
    train(unet, schedule, umbrellas, steps=1, batch_size=4, learning_rate=1e-2, seed=1)
    assert not torch.equal(guess(unet, umbrellas), drawn)
    load_trainable(unet, state)
    assert torch.equal(guess(unet, umbrellas), drawn)


def test_a_state_is_a_copy_that_later_training_leaves_alone(unet, umbrellas, schedule):
    add_adapter(unet, rank=2)
    state = trainable_state(unet)
    kept = {name: tensor.clone() for name, tensor in state.items()}
    train(unet, schedule, umbrellas, steps=1, batch_size=4, learning_rate=1e-2, seed=0)
    assert all(torch.equal(state[name], kept[name]) for name in state)


def test_a_state_of_another_rank_is_refused_and_nothing_is_written(unet):
    add_adapter(unet, rank=2)
    other = {
        name: tensor.repeat(2, 1) if "lora_A" in name else tensor.repeat(1, 2)
        for name, tensor in trainable_state(unet).items()
    }
    before = trainable_state(unet)
    with pytest.raises(ValueError, match="has shape"):
        load_trainable(unet, other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainable_state(unet).items())


def test_one_wrong_shape_at_the_end_leaves_everything_as_it_was(unet):
    add_adapter(unet, rank=2)
    before = trainable_state(unet)
    odd = {name: tensor + 1 for name, tensor in before.items()}
    last = list(odd)[-1]
    odd[last] = odd[last][:1]
    with pytest.raises(ValueError, match=last.replace(".", r"\.")):
        load_trainable(unet, odd)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainable_state(unet).items())


def test_a_state_with_wrong_names_is_refused_by_name(unet):
    add_adapter(unet, rank=2)
    state = trainable_state(unet)
    missing = dict(list(state.items())[1:])
    with pytest.raises(ValueError, match=next(iter(state)).replace(".", r"\.")):
        load_trainable(unet, missing)
    with pytest.raises(ValueError, match="made_up"):
        load_trainable(unet, state | {"made_up": torch.zeros(1)})


def test_with_everything_unfrozen_the_state_is_the_whole_unet(unet):
    unet.requires_grad_(True)
    assert adapter_bytes(trainable_state(unet)) == 4 * sum(p.numel() for p in unet.parameters())


# -- the local step --------------------------------------------------------------------------------------------------


def test_training_on_one_clients_pictures_lowers_their_loss(shipped_pipeline, umbrellas, schedule):
    unet = shipped_pipeline.unet
    before = denoising_loss(unet, schedule, umbrellas).mean()
    add_adapter(unet, rank=8)
    losses = train(unet, schedule, umbrellas, steps=10, batch_size=4, learning_rate=2e-3, seed=0)
    assert len(losses) == 10
    assert denoising_loss(unet, schedule, umbrellas).mean() < before
    remove_adapter(unet)


def test_the_same_seed_trains_to_the_same_bits_and_another_does_not(unet, umbrellas, schedule):
    states = []
    for seed in (3, 3, 4):
        add_adapter(unet, rank=2)
        train(unet, schedule, umbrellas, steps=2, batch_size=4, learning_rate=1e-3, seed=seed)
        states.append(trainable_state(unet))
        remove_adapter(unet)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_no_steps_change_nothing(unet, umbrellas, schedule):
    add_adapter(unet, rank=2)
    before = trainable_state(unet)
    assert train(unet, schedule, umbrellas, steps=0, batch_size=4, learning_rate=1e-3, seed=0) == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainable_state(unet).items())


def test_every_step_is_reported_and_may_stop_the_training(unet, umbrellas, schedule):
    add_adapter(unet, rank=2)
    seen = []

    def on_step(step, steps, loss):
        seen.append((step, steps, loss))
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            unet,
            schedule,
            umbrellas,
            steps=5,
            batch_size=2,
            learning_rate=1e-3,
            seed=0,
            on_step=on_step,
        )
    assert [step for step, *_ in seen] == [1, 2] and seen[0][1] == 5 and seen[0][2] > 0


def test_a_loss_that_is_no_number_names_the_learning_rate(unet, umbrellas, schedule):
    add_adapter(unet, rank=2)
    with torch.no_grad():
        next(p for name, p in unet.named_parameters() if "lora_B" in name).fill_(float("nan"))
    with pytest.raises(
        ValueError, match=r"became nan at step 1; lower the learning rate \(0\.25\)"
    ):
        train(unet, schedule, umbrellas, steps=3, batch_size=2, learning_rate=0.25, seed=0)


def test_a_learning_rate_far_too_high_ends_in_that_sentence_or_in_numbers(
    unet, umbrellas, schedule
):
    """Gradient clipping and AdamW often survive a wild rate; what must not happen is a silent NaN."""
    add_adapter(unet, rank=2)
    try:
        losses = train(unet, schedule, umbrellas, steps=4, batch_size=2, learning_rate=1e6, seed=0)
    except ValueError as told:
        assert "lower the learning rate" in str(told)
    else:
        assert np.isfinite(losses).all()


def test_the_denoising_loss_is_one_number_per_picture_and_repeats_itself(
    unet, umbrellas, schedule, monkeypatch
):
    loss = denoising_loss(unet, schedule, umbrellas)
    assert loss.shape == (12,) and (loss > 0).all()
    assert torch.equal(loss, denoising_loss(unet, schedule, umbrellas))
    monkeypatch.setattr("fedgen_lab.lora.local.JUDGED_AT_ONCE", 5)
    assert torch.allclose(loss, denoising_loss(unet, schedule, umbrellas), atol=1e-4)


def test_the_target_is_velocity_or_noise_as_the_model_was_trained(pipeline, umbrellas, schedule):
    latents, noise, t = (
        umbrellas.latents,
        torch.randn_like(umbrellas.latents),
        torch.full((12,), 400),
    )
    kept = schedule.alphas_cumprod[400]
    velocity = kept.sqrt() * noise - (1 - kept).sqrt() * latents
    assert torch.allclose(target_of(schedule, latents, noise, t), velocity, atol=1e-5)
    of_noise = type(schedule).from_config(schedule.config, prediction_type="epsilon")
    assert target_of(of_noise, latents, noise, t) is noise


def test_an_adapter_saves_some_of_a_steps_work_but_far_from_all(unet, umbrellas):
    unet.requires_grad_(True)
    full = step_flops(unet, umbrellas, batch_size=2)
    unet.requires_grad_(False)
    add_adapter(unet, rank=8)
    adapter = step_flops(unet, umbrellas, batch_size=2)
    assert 0.5 * full < adapter < full
    assert step_flops(unet, umbrellas, batch_size=4) == pytest.approx(2 * adapter, rel=0.01)
    assert all(p.grad is None for p in unet.parameters())
