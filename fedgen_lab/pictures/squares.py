"""One image file of any size and kind becomes one small square picture.

Shared by a learner's folders and the Hub's data sets; lab 03's second tab shows what comes out.
"""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

# Pillow reads more, but not all of it safely.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
MAX_PIXELS = 60_000_000  # decoded at once; 240 MB, which still fits beside the model in 1 GB


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
        image = image.convert("RGBA")
        is_transparent = image.getchannel("A").getextrema()[0] < 255
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
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
            raise ValueError("empty" if not content else "not an image") from None
        except Image.DecompressionBombError:
            raise ValueError("far too large to decode") from None
        # JPEG only: decode a large photo at an eighth of its size.
        image.draft("RGB", (4 * size, 4 * size))
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are too many to decode")
        try:
            image.load()
        except Exception as error:  # what Pillow raises depends on the format: OSError, SyntaxError, zlib's own ...
            raise ValueError(f"cut short or damaged ({error})") from None
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):  # 16 and 32 bits a pixel
        return _of_eight_bits(image)
    return image


def _of_eight_bits(image):
    """A grey image of 16 or 32 bits a pixel in 8, its shades kept: white is 65535, or the largest value."""
    grey = np.nan_to_num(np.asarray(image).astype(np.float32)).clip(0)
    white = 65535
    if image.mode == "I" and grey.max() <= 255:
        white = 255
    elif image.mode == "F":
        white = max(grey.max(), 1e-6)
    return Image.fromarray((grey * (255 / white)).clip(0, 255).round().astype(np.uint8))
