"""Scores of whole sets: equal to other implementations, moved by copies or, where they are blind, not."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.stats import entropy

from fedgen_lab import scores
from fedgen_lab.memorization import sets
from fedgen_lab.memorization.sets import (
    authentic_ratio,
    authenticity,
    c_t,
    embedded,
    fld,
    mifid,
    precision_recall_density_coverage,
    vendi,
)
from fedgen_lab.pictures.domains import load_domain
from fedgen_lab.pictures.sprites import draw_sprites
from fedgen_lab.split.judges import load_domain_judge


def clusters(frozen, number, width):
    return 8 * np.eye(3, width)[np.arange(number) % 3] + frozen.randn(number, width)


def pools(width=8, seed=5, copies=30):
    """Generated, training and held-out points of three clusters; some generated ones are training points, nudged."""
    frozen = np.random.RandomState(seed)  # noqa: NPY002 (the stream that NumPy promises never to change)
    training, held_out, generated = (clusters(frozen, number, width) for number in (240, 180, 150))
    generated[:copies] = training[:copies] + 0.05 * frozen.randn(copies, width)
    return generated, training, held_out


# Made once from `pools(width)`: AuthPct, FLD, its gap and C_T by the formulas of marcojira/fld's metric files (commit
# 245ac7c; C_T with .ravel(), k-means and PCA with random_state=0; shuffle left out, so that the baseline's halves are
# known), Vendi by vendi-score 0.0.3 (score_K of the cosines, q = 1, 2, 0.5 and "inf").
GOLDEN = {
    8: (
        -7.333332,
        4.608544,
        -39.190797,
        -2.676338504,
        (3.988729357, 3.447475145, 5.088376873, 3.105317220),
    ),
    80: (
        15.333336,
        1.561613,
        -39.859701,
        -1.657829122,
        (29.381078104, 12.768131775, 50.951697500, 6.195523134),
    ),
}


@pytest.mark.parametrize("width", GOLDEN)
def test_authenticity_likelihood_and_c_t_are_those_of_the_package_fld(width, monkeypatch):
    monkeypatch.setattr(sets, "_order", lambda rng, number: np.arange(number))
    generated, training, held_out = pools(width)
    percent, divergence, gap, statistic, _ = GOLDEN[width]
    assert authenticity(generated, training, scale="fld") == pytest.approx(percent, abs=1e-5)
    assert fld(generated, training, held_out) == pytest.approx(
        {"fld": divergence, "gap": gap}, rel=1e-4
    )
    assert c_t(generated, training, held_out) == pytest.approx(statistic, rel=1e-8)


@pytest.mark.parametrize("width", GOLDEN)
def test_vendi_is_the_packages_and_heeds_q(width):
    found = [vendi(pools(width)[0], q=q) for q in (1, 2, 0.5, math.inf)]
    assert found == pytest.approx(GOLDEN[width][-1], rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_precision_recall_density_and_coverage_are_those_of_prdc(seed, capsys):
    from prdc import compute_prdc

    generated, training, _ = pools(16, seed)
    assert precision_recall_density_coverage(generated, training, neighbours=4) == pytest.approx(
        compute_prdc(training, generated, nearest_k=4), abs=1e-12
    )


def test_precision_and_recall_are_those_of_lab_06():
    generated, training = draw_sprites(60, 1).images, draw_sprites(90, 2).images
    found = precision_recall_density_coverage(generated, training)
    assert (found["precision"], found["recall"]) == pytest.approx(
        scores.precision_recall(training, generated)
    )


@pytest.mark.parametrize("seed", range(3))
def test_mifid_is_fid_by_the_mean_distance_of_generated_pictures(seed):
    rng = np.random.default_rng(seed)
    generated, training = 1 + rng.random((80, 3)), 1.1 + rng.random((120, 3))
    (mu, sigma), (mu_t, sigma_t) = ((of.mean(axis=0), np.cov(of.T)) for of in (generated, training))
    distance = ((mu - mu_t) ** 2).sum() + np.trace(
        sigma + sigma_t - 2 * sqrtm(sigma @ sigma_t).real
    )
    unit, unit_t = (of / np.linalg.norm(of, axis=1, keepdims=True) for of in (generated, training))
    nearest = (1 - np.abs(unit @ unit_t.T)).min(axis=1).mean()
    assert nearest < 0.1  # else the penalty is 1
    assert mifid(generated, training) == pytest.approx(distance / nearest, rel=1e-4)
    far = rng.normal(size=(120, 40))
    away = rng.normal(size=(80, 40))
    mean, spread = ((of.mean(axis=0), np.cov(of.T)) for of in (away, far))
    distance = ((mean[0] - spread[0]) ** 2).sum() + np.trace(
        mean[1] + spread[1] - 2 * sqrtm(mean[1] @ spread[1]).real
    )
    assert mifid(away, far) == pytest.approx(distance, rel=1e-4)  # no near ones: FID itself


@pytest.mark.parametrize("seed", range(3))
def test_authentic_ratio_is_the_plain_loops(seed):
    generated, training, _ = pools(4, seed)
    expected = []
    for point in generated:
        apart = np.linalg.norm(training - point, axis=1)
        row = apart.argmin()
        expected.append(
            apart[row] / np.delete(np.linalg.norm(training - training[row], axis=1), row).min()
        )
    assert authentic_ratio(generated, training) == pytest.approx(np.array(expected), rel=1e-6)


def test_an_exact_copy_of_a_duplicate_is_not_authentic_a_near_copy_passes_as_one():
    generated, training, _ = pools(8, copies=0)
    training[1] = training[0]
    generated[:2] = training[0], training[0] + 1e-3
    assert authentic_ratio(generated[:2], training).tolist() == [0.0, math.inf]


@pytest.mark.parametrize("seed", range(3))
def test_c_t_in_one_cell_counts_pairs(seed):
    generated, training, held_out = pools(6, seed)
    ours, theirs = (
        np.linalg.norm(of[:, None] - training[None], axis=2).min(axis=1)
        for of in (generated, held_out)
    )
    u = (
        ours[:, None] > theirs[None]
    ).sum()  # pairs in which the held-out picture is the nearer one
    m, n = len(ours), len(theirs)
    expected = (u - m * n / 2 + 0.5) / math.sqrt(m * n * (m + n + 1) / 12)
    assert c_t(generated, training, held_out, cells=1) == pytest.approx(expected)


@pytest.fixture(scope="module")
def sprites():
    """Points of drawn sprites: training, held out, and fresh ones to make pools of."""
    return [
        embedded(draw_sprites(number, seed).images)
        for number, seed in ((500, 1), (300, 2), (300, 3))
    ]


def test_more_copies_move_three_scores_and_leave_the_others_where_they_were(sprites):
    training, held_out, fresh = sprites
    pool = [np.concatenate([training[:copies], fresh[copies:]]) for copies in (0, 75, 300)]
    honest = [
        authenticity(pool[0], training),
        c_t(pool[0], training, held_out),
        fld(pool[0], training, held_out)["gap"],
    ]
    some = [
        authenticity(pool[1], training),
        c_t(pool[1], training, held_out),
        fld(pool[1], training, held_out)["gap"],
    ]
    all_ = [
        authenticity(pool[2], training),
        c_t(pool[2], training, held_out),
        fld(pool[2], training, held_out)["gap"],
    ]
    assert abs(honest[1]) < 3 and abs(honest[2]) < 20
    assert honest[0] > some[0] + 0.05 and honest[1] > some[1] + 1 and honest[2] > some[2] + 50
    assert all_[0] == 0 and all_[1] < -9 and all_[2] < -1000
    before, after = (precision_recall_density_coverage(of, training) for of in (pool[0], pool[2]))
    assert after["precision"] >= before["precision"] and after["coverage"] > before["coverage"]
    assert vendi(pool[2]) == pytest.approx(vendi(pool[0]), rel=0.1)
    assert mifid(pool[1], training) == pytest.approx(
        mifid(pool[0], training), rel=0.1
    )  # FID falls as m does
    assert mifid(pool[2], training) > 1e6


def test_pictures_score_as_their_features_do_and_grey_ones_through_a_judge_of_theirs(sprites):
    pictures, training = draw_sprites(40, 4).images, draw_sprites(60, 5).images
    assert authenticity(pictures, training) == authenticity(embedded(pictures), embedded(training))
    assert np.abs(embedded(pictures) - embedded(pictures.float() / 127.5 - 1)).max() < 1e-3
    judge = load_domain_judge("digits", 28)
    domain = load_domain("digits", 200, side=28)
    grey, more = domain.images[:80], domain.images[80:]
    assert embedded(grey, judge).shape == (80, 64)
    found = authenticity(grey, more, judge)
    assert 0.2 < found < 0.8 and authenticity(more[:80], more, judge) == 0
    assert authenticity(grey, more, lambda images: images.float().flatten(1)) > 0.2
    assert vendi(grey, judge) > vendi(grey[:1].repeat(80, 1, 1, 1), judge) == pytest.approx(1)


def test_authenticity_has_three_scales():
    generated, training, _ = pools()
    share = authenticity(generated, training)
    assert authenticity(generated, training, scale="percent") == pytest.approx(100 * share)
    assert authenticity(generated, training, scale="fld") == pytest.approx(100 * share - 50)
    with pytest.raises(ValueError, match='"share", "percent" or "fld"; got \'points\''):
        authenticity(generated, training, scale="points")


def test_likelihood_repeats_for_a_seed_and_takes_no_more_pictures_than_asked():
    generated, training, held_out = pools()
    found = [fld(generated, training, held_out, most=100, seed=seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    constant = [np.c_[of, np.ones(len(of))] for of in (generated, training, held_out)]
    assert fld(*constant)["gap"] == pytest.approx(fld(generated, training, held_out)["gap"])


@pytest.mark.parametrize("seed", range(3))
def test_vendi_counts_what_differs(seed):
    rng = np.random.default_rng(seed)
    kinds = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    assert vendi(kinds) == pytest.approx(12) and vendi(kinds[[0] * 9]) == pytest.approx(1)
    assert vendi(kinds[[0, 0, 0, 1]]) == pytest.approx(np.exp(entropy([3, 1])))
    assert vendi(kinds[[0, 0, 0, 1]], q=math.inf) == pytest.approx(4 / 3)
    points = rng.normal(size=(30, 12))
    orders = [vendi(points, q=q) for q in (0.5, 1, 2, math.inf)]
    assert orders == sorted(orders, reverse=True) and 1 < orders[-1] and orders[0] <= 12


BAD = {
    "one dimension": (
        lambda g, t, h: authenticity(g[0], t),
        r"generated pictures must have shape .* got \(8,\)",
    ),
    "no picture": (lambda g, t, h: vendi(g[:0]), "pictures must have shape"),
    "NaN": (
        lambda g, t, h: fld(np.where(g > 9, np.nan, g), t, h),
        "generated pictures must be finite; .* NaN or infinity",
    ),
    "widths": (
        lambda g, t, h: authenticity(g, t[:, :4]),
        "same features; got .*'generated': 8, 'training': 4",
    ),
    "alike": (
        lambda g, t, h: authenticity(g, t[[0] * 9]),
        "training pictures must hold .* two different .* got 9",
    ),
    "one training": (lambda g, t, h: authentic_ratio(g, t[:1]), "two different pictures; got 1"),
    "held out alike": (lambda g, t, h: fld(g, t, h[[0] * 9]), "held-out pictures are all alike"),
    "few held out": (
        lambda g, t, h: fld(g, t, h[:1]),
        "4 training and 2 held-out pictures; got 150, 240, 1",
    ),
    "one generated": (lambda g, t, h: fld(g[:1], t, h), "at least 20 generated, .* got 1, 240"),
    "training alike": (
        lambda g, t, h: fld(g, t[[0] * 50], h),
        "training pictures must hold .* two different",
    ),
    "all repeated": (
        lambda g, t, h: fld(g, t[[0, 1] * 50], h),
        "every training picture is there several times",
    ),
    "neighbours": (
        lambda g, t, h: precision_recall_density_coverage(g[:5], t),
        "neighbours .* got 5 for 5 generated",
    ),
    "empty cell": (lambda g, t, h: c_t(g, t, h[:1]), "no held-out one. Hold out more"),
    "few generated": (
        lambda g, t, h: c_t(g[:30], t, h),
        "no cell has more than 20 generated pictures; got 30",
    ),
    "cells": (lambda g, t, h: c_t(g, t, h, cells=0), "cells must lie between 1 and the 240"),
    "few for MiFID": (
        lambda g, t, h: mifid(g[:4], t),
        "at least as many pictures a side as features, 8; got 4",
    ),
    "order": (lambda g, t, h: vendi(g, q=0), "q must be a number above 0"),
    "dark": (lambda g, t, h: vendi(0 * g), "150 of 150 pictures have features of length 0"),
    "grey": (
        lambda g, t, h: vendi(torch.zeros(3, 1, 28, 28)),
        "pictures are grey.*load_domain_judge",
    ),
    "features": (
        lambda g, t, h: vendi(torch.zeros(3, 1, 8, 8), lambda images: images),
        "a matrix of as many rows",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_a_sentence_that_names_it(case):
    call, sentence = BAD[case]
    with pytest.raises(ValueError, match=sentence):
        call(*pools())
