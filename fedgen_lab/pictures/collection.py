"""A set of captioned pictures: the one thing every source of pictures returns and every experiment takes.

Drawn sprites, a learner's folder and a Hub data set all become `Pictures`, so no later room asks where they came from.
Taught in lab 00 (what is in the box) and used by all labs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch


@dataclass(frozen=True)
class Pictures:
    """N pictures of one size, a caption for each, and a table of what is known about each.

    images: (N, 3, H, W) uint8, RGB in 0..255 (a quarter of the memory of float32).
    captions: N strings, the text a picture is trained with.
    attributes: N rows, one column per attribute: object, colour, background and style for sprites, a folder's own
        columns otherwise. Its index is always 0..N-1.

    Raises ValueError when shapes, types or lengths disagree.
    """

    images: torch.Tensor
    captions: list[str]
    attributes: pd.DataFrame

    def __post_init__(self) -> None:
        shape = tuple(self.images.shape)
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or shape[1] != 3:
            raise ValueError(
                f"images must be a uint8 tensor of shape (N, 3, H, W); got {self.images.dtype} of shape {shape}. "
                "Convert RGB pictures to uint8 and put the channels second."
            )
        if not (len(self.captions) == len(self.attributes) == shape[0]):
            raise ValueError(
                f"one caption and one row of attributes belong to each picture; got {shape[0]} pictures, "
                f"{len(self.captions)} captions and {len(self.attributes)} rows. Make the three equally long."
            )
        object.__setattr__(self, "captions", list(self.captions))
        object.__setattr__(self, "attributes", self.attributes.reset_index(drop=True))

    def __len__(self) -> int:
        return len(self.captions)

    def take(self, indices: Sequence[int]) -> Pictures:
        """The pictures at `indices` (any sequence, array or tensor of integers), in that order.

        Raises ValueError when an index lies outside 0..N-1.
        """
        chosen = torch.as_tensor(indices).long().flatten()
        if len(chosen) and not (0 <= int(chosen.min()) and int(chosen.max()) < len(self)):
            raise ValueError(
                f"indices must lie in 0..{len(self) - 1}; got values from {int(chosen.min())} to {int(chosen.max())}. "
                "Count pictures from 0."
            )
        rows = chosen.tolist()
        return Pictures(
            self.images[chosen], [self.captions[i] for i in rows], self.attributes.iloc[rows]
        )

    def as_tensor(self) -> torch.Tensor:
        """All pictures as (N, 3, H, W) float32 in [-1, 1], which is what the diffusion model's VAE takes."""
        return self.images.float() / 127.5 - 1
