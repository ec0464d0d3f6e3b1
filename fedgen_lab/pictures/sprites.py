"""Drawn, captioned 32x32 sprites: object x colour x background x style, made from one seed, with nothing to download.

The tiny Stable Diffusion (data/tiny-sd) is trained on these. Four objects and three styles are held out of it: they
are what clients own in the federated labs (01, 03). Glyphs come from the DejaVu font that ships with matplotlib.

Every shape is kept as a signed distance field, so an outline, a glow or a bolder stroke is one comparison of numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw, ImageFont

from fedgen_lab.pictures.collection import Pictures

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
BACKGROUNDS = dict(COLOURS)
TEMPLATES = (  # the first is the canonical one, used by `prompts`
    "{a} {style} {colour} {object} on {b} {background} background",
    "a picture of {a} {style} {colour} {object} on {b} {background} background",
    "{style} {colour} {object}, {background} background",
    "{c} {colour} {object} on {b} {background} background, {style}",
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
BOLDER = {
    "note": 0.5,
    "umbrella": 0.3,
    "anchor": 0.4,
    "sun": 0.2,
}  # pixels: keeps thin strokes visible
_LIGHT, _DARK = np.float32((250, 250, 250)), np.float32((12, 12, 14))


# -- shapes -------------------------------------------------------------------------------------------------------
def _shape(object_name: str) -> Image.Image:
    """The bare shape, white on black, on a large canvas of any margin."""
    canvas = Image.new("L", (512, 512), 0)
    pen = ImageDraw.Draw(canvas)
    if object_name in GLYPHS:
        import matplotlib

        font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
        pen.text(
            (256, 256),
            GLYPHS[object_name],
            font=ImageFont.truetype(str(font), 360),
            fill=255,
            anchor="mm",
        )
    elif object_name == "circle":
        pen.ellipse((64, 64, 448, 448), fill=255)
    elif object_name == "ring":
        pen.ellipse((64, 64, 448, 448), fill=255)
        pen.ellipse((160, 160, 352, 352), fill=0)
    elif object_name == "moon":
        pen.ellipse((64, 64, 448, 448), fill=255)
        pen.ellipse((206, 24, 526, 344), fill=0)
    elif object_name == "square":
        pen.rectangle((80, 80, 432, 432), fill=255)
    elif object_name == "triangle":
        pen.polygon(((256, 64), (464, 424), (48, 424)), fill=255)
    elif object_name == "bolt":
        pen.polygon(
            ((290, 40), (110, 290), (235, 290), (190, 472), (400, 200), (265, 200), (350, 40)),
            fill=255,
        )
    elif object_name == "cloud":
        pen.rectangle((130, 270, 390, 380), fill=255)
        for x, y, radius in ((130, 310, 70), (215, 225, 90), (320, 250, 75), (395, 320, 60)):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    elif object_name == "skull":
        pen.ellipse((76, 50, 436, 350), fill=255)
        pen.rectangle((170, 300, 342, 440), fill=255)
        for box in ((138, 180, 230, 280), (282, 180, 374, 280)):  # eyes
            pen.ellipse(box, fill=0)
        pen.polygon(((256, 280), (228, 330), (284, 330)), fill=0)
        for x in (213, 299):  # gaps between the teeth
            pen.rectangle((x - 9, 372, x + 9, 440), fill=0)
    elif object_name == "snowman":
        pen.ellipse((126, 260, 386, 500), fill=255)
        pen.ellipse((166, 120, 346, 290), fill=255)
        pen.rectangle((140, 104, 372, 138), fill=255)
        pen.rectangle((186, 20, 326, 120), fill=255)
        pen.line((60, 250, 180, 350), fill=255, width=26)
        pen.line((452, 250, 332, 350), fill=255, width=26)
    return canvas


def _distance_to(marked: np.ndarray) -> np.ndarray:
    """Exact Euclidean distance of every cell to the nearest marked cell, one axis at a time. (S, S) bool -> (S, S)."""
    cells = np.arange(len(marked), dtype=np.float32)
    squared = (
        cells[:, None] - cells[None, :]
    ) ** 2  # (S, S): squared distance of two positions on one axis
    along_x = (squared[None] + np.where(marked, 0, 1e9)[:, None, :]).min(-1)  # (S, S)
    return np.sqrt((squared[:, :, None] + along_x[None]).min(1)).astype(np.float32)  # (S, S)


@lru_cache(maxsize=64)
def _distance_field(object_name: str) -> Image.Image:
    """Signed distance to the shape's edge in sprite pixels, positive inside, on the fine canvas."""
    shape = _shape(object_name)
    shape = shape.crop(shape.getbbox())
    fit = BOX * FINE / max(shape.size)
    shape = shape.resize(
        (round(shape.width * fit), round(shape.height * fit)), Image.Resampling.LANCZOS
    )
    canvas = Image.new("L", (SIZE * FINE, SIZE * FINE), 0)
    canvas.paste(shape, ((canvas.width - shape.width) // 2, (canvas.height - shape.height) // 2))
    inside = np.asarray(canvas) > 127
    field = np.where(inside, _distance_to(~inside) - 0.5, 0.5 - _distance_to(inside)) / FINE
    return Image.fromarray((field + BOLDER.get(object_name, 0)).astype(np.float32))


# -- styles: each paints the object on a (32, 32, 3) picture --------------------------------------------------------
_GRID = (
    np.arange(SIZE * FINE, dtype=np.float32) + 0.5
) / FINE - SIZE / 2  # sprite pixels from the centre
_Y, _X = _GRID[:, None], _GRID[None, :]
_FROM_CENTRE = np.maximum(abs(_X), abs(_Y))  # (128, 128): distance in the maximum norm, for frames


def _cover(amount: np.ndarray) -> np.ndarray:
    """Average the fine canvas down to the sprite: (128, 128) in [0, 1] -> (32, 32, 1), each pixel's covered share."""
    return amount.reshape(SIZE, FINE, SIZE, FINE).mean((1, 3), dtype=np.float32)[:, :, None]


def _step(distance: np.ndarray) -> np.ndarray:
    """1 where `distance` is positive, 0 where negative, smooth over one fine cell."""
    return np.clip(distance * FINE + 0.5, 0, 1)


def _mix(colour: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    return colour + (other - colour) * share


def _is_light(colour: np.ndarray) -> bool:
    return float(colour @ (0.299, 0.587, 0.114)) > 170  # yellow and white


def _is_dark(colour: np.ndarray) -> bool:
    return float(colour @ (0.299, 0.587, 0.114)) < 40  # black


def draw_sprite(
    object: str,
    colour: str,
    background: str,
    style: str,
    *,  # noqa: A002 (the lab's word)
    scale: float = 1.0,
    degrees: float = 0.0,
    shift: tuple[float, float] = (0.0, 0.0),
) -> np.ndarray:
    """One sprite as (32, 32, 3) uint8.

    scale: of the shape; degrees: anticlockwise turn; shift: (right, down) in pixels.
    Raises ValueError for an object, colour, background or style this module cannot draw.
    """
    _check_words("object", (object,), OBJECTS + HELD_OUT_OBJECTS)
    _check_words("colour", (colour,), COLOURS)
    _check_words("background", (background,), BACKGROUNDS)
    _check_words("style", (style,), STYLES + HELD_OUT_STYLES)
    field = _moved(
        _distance_field(object), scale, degrees, shift
    )  # (128, 128), sprite pixels, positive inside
    paint, ground = np.float32(COLOURS[colour]), np.float32(BACKGROUNDS[background])
    # patterns keep to two tones, a light and a dark one, so that stripes and dots also differ in tone
    dark = _mix(paint, _LIGHT, 0.6) if _is_dark(paint) else _mix(paint, _DARK, 0.7)
    light = _mix(paint, _DARK, 0.8) if _is_light(paint) else _mix(paint, _LIGHT, 0.85)
    x, y = _X - shift[0], _Y - shift[1]  # patterns move with the object
    picture = np.broadcast_to(ground, (SIZE, SIZE, 3))

    def lay(amount: np.ndarray, tone: np.ndarray) -> None:
        nonlocal picture
        picture = picture + (tone - picture) * _cover(amount)

    inside = _step(field)
    if style == "outlined":
        lay(_step(1.15 - abs(field + 0.35)), paint)
    elif style == "shadowed":
        cast = _moved(_distance_field(object), scale, degrees, (shift[0] + 3, shift[1] + 3))
        lay(
            _step(cast), _mix(ground, _LIGHT, 0.5) if _is_dark(ground) else _mix(ground, _DARK, 0.6)
        )
        lay(inside, paint)
    elif style == "framed":
        lay(_step(1.1 - abs(_FROM_CENTRE - 14.4)), paint)
        lay(inside, paint)
    elif style == "glowing":
        lay(np.exp(-np.clip(-field, 0, None) / 2.2), _mix(paint, _LIGHT, 0.55))
        lay(inside, paint)
    elif style == "pixelated":
        block = (_GRID + SIZE / 2).astype(int) // 3  # (128,): blocks of 3 x 3 pixels
        centre = np.minimum(np.arange(11) * 12 + 6, 127)
        blocks = inside[np.ix_(centre, centre)] > 0.3
        shade = np.float32(
            [[(7 * i + 13 * j + i * j) % 3 / 2 for j in range(11)] for i in range(11)]
        )
        lay(blocks[np.ix_(block, block)].astype(np.float32), paint)
        lay((blocks * shade)[np.ix_(block, block)], _mix(paint, dark, 0.6))
    else:
        lay(inside, paint)
        if style == "striped":
            lay(inside * _step(abs((x + y) / 2**0.5 % 5.0 - 2.5) - 1.35), dark)
        elif style == "dotted":
            row = np.floor(y / 4.6 + 0.5)
            across, down = (x + 2.8 * (row % 2) + 2.8) % 5.6 - 2.8, y - 4.6 * row
            lay(inside * _step(1.75 - np.hypot(across, down)), light)
        elif style == "gradient":
            lay(inside * np.clip((y + 9) / 18, 0, 1), light)
        elif style == "split":
            lay(inside * _step(x + 0 * y), light if _is_dark(paint) else dark)
        elif style == "checkered":
            lay(inside * ((np.floor(x / 3.5) + np.floor(y / 3.5)) % 2), dark)
    return (picture + 0.5).clip(0, 255).astype(np.uint8)


def _moved(
    field: Image.Image, scale: float, degrees: float, shift: tuple[float, float]
) -> np.ndarray:
    """The distance field scaled, turned and shifted: (128, 128)."""
    turn, middle = np.deg2rad(degrees), SIZE * FINE / 2
    cos, sin = (
        np.cos(turn) / scale,
        np.sin(turn) / scale,
    )  # of the inverse map, from canvas to shape
    right, down = middle + FINE * shift[0], middle + FINE * shift[1]
    inverse = (
        cos,
        -sin,
        middle - cos * right + sin * down,
        sin,
        cos,
        middle - sin * right - cos * down,
    )
    moved = field.transform(
        field.size, Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR, fillcolor=-9.0
    )
    return np.asarray(moved) * np.float32(scale)


# -- collections ------------------------------------------------------------------------------------------------------
def draw_sprites(
    number: int,
    seed: int,
    objects: Sequence[str] = OBJECTS,
    colours: Sequence[str] = tuple(COLOURS),
    backgrounds: Sequence[str] = tuple(BACKGROUNDS),
    styles: Sequence[str] = STYLES,
) -> Pictures:
    """`number` captioned sprites of shape (N, 3, 32, 32), the same ones for the same seed.

    Attributes are drawn uniformly, with the background never in the object's colour. The jitter is small (scale 0.93-1,
    turn +-5 degrees, shift +-1 pixel): with a larger one a model this small learns no shapes in half an hour.
    A solid object's style is left out of half of its captions.

    Raises ValueError for a negative number or seed, an empty choice or a word this module cannot draw.
    """
    table = _attributes(number, seed, objects, colours, backgrounds, styles)
    jitter, words = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3)[1:])
    scale, degrees = jitter.uniform(0.93, 1, number), jitter.uniform(-5, 5, number)
    shift = jitter.uniform(-1, 1, (number, 2))
    template, silent = (
        words.choice(len(TEMPLATES), number, p=TEMPLATE_SHARES),
        words.random(number) < 0.5,
    )
    images, captions = np.empty((number, SIZE, SIZE, 3), np.uint8), []
    for i, row in enumerate(table.to_dict("records")):
        images[i] = draw_sprite(**row, scale=scale[i], degrees=degrees[i], shift=tuple(shift[i]))
        captions.append(
            _caption(
                row, TEMPLATES[template[i]], silent=bool(silent[i]) and row["style"] == "solid"
            )
        )
    return Pictures(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), captions, table)


