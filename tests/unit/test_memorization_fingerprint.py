"""The fingerprinter: eq. 1 against the formula, what an altered copy is, and what the shipped net has learned."""

import math

import pytest
import torch

from fedgen_lab.memorization.fingerprint import (
    Fingerprinter,
    altered,
    contrastive_loss,
    load_fingerprinter,
)
from fedgen_lab.pictures.domains import load_domain
from fedgen_lab.shipped import shipped


@pytest.fixture(scope="module")
def net():
    return load_fingerprinter()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_the_contrastive_loss_is_equation_1(seed, temperature):
    rng = torch.Generator().manual_seed(seed)
    prints, copies = torch.randn(2, 5, 8, generator=rng, dtype=torch.float64)

    def d(a, b):
        return math.exp(float(a @ b) / (float(a.norm()) * float(b.norm())) / temperature)

    expected = 0
    for i in range(5):
        own, others = (
            d(prints[i], copies[i]),
            sum(d(prints[i], prints[j]) for j in range(5) if j != i),
        )
        expected -= math.log(own / (own + others)) / 5
    assert contrastive_loss(prints, copies, temperature).item() == pytest.approx(expected, rel=1e-9)


def test_the_contrastive_loss_is_lowest_for_copies_that_kept_their_fingerprint():
    prints = torch.eye(6)
    assert contrastive_loss(prints, prints) < contrastive_loss(prints, prints.roll(1, 0))


@pytest.mark.parametrize(
    ("first", "second"), [((1, 4), (1, 4)), ((3, 4), (2, 4)), ((3,), (3,))], ids=str
)
def test_the_contrastive_loss_refuses_what_has_no_others_or_no_copy(first, second):
    with pytest.raises(ValueError, match="one altered copy of each"):
        contrastive_loss(torch.zeros(first), torch.zeros(second))


@pytest.mark.parametrize("shape", [(4, 1, 28, 28), (4, 3, 32, 32)], ids=str)
def test_alterations_come_from_the_generator_alone_and_strength_0_does_nothing(shape):
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    same, again = (altered(images, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(same, again)
    assert same.abs().max() <= 1 and not torch.allclose(same, images, atol=0.05)
    assert torch.allclose(
        altered(images, torch.Generator().manual_seed(3), strength=0), images, atol=1e-4
    )


@pytest.mark.parametrize("side", [8, 14, 32, 45])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_any_size_are_read_and_grey_ones_repeated(side, channels, net):
    images = torch.randint(
        0, 256, (2, channels, side, side), generator=torch.Generator().manual_seed(side)
    ).byte()
    read = net.read(images)
    assert read.shape == (2, 3, 32, 32) and -1 <= read.min() and read.max() <= 1
    assert torch.allclose(read, net.read(images.float() / 127.5 - 1), atol=1e-5)
    assert channels == 3 or torch.equal(read[:, 0], read[:, 2])
    prints = net.features(read)
    assert prints.shape == (2, net.num_features)
    assert torch.allclose(prints.norm(dim=1), torch.ones(2), atol=1e-5)


@pytest.mark.parametrize("domain", ["letters", "runes"])
def test_the_shipped_net_tells_altered_copies_from_other_pictures_that_it_never_saw(domain, net):
    images = load_domain(domain, 150, seed=11, held_out=True).as_tensor()
    copies = altered(images, torch.Generator().manual_seed(5))
    torch.manual_seed(0)
    untrained = Fingerprinter().eval().requires_grad_(False)
    loss, before = (
        contrastive_loss(*(some.features(some.read(part)) for part in (images, copies)))
        for some in (net, untrained)
    )
    assert loss < before / 5
    alike = net.features(net.read(copies)) @ net.features(net.read(images)).T
    assert (alike.argmax(1) == torch.arange(150)).float().mean() > 0.95


def test_what_ships_is_small():
    assert sum(path.stat().st_size for path in shipped("fingerprinter").iterdir()) < 1.5e6
