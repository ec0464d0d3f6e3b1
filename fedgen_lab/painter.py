"""A painter: the smallest model that draws from words, and the small pictures it learns from.

Lab 01 averages painters, because each run takes a second and every number can be followed. A painter is a plain network
from two words (an object, a colour) to one picture, trained on the squared error; so it draws the mean of all pictures
that fit the words. The algorithm itself, federated averaging, stands in the lab.
"""

from dataclasses import dataclass

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from fedgen_lab.pictures.sprites import HELD_OUT_OBJECTS, draw_sprites

OBJECTS = sorted(HELD_OUT_OBJECTS)  # the same four that clients hold in lab 03
COLOURS = ["blue", "green", "purple", "red"]
SEED = 0  # of a new painter's weights
SIDE = 16  # pixels; a sprite of 32, halved


@dataclass(frozen=True)
class PictureBook:
    """N small pictures and their words."""

    pictures: torch.Tensor  # (N, 3, 16, 16) in [-1, 1]
    attributes: pd.DataFrame  # N rows with the columns object and colour

    def __len__(self):
        return len(self.pictures)

    @property
    def captions(self):
        """N texts like "blue anchor"."""
        return (self.attributes["colour"] + " " + self.attributes["object"]).tolist()

    @property
    def table(self):
        """The words as ones among zeros (one-hot): N rows, a column for each of the 4 objects and 4 colours."""
        columns = {word: (self.attributes == word).any(axis=1) for word in OBJECTS + COLOURS}
        return pd.DataFrame(columns).astype("float32")

    @property
    def words(self):
        """`table` as a tensor: (N, 8)."""
        return torch.tensor(self.table.to_numpy())

    def one_of_each(self, colours):
        """One picture of each object in each of these colours, in the order of colours and objects."""
        captions = self.captions
        rows = [captions.index(f"{colour} {word}") for colour in colours for word in OBJECTS]
        return PictureBook(self.pictures[rows], self.attributes.iloc[rows].reset_index(drop=True))


def picture_book(number, seed):
    """Draw `number` solid sprites on white, of random objects, colours and places; the seed decides all of them."""
    sprites = draw_sprites(
        number, seed, objects=OBJECTS, colours=COLOURS, backgrounds=["white"], styles=["solid"]
    )
    pictures = F.avg_pool2d(sprites.as_tensor(), 32 // SIDE)  # (N, 3, 16, 16)
    return PictureBook(pictures, sprites.attributes[["object", "colour"]])


def new_painter():
    """An untrained painter: words (N, 8) in, pictures (N, 3, 16, 16) out. Its weights are always the same ones."""
    with torch.random.fork_rng(devices=[]):  # torch's own generator is put back as it was
        torch.manual_seed(SEED)
        return nn.Sequential(
            nn.Linear(len(OBJECTS) + len(COLOURS), 64),
            nn.ReLU(),
            nn.Linear(64, 64),
            nn.ReLU(),
            nn.Linear(64, 3 * SIDE * SIDE),
            nn.Unflatten(1, (3, SIDE, SIDE)),
        )


@torch.no_grad()
def error(painter, book, objects=OBJECTS):
    """The mean squared difference between what the painter draws and the pictures of these objects in `book`.

    Raises ValueError when the book has no picture of them.
    """
    rows = book.attributes["object"].isin(objects).to_numpy(copy=True)
    if not rows.any():
        raise ValueError(
            f"The book has no picture of {list(objects)}; choose among {', '.join(OBJECTS)}."
        )
    return float(F.mse_loss(painter(book.words[rows]), book.pictures[rows]))
