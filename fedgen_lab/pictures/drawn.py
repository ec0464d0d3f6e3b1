"""Three sets of grey pictures that need no download: letters A-J of many fonts, garments, and signs of a brush.

Labs 06 and 07 use them as domains: as different from each other as clothing is from script. They stand in for
Fashion-MNIST (arXiv 1708.07747), Kuzushiji-MNIST (arXiv 1812.01718) and notMNIST, and look like them: 28x28, light on
black, ten kinds. Every picture is drawn on a canvas four times as fine, moved a little, then averaged.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

SIDE = 28  # pixels of a finished picture
FINE = 4  # supersampling
CANVAS = SIDE * FINE
FONTS = (  # all ship with matplotlib
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmr10", "cmss10", "cmtt10", "cmb10", "cmti10", "cmmi10"),
)

# Garments: the right half of an outline from its top centre down, mirrored; x and y run from -1 to 1, y downwards.
_HALVES = {
    "T-shirt": (
        (0, -0.62),
        (0.24, -0.8),
        (0.5, -0.74),
        (0.97, -0.3),
        (0.74, -0.02),
        (0.52, -0.24),
        (0.5, 0.85),
        (0, 0.87),
    ),
    "trousers": (
        (0, -0.93),
        (0.42, -0.93),
        (0.5, 0),
        (0.54, 0.95),
        (0.2, 0.95),
        (0.07, -0.3),
        (0, -0.36),
    ),
    "pullover": (
        (0, -0.66),
        (0.24, -0.82),
        (0.48, -0.76),
        (0.74, -0.4),
        (0.97, 0.72),
        (0.72, 0.8),
        (0.53, -0.1),
        (0.53, 0.84),
        (0, 0.86),
    ),
    "dress": (
        (0, -0.5),
        (0.16, -0.95),
        (0.29, -0.95),
        (0.36, -0.45),
        (0.2, -0.08),
        (0.42, 0.4),
        (0.68, 0.93),
        (0, 0.97),
    ),
    "coat": (
        (0, -0.9),
        (0.2, -0.95),
        (0.42, -0.85),
        (0.66, -0.6),
        (0.82, 0.5),
        (0.6, 0.54),
        (0.52, 0),
        (0.62, 0.95),
        (0, 0.96),
    ),
    "skirt": ((0, -0.62), (0.34, -0.62), (0.4, -0.4), (0.85, 0.66), (0, 0.76)),
}
_OUTLINES = {
    "hat": (
        (-0.97, 0.4),
        (-0.52, 0.24),
        (-0.46, -0.42),
        (-0.2, -0.62),
        (0.2, -0.62),
        (0.46, -0.42),
        (0.52, 0.24),
        (0.97, 0.4),
        (0.55, 0.56),
        (0, 0.6),
        (-0.55, 0.56),
    ),
    "shoe": (
        (-0.95, 0.46),
        (-0.93, 0.2),
        (-0.55, 0.02),
        (-0.2, -0.12),
        (0.12, -0.4),
        (0.3, -0.34),
        (0.6, -0.32),
        (0.9, -0.42),
        (0.95, 0.1),
        (0.95, 0.46),
    ),
    "bag": ((-0.66, -0.18), (0.66, -0.18), (0.84, 0.82), (-0.84, 0.82)),
    "boot": (
        (-0.85, 0.9),
        (-0.85, 0.62),
        (-0.5, 0.4),
        (-0.16, 0.26),
        (-0.12, -0.3),
        (-0.18, -0.92),
        (0.52, -0.92),
        (0.5, -0.2),
        (0.6, 0.35),
        (0.58, 0.92),
        (0.28, 0.92),
        (0.24, 0.78),
        (-0.1, 0.9),
    ),
}
# Lines on a garment: (tone against the cloth's, width in finished pixels, points). Tone 0 is a gap.
_DETAILS = {
    "T-shirt": [(0.6, 1.2, ((-0.24, -0.78), (0, -0.58), (0.24, -0.78)))],
    "trousers": [(0.6, 1.4, ((-0.42, -0.84), (0.42, -0.84))), (0.7, 0.8, ((0, -0.8), (0, -0.4)))],
    "pullover": [
        (0.55, 1.6, ((-0.5, 0.78), (0.5, 0.78))),
        (0.55, 1.4, ((-0.26, -0.76), (0, -0.62), (0.26, -0.76))),
        (0.55, 1.4, ((0.72, 0.68), (0.95, 0.6))),
        (0.55, 1.4, ((-0.72, 0.68), (-0.95, 0.6))),
    ],
    "dress": [(0.55, 1.6, ((-0.22, -0.1), (0.22, -0.1)))],
    "coat": [
        (0, 1.4, ((0, -0.35), (0, 1))),
        (0.1, 1.2, ((-0.24, -0.92), (0, -0.35), (0.24, -0.92))),
        (0.4, 1.0, ((0.2, 0.35), (0.42, 0.3))),
        (0.4, 1.0, ((-0.2, 0.35), (-0.42, 0.3))),
    ],
    "skirt": [
        (0.55, 1.6, ((-0.34, -0.5), (0.34, -0.5))),
        (0.7, 0.8, ((-0.14, -0.4), (-0.34, 0.7))),
        (0.7, 0.8, ((0.14, -0.4), (0.34, 0.7))),
    ],
    "hat": [(0.4, 2.4, ((-0.5, 0.16), (0, 0.22), (0.5, 0.16)))],
    "shoe": [
        (0.5, 1.8, ((-0.95, 0.38), (0.95, 0.38))),
        (0.4, 0.9, ((-0.3, -0.06), (-0.08, 0.1))),
        (0.4, 0.9, ((-0.12, -0.18), (0.1, 0))),
    ],
    "bag": [
        (
            1,
            1.9,
            ((-0.4, -0.14), (-0.36, -0.6), (-0.2, -0.84), (0.2, -0.84), (0.36, -0.6), (0.4, -0.14)),
        ),
        (0.55, 1.2, ((-0.7, 0.12), (0, 0.22), (0.7, 0.12))),
    ],
    "boot": [
        (0.5, 1.4, ((-0.86, 0.84), (-0.1, 0.8), (0.2, 0.72))),
        (0.6, 1.2, ((-0.14, -0.72), (0.5, -0.72))),
    ],
}

# Runes: strokes of a brush, each a smooth curve through its points. The signs only look like a script.
_STROKES = {
    "hook": (
        ((-0.75, -0.35), (0.5, -0.5), (0.5, 0.3), (0.1, 0.8)),
        ((-0.1, -0.9), (-0.2, 0), (-0.75, 0.85)),
    ),
    "zigzag": (
        (
            (-0.5, -0.85),
            (0.5, -0.8),
            (-0.6, -0.1),
            (0.75, -0.15),
            (-0.1, 0.3),
            (0, 0.8),
            (0.6, 0.85),
        ),
    ),
    "whorl": (
        (
            (0.1, -0.55),
            (-0.25, 0.45),
            (-0.65, 0.55),
            (-0.75, -0.15),
            (0, -0.75),
            (0.75, -0.3),
            (0.7, 0.4),
            (0.15, 0.85),
        ),
    ),
    "reeds": (
        ((-0.5, -0.8), (-0.6, 0.1), (-0.3, 0.3)),
        ((0.4, -0.9), (0.55, 0), (0.3, 0.6), (-0.25, 0.95)),
    ),
    "sickle": (((-0.85, -0.6), (0, -0.75), (0.85, -0.75), (0.1, -0.25), (-0.1, 0.4), (0.5, 0.9)),),
    "mast": (
        ((-0.7, -0.55), (0.7, -0.65)),
        ((-0.6, -0.1), (0.65, -0.2)),
        ((0, -0.95), (0.05, 0.4), (-0.35, 0.85), (-0.6, 0.55), (-0.1, 0.4), (0.75, 0.85)),
    ),
    "kite": (
        (
            (0.1, -0.1),
            (-0.55, -0.25),
            (-0.35, -0.85),
            (0.35, -0.8),
            (0.35, -0.2),
            (-0.1, 0.25),
            (-0.5, 0.95),
        ),
        ((0.15, 0.35), (0.75, 0.8)),
    ),
    "tide": (
        ((-0.9, 0.2), (-0.45, -0.3), (0, 0.15), (0.45, 0.55), (0.9, 0)),
        ((-0.45, -0.9), (-0.3, -0.72)),
        ((0.35, -0.75), (0.5, -0.55)),
        ((-0.35, 0.7), (-0.2, 0.9)),
    ),
    "gate": (
        ((0.55, -0.9), (0.6, 0), (0.5, 0.95)),
        ((0.55, -0.55), (-0.1, -0.7), (-0.65, -0.5)),
        ((0.55, -0.05), (-0.35, 0), (-0.75, 0.45), (-0.4, 0.85)),
    ),
    "star": (
        ((-0.75, -0.7), (0, 0), (0.75, 0.7)),
        ((0.7, -0.75), (0, 0.05), (-0.7, 0.75)),
        ((-0.9, 0.05), (0.9, -0.05)),
    ),
}

KINDS = {
    "letters": tuple("ABCDEFGHIJ"),
    "garments": (
        "T-shirt",
        "trousers",
        "pullover",
        "dress",
        "coat",
        "skirt",
        "hat",
        "shoe",
        "bag",
        "boot",
    ),
    "runes": tuple(_STROKES),
}


def draw(name, labels, seed):
    """One picture of "letters", "garments" or "runes" for each label 0..9: (N, 1, 28, 28) uint8, light on black.

    Picture i depends on the seed (a number or a `SeedSequence`), its place and the labels before it only: the first
    hundred of a thousand pictures are the hundred.
    """
    sequence = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    moving, shaping, painting = map(np.random.default_rng, sequence.spawn(3))
    moves = moving.uniform(-1, 1, (len(labels), 6))
    # Draw each on a fine canvas, moved a little, and average that down.
    draw_kind = {"letters": _letter, "garments": _garment, "runes": _rune}[name]
    pictures = np.zeros((len(labels), SIDE, SIDE))
    for picture, label, move in zip(pictures, labels, moves, strict=True):
        picture[:] = draw_kind(KINDS[name][label], move, shaping).reduce(FINE)
    if name == "garments":
        pictures = _woven(pictures, painting.uniform(0, 1, (len(labels), 6)))
    return torch.from_numpy(pictures.astype(np.uint8))[:, None]  # (N, 1, 28, 28)


def _motion(move, size, turn, slant):
    """A small random map as a (2, 2) matrix and a shift (2,), from the [-1, 1] square to canvas pixels."""
    wide, high = size * (1 + 0.12 * move[0]), size * (1 + 0.1 * move[1])
    angle = np.deg2rad(turn * move[2])
    turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    slanted = np.array([[wide, slant * move[3] * high], [0, high]])
    return turned @ slanted, CANVAS / 2 + FINE * 1.5 * move[4:6]


# -- letters ----------------------------------------------------------------------------------------------------------
def font_file(name):
    """The file of a font that ships with matplotlib, as a text."""
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf")


@lru_cache(maxsize=len(FONTS) * 10)
def _glyph(font, letter):
    canvas = Image.new("L", (320, 320), 0)
    pen = ImageDraw.Draw(canvas)
    letters = ImageFont.truetype(font_file(font), 160)
    pen.text((160, 160), letter, font=letters, fill=255, anchor="mm")
    return canvas.crop(canvas.getbbox())


def _letter(letter, move, rng):
    glyph = _glyph(FONTS[rng.integers(len(FONTS))], letter)
    matrix, shift = _motion(move, size=40, turn=12, slant=0.15)
    matrix = matrix * 2 / max(glyph.size)  # the longer side fills the square
    inverse = np.linalg.inv(matrix)
    start = np.array(glyph.size) / 2 - inverse @ shift
    rows = (*inverse[0], start[0], *inverse[1], start[1])
    return glyph.transform(
        (CANVAS, CANVAS), Image.Transform.AFFINE, rows, Image.Resampling.BILINEAR
    )


# -- garments ---------------------------------------------------------------------------------------------------------
def _garment(kind, move, rng):
    matrix, shift = _motion(move, size=47, turn=4, slant=0.05)
    if kind in _HALVES:
        half = np.array(_HALVES[kind]) + rng.normal(0, 0.035, (len(_HALVES[kind]), 2)) * [[1, 0.7]]
        outline = np.concatenate([half, half[::-1] * [[-1, 1]]])  # (2n, 2)
    else:
        outline = np.array(_OUTLINES[kind]) + rng.normal(0, 0.03, (len(_OUTLINES[kind]), 2))
    canvas = Image.new("L", (CANVAS, CANVAS), 0)
    pen = ImageDraw.Draw(canvas)
    pen.polygon(_pixels(outline, matrix, shift), fill=255)
    bold = rng.uniform(0.7, 1.3)
    for tone, width, points in _DETAILS[kind]:
        line = _pixels(np.array(points), matrix, shift)
        pen.line(line, fill=round(255 * tone), width=round(FINE * width * bold), joint="curve")
    return canvas


def _woven(pictures, draws):
    """Give each garment a tone, light from above or below, and to every third stripes. (N, 28, 28), draws (N, 6)."""
    tone, light, striped, pitch, turn, phase = draws.T[:, :, None, None]  # each (N, 1, 1)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    stripes = np.sin(2 * np.pi * (np.where(turn > 0.5, x, y) * (3 + 4 * pitch) + phase)) > 0
    cloth = (0.5 + 0.5 * tone) * (1 + 0.4 * (light - 0.5) * (2 * y - 1))
    cloth = cloth * np.where((striped < 1 / 3) & stripes, 0.72, 1)
    return (pictures * cloth).clip(0, 255).round()


# -- runes ------------------------------------------------------------------------------------------------------------
def _rune(kind, move, rng):
    matrix, shift = _motion(move, size=42, turn=10, slant=0.2)
    canvas = Image.new("L", (CANVAS, CANVAS), 0)
    pen = ImageDraw.Draw(canvas)
    brush = FINE * rng.uniform(0.85, 1.5)  # radius in fine pixels
    for stroke in _STROKES[kind]:
        points = np.array(stroke) + rng.normal(0, 0.07, (len(stroke), 2))
        path = np.array(_pixels(_smooth(points), matrix, shift))
        press = np.linspace(1.15, 0.6, len(path)) * brush  # a brush begins heavy and ends light
        for (x, y), radius in zip(path, press, strict=True):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return canvas


def _smooth(points):
    """A Catmull-Rom curve through points (n, 2), as points so close that the brush leaves no gaps: (m, 2)."""
    length = np.hypot(*np.diff(points, axis=0).T).sum()
    steps = int(np.ceil(18 * length / (len(points) - 1)))
    # Each piece of the curve, from b to c, also looks at the points before and behind it.
    padded = np.concatenate([points[:1], points, points[-1:]])[:, None]  # (n + 2, 1, 2)
    a, b, c, d = padded[:-3], padded[1:-2], padded[2:-1], padded[3:]
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    curve = 0.5 * (
        2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3
    )
    return np.concatenate([curve.reshape(-1, 2), points[-1:]])


def _pixels(points, matrix, shift):
    return [tuple(point) for point in points @ matrix.T + shift]
