"""Claims about several adapters on one base: fedgen_lab/lora/mixture.py (lab 04)."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from fedgen_lab.lora.adapter import add_adapter, remove_adapter, trainable_state
from fedgen_lab.lora.factors import factors
from fedgen_lab.lora.mixture import add_adapters, mix

RANKS = {"ada": 2, "grace": 4, "hedy": 3}


def tiny_unet():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return (
            UNet2DConditionModel(
                sample_size=8,
                block_out_channels=(8, 16),
                layers_per_block=1,
                cross_attention_dim=8,
                norm_num_groups=4,
                attention_head_dim=2,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            )
            .eval()
            .requires_grad_(False)
        )


def random_adapter(rank, seed):
    """An adapter with both factors away from zero, under the names that clients send."""
    unet, draw = tiny_unet(), torch.Generator().manual_seed(seed)
    add_adapter(unet, rank)
    return {n: torch.randn(v.shape, generator=draw) * 0.3 for n, v in trainable_state(unet).items()}


def guess(unet):
    draw = torch.Generator().manual_seed(9)
    noisy, text = torch.randn(2, 4, 8, 8, generator=draw), torch.randn(2, 5, 8, generator=draw)
    with torch.no_grad():
        return unet(noisy, torch.tensor([300, 700]), encoder_hidden_states=text).sample


@pytest.fixture(scope="module")
def adapters():
    return {name: random_adapter(rank, seed) for seed, (name, rank) in enumerate(RANKS.items())}


@pytest.mark.parametrize(
    "weights", [{"ada": 0.3, "grace": 0.7}, {"hedy": 1}, {"ada": 0.5, "grace": -1, "hedy": 2}]
)
def test_a_mixture_computes_what_the_base_does_with_the_sum_of_products_in_its_weights(
    adapters, weights
):
    shared, plain = tiny_unet(), tiny_unet()
    add_adapters(shared, adapters)
    mix(shared, weights)
    with torch.no_grad():
        for name, weight in weights.items():
            for layer, (a, b) in factors(adapters[name]).items():
                plain.get_submodule(layer).weight += weight * (b @ a)
    assert torch.allclose(guess(shared), guess(plain), atol=1e-5)
    assert not torch.allclose(guess(shared), guess(tiny_unet()), atol=1e-2)


def test_a_mixture_is_not_what_averaged_factors_compute(adapters):
    twins = {
        "ada": adapters["ada"],
        "bob": random_adapter(2, seed=7),
    }  # equal ranks, or there is no average at all
    shared, averaged = tiny_unet(), tiny_unet()
    add_adapters(shared, twins)
    mix(shared, {"ada": 0.5, "bob": 0.5})
    add_adapters(
        averaged,
        {"mean": {name: (twins["ada"][name] + twins["bob"][name]) / 2 for name in twins["ada"]}},
    )
    mix(averaged, {"mean": 1.0})
    assert not torch.allclose(guess(shared), guess(averaged), atol=1e-2)


def test_personal_adapters_take_turns_on_one_base_bit_for_bit(adapters):
    shared = tiny_unet()
    add_adapters(shared, adapters)
    for name in ("grace", "ada", "grace"):
        mix(shared, {name: 1.0})
        alone = tiny_unet()
        add_adapters(alone, {name: adapters[name]})
        mix(alone, {name: 1.0})
        assert torch.equal(guess(shared), guess(alone))


def test_one_adapter_in_a_mixture_is_the_adapter_that_was_trained(adapters):
    trained, shared = tiny_unet(), tiny_unet()
    add_adapter(trained, RANKS["grace"])
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(adapters["grace"][name])
    add_adapters(shared, {"grace": adapters["grace"]})
    mix(shared, {"grace": 1.0})
    torch.testing.assert_close(guess(shared), guess(trained), rtol=0, atol=1e-5)


def test_the_base_is_one_and_stays_as_it_was(adapters):
    unet = tiny_unet()
    before = sum(p.numel() for p in unet.parameters())
    added = sum(value.numel() for state in adapters.values() for value in state.values())
    add_adapters(unet, adapters)
    assert torch.equal(guess(unet), guess(tiny_unet()))  # none is active yet
    assert sum(p.numel() for p in unet.parameters()) == before + added
    assert not any(p.requires_grad for p in unet.parameters())
    mix(unet, {"ada": 1.0})
    mix(unet, {})
    assert torch.equal(guess(unet), guess(tiny_unet()))
    remove_adapter(unet)
    assert (
        torch.equal(guess(unet), guess(tiny_unet()))
        and sum(p.numel() for p in unet.parameters()) == before
    )


def test_the_states_given_are_not_changed(adapters):
    before = {name: value.clone() for name, value in adapters["ada"].items()}
    unet = tiny_unet()
    add_adapters(unet, {"ada": adapters["ada"]})
    mix(unet, {"ada": 0.5})
    assert all(torch.equal(before[name], adapters["ada"][name]) for name in before)


def test_unknown_names_and_foreign_states_are_named(adapters):
    unet = tiny_unet()
    with pytest.raises(ValueError, match="No adapter 'ada'.*none"):
        mix(unet, {"ada": 1.0})
    add_adapters(unet, {"ada": adapters["ada"]})
    with pytest.raises(ValueError, match="No adapter 'bob'.*there are ada"):
        mix(unet, {"ada": 1.0, "bob": 1.0})
    with pytest.raises(ValueError, match="already has an adapter 'ada'"):
        add_adapters(unet, {"ada": adapters["ada"]})
    with pytest.raises(ValueError, match="'eve' is no adapter of this UNet: elsewhere"):
        add_adapters(unet, {"eve": {"elsewhere.lora_A.default.weight": torch.zeros(2, 8)}})
    with pytest.raises(ValueError, match="it is empty"):
        add_adapters(unet, {"eve": {}})
