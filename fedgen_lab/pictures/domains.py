"""Domains: labelled sets of pictures that differ from each other as clothing differs from script.

A domain is named by a string, which a scenario carries to every device: "digits", "idx:FOLDER", "sprites:glowing" ...
Each has ten labels and two parts that never overlap, one to train on and one held out. Labs 06 and 07; the domains of
HuSCF-GAN (arXiv 2507.12979) are MNIST, Fashion-MNIST, KMNIST and notMNIST.
"""

from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from fedgen_lab.knobs import check_whole
from fedgen_lab.partition import in_shuffled_blocks
from fedgen_lab.pictures import drawn, idx
from fedgen_lab.pictures.collection import PictureSet
from fedgen_lab.pictures.folders import read_folder
from fedgen_lab.pictures.hub import load_dataset
from fedgen_lab.pictures.sprites import draw_sprites

OFFLINE = ("digits", "letters", "garments", "runes")
# The labels of sprites.
SPRITES = ("star", "heart", "sun", "cloud", "phone", "rook", "note", "cross", "ring", "moon")
NUM_LABELS = 10
DRAWN = 2_000  # pictures when no number is asked for; there is no end of them
DRAWN_HELD_OUT = 1_000
HELD_OUT_SHARE = 0.2  # of a set that comes in one part
BATCH = 4096  # pictures that are scaled at a time
# What the labels of IDX files mean, by the kind that their name begins with.
_IDX_NAMES = {
    "mnist": ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9"),
    "idx": ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9"),
    "notmnist": ("A", "B", "C", "D", "E", "F", "G", "H", "I", "J"),
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
    "digits",
    "letters",
    "garments",
    "runes",
    "mnist:FOLDER",
    "idx:FOLDER",
    "notmnist:FOLDER",
    "fashion:FOLDER",
    "hub:OWNER/NAME",
    "hub:OWNER/NAME#LABELS",
    "sprites:STYLE",
    "folder:PATH#COLUMN",
)


@dataclass(frozen=True)
class Domain(PictureSet):
    """N pictures of one kind with a label each.

    images: (N, C, H, W) uint8, C = 1 grey or 3 colour; labels: (N,) int64, 0..9; label_names: what the ten labels mean.
    """

    name: str
    images: torch.Tensor
    labels: torch.Tensor
    label_names: tuple

    def known(self, rows):
        """The labels of these rows."""
        return {"labels": self.labels[rows]}

    def resized(self, side):
        """The same pictures, `side` pixels wide and high: averaged when made smaller, smooth when made larger."""
        check_whole("side", side)
        if self.images.shape[-1] == side:
            return self
        mode = "area" if side < self.images.shape[-1] else "bicubic"
        scaled = []
        for batch in self.images.split(BATCH):
            batch = F.interpolate(batch.float(), int(side), mode=mode)
            scaled.append(batch.round().clamp(0, 255).byte())
        return replace(self, images=torch.cat(scaled))


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
    if number is not None:  # which stands for all there are
        check_whole("number", number)
    kind, _, source = name.partition(":")
    # What is drawn is drawn in the number and the order that were asked for.
    if name in drawn.KINDS or (kind == "sprites" and source):
        return _drawn(name, source, number, seed, held_out).resized(side)
    # What is read comes whole.
    if name == "digits":
        domain, is_one_part = _digits(), True
    elif kind in _IDX_NAMES and source:
        domain, is_one_part = _idx(name, kind, source, held_out)
    elif kind == "hub" and source:
        domain, is_one_part = _hub(name, source, held_out, side)
    elif kind == "folder" and source:
        domain, is_one_part = _folder(name, source, side), True
    else:
        raise ValueError(f"There is no domain called {name!r}. Known are: {', '.join(KNOWN)}.")
    lowest, highest = domain.labels.aminmax()
    if highest >= NUM_LABELS:
        raise ValueError(
            f"labels must lie in 0..9; those of {name!r} run from {lowest} to {highest}."
        )
    if is_one_part:
        domain = _part(domain, held_out)
    if number is not None and number > len(domain):
        raise ValueError(
            f"{name!r} has {len(domain):,} pictures in its {'held-out' if held_out else 'training'} part; "
            f"{number:,} were asked for. Ask for fewer."
        )
    # Of that, `number` pictures in an order by the seed.
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(int(held_out),)))
    return domain.take(rng.permutation(len(domain))[:number]).resized(side)


# -- each kind of domain --------------------------------------------------------------------------------------------
def _drawn(name, style, number, seed, held_out):
    number = number or (DRAWN_HELD_OUT if held_out else DRAWN)
    key = len(OFFLINE) if style else OFFLINE.index(name)
    ordering, drawing = np.random.SeedSequence(seed, spawn_key=(key, int(held_out))).spawn(2)
    labels = in_shuffled_blocks(number, NUM_LABELS, np.random.default_rng(ordering))
    if style:
        images, label_names = _sprites(style, labels, drawing), SPRITES
    else:
        images, label_names = drawn.draw(name, labels, drawing), drawn.KINDS[name]
    return Domain(name, images, torch.from_numpy(labels), label_names)


