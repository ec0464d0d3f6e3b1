"""Golden outcomes of every way to come by pictures, and of the scores that grade them."""

import gzip
import io
import json
import warnings
import zipfile
from functools import cache

import numpy as np
import torch
import wing
import world
from golden import PIXELS, SINGLE, Outcome, fingerprint
from PIL import Image

# -- files to read --------------------------------------------------------------------------------------------------


def image(number, mode="RGB", size=(9, 12)):
    """A picture of smooth colours, which a codec keeps as they are."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    channels = [255 * (0.5 + 0.5 * np.sin(number + k + 3 * x + 2 * k * y)) for k in range(4)]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8), "RGBA").convert(mode)


def content(picture, kind="PNG", **how):
    """A picture as the bytes of a file."""
    file = io.BytesIO()
    picture.save(file, kind, **how)
    return file.getvalue()


def files(**more):
    """A folder's files by name: six pictures, two of them broken, and what `more` adds."""
    found = {f"{n}.png": content(image(n)) for n in range(4)}
    found |= {
        "sub/4.jpg": content(image(4), "JPEG", quality=95),
        "cut.png": found["0.png"][:60],
        "no.png": b"nonsense",
    }
    return found | more


ROWS = (  # file, caption, kind; not every row can be used
    ("0.png", "a red star", "star"),
    ("1.png", "a blue, big star", "star"),
    ("SUB\\4.JPG", "a green moon", "moon"),
    ("cut.png", "cut short", "star"),
    ("no.png", "no picture", "star"),
    ("gone.png", "not there", "moon"),
    ("2.png", " ", "moon"),
    ("", "no name", "moon"),
)


def csv_of(rows, columns=("file_name", "text", "kind"), mark=","):
    """A table as a spreadsheet writes it."""
    lines = [columns, *rows]
    return "\n".join(
        mark.join(f'"{cell}"' if mark in cell else cell for cell in line) for line in lines
    ).encode()


def write(name, contents, zipped=False):
    """A folder or a zip of these files; returns its path."""
    place = world.folder() / name
    if zipped:
        with zipfile.ZipFile(place, "w") as archive:
            for file, data in contents.items():
                archive.writestr(file, data)
        return place
    for file, data in contents.items():
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_bytes(data)
    return place


def read(name, contents, zipped=False, **how):
    """What `read_folder` makes of these files: pictures, captions, attributes, and why rows were left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pictures = wing.read_folder(write(name, contents, zipped), size=8, **how)
    return {
        "images": fingerprint(pictures.images),
        "captions": pictures.captions,
        "attributes": pictures.attributes.astype(str).to_dict("list"),
        "left out": [reason.partition(":")[0] for reason in pictures.attributes.attrs["skipped"]],
    }


def read_jsonl():
    """JSON lines, one of them broken, with columns of other names."""
    rows = [
        json.dumps({"image": file, "words": words, "tags": [kind]})
        for file, words, kind in ROWS[:3]
    ]
    table = "\n".join([*rows, "{broken", "7"]).encode()
    how = {"caption_file": "table.jsonl", "file_column": "image", "text_column": "words"}
    return read("lines", files(**{"table.jsonl": table}), **how)


def read_sub_folders():
    """No table at all: the names of sub-folders are captions."""
    return read(
        "subs.zip",
        {f"set/{('red_star', 'moon')[n % 2]}/{n}.png": content(image(n)) for n in range(4)},
        True,
    )


def squares():
    """Every kind of image file as one small square."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    deep = Image.fromarray((np.asarray(image(5, "L"), np.uint32) * 257).astype(np.uint16))
    kinds = {
        "turned photo": content(image(0), "JPEG", quality=95, exif=exif),
        "transparent": content(image(1, "RGBA")),
        "grey": content(image(2, "L")),
        "palette": content(image(3).quantize(8)),
        "16 bits": content(deep),
        "bitmap": content(image(4), "BMP"),
        "one pixel": content(image(5, size=(1, 1))),
        "wide": content(image(6, size=(40, 6))),
        "CMYK": content(image(7, "CMYK"), "TIFF"),
        "black and white": content(image(8, "1")),
    }
    return {kind: fingerprint(wing.square(data, 8)) for kind, data in kinds.items()}


# -- domains --------------------------------------------------------------------------------------------------------


def domain(name, number=12, side=14, **how):
    """Pictures and labels of a domain, of its training part and of the part that is held out."""
    found = {}
    for held_out in (False, True):
        part = wing.load_domain(name, number, side, seed=2, held_out=held_out, **how)
        which = "held out" if held_out else "to train on"
        found[which], found[f"labels {which}"] = fingerprint(part.images), part.labels.tolist()
    return found | {"label names": list(part.label_names)}


def idx(marks, zipped):
    """A folder of IDX files, in two parts or in one."""

    def compute():
        rng, place = world.random(40), world.folder() / f"idx{''.join(marks)}"
        place.mkdir(exist_ok=True)
        for mark in marks:
            images, labels = (
                rng.integers(0, 256, (30, 8, 8), dtype=np.uint8),
                np.arange(30, dtype=np.uint8) % 10,
            )
            for what, array in (("images", images), ("labels", labels)):
                header = bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4) for n in array.shape)
                data = header + array.tobytes()
                name = f"{mark}-{what}-idx{array.ndim}-ubyte" + ".gz" * zipped
                (place / name).write_bytes(gzip.compress(data) if zipped else data)
        return domain(f"mnist:{place}", 5, 6)

    return compute


