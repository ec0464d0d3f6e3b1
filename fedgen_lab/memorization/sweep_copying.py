"""The recorded sweep of lab 09: which of its knobs makes a model copy, and whether it leaks where it doesn't.

Every point changes one knob of the lesson's model (`LESSON`). Watched are the first four private pictures, which are
the repeated ones where there are repetitions: how many drawings for their captions are copies by the one-third rule.
Beside that, how well membership inference (PIA) tells private from held-out pictures.
"""

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from fedgen_lab.shipped import shipped

SEEDS = (0, 1, 2)
LESSON = {
    "pictures": 32,
    "times": 16,
    "steps": 350,
    "rank": 16,
    "unique_captions": True,
    "clip": 0.0,
    "noise_multiplier": 0.0,
}
PIXELS = {
    "model": "ddpm",
    "steps": 700,
}  # the small pixel model takes about as long; it has no rank
POINTS = [
    LESSON | changes
    for changes in (
        {},
        {"times": 1},
        {"times": 4},
        {"times": 1, "pictures": 512},
        {"times": 1, "pictures": 8},
        {"steps": 100},
        {"rank": 4},
        {"clip": 1.0, "noise_multiplier": 0.5},
        {"unique_captions": False},
        {"times": 8},
        PIXELS,
        PIXELS | {"times": 1, "pictures": 512},
        {"times": 2},
        {"steps": 200},
    )
]
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


def judge_copies(trained, number=DRAWN, should_stop=None):
    """Draw from a `making.Trained`'s captions and judge the drawings: a `Judged`, or None when stopped.

    Canaries are not drawn and count for nothing here: the numbers are those of the other private pictures.
    """
    from fedgen_lab.memorization.distance import nearest
    from fedgen_lab.memorization.making import draw_copies
    from fedgen_lab.memorization.membership import membership
    from fedgen_lab.memorization.ratio import THIRD

    def stop_if_asked():
        if should_stop is not None and should_stop():
            raise _Stopped

    private, size = trained.private, trained.copying.pictures
    own = private.pictures.take(range(size))
    watched = np.arange(number) % min(WATCHED, size)
    others = (
        WATCHED + np.arange(number // 2) % max(1, size - WATCHED)
        if size > WATCHED
        else np.array([], dtype=int)
    )
    try:
        drawn, _ = draw_copies(
            trained,
            rows=np.r_[watched, others],
            seed=1000 * trained.copying.seed,
            on_step=stop_if_asked,
        )
    except _Stopped:
        return None
    # Held-out pictures stand beside the training pictures, so that the second nearest is not far for want of pictures.
    reference = torch.cat([own.images, private.held_out.images])
    two, first = nearest(drawn, reference, 2)
    ratios = two[:, 0] / np.maximum(two[:, 1], 1e-9)
    copies = (ratios < THIRD) & (first[:, 0] < size)
    _, rows = nearest(drawn, own.images)
    members = membership(trained.model, own, private.held_out, "PIA")
    return Judged(
        len(set(watched[copies[:number]])),
        float(copies[:number].mean()),
        float(copies[number:].mean()) if len(others) else None,
        float(np.median(ratios[:number])),
        members.auc,
        members.tpr,
        drawn,
        ratios,
        own.images,
        rows[:, 0],
    )


def measure(point, seed):
    """Run one point; returns the numbers of `Judged`."""
    from fedgen_lab.memorization.making import Copying, train_copying

    judged = judge_copies(train_copying(Copying(**point, seed=seed)))
    return {
        name: None if getattr(judged, name) is None else round(getattr(judged, name), 4)
        for name in NUMBERS
    }


def recorded_copying():
    """The recorded runs as a data frame: a row for each, with its model, its knobs, its seed and its numbers.

    `seen`: how often a watched picture was seen in training: steps x pictures a step x its share of the training set.
    """
    from fedgen_lab.memorization.making import BATCH

    file = shipped("sweeps") / "copying.json"
    points = json.loads(file.read_text(encoding="utf-8"))["points"] if file.is_file() else []
    frame = pd.DataFrame(
        [
            {"model": "lora"} | entry["point"] | {"seed": entry["seed"]} | entry["result"]
            for entry in points
        ],
        columns=["model", *LESSON, "seed", *NUMBERS],
    )
    in_all = frame["pictures"] + WATCHED * (frame["times"] - 1)
    return frame.assign(seen=BATCH * frame["steps"] * frame["times"] / in_all)
