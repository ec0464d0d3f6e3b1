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

from fedgen_lab.knobs import check_whole
from fedgen_lab.pictures import drawn, idx
from fedgen_lab.pictures.collection import PictureSet
from fedgen_lab.pictures.folders import read_folder
from fedgen_lab.pictures.hub import load_dataset
from fedgen_lab.pictures.sprites import draw_sprites

OFFLINE = ("digits", "letters", "garments", "runes")
# The labels of sprites.
SPRITES = ("star", "heart", "sun", "cloud", "phone", "rook", "note", "cross", "ring", "moon")
NUM_LABELS = 10
DRAWN, DRAWN_HELD_OUT = (
    2_000,
    1_000,
)  # pictures when no number is asked for; there is no end of them
HELD_OUT_SHARE = 0.2  # of a set that comes in one part
BATCH = 4096  # pictures that are scaled at a time
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
class Domain(PictureSet):
    """N pictures of one kind with a label each.

    images: (N, C, H, W) uint8, C = 1 grey or 3 colour; labels: (N,) int64, 0..9; label_names: what the ten labels mean.

    Raises ValueError when shapes, types or lengths disagree.
    """

    name: str
    images: torch.Tensor
    labels: torch.Tensor
    label_names: tuple

    channels = (1, 3)

    def __post_init__(self):
        self._check_images()
        if len(self.labels) != len(self):
            raise ValueError(
                f"one label belongs to each picture; got {len(self)} and {len(self.labels)} labels."
            )
        if not len(self):
            return
        lowest, highest, last = (
            int(self.labels.min()),
            int(self.labels.max()),
            len(self.label_names) - 1,
        )
        if not 0 <= lowest <= highest <= last:
            raise ValueError(
                f"labels must lie in 0..{last}; those of {self.name!r} run from {lowest} to {highest}."
            )

    def take(self, indices):
        """The pictures at `indices`, any sequence of integers, in that order. Raises ValueError for one outside."""
        rows = self._rows(indices)
        return replace(self, images=self.images[rows], labels=self.labels[rows])

    def resized(self, side):
        """The same pictures, `side` pixels wide and high: averaged when made smaller, smooth when made larger."""
        check_whole("side", side)
        if self.images.shape[-1] == side:
            return self
        return replace(self, images=_scaled(self.images, int(side)))


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
    if name in drawn.KINDS:
        return _drawn(name, number, seed, held_out).resized(side)
    if kind == "sprites" and source:
        return _sprites(name, source, number, seed, held_out).resized(side)
    # What is read comes whole.
    if name == "digits":
        domain = _digits(held_out)
    elif kind in _IDX_NAMES and source:
        domain = _idx(name, kind, source, held_out)
    elif kind == "hub" and source:
        domain = _hub(name, source, held_out, side)
    elif kind == "folder" and source:
        domain = _folder(name, source, held_out, side)
    else:
        raise ValueError(f"There is no domain called {name!r}. Known are: {', '.join(KNOWN)}.")
    if number is not None and number > len(domain):
        raise ValueError(
            f"{name!r} has {len(domain):,} pictures in its {'held-out' if held_out else 'training'} part; "
            f"{number:,} were asked for. Ask for fewer."
        )
    # Of that, `number` pictures in an order by the seed.
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(int(held_out),)))
    return domain.take(rng.permutation(len(domain))[:number]).resized(side)


# -- each kind of domain --------------------------------------------------------------------------------------------
def _drawn(name, number, seed, held_out):
    labels, drawing = _drawn_labels(number, seed, held_out, key=OFFLINE.index(name))
    images = drawn.draw(name, labels, drawing)
    return Domain(name, images, torch.from_numpy(labels), drawn.KINDS[name])


def _sprites(name, style, number, seed, held_out):
    labels, drawing = _drawn_labels(number, seed, held_out, key=len(OFFLINE))
    images = torch.empty((len(labels), 3, 32, 32), dtype=torch.uint8)
    for label, sequence in enumerate(drawing.spawn(NUM_LABELS)):
        rows = torch.from_numpy(labels == label)
        word_seed = int(sequence.generate_state(1)[0])
        sprites = draw_sprites(
            int(rows.sum()), word_seed, objects=(SPRITES[label],), styles=(style,)
        )
        images[rows] = sprites.images
    return Domain(name, images, torch.from_numpy(labels), SPRITES)


