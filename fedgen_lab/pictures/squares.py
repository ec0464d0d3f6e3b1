"""One image file of any size and kind becomes one small square picture.

Shared by a learner's folders and the Hub's data sets; lab 03's second tab shows what comes out.
"""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

FORMATS = (
    "PNG",
    "JPEG",
    "GIF",
    "BMP",
    "WEBP",
    "TIFF",
    "PPM",
)  # Pillow reads more, but not all of it safely
MAX_PIXELS = 60_000_000  # decoded at once; 240 MB, which still fits beside the model in 1 GB


def square(content: bytes, size: int) -> np.ndarray:
    """The image in `content` (a whole file) as (3, size, size) uint8.

    Turned upright (EXIF), flattened on white, shrunk or enlarged with antialiasing until its longer side fits, and
    padded to a square: with white where the image was transparent, else with the median colour of its border.

    Raises ValueError, with a reason of a few words, for what is not an image, is cut short or is too large.
    """
    image, was_transparent = _decoded(content, size)
    if not image.width == image.height == size:
        fit = size / max(image.size)
        image = image.resize(
            (max(1, round(image.width * fit)), max(1, round(image.height * fit))),
            Image.Resampling.LANCZOS,
            reducing_gap=3.0,
        )
    pixels = np.asarray(image)  # (h, w, 3) uint8
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])  # (2h + 2w, 3)
    colour = (
        np.uint8((255, 255, 255)) if was_transparent else np.median(border, axis=0).astype(np.uint8)
    )
    canvas = np.broadcast_to(colour, (size, size, 3)).copy()
    top, left = (size - pixels.shape[0]) // 2, (size - pixels.shape[1]) // 2
    canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return canvas.transpose(2, 0, 1)


def _decoded(content: bytes, size: int) -> tuple[Image.Image, bool]:
    """An upright RGB image, and whether it had transparency."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # Pillow warns of large images and odd metadata; the checks below decide
        try:
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        except Image.UnidentifiedImageError:
            raise ValueError("empty" if not content else "not an image") from None
        except Image.DecompressionBombError:
            raise ValueError("far too large to decode") from None
        image.draft(
            "RGB", (4 * size, 4 * size)
        )  # JPEG only: decode a large photo at an eighth of its size
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are too many to decode")
        try:
            image.load()
        except Exception as error:  # what Pillow raises depends on the format: OSError, SyntaxError, zlib's own ...
            raise ValueError(f"cut short or damaged ({error})") from None
        return _flattened(ImageOps.exif_transpose(image))


def _flattened(image: Image.Image) -> tuple[Image.Image, bool]:
    if image.mode in ("I", "F") or image.mode.startswith("I;"):  # 16 and 32 bits a pixel
        grey = np.nan_to_num(np.asarray(image).astype(np.float32)).clip(0)
        top = (
            255
            if image.mode == "I" and grey.max() <= 255
            else 65535
            if image.mode != "F"
            else max(grey.max(), 1e-6)
        )
        return Image.fromarray((grey * (255 / top)).clip(0, 255).round().astype(np.uint8)).convert(
            "RGB"
        ), False
    if image.has_transparency_data:
        image = image.convert("RGBA")
        was_transparent = image.getchannel("A").getextrema()[0] < 255
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert(
            "RGB"
        ), was_transparent
    return image.convert("RGB"), False
