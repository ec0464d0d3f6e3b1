"""Three sets of grey pictures that need no download: letters A-J of many fonts, garments, and signs of a brush.

Labs 06 and 07 use them as domains: as different from each other as clothing is from script. They stand in for
Fashion-MNIST (arXiv 1708.07747), Kuzushiji-MNIST (arXiv 1812.01718) and notMNIST, and look like them: 28x28, light on
black, ten kinds. Every picture is drawn on a canvas four times as fine, moved a little, then averaged.
"""

from functools import lru_cache

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageDraw, ImageFont

SIDE = 28  # pixels of a finished picture
FINE = 4  # supersampling
CANVAS = SIDE * FINE
FONTS = (  # all ship with matplotlib
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
    "cmr10",
    "cmss10",
    "cmtt10",
    "cmb10",
    "cmti10",
    "cmmi10",
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
    "letters": ("A", "B", "C", "D", "E", "F", "G", "H", "I", "J"),
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
    "runes": (
        "hook",
        "zigzag",
        "whorl",
        "reeds",
        "sickle",
        "mast",
        "kite",
        "tide",
        "gate",
        "star",
    ),
}
# How far each moves: half its width in fine pixels, degrees it may turn, how much it may slant.
_MOTIONS = {"letters": (40, 12, 0.15), "garments": (47, 4, 0.05), "runes": (42, 10, 0.2)}


def draw(name, labels, seeds):
    """One picture of "letters", "garments" or "runes" for each label 0..9: (N, 1, 28, 28) uint8, light on black.

    Picture i depends on `seeds` (a `SeedSequence`), its place and the labels before it only: the first hundred of a
    thousand pictures are the hundred.
    """
    moving, shaping, painting = map(np.random.default_rng, seeds.spawn(3))
    # Draw each on a fine canvas, moved a little, and average that down.
    draw_kind = {"letters": _letter, "garments": _garment, "runes": _rune}[name]
    pictures = []
    for label, move in zip(labels, moving.uniform(-1, 1, (len(labels), 6)), strict=True):
        matrix, shift = _motion(move, *_MOTIONS[name])
        pictures.append(draw_kind(KINDS[name][label], matrix, shift, shaping).reduce(FINE))
    pictures = np.stack(pictures)  # (N, 28, 28) uint8
    if name == "garments":
        pictures = _woven(pictures, painting.uniform(0, 1, (len(labels), 6)))
    return torch.from_numpy(pictures)[:, None]  # (N, 1, 28, 28)


def _motion(move, size, turn, slant):
    """A small random map as a (2, 2) matrix and a shift (2,), from the [-1, 1] square to canvas pixels."""
    wide, high = size * (1 + 0.12 * move[0]), size * (1 + 0.1 * move[1])
    angle = np.deg2rad(turn * move[2])
    cos, sin = np.cos(angle), np.sin(angle)
    slanted = np.array([[wide, slant * move[3] * high], [0, high]])
    return np.array([[cos, -sin], [sin, cos]]) @ slanted, CANVAS / 2 + FINE * 1.5 * move[4:6]


# -- letters ----------------------------------------------------------------------------------------------------------
@lru_cache(maxsize=256)
def glyph(font, size, text):
    """A letter or a sign, white on black, cut to its edges, in a font that ships with matplotlib."""
    import matplotlib

    path = f"{matplotlib.get_data_path()}/fonts/ttf/{font}.ttf"
    canvas = Image.new("L", (2 * size, 2 * size))
    pen = ImageDraw.Draw(canvas)
    pen.text((size, size), text, font=ImageFont.truetype(path, size), fill=255, anchor="mm")
    return canvas.crop(canvas.getbbox())


