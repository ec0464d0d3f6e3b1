"""How near is a generated picture to the training pictures? The distances that every score of copying begins with.

Lab 09. Three ways to compare, all root-mean-square differences in units of the pixel range, so that the 0.15 of Carlini
et al. 2023 (arXiv 2301.13188, section 4.2) means what it says: "plain"; "tiled", the largest over 4 x 4 tiles (their
cure for large equal backgrounds); and "robust", ours: the least over shifts, the mirror image and changes of contrast
and brightness, because a copy that is moved by one pixel is a copy still. The search for the robust nearest is exact:
a lower bound from a few coefficients per picture says which training pictures need no closer look.
"""

from itertools import pairwise
from numbers import Real

import numpy as np
import torch
import torch.nn.functional as F

from fedgen_lab.scores import check_pictures

MATCHES = ("plain", "tiled", "robust")
TILES = 4  # per side: the 16 tiles of Carlini et al.
SHIFT = 2  # pixels, either way
CONTRAST = 1.5  # the factor by which robust matching lets contrasts differ: beyond it a flat picture would match all
FEW, COEFFICIENTS = 32, 192  # of a picture in the first and in the second lower bound
GROUP = 16  # generated pictures that are looked at more closely together
LIKELY = 32  # training pictures that the first bound proposes
SHIFTS = [(dy, dx) for dy in range(-SHIFT, SHIFT + 1) for dx in range(-SHIFT, SHIFT + 1)]
BLOCK = 256  # generated pictures in one matrix product: more do not fit into the cache
_SLACK = 1e-5  # of squared distances: what float32 may lose in the bound
_LOST = 1e-8  # of squared lengths: what it may lose in the difference of two


def as_unit(images, name="pictures"):
    """Pictures (N, C, H, W), uint8 or float in [-1, 1], on any device, as float32 in [0, 1] on the CPU.

    A decoder's small excess over 1 is cut off. Raises ValueError, naming the input, unless there is a picture with one
    or three channels, and for what `scores.check_pictures` refuses.
    """
    images = torch.as_tensor(images).detach()
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            f"{name} must have shape (N, C, H, W) with at least one picture and C = 1 or 3; got {tuple(images.shape)}."
        )
    images = check_pictures(images, name).cpu()
    if images.dtype == torch.uint8:
        return images.float().div_(255)
    return (images.float().clamp(-1, 1) + 1) / 2


def nearest(generated, training, k=1, match="plain", megabytes=128):
    """The k nearest training pictures of each generated one: distances (N, k), rising, and rows (N, k), two arrays.

    generated, training: (N, C, H, W) and (M, C, H, W), uint8 or float in [-1, 1], of one size. A distance lies in
    [0, 1]; 0 is an exact copy.
    match: "plain", the root of the mean squared difference of all values. Misses copies that were shifted or mirrored,
        and takes pictures that share a large background for near. "tiled": the largest plain distance over 4 x 4 tiles
        (sides that 4 does not divide get tiles that differ by a pixel). Misses the same copies, but not the background.
        "robust": the least over 25 shifts by up to 2 pixels, compared where the two overlap, with and without
        mirroring, after both have lost their mean and met half-way in contrast: sqrt(a) x - y / sqrt(a), a the ratio
        of their standard deviations but within 1.5 either way. So neither of the two is the reference, and a flat
        picture doesn't match everything, as it would after a least-squares fit. It is never above the plain distance.
        Misses rotation, larger shifts, other sizes, changed colours, a cut-out part.
    megabytes: what the search may take besides the pictures (as float32) and what it returns; for robust matching at
        least 50 pictures' worth.

    Raises ValueError for what `as_unit` refuses, pictures of two sizes, k outside 1..M, an unknown match, or pictures
    too small for it: 4 pixels a side for tiles, 6 for robust matching.
    """
    generated, training = (
        as_unit(generated, "generated pictures"),
        as_unit(training, "training pictures"),
    )
    if generated.shape[1:] != training.shape[1:]:
        raise ValueError(
            f"generated and training pictures must be of one size; got {tuple(generated.shape[1:])} and "
            f"{tuple(training.shape[1:])} (channels, height, width). Resize one side."
        )
    if isinstance(k, bool) or not isinstance(k, Real) or not 1 <= k <= len(training) or int(k) != k:
        raise ValueError(
            f"k must be a whole number from 1 to the {len(training)} training pictures; got {k!r}."
        )
    if match not in MATCHES:
        raise ValueError(f"match must be one of {', '.join(MATCHES)}; got {match!r}.")
    least = {"plain": 1, "tiled": TILES, "robust": 2 * SHIFT + 2}[match]
    if min(training.shape[-2:]) < least:
        raise ValueError(
            f"{match} matching needs pictures of {least} pixels a side; got {tuple(training.shape[-2:])}. "
            "Enlarge them or match plainly."
        )
    if match == "robust":
        return _robust(generated, training, int(k), megabytes)
    return _by_tiles(generated, training, int(k), TILES if match == "tiled" else 1, megabytes)


