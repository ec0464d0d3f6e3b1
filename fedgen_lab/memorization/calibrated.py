"""Calibrated novelty: which pictures are copies, at a rate of false alarms that the user chooses.

Lab 09; the lab's own answer to PDFed's Q-N score (arXiv 2409.18245), whose threshold flags about a third of any fresh
pictures. A client has pictures that it did not train on. They say how near a fresh picture comes to the training
pictures, and a generated one that comes nearer than all but 1 % of them is flagged. With a p-value for every picture
(conformal: Vovk et al. 2005; Bates et al., arXiv 2104.08279), the share of copies gets an exact binomial interval
(Clopper and Pearson 1934), and false alarms can be taken off it.

All of it holds if a model that doesn't copy draws pictures as fresh ones are drawn (exchangeability). It fails where
held-out pictures come from elsewhere than the training pictures, and it bends where a model's own pictures differ from
real ones: a model that draws only what is frequent, or blurs, comes nearer to the training set without copying. The
score is a ratio of two distances for that reason: a blurred picture comes nearer to all of them.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from fedgen_lab.memorization.distance import nearest, without_duplicates
from fedgen_lab.scores import kid

LEVEL = 0.01  # false alarms among fresh pictures
FRACTION_LEVEL = (
    0.02  # to estimate a share: false alarms are taken off it, and fewer changed copies pass unseen
)
NEIGHBOUR = 2  # the training picture whose distance is the yardstick
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Share:
    """A share of pictures, with the interval that holds the true one in at least 95 of 100 cases."""

    estimate: float
    low: float
    high: float

    def __str__(self):
        return f"{self.estimate:.1%} ({self.low:.1%} to {self.high:.1%})"


@dataclass(frozen=True)
class Novelty:
    """What calibrated novelty says of N generated pictures.

    scores: (N,), small means "copy"; p_values: (N,), the chance of a fresh picture to score as low; rows: (N,), the
    training picture each is nearest to; null: (H,), the scores of the held-out pictures, rising; flagged: (N,) bool,
    p_values <= level; share: the `Share` flagged, copies and false alarms together.
    """

    scores: np.ndarray
    p_values: np.ndarray
    rows: np.ndarray
    null: np.ndarray
    level: float
    flagged: np.ndarray
    share: Share


def novelty(generated, training, match="robust", neighbour=NEIGHBOUR):
    """How much nearer each picture is to one training picture than to another: (scores (N,), rows (N,)).

    Formula: d_1 / d_k with the distances to its nearest and its k-th nearest different training picture, k = 2, by
    robust matching (`distance.nearest`). 0 is a copy, 1 a picture as near to one as to others. The ratio of Yoon et
    al. 2023, made robust; on its own it has no threshold here, `calibrated_novelty` finds one.
    Misses copies of what stands in the training set twice, shifted or recompressed, so not equal (raise `neighbour`);
    what robust matching misses; and blur, noise or blending so strong that other training pictures come as near: of
    MNIST rebuilt from 50 principal components it finds 7 of 10 at 1 %, and noise of 0.1 is too much for 8x8 pixels.
    Raises ValueError for what `nearest` refuses, or fewer than `neighbour` different training pictures.
    """
    different, kept, _ = without_duplicates(training, name="training pictures")
    if (
        isinstance(neighbour, bool)
        or not 2 <= neighbour <= len(kept)
        or int(neighbour) != neighbour
    ):
        raise ValueError(
            f"neighbour must be a whole number from 2 to the {len(kept)} different training pictures there are; got "
            f"{neighbour!r}. The score compares distances to different pictures: give more of them."
        )
    distances, rows = nearest(generated, different, int(neighbour), match)
    return distances[:, 0] / np.maximum(distances[:, -1], 1e-9), kept[rows[:, 0]]


def calibrated_novelty(
    generated, training, held_out, level=LEVEL, match="robust", neighbour=NEIGHBOUR
):
    """Which generated pictures are copies, with false alarms at `level`: a `Novelty`.

    Formula: p = (1 + number of held-out scores <= score) / (1 + H); flagged if p <= level. On average over held-out
    sets at most `level` of fresh pictures are flagged; with one set of H the true rate scatters around it with a
    standard deviation of sqrt(level (1 - level) / H), 0.3 points for 1,000 at 1 %.
    generated, training, held_out: (N, C, H, W) each, uint8 or float in [-1, 1], of one size. held_out: pictures from
    where the training pictures are from, which the model was not trained on; at least 1 / level - 1 of them.
    Misses what `novelty` misses, and copies of training pictures that this client does not hold.
    Raises ValueError for what `novelty` refuses, too few held-out pictures for the level, held-out pictures that all
    score the same, or more of them than the level allows that are training pictures themselves.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, a share of false alarms; got {level!r}.")
    held_out = torch.as_tensor(held_out)
    allowed = int(level * (len(held_out) + 1) + 1e-9)
    if allowed < 1:
        raise ValueError(
            f"a level of {level:g} needs at least {int(np.ceil(1 / level - 1e-9)) - 1} held-out pictures; got "
            f"{len(held_out)}. Hold out more, or choose a higher level."
        )
    null = _named(held_out, "held-out", training, match, neighbour)[0]
    equal = np.flatnonzero(null < 1e-3)
    null = np.sort(null)
    if len(null) > 1 and null[0] == null[-1]:
        raise ValueError(
            f"all {len(null)} held-out pictures score {null[0]:.3g}, so they tell nothing about chance: they are all "
            "the same, or all in the training set. Hold out different pictures."
        )
    if len(equal) > allowed:
        some = ", ".join(map(str, equal[:10])) + (", ..." if len(equal) > 10 else "")
        raise ValueError(
            f"{len(equal)} of {len(null)} held-out pictures are training pictures, perhaps mirrored or moved: "
            f"rows {some}. Take them out: with them every copy would pass for chance."
        )
    scores, rows = novelty(generated, training, match, neighbour)
    p_values = (1 + np.searchsorted(null, scores, side="right")) / (1 + len(null))
    flagged = p_values <= level + 1e-12
    return Novelty(scores, p_values, rows, null, float(level), flagged, binomial_share(flagged))