def _sprites(style, labels, drawing):
    """A sprite for each label, (N, 3, 32, 32), whose object is that label's."""
    images = torch.empty((len(labels), 3, 32, 32), dtype=torch.uint8)
    for label, seeds in enumerate(drawing.spawn(NUM_LABELS)):
        rows = np.flatnonzero(labels == label)
        seed = int(seeds.generate_state(1)[0])
        sprites = draw_sprites(len(rows), seed, objects=[SPRITES[label]], styles=[style])
        images[rows] = sprites.images
    return images


@lru_cache  # scikit-learn keeps them as text, which takes a while to read
def _digits():
    from sklearn.datasets import load_digits  # Alpaydin and Kaynak 1998: by 43 writers, 8x8

    bunch = load_digits()
    grey = (bunch.images * 255 / 16).round().astype(np.uint8)  # (1797, 8, 8)
    images, labels = torch.from_numpy(grey)[:, None], torch.from_numpy(bunch.target).long()
    digits = Domain("digits", images, labels, _IDX_NAMES["mnist"]).resized(24)
    return replace(digits, images=F.pad(digits.images, (2, 2, 2, 2)))  # with MNIST's rim


def _idx(name, kind, folder, held_out):
    folder = Path(folder).expanduser()
    present = idx.parts_in(folder)
    is_one_part = len(present) == 1
    images, labels = idx.read_part(folder, present[0] if is_one_part else held_out)
    if images.shape[-1] != images.shape[-2]:
        raise ValueError(f"The pictures of {name!r} are {tuple(images.shape[-2:])}, not square.")
    _check_ten(name, labels.unique())
    return Domain(name, images, labels, _IDX_NAMES[kind]), is_one_part


def _folder(name, source, side):
    # What the name says: path, column and options.
    path, _, column = source.partition("#")
    column, *options = column.split("&")
    options = dict(option.partition("=")[::2] for option in options)
    if not column or not set(options) <= {"caption_file", "file_column", "text_column"}:
        raise ValueError(f"{name!r} must read folder:PATH#COLUMN, where COLUMN holds the labels.")
    pictures = read_folder(path, size=side, **options)
    if column not in pictures.attributes:
        columns = ", ".join(map(repr, pictures.attributes.columns)) or "none"
        raise ValueError(f"The pictures of {path} have no column {column!r}; they have {columns}.")
    # The ten most frequent values become labels; pictures of other values are left out.
    values = pictures.attributes[column].astype(str).str.strip()
    frequent = dict(Counter(values[values != ""]).most_common(NUM_LABELS))
    label_names = tuple(sorted(frequent))
    _check_ten(name, label_names)
    kept = np.flatnonzero(values.isin(label_names))
    labels = torch.tensor([label_names.index(value) for value in values.iloc[kept]])
    return Domain(name, pictures.images[kept], labels, label_names)


def _hub(name, source, held_out, side):
    source, _, column = source.partition("#")
    remedy = f", or use a domain that needs none: {', '.join(OFFLINE)}."
    datasets, splits = load_dataset(source, remedy)
    # A set with a test split comes in two parts, any other in one.
    is_one_part = not {"train", "test"} <= set(splits)
    split = "train" if "train" in splits else next(iter(splits))
    table = splits["test" if held_out and not is_one_part else split]
    # Which column holds the pictures, and which the labels?
    features = table.features.items()
    images = [key for key, feature in features if isinstance(feature, datasets.Image)]
    classes = [key for key, feature in features if isinstance(feature, datasets.ClassLabel)]
    column = column or next(iter(classes), "")
    if not images or column not in classes:
        raise ValueError(
            f"The data set {source!r} needs a column of images and one of class numbers; its columns are "
            f"{', '.join(table.column_names)}. Name the one with the labels as hub:{source}#COLUMN."
        )
    label_names = tuple(table.features[column].names)
    _check_ten(name, label_names)
    table = table.filter(lambda label: label is not None and label >= 0, input_columns=column)
    # All pictures as the first one is: grey or in colour; small ones stay as they are, to be averaged like all others.
    first = table[0][images[0]]
    mode = "L" if first.mode in ("1", "L") else "RGB"
    if first.width == first.height <= 64:
        side = first.width
    pixels = [np.atleast_3d(image.convert(mode).resize((side, side))) for image in table[images[0]]]
    pictures = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)  # (N, C, side, side)
    pictures = pictures.contiguous()
    labels = torch.tensor(table[column]).long()
    return Domain(name, pictures, labels, label_names), is_one_part


# -- shared ---------------------------------------------------------------------------------------------------------
def _part(domain, held_out):
    """The training or the held-out part of a set that comes in one: the same division for every seed."""
    rng = np.random.default_rng(0)
    chosen = []
    for label in range(NUM_LABELS):
        rows = rng.permutation(np.flatnonzero(domain.labels == label))
        number = round(HELD_OUT_SHARE * len(rows))
        chosen.extend(rows[:number] if held_out else rows[number:])
    return domain.take(sorted(chosen))


def _check_ten(name, labels):
    if len(labels) != NUM_LABELS:
        raise ValueError(
            f"A domain must have {NUM_LABELS} labels, as the nets have; {name!r} has {len(labels)}. Choose another."
        )