def nearest_within(training, k=1, match="plain", megabytes=128):
    """The k nearest *other* training pictures of each: distances (N, k), rising, and rows (N, k).

    A duplicate counts as another picture, at distance 0. Raises ValueError as `nearest` does, and unless k < N.
    """
    if not 1 <= k < len(training):
        raise ValueError(
            f"k must lie from 1 to {len(training) - 1}, the other pictures of each; got {k} for {len(training)}. "
            "Give more pictures, or a smaller k."
        )
    distances, rows = nearest(training, training, k + 1, match, megabytes)
    itself = rows == np.arange(len(rows))[:, None]
    itself[~itself.any(1), -1] = True  # among more than k duplicates a picture may not find itself
    return distances[~itself].reshape(-1, k), rows[~itself].reshape(-1, k)


def without_duplicates(images, within=0.0, name="pictures"):
    """Each picture once: (the kept pictures, as they came; their rows (K,); how many each stands for (K,)).

    A picture goes if an earlier kept one is equal, or at a plain distance of at most `within`. Raises ValueError for
    what `as_unit` refuses, calling them by `name`, or a negative `within`.
    """
    if not within >= 0:
        raise ValueError(f"within must be a distance, 0 or more; got {within}.")
    images = torch.as_tensor(images)
    flat = as_unit(images, name).flatten(1)
    _, first, inverse = np.unique(flat.numpy(), axis=0, return_index=True, return_inverse=True)
    stands_for = first[inverse.ravel()]  # (N,) the first picture that equals this one
    rows = np.unique(stands_for)
    if within > 0:
        different, owner = flat[rows], np.full(len(rows), -1)
        for i in range(len(rows)):
            if owner[i] < 0:  # a kept picture takes all later ones around it
                near = (different[i:] - different[i]).square().mean(1).sqrt().numpy() <= within
                owner[i:][near & (owner[i:] < 0)] = i
        stands_for, rows = rows[owner[np.searchsorted(rows, stands_for)]], rows[np.unique(owner)]
    counts = np.bincount(stands_for, minlength=len(flat))[rows]
    return images[rows], rows, counts


def _by_tiles(generated, training, k, tiles, megabytes):
    """`nearest` for plain (one tile) and tiled matching: one matrix product per tile, then the few best exactly."""
    sides = [np.linspace(0, side, tiles + 1).round().astype(int) for side in training.shape[-2:]]
    down, across = ([slice(*edges) for edges in pairwise(side)] for side in sides)
    boxes = [(y, x) for y in down for x in across]
    best = min(k + 4, len(training))  # float32 may swap neighbours that are equally near
    chunk = max(1, int(megabytes * 2**20 / (8 * len(training))))
    distances, rows = [], []
    for part in generated.split(chunk):
        largest = torch.zeros(len(part), len(training))  # (B, M) squared
        for y, x in boxes:
            one, other = part[..., y, x].flatten(1), training[..., y, x].flatten(1)
            length, size = other.square().mean(1), other.shape[1]
            for so_far, few in zip(largest.split(BLOCK), one.split(BLOCK), strict=True):
                squared = torch.addmm(length, few, other.T, alpha=-2 / size).add_(
                    few.square().mean(1, keepdim=True)
                )
                torch.maximum(so_far, squared, out=so_far)
        for so_far, few in zip(largest.split(BLOCK), part.split(BLOCK), strict=True):
            found = so_far.topk(best, largest=False).indices  # (b, k + 4)
            apart = [
                (few - training[column]).square() for column in found.T
            ]  # once more, from differences
            exact = [
                torch.stack([each[..., y, x].mean((1, 2, 3)) for y, x in boxes]).amax(0)
                for each in apart
            ]
            _keep(torch.stack(exact, 1).sqrt(), found, k, distances, rows)
    return np.concatenate(distances), np.concatenate(rows)


