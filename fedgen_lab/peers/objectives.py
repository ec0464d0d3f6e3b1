"""What a peer's score of a model is: the paper's objectives, and ours. The lower, the better.

Lab 10. PDFed (arXiv 2409.18245): eq. 7, FLD and FID, which its control selects by; eq. 6, the quality-novelty score,
also with de-duplication, which changes what is trained on and not the score. The scores themselves stand in
`fedgen_lab.memorization`, which says what each of them misses.
"""

import numpy as np

from fedgen_lab.memorization.calibrated import calibrated_score
from fedgen_lab.memorization.membership import membership
from fedgen_lab.memorization.qn import (
    NOVELTY_SCALE,
    RC_UNITS,
    confirmed,
    control_objective,
    quality_novelty,
)
from fedgen_lab.memorization.sets import fld
from fedgen_lab.scores import fid
from fedgen_lab.split.judges import judge_for

LEVEL = 0.05  # false alarms of calibrated novelty; a peer holds too few pictures for 1 %
RC_UNIT = "percent"  # with which alone the published table can come about; see memorization/qn.py


def judge_samples(scenario, model, drawn, holding):
    """One peer's opinion of a model: (score, rows of its training pictures that were copied).

    model: the `DDPMPipeline`, whose weights all have; drawn: (N, C, side, side) pictures it drew, float in [-1, 1];
    holding: the peer's `Holding`, which stays with it. Scores are 0 or more. With the weight w of novelty, ours is
    (1 - w) KID + w (share of copies + membership advantage), see `memorization.calibrated`; the paper's w is 0.5.
    """
    judge, train, held_out = (
        judge_for(holding.train),
        holding.train.as_tensor(),
        holding.held_out.as_tensor(),
    )
    weight, labels = scenario.novelty_weight, holding.train.labels.numpy()
    if scenario.objective == "calibrated":
        leak = membership(
            model, train, held_out, "SimA", (holding.train.labels, holding.held_out.labels)
        )
        score = calibrated_score(drawn, train, held_out, LEVEL, leak.tpr, judge)
        told = (1 - weight) * max(0.0, score.quality) + weight * (
            score.copied.estimate + score.advantage
        )
        return told, score.found.rows[score.found.flagged]
    quality = fid(held_out, drawn, judge)
    if scenario.objective == "fld-fid":
        return max(
            0.0, control_objective(quality, fld(drawn, train, held_out, judge)["fld"])
        ), np.zeros(0, int)
    matches = confirmed(drawn, train, _merged(labels))
    return max(0.0, quality_novelty(quality, matches, RC_UNIT, weight)), matches.training


def sensitivity_of(scenario):
    """By how much one training picture, copied by one generated picture, changes the novelty term of a score.

    In Q-N a training picture is counted once; but it also moves its class's threshold, and V_A and V_C, which this
    leaves out, as it leaves out that several pictures may copy one in ours: epsilon counts the matches alone.
    """
    published = RC_UNITS[RC_UNIT] * NOVELTY_SCALE
    per_picture = {"qn": published, "qn-dedup": published, "calibrated": 1.0}
    return scenario.novelty_weight * per_picture[scenario.objective] / scenario.samples


def _merged(labels):
    """Labels in which classes of a single picture, which have no neighbour, are one class."""
    alone = np.isin(labels, np.flatnonzero(np.bincount(labels) == 1))
    return (
        np.where(alone, -1, labels)
        if alone.sum() != 1
        else np.where(alone, labels[~alone][0], labels)
    )