def binomial_share(flags, confidence=CONFIDENCE):
    """The `Share` of true ones among flags (N,), with the interval of Clopper and Pearson. No flag: ValueError."""
    from scipy.stats import binomtest

    flags = np.asarray(flags)
    if not len(flags):
        raise ValueError("a share needs at least one picture; got none.")
    if not np.isin(flags, (0, 1)).all():
        raise ValueError(
            f"a share needs flags, true or false; got {flags[~np.isin(flags, (0, 1))][0]}."
        )
    flags = flags.astype(bool)
    interval = binomtest(int(flags.sum()), len(flags)).proportion_ci(confidence, method="exact")
    return Share(float(flags.mean()), float(interval.low), float(interval.high))


def copied_fraction(generated, training, held_out, level=FRACTION_LEVEL, **settings):
    """Which share of the generated pictures is copied, corrected for false alarms: a `Share`.

    Formula: (f - a) / (1 - a), f the share flagged and a the false alarms expected, the level as far as H held-out
    pictures can hold it; at least 0. The interval adds two at 97.5 %: Clopper and Pearson's for f, and for a the beta
    distribution of the true rate of false alarms behind a threshold that H pictures set.
    settings: of `calibrated_novelty`, which says what is asked of the pictures.
    Misses copies that are not flagged: it is a lower bound where copies are so changed that some pass. Where the model
    draws nearer to the training set than chance without copying, it is too high.
    Raises ValueError as `calibrated_novelty` does.
    """
    return without_false_alarms(
        calibrated_novelty(generated, training, held_out, level, **settings)
    )


def without_false_alarms(found):
    """The share that `copied_fraction` gives, from a `Novelty` that is there already."""
    from scipy.stats import beta

    level = found.level
    allowed, number = int(level * (len(found.null) + 1) + 1e-9), len(found.null)
    share, tail = binomial_share(found.flagged, 1 - (1 - CONFIDENCE) / 2), (1 - CONFIDENCE) / 4
    fewest, most = beta.ppf([tail, 1 - tail], allowed, number + 1 - allowed)

    def corrected(flagged, alarms):
        return float(np.clip((flagged - alarms) / (1 - alarms), 0, 1))

    expected = allowed / (number + 1)
    return Share(
        corrected(share.estimate, expected),
        corrected(share.low, most),
        corrected(share.high, fewest),
    )


@dataclass(frozen=True)
class CalibratedScore:
    """One model's quality, copying and leakage. Each is 0 for a model that draws fresh pictures and remembers none."""

    quality: float  # unbiased KID to the held-out pictures; lower is better, and it may come out a little below 0
    copied: Share
    advantage: float  # members found beyond the non-members that are taken for members
    found: Novelty = field(repr=False)  # which pictures are copies, false alarms among them

    def total(self, novelty_weight=1.0, privacy_weight=1.0):
        """quality + novelty_weight * copied + privacy_weight * advantage; lower is better."""
        return (
            self.quality + novelty_weight * self.copied.estimate + privacy_weight * self.advantage
        )


def calibrated_score(
    generated, training, held_out, level=FRACTION_LEVEL, tpr=None, judge=None, **settings
):
    """What the Q-N score wants to say, calibrated: a `CalibratedScore`.

    Formula: KID(held_out, generated) in the judge's features, which does not depend on the number of pictures, unlike
    the FID of Q-N; `copied_fraction`; and (tpr - 0.01) / 0.99, at least 0, with `tpr` the true-positive rate at 1 %
    false positives of the best membership attack (`memorization.membership`), or None where none was run, which counts
    as no leak. That third term sees a model which remembers its training pictures without drawing them.
    judge: as in `scores.kid`; settings: of `calibrated_novelty`. Misses what its three terms miss.
    Raises ValueError as `calibrated_novelty` and `kid` do, and unless tpr lies in [0, 1].
    """
    if tpr is not None and not 0 <= tpr <= 1:
        raise ValueError(
            f"tpr must lie in [0, 1], the true-positive rate at 1 % false positives; got {tpr!r}."
        )
    found = calibrated_novelty(generated, training, held_out, level, **settings)
    quality = kid(torch.as_tensor(held_out), torch.as_tensor(generated), judge)
    advantage = 0.0 if tpr is None else max(0.0, (tpr - 0.01) / 0.99)
    return CalibratedScore(quality, without_false_alarms(found), advantage, found)


def _named(images, name, *others):
    """`novelty` of `images`, whose errors call them by their name rather than "generated"."""
    try:
        return novelty(images, *others)
    except ValueError as error:
        raise ValueError(str(error).replace("generated", name)) from None
