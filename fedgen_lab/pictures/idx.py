"""Pictures and labels in IDX files, the format of MNIST and of the sets made in its image; plain or .gz.

Used by labs 06 and 07 through `fedgen_lab.pictures.domains`. Format: http://yann.lecun.com/exdb/mnist (archived).
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch

PARTS = {False: "train", True: "t10k"}  # held out or not
DIMENSIONS = {"images": 3, "labels": 1}
_UNSIGNED_BYTE = 8  # third byte of the magic number; the fourth is the number of dimensions
_LARGEST = 2**30  # bytes that one file may unpack to


def parts_in(folder):
    """Of which parts the folder holds pictures: False for the training part, True for the held-out one."""
    return [held_out for held_out in PARTS if _path(folder, held_out, "images")]


def read_part(folder, held_out):
    """The pictures (N, 1, H, W) uint8 and labels (N,) int64 of one part: train-* files, or t10k-* when held out.

    Raises FileNotFoundError where folder or files are not there, and ValueError, naming the file, where one is no IDX
    file, is cut short or too long, or where pictures and labels do not belong together.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no folder at {folder} (looked from {Path.cwd()}). Check the path."
        )
    arrays = []
    for kind, dimensions in DIMENSIONS.items():
        path = _path(folder, held_out, kind)
        if path is None:
            names = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
            name = f"{PARTS[held_out]}-{kind}-idx{dimensions}-ubyte"
            raise FileNotFoundError(f"{folder} holds no {name} or {name}.gz; found {names}.")
        arrays.append(torch.from_numpy(read_idx(path, dimensions)))
    images, labels = arrays
    if len(images) != len(labels):
        raise ValueError(
            f"{folder} holds {len(images)} pictures but {len(labels)} labels in its part {PARTS[held_out]!r}. "
            "Use files of one and the same set."
        )
    return images[:, None], labels.long()


def read_idx(path, dimensions):
    """The array of unsigned bytes in one IDX file, plain or gzipped, with this number of dimensions.

    Raises ValueError, naming the file, unless the header fits and is followed by exactly as many bytes as it says.
    """
    with path.open("rb") as file:
        is_zipped = file.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if is_zipped else path.open("rb") as file:
            # Four bytes say that it is an IDX file of bytes, and in how many dimensions.
            magic = file.read(4)
            if magic != bytes((0, 0, _UNSIGNED_BYTE, dimensions)):
                raise ValueError(
                    f"{path} is no IDX file of bytes in {dimensions} dimension{'s' * (dimensions > 1)}: it begins with "
                    f"{magic.hex(' ') or 'nothing'}, not 00 00 08 {dimensions:02x}. Download it again."
                )
            # Then the length of each dimension, four bytes each.
            header = file.read(4 * dimensions)
            if len(header) < 4 * dimensions:
                raise EOFError("its header is incomplete")
            shape = np.frombuffer(header, ">u4").tolist()
            number = math.prod(shape)
            if number > _LARGEST:
                raise ValueError(
                    f"The header of {path} tells of {number:,} bytes, which can't be. Download it again."
                )
            # Then the bytes themselves, and nothing more.
            content = file.read(number + 1)
            if len(content) != number:
                there_are = "more" if len(content) > number else f"only {len(content):,}"
                raise EOFError(f"its header tells of {number:,} bytes, it has {there_are}")
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is cut short or damaged ({error}). Download it again.") from error
    return np.frombuffer(content, np.uint8).reshape(shape).copy()


def _path(folder, held_out, kind):
    """The file of this kind, by any of the names that it goes by; None where there is none."""
    for end in ("", ".gz"):
        for mark in "-.":
            name = f"{PARTS[held_out]}-{kind}{mark}idx{DIMENSIONS[kind]}-ubyte{end}"
            if (folder / name).is_file():
                return folder / name
    return None