def prompts(
    number: int,
    seed: int,
    objects: Sequence[str] = OBJECTS,
    colours: Sequence[str] = tuple(COLOURS),
    backgrounds: Sequence[str] = tuple(BACKGROUNDS),
    styles: Sequence[str] = STYLES,
) -> tuple[list[str], pd.DataFrame]:
    """`number` prompts of the form "a striped red star on a blue background", and what each asks for.

    Returns the prompts and a table with columns object, colour, background, style: the attributes that
    `draw_sprites` draws from the same arguments. Raises ValueError as `draw_sprites` does.
    """
    table = _attributes(number, seed, objects, colours, backgrounds, styles)
    return [_caption(row, TEMPLATES[0], silent=False) for row in table.to_dict("records")], table


def _caption(row: dict[str, str], template: str, silent: bool) -> str:
    article: Callable[[str], str] = lambda word: "an" if word[0] in "aeiou" else "a"  # noqa: E731
    style = "" if silent else row["style"]
    text = template.format(
        a=article(style or row["colour"]),
        b=article(row["background"]),
        c=article(row["colour"]),
        **(row | {"style": style}),
    )
    return " ".join(text.split()).rstrip(", ")


def _attributes(number, seed, objects, colours, backgrounds, styles) -> pd.DataFrame:
    """N rows of object, colour, background, style; the background differs from the colour."""
    if int(number) != number or number < 0:
        raise ValueError(f"number must be a whole number of sprites, 0 or more; got {number!r}.")
    if int(seed) != seed or seed < 0:
        raise ValueError(f"seed must be a whole number, 0 or more; got {seed!r}.")
    _check_words("object", objects, OBJECTS + HELD_OUT_OBJECTS)
    _check_words("colour", colours, COLOURS)
    _check_words("background", backgrounds, BACKGROUNDS)
    _check_words("style", styles, STYLES + HELD_OUT_STYLES)
    pairs = np.array(
        [(c, b) for c in colours for b in backgrounds if c != b], dtype=object
    ).reshape(-1, 2)
    if not len(pairs):
        raise ValueError(
            f"the background must differ from the colour; got only {colours[0]!r} for both. Add another."
        )
    rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(3)[0])
    pair = pairs[rng.integers(len(pairs), size=number)]
    return pd.DataFrame(
        {
            "object": np.array(objects, dtype=object)[rng.integers(len(objects), size=number)],
            "colour": pair[:, 0],
            "background": pair[:, 1],
            "style": np.array(styles, dtype=object)[rng.integers(len(styles), size=number)],
        }
    )


def _check_words(kind: str, words: Sequence[str], known: Sequence[str]) -> None:
    if isinstance(words, str):
        raise ValueError(
            f"{kind}s must be a sequence of words; got the single word {words!r}. Write ({words!r},)."
        )
    if not len(words):
        raise ValueError(
            f"no {kind} to choose from; got {words!r}. Give at least one of: {', '.join(known)}."
        )
    for word in words:
        if word not in known:
            raise ValueError(
                f"this lab cannot draw the {kind} {word!r}. Choose from: {', '.join(known)}."
            )
