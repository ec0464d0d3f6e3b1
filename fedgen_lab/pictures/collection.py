"""Sets of pictures: the one thing every source of pictures returns and every experiment takes.

Drawn sprites, a learner's folder and a Hub data set all become `Pictures`, so no later room asks where they came from;
sets with labels in place of captions are a `domains.Domain`. Taught in lab 00 (what is in the box), used by all labs.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from fedgen_lab.pictures.squares import square

NAMED = 5  # of what was left out, so many are named in a warning


class PictureSet:
    """What every set of pictures can do.

    images: (N, C, H, W) uint8, a quarter of the memory of float32. `known` gives what else is known of some rows.
    """

    def __len__(self):
        return len(self.images)

    def as_tensor(self):
        """All pictures as (N, C, H, W) float32 in [-1, 1], as the nets take them."""
        return self.images.float() / 127.5 - 1

    def take(self, indices):
        """The set of the pictures at `indices` (any sequence, array or tensor of integers), in that order.

        Raises ValueError when an index lies outside 0..N-1.
        """
        rows = np.asarray(indices, int).ravel()
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise ValueError(
                f"indices must lie in 0..{len(self) - 1}; got values from {rows.min()} to {rows.max()}. "
                "Count pictures from 0."
            )
        return replace(self, images=self.images[rows], **self.known(rows))


@dataclass(frozen=True)
class Pictures(PictureSet):
    """N pictures of one size, a caption for each, and a table of what is known about each.

    images: (N, 3, H, W) uint8, RGB in 0..255.
    captions: N strings, the text a picture is trained with.
    attributes: N rows, one column per attribute: object, colour, background and style for sprites, a folder's own
        columns otherwise. Its index is always 0..N-1.
    """

    images: torch.Tensor
    captions: list[str]
    attributes: pd.DataFrame

    def known(self, rows):
        """The captions and attributes of these rows."""
        attributes = self.attributes.iloc[rows].reset_index(drop=True)
        return {"captions": [self.captions[row] for row in rows], "attributes": attributes}


# -- files of any kind become pictures ------------------------------------------------------------------------------
class Candidate(NamedTuple):
    """An image file that may become a picture: its name, its caption, its attributes, and how to get its bytes."""

    name: str
    caption: str
    attributes: dict
    read: Callable[[], bytes]


def text_of(value):
    """A caption or a file's name as text: of a list its first text, "" for what is none (null, NaN, false)."""
    if isinstance(value, list):
        value = next(filter(None, map(text_of, value)), None)
    is_none = value is None or isinstance(value, bool | dict) or value != value
    return "" if is_none else str(value).strip()


def gather(candidates, number, size, skipped, source, searched):
    """Square `Pictures` of all candidates (at most `number`) that can be used; the others are named in a warning.

    skipped: "name: reason" of what was left out before; `attributes.attrs["skipped"]` lists these and those left out
        here. searched: a sentence for where not one picture can be used.
    Raises ValueError there.
    """
    images = np.empty((number, 3, size, size), np.uint8)
    captions, rows = [], []
    for candidate in candidates:
        try:
            _check_unicode(candidate.caption, *candidate.attributes.values())
            images[len(rows)] = square(candidate.read(), size)
        except Exception as error:  # of a dozen types; the reason is kept, not swallowed
            skipped.append(f"{candidate.name}: {error or type(error).__name__}")
        else:
            captions.append(candidate.caption)
            rows.append(candidate.attributes)
    # A name that is no Unicode could not be printed.
    searched, *skipped = (
        words.encode("utf-8", "backslashreplace").decode() for words in (searched, *skipped)
    )
    reasons = ""
    if skipped:
        unnamed = f"; and {len(skipped) - NAMED} more" if len(skipped) > NAMED else ""
        reasons = f"Skipped {len(skipped)}: {'; '.join(skipped[:NAMED])}{unnamed}."
    if not rows:
        raise ValueError(f"No usable picture in {source}. {searched} {reasons}")
    if skipped:
        warnings.warn(f"Kept {len(rows)} pictures of {source}. {reasons}", stacklevel=3)
    attributes = pd.DataFrame(rows, index=range(len(rows)))
    attributes.attrs["skipped"] = skipped
    return Pictures(torch.from_numpy(images[: len(rows)]), captions, attributes)


def _check_unicode(*values):
    """Refuses half a character (a lone surrogate), which no tokenizer takes."""
    try:
        " ".join(map(str, values)).encode()
    except UnicodeEncodeError:
        raise ValueError(
            "its name, caption or attributes are not Unicode (a lone surrogate); write them again in UTF-8"
        ) from None
