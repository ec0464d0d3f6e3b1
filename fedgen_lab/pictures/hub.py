"""A captioned data set of the Hugging Face Hub, by name, becomes `Pictures`.

For a learner who is online and wants more pictures than the lab ships (lab 03's second tab, "Your own pictures").
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import torch

from fedgen_lab.pictures.collection import Pictures
from fedgen_lab.pictures.squares import square


def from_hub(name, split="train", image_column="image", text_column="text", size=32) -> Pictures:
    """Download (or load from the cache) a Hub data set and make square pictures of it.

    name: OWNER/NAME on https://huggingface.co/datasets, or a local folder in the Hub's layout.
    split: a split, or a slice of one: "train[:500]" keeps the first 500 pictures.
    image_column, text_column: where the image and its caption are. A column of class numbers gives the classes' names.
    size: width and height in pixels; see `fedgen_lab.pictures.squares.square`.

    Columns of plain values become attributes. Unusable pictures are skipped, warned of and listed as in `read_folder`.

    Raises ModuleNotFoundError without the library datasets, ConnectionError where the data set cannot be fetched, and
    ValueError where a split or column does not exist or not one picture can be used.
    """
    datasets = hub_library()
    if isinstance(size, bool) or int(size) != size or size < 1:
        raise ValueError(f"size must be a whole number of pixels, at least 1; got {size!r}.")
    try:
        table = datasets.load_dataset(str(name), split=split)
    except ValueError as error:  # an unknown split or an unreadable layout
        raise ValueError(f"The data set {name!r} has no usable split {split!r}: {error}") from error
    except (
        Exception
    ) as error:  # offline, unknown, gated and wrongly spelt look alike from here, in a dozen types
        raise ConnectionError(
            f"The data set {name!r} could not be fetched from the Hugging Face Hub "
            f"({type(error).__name__}: {_first_line(error)}). Check its name and your connection; "
            "or download its pictures on another machine and use read_folder on the folder."
        ) from error
    for role, column in (("image_column", image_column), ("text_column", text_column)):
        if column not in table.column_names:
            raise ValueError(
                f"The data set {name!r} has no column {column!r}; it has {', '.join(map(repr, table.column_names))}. "
                f"Name the right one with {role}=."
            )
    if not isinstance(table.features[image_column], datasets.Image):
        raise ValueError(
            f"Column {image_column!r} of {name!r} holds no images but {table.features[image_column]}."
        )
    table = table.cast_column(
        image_column, datasets.Image(decode=False)
    )  # bytes: a broken one must not end the loop
    plain = [
        c
        for c in table.column_names
        if c not in (image_column, text_column) and _is_plain(table.features[c])
    ]
    images = np.empty((len(table), 3, size, size), np.uint8)
    captions, rows, skipped = [], [], []
    for number, row in enumerate(table):
        image = row[image_column] or {}
        label = image.get("path") or f"row {number}"
        caption = str(_value(table.features[text_column], row[text_column]) or "").strip()
        try:
            if not caption:
                raise ValueError("no caption")
            content = image.get("bytes") or open(label, "rb").read()
            images[len(rows)] = square(content, size)
        except (ValueError, OSError) as error:
            skipped.append(f"{label}: {error}")
        else:
            captions.append(caption)
            rows.append({column: _value(table.features[column], row[column]) for column in plain})
    count = (
        f"Skipped {len(skipped)}: {'; '.join(skipped[:5])}{' ...' if len(skipped) > 5 else '.'}"
        if skipped
        else ""
    )
    if not rows:
        raise ValueError(
            f"No usable picture in {name!r}, split {split!r}, of {len(table)} rows. {count}"
        )
    if skipped:
        warnings.warn(f"Kept {len(rows)} pictures of {name!r}. {count}", stacklevel=2)
    attributes = pd.DataFrame(rows, columns=plain, index=range(len(rows)))
    attributes.attrs["skipped"] = skipped
    return Pictures(torch.from_numpy(images[: len(rows)]), captions, attributes)


def hub_library():
    """The library that reads the Hub: no part of the course, for it takes 100 MB and an open lab 45 MB more.

    Raises ModuleNotFoundError where it isn't installed.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Pictures of the Hugging Face Hub need the library datasets. Install it with pip install 'datasets>=4,<5' "
            "and restart the kernel; or download the pictures and use a folder."
        ) from error
    return datasets


def _is_plain(feature) -> bool:
    return getattr(feature, "dtype", None) in (
        "string",
        "large_string",
        "bool",
        "float32",
        "float64",
    ) or str(getattr(feature, "dtype", "")).startswith(("int", "uint"))


def _value(feature, value):
    """The name of a class instead of its number; everything else as it is."""
    is_class = hasattr(feature, "int2str") and value is not None and value >= 0
    return feature.int2str(value) if is_class else value


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no reason given"])[0]
