"""How near is a generated picture to the training pictures? The distances that every score of copying begins with.

Lab 09. Three ways to compare, all root-mean-square differences in units of the pixel range, so that the 0.15 of Carlini
et al. 2023 (arXiv 2301.13188, section 4.2) means what it says: "plain"; "tiled", the largest over 4 x 4 tiles (their
cure for large equal backgrounds); and "robust", ours: the least over shifts, the mirror image and changes of contrast
and brightness, because a copy that is moved by one pixel is a copy still. The search for the robust nearest is exact:
a lower bound from a few coefficients per picture says which training pictures need no closer look.
"""

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F

MATCHES = ("plain", "tiled", "robust")
TILES = 4  # per side: the 16 tiles of Carlini et al.
SHIFT = 2  # pixels, either way
CONTRAST = 1.5  # the factor by which robust matching lets contrasts differ: beyond it a flat picture would match all
COEFFICIENTS = 96  # of a picture in the lower bound
SHIFTS = [(dy, dx) for dy in range(-SHIFT, SHIFT + 1) for dx in range(-SHIFT, SHIFT + 1)]
CACHED = 64  # generated pictures at a time, so that what is made of them stays in the cache
_SLACK = 1e-5  # of squared distances: what float32 may lose in the bound


def as_unit(images, name="pictures"):
    """Pictures (N, C, H, W), uint8 or float in [-1, 1], on any device, as float32 in [0, 1] on the CPU.

    A decoder's small excess over 1 is cut off. Raises ValueError, naming the input, unless there is a picture with one
    or three channels and all values are finite and within [-2, 2] (0..255 as floats would be taken for something else).
    """
    images = torch.as_tensor(images).detach().cpu()
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            f"{name} must have shape (N, C, H, W) with at least one picture and C = 1 or 3; got {tuple(images.shape)}."
        )
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise ValueError(f"{name} must be uint8 or float in [-1, 1]; got {images.dtype}. Convert them.")
    images = images.float()
    broken = int((~images.isfinite()).flatten(1).any(1).sum())
    if broken:
        raise ValueError(f"{broken} of the {len(images)} {name} hold NaN or infinity. Leave them out, or sample anew.")
    if images.abs().max() > 2:
        raise ValueError(
            f"{name} given as floats must lie in [-1, 1]; got values up to {images.abs().max():.3g}. "
            "Give uint8, or scale them."
        )
    return (images.clamp(-1, 1) + 1) / 2


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
    generated, training = as_unit(generated, "generated pictures"), as_unit(training, "training pictures")
    if generated.shape[1:] != training.shape[1:]:
        raise ValueError(
            f"generated and training pictures must be of one size; got {tuple(generated.shape[1:])} and "
            f"{tuple(training.shape[1:])} (channels, height, width). Resize one side."
        )
    if isinstance(k, bool) or int(k) != k or not 1 <= k <= len(training):
        raise ValueError(f"k must be a whole number from 1 to the {len(training)} training pictures; got {k!r}.")
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


def without_duplicates(images, within=0.0):
    """Each picture once: (the kept pictures, as they came; their rows (K,); how many each stands for (K,)).

    A picture goes if an earlier kept one is equal, or at a plain distance of at most `within`. Raises ValueError for
    what `as_unit` refuses, or a negative `within`.
    """
    if not within >= 0:
        raise ValueError(f"within must be a distance, 0 or more; got {within}.")
    flat = as_unit(images).flatten(1)
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
            length, size = other.square().sum(1), other.shape[1]
            for so_far, few in zip(largest.split(CACHED), one.split(CACHED), strict=True):
                squared = torch.addmm(length, few, other.T, alpha=-2).add_(few.square().sum(1, keepdim=True))
                torch.maximum(so_far, squared.div_(size), out=so_far)
        for so_far, few in zip(largest.split(CACHED), part.split(CACHED), strict=True):
            found = so_far.topk(best, largest=False).indices  # (b, k + 4)
            apart = [(few - training[column]).square() for column in found.T]  # once more, from differences
            exact = [torch.stack([each[..., y, x].mean((1, 2, 3)) for y, x in boxes]).amax(0) for each in apart]
            _keep(torch.stack(exact, 1).sqrt(), found, k, distances, rows)
    return np.concatenate(distances), np.concatenate(rows)


