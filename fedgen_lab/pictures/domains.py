"""Domains: labelled sets of pictures that differ from each other as clothing differs from script.

A domain is named by a string, which a scenario carries to every device: "digits", "idx:FOLDER", "sprites:glowing" ...
Each has ten labels and two parts that never overlap, one to train on and one held out. Labs 06 and 07; the domains of
HuSCF-GAN (arXiv 2507.12979) are MNIST, Fashion-MNIST, KMNIST and notMNIST.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from fedgen_lab.pictures import drawn, idx
from fedgen_lab.pictures.hub import hub_library

OFFLINE = ("digits", "letters", "garments", "runes")
SPRITES = (
    "star",
    "heart",
    "sun",
    "cloud",
    "phone",
    "rook",
    "note",
    "cross",
    "ring",
    "moon",
)  # the labels of sprites
NUM_LABELS = 10
DRAWN, DRAWN_HELD_OUT = (
    2_000,
    1_000,
)  # pictures when no number is asked for; there is no end of them
HELD_OUT_SHARE = 0.2  # of a set that comes in one part
_DIGIT_NAMES = tuple("0123456789")
_IDX_NAMES = {
    "mnist": _DIGIT_NAMES,
    "idx": _DIGIT_NAMES,
    "notmnist": tuple("ABCDEFGHIJ"),
    "fashion": (
        "T-shirt",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    ),
}
KNOWN = (
    *OFFLINE,
    *(f"{kind}:FOLDER" for kind in _IDX_NAMES),
    "hub:OWNER/NAME",
    "hub:OWNER/NAME#LABELS",
    "sprites:STYLE",
    "folder:PATH#COLUMN",
)


@dataclass(frozen=True)
class Domain:
    """N pictures of one kind with a label each.

    images: (N, C, H, W) uint8, C = 1 grey or 3 colour; labels: (N,) int64, 0..9; label_names: what the ten labels mean.

    Raises ValueError when shapes, types or lengths disagree.
    """

    name: str
    images: torch.Tensor
    labels: torch.Tensor
    label_names: tuple

    def __post_init__(self):
        shape = tuple(self.images.shape)
        if self.images.dtype != torch.uint8 or len(shape) != 4 or shape[1] not in (1, 3):
            raise ValueError(
                f"images must be a uint8 tensor of shape (N, 1 or 3, H, W); got {self.images.dtype} of shape {shape}."
            )
        if len(self.labels) != shape[0]:
            raise ValueError(
                f"one label belongs to each picture; got {shape[0]} and {len(self.labels)} labels."
            )
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(
            self.label_names
        ):
            raise ValueError(
                f"labels must lie in 0..{len(self.label_names) - 1}; those of {self.name!r} run from "
                f"{int(self.labels.min())} to {int(self.labels.max())}."
            )

    def __len__(self):
        return len(self.labels)

    def take(self, rows):
        """The pictures at `rows`, any sequence of integers, in that order."""
        rows = torch.as_tensor(np.asarray(rows)).long().flatten()
        return replace(self, images=self.images[rows], labels=self.labels[rows])

    def as_tensor(self):
        """All pictures as (N, C, H, W) float32 in [-1, 1], as the nets take them."""
        return self.images.float() / 127.5 - 1

    def resized(self, side):
        """The same pictures, `side` pixels wide and high: averaged when made smaller, smooth when made larger."""
        if isinstance(side, bool) or int(side) != side or side < 1:
            raise ValueError(f"side must be a whole number of pixels, at least 1; got {side!r}.")
        return (
            self
            if self.images.shape[-1] == side
            else replace(self, images=_scaled(self.images, int(side)))
        )


def load_domain(name, number=None, side=28, seed=0, held_out=False):
    """The domain of this name: `number` of its pictures, `side` pixels wide and high, all labels mixed.

    name: one of `OFFLINE`, which need no download: "digits" (scikit-learn's real handwritten ones), "letters" A-J,
        "garments" and "runes" (drawn; see `fedgen_lab.pictures.drawn`). Or, where KIND is mnist, fashion, notmnist or
        idx and says how labels are called, "KIND:FOLDER" for IDX files. "hub:OWNER/NAME" is a data set of the Hugging
        Face Hub whose labels stand in a column of class numbers (or in "#LABELS"). Colour: "sprites:STYLE", labelled by
        ten of their objects; "folder:PATH#COLUMN", captioned pictures (see `fedgen_lab.pictures.folders`) labelled by
        the ten most frequent values of a column; "&caption_file=...&file_column=...&text_column=..." may follow.
    number: None for all there are; of drawn pictures 2,000, or 1,000 held out.
    seed: what is drawn, or which pictures are taken and in which order.
    held_out: the other part, which shares no picture with the training part, whatever the seeds. A set that comes in
        one part is divided 4 : 1 within each label.

    Raises ValueError for a name of no known form (and lists the known ones), a number larger than the part, or a set
    that has not ten labels; FileNotFoundError, ConnectionError or ValueError where files can't be read.
    """
    if number is not None and (isinstance(number, bool) or int(number) != number or number < 1):
        raise ValueError(
            f"number must be a whole number of pictures, at least 1, or None for all; got {number!r}."
        )
    kind, _, where = name.partition(":")
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(int(held_out),)))
    if name in drawn.KINDS:
        return _drawn(name, number, seed, held_out).resized(side)
    if kind == "sprites" and where:
        return _sprites(name, where, number, seed, held_out).resized(side)
    if name == "digits":
        domain = _digits(held_out)
    elif kind in _IDX_NAMES and where:
        domain = _idx(name, kind, where, held_out)
    elif kind == "hub" and where:
        domain = _hub(name, where, held_out, side)
    elif kind == "folder" and where:
        domain = _folder(name, where, held_out, side)
    else:
        raise ValueError(f"There is no domain called {name!r}. Known are: {', '.join(KNOWN)}.")
    if number is not None and number > len(domain):
        raise ValueError(
            f"{name!r} has {len(domain):,} pictures in its {'held-out' if held_out else 'training'} part; "
            f"{number:,} were asked for. Ask for fewer."
        )
    return domain.take(rng.permutation(len(domain))[:number]).resized(side)


# -- each kind of domain --------------------------------------------------------------------------------------------
def _drawn(name, number, seed, held_out):
    labels, drawing = _drawn_labels(number, seed, held_out, key=OFFLINE.index(name))
    return Domain(
        name, drawn.draw(name, labels, drawing), torch.from_numpy(labels), drawn.KINDS[name]
    )


def _drawn_labels(number, seed, held_out, key):
    """As many of each label, in shuffled blocks of ten; and a seed sequence to draw them with."""
    number = (DRAWN_HELD_OUT if held_out else DRAWN) if number is None else number
    ordering, drawing = np.random.SeedSequence(seed, spawn_key=(key, int(held_out))).spawn(2)
    rng = np.random.default_rng(ordering)
    return np.concatenate([rng.permutation(NUM_LABELS) for _ in range(-(-number // NUM_LABELS))])[
        :number
    ], drawing


@lru_cache(maxsize=2)  # scikit-learn keeps them as text, which takes a while to read
def _digits(held_out):
    from sklearn.datasets import (
        load_digits,
    )  # Alpaydin and Kaynak 1998: 1,797 pictures by 43 writers, 8x8

    bunch = load_digits()
    images = torch.from_numpy((bunch.images * 255 / 16).round().astype(np.uint8))[
        :, None
    ]  # (1797, 1, 8, 8)
    images = F.pad(_scaled(images, 24), (2, 2, 2, 2))  # a rim, as around MNIST's
    return _one_part(
        Domain("digits", images, torch.from_numpy(bunch.target).long(), _DIGIT_NAMES), held_out
    )


def _idx(name, kind, folder, held_out):
    parts = [part for part in (False, True) if idx.has_part(folder, part)]
    images, labels = idx.read_part(folder, parts[0] if len(parts) == 1 else held_out)
    if images.shape[-1] != images.shape[-2]:
        raise ValueError(f"The pictures of {name!r} are {tuple(images.shape[-2:])}, not square.")
    _check_ten(name, labels.unique().tolist())
    domain = Domain(name, images, labels, _IDX_NAMES[kind])
    return _one_part(domain, held_out) if len(parts) == 1 else domain


def _sprites(name, style, number, seed, held_out):
    from fedgen_lab.pictures.sprites import draw_sprites

    labels, seeds = _drawn_labels(number, seed, held_out, key=len(OFFLINE))
    images = torch.empty((len(labels), 3, 32, 32), dtype=torch.uint8)
    for label, (word, child) in enumerate(zip(SPRITES, seeds.spawn(NUM_LABELS), strict=True)):
        rows, one = torch.from_numpy(labels == label), int(child.generate_state(1)[0])
        images[rows] = draw_sprites(int(rows.sum()), one, objects=(word,), styles=(style,)).images
    return Domain(name, images, torch.from_numpy(labels), SPRITES)


def _folder(name, where, held_out, side):
    from fedgen_lab.pictures.folders import read_folder

    path, _, column = where.partition("#")
    column, *options = column.split("&")
    options = dict(option.partition("=")[::2] for option in options)
    if not column or not set(options) <= {"caption_file", "file_column", "text_column"}:
        raise ValueError(f"{name!r} must read folder:PATH#COLUMN, where COLUMN holds the labels.")
    pictures = read_folder(path, size=side, **options)
    if column not in pictures.attributes:
        known = ", ".join(map(repr, pictures.attributes.columns)) or "none"
        raise ValueError(f"The pictures of {path} have no column {column!r}; they have {known}.")
    values = pictures.attributes[column].astype(str).str.strip()
    often = (
        values[values != ""]
        .value_counts(sort=False)
        .sort_values(ascending=False, kind="stable")[:NUM_LABELS]
        .index
    )
    _check_ten(name, often)
    kept = np.flatnonzero(values.isin(often))
    label_of = {value: label for label, value in enumerate(sorted(often))}
    labels = torch.tensor([label_of[value] for value in values.iloc[kept]])
    return _one_part(Domain(name, pictures.images[kept], labels, tuple(label_of)), held_out)


def _hub(name, where, held_out, side):
    datasets = hub_library()
    where, _, column = where.partition("#")
    try:
        splits = datasets.load_dataset(where)
    except (
        Exception
    ) as error:  # offline, unknown, gated and wrongly spelt look alike from here, in a dozen types
        raise ConnectionError(
            f"The data set {where!r} could not be fetched from the Hugging Face Hub ({type(error).__name__}: {error}). "
            f"Check its name and your connection, or use a domain that needs none: {', '.join(OFFLINE)}."
        ) from error
    in_two = {"train", "test"} <= set(splits)
    table = splits[
        "test" if in_two and held_out else "train" if "train" in splits else next(iter(splits))
    ]
    pictures = [
        key for key, feature in table.features.items() if isinstance(feature, datasets.Image)
    ]
    classes = [
        key for key, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)
    ]
    column = column or next(iter(classes), "")
    if not pictures or column not in classes:
        raise ValueError(
            f"The data set {where!r} needs a column of images and one of class numbers; its columns are "
            f"{', '.join(table.column_names)}. Name the one with the labels as hub:{where}#COLUMN."
        )
    label_names = tuple(table.features[column].names)
    _check_ten(name, label_names)
    table = table.filter(lambda label: label is not None and label >= 0, input_columns=column)
    first = table[0][pictures[0]]
    mode = "L" if first.mode in ("1", "L") else "RGB"
    if (
        first.width == first.height <= 64
    ):  # small pictures are averaged like all others, large ones made small at once
        side = first.width
    images = np.stack(
        [np.asarray(image.convert(mode).resize((side, side))) for image in table[pictures[0]]]
    )
    images = (
        torch.from_numpy(images.reshape(len(table), side, side, -1))
        .permute(0, 3, 1, 2)
        .contiguous()
    )
    domain = Domain(name, images, torch.tensor(table[column]).long(), label_names)
    return domain if in_two else _one_part(domain, held_out)


# -- shared ---------------------------------------------------------------------------------------------------------
def _one_part(domain, held_out):
    """The training or the held-out part of a set that comes in one: the same division for every seed."""
    rng, chosen = np.random.default_rng(0), []
    for label in range(NUM_LABELS):
        rows = rng.permutation(np.flatnonzero(domain.labels.numpy() == label))
        number = round(HELD_OUT_SHARE * len(rows))
        chosen.append(rows[:number] if held_out else rows[number:])
    return domain.take(np.sort(np.concatenate(chosen)))


def _check_ten(name, labels):
    if len(labels) != NUM_LABELS:
        raise ValueError(
            f"A domain must have {NUM_LABELS} labels, as the nets have; {name!r} has {len(labels)}. Choose another."
        )


def _scaled(images, side):
    """(N, C, H, W) uint8 to (N, C, side, side) uint8."""
    mode = (
        {"mode": "area"} if side < images.shape[-1] else {"mode": "bicubic", "align_corners": False}
    )
    parts = [
        F.interpolate(part.float(), (side, side), **mode).round().clamp(0, 255)
        for part in images.split(4096)
    ]
    return torch.cat([part.to(torch.uint8) for part in parts]) if parts else images
