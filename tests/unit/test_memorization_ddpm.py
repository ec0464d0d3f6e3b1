"""The pixel DDPM: one seed decides everything, a label decides what is drawn, weights travel as a dict of tensors."""

import pytest
import torch
from diffusers import DDPMPipeline
from safetensors.torch import load_file

from fedgen_lab.memorization.ddpm import draw_ddpm, load_weights, new_ddpm, train_ddpm, weights

LIGHT, DARK = 0, 1


def two_classes(number=16):
    """Light and dark 8x8 pictures, by label."""
    labels = torch.arange(number) % 2
    images = torch.where(labels == LIGHT, 0.8, -0.8).view(-1, 1, 1, 1).expand(number, 1, 8, 8)
    return images + 0.05 * torch.randn(
        images.shape, generator=torch.Generator().manual_seed(0)
    ), labels


@pytest.fixture(scope="module")
def trained():
    model = new_ddpm(side=8, num_classes=2, width=16)
    return model, train_ddpm(model, *two_classes(), steps=100, batch_size=16, learning_rate=4e-3)


def test_it_draws_what_the_label_says(trained):
    model, losses = trained
    assert sum(losses[-20:]) < sum(losses[:20]) / 2
    pictures = draw_ddpm(model, [LIGHT, DARK] * 4, range(8), steps=10, guidance=2.0)
    assert pictures.shape == (8, 1, 8, 8) and pictures.abs().max() <= 1
    means = pictures.mean((1, 2, 3))
    assert (means[0::2] > 0.5).all() and (means[1::2] < -0.5).all()


def test_without_a_label_it_draws_either(trained):
    model, _ = trained
    means = draw_ddpm(model, [None] * 12, range(12), steps=10).mean((1, 2, 3))
    assert (means > 0.5).any() and (means < -0.5).any()


def test_a_picture_follows_from_its_label_and_seed_alone(trained):
    model, _ = trained
    many = draw_ddpm(model, [0, 1, 0], [5, 6, 7], steps=4, guidance=2.0)
    alone = draw_ddpm(model, [1], [6], steps=4, guidance=2.0)
    torch.testing.assert_close(many[1:2], alone, atol=1e-5, rtol=0)


def test_the_same_seed_gives_the_same_bits():
    def run(seed):
        model = new_ddpm(side=8, num_classes=2, width=8, seed=seed)
        losses = train_ddpm(model, *two_classes(), steps=3, batch_size=4, seed=seed)
        return losses, weights(model)

    (losses, first), (again, second), (_, other) = run(1), run(1), run(2)
    assert losses == again and all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_weights_travel_as_tensors_and_as_a_diffusers_folder(trained, tmp_path):
    model, _ = trained
    other = new_ddpm(side=8, num_classes=2, width=16, seed=9)
    load_weights(other, weights(model))
    wanted = draw_ddpm(model, [0], [0], steps=2)
    assert torch.equal(draw_ddpm(other, [0], [0], steps=2), wanted)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    assert stored.keys() == weights(model).keys()
    again = draw_ddpm(DDPMPipeline.from_pretrained(tmp_path), [0], [0], steps=2)
    torch.testing.assert_close(again, wanted, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="does not fit"):
        load_weights(other, {})


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (1, 14), (1, 28), (3, 32)])
def test_pictures_of_the_labs_sizes_fit_under_a_million_weights(channels, side):
    model = new_ddpm(channels, side)
    assert sum(p.numel() for p in model.unet.parameters()) < 1_000_000
    images = torch.zeros(2, channels, side, side, dtype=torch.uint8)
    assert len(train_ddpm(model, images, [0, 9], steps=1, batch_size=2)) == 1
    assert draw_ddpm(model, [9], [0], steps=1).shape == (1, channels, side, side)


def test_training_can_be_stopped():
    class Stopped(Exception):
        pass

    def stop(step, steps, loss):
        assert steps == 50
        if step == 2:
            raise Stopped

    with pytest.raises(Stopped):
        train_ddpm(new_ddpm(side=8, width=8), *two_classes(), steps=50, batch_size=2, on_step=stop)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (
            lambda images, labels: (images[:, :, :7], labels),
            r"are \(N, 1, 8, 8\); got \(16, 1, 7, 8\)",
        ),
        (lambda images, labels: (images.expand(-1, 3, -1, -1), labels), r"got \(16, 3, 8, 8\)"),
        (lambda images, labels: (images[:0], labels[:0]), r"got \(0, 1, 8, 8\)"),
        (lambda images, labels: (images * float("nan"), labels), "NaN"),
        (lambda images, labels: (images, labels + 10), "labels from 0 to 9"),
        (lambda images, labels: (images, labels[:3]), "16 pictures and 3 labels"),
    ],
    ids=["side", "channels", "empty", "nan", "label", "lengths"],
)
def test_pictures_that_are_not_the_models_are_refused(broken, says):
    with pytest.raises(ValueError, match=says):
        train_ddpm(new_ddpm(side=8, width=8), *broken(*two_classes()), steps=1)


def test_what_cannot_be_drawn_or_built_is_named(trained):
    model, _ = trained
    with pytest.raises(ValueError, match="2 labels and 1 seeds"):
        draw_ddpm(model, [0, 1], [0])
    with pytest.raises(ValueError, match="wants labels from 0 to 1"):
        draw_ddpm(model, [7], [0])
    with pytest.raises(ValueError, match="side must be even"):
        new_ddpm(side=30)