def _keep(exact, found, k, distances, rows):
    """Append the k nearest of what was found: (B, more than k) distances and rows."""
    order = (exact.double() + 1e-12 * found).argsort(1)[:, :k]  # the earlier of two that are equally near
    distances.append(exact.gather(1, order).numpy())
    rows.append(found.gather(1, order).numpy())


# -- robust matching --------------------------------------------------------------------------------------------------
def _robust(generated, training, k, megabytes):
    """`nearest` for robust matching.

    Both pictures have lost their mean within the window where they overlap. With standard deviations s and u and
    covariance c, their squared distance is a s^2 + u^2 / a - 2 c, a = u / s, so at least 2 s u - 2 c, if a is limited.
    Any orthonormal projection P bounds c by <Px, Py> + |x - Px| |y - Py|: one matrix product of short vectors.
    """
    for images in (generated, training):
        images -= images.mean((1, 2, 3), keepdim=True)  # both are this module's own copies
    short = _Short(training)
    chunk = max(1, min(len(generated), int(megabytes * 2**20 / (8 * len(training)))))
    distances, rows = [], []
    for part in generated.split(chunk):
        sides = [(images, *_window_moments(images)) for images in (part, part.flip(-1))]
        for i, lower in enumerate(short.bound(sides)):  # (M,) squared
            both = [images[i] for images, _, _ in sides]
            moments = [torch.cat([side[n][:, i].flip(0) for side in sides])[:, None] for n in (1, 2)]  # (50, 1)
            exact, found = _look_closer(_shifted(torch.stack(both)), *moments, training, short, lower, k, megabytes)
            _keep(exact[None], found[None], k, distances, rows)
    return np.concatenate(distances), np.concatenate(rows)


class _Short:
    """Training pictures in a few coefficients each, and their mean and deviation in each of the 25 windows.

    The coefficients are the leading principal components of block means, in the interior that all windows share.
    """

    def __init__(self, training):
        self.block = -(-min(training.shape[-2:]) // 16)
        self.means, self.deviations = _window_moments(training)  # (25, M)
        self.windows = _shifted(torch.ones_like(training[:1])).repeat(2, 1)  # (50, D), 1 where two pictures overlap
        self.sizes = self.windows.sum(1, keepdim=True)  # (50, 1)
        blocks = self._blocks(training, 0, 0)
        centred = (blocks - blocks.mean(0)).double()
        self.basis = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -COEFFICIENTS:].float()  # (blocks, K)
        self.ones = self.block * self.basis.sum(0)  # the coefficients of a picture that is 1 everywhere
        self.coefficients = blocks @ self.basis  # (M, K)

    def _blocks(self, images, dy, dx):
        """Block means of the interior, moved: (N, blocks), scaled so that lengths are those of the pixels."""
        height, width = images.shape[-2:]
        interior = images[..., SHIFT + dy : height - SHIFT + dy, SHIFT + dx : width - SHIFT + dx]
        return self.block * F.avg_pool2d(interior, self.block).flatten(1)

    def _vectors(self, coefficients, means, deviations, size):
        """(N, K + 2): the part of a window's centred picture that P sees, the length of the rest, the deviation."""
        seen = (coefficients - means[:, None] * self.ones) / size**0.5
        rest = (deviations.square() - seen.square().sum(1)).clamp_min(0).sqrt()
        return torch.cat([seen, rest[:, None], deviations[:, None]], 1)

    def bound(self, sides):
        """Squared distances that no shift, mirror image or contrast falls below: (B, M).

        sides: pictures (B, C, H, W) as they are and mirrored, each with its window moments.
        """
        part = sides[0][0]
        lower = torch.full((len(part), self.means.shape[1]), torch.inf)
        for window, (dy, dx) in enumerate(SHIFTS):
            size = part[0, :, abs(dy) :, abs(dx) :].numel()
            theirs = self._vectors(self.coefficients, self.means[window], self.deviations[window], size)
            theirs[:, :-1] *= -1
            theirs = (2 * theirs).T.contiguous()  # (K + 2, M)
            for images, means, deviations in sides:
                ours = self._blocks(images, dy, dx) @ self.basis
                opposite = -1 - window  # (y, x) of a training picture meets (y + dy, x + dx) of a generated one
                ours = self._vectors(ours, means[opposite], deviations[opposite], size)
                for some, of_some in zip(lower.split(CACHED), ours.split(CACHED), strict=True):
                    torch.minimum(some, of_some @ theirs, out=some)
        return lower


