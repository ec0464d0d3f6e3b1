"""Scores of a whole set of pictures: has the generator copied, has it left something out, is what it draws varied?

Lab 09. Nearly all of them are known as quality scores, and the lab shows that quality scores can't see copying: a pool
of training pictures has a perfect FID. Three can, on average over the pool: authenticity (Alaa et al. 2021, arXiv
2102.08921), C_T (Meehan et al. 2020, arXiv 2004.05675) and the generalisation gap of FLD (Jiralerspong et al. 2023,
arXiv 2302.04440). None of them says which picture is the copy; `ratio` and `distance` do.

Every score takes pictures (N, C, H, W), uint8 or float in [-1, 1], and looks at them through `features`; or it takes
the features themselves, (N, d), where they have been computed before.
"""

import numpy as np
import torch

from fedgen_lab.lean import import_torchmetrics
from fedgen_lab.memorization.distance import as_unit
from fedgen_lab.scores import FeatureSpace

EXACT = "donot_use_mm_for_euclid_dist"  # distances of equal points are 0, not rounding
SAME = 1e-6  # distances below this share of a feature's length are rounding: the two are the same
CELLS = 3  # of C_T, as in the package fld
PRINCIPAL = 64  # of C_T: more features than this are first reduced to their principal components
ENOUGH_IN_CELL = 20  # of C_T: a cell counts with more generated pictures than this
NEIGHBOURS = 5  # of precision, recall, density and coverage
LEAST = 20  # of FLD: generated pictures; fewer Gaussians say nothing of a model
MOST = 2_000  # of FLD: pictures a side; published with 10,000, which take 25 times the memory
RATE, EPOCHS = 0.5, 50  # of FLD: Adam, as published


def embedded(pictures, features=None, name="pictures"):
    """Pictures as points: (N, d) float64 numpy.

    pictures: (N, C, H, W), uint8 or float in [-1, 1]; or (N, d), points already, which come back as they are.
    features: None for the lab's sprite judge, which reads colour; another judge (`split.judges` has some for grey
    pictures) or
        net with `read` and `features`; or any function from pictures to points (N, d).
    Raises ValueError for another shape, no picture at all, or values that are not finite.
    """
    pictures = torch.as_tensor(pictures)
    if pictures.ndim == 2 and len(pictures):
        bad = (~torch.isfinite(pictures)).any(dim=1).nonzero().flatten()
        if len(bad):
            raise ValueError(
                f"{name} must be finite; {len(bad)} of {len(pictures)} rows hold NaN or infinity, the first is row "
                f"{int(bad[0])}. Leave them out."
            )
        return pictures.double().numpy()
    as_unit(pictures, name)
    if features is None and pictures.shape[1] == 1:
        raise ValueError(
            f"{name} are grey, and the lab's judge reads colour. Give features: load_domain_judge('digits', 28) of "
            "fedgen_lab.split.judges, say, or load_fingerprinter() of fedgen_lab.memorization.fingerprint."
        )
    looks = FeatureSpace(features) if features is None or hasattr(features, "read") else features
    with torch.no_grad():
        points = torch.as_tensor(looks(pictures)).double().cpu()
    if points.ndim != 2 or len(points) != len(pictures):
        raise ValueError(
            f"features must turn {len(pictures)} pictures into a matrix of as many rows; got {tuple(points.shape)}."
        )
    return points.numpy()


def authentic_ratio(generated, training, features=None):
    """How authentic each generated picture is (N,): d(g, t) / d(t, t'); at most 1 means "copy".

    t is g's nearest training picture, and t' the nearest training picture to t: closer to t than anything real ever
    came, and g is hardly a picture of its own. Alaa et al. 2021, section 2.3 (their code compares other rows; this is
    the text). 0 for an exact copy, also of a duplicate. Misses: copies whose features moved, such as mirrored ones;
    near copies of pictures that occur twice in the training set, for then d(t, t') = 0. And it sees copies where there
    are none: of fresh real pictures about half come out at most 1, so compare with held-out ones.
    Raises ValueError for fewer than two different training pictures, or bad pictures.
    """
    generated, training = _points(features, generated=generated, training=training)
    _not_alike(training, "training pictures")
    apart, rows = _nearest(generated, training)
    own, _ = _nearest(training, training, itself=False)
    apart, own = apart[:, 0], own[rows[:, 0], 0]
    return np.divide(apart, own, out=np.where(apart > 0, np.inf, 0.0), where=own > 0)


