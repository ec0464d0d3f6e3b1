"""Was this picture in the training data? Membership inference against a diffusion model's adapter.

Lab 08. A model fits what it was trained on a little better than what it wasn't. An attacker who holds the adapter and
a candidate picture with its caption asks how well the model denoises it, and by how much better than a model that never
saw it; that takes nothing but passes through the model. Loss threshold: Yeom et al., arXiv 1709.01604; compared with a
reference model: Watson et al., arXiv 2111.08440. Report the true-positive rate at few false positives: Carlini et al.,
arXiv 2112.03570.
"""

from typing import NamedTuple

import numpy as np

FALSE_POSITIVE_RATE = 0.01  # at which the true-positive rate is reported


class Membership(NamedTuple):
    """What one attack found. Scores are higher where the attacker believes "member"."""

    auc: float  # chance that a member scores above a non-member: 0.5 is guessing
    tpr: float  # share of members named when at most 1 % of the non-members are named too
    members: np.ndarray  # (M,) scores
    outsiders: np.ndarray  # (N,) scores of non-members

    def curve(self):
        """The ROC curve: false-positive rates and true-positive rates, two arrays that rise from 0 to 1."""
        from sklearn.metrics import roc_curve

        return roc_curve(*_labelled(self.members, self.outsiders))[:2]


def judge_scores(members, outsiders):
    """A `Membership` from scores of members (M,) and of non-members (N,).

    With fewer than a hundred non-members, not a single false positive is allowed.
    Raises ValueError when a side has no scores, or scores that are not finite.
    """
    from sklearn.metrics import roc_auc_score

    members, outsiders = np.asarray(members, float), np.asarray(outsiders, float)
    truth, scores = _labelled(members, outsiders)
    if not len(members) or not len(outsiders) or not np.isfinite(scores).all():
        raise ValueError(
            f"Both sides need finite scores; got {len(members)} members and {len(outsiders)} non-members. "
            "Give pictures of both kinds, and a model whose loss is finite."
        )
    # At most so many non-members lie above the threshold.
    allowed = int(FALSE_POSITIVE_RATE * len(outsiders))
    threshold = np.sort(outsiders)[::-1][allowed]
    auc = roc_auc_score(truth, scores)
    return Membership(float(auc), float((members > threshold).mean()), members, outsiders)


def judge_fit(reference, errors):
    """A `Membership` from errors under a model that saw no member, and under the model that is attacked.

    Errors are the denoising losses of members (M,) and of non-members (N,), pictures of the same kinds. A picture's
    score is the logarithm of reference / error, by which factor it fits better here: so an easy picture is not taken
    for a member.
    """
    members, outsiders = (np.log(old / new) for old, new in zip(reference, errors, strict=True))
    return judge_scores(members, outsiders)


def _labelled(members, outsiders):
    """(truth, scores) as scikit-learn wants them."""
    truth = np.r_[np.ones(len(members)), np.zeros(len(outsiders))]
    return truth, np.concatenate([members, outsiders])
