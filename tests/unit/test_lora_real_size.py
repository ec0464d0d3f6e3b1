"""Claims about a base of real size, on small ones and on SD 1.5 without memory: fedgen_lab/lora/real_size.py."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from fedgen_lab.lora import federated
from fedgen_lab.lora.adapter import ATTENTION, adapter_bytes, add_adapter, trainable_state
from fedgen_lab.lora.federated import prepare, run_federated
from fedgen_lab.lora.local import noise_schedule, train
from fedgen_lab.lora.pipeline import Encoded, draw, encode, load_pipeline
from fedgen_lab.lora.real_size import (
    SD15,
    base_bytes,
    load_unet,
    make_light,
    new_unet,
    train_in_turn,
    write_random_pipeline,
)
from fedgen_lab.pictures.sprites import draw_sprites
from fedgen_lab.scenario import Scenario

SCHEDULE = DDPMScheduler(num_train_timesteps=100)
SMALL = {
    "unet": {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "cross_attention_dim": 8,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    },
    "vae": {
        "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 16,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    },
    "text": {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
}


def small_unet(dtype=torch.float32):
    unet = new_unet(SMALL["unet"], dtype=dtype)
    add_adapter(unet, rank=2)
    return unet


def pictures(seed):
    draw = torch.Generator().manual_seed(seed)
    return Encoded(torch.randn(6, 4, 8, 8, generator=draw), torch.randn(6, 5, 8, generator=draw))


def state_of(unet, seed):
    draw = torch.Generator().manual_seed(seed)
    return {
        name: 0.1 * torch.randn(tensor.shape, generator=draw)
        for name, tensor in trainable_state(unet).items()
    }


def test_the_configuration_is_that_of_stable_diffusion_1_5():
    with torch.device("meta"):  # shapes without memory
        unet = UNet2DConditionModel(**SD15["unet"])
        assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    attention = [
        layer
        for name, layer in unet.named_modules()
        if isinstance(layer, torch.nn.Linear) and name.endswith(ATTENTION)
    ]
    adapter = sum(4 * (layer.in_features + layer.out_features) for layer in attention)
    assert len(attention) == 128 and adapter == 797_184  # numbers of an adapter of rank 4


def test_random_weights_follow_the_seed_and_leave_the_global_state_alone():
    before = torch.get_rng_state(), torch.get_default_dtype()
    first, again, other = (new_unet(SMALL["unet"], seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before[0]) and torch.get_default_dtype() == before[1]
    assert all(p.dtype == torch.bfloat16 and not p.requires_grad for p in first.parameters())
    assert torch.equal(first.conv_in.weight, again.conv_in.weight)
    assert not torch.equal(first.conv_in.weight, other.conv_in.weight)


def test_the_base_is_halved_and_the_adapter_stays_in_single_precision():
    unet = small_unet()
    whole, adapter = base_bytes(unet), adapter_bytes(trainable_state(unet))
    make_light(unet)
    assert base_bytes(unet) * 2 == whole and adapter_bytes(trainable_state(unet)) == adapter
    assert {p.dtype for p in unet.parameters() if p.requires_grad} == {torch.float32}


def test_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        unet = make_light(small_unet())
        assert unet.is_gradient_checkpointing
        if not checkpointing:
            unet.disable_gradient_checkpointing()
        train(unet, SCHEDULE, pictures(0), 2, 3, 1e-3, seed=0)
        gradients.append({name: p.grad for name, p in unet.named_parameters() if p.requires_grad})
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-6, atol=1e-9)
    assert all(g.abs().max() > 0 for g in gradients[0].values())


def test_half_the_bits_train_to_nearly_the_same_loss():
    losses = {}
    for dtype in (torch.float32, torch.bfloat16):
        unet = make_light(small_unet()) if dtype == torch.bfloat16 else small_unet()
        start = trainable_state(unet)
        losses[dtype] = train(unet, SCHEDULE, pictures(0), 3, 4, 1e-3, seed=0)
        assert all(tensor.dtype == torch.float32 for tensor in trainable_state(unet).values())
        assert any(
            not torch.equal(tensor, start[name]) for name, tensor in trainable_state(unet).items()
        )
    assert losses[torch.bfloat16] == pytest.approx(losses[torch.float32], rel=0.03)


def test_many_clients_take_turns_in_one_base():
    unet = make_light(small_unet())
    base = {
        name: (p.data_ptr(), p.clone())
        for name, p in unet.named_parameters()
        if not p.requires_grad
    }
    states, knobs = [state_of(unet, seed) for seed in range(3)], (2, 3, 1e-3)
    together = train_in_turn(
        unet, SCHEDULE, [pictures(i) for i in range(3)], states, *knobs, seeds=range(3)
    )
    for i in (2, 0, 1):  # in any order, alone: nothing is left behind by the client before
        (alone,) = train_in_turn(unet, SCHEDULE, [pictures(i)], [states[i]], *knobs, seeds=[i])
        torch.testing.assert_close(together[i], alone, rtol=0, atol=0)
    for name, p in unet.named_parameters():
        assert p.requires_grad or (p.data_ptr() == base[name][0] and torch.equal(p, base[name][1]))


def test_a_written_pipeline_loads_as_any_other(tmp_path):
    folder = write_random_pipeline(tmp_path / "base", SMALL, 0, torch.bfloat16)
    pipeline = load_pipeline(folder, device="cpu")
    encoded = encode(pipeline, draw_sprites(4, seed=0, objects=("umbrella",)))
    assert encoded.latents.shape == (4, 4, 8, 8) and encoded.text.shape == (4, 16, 8)
    alone = load_unet(folder, "cpu")
    assert alone.dtype == torch.bfloat16 and torch.equal(
        alone.conv_in.weight.float(), pipeline.unet.conv_in.weight
    )
    add_adapter(pipeline.unet, rank=2)
    assert len(train(pipeline.unet, noise_schedule(pipeline), encoded, 1, 2, 1e-3, seed=0)) == 1


def test_the_whole_app_runs_on_a_base_in_half_precision_and_learns_nearly_the_same(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(federated, "draw_strip", lambda *_: None)  # one picture is drawn below
    monkeypatch.setattr("fedgen_lab.lora.data.HELD_OUT_PER_CONCEPT", 4)
    folder = write_random_pipeline(tmp_path / "base", SMALL, 0, torch.float32)
    few = Scenario(
        base_model=str(folder),
        num_clients=2,
        rounds=1,
        local_steps=2,
        batch_size=4,
        pictures_per_client=4,
        rank=2,
    )
    light = replace(few, precision="bfloat16")
    pipeline = prepare(light)
    assert (
        2 * base_bytes(pipeline.unet) == base_bytes(prepare(few).unet)
        and pipeline.unet.is_gradient_checkpointing
    )
    assert draw(pipeline, ["a red star"], [1], steps=2).isfinite().all()
    whole, half = run_federated(few), run_federated(light)
    assert not half.refused and all(value.dtype == torch.float32 for value in half.state.values())
    np.testing.assert_allclose(half.rounds["loss"], whole.rounds["loss"], rtol=0.02)
    assert half.trace.frame()["bytes"].sum() == whole.trace.frame()["bytes"].sum()
