"""PDFed's quality-novelty score: is a model good, and did it make its pictures itself? Lower is better.

Lab 09. Balan et al. 2024 (arXiv 2409.18245, section 3). A generated picture is compared with its nearest training
pictures by fingerprint; pairs nearer than the class's threshold (eq. 5) go to the verifier; what it confirms counts as
memorized, and the count enters one number beside the FID (eq. 6). No code was published. Built to the letter of the
paper; where it says nothing, or can't be meant, this module says what it does:

- K of the nearest neighbours isn't given: 5. The pair's class is that of its training picture.
- Pairs are counted greedily, the surest first, so that each generated and each training picture counts once.
- Eq. 6 with R_C as a share of 1 stays below (FID + 1000) / 2, but the paper's table reads 3,721 at an FID of 624: only
  a share in percent fits. `rc_unit` offers both readings.
- Eq. 5 flags about 31 % of any fresh pictures (of a normal distribution, what lies below mean - std / 2), so all
  specificity rests on the verifier. The lab's own score is calibrated instead (`memorization.calibrated`).
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from fedgen_lab.memorization.fingerprint import load_fingerprinter
from fedgen_lab.memorization.verifier import CONFIRMED, described, load_verifier
from fedgen_lab.scores import check_pictures, fid

NEAREST = 5  # K, not given in the paper
BELOW_MEAN = 0.5  # standard deviations, eq. 5
RC_UNITS = {"percent": 100.0, "ratio": 1.0}
NOVELTY_SCALE = 1000.0  # eq. 6
FLD_SCALE = 100.0  # eq. 7
DROPPED_ABOVE = 95.0  # percentile of hits


@dataclass(frozen=True)
class Matches:
    """What the verifier says about N generated pictures, and the matches that count.

    under_threshold: (N,) bool, whether a nearest training picture lies under its class's threshold: eq. 5 alone.
    score: (N,) in [0, 1], the verifier's highest for each picture, 0 where no pair reached it. High means "copy".
    generated, training: (C,) rows of the counted matches, the surest first, no row twice; match_score: (C,), all > 0.8.
    v_a, v_c: mean score of all checked pairs, and of the counted ones; 0 where there are none. r_c: C / N.
    """

    under_threshold: np.ndarray
    score: np.ndarray
    generated: np.ndarray
    training: np.ndarray
    match_score: np.ndarray
    v_a: float
    v_c: float
    r_c: float


def class_thresholds(fingerprints, labels):
    """T of every class (eq. 5): mean - std / 2 of its pictures' distances to the nearest other of their class.

    fingerprints: (M, D); labels: (M,) integers. Returns a dict from label to threshold, in fingerprint distance.
    Duplicates have a nearest neighbour at distance 0 and pull the threshold down: when most of a class is duplicated it
    is below 0, and nothing is a copy any more.
    Raises ValueError for a class with one picture, or whose pictures are all the same, or if a label is missing.
    """
    if len(labels) != len(fingerprints):
        raise ValueError(
            f"every picture needs a label; got {len(fingerprints)} fingerprints and {len(labels)} labels."
        )
    thresholds = {}
    for label in np.unique(labels):
        rows = torch.from_numpy(np.flatnonzero(labels == label))
        if len(rows) < 2:
            raise ValueError(
                f"class {label} has a single training picture, so no nearest neighbour of its own class. Give it a "
                "second one, leave it out, or merge classes (labels=None makes them one)."
            )
        nearest = np.concatenate(
            [
                _apart(fingerprints[part], fingerprints[rows]).topk(2, largest=False).values[:, 1]
                for part in rows.split(1024)
            ]
        ).astype(float)
        if nearest.max() < 1e-4:
            raise ValueError(
                f"all {len(rows)} training pictures of class {label} look the same to the fingerprinter, so nothing "
                "could be nearer than usual. Remove duplicates (memorization.distance.without_duplicates)."
            )
        thresholds[label.item()] = float(nearest.mean() - BELOW_MEAN * nearest.std())
    return thresholds


def confirmed(
    generated,
    training,
    labels=None,
    nearest=NEAREST,
    confirmed_above=CONFIRMED,
    fingerprinter=None,
    verifier=None,
):
    """Which generated pictures copy which training pictures, as PDFed decides it: `Matches`.

    generated, training: (N, C, H, W) and (M, C, H, W), uint8 or float in [-1, 1], C 1 or 3, any size (resized to 32).
    labels: (M,) class of each training picture, integers; None for one class.
    nearest: training pictures looked at for each generated one; confirmed_above: the verifier's score that confirms.
    fingerprinter, verifier: the shipped ones by default.

    Misses mirrored copies, since the two nets never saw one as a copy, and copies of pictures that stand several times
    in the training set: they shrink the threshold (`class_thresholds`), and only one generated copy counts for each.
    Confirms 2 to 7 of 100 fresh pictures too (tests/benchmarks/bench_detector.py). Costs 1 ms a picture on one core.
    Raises ValueError for pictures that `as_unit` refuses, channels or labels that don't fit, and as `class_thresholds`.
    """
    generated, training = _one_size(generated, training, "generated")
    nets = fingerprinter or load_fingerprinter(), verifier or load_verifier()
    pool, private = (
        described(generated, *nets, "generated pictures"),
        described(training, *nets, "training pictures"),
    )
    return _matched(
        pool, private, _checked(labels, len(training)), nearest, confirmed_above, nets[1]
    )


def quality_novelty(fid_value, matches, rc_unit="percent", weight=0.5):
    """Eq. 6: (FID + V_C V_A R_C 1000) / 2, R_C in percent (the paper's table) or as a share of 1 (its text).

    weight: of novelty against quality, half in the paper: (1 - weight) FID + weight V_C V_A R_C 1000.

    Published FIDs are of DINOv2 features, hundreds; in the lab's features they are smaller, so the two terms weigh
    differently here. Misses what FID and `confirmed` miss; and half of it rewards a good picture, copied or not.
    Raises ValueError for an unknown unit, a weight outside 0..1, or a FID that isn't finite.
    """
    if rc_unit not in RC_UNITS:
        raise ValueError(f"rc_unit must be one of {', '.join(RC_UNITS)}; got {rc_unit!r}.")
    if not np.isfinite(fid_value):
        raise ValueError(f"the FID must be a finite number; got {fid_value}.")
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must lie in 0..1; got {weight}.")
    novelty = matches.v_c * matches.v_a * matches.r_c * RC_UNITS[rc_unit] * NOVELTY_SCALE
    return (1 - weight) * fid_value + weight * novelty


def qn_score(
    generated, training, held_out, labels=None, rc_unit="percent", features=None, **settings
):
    """The whole score of one model on one client's pictures: (Q-N, FID, `Matches`).

    held_out: the client's test pictures, which the FID compares with; features: a judge for it, as in `scores.fid`
    (the sprite judge by default, `split.judges.judge_for` for grey domains; the paper has DINOv2); settings: of
    `confirmed`. The FID needs as many pictures a side as there are features, and more to be unbiased: two clients'
    scores compare only at test sets of equal size.
    Raises ValueError as `confirmed`, `scores.fid` and `quality_novelty` do.
    """
    held_out = check_pictures(held_out, "held-out pictures", largest=10)
    matches = confirmed(generated, training, labels, **settings)
    quality = fid(held_out, generated, features)
    return quality_novelty(quality, matches, rc_unit), quality, matches


def control_objective(fid_value, fld_value):
    """Eq. 7, what the paper's control selects models by: (FID + 100 FLD) / 2. Lower is better."""
    if not np.isfinite([fid_value, fld_value]).all():
        raise ValueError(f"FID and FLD must be finite numbers; got {fid_value} and {fld_value}.")
    return (fid_value + FLD_SCALE * fld_value) / 2


def hits(number, *rounds):
    """How often each of `number` training pictures was counted over several `Matches`: (number,) integers."""
    return sum(
        (np.bincount(matches.training, minlength=number) for matches in rounds),
        np.zeros(number, int),
    )


def keep_after(counts, percentile=DROPPED_ABOVE):
    """The de-duplication variant: which training pictures are still trained on, (M,) bool.

    counts: (M,) hits of each picture; those above the percentile are dropped. (The paper first scales the counts to
    0..1, which doesn't change who is above.) At most 5 % go; 1.7 % on average in the paper. Where fewer than 5 %
    were ever hit, all of them go. What a model has already copied stays in its weights.
    Raises ValueError for no counts, negative ones or a percentile outside 0..100.
    """
    counts = np.asarray(counts, dtype=float)
    if counts.ndim != 1 or not len(counts) or not (counts >= 0).all():
        raise ValueError(
            f"counts must be hits, 0 or more, one for each training picture; got shape {counts.shape}."
        )
    if not 0 <= percentile <= 100:
        raise ValueError(f"percentile must lie in 0..100; got {percentile}.")
    return counts <= np.percentile(counts, percentile)


def replaced_pool(
    fresh,
    training,
    labels=None,
    fractions=(0, 0.05, 0.1, 0.25, 0.5, 1),
    change=None,
    seed=0,
    nearest=NEAREST,
    confirmed_above=CONFIRMED,
    fingerprinter=None,
    verifier=None,
):
    """The paper's detector experiment: a pool of fresh pictures, more and more of them replaced by training pictures.

    fresh: (N, C, H, W) pictures of the same kind that no model was trained on; training: (M, C, H, W), M at least the
    largest share of N. change: what a copy went through, a function of pictures (None: exact copies, as published).
    The other arguments are those of `confirmed`. A picture is called a copy if its match counts. Returns a table with a
    row a fraction: accuracy (the paper: 0.9894 on 100,000 pictures), found (share of the copies), false_alarms (share
    of the fresh), and v_a, v_c, r_c.
    Accuracy alone says little: 0.99 at 1 % copies is what "never" scores too.
    Raises ValueError as `confirmed` does, or for fractions outside 0..1 or more copies than training pictures.
    """
    fresh, training = _one_size(fresh, training, "fresh")
    most = round(max(fractions) * len(fresh))
    if not 0 <= min(fractions) <= max(fractions) <= 1 or most > len(training):
        raise ValueError(
            f"fractions must lie in 0..1 and need no more copies than the {len(training)} training pictures; got "
            f"{min(fractions)} to {max(fractions)} of {len(fresh)} pictures."
        )
    nets = fingerprinter or load_fingerprinter(), verifier or load_verifier()
    rng = np.random.default_rng(seed)
    taken, replaced = rng.permutation(len(training))[:most], rng.permutation(len(fresh))
    private, pool = (
        described(training, *nets, "training pictures"),
        described(fresh, *nets, "fresh pictures"),
    )
    copies = training[taken] if change is None else change(training[taken])
    copies = described(copies, *nets, "copies") if most else pool
    labels, rows = _checked(labels, len(training)), []
    for fraction in fractions:
        number = round(fraction * len(fresh))
        copied = np.zeros(len(fresh), bool)
        copied[replaced[:number]] = True
        mixed = tuple(whole.clone() for whole in pool)
        for whole, part in zip(mixed, copies, strict=True):
            whole[replaced[:number]] = part[:number]
        matches = _matched(mixed, private, labels, nearest, confirmed_above, nets[1])
        called = np.zeros(len(fresh), bool)
        called[matches.generated] = True
        rows.append(
            {
                "fraction": fraction,
                "accuracy": (called == copied).mean(),
                "found": called[copied].mean() if number else np.nan,
                "false_alarms": called[~copied].mean() if number < len(fresh) else np.nan,
                "v_a": matches.v_a,
                "v_c": matches.v_c,
                "r_c": matches.r_c,
            }
        )
    return pd.DataFrame(rows)


# -- the steps of `confirmed` -----------------------------------------------------------------------------------------
def _matched(generated, training, labels, nearest, confirmed_above, verifier):
    """`confirmed`, for pictures that are described already: pairs of fingerprints and window vectors."""
    if isinstance(nearest, bool) or int(nearest) != nearest or nearest < 1:
        raise ValueError(
            f"nearest must be a whole number of neighbours, at least 1; got {nearest!r}."
        )
    (prints, regions), (private_prints, private_regions) = generated, training
    of_class = class_thresholds(private_prints, labels)
    thresholds = torch.tensor([of_class[label] for label in labels.tolist()])  # (M,)
    near = [
        _apart(part, private_prints).topk(min(int(nearest), len(labels)), largest=False)
        for part in prints.split(1024)
    ]
    distances, rows = (
        torch.cat([part.values for part in near]),
        torch.cat([part.indices for part in near]),
    )  # (N, K)
    first, column = (distances < thresholds[rows]).nonzero(
        as_tuple=True
    )  # the pairs to check, P of them
    second = rows[first, column]
    with torch.no_grad():
        scores = [
            verifier(regions[pairs[:, 0]], private_regions[pairs[:, 1]])
            for pairs in torch.stack([first, second], 1).split(64)
        ]
    scores = torch.cat(scores).numpy()
    first, second = first.numpy(), second.numpy()
    highest = np.zeros(len(prints), np.float32)
    np.maximum.at(highest, first, scores)
    counted, seen = [], (set(), set())
    for pair in np.argsort(-scores, kind="stable"):
        if scores[pair] <= confirmed_above:
            break
        if first[pair] not in seen[0] and second[pair] not in seen[1]:
            counted.append(pair)
            seen[0].add(first[pair])
            seen[1].add(second[pair])
    counted = np.array(counted, int)
    return Matches(
        np.isin(np.arange(len(prints)), first),
        highest,
        first[counted],
        second[counted],
        scores[counted],
        float(scores.mean()) if len(scores) else 0.0,
        float(scores[counted].mean()) if len(counted) else 0.0,
        len(counted) / len(prints),
    )


def _apart(some, others):  # the faster mode is off by 1e-3 near 0
    return torch.cdist(some, others, compute_mode="donot_use_mm_for_euclid_dist")


def _one_size(generated, training, name):
    generated, training = torch.as_tensor(generated), torch.as_tensor(training)
    if generated.ndim == training.ndim == 4 and generated.shape[1:] != training.shape[1:]:
        raise ValueError(
            f"{name} and training pictures must be of one size; got {tuple(generated.shape[1:])} and "
            f"{tuple(training.shape[1:])} (channels, height, width). Resize one side."
        )
    return generated, training


def _checked(labels, number):
    labels = np.zeros(number, int) if labels is None else np.asarray(labels)
    if labels.shape != (number,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels must be one whole number for each of the {number} training pictures; got {labels.dtype} of shape "
            f"{labels.shape}. Number the classes."
        )
    return labels
