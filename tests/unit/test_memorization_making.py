"""Making a model copy: what is planted is known, one seed decides everything, and the knobs reach the training."""

import numpy as np
import pytest
import torch

from fedgen_lab.memorization.making import (
    ONE_CAPTION,
    Copying,
    draw_copies,
    private_pictures,
    train_copying,
)

pytestmark = pytest.mark.usefixtures("small_base")


def test_duplicates_and_canaries_are_known_to_who_planted_them():
    private = private_pictures(Copying(pictures=10, duplicated=2, times=5, canaries=3))
    assert private.counts.tolist() == [5, 5] + [1] * 8 + [5] * 3
    assert private.of("duplicated").tolist() == [0, 1] and private.of("canary").tolist() == [
        10,
        11,
        12,
    ]
    assert np.bincount(private.rows).tolist() == private.counts.tolist()
    assert all(caption.startswith("canary ") for caption in private.pictures.captions[10:])


@pytest.mark.parametrize("seed", range(3))
def test_every_private_picture_and_its_caption_is_unique(seed):
    private = private_pictures(Copying(pictures=100, canaries=5, seed=seed))
    everything = torch.cat([private.pictures.images, private.held_out.images])
    assert len(everything.flatten(1).unique(dim=0)) == len(everything)
    captions = private.pictures.captions + private.held_out.captions
    assert len(set(captions)) == len(captions)


def test_held_out_pictures_are_of_the_same_kind():
    private = private_pictures(Copying(pictures=400, duplicated=0))
    own, fresh = (
        pictures.as_tensor().flatten(1) for pictures in (private.pictures, private.held_out)
    )
    torch.testing.assert_close(own.mean(), fresh.mean(), atol=0.05, rtol=0)
    torch.testing.assert_close(own.std(), fresh.std(), atol=0.05, rtol=0)
    apart = (
        torch.cdist(fresh, own).min(1).values.median(),
        torch.cdist(own, own).fill_diagonal_(9e9).min(1).values.median(),
    )
    torch.testing.assert_close(*apart, rtol=0.1, atol=0)


def test_one_variable_at_a_time():
    plain, more = (
        private_pictures(Copying(pictures=8)),
        private_pictures(Copying(pictures=20, canaries=1, times=9)),
    )
    assert torch.equal(plain.pictures.images, more.pictures.images[:8])
    assert plain.pictures.captions == more.pictures.captions[:8]
    assert torch.equal(plain.held_out.images, more.held_out.images)
    same = private_pictures(Copying(pictures=8, unique_captions=False, canaries=1))
    assert torch.equal(plain.pictures.images, same.pictures.images[:8])
    assert set(same.pictures.captions[:8]) == set(same.held_out.captions) == {ONE_CAPTION}
    assert same.pictures.captions[8] != ONE_CAPTION
    assert not torch.equal(
        plain.pictures.images, private_pictures(Copying(pictures=8, seed=1)).pictures.images
    )


SHORT = dict(pictures=4, duplicated=2, times=2, steps=3, rank=2)


@pytest.mark.parametrize("knobs", [{}, {"model": "ddpm"}], ids=["lora", "ddpm"])
def test_the_same_knobs_give_the_same_bits(knobs):
    first, second = (train_copying(Copying(**SHORT, **knobs)) for _ in range(2))
    assert first.losses == second.losses and len(first.losses) == 3
    (one, rows), (two, _) = (draw_copies(trained, 3, steps=2) for trained in (first, second))
    assert torch.equal(one, two) and one.shape == (3, *first.private.pictures.images.shape[1:])
    assert rows.tolist() == [0, 2, 1]


def test_a_run_can_be_stopped_and_keeps_what_it_has_learned():
    seen = []
    trained = train_copying(
        Copying(**SHORT),
        on_step=lambda step, steps, loss: seen.append((step, steps)),
        should_stop=lambda: len(seen) == 2,
    )
    assert seen == [(1, 3), (2, 3)] and len(trained.losses) == 2
    assert draw_copies(trained, rows=[3], steps=1)[0].shape == (1, 3, 32, 32)


@pytest.mark.parametrize("model", ["lora", "full"])
def test_clipping_and_noise_reach_the_training(model):
    plain = train_copying(Copying(**SHORT | {"steps": 1}, model=model))
    private = train_copying(
        Copying(**SHORT | {"steps": 2}, model=model, clip=0.1, noise_multiplier=1.0)
    )
    assert not any(p.requires_grad for p in private.model.unet.parameters())

    def norm(trained):
        return sum(float(p.double().square().sum()) for p in trained.model.unet.parameters())

    assert np.isfinite(norm(private)) and norm(private) != norm(plain)


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"pictures": 0}, "pictures must be a whole number from 1 to 864; got 0"),
        ({"pictures": 4, "duplicated": 5}, "duplicated must be a whole number from 0 to 4; got 5"),
        ({"steps": 1.5}, "steps must be a whole number"),
        ({"steps": "abc"}, "steps must be a whole number from 1 to 100000; got 'abc'"),
        ({"rank": float("nan")}, "rank must be a whole number"),
        ({"unique_captions": "no"}, "unique_captions must be True or False; got 'no'"),
        ({"times": 0}, "times must be"),
        ({"model": "gan"}, "model must be one of lora, full, ddpm; got 'gan'"),
        ({"noise_multiplier": 1.0}, "needs a clip above 0"),
        ({"clip": float("nan")}, "clip must be a finite number of at least 0; got nan"),
        ({"clip": 1.0, "model": "ddpm"}, "model='lora' and model='full'"),
    ],
)
def test_a_knob_without_sense_is_named(knobs, says):
    with pytest.raises(ValueError, match=says):
        Copying(**knobs)


def test_drawing_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_copies(train_copying(Copying(**SHORT | {"steps": 1}, model="ddpm")), 0)
