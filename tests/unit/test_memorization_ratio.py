"""Ratios, tiles and cliques: the published rules, and what each of them misses."""

import numpy as np
import pytest
import torch

from fedgen_lab.memorization.distance import nearest
from fedgen_lab.memorization.ratio import (
    ADAPTIVE,
    THIRD,
    adaptive_ratio,
    clique,
    third_ratio,
    tiled_distances,
)
from fedgen_lab.pictures.domains import load_domain
from fedgen_lab.pictures.sprites import draw_sprites


def noise(number, seed, shape=(3, 8, 8)):
    return 2 * torch.rand(number, *shape, generator=torch.Generator().manual_seed(seed)) - 1


def plain(one, other):
    """All distances (N, M) in units of the pixel range, by NumPy."""
    one, other = (of.flatten(1).double().numpy() / 2 for of in (one, other))
    return np.sqrt(np.square(one[:, None] - other[None]).mean(axis=2))


@pytest.mark.parametrize("seed", range(3))
def test_third_ratio_is_nearest_by_second_nearest(seed):
    generated, training = noise(12, seed), noise(20, seed + 10)
    first, second = np.sort(plain(generated, training), axis=1)[:, :2].T
    assert third_ratio(generated, training) == pytest.approx(first / second, rel=1e-5)


def test_a_copy_has_ratio_0_and_duplicates_in_the_training_set_do_not_hide_it():
    training = noise(20, 1)
    twice = torch.cat([training, training[:5], training[:5]])
    copies = training[:5] + 1e-3 * noise(5, 2)
    assert third_ratio(training, training).max() == 0
    assert third_ratio(copies, twice) == pytest.approx(third_ratio(copies, training))
    assert third_ratio(copies, twice).max() < THIRD
    first, second = nearest(copies, twice, k=2)[0].T
    assert (first / second).min() > 0.99  # what the rule says where duplicates are left in
    almost = torch.cat([training, training + 1e-3 * noise(20, 3)])
    assert (
        third_ratio(copies, almost).min() > THIRD > third_ratio(copies, almost, within=0.01).max()
    )


def test_a_mirrored_copy_passes_the_rule_unless_matching_is_robust():
    training = draw_sprites(
        200, 1, objects=("note", "moon", "arrow", "knight"), styles=("striped", "dotted")
    ).images
    mirrored = training[:40].flip(-1)
    assert (third_ratio(mirrored, training) < THIRD).mean() < 0.5
    assert (third_ratio(mirrored, training, "robust") < THIRD).mean() == 1.0
    assert (
        third_ratio(
            torch.cat([training[:3], mirrored[:3]]), torch.cat([training, mirrored]), "robust"
        )
        == 0
    ).all()


# By the formulas of LeakPro's carlini_reference_scores and tiled_l2_pairwise (commit 5018fb0) on the pictures below.
ADAPTIVE_50 = (0.5930, 0.6532, 0.6117, 1.8785, 1.8772, 1.9438)
ADAPTIVE_10 = (0.6840, 0.7529, 0.6930, 2.1418, 2.1291, 2.2284)
TILED = (
    (0.4282, 0.4624, 0.5432, 0.4577, 0.4274),
    (0.4348, 0.4594, 0.4280, 0.4647),
)  # upper triangle, first two rows


@pytest.fixture(scope="module")
def frozen():
    stream = np.random.RandomState(6)  # noqa: NPY002 (the stream that NumPy promises never to change)
    training, generated = stream.rand(80, 3, 8, 8), stream.rand(6, 3, 8, 8)
    generated[:3] = 0.7 * training[:3] + 0.3 * generated[:3]
    return 2 * torch.tensor(generated) - 1, 2 * torch.tensor(training) - 1


