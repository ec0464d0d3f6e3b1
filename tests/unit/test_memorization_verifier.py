"""The verifier: windows and generalised means by hand, eq. 4 the same both ways, and what the shipped net confirms."""

import pytest
import torch

from fedgen_lab.memorization.fingerprint import altered, load_fingerprinter
from fedgen_lab.memorization.verifier import (
    CONFIRMED,
    POWER,
    Verifier,
    described,
    load_verifier,
    windows,
)
from fedgen_lab.pictures.domains import load_domain


@pytest.mark.parametrize(
    ("side", "levels", "number"), [(8, 5, 55), (8, 1, 1), (7, 3, 14), (16, 5, 55)]
)
def test_windows_are_averages_of_squares_that_shrink_by_level(side, levels, number):
    rows = windows(side, levels)
    assert rows.shape == (number, side**2)
    assert torch.allclose(rows.sum(1), torch.ones(number))
    assert torch.allclose(
        rows[0], torch.full((side**2,), 1 / side**2)
    )  # the first is the whole map
    sizes = (rows > 0).sum(1).tolist()
    assert sizes == sorted(sizes, reverse=True) and all(
        round(size**0.5) ** 2 == size for size in sizes
    )
    assert (
        (rows[-(levels**2) :].sum(0) > 0).view(side, side)[[0, 0, -1, -1], [0, -1, 0, -1]].all()
    )  # corners too


def test_a_map_too_small_for_its_levels_is_refused():
    with pytest.raises(ValueError, match="larger map"):
        windows(2, 5)


def test_the_regions_are_unit_vectors_of_generalised_means():
    torch.manual_seed(0)
    net, maps = Verifier(channels=16).requires_grad_(False), torch.randn(3, 16, 8, 8)
    regions = net.regions(maps)
    assert regions.shape == (3, 55, 4)
    reduced = net.reduce(maps).clamp(min=1e-3)
    corner = (
        reduced[:, :, :5, :5].pow(POWER).mean((2, 3)).pow(1 / POWER)
    )  # the first window of the second level
    assert torch.allclose(regions[:, 1], corner / corner.norm(dim=1, keepdim=True), atol=1e-5)
    assert torch.allclose(regions.norm(dim=2), torch.ones(3, 55), atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_score_is_the_same_both_ways_and_reads_both_correlation_matrices(seed):
    torch.manual_seed(seed)
    net = Verifier(channels=16).requires_grad_(False)
    one, other = net.regions(torch.randn(2, 4, 16, 8, 8).flatten(0, 1)).split(4)
    scores = net(one, other)
    assert torch.allclose(scores, net(other, one), atol=1e-6)
    correlation = torch.einsum("pwd,pvd->pwv", one, other)
    expected = torch.sigmoid(
        net.read(correlation.flatten(1)) + net.read(correlation.mT.flatten(1))
    )[:, 0]
    assert torch.allclose(scores, expected, atol=1e-6)


@pytest.mark.parametrize("domain", ["letters", "garments", "runes"])
def test_the_shipped_verifier_confirms_copies_and_not_other_pictures(domain):
    fingerprinter, verifier = load_fingerprinter(), load_verifier()
    images = load_domain(domain, 100, seed=21, held_out=True).as_tensor()
    _, regions = described(images, fingerprinter, verifier)
    _, copies = described(
        altered(images, torch.Generator().manual_seed(1), strength=0.5), fingerprinter, verifier
    )
    assert (verifier(regions, regions) > CONFIRMED).all()
    assert (verifier(regions, copies) > CONFIRMED).float().mean() > 0.85
    assert (verifier(regions, copies.roll(1, 0)) > CONFIRMED).float().mean() < 0.05