def folder_domain():
    """A folder of captioned pictures, labelled by the ten most frequent values of a column."""
    rows = [(f"{n}.png", f"word {n}", f"k{n % 11}") for n in range(32)]
    contents = {f"{n}.png": content(image(n)) for n in range(32)} | {"metadata.csv": csv_of(rows)}
    return domain(f"folder:{write('labelled', contents)}#kind", None, 8)


# -- sprites and scores ---------------------------------------------------------------------------------------------


@cache
def sprites(number, seed):
    """Sprites that every score here looks at."""
    return wing.draw_sprites(number, seed)


def sprites_of(**words):
    """Sprites of some objects, colours, backgrounds or styles."""
    pictures = wing.draw_sprites(6, 1, **words)
    return {
        "images": fingerprint(pictures.images),
        "captions": pictures.captions,
        "attributes": pictures.attributes.to_dict("list"),
        "tensor": fingerprint(pictures.take([3, 0]).as_tensor()),
    }


def prompted():
    """Prompts and what they ask for."""
    captions, asked = wing.prompts(5, 4, objects=wing.HELD_OUT_OBJECTS)
    return {"captions": captions, "asked": asked.to_dict("list")}


def painted():
    """Lab 01's painter and its picture book."""
    book = wing.picture_book(12, 3)
    first = sorted(set(book.attributes["object"]))[:1]
    return {
        "pictures": fingerprint(book.pictures),
        "captions": book.captions,
        "words": fingerprint(book.words),
        "error": wing.error(wing.new_painter(2), book),
        "of one object": wing.error(wing.new_painter(2), book, first),
    }


def judged():
    """The judge's words for sprites and for noise, and the share of right answers."""
    pictures, judge = sprites(150, 5).take(range(24)), wing.load_judge()
    noise = torch.from_numpy(world.random(41).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8))
    fidelity = wing.prompt_fidelity(
        pictures.images, pictures.attributes.iloc[::-1].reset_index(drop=True), judge
    )
    return {
        "sprites": wing.judged(pictures.images, judge).to_dict("list"),
        "noise": len(wing.judged(noise, judge)),
        "fidelity to what others asked": fidelity,
        "features": fingerprint(judge.features(judge.read(pictures.images))),
    }


def scored():
    """KID, FID, precision and recall of darkened sprites against sprites."""
    real, judge = sprites(150, 5).images, wing.load_judge()
    darker = (0.6 * sprites(150, 6).images.float()).to(torch.uint8)
    return {
        "kid": wing.kid(real, darker, judge, subset_size=20, seed=1),
        "fid": wing.fid(real, darker, judge),
        "precision and recall": list(wing.precision_recall(real[:60], darker[:60], judge)),
    }


def _outcomes():
    table = files(**{"metadata.csv": csv_of(ROWS)})
    yield (
        "folder: a table with rows that can't be used",
        Outcome(lambda: read("csv", table), PIXELS),
    )
    yield "folder: the same as a zip", Outcome(lambda: read("csv.zip", table, True), PIXELS)
    mended = files(**{"tables/own.csv": csv_of(ROWS[:3], ("datei", "wörter", "art"), ";")})
    how = {"caption_file": "own.csv", "file_column": "datei", "text_column": "wörter"}
    del mended["sub/4.jpg"]
    below = {**mended, "tables/sub/4.jpg": content(image(4)), "tables/0.png": mended["0.png"]}
    yield (
        "folder: a table of another name with semicolons",
        Outcome(lambda: read("own", below, **how), PIXELS),
    )
    yield "folder: JSON lines", Outcome(read_jsonl, PIXELS)
    yield "folder: sub-folders instead of a table", Outcome(read_sub_folders, PIXELS)
    yield "squares: every kind of image file", Outcome(squares, PIXELS)
    for name in ("digits", "letters", "garments", "runes", "sprites:glowing"):
        yield f"domain: {name}", Outcome(lambda name=name: domain(name), PIXELS)
    yield "domain: IDX files in two parts, zipped", Outcome(idx(("train", "t10k"), True))
    yield "domain: IDX files in one part", Outcome(idx(("train",), False))
    yield "domain: a folder's column", Outcome(folder_domain, PIXELS)
    yield "sprites: all words", Outcome(sprites_of, PIXELS)
    held_out = {
        "objects": ["anchor", "umbrella"],
        "styles": ["checkered", "pixelated", "striped"],
        "colours": ["red"],
    }
    yield "sprites: some words", Outcome(lambda: sprites_of(**held_out), PIXELS)
    yield "sprites: prompts", Outcome(prompted)
    yield "painter: picture book and errors", Outcome(painted, SINGLE)
    yield "scores: what the judge sees", Outcome(judged, PIXELS)
    yield "scores: KID, FID, precision and recall", Outcome(scored, PIXELS)


OUTCOMES = dict(_outcomes())