def test_adaptive_ratio_and_tiled_distance_are_those_of_leakpro(frozen):
    generated, training = frozen
    assert adaptive_ratio(generated, training) == pytest.approx(np.array(ADAPTIVE_50), abs=1e-4)
    assert adaptive_ratio(generated, training, neighbours=10) == pytest.approx(
        np.array(ADAPTIVE_10), abs=1e-4
    )
    apart = tiled_distances(generated)
    assert apart[0, 1:] == pytest.approx(np.array(TILED[0]), abs=1e-4)
    assert apart[1, 2:] == pytest.approx(np.array(TILED[1]), abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_adaptive_ratio_can_look_around_the_generated_picture(seed):
    generated, training = noise(12, seed), noise(30, seed + 10)
    apart = np.sort(plain(generated, training), axis=1)
    expected = apart[:, 0] / (0.7 * apart[:, :5].mean(axis=1))
    found = adaptive_ratio(generated, training, alpha=0.7, neighbours=5, around="generated")
    assert found == pytest.approx(expected, rel=1e-5)


def test_published_constants_flag_copies_and_a_tenth_or_more_of_fresh_digits():
    training, fresh = (
        load_domain("digits", 300, side=14, held_out=part).images for part in (False, True)
    )
    assert (adaptive_ratio(training[:50], training) < ADAPTIVE).all()
    assert 0.05 < (adaptive_ratio(fresh, training) < ADAPTIVE).mean() < 0.5
    assert (third_ratio(fresh, training) < THIRD).mean() < 0.02


@pytest.mark.parametrize("side", (8, 14, 28))
def test_tiled_distance_is_a_distance_and_that_of_nearest(side):
    pictures = noise(9, side, (1, side, side))
    apart = tiled_distances(pictures)
    assert (
        (apart == apart.T).all()
        and (apart.diagonal() == 0).all()
        and (apart >= plain(pictures, pictures) - 1e-6).all()
    )
    distances, rows = nearest(pictures, pictures, 4, "tiled")
    assert np.take_along_axis(apart, rows, axis=1) == pytest.approx(distances, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_clique_finds_the_largest_group_of_near_copies(seed):
    places = np.random.default_rng(seed).permutation(40)
    pictures = noise(40, seed)
    pictures[places[:12]] = pictures[places[0]] + 0.05 * noise(12, seed + 1)
    pictures[places[12:22]] = pictures[places[12]] + 0.05 * noise(10, seed + 2)
    assert clique(pictures).tolist() == sorted(places[:12])
    assert clique(pictures, at_least=13).tolist() == []
    assert clique(pictures, edge=0.001).tolist() == []


def test_a_chain_of_neighbours_is_no_clique():
    grey = torch.linspace(-0.5, 0.5, 40)[:, None, None, None].expand(
        40, 3, 8, 8
    )  # 1/78 apart in [0, 1]
    assert len(clique(grey, edge=9.5 / 78)) == 10
    assert clique(grey, edge=8.5 / 78).tolist() == []


def test_equal_pictures_are_one_clique():
    assert len(clique(noise(1, 0).expand(120, 3, 8, 8))) == 120


BAD = {
    "one training picture": (
        lambda g, t: third_ratio(g, t[:1]),
        "1 different picture, and the ratio needs two",
    ),
    "all alike": (lambda g, t: third_ratio(g, t[:1].repeat(9, 1, 1, 1)), "1 different picture"),
    "within too wide": (
        lambda g, t: third_ratio(g, t, within=0.9),
        "needs two. .* `within` below 0.9",
    ),
    "NaN": (lambda g, t: third_ratio(g / 0, t), "NaN or infinity"),
    "two sizes": (lambda g, t: adaptive_ratio(g[..., 1:], t, neighbours=5), "one size"),
    "few for 50": (lambda g, t: adaptive_ratio(g, t), "from 2 to the 20 training pictures.*got 50"),
    "alpha": (lambda g, t: adaptive_ratio(g, t, alpha=0, neighbours=5), "alpha above 0"),
    "around": (lambda g, t: adaptive_ratio(g, t, around="both"), '"training" or "generated"; got'),
    "equals": (
        lambda g, t: adaptive_ratio(g, t[:1].repeat(9, 1, 1, 1), neighbours=5),
        "5 equals.*duplicates out",
    ),
    "tiny": (lambda g, t: tiled_distances(g[..., :3]), r"4 pixels a side; got \(8, 3\)"),
    "few for a clique": (lambda g, t: clique(g), "at_least=10 needs .* got 6 pictures"),
    "edge": (lambda g, t: clique(t, edge=0), "edge above 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_a_sentence_that_names_it(case):
    call, sentence = BAD[case]
    with pytest.raises(ValueError, match=sentence):
        call(noise(6, 1), noise(20, 2))