def _keep(exact, found, k, distances, rows):
    """Append the k nearest of what was found: (B, more than k) distances and rows."""
    order = (exact.double() + 1e-12 * found).argsort(1)[
        :, :k
    ]  # the earlier of two that are equally near
    distances.append(exact.gather(1, order).numpy())
    rows.append(found.gather(1, order).numpy())


# -- robust matching --------------------------------------------------------------------------------------------------
def _robust(generated, training, k, megabytes):
    """`nearest` for robust matching.

    Both pictures have lost their mean within the window where they overlap. With standard deviations s and u and
    covariance c, their squared distance is a s^2 + u^2 / a - 2 c, a = u / s, so at least 2 s u - 2 c, if a is limited.
    Any orthonormal projection P bounds c by <Px, Py> + |x - Px| |y - Py|: a product of short vectors. Very short ones
    for all training pictures, longer ones for those that are left, and the pictures themselves for the last few.
    """
    for images in (generated, training):
        images -= images.mean((1, 2, 3), keepdim=True)  # both are this module's own copies
    short, pixels = _Short(training), training[0].numel()
    each = (
        8 * len(training) + 16 * pixels + 400 * sum(short.basis.shape)
    )  # bytes that a generated picture takes
    chunk = max(1, min(BLOCK, int(megabytes * 2**20 / each)))
    group = max(
        1, min(GROUP, int(megabytes * 2**20 / (8 * 2 * len(SHIFTS) * pixels)))
    )  # in all their views
    at_once = max(1, int(megabytes * 2**20 / (8 * pixels + 2000)))  # training pictures
    distances, rows = [], []
    for part in generated.split(chunk):
        sides = torch.stack([part, part.flip(-1)], 1)  # (B, 2, C, H, W): as they are, and mirrored
        ours = short.views(sides.flatten(0, 1))
        lower = short.bound(*ours)  # (B, M) squared
        for some in torch.arange(len(part)).split(group):
            of_some = [of[some] for of in ours]
            exact, found = _look_closer(
                sides[some], of_some, training, short, lower[some], k, at_once
            )
            _keep(exact, found, k, distances, rows)
    return np.concatenate(distances), np.concatenate(rows)


