"""The benchmark of detectors: training pictures changed in ways that a person sees through, beside fresh pictures.

Lab 09. A detector is worth something if it flags the changed copies and leaves fresh pictures alone; so both are
counted, for calibrated novelty and for PDFed's Q-N score (arXiv 2409.18245), on the same pictures.
"""

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from fedgen_lab.memorization.calibrated import LEVEL, binomial_share, calibrated_novelty
from fedgen_lab.memorization.distance import SHIFT, as_unit

EDITS = ("none", "shifted", "mirrored", "more contrast", "less contrast", "noised", "blended")
CHANGE, NOISE, BLEND = (
    0.2,
    0.1,
    0.2,
)  # of contrast; sigma in units of the pixel range; the other picture's part


def edited(images, edit, others=None, seed=0):
    """Copies of (N, C, H, W) pictures, changed in one way of `EDITS`: float in [-1, 1], as a generator gives them.

    "shifted": by up to 2 pixels either way, not 0, the border repeated; "mirrored"; "more" or "less contrast": by 20 %
    around mid-grey, cut off at black and white; "noised": normal noise of 0.1 times the pixel range, cut off too;
    "blended": 80 % of the picture and 20 % of one of `others` (M, C, H, W), drawn at random.
    Raises ValueError for an unknown edit, or a blend without others or with others of another size.
    """
    if edit not in EDITS or (edit == "blended" and others is None):
        raise ValueError(
            f"edit must be one of {', '.join(EDITS)}, and blended needs `others`; got {edit!r}."
        )
    rng, unit = (
        np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(EDITS.index(edit),))),
        as_unit(images),
    )
    if edit == "shifted":
        shifts = [
            (dy, dx)
            for dy in range(2 * SHIFT + 1)
            for dx in range(2 * SHIFT + 1)
            if (dy, dx) != (SHIFT, SHIFT)
        ]
        padded, (height, width) = F.pad(unit, [SHIFT] * 4, mode="replicate"), unit.shape[-2:]
        drawn = [shifts[i] for i in rng.integers(len(shifts), size=len(unit))]
        unit = torch.stack(
            [of[:, y : y + height, x : x + width] for of, (y, x) in zip(padded, drawn, strict=True)]
        )
    elif edit == "mirrored":
        unit = unit.flip(-1)
    elif edit in ("more contrast", "less contrast"):
        unit = (unit - 0.5) * (1 + CHANGE if edit == "more contrast" else 1 - CHANGE) + 0.5
    elif edit == "noised":
        unit = unit + torch.from_numpy(rng.normal(0, NOISE, unit.shape)).float()
    elif edit == "blended":
        others = as_unit(others, "others")
        if others.shape[1:] != unit.shape[1:]:
            raise ValueError(
                f"pictures can be blended with `others` of their size; got {tuple(unit.shape[1:])} and "
                f"{tuple(others.shape[1:])} (channels, height, width). Resize one side."
            )
        unit = (1 - BLEND) * unit + BLEND * others[rng.integers(len(others), size=len(unit))]
    return 2 * unit.clamp(0, 1) - 1


def detected(training, held_out, fresh, copies=100, level=LEVEL, seed=0, with_qn=True, **settings):
    """How many fresh pictures and how many changed copies each detector flags: a table with a row for each.

    training, held_out, fresh: pictures of one distribution, (N, C, H, W). Of each edit there are `copies` training
    pictures, drawn at random; the others to blend with are fresh ones.
    Columns: "pictures" ("fresh", or the edit), "number"; "calibrated", "low", "high": share flagged and its 95 %
    interval; with_qn: "qn_threshold", the share under Q-N's class threshold (eq. 5 alone), and "qn_confirmed", the
    share that its verifier confirms, without classes. settings: of `calibrated_novelty`.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(len(EDITS),)))
    chosen = torch.as_tensor(training)[torch.from_numpy(rng.permutation(len(training))[:copies])]
    sets = {"fresh": 2 * as_unit(fresh, "fresh pictures") - 1}
    sets |= {edit: edited(chosen, edit, fresh, seed) for edit in EDITS}
    pool, names = (
        torch.cat(list(sets.values())),
        np.repeat(list(sets), [len(part) for part in sets.values()]),
    )
    found = calibrated_novelty(pool, training, held_out, level, **settings)
    columns = {}
    if with_qn:
        from fedgen_lab.memorization.qn import confirmed
        from fedgen_lab.memorization.verifier import CONFIRMED

        matches = confirmed(pool, training)
        columns = {
            "qn_threshold": matches.under_threshold,
            "qn_confirmed": matches.score > CONFIRMED,
        }
    rows = []
    for name in sets:
        share = binomial_share(found.flagged[names == name])
        row = {"pictures": name, "number": int((names == name).sum()), "calibrated": share.estimate}
        row |= {"low": share.low, "high": share.high}
        rows.append(
            row | {column: float(flags[names == name].mean()) for column, flags in columns.items()}
        )
    return pd.DataFrame(rows)