def authenticity(generated, training, features=None, scale="share"):
    """Share of the generated pictures whose `authentic_ratio` exceeds 1: about half if all is well, 0 for a copier.

    scale: "share" in [0, 1]; "percent"; or "fld", percent minus 50, which the package fld reports as AuthPct and
    PDFed's Table 1 too: its 30 are 80 %.
    """
    if scale not in ("share", "percent", "fld"):
        raise ValueError(f'scale must be "share", "percent" or "fld"; got {scale!r}.')
    share = float((authentic_ratio(generated, training, features) > 1).mean())
    return {"share": share, "percent": 100 * share, "fld": 100 * share - 50}[scale]


def c_t(generated, training, held_out, features=None, cells=CELLS, seed=0):
    """C_T, a test for data copying: far below 0 copying, about 0 right, far above 0 underfitting.

    Are generated pictures nearer to the training set than held-out real ones are? In each cell of a k-means partition
    of the training set, the z-score of the Mann-Whitney U of the two sets of nearest distances; their mean, weighted by
    the held-out pictures in the cell, over cells with more than 20 generated pictures. Meehan et al. 2020, section 3;
    features, 64 principal components and 3 cells as in fld. One z-score: below -3 is copying beyond chance.
    Misses: a few copies among many honest pictures, which can't shift a median; copies and blurs that cancel out.
    Raises ValueError if a cell has no held-out picture, or none has enough generated ones.
    """
    from scipy.stats import mannwhitneyu
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    sets = _points(features, generated=generated, training=training, held_out=held_out)
    _not_alike(sets[1], "training pictures")
    if not 1 <= cells <= len(sets[1]):
        raise ValueError(
            f"cells must lie between 1 and the {len(sets[1])} training pictures; got {cells}."
        )
    if sets[1].shape[1] > PRINCIPAL and len(sets[1]) > PRINCIPAL:
        space = PCA(PRINCIPAL, random_state=seed).fit(sets[1])
        sets = [space.transform(points) for points in sets]
    partition = KMeans(cells, n_init=10, random_state=seed).fit(sets[1])
    cell_of = [partition.predict(points) for points in sets]
    scores, weights = [], []
    for cell in range(cells):
        drawn, train, real = (points[of == cell] for points, of in zip(sets, cell_of, strict=True))
        if not len(real):
            raise ValueError(
                f"cell {cell + 1} of {cells} holds {len(train)} training pictures and no held-out one. Hold out more, "
                "or ask for fewer cells."
            )
        if len(drawn) <= ENOUGH_IN_CELL:
            continue
        n, m = len(real), len(drawn)
        u = mannwhitneyu(
            _nearest(drawn, train)[0][:, 0], _nearest(real, train)[0][:, 0], method="asymptotic"
        ).statistic
        scores.append(
            (u - (n * m / 2 - 0.5)) / np.sqrt(n * m * (n + m + 1) / 12)
        )  # 0.5: correction for continuity
        weights.append(n)
    if not scores:
        raise ValueError(
            f"no cell has more than {ENOUGH_IN_CELL} generated pictures; got {len(sets[0])} in {cells} cells. Generate "
            "more, or ask for fewer cells."
        )
    return float(np.average(scores, weights=weights))