class _Short:
    """Training pictures in a few coefficients each, and their mean and deviation in each of the 25 windows.

    The coefficients are the leading principal components of block means, in the interior that all windows share.
    """

    def __init__(self, training):
        self.windows = _shifted(
            torch.ones_like(training[:1])
        )  # (25, D), 1 where two pictures overlap
        self.sizes = self.windows.sum(1)  # (25,)
        block = -(-min(training.shape[-2:]) // 16)
        self.down, self.across = (_averaging(side, block) for side in training.shape[-2:])
        blocks = torch.cat(
            [self._blocks(part, slice(SHIFT, SHIFT + 1))[:, 0] for part in training.split(500)]
        )
        centred = (blocks - blocks.mean(0)).double()
        self.basis = (
            torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :COEFFICIENTS].float()
        )
        self.ones = block * self.basis.sum(0)  # the coefficients of a picture that is 1 everywhere
        self.coefficients = blocks @ self.basis  # (M, K), the leading ones first
        means, deviations = _window_moments(training)  # (M, 25)
        few, rests = torch.empty_like(means), torch.empty_like(means)
        for window, mean in enumerate(means.T):
            seen = self.coefficients - mean[:, None] * self.ones
            few[:, window], rests[:, window] = self._rests(
                seen, deviations[:, window], self.sizes[window]
            )
        self.few = (
            torch.stack([means, -few, deviations]).permute(2, 0, 1).contiguous()
        )  # (25, 3, M)
        self.moments = torch.stack([means, deviations, rests], 1)  # (M, 3, 25)

    def _blocks(self, images, shifts=slice(None)):
        """Block means of the interior, moved by `shifts` either way: (N, shifts^2, blocks), as long as its pixels."""
        means = torch.einsum("syh,nchw,txw->nstcyx", self.down[shifts], images, self.across[shifts])
        return means.flatten(3).flatten(1, 2)

    def _rests(self, seen, deviations, sizes):
        """Length of what the first few coefficients don't see of a window, and of what all of them don't."""
        squares = (seen[..., :count].square().sum(-1) / sizes for count in (FEW, COEFFICIENTS))
        return [((deviations.square() - square).clamp_min(0) + _LOST).sqrt() for square in squares]

    def views(self, images):
        """Of generated pictures as they are and mirrored (B * 2, C, H, W): seen (B, 2, 25, K) and four of (B, 2, 25).

        In window (dy, dx) the pixel (y, x) of a training picture meets (y + dy, x + dx) of a generated one.
        """
        means, deviations = (of.flip(1) for of in _window_moments(images))  # (B * 2, 25)
        seen = torch.cat(
            [self._blocks(part) @ self.basis for part in images.split(32)]
        )  # (B * 2, 25, K)
        seen -= means[..., None] * self.ones
        few, rests = self._rests(seen, deviations, self.sizes)
        return [
            of.unflatten(0, (-1, 2))
            for of in (seen.div_(self.sizes[:, None]), few, means, deviations, rests)
        ]

    def bound(self, seen, few, _, deviations, __):
        """Squared distances that no shift, mirror image or contrast falls below, by very short vectors: (B, M)."""
        seen = seen[..., :FEW]
        ours = torch.cat(
            [seen, *(of[..., None] for of in (seen @ self.ones[:FEW], few, deviations))], -1
        )
        theirs = torch.cat([-self.coefficients[:, :FEW].T, self.few[0]])  # (FEW + 3, M)
        lower = torch.full((len(seen), theirs.shape[1]), torch.inf)
        for window, moments in enumerate(self.few):
            theirs[-3:] = moments
            for side in (0, 1):
                torch.minimum(lower, ours[:, side, window] @ theirs, out=lower)
        return lower.mul_(2)

    def closer_bound(self, rows, seen, _, __, deviations, rests):
        """The same by all coefficients, for a few training pictures `rows` (B, m) of each generated one: (B, m)."""
        their_means, their_deviations, their_rests = self.moments[rows][:, :, None].unbind(
            3
        )  # (B, m, 1, 25)
        products = (self.coefficients[rows] @ seen.flatten(1, 2).mT).unflatten(
            2, (2, -1)
        )  # (B, m, 2, 25)
        covariance = (
            products - (seen @ self.ones)[:, None] * their_means + rests[:, None] * their_rests
        )  # at most this
        return 2 * (deviations[:, None] * their_deviations - covariance).amin((2, 3))


