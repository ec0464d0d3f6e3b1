"""Descriptor similarity: a cosine, through any encoder; a threshold belongs to its encoder."""

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity

from fedgen_lab.memorization.descriptor import (
    SIMILAR,
    descriptor_similarity,
    descriptors,
    share_above,
    threshold_at,
)
from fedgen_lab.pictures.sprites import draw_sprites


def noise(number, seed, shape=(3, 8, 8)):
    return 2 * torch.rand(number, *shape, generator=torch.Generator().manual_seed(seed)) - 1


def flat(images):
    return images.flatten(1)


@pytest.mark.parametrize("seed", range(3))
def test_similarity_is_the_greatest_cosine(seed):
    generated, training = noise(11, seed), noise(23, seed + 10)
    expected = cosine_similarity(flat(generated).double(), flat(training).double()).max(axis=1)
    assert descriptor_similarity(generated, training, flat) == pytest.approx(expected)
    assert share_above(expected, 0.1) == np.mean(expected > 0.1)
    assert descriptors(generated, flat).norm(dim=1).numpy() == pytest.approx(1)


@pytest.fixture(scope="module")
def sprites():
    return (
        draw_sprites(400, 1).as_tensor(),
        draw_sprites(300, 2).as_tensor(),
        draw_sprites(300, 3).as_tensor(),
    )


def test_the_fingerprinter_finds_noised_copies_at_a_threshold_of_its_own(sprites):
    training, held_out, fresh = sprites
    copies = training[:100] + 0.1 * noise(100, 4, training.shape[1:])
    threshold = threshold_at(held_out, training)
    assert share_above(descriptor_similarity(held_out, training), threshold) <= 0.01
    assert (
        share_above(descriptor_similarity(fresh, training), threshold) <= 0.04
    )  # 1 % give or take three deviations
    assert share_above(descriptor_similarity(copies, training), threshold) > 0.5
    assert (
        share_above(descriptor_similarity(fresh, training)) > 0.5
    )  # 0.5 is SSCD's threshold, not this encoder's
    assert descriptor_similarity(training[:9], training) == pytest.approx(1)


def test_a_judge_can_be_the_encoder_and_grey_pictures_have_descriptors(sprites):
    from fedgen_lab.scores import load_judge

    assert descriptor_similarity(sprites[2][:20], sprites[0], load_judge()).min() > SIMILAR
    grey = noise(12, 1, (1, 28, 28))
    assert descriptors(grey).shape[0] == 12 and descriptor_similarity(grey, grey) == pytest.approx(
        1
    )


BAD = {
    "NaN": (lambda g, t: descriptor_similarity(g / 0, t, flat), "generated.*NaN or infinity"),
    "lengths": (
        lambda g, t: descriptor_similarity(g[..., 1:], t, flat),
        "differ in length: 168 and 192",
    ),
    "zeros": (
        lambda g, t: descriptors(g, lambda images: 0 * flat(images)),
        "zeros for 6 of 6 pictures",
    ),
    "level": (
        lambda g, t: threshold_at(g, t, flat),
        "1 / level held-out pictures or more; got 0.01 and 6",
    ),
    "shape": (lambda g, t: descriptors(g[0], flat), "must have shape"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_a_sentence_that_names_it(case):
    call, sentence = BAD[case]
    with pytest.raises(ValueError, match=sentence):
        call(noise(6, 1), noise(20, 2))