def _look_closer(views, our_means, our_deviations, training, short, lower, k, megabytes):
    """The k + 4 nearest that the lower bound doesn't exclude: distances and rows, (m,) each, in no order.

    views: one picture in its 50 views, (50, D); its moments in their windows: (50, 1) each; lower: (M,).
    """

    def squared(rows):  # (m,) -> (m,) and in which view
        means, deviations, factor = paired(rows)
        covariance = views @ training[rows].flatten(1).T / short.sizes - our_means * means  # (50, m)
        return (factor * our_deviations.square() + deviations.square() / factor - 2 * covariance).min(0)

    def paired(rows):
        means, deviations = (of[:, rows].repeat(2, 1) for of in (short.means, short.deviations))  # (50, m)
        return means, deviations, (deviations / our_deviations.clamp_min(1e-12)).clamp(1 / CONTRAST, CONTRAST)

    first = lower.topk(min(k + 7, len(lower)), largest=False).indices
    found = [squared(first)]
    others = lower <= found[0].values.sort().values[k - 1] + _SLACK
    others[first] = False
    others = others.nonzero()[:, 0]
    at_once = max(1, int(megabytes * 2**20 / (8 * views.shape[1])))
    found += [squared(rows) for rows in others.split(at_once) if len(rows)]
    rows, view = torch.cat([first, others]), torch.cat([of.indices for of in found])
    best = torch.cat([of.values for of in found]).topk(min(k + 4, len(rows)), largest=False).indices
    rows, view = rows[best], view[best]
    # Once more, from differences: near 0 those are exact.
    means, _, factor = (of[view, torch.arange(len(rows))][:, None] for of in paired(rows))
    ours, theirs = views[view] - our_means[view], training[rows].flatten(1) - means
    apart = (factor.sqrt() * ours - theirs / factor.sqrt()) * short.windows[view]  # (m, D)
    return (apart.square().sum(1) / short.sizes[view, 0]).sqrt(), rows


def _shifted(images):
    """Pictures (N, C, H, W) in their 25 shifts, zero where nothing overlaps: (N * 25, C * H * W)."""
    height, width = images.shape[-2:]
    moved = F.pad(images, [SHIFT] * 4).unfold(2, height, 1).unfold(3, width, 1)  # (N, C, 5, 5, H, W)
    return moved.permute(0, 2, 3, 1, 4, 5).reshape(len(images) * len(SHIFTS), -1)


def _window_moments(images):
    """Mean and standard deviation of pictures (N, C, H, W) in the window of each shift: (25, N) each.

    The window of shift (dy, dx) holds the pixels (y, x) for which (y + dy, x + dx) lies in the picture too.
    """
    height, width = images.shape[-2:]
    means, deviations = [], []
    for part in images.split(500):
        sums = [F.pad(power.double().sum(1), (1, 0, 1, 0)).cumsum(1).cumsum(2) for power in (part, part.square())]
        for dy, dx in SHIFTS:
            top, bottom, left, right = max(0, -dy), height - max(0, dy), max(0, -dx), width - max(0, dx)
            size = part.shape[1] * (bottom - top) * (right - left)
            mean, square = (
                (s[:, bottom, right] - s[:, top, right] - s[:, bottom, left] + s[:, top, left]) / size for s in sums
            )
            means.append(mean.float())
            deviations.append((square - mean.square()).clamp_min(0).sqrt().float())
    return tuple(
        torch.cat([torch.stack(of[i : i + 25]) for i in range(0, len(of), 25)], 1) for of in (means, deviations)
    )