def _look_closer(sides, ours, training, short, lower, k, at_once):
    """The k + 4 nearest that the bounds don't exclude, of each generated picture: distances and rows, (B, k + 4) each.

    sides, ours: the pictures as they are and mirrored (B, 2, C, H, W) and what `_Short.views` says of them; lower: the
    first bound, (B, M).
    """
    views = _shifted(sides.flatten(0, 1)).unflatten(0, (len(sides), -1))  # (B, 50, D)
    likely = lower.topk(min(k + LIKELY, lower.shape[1]), largest=False).indices
    first = (
        short.closer_bound(likely, *ours).topk(min(k + 7, likely.shape[1]), largest=False).indices
    )
    rows = likely.gather(1, first)
    squared, view = _squared(rows, views, ours, training, short).min(2)  # (B, k + 7)
    limits = squared.kthvalue(k).values + _SLACK
    possible = (lower <= limits[:, None]).scatter(1, rows, False)
    best = squared.topk(min(k + 4, rows.shape[1]), largest=False).indices
    squared, view, rows = (of.gather(1, best) for of in (squared, view, rows))
    for i in possible.any(1).nonzero()[:, 0]:
        one = [of[i : i + 1] for of in ours]
        for some in possible[i].nonzero()[:, 0].split(at_once):
            some = some[short.closer_bound(some[None], *one)[0] <= limits[i]]
            if len(some) == 0:
                continue
            more = _squared(some[None], views[i : i + 1], one, training, short)[0].min(1)
            nearer = torch.cat([squared[i], more.values]).topk(squared.shape[1], largest=False)
            squared[i] = nearer.values
            rows[i], view[i] = (
                torch.cat(pair)[nearer.indices]
                for pair in ((rows[i], some), (view[i], more.indices))
            )
    # Once more, from differences: near 0 those are exact.
    window, picture = view % len(SHIFTS), torch.arange(len(rows))[:, None]
    our_mean, our_deviation = (of.flatten(1).gather(1, view)[..., None] for of in ours[2:4])
    mean, deviation = (short.moments[rows, n, window][..., None] for n in (0, 1))
    factor = _contrast(deviation, our_deviation).sqrt()
    apart = (
        factor * (views[picture, view] - our_mean) - (training[rows].flatten(2) - mean) / factor
    )  # (B, k + 4, D)
    return ((apart * short.windows[window]).square().sum(2) / short.sizes[window]).sqrt(), rows


def _squared(rows, views, ours, training, short):
    """Squared robust distances of generated pictures to some training pictures each, in every view: (B, m, 50)."""
    our_means, our_deviations = (of[:, None] for of in ours[2:4])  # (B, 1, 2, 25)
    means, deviations, _ = short.moments[rows][:, :, None].unbind(3)  # (B, m, 1, 25)
    products = (training[rows].flatten(2) @ views.mT).unflatten(2, (2, -1))  # (B, m, 2, 25)
    covariance = products / short.sizes - our_means * means
    factor = _contrast(deviations, our_deviations)
    return (
        factor * our_deviations.square() + deviations.square() / factor - 2 * covariance
    ).flatten(2)


def _contrast(deviations, our_deviations):
    """The factor a of the definition."""
    return (deviations / our_deviations.clamp_min(1e-12)).clamp(1 / CONTRAST, CONTRAST)


def _averaging(side, block):
    """Matrices that average blocks of the interior of a line of `side` pixels, moved by -2..2: (5, n, side)."""
    count = (side - 2 * SHIFT) // block
    matrices = torch.zeros(2 * SHIFT + 1, count, side)
    for shift, matrix in enumerate(matrices):
        for i, row in enumerate(matrix):
            row[shift + i * block : shift + (i + 1) * block] = block**-0.5
    return matrices


def _shifted(images):
    """Pictures (N, C, H, W) in their 25 shifts, zero where nothing overlaps: (N * 25, C * H * W)."""
    height, width = images.shape[-2:]
    moved = (
        F.pad(images, [SHIFT] * 4).unfold(2, height, 1).unfold(3, width, 1)
    )  # (N, C, 5, 5, H, W)
    return moved.permute(0, 2, 3, 1, 4, 5).reshape(len(images) * len(SHIFTS), -1)


def _window_moments(images):
    """Mean and standard deviation of pictures (N, C, H, W) in the window of each shift: (N, 25) each.

    The window of shift (dy, dx) holds the pixels (y, x) for which (y + dy, x + dx) lies in the picture too.
    """
    down, across = (  # (5, side), 1 for rows or columns in the window
        torch.stack(
            [
                ((there := torch.arange(side) + by) >= 0) & (there < side)
                for by in range(-SHIFT, SHIFT + 1)
            ]
        )
        for side in images.shape[-2:]
    )
    down, across = down.double(), across.double().T
    sizes = images.shape[1] * (down.sum(1)[:, None] * across.sum(0)).flatten()  # (25,)
    means, deviations = [], []
    for part in images.split(500):
        first, second = (
            (down @ power.double().sum(1) @ across).flatten(1) / sizes
            for power in (part, part.square())
        )
        means.append(first.float())
        deviations.append((second - first.square()).clamp_min(0).sqrt().float())
    return torch.cat(means), torch.cat(deviations)
