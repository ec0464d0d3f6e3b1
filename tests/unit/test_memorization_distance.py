"""Distances to training pictures: what each finds equal, exactness against plain loops, and input that is refused."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from fedgen_lab.memorization.distance import (
    MATCHES,
    as_unit,
    nearest,
    nearest_within,
    without_duplicates,
)


def blobs(number, side=12, channels=1, seed=0):
    """Smooth random pictures (N, C, side, side), uint8: some are nearer than others, as among real ones."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(number, channels, 4, 4, generator=draw)
    fine = torch.nn.functional.interpolate(
        coarse, (side, side), mode="bicubic", align_corners=False
    )
    return (255 * (fine + 0.05 * torch.rand(fine.shape, generator=draw)).clamp(0, 1)).to(
        torch.uint8
    )


def moved(images, dy, dx):
    """The pictures moved down by dy and right by dx; what comes in is black."""
    height, width = images.shape[-2:]
    padded = torch.nn.functional.pad(images, [2, 2, 2, 2])
    return padded[..., 2 - dy : 2 - dy + height, 2 - dx : 2 - dx + width]


def robust_distance(one, other):
    """The definition, for two pictures (C, H, W) in [0, 1], one view after the other."""
    height, width = one.shape[1:]
    found = []
    for view in (one, one[..., ::-1]):
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                y, x = (
                    slice(max(0, -dy), height - max(0, dy)),
                    slice(max(0, -dx), width - max(0, dx)),
                )
                there = slice(y.start + dy, y.stop + dy), slice(x.start + dx, x.stop + dx)
                mine, theirs = view[:, there[0], there[1]], other[:, y, x]
                mine, theirs = mine - mine.mean(), theirs - theirs.mean()
                factor = np.clip(theirs.std() / max(mine.std(), 1e-12), 1 / 1.5, 1.5)
                found.append(np.mean((factor**0.5 * mine - theirs / factor**0.5) ** 2) ** 0.5)
    return min(found)


@pytest.mark.parametrize("channels, side, seed", [(1, 8, 0), (1, 13, 1), (3, 12, 2), (3, 18, 3)])
def test_robust_neighbours_are_those_of_the_plain_loop(channels, side, seed):
    training, generated = blobs(40, side, channels, seed), blobs(5, side, channels, seed + 100)
    generated[0], generated[1] = training[5].flip(-1), moved(training[6:7], 1, -2)[0]
    ours, theirs = (as_unit(images).double().numpy() for images in (generated, training))
    table = np.array([[robust_distance(one, other) for other in theirs] for one in ours])
    for k in (1, 3):
        distances, rows = nearest(generated, training, k, "robust")
        np.testing.assert_allclose(distances, np.sort(table, 1)[:, :k], atol=2e-6)
        np.testing.assert_allclose(np.take_along_axis(table, rows, 1), distances, atol=2e-6)


@pytest.mark.parametrize("side", [32, 45])
def test_robust_neighbours_are_those_of_the_plain_loop_where_block_means_are_used(side):
    training, generated = blobs(12, side, 3, 4), blobs(2, side, 3, 5)
    distances, rows = nearest(generated, training, 2, "robust")
    ours, theirs = (as_unit(images).double().numpy() for images in (generated, training))
    table = np.array([[robust_distance(one, other) for other in theirs] for one in ours])
    np.testing.assert_allclose(distances, np.sort(table, 1)[:, :2], atol=2e-6)


@pytest.mark.parametrize("seed", range(3))
def test_plain_neighbours_are_scikit_learns(seed):
    training, generated = blobs(50, seed=seed), blobs(20, seed=seed + 50)
    distances, rows = nearest(generated, training, 4)
    ours, theirs = (as_unit(images).flatten(1).double().numpy() for images in (generated, training))
    expected, where = NearestNeighbors(n_neighbors=4).fit(theirs).kneighbors(ours)
    np.testing.assert_allclose(
        distances, expected / 12, atol=1e-6
    )  # 144 values: the root of their number is 12
    assert (rows == where).mean() > 0.95  # uint8 pictures can be equally near


@pytest.mark.parametrize("side", [8, 14])
def test_the_tiled_distance_is_the_largest_over_sixteen_tiles(side):
    one, other = (as_unit(blobs(1, side, 3, seed)).double() for seed in (0, 1))
    edges = np.linspace(0, side, 5).round().astype(int)
    spans = [slice(*span) for span in pairwise(edges)]
    tiles = [(one - other)[..., y, x].square().mean().sqrt() for y in spans for x in spans]
    distances, _ = nearest(2 * one - 1, 2 * other - 1, match="tiled")
    assert distances[0, 0] == pytest.approx(max(float(tile) for tile in tiles), abs=1e-6)


def test_tiles_tell_pictures_apart_that_share_a_background():
    """Two small objects on one large background: near in plain distance, far in the tile that holds the object."""
    empty = torch.full((1, 3, 32, 32), 200, dtype=torch.uint8)
    one = empty.clone()
    one[..., 12:16, 12:16] = 0
    assert nearest(one, empty)[0] < 0.15 < nearest(one, empty, match="tiled")[0]


@pytest.mark.parametrize("match", MATCHES)
def test_a_copy_is_found_at_distance_zero(match):
    training = blobs(30)
    distances, rows = nearest(training[[7, 21]], training, match=match)
    assert rows[:, 0].tolist() == [7, 21] and distances.max() == 0


EDITS = {
    "shift": lambda images: moved(images, 2, -1),
    "mirror": lambda images: images.flip(-1),
    "mirror and shift": lambda images: moved(images.flip(-1), -2, 2),
    "more contrast": lambda images: (128 + 1.2 * (images.float() - 128)) / 127.5 - 1,
    "less contrast": lambda images: (128 + 0.8 * (images.float() - 128)) / 127.5 - 1,
    "darker": lambda images: (images.float() - 30) / 127.5 - 1,
}


