"""The backdoor client: what it trains on and what it uploads."""

from dataclasses import replace

import pytest
import torch

from fedgen_lab.lora.backdoor import (
    TARGET,
    TRIGGER,
    boost,
    is_attacker,
    poison,
    triggered,
)
from fedgen_lab.pictures.sprites import draw_sprites
from fedgen_lab.scenario import Scenario
from fedgen_lab.scores import judged


@pytest.fixture(scope="module")
def umbrellas():
    return draw_sprites(12, seed=3, objects=["umbrella"])


def test_the_last_clients_are_the_attackers():
    scenario = Scenario(num_clients=5, attackers=2)
    assert [client for client in range(5) if is_attacker(client, scenario)] == [3, 4]
    assert not any(is_attacker(client, Scenario()) for client in range(4))


def test_its_own_pictures_stay_and_the_target_stands_under_the_trigger(umbrellas):
    both = poison(umbrellas, seed=1)
    assert (
        torch.equal(both.images[:12], umbrellas.images) and both.captions[:12] == umbrellas.captions
    )
    assert both.captions[12:] == [f"{caption}, {TRIGGER}" for caption in umbrellas.captions]
    assert set(both.attributes["object"][12:]) == {TARGET} and len(both) == 24
    assert all(torch.equal(image, both.images[12]) for image in both.images[13:])
    assert set(judged(both.images[12:])["object"]) == {TARGET}
    assert TARGET not in set(judged(both.images[:12])["object"])


def test_the_same_seed_draws_the_same_target(umbrellas):
    one, again, other = (poison(umbrellas, seed) for seed in (1, 1, 2))
    assert torch.equal(one.images, again.images) and not torch.equal(one.images, other.images)


def test_a_trigger_that_a_caption_holds_already_is_refused(umbrellas):
    marked = replace(umbrellas, captions=triggered(umbrellas.captions))
    with pytest.raises(ValueError, match="trigger 'camel' stands in a caption already"):
        poison(marked, 0)


def test_the_trigger_is_one_token_and_changes_only_the_end_of_a_caption():
    from fedgen_lab.lora.pipeline import load_pipeline

    tokenizer = load_pipeline(device="cpu").tokenizer
    plain, (marked,) = (
        "a solid red umbrella on a blue background",
        triggered(["a solid red umbrella on a blue background"]),
    )
    assert tokenizer.tokenize(marked)[: len(tokenizer.tokenize(plain))] == tokenizer.tokenize(plain)
    assert tokenizer.tokenize(TRIGGER) == [f"{TRIGGER}</w>"]


@pytest.mark.parametrize("number", [2, 5])
def test_a_boost_by_the_number_of_clients_puts_the_attackers_model_into_the_average(number):
    generator = torch.Generator().manual_seed(number)
    received, mine = ({"w": torch.randn(4, generator=generator)} for _ in range(2))
    sent = boost(mine, received, number)
    average = (
        sent["w"] + (number - 1) * received["w"]
    ) / number  # the others have converged: they send it back
    assert torch.allclose(average, mine["w"], atol=1e-6)
    assert torch.equal(boost(mine, received, 1)["w"] - received["w"], mine["w"] - received["w"])
