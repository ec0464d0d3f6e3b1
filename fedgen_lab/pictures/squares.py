"""One image file of any size and kind becomes one small square picture.

Shared by a learner's folders and the Hub's data sets; lab 03's second tab shows what comes out.
"""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, features

# Pillow reads more, but not all of it safely; AVIF from 11.3 on.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
if "avif" in features.get_supported_modules():
    FORMATS += ("AVIF",)
# How files of other kinds begin, looked for in their first bytes.
OTHER_KINDS = {
    b"ftypavi": "AVIF",
    b"ftyphei": "HEIC",
    b"ftyphev": "HEIC",
    b"ftypmif1": "HEIC",
    b"ftypmsf1": "HEIC",
    b"jP  \r\n": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"JXL \r\n": "JPEG XL",
    b"8BPS\0": "PSD",
    b"<svg": "SVG",
}
MAX_PIXELS = 12_600_000  # decoded at once: a phone's 4032 x 3024, which takes at most 150 MB
# Decoders of these keep more, or less.
MAX_PIXELS_OF = {"WEBP": 9_000_000, "progressive JPEG": 24_000_000}
SMALLER = "save it smaller, at most {:.1f} million pixels are read"
BAND = 256  # lines of a transparent picture that are flattened at once


def square(content, size):
    """The image in `content` (a whole file) as (3, size, size) uint8.

    Turned upright (EXIF), flattened on white, shrunk or enlarged with antialiasing until its longer side fits, and
    padded to a square: with white where the image was transparent, else with the median colour of its border.

    Raises ValueError, with a reason of a few words, for what is not an image, is cut short or is too large.
    """
    image = _decoded(content, size)
    # Flatten: what is transparent becomes white.
    is_transparent = image.has_transparency_data
    if is_transparent:
        image = _in_mode("RGBA", image)
        is_transparent = image.getextrema()[3][0] < 255
        for top in range(0, image.height, BAND):  # in place: a copy would take as much again
            band = image.crop((0, top, image.width, min(top + BAND, image.height)))
            image.paste(
                Image.alpha_composite(Image.new("RGBA", band.size, "white"), band), (0, top)
            )
    image = _in_mode("RGB", image)
    # Fit its longer side.
    if not image.width == image.height == size:
        fit = size / max(image.size)
        fitted = (max(1, round(image.width * fit)), max(1, round(image.height * fit)))
        image = image.resize(fitted, Image.Resampling.LANCZOS, reducing_gap=3.0)
    # Pad it to a square, in the colour of its border.
    colour = "white"
    if not is_transparent:
        pixels = np.asarray(image)  # (h, w, 3) uint8
        border = np.concatenate(
            [pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]
        )  # (2h + 2w, 3)
        colour = tuple(map(int, np.median(border, axis=0)))
    canvas = Image.new("RGB", (size, size), colour)
    canvas.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return np.asarray(canvas).transpose(2, 0, 1)


def _decoded(content, size):
    """An upright image of 8 bits a channel, in any mode."""
    with warnings.catch_warnings():
        # Pillow warns of large images and odd metadata; the checks below decide.
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        except Image.UnidentifiedImageError:
            raise ValueError(_other_kind(content)) from None
        except Image.DecompressionBombError:
            raise ValueError(
                f"far too large to decode; {SMALLER.format(MAX_PIXELS / 1e6)}"
            ) from None
        # JPEG only: decode a large photo at an eighth of its size.
        width, height = image.size
        image.draft("RGB", (4 * size, 4 * size))
        if image.info.get("progressive"):  # its decoder holds the whole picture all the same
            kind = "progressive JPEG"
        else:
            kind, (width, height) = image.format, image.size
        limit = MAX_PIXELS_OF.get(kind, MAX_PIXELS)
        if width * height > limit:
            raise ValueError(
                f"{width} x {height} pixels of {kind} are too many; {SMALLER.format(limit / 1e6)}"
            )
        try:
            image.load()
        except Exception as error:  # what Pillow raises depends on the format: OSError, SyntaxError, zlib's own ...
            raise ValueError(f"cut short or damaged ({error})") from None
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(("I", "F")):  # 16 and 32 bits a pixel
        return _of_eight_bits(image)
    return image


def _other_kind(content):
    """Why the bytes of a file that Pillow does not know are no picture, and what to do about it."""
    if not content:
        return "empty"
    kind = next((kind for mark, kind in OTHER_KINDS.items() if mark in content[:2000]), None)
    reason = f"{kind} is not read here" if kind else "not an image that can be read"
    return f"{reason}; save it as PNG or JPEG"


def _in_mode(mode, image):
    """The image in this mode; itself where it has it, because `convert` would copy it."""
    return image if image.mode == mode else image.convert(mode)


def _of_eight_bits(image):
    """A grey image of 16 or 32 bits a pixel in 8, its shades kept: white is 65535, or the largest value."""
    grey = np.asarray(image).astype(np.float32)
    np.nan_to_num(grey, copy=False).clip(0, out=grey)
    white = 65535
    if image.mode == "I" and grey.max() <= 255:
        white = 255
    elif image.mode == "F":
        white = max(grey.max(), 1e-6)
    grey *= 255 / white
    return Image.fromarray(grey.clip(0, 255, out=grey).round(out=grey).astype(np.uint8))