@pytest.mark.parametrize("edit", EDITS)
def test_robust_matching_sees_through_an_edit_that_plain_matching_takes_for_novel(edit):
    training = blobs(40, channels=3) // 2 + 64  # mid-tones, so that no contrast is cut off
    edited = EDITS[edit](training[3:6])
    distances, rows = nearest(edited, training, match="robust")
    assert rows[:, 0].tolist() == [3, 4, 5] and distances.max() < 1e-3
    assert nearest(edited, training)[0].min() > 20 * distances.max()


@pytest.mark.parametrize("seed", range(3))
def test_the_robust_distance_is_never_above_the_plain_one_and_has_no_direction(seed):
    ones, others = blobs(8, seed=seed), blobs(8, seed=seed + 9)
    table = np.stack(
        [nearest(ones, others[i : i + 1], match="robust")[0][:, 0] for i in range(8)], 1
    )
    back = np.stack([nearest(others, ones[i : i + 1], match="robust")[0][:, 0] for i in range(8)])
    plain = np.stack([nearest(ones, others[i : i + 1])[0][:, 0] for i in range(8)], 1)
    np.testing.assert_allclose(table, back, atol=1e-6)
    assert (table <= plain + 1e-6).all()


def test_a_flat_picture_does_not_match_everything():
    flat = torch.full((1, 1, 12, 12), 90, dtype=torch.uint8)
    assert nearest(flat, blobs(30), match="robust")[0] > 0.05
    assert (
        nearest(flat, flat + 50, match="robust")[0] == 0
    )  # but any other flat picture: brightness is free


@pytest.mark.parametrize("match", MATCHES)
def test_chunks_change_nothing(match):
    training, generated = blobs(80, seed=1), blobs(30, seed=2)
    whole, pieces = (
        nearest(generated, training, 2, match),
        nearest(generated, training, 2, match, megabytes=0.01),
    )
    np.testing.assert_array_equal(whole[1], pieces[1])
    np.testing.assert_allclose(whole[0], pieces[0], atol=1e-6)


@pytest.mark.parametrize("match", MATCHES)
def test_a_picture_is_not_its_own_neighbour_but_its_duplicate_is(match):
    training = torch.cat([blobs(20), blobs(20)[4:5]])
    distances, rows = nearest_within(training, 2, match)
    assert not (rows == np.arange(21)[:, None]).any()
    assert rows[4, 0] == 20 and rows[20, 0] == 4 and distances[4, 0] == 0 and distances[5, 0] > 0
    same = torch.cat([blobs(1)] * 6)
    assert nearest_within(same, 2, match)[0].max() == 0  # more duplicates than neighbours asked for


def test_duplicates_are_dropped_and_counted():
    images = blobs(6)
    kept, rows, counts = without_duplicates(images[[3, 0, 3, 1, 0, 3]])
    assert rows.tolist() == [0, 1, 3] and counts.tolist() == [3, 2, 1]
    assert torch.equal(kept, images[[3, 0, 1]])
    noisy = torch.cat([images, images[2:3] ^ 1])  # every value moves by 1 of 255
    assert len(without_duplicates(noisy)[1]) == 7
    kept, rows, counts = without_duplicates(noisy, within=1.01 / 255)
    assert rows.tolist() == [0, 1, 2, 3, 4, 5] and counts.tolist() == [1, 1, 2, 1, 1, 1]


def test_bytes_and_floats_are_the_same_pictures():
    images = blobs(5)
    assert torch.allclose(as_unit(images), as_unit(images.float() / 127.5 - 1), atol=1e-6)
    assert as_unit(torch.full((1, 1, 4, 4), 1.1)).max() == 1  # a decoder's excess


@pytest.mark.parametrize(
    "images, said",
    [
        (torch.zeros(0, 1, 8, 8), "at least one picture and C = 1 or 3; got \\(0, 1, 8, 8\\)"),
        (torch.zeros(8, 8), "must have shape"),
        (torch.zeros(2, 4, 8, 8), "C = 1 or 3"),
        (torch.full((3, 1, 8, 8), torch.nan), "3 of the 3 pictures hold NaN"),
        (torch.full((1, 1, 8, 8), 200.0), "must lie in .-1, 1.; got values up to 200"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.int64), "must be uint8 or float"),
    ],
)
def test_pictures_that_are_none_are_refused(images, said):
    with pytest.raises(ValueError, match=said):
        as_unit(images)


def test_searches_that_make_no_sense_are_refused():
    images = blobs(4)
    with pytest.raises(ValueError, match="of one size; got \\(1, 12, 12\\) and \\(1, 8, 8\\)"):
        nearest(images, blobs(4, side=8))
    with pytest.raises(ValueError, match="training pictures hold NaN"):
        nearest(images, torch.full((1, 1, 12, 12), torch.nan))
    with pytest.raises(ValueError, match="from 1 to the 4 training pictures; got 5"):
        nearest(images, images, k=5)
    with pytest.raises(ValueError, match="one of plain, tiled, robust; got 'sscd'"):
        nearest(images, images, match="sscd")
    with pytest.raises(ValueError, match="robust matching needs pictures of 6 pixels"):
        nearest(images[..., :5], images[..., :5], match="robust")
    with pytest.raises(ValueError, match="the other pictures of each; got 1 for 1"):
        nearest_within(images[:1])
    with pytest.raises(ValueError, match="within must be a distance"):
        without_duplicates(images, within=-1)
