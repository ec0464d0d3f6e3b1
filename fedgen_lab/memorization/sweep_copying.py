"""Does a model copy, and does it leak where it doesn't? What lab 09 says of a live run and of the recorded ones.

Watched are the first four private pictures, which are the repeated ones where there are repetitions: how many drawings
for their captions are copies by the one-third rule. Beside that, how well membership inference (PIA) tells private from
held-out pictures. `data/record/copying.py` says which runs were recorded; each changes one knob of `LESSON`.
"""

from dataclasses import dataclass

import numpy as np
import torch

from fedgen_lab.memorization.distance import nearest
from fedgen_lab.memorization.making import BATCH, draw_copies
from fedgen_lab.memorization.membership import membership
from fedgen_lab.memorization.ratio import THIRD
from fedgen_lab.recorded import recorded

LESSON = {
    "pictures": 32,
    "times": 16,
    "steps": 350,
    "rank": 16,
    "unique_captions": True,
    "clip": 0.0,
    "noise_multiplier": 0.0,
}
WATCHED = 4  # pictures whose captions are drawn from, the repeated ones
DRAWN = 24  # pictures drawn for them, and half as many for others
NUMBERS = ("captions", "copied", "others", "ratio", "auc", "tpr")  # of `Judged`, what is recorded


@dataclass(frozen=True)
class Judged:
    """What a trained model draws from the captions it was trained on, and what that gives away."""

    captions: int  # of how many watched pictures a copy came back
    copied: float  # share of the drawings for the watched pictures that are copies
    others: float | None  # the same for other private pictures; None where there are no others
    ratio: float  # median over the watched pictures' drawings of nearest / second-nearest distance
    auc: float  # of membership inference, private against held-out pictures
    tpr: float  # the same: members found at 1 % false positives
    drawn: torch.Tensor  # (N, 3, 32, 32) in [-1, 1], the watched pictures' first
    ratios: np.ndarray  # (N,)
    training: torch.Tensor  # (M, 3, 32, 32) uint8
    nearest: np.ndarray  # (N,) rows of `training`


class _Stopped(Exception):
    pass


def judge_copies(trained, should_stop=None):
    """Draw from a `making.Trained`'s captions and judge the drawings: a `Judged`, or None when stopped.

    Canaries are not drawn and count for nothing here: the numbers are those of the other private pictures.
    """

    def stop_if_asked():
        if should_stop is not None and should_stop():
            raise _Stopped

    # Draw for the watched pictures, again and again, then for the others in turn.
    private, size = trained.private, trained.copying.pictures
    watched = np.arange(DRAWN) % min(WATCHED, size)
    unwatched = np.arange(WATCHED, max(WATCHED, size))
    try:
        drawn, _ = draw_copies(
            trained,
            rows=np.r_[watched, np.resize(unwatched, DRAWN // 2 if len(unwatched) else 0)],
            seed=1000 * trained.copying.seed,
            on_step=stop_if_asked,
        )
    except _Stopped:
        return None

    # A copy is much nearer to one training picture than to any other. Held-out pictures stand beside the training
    # pictures, so that the second nearest is not far for want of pictures.
    training = private.pictures.take(range(size))
    reference = torch.cat([training.images, private.held_out.images])
    distances, places = nearest(drawn, reference, 2)
    ratios = distances[:, 0] / np.maximum(distances[:, 1], 1e-9)
    copies = (ratios < THIRD) & (places[:, 0] < size)

    _, rows = nearest(drawn, training.images)
    members = membership(trained.model, training, private.held_out, "PIA")
    return Judged(
        captions=len(set(watched[copies[:DRAWN]])),
        copied=float(copies[:DRAWN].mean()),
        others=float(copies[DRAWN:].mean()) if len(unwatched) else None,
        ratio=float(np.median(ratios[:DRAWN])),
        auc=members.auc,
        tpr=members.tpr,
        drawn=drawn,
        ratios=ratios,
        training=training.images,
        nearest=rows[:, 0],
    )


def recorded_copying():
    """The recorded runs as a data frame: a row for each, with its model, its knobs, its seed and its numbers.

    `seen`: how often a watched picture was seen in training: steps x pictures a step x its share of the training set.
    """
    runs = recorded("copying").reindex(columns=["model", *LESSON, "seed", *NUMBERS])
    training_set = runs["pictures"] + WATCHED * (runs["times"] - 1)
    seen = BATCH * runs["steps"] * runs["times"] / training_set
    return runs.assign(model=runs["model"].fillna("lora"), seen=seen)