def _letter(letter, matrix, shift, rng):
    sign = glyph(FONTS[rng.integers(len(FONTS))], 160, letter)
    # The inverse map, from canvas to sign; the longer side fills the square.
    inverse = np.linalg.inv(matrix * 2 / max(sign.size))
    start = np.array(sign.size) / 2 - inverse @ shift
    rows = (*inverse[0], start[0], *inverse[1], start[1])
    return sign.transform((CANVAS, CANVAS), Image.Transform.AFFINE, rows, Image.Resampling.BILINEAR)


# -- garments ---------------------------------------------------------------------------------------------------------
def _garment(kind, matrix, shift, rng):
    # No two have quite the same outline.
    if kind in _HALVES:
        half = np.array(_HALVES[kind])  # (n, 2)
        half += rng.normal(0, 0.035, half.shape) * [1, 0.7]
        outline = np.concatenate([half, half[::-1] * [-1, 1]])  # (2n, 2)
    else:
        outline = np.array(_OUTLINES[kind])
        outline += rng.normal(0, 0.03, outline.shape)
    canvas = Image.new("L", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(canvas)
    pen.polygon(_placed(outline, matrix, shift), fill=255)
    # Seams, hems and gaps.
    bold = rng.uniform(0.7, 1.3)
    for tone, width, points in _DETAILS[kind]:
        line = _placed(points, matrix, shift)
        pen.line(line, fill=round(255 * tone), width=round(FINE * width * bold), joint="curve")
    return canvas


def _placed(points, matrix, shift):
    """Points (n, 2) of the [-1, 1] square on the canvas, as Pillow takes them: x, y, x, y, ..."""
    return (points @ matrix.T + shift).ravel().tolist()


def _woven(pictures, draws):
    """Give each garment a tone, light from above or below, and to every third stripes. (N, 28, 28), draws (N, 6)."""
    tone, light, striped, pitch, turn, phase = draws.T[:, :, None, None]  # each (N, 1, 1)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    stripes = np.sin(2 * np.pi * (np.where(turn > 0.5, x, y) * (3 + 4 * pitch) + phase)) > 0
    cloth = (0.5 + 0.5 * tone) * (1 + 0.4 * (light - 0.5) * (2 * y - 1))
    cloth = cloth * np.where((striped < 1 / 3) & stripes, 0.72, 1)
    return (pictures * cloth).clip(0, 255).round().astype(np.uint8)


# -- runes ------------------------------------------------------------------------------------------------------------
# A curve's point is (1, t, t^2, t^3) times this matrix times the four points that it looks at.
_CATMULL_ROM = np.array(((0, 2, 0, 0), (-1, 0, 1, 0), (2, -5, 4, -1), (-1, 3, -3, 1))) / 2


def _rune(kind, matrix, shift, rng):
    canvas = Image.new("L", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(canvas)
    brush = FINE * rng.uniform(0.85, 1.5)  # radius in fine pixels
    for stroke in _STROKES[kind]:
        points = np.array(stroke) + rng.normal(0, 0.07, (len(stroke), 2))
        path = _smooth(points) @ matrix.T + shift  # (m, 2)
        press = np.linspace(1.15, 0.6, len(path)) * brush  # a brush begins heavy and ends light
        for (x, y), radius in zip(path, press, strict=True):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return canvas


def _smooth(points):
    """A Catmull-Rom curve through points (n, 2), as points so close that the brush leaves no gaps: (m, 2)."""
    length = np.hypot(*np.diff(points, axis=0).T).sum()
    steps = int(np.ceil(18 * length / (len(points) - 1)))
    # Each piece of the curve, from its second point to its third, also looks at the points before and behind it.
    padded = np.concatenate([points[:1], points, points[-1:]])
    pieces = sliding_window_view(padded, 4, axis=0).transpose(0, 2, 1)  # (n - 1, 4, 2)
    powers = np.linspace(0, 1, steps, endpoint=False)[:, None] ** np.arange(4)  # (steps, 4)
    curve = powers @ _CATMULL_ROM @ pieces  # (n - 1, steps, 2)
    return np.concatenate([curve.reshape(-1, 2), points[-1:]])