def _drawn_labels(number, seed, held_out, key):
    """As many of each label, in shuffled blocks of ten; and a seed sequence to draw them with."""
    number = number or (DRAWN_HELD_OUT if held_out else DRAWN)
    ordering, drawing = np.random.SeedSequence(seed, spawn_key=(key, int(held_out))).spawn(2)
    rng = np.random.default_rng(ordering)
    blocks = [rng.permutation(NUM_LABELS) for _ in range(-(-number // NUM_LABELS))]
    return np.concatenate(blocks)[:number], drawing


@lru_cache(maxsize=2)  # scikit-learn keeps them as text, which takes a while to read
def _digits(held_out):
    from sklearn.datasets import load_digits  # Alpaydin and Kaynak 1998: by 43 writers, 8x8

    bunch = load_digits()
    grey = (bunch.images * 255 / 16).round().astype(np.uint8)  # (1797, 8, 8)
    images = F.pad(_scaled(torch.from_numpy(grey)[:, None], 24), (2, 2, 2, 2))  # MNIST's rim
    labels = torch.from_numpy(bunch.target).long()
    return _one_part(Domain("digits", images, labels, _DIGIT_NAMES), held_out)


def _idx(name, kind, folder, held_out):
    present = [is_held_out for is_held_out in idx.PARTS if idx.has_part(folder, is_held_out)]
    images, labels = idx.read_part(folder, present[0] if len(present) == 1 else held_out)
    if images.shape[-1] != images.shape[-2]:
        raise ValueError(f"The pictures of {name!r} are {tuple(images.shape[-2:])}, not square.")
    _check_ten(name, labels.unique().tolist())
    domain = Domain(name, images, labels, _IDX_NAMES[kind])
    return _one_part(domain, held_out) if len(present) == 1 else domain


def _folder(name, source, held_out, side):
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
    counts = values[values != ""].value_counts(sort=False)
    frequent = counts.sort_values(ascending=False, kind="stable")[:NUM_LABELS].index
    _check_ten(name, frequent)
    label_names = tuple(sorted(frequent))
    kept = np.flatnonzero(values.isin(frequent))
    labels = torch.tensor([label_names.index(value) for value in values.iloc[kept]])
    return _one_part(Domain(name, pictures.images[kept], labels, label_names), held_out)


def _hub(name, source, held_out, side):
    source, _, column = source.partition("#")
    remedy = f", or use a domain that needs none: {', '.join(OFFLINE)}."
    datasets, splits = load_dataset(source, remedy)
    # A set with a test split comes in two parts, any other in one.
    in_two = {"train", "test"} <= set(splits)
    split = "train" if "train" in splits else next(iter(splits))
    table = splits["test" if in_two and held_out else split]
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
    pixels = [np.asarray(image.convert(mode).resize((side, side))) for image in table[images[0]]]
    pictures = torch.from_numpy(np.stack(pixels).reshape(len(table), side, side, -1))
    pictures = pictures.permute(0, 3, 1, 2).contiguous()  # (N, C, side, side)
    domain = Domain(name, pictures, torch.tensor(table[column]).long(), label_names)
    return domain if in_two else _one_part(domain, held_out)


# -- shared ---------------------------------------------------------------------------------------------------------
def _one_part(domain, held_out):
    """The training or the held-out part of a set that comes in one: the same division for every seed."""
    rng = np.random.default_rng(0)
    chosen = []
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
    """(N, C, H, W) uint8 to (N, C, side, side) uint8: averaged when made smaller, smooth when made larger."""
    mode = {"mode": "bicubic", "align_corners": False}
    if side < images.shape[-1]:
        mode = {"mode": "area"}
    scaled = torch.empty((*images.shape[:2], side, side), dtype=torch.uint8)
    for start in range(0, len(images), BATCH):
        batch = F.interpolate(images[start : start + BATCH].float(), (side, side), **mode)
        scaled[start : start + BATCH] = batch.round().clamp(0, 255)
    return scaled
