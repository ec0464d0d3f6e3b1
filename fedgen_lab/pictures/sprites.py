"""Drawn, captioned 32x32 sprites: object x colour x background x style, made from one seed, with nothing to download.

The tiny Stable Diffusion (data/tiny-sd) is trained on these. Four objects and three styles are held out of it: they
are what clients own in the federated labs (01, 03). Glyphs come from the DejaVu font that ships with matplotlib.

Every shape is kept as a signed distance field, so an outline, a glow or a bolder stroke is one comparison of numbers.
"""

import re
from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw, ImageOps

from fedgen_lab.knobs import check_whole
from fedgen_lab.pictures.collection import Pictures
from fedgen_lab.pictures.drawn import glyph

OBJECTS = (
    "star",
    "heart",
    "spade",
    "club",
    "sun",
    "cloud",
    "phone",
    "knight",
    "rook",
    "note",
    "flower",
    "skull",
    "arrow",
    "cross",
    "circle",
    "square",
    "triangle",
    "ring",
    "moon",
    "bolt",
)
HELD_OUT_OBJECTS = ("umbrella", "airplane", "snowman", "anchor")  # never seen in pre-training
STYLES = ("solid", "outlined", "striped", "dotted", "gradient", "shadowed", "split", "framed")
HELD_OUT_STYLES = ("checkered", "glowing", "pixelated")  # never seen in pre-training
COLOURS = {
    "red": (214, 40, 40),
    "orange": (247, 140, 20),
    "yellow": (250, 222, 50),
    "green": (40, 158, 66),
    "blue": (40, 84, 216),
    "purple": (136, 56, 190),
    "white": (244, 244, 244),
    "black": (22, 22, 26),
}
BACKGROUNDS = COLOURS
WORDS = {  # all that can be drawn: 24 objects, 8 colours, 8 backgrounds, 11 styles
    "object": OBJECTS + HELD_OUT_OBJECTS,
    "colour": tuple(COLOURS),
    "background": tuple(BACKGROUNDS),
    "style": STYLES + HELD_OUT_STYLES,
}
TEMPLATES = (  # the first is the canonical one, used by `prompts`
    "a {style} {colour} {object} on a {background} background",
    "a picture of a {style} {colour} {object} on a {background} background",
    "{style} {colour} {object}, {background} background",
    "a {colour} {object} on a {background} background, {style}",
)
TEMPLATE_SHARES = (0.7, 0.1, 0.1, 0.1)

SIZE = 32  # pixels of a finished sprite
FINE = 4  # supersampling: shapes are drawn on a canvas four times as fine, then averaged
BOX = 24  # pixels of the box a shape fills; the rest is room for jitter, shadows and frames
GLYPHS = {
    "star": "★",
    "heart": "♥",
    "spade": "♠",
    "club": "♣",
    "sun": "☀",
    "phone": "☎",
    "knight": "♞",
    "rook": "♜",
    "note": "♫",
    "flower": "✿",
    "arrow": "➤",
    "cross": "✚",
    "umbrella": "☂",
    "airplane": "✈",
    "anchor": "⚓",
}
# Pixels that keep thin strokes visible.
BOLDER = {"note": 0.5, "umbrella": 0.3, "anchor": 0.4, "sun": 0.2}
# What is no glyph: strokes of a pen on 512 x 512 pixels, as its method, its points and its shade, one over the other.
STROKES = {
    "circle": (("ellipse", (64, 64, 448, 448), 255),),
    "ring": (("ellipse", (64, 64, 448, 448), 255), ("ellipse", (160, 160, 352, 352), 0)),
    "moon": (("ellipse", (64, 64, 448, 448), 255), ("ellipse", (206, 24, 526, 344), 0)),
    "square": (("rectangle", (80, 80, 432, 432), 255),),
    "triangle": (("polygon", (256, 64, 464, 424, 48, 424), 255),),
    "bolt": (
        ("polygon", (290, 40, 110, 290, 235, 290, 190, 472, 400, 200, 265, 200, 350, 40), 255),
    ),
    "cloud": (
        ("rectangle", (130, 270, 390, 380), 255),
        ("ellipse", (60, 240, 200, 380), 255),
        ("ellipse", (125, 135, 305, 315), 255),
        ("ellipse", (245, 175, 395, 325), 255),
        ("ellipse", (335, 260, 455, 380), 255),
    ),
    "skull": (
        ("ellipse", (76, 50, 436, 350), 255),
        ("rectangle", (170, 300, 342, 440), 255),
        ("ellipse", (138, 180, 230, 280), 0),  # eyes
        ("ellipse", (282, 180, 374, 280), 0),
        ("polygon", (256, 280, 228, 330, 284, 330), 0),
        ("rectangle", (204, 372, 222, 440), 0),  # gaps between the teeth
        ("rectangle", (290, 372, 308, 440), 0),
    ),
    "snowman": (
        ("ellipse", (126, 260, 386, 500), 255),
        ("ellipse", (166, 120, 346, 290), 255),
        ("rectangle", (140, 104, 372, 138), 255),
        ("rectangle", (186, 20, 326, 120), 255),
        ("polygon", (52, 260, 172, 360, 188, 341, 68, 241), 255),  # arms
        ("polygon", (444, 240, 324, 340, 340, 359, 460, 259), 255),
    ),
}
_LIGHT, _DARK = np.float32((250, 250, 250)), np.float32((12, 12, 14))


