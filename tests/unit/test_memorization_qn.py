"""The Q-N score: each step against the paper's formula, then what the whole of it finds, misses and invents."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from fedgen_lab.memorization.qn import (
    Matches,
    class_thresholds,
    confirmed,
    control_objective,
    hits,
    keep_after,
    qn_score,
    quality_novelty,
    replaced_pool,
)
from fedgen_lab.pictures.domains import load_domain
from fedgen_lab.pictures.sprites import draw_sprites
from fedgen_lab.scores import fid


@pytest.fixture(scope="module")
def runes():
    """Training pictures, their labels and fresh pictures of the same kind."""
    training = load_domain("runes", 400, seed=31)
    return (
        training.images,
        training.labels.numpy(),
        load_domain("runes", 150, seed=32, held_out=True).images,
    )


def matches(**changed):
    nothing = np.zeros(0, int)
    return Matches(
        **{
            "under_threshold": np.zeros(4, bool),
            "score": np.zeros(4),
            "generated": nothing,
            "training": nothing,
            "match_score": np.zeros(0),
            "v_a": 0.0,
            "v_c": 0.0,
            "r_c": 0.0,
            **changed,
        }
    )


# -- thresholds -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_threshold_of_a_class_is_mean_minus_half_a_standard_deviation(seed):
    rng = np.random.default_rng(seed)
    points, labels = rng.normal(size=(60, 6)).astype(np.float32), rng.integers(0, 3, 60)
    found = class_thresholds(torch.from_numpy(points), labels)
    for label in range(3):
        mine = points[labels == label]
        nearest = NearestNeighbors(n_neighbors=2).fit(mine).kneighbors(mine)[0][:, 1]
        assert found[label] == pytest.approx(nearest.mean() - nearest.std() / 2, rel=1e-5)


def test_duplicates_pull_the_threshold_down():
    points, labels = (
        torch.randn(20, 6, generator=torch.Generator().manual_seed(0)),
        np.zeros(40, int),
    )
    assert (
        class_thresholds(torch.cat([points, points[:4].repeat(5, 1)]), labels)[0]
        < class_thresholds(points, labels[:20])[0]
    )


@pytest.mark.parametrize(
    ("points", "labels", "says"),
    [
        (torch.eye(3), [0, 0, 1], "class 1 has a single training picture"),
        (torch.ones(4, 3), [0, 0, 0, 0], "look the same"),
    ],
    ids=["single", "identical"],
)
def test_a_class_without_neighbours_is_refused(points, labels, says):
    with pytest.raises(ValueError, match=says):
        class_thresholds(points, np.array(labels))


# -- matches ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(4))
def test_every_picture_counts_once_the_surest_pairs_first(seed):
    rng = np.random.default_rng(seed)
    table = torch.from_numpy(
        rng.random((12, 9)).astype(np.float32)
    )  # the verifier's score of every pair

    def pictures(number):
        rows = torch.arange(number).float()[:, None]
        return torch.cat(
            [torch.from_numpy(rng.normal(size=(number, 2)).astype(np.float32)), rows], 1
        )[:, None, None]

    generated, training = pictures(12), pictures(9)
    found = []

    class Fingerprinter:  # the first two pixels are the fingerprint
        read, maps = staticmethod(lambda images, name: images), staticmethod(lambda images: images)
        features_of_maps = staticmethod(lambda maps: maps[:, 0, 0, :2])

    class Verifier:  # the third is the row in the table
        regions = staticmethod(lambda maps: maps[:, 0, 0, 2].long())

        def __call__(self, some, others):
            found.extend(zip(some.tolist(), others.tolist(), strict=True))
            return table[some, others]

    nets = {"fingerprinter": Fingerprinter(), "verifier": Verifier()}
    result = confirmed(generated, training, nearest=4, confirmed_above=0.4, **nets)
    threshold = class_thresholds(training[:, 0, 0, :2], np.zeros(9, int))[0]
    apart = torch.cdist(generated[:, 0, 0, :2], training[:, 0, 0, :2]).numpy()
    expected = {
        (i, j)
        for i in range(12)
        for j in np.argsort(apart[i])[:4].tolist()
        if apart[i, j] < threshold
    }
    assert set(found) == expected and len(found) == len(expected) > 0
    left, counted = sorted((-float(table[pair]), pair) for pair in expected), []
    for score, (i, j) in left:
        if -score > 0.4 and i not in {a for a, _ in counted} and j not in {b for _, b in counted}:
            counted.append((i, j))
    assert list(zip(result.generated.tolist(), result.training.tolist(), strict=True)) == counted
    assert result.v_a == pytest.approx(np.mean([float(table[pair]) for pair in expected]), rel=1e-5)
    assert result.v_c == pytest.approx(
        np.mean([float(table[pair]) for pair in counted]) if counted else 0, rel=1e-5
    )
    assert result.r_c == len(counted) / 12
    assert set(np.flatnonzero(result.under_threshold)) == {i for i, _ in expected}
    best = [max((float(table[i, j]) for a, j in expected if a == i), default=0) for i in range(12)]
    assert result.score == pytest.approx(best)


def test_exact_copies_are_confirmed_each_with_its_original(runes):
    training, labels, _ = runes
    found = confirmed(training[40:90], training, labels)
    assert found.r_c == 1 and (found.training == found.generated + 40).mean() > 0.95
    assert found.v_c > 0.9 and len(set(found.training)) == 50


def test_of_ten_copies_of_one_picture_one_counts(runes):
    training, labels, _ = runes
    found = confirmed(training[:1].repeat(10, 1, 1, 1), training, labels)
    assert (found.score > 0.8).all() and (found.training == 0).sum() == 1 and found.r_c < 0.5


def test_the_threshold_flags_a_third_of_fresh_pictures_and_the_verifier_a_part_of_them(runes):
    training, labels, fresh = runes
    found = confirmed(fresh, training, labels)
    assert 0.15 < found.under_threshold.mean() < 0.5
    assert found.r_c <= (found.score > 0.8).mean() < found.under_threshold.mean() / 2
    assert not found.score[~found.under_threshold].any()


def test_the_same_pictures_give_the_same_matches_as_uint8_and_as_float(runes):
    training, labels, fresh = runes
    first, second = (
        confirmed(fresh[:40], training, labels),
        confirmed(fresh[:40].float() / 127.5 - 1, training, labels),
    )
    assert np.allclose(first.score, second.score, atol=1e-4)


# -- the score --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("unit", "expected"), [("percent", 3732.0), ("ratio", 346.2)])
def test_equation_6_in_both_units(unit, expected):
    found = matches(v_a=0.6, v_c=0.95, r_c=0.12)  # what the paper's table needs at a FID of 624
    assert quality_novelty(624.0, found, unit) == pytest.approx(expected)


@pytest.mark.parametrize(("weight", "expected"), [(0, 624.0), (0.25, 2178.0), (1, 6840.0)])
def test_the_weight_moves_equation_6_from_quality_to_novelty(weight, expected):
    found = matches(v_a=0.6, v_c=0.95, r_c=0.12)
    assert quality_novelty(624.0, found, weight=weight) == pytest.approx(expected)


def test_no_match_leaves_half_the_fid_and_a_share_can_not_reach_the_published_values():
    assert quality_novelty(624.0, matches()) == 312
    assert quality_novelty(624.0, matches(v_a=1.0, v_c=1.0, r_c=1.0), "ratio") == 812 < 3721


def test_equation_7():
    assert control_objective(624.0, 6.26) == pytest.approx(625.0)
    with pytest.raises(ValueError, match="finite numbers; got nan and 1"):
        control_objective(float("nan"), 1)


def test_held_out_pictures_with_nan_end_in_a_sentence_not_in_a_crash(runes):
    broken = torch.rand(150, 3, 16, 16) * 2 - 1
    broken[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="1 of the 150 held-out pictures hold NaN"):
        qn_score(torch.zeros(150, 3, 16, 16), torch.zeros(150, 3, 16, 16), broken)


def test_the_whole_score_of_copies_is_worse_than_that_of_fresh_sprites():
    training, held_out, fresh = (draw_sprites(200, seed).images for seed in (1, 2, 3))
    novel, quality, found = qn_score(fresh, training, held_out, rc_unit="ratio")
    copied, _, _ = qn_score(training, training, held_out, rc_unit="ratio")
    assert quality == pytest.approx(fid(held_out, fresh), rel=1e-6)
    assert novel == quality_novelty(quality, found, "ratio") < copied


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"rc_unit": "per mille"}, "rc_unit must be one of"),
        ({"fid_value": float("nan")}, "finite"),
        ({"weight": 1.5}, "weight must lie in 0..1"),
    ],
    ids=["unit", "nan", "weight"],
)
def test_unknown_units_and_broken_fids_are_refused(changed, says):
    with pytest.raises(ValueError, match=says):
        quality_novelty(**{"fid_value": 1.0, "matches": matches(), **changed})


# -- de-duplication ---------------------------------------------------------------------------------------------------
def test_the_most_copied_pictures_are_dropped_from_training():
    rounds = [matches(training=np.array(rows)) for rows in ([3, 5], [3], [3, 9])]
    counts = hits(100, *rounds)
    assert counts.sum() == 5 and counts[3] == 3
    assert np.flatnonzero(~keep_after(counts)).tolist() == [3, 5, 9]
    scaled = (counts - counts.min()) / (counts.max() - counts.min())
    assert np.array_equal(keep_after(counts), keep_after(scaled))  # min-max scaling changes nothing
    assert keep_after(np.arange(1000)).mean() == pytest.approx(0.95, abs=0.002)
    assert keep_after(hits(10)).all()


@pytest.mark.parametrize("counts", [[], [1, -1], [[1, 2]]], ids=["none", "negative", "table"])
def test_counts_that_are_none_are_refused(counts):
    with pytest.raises(ValueError, match="one for each training picture"):
        keep_after(counts)


# -- the detector experiment ------------------------------------------------------------------------------------------
def test_a_pool_replaced_by_training_pictures_is_told_from_fresh_ones(runes):
    training, labels, fresh = runes
    table = replaced_pool(fresh, training, labels, (0, 0.2, 1))
    assert table["r_c"].is_monotonic_increasing and table["accuracy"].min() > 0.85
    assert table["found"].iloc[1:].min() > 0.97 and np.isnan(table["found"].iloc[0])
    direct = confirmed(fresh, training, labels)
    assert table["r_c"].iloc[0] == direct.r_c == table["false_alarms"].iloc[0]


def test_mirrored_copies_go_unseen(runes):
    training, labels, fresh = runes
    table = replaced_pool(fresh, training, labels, (0.5,), change=lambda images: images.flip(-1))
    assert table["found"].iloc[0] < 0.2


def test_one_seed_decides_which_pictures_are_replaced(runes):
    training, labels, fresh = runes
    settings = {"labels": labels, "fractions": (0.3,)}
    first, again = (replaced_pool(fresh[:60], training, **settings, seed=4) for _ in range(2))
    assert first.equals(again)


# -- input that is refused --------------------------------------------------------------------------------------------
_ONES = torch.full((4, 1, 16, 16), 255, dtype=torch.uint8)
_NOISE = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"generated": _NOISE.where(_NOISE < 0.9, torch.nan)}, "generated pictures hold NaN"),
        ({"generated": _NOISE[:0]}, "generated pictures must have shape"),
        ({"generated": _NOISE[0]}, "generated pictures must have shape"),
        ({"generated": _NOISE.repeat(1, 3, 1, 1)}, "one size"),
        ({"generated": _NOISE[..., 1:]}, "one size"),
        ({"training": _NOISE[:1]}, "a single training picture"),
        ({"training": _ONES}, "look the same"),
        ({"labels": np.zeros(5, int)}, "labels must be one whole number for each of the 6"),
        ({"labels": np.zeros(6)}, "labels must be one whole number"),
        ({"nearest": 0}, "nearest must be a whole number"),
    ],
    ids=[
        "nan",
        "empty",
        "one",
        "channels",
        "sides",
        "single",
        "identical",
        "labels",
        "fractions",
        "no-neighbours",
    ],
)
def test_bad_input_is_refused_with_a_sentence(arguments, says):
    with pytest.raises(ValueError, match=says):
        confirmed(**{"generated": _NOISE, "training": _NOISE, **arguments})


@pytest.mark.parametrize(
    "fractions", [(0, 1.2), (-0.1,), (0, 1)], ids=["above-1", "below-0", "too-few"]
)
def test_pools_that_can_not_be_replaced_are_refused(fractions):
    with pytest.raises(ValueError, match="no more copies than"):
        replaced_pool(_NOISE, _NOISE[:5], fractions=fractions)
