"""Is this generated picture a copy? Ratios that ask how near "too near" is, and what to do without the training set.

Lab 09. A distance alone can't say: two clear skies are nearer to each other than a face and its copy. So each rule
divides by what is usual around there. One third: Yoon et al. 2023 (ICML workshop, openreview shciCbSk9h), used by Gu et
al. (arXiv 2310.02664) and Bonnaire et al. (arXiv 2505.17638). Adaptive ratio, tiles and cliques: Carlini et al. 2023,
Extracting Training Data from Diffusion Models (arXiv 2301.13188). The distances are those of `memorization.distance`.
"""

from itertools import islice, pairwise

import numpy as np
import torch

from fedgen_lab.memorization.distance import TILES, as_unit, nearest, without_duplicates

EXTRACTED = 0.15  # up to this plain distance it is an extraction (Carlini et al., section 4.1, for Stable Diffusion)
THIRD = 1 / 3  # of `third_ratio`: below it a copy
ADAPTIVE = 1.0  # of `adaptive_ratio`: below it a copy
ALPHA, NEIGHBOURS = 0.5, 50  # of `adaptive_ratio`, as published for CIFAR-10
EDGE = 0.1  # of `clique`: the paper doesn't publish its threshold; LeakPro's default
AT_LEAST = 10  # of `clique`: pictures that agree
SEARCHED = 100_000  # maximal cliques that `clique` looks at: seconds; in blobs of near copies there are far fewer


def third_ratio(generated, training, match="plain", within=0.0):
    """Distance to the nearest training picture, by that to the second nearest (N,); below `THIRD` means "copy".

    generated, training: (N, C, H, W) and (M, C, H, W), uint8 or float in [-1, 1]; match: as for `nearest`.
    A picture that the training set holds twice would be nearest and second nearest to its copy, a ratio of 1. So
    duplicates are taken out first: equal pictures, and those at most `within` from an earlier one.
    Misses: copies of pictures with near duplicates; copies that were moved or mirrored, unless match is "robust";
    blends. Sees copies where there are none in a training set with few close neighbours, and of a constant generator.
    Raises ValueError for fewer than two different training pictures, or what `nearest` refuses.
    """
    distinct, _, _ = without_duplicates(training, within, "training pictures")
    if len(distinct) < 2:
        raise ValueError(
            f"the training pictures hold {len(distinct)} different picture, and the ratio needs two. Give more pictures"
            + (f", or a `within` below {within}." if within else ".")
        )
    first, second = nearest(generated, distinct, 2, match)[0].T
    return np.divide(
        first, second, out=np.zeros_like(first), where=second > 0
    )  # 0 / 0: a copy of two that match robustly


def adaptive_ratio(
    generated,
    training,
    alpha=ALPHA,
    neighbours=NEIGHBOURS,
    match="plain",
    around="training",
    megabytes=128,
):
    """d(g, t) / (alpha * mean of d(t, y) over the n pictures y nearest to t) (N,); below `ADAPTIVE` means "copy".

    t is g's nearest training picture; its n nearest training pictures include t itself, at distance 0, as in LeakPro.
    Carlini et al. 2023, section 5.1, where n = 50 and alpha = 0.5. around="generated" takes the n training pictures
    around g instead, d(g, y): the paper's formula can be read either way.
    Misses: copies that were moved or mirrored, unless match is "robust"; copies in crowded places. Its constants are
    those of 50,000 photographs: of simpler pictures or smaller sets it flags many fresh ones (a fifth of scikit-learn's
    digits), so turn alpha until it flags few held-out pictures.
    Raises ValueError unless 2 <= neighbours <= M and alpha > 0, for a training picture with `neighbours` equals, or
    what `nearest` refuses.
    """
    if around not in ("training", "generated"):
        raise ValueError(f'around must be "training" or "generated"; got {around!r}.')
    if not 2 <= neighbours <= len(training) or not 0 < alpha < np.inf:
        raise ValueError(
            f"neighbours must lie from 2 to the {len(training)} training pictures, and alpha above 0; got {neighbours} "
            f"and {alpha}. Give more pictures, or fewer neighbours."
        )
    if around == "generated":
        distances, _ = nearest(generated, training, neighbours, match, megabytes)  # (N, n)
        usual, first = distances.mean(axis=1), distances[:, 0]
    else:
        first, rows = (of[:, 0] for of in nearest(generated, training, 1, match, megabytes))
        met, which = np.unique(
            rows, return_inverse=True
        )  # neighbours only of training pictures that were met
        usual = nearest(training[met], training, neighbours, match, megabytes)[0].mean(axis=1)[
            which
        ]
    if not usual.all():
        raise ValueError(
            f"a training picture has {neighbours} equals, so its usual distance is 0. Take duplicates out first "
            "(without_duplicates), or ask for more neighbours."
        )
    return first / (alpha * usual)


def tiled_distances(pictures):
    """The tiled distance between all pairs of pictures (N, C, H, W): a symmetric array (N, N), zeros on the diagonal.

    The largest root-mean-square difference over 4 x 4 tiles; at least the plain distance. Carlini et al. 2023, section
    4.2. Misses copies that were moved or mirrored. Raises ValueError for bad pictures, or ones with a side below 4.
    """
    pictures = as_unit(pictures)
    if min(pictures.shape[-2:]) < TILES:
        raise ValueError(
            f"tiles need pictures of {TILES} pixels a side; got {tuple(pictures.shape[-2:])}. Enlarge them."
        )
    apart = torch.zeros(len(pictures), len(pictures))
    heights, widths = (
        np.linspace(0, side, TILES + 1).round().astype(int) for side in pictures.shape[-2:]
    )
    for top, bottom in pairwise(heights):
        for left, right in pairwise(widths):
            tile = pictures[..., top:bottom, left:right].flatten(1)  # (N, C * height * width)
            differences = (
                torch.cdist(tile, tile, compute_mode="donot_use_mm_for_euclid_dist")
                / tile.shape[1] ** 0.5
            )
            torch.maximum(apart, differences, out=apart)
    return apart.numpy()


def clique(pictures, edge=EDGE, at_least=AT_LEAST):
    """Pictures of one prompt that are all alike: rows of the largest such group, rising; empty below `at_least`.

    Carlini's extraction from Stable Diffusion, which needs no training picture: ask 500 times for one prompt; join two
    pictures whose tiled distance is at most `edge`; if at least 10 are all joined to each other, the model has the
    picture by heart. The paper then checks by hand, or with `nearest(...) <= EXTRACTED`.
    Misses: copies that come seldom, or moved. Sees memory where there is none: a prompt for a plain sky, or a model
    that draws one picture whatever is asked. Of more than 100,000 maximal cliques only so many are searched.
    Raises ValueError for fewer than `at_least` pictures, an edge that is not positive, or what `nearest` refuses.
    """
    import networkx

    if not 2 <= at_least <= len(as_unit(pictures)) or not edge > 0:
        raise ValueError(
            f"a clique of at_least={at_least} needs at least so many pictures, and an edge above 0; got "
            f"{len(pictures)} pictures and edge={edge}. Draw more pictures for the prompt."
        )
    joined = tiled_distances(pictures) <= edge
    np.fill_diagonal(joined, False)
    graph = networkx.k_core(
        networkx.from_numpy_array(joined), at_least - 1
    )  # the rest have too few neighbours
    largest = max(islice(networkx.find_cliques(graph), SEARCHED), key=len, default=())
    return (
        np.sort(np.array(largest, dtype=int))
        if len(largest) >= at_least
        else np.array([], dtype=int)
    )