def fld(generated, training, held_out, features=None, most=MOST, seed=0):
    """The feature likelihood divergence and its generalisation gap: {"fld": ..., "gap": ...}.

    A Gaussian stands on every generated picture; their variances are fitted to the training set, so that one which
    stands on a copy shrinks to a needle. NLL: mean negative log-likelihood of a set under the mixture, per feature.
    fld = 100 (NLL(held out) - baseline), baseline: the same with half the training set in the generator's place; lower
    is better. gap = 100 (NLL(training) - NLL(held out)): about 0 if it generalises, negative if it has copied, below
    -1,000 if it has done little else, and without a bound (-1e17) where all are exact copies. Jiralerspong et al.
    2023, section 3, and their package.
    Features are standardised by the held-out set; those constant in it are left out. At most `most` pictures a side are
    taken, drawn by `seed`: fld depends on their number, so compare only equal numbers.
    Misses: which picture; copies whose features moved; fld itself counts lack of quality and of variety too. PDFed
    calls it a share of overfit Gaussians, which is another score of the same authors.
    Raises ValueError for fewer than 4 training, 2 held-out or 20 generated pictures, if no feature varies, or if every
    training picture is there several times, so that the baseline is a copier itself.
    """
    sets = _points(features, generated=generated, training=training, held_out=held_out)
    if len(sets[0]) < LEAST or len(sets[1]) < 4 or len(sets[2]) < 2:
        raise ValueError(
            f"fld needs at least {LEAST} generated, 4 training and 2 held-out pictures; got "
            f"{', '.join(str(len(points)) for points in sets)}. Give more."
        )
    _not_alike(sets[1], "training pictures")
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    sets = [points[_order(rng, len(points))[:most]] for points in sets]
    mean, spread = sets[2].mean(axis=0), sets[2].std(axis=0, ddof=1)
    varied = spread > SAME * np.abs(mean).max()
    if not varied.any():
        raise ValueError(
            "held-out pictures are all alike: no feature varies among them. Give different ones."
        )
    drawn, train, real = (
        torch.from_numpy((points - mean)[:, varied] / spread[varied]) for points in sets
    )
    log_variances = _fitted(drawn, train)
    trained, unseen = (_nll(points, drawn, log_variances) for points in (train, real))
    half = min(len(drawn), len(train) // 2)
    if (torch.cdist(train[:half], train[half:], compute_mode=EXACT).min(dim=1).values < SAME).all():
        raise ValueError(
            "every training picture is there several times, so half of them are copies of the others and fld has "
            "nothing to compare with. Take duplicates out: distance.without_duplicates(training)[0]."
        )
    baseline = _nll(real, train[:half], _fitted(train[:half], train[half:]))
    return {"fld": 100 * (unseen - baseline), "gap": 100 * (trained - unseen)}


def precision_recall_density_coverage(generated, training, features=None, neighbours=NEIGHBOURS):
    """Four scores of quality and variety, a dict; all four are best for a pool that holds each training picture once.

    A ball reaches from each picture to its k-th nearest neighbour in its own set. precision: share of generated
    pictures in some training picture's ball; recall: of training pictures in some generated one's; density: in how many
    training balls a generated picture lies, by k; coverage: share of training balls that hold a generated picture.
    Naeem et al. 2020 (arXiv 2002.09797), as in their package prdc; precision and recall Kynkaanniemi et al. 2019 (arXiv
    1904.06991).
    Misses: copying, all of it. A training picture that is there more than k times has a ball without extent, so take
    duplicates out first. Raises ValueError for fewer than k + 1 pictures on a side.
    """
    generated, training = _points(features, generated=generated, training=training)
    for name, points in (("generated", generated), ("training", training)):
        if not 1 <= neighbours < len(points):
            raise ValueError(
                f"neighbours must lie from 1 to the number of other pictures a side; got {neighbours} for "
                f"{len(points)} {name} pictures. Give more pictures, or ask for fewer neighbours."
            )
    reach, drawn_reach = (
        _nearest(of, of, neighbours, itself=False)[0][:, -1] for of in (training, generated)
    )
    balls, drawn_balls = (
        torch.from_numpy(of * (1 - 1e-9)) for of in (reach, drawn_reach)
    )  # on the rim is outside
    real, within = torch.from_numpy(training), []
    recalled = covered = torch.zeros(len(training), dtype=torch.bool)
    for points, ball in zip(
        torch.from_numpy(generated).split(256), drawn_balls.split(256), strict=True
    ):
        apart = torch.cdist(points, real)  # (256, training)
        inside = apart < balls
        within.append(inside.sum(dim=1))
        covered = covered | inside.any(dim=0)
        recalled = recalled | (apart < ball[:, None]).any(dim=0)
    within = torch.cat(within).double()
    return {
        "precision": float((within > 0).double().mean()),
        "recall": float(recalled.double().mean()),
        "density": float(within.mean()) / neighbours,
        "coverage": float(covered.double().mean()),
    }


def vendi(pictures, features=None, q=1.0):
    """The Vendi score: how many different pictures there seem to be, between 1 and their number.

    The exponential of the entropy of the eigenvalues of K / N, K the cosines between features; q: Renyi's order, above
    1 for weight on what is frequent, `math.inf` for the largest eigenvalue alone. Friedman and Dieng 2023 (arXiv
    2210.02410), q: Pasarkar and Dieng 2023 (arXiv 2310.12952). Ours, since the package vendi-score ignores q in
    `score_X` and imports what SciPy 2 drops; equal to its `score_K`.
    Misses: copying, since it never sees the training set; quality, since noise is varied.
    Raises ValueError unless q > 0, or if a picture has no feature at all.
    """
    if not q > 0:
        raise ValueError(f"q must be a number above 0, or math.inf; got {q}.")
    points = embedded(pictures, features)
    length = np.linalg.norm(points, axis=1, keepdims=True)
    if not length.all():
        raise ValueError(
            f"{int((length == 0).sum())} of {len(points)} pictures have features of length 0. Leave them out."
        )
    points = points / length
    gram = (
        points @ points.T if len(points) < points.shape[1] else points.T @ points
    )  # the same eigenvalues above 0
    p = np.linalg.eigvalsh(gram / len(points))
    p = p[p > 1e-14] / p[p > 1e-14].sum()  # below is rounding
    if q == 1:
        return float(np.exp(-(p * np.log(p)).sum()))
    return float(1 / p.max() if np.isinf(q) else (p**q).sum() ** (1 / (1 - q)))


def mifid(generated, training, features=None):
    """Memorization-informed FID, the ancestor of PDFed's score: FID / m; lower is better, and m is small for copies.

    m: mean over generated pictures of the least cosine distance 1 - |cos| to a training picture, or 1 if that mean is
    0.1 or more. Bai et al. 2021 (arXiv 2106.03062); computed by torchmetrics, which takes the mean over the set it is
    told is real, so the two sets change places here (FID doesn't mind).
    Misses: copies among other pictures, for FID falls with every copy as m does (a quarter of 300 sprites copied: 2 %
    lower). A pool of copies has m = 0 and MiFID near 10^14, but the training set itself, whose FID is 0, comes out best
    of all. With features that are never negative, such as the judges', distances are small: m is below 0.1 even for an
    honest generator.
    Raises ValueError for fewer pictures on a side than features.
    """
    import_torchmetrics()
    from torchmetrics.image.mifid import MemorizationInformedFrechetInceptionDistance

    generated, training = _points(features, generated=generated, training=training)
    if min(len(generated), len(training)) < generated.shape[1]:
        raise ValueError(
            f"MiFID needs at least as many pictures a side as features, {generated.shape[1]}; got {len(generated)} "
            f"generated and {len(training)} training ones. Give more, or use scores.kid()."
        )
    metric = MemorizationInformedFrechetInceptionDistance(feature=torch.nn.Identity())
    metric.update(torch.from_numpy(generated), real=True)
    metric.update(torch.from_numpy(training), real=False)
    return float(metric.compute())


# -- underneath -----------------------------------------------------------------------------------------------------
def _points(features, **sets):
    """Each named set as points (N, d), in the order given; their widths must agree."""
    points = [
        embedded(of, features, f"{name.replace('_', '-')} pictures") for name, of in sets.items()
    ]
    widths = {name: of.shape[1] for name, of in zip(sets, points, strict=True)}
    if len(set(widths.values())) > 1:
        raise ValueError(
            f"all sets must have the same features; got {widths}. Embed them with the same net."
        )
    return points


def _not_alike(points, name):
    if len(points) < 2 or (points == points[0]).all():
        raise ValueError(
            f"{name} must hold at least two different pictures; got {len(points)}, all alike. Give others."
        )


def _nearest(points, among, k=1, itself=True):
    """Distances (N, k) from points (N, d) to the k nearest `among` (M, d), and their rows (N, k).

    itself=False: points are `among`, and a point is no neighbour of its own; an equal one is.
    """
    from sklearn.neighbors import NearestNeighbors

    tree = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(among)
    apart, rows = tree.kneighbors(points if itself else None)
    apart[apart < SAME * np.sqrt(np.square(among).sum(axis=1).mean())] = 0.0
    return apart, rows


def _order(rng, number):
    return rng.permutation(number)


def _log_density(squared, log_variances, width):
    return -0.5 * (squared / log_variances.exp() + width * (log_variances + np.log(2 * np.pi)))


def _fitted(centres, points):
    """Log-variances (M,) of Gaussians on `centres` (M, d), with which `points` (N, d) are most likely.

    A last Gaussian about the points' mean takes part in the fit, so that every point has some likelihood.
    """
    width = centres.shape[1]
    squared = torch.cdist(points, centres).square().float()  # (N, M)
    from_mean = (
        0.81 * (points - points.mean(dim=0)).square().sum(dim=1, keepdim=True).float()
    )  # (N, 1)
    log_variances = ((squared.min(dim=0).values + 1e-3) / width).log().requires_grad_()
    around_mean = torch.zeros((), requires_grad=True)
    adam = torch.optim.Adam([log_variances, around_mean], lr=RATE)
    for _ in range(EPOCHS):
        density = _log_density(squared, log_variances, width) - np.log(len(centres))
        density = torch.cat([density, _log_density(from_mean, around_mean, width)], dim=1)
        adam.zero_grad()
        (-density.logsumexp(dim=1).mean() / width).backward()
        adam.step()
        with torch.no_grad():
            log_variances.clamp_(-40, 20)  # a Gaussian on an exact copy would shrink without end
    return log_variances.detach()


def _nll(points, centres, log_variances):
    width = centres.shape[1]
    density = _log_density(
        torch.cdist(points, centres).square().float(), log_variances, width
    ) - np.log(len(centres))
    return float(-density.logsumexp(dim=1).double().mean() / width)