# -- shapes -------------------------------------------------------------------------------------------------------
def _shape(object_name):
    """The bare shape, white on black, cut to its edges."""
    if object_name in GLYPHS:
        return glyph("DejaVuSans", 360, GLYPHS[object_name])
    canvas = Image.new("L", (512, 512))
    pen = ImageDraw.Draw(canvas)
    for method, points, shade in STROKES[object_name]:
        getattr(pen, method)(points, fill=shade)
    return canvas.crop(canvas.getbbox())


def _distance_to(marked):
    """Exact Euclidean distance of every cell to the nearest marked cell, one axis at a time. (S, S) bool -> (S, S).

    As scipy's `distance_transform_edt`, which would take every lab tens of megabytes.
    """
    cells = np.arange(len(marked), dtype=np.float32)
    squared = (cells[:, None] - cells) ** 2  # (S, S): of two positions on one axis
    along_x = (squared + np.where(marked, 0, 1e9)[:, None]).min(2)  # (S, S)
    return np.sqrt((squared[:, :, None] + along_x).min(1)).astype(np.float32)  # (S, S)


@lru_cache(maxsize=64)
def _distance_field(object_name):
    """Signed distance to the shape's edge in sprite pixels, positive inside, on the fine canvas."""
    # Fit the shape into its box, in the middle of the canvas.
    box = (BOX * FINE, BOX * FINE)
    shape = ImageOps.contain(_shape(object_name), box, Image.Resampling.LANCZOS)
    canvas = Image.new("L", (SIZE * FINE, SIZE * FINE))
    canvas.paste(shape, ((canvas.width - shape.width) // 2, (canvas.height - shape.height) // 2))
    # Measure from each cell to the nearest one on the other side of the edge.
    inside = np.asarray(canvas) > 127
    field = np.where(inside, _distance_to(~inside) - 0.5, 0.5 - _distance_to(inside)) / FINE
    return Image.fromarray((field + BOLDER.get(object_name, 0)).astype(np.float32))


# -- styles: each paints the object on a (32, 32, 3) picture --------------------------------------------------------
# In sprite pixels from the centre: (128,) from left to right, (128, 1) downwards.
_X = (np.arange(SIZE * FINE, dtype=np.float32) + 0.5) / FINE - SIZE / 2
_Y = _X[:, None]


def _cover(amount):
    """Average the fine canvas down to the sprite: (128, 128) in [0, 1] -> (32, 32, 1), each pixel's covered share."""
    return amount.reshape(SIZE, FINE, SIZE, FINE).mean((1, 3), dtype=np.float32)[:, :, None]


def _step(distance):
    """1 where `distance` is positive, 0 where negative, smooth over one fine cell."""
    return np.clip(distance * FINE + 0.5, 0, 1)


def _mix(colour, towards, share):
    return colour + (towards - colour) * share


def _brightness(colour):
    """0 to 255. Yellow and white have more than 170, black less than 40."""
    return float(colour @ (0.299, 0.587, 0.114))


def draw_sprite(object, colour, background, style, *, scale=1.0, degrees=0.0, shift=(0.0, 0.0)):
    """One sprite as (32, 32, 3) uint8.

    scale: of the shape; degrees: anticlockwise turn; shift: (right, down) in pixels.
    Raises ValueError for an object, colour, background or style this module cannot draw.
    """
    _check_words(object=[object], colour=[colour], background=[background], style=[style])
    # The shape, in its place.
    shape = _distance_field(object)
    field = _moved(shape, scale, degrees, shift)  # (128, 128), positive inside
    inside = _step(field)
    # Its colours. Patterns keep to two tones, a light and a dark one, so that stripes and dots also differ in tone.
    paint, ground = np.float32(COLOURS[colour]), np.float32(BACKGROUNDS[background])
    is_dark = _brightness(paint) < 40
    dark = _mix(paint, _LIGHT, 0.6) if is_dark else _mix(paint, _DARK, 0.7)
    light = _mix(paint, _DARK, 0.8) if _brightness(paint) > 170 else _mix(paint, _LIGHT, 0.85)
    # Its style: which share of each fine cell is covered, (128, 128) in [0, 1], behind the shape, and of the shape.
    behind, shade = 0 * field, paint
    pattern, tone = 0, dark
    x, y = _X - shift[0], _Y - shift[1]  # patterns move with the object
    match style:
        case "outlined":
            inside = _step(1.15 - abs(field + 0.35))
        case "shadowed":
            behind = _step(_moved(shape, scale, degrees, (shift[0] + 3, shift[1] + 3)))
            is_black = _brightness(ground) < 40
            shade = _mix(ground, _LIGHT, 0.5) if is_black else _mix(ground, _DARK, 0.6)
        case "framed":
            from_centre = np.maximum(abs(_X), abs(_Y))  # a norm whose circles are squares
            behind = _step(1.1 - abs(from_centre - 14.4))
        case "glowing":
            behind = np.exp(-np.clip(-field, 0, None) / 2.2)
            shade = _mix(paint, _LIGHT, 0.55)
        case "pixelated":
            block = np.arange(SIZE * FINE) // 12  # (128,): blocks of 3 x 3 pixels
            centre = np.minimum(12 * block + 6, SIZE * FINE - 1)
            inside = inside[centre][:, centre] > 0.3
            row = block[:, None]
            pattern = np.float32((7 * row + 13 * block + row * block) % 3 / 2)
            tone = _mix(paint, dark, 0.6)
        case "striped":
            pattern = _step(abs((x + y) / 2**0.5 % 5.0 - 2.5) - 1.35)
        case "dotted":
            row = np.floor(y / 4.6 + 0.5)
            across, down = (x + 2.8 * (row % 2) + 2.8) % 5.6 - 2.8, y - 4.6 * row
            pattern, tone = _step(1.75 - np.hypot(across, down)), light
        case "gradient":
            pattern, tone = np.clip((y + 9) / 18, 0, 1), light
        case "split":
            pattern, tone = _step(x), light if is_dark else dark
        case "checkered":
            pattern = (np.floor(x / 3.5) + np.floor(y / 3.5)) % 2
    # Lay one over the other.
    picture = ground
    for share, coat in ((behind, shade), (inside, paint), (inside * pattern, tone)):
        picture = _mix(picture, coat, _cover(share))  # (32, 32, 3)
    return (picture + 0.5).clip(0, 255).astype(np.uint8)


def _moved(field, scale, degrees, shift):
    """The distance field scaled, turned and shifted: (128, 128)."""
    turn, middle = np.deg2rad(degrees), SIZE * FINE / 2
    # The inverse map, from canvas to shape.
    cos, sin = np.cos(turn) / scale, np.sin(turn) / scale
    right, down = middle + FINE * np.asarray(shift)
    start_x = middle - cos * right + sin * down
    start_y = middle - sin * right - cos * down
    inverse = (cos, -sin, start_x, sin, cos, start_y)
    moved = field.transform(
        field.size, Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR, fillcolor=-9.0
    )
    return np.asarray(moved) * np.float32(scale)


# -- collections ------------------------------------------------------------------------------------------------------
def draw_sprites(
    number,
    seed,
    objects=OBJECTS,
    colours=COLOURS,
    backgrounds=BACKGROUNDS,
    styles=STYLES,
):
    """`number` captioned sprites of shape (N, 3, 32, 32), the same ones for the same seed.

    Attributes are drawn uniformly, with the background never in the object's colour. The jitter is small (scale 0.93-1,
    turn +-5 degrees, shift +-1 pixel): with a larger one a model this small learns no shapes in half an hour.
    A solid object's style is left out of half of its captions.

    Raises ValueError for a negative number or seed, an empty choice or a word this module cannot draw.
    """
    # What each sprite shows, how it lies, and how its caption is worded: a draw of its own for each.
    table = _attributes(number, seed, objects, colours, backgrounds, styles)
    _, jitter, words = map(np.random.default_rng, np.random.SeedSequence(seed).spawn(3))
    scale, degrees = jitter.uniform(0.93, 1, number), jitter.uniform(-5, 5, number)
    shift = jitter.uniform(-1, 1, (number, 2))
    template = words.choice(TEMPLATES, number, p=TEMPLATE_SHARES)
    silent = words.random(number) < 0.5
    # Draw them.
    images, captions = np.empty((number, SIZE, SIZE, 3), np.uint8), []
    for i, row in enumerate(table.to_dict("records")):
        images[i] = draw_sprite(**row, scale=scale[i], degrees=degrees[i], shift=shift[i])
        if silent[i] and row["style"] == "solid":
            row["style"] = ""
        captions.append(_caption(row, template[i]))
    return Pictures(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), captions, table)


def prompts(number, seed, objects=OBJECTS, backgrounds=BACKGROUNDS):
    """`number` prompts of the form "a striped red star on a blue background", and what each asks for.

    Returns the prompts and a table with columns object, colour, background, style: the attributes that
    `draw_sprites` draws from the same arguments. Raises ValueError as `draw_sprites` does.
    """
    table = _attributes(number, seed, objects, COLOURS, backgrounds, STYLES)
    return [_caption(row, TEMPLATES[0]) for row in table.to_dict("records")], table


def _caption(row, template):
    """A template filled in with a sprite's words, where the style may be empty."""
    text = " ".join(template.format(**row).split()).rstrip(",")
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


def _attributes(number, seed, objects, colours, backgrounds, styles):
    """N rows of object, colour, background, style; the background differs from the colour."""
    check_whole("number", number, 0)
    check_whole("seed", seed, 0)
    _check_words(object=objects, colour=colours, background=backgrounds, style=styles)
    # A colour and a background go together, so they are drawn as a pair.
    pairs = [(colour, ground) for colour in colours for ground in backgrounds if colour != ground]
    if not pairs:
        raise ValueError(
            f"the background must differ from the colour; got only {colours[0]!r} for both. Add another."
        )
    rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(3)[0])
    colour, ground = rng.choice(pairs, number).T
    objects, styles = rng.choice(objects, number), rng.choice(styles, number)
    return pd.DataFrame(
        {"object": objects, "colour": colour, "background": ground, "style": styles}
    )


def _check_words(**choices):
    """Refuses what can't be drawn: for each kind of `WORDS`, the words to choose from."""
    for kind, words in choices.items():
        drawable = ", ".join(WORDS[kind])
        if isinstance(words, str):
            raise ValueError(
                f"{kind}s must be a sequence of words; got the single word {words!r}. Write ({words!r},)."
            )
        if not len(words):
            raise ValueError(
                f"no {kind} to choose from; got {words!r}. Give at least one of: {drawable}."
            )
        for word in words:
            if word not in WORDS[kind]:
                raise ValueError(
                    f"this lab cannot draw the {kind} {word!r}. Choose from: {drawable}."
                )
