"""Pictures that mean nothing, for the VAE only: so that it also reproduces what learners bring later, such as emoji.

Polygons, letters, noise, and doodles: a few flat coloured shapes with dark outlines on white, the way emoji are drawn.
None shows a held-out object or style, and none has a caption.
"""

import numpy as np
import torch
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

FINE = 128  # drawn four times as fine as the final 32 pixels
FONT = ImageFont.truetype(get_data_path() + "/fonts/ttf/DejaVuSans-Bold.ttf", 72)


def colour(rng: np.random.Generator) -> tuple[int, int, int]:
    """Any colour, saturated ones more often than greys."""
    rgb = rng.uniform(0, 255, 3)
    if rng.random() < 0.6:  # stretch towards pure colours
        rgb = (rgb - rgb.min()) / max(np.ptp(rgb), 1) * rng.uniform(160, 255)
    return tuple(int(v) for v in rgb)


def corners(
    rng: np.random.Generator, middle: np.ndarray, radius: float
) -> list[tuple[float, float]]:
    """A star-shaped polygon of 3 to 7 corners."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
    reach = radius * rng.uniform(0.5, 1, len(angles))
    return [
        (middle[0] + r * np.cos(a), middle[1] + r * np.sin(a))
        for r, a in zip(reach, angles, strict=True)
    ]


def doodle(rng: np.random.Generator) -> Image.Image:
    """One large shape, up to six small ones on it, strokes: flat colours, outlines mostly black."""
    canvas = Image.new("RGB", (FINE, FINE), "white" if rng.random() < 0.8 else colour(rng))
    pen = ImageDraw.Draw(canvas)
    ink, width = ("black" if rng.random() < 0.85 else colour(rng)), int(rng.integers(3, 7))
    middle, radius = rng.uniform(48, 80, 2), rng.uniform(28, 56)
    for number in range(rng.integers(2, 8)):
        if number:
            middle, radius = rng.uniform(24, 104, 2), rng.uniform(5, 26)
        fill = ink if rng.random() < 0.15 else colour(rng)
        (x, y), stretch = middle, rng.uniform(0.5, 1.0)
        box = (x - radius, y - radius * stretch, x + radius, y + radius * stretch)
        kind = rng.integers(6)
        if kind <= 1:
            pen.ellipse(box, fill=fill, outline=ink, width=width)
        elif kind == 2:
            bend = radius * stretch * rng.uniform(0.05, 0.6)
            pen.rounded_rectangle(box, radius=bend, fill=fill, outline=ink, width=width)
        elif kind == 3:
            pen.polygon(corners(rng, middle, radius), fill=fill, outline=ink, width=width)
        elif kind == 4:
            pen.arc(box, rng.uniform(0, 360), rng.uniform(360, 600), fill=ink, width=width)
        else:
            points = [tuple(p) for p in rng.uniform(16, 112, (rng.integers(2, 4), 2))]
            pen.line(points, fill=ink, width=width, joint="curve")
    return canvas


def polygons(rng: np.random.Generator) -> Image.Image:
    canvas = Image.new("RGB", (FINE, FINE), colour(rng))
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(1, 9)):
        pen.polygon(corners(rng, rng.uniform(0, FINE, 2), rng.uniform(10, 70)), fill=colour(rng))
    return canvas


def letters(rng: np.random.Generator) -> Image.Image:
    canvas = Image.new("RGB", (FINE, FINE), colour(rng))
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(1, 6)):
        letter = "ABCDEFGHKLMNPRSTUVXYZ023456789&?!"[rng.integers(33)]
        corner, paint = tuple(rng.uniform(-10, 80, 2)), colour(rng)
        pen.text(corner, letter, fill=paint, font=FONT.font_variant(size=int(rng.integers(24, 96))))
    return canvas


def noise(rng: np.random.Generator) -> Image.Image:
    """Random tiles of 2 to 16 pixels, smooth or hard."""
    tiles = int(rng.choice([2, 3, 4, 5, 8, 11, 16]))
    rough = Image.fromarray(rng.integers(0, 256, (tiles, tiles, 3), dtype=np.uint8))
    return rough.resize(
        (FINE, FINE), Image.Resampling.BICUBIC if rng.random() < 0.5 else Image.Resampling.NEAREST
    )


def draw_variety(number: int, seed: int) -> torch.Tensor:
    """`number` pictures, half of them doodles: (N, 3, 32, 32) uint8, the same for the same seed."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice([doodle, polygons, letters, noise], number, p=[0.55, 0.2, 0.13, 0.12])
    small = [np.asarray(kind(rng).resize((32, 32), Image.Resampling.BOX)) for kind in kinds]
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).contiguous()  # (N, 3, 32, 32)
