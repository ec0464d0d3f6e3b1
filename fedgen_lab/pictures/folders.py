"""A learner's own pictures: a folder or zip of captioned images becomes `Pictures`.

Two layouts are known. The Hugging Face Hub's `imagefolder`: images beside a `metadata.csv` or `metadata.jsonl` whose
`file_name` and `text` say which caption belongs to which image; other names are arguments. And that of LoRA trainers
(kohya, ComfyUI): beside each `a.png` its caption in `a.txt`. Used by lab 03's second tab.

Nothing is unpacked to disk, nothing outside the folder or zip is opened, and only the small finished pictures are kept.
"""

import json
import re
import unicodedata
import warnings
import zipfile
from collections import defaultdict
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath

from fedgen_lab.knobs import check_whole
from fedgen_lab.pictures.collection import Candidate, gather, text_of
from fedgen_lab.pictures.tables import read_rows

CAPTION_FILES = ("metadata.csv", "metadata.jsonl")  # looked for in this order
TABLES = (".csv", ".tsv", ".jsonl")
# Text files that hold the caption of the picture beside them; .txt counts where both are there.
SIDECARS = (".caption", ".txt")
# What is named like a picture, whether it can be read or only counted and named.
SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SUFFIXES += (".avif", ".jfif", ".jpe", ".heic", ".heif", ".jp2", ".j2k", ".jpx", ".jxl", ".svg")
SUFFIXES += (".psd", ".ico", ".tga", ".dng", ".cr2", ".cr3", ".nef", ".arw")
MAX_BYTES = 64 * 2**20  # of one file: what is larger is no small picture, but may be a zip bomb
# LoRA trainers write how often to repeat a folder before its name: 10_cat.
REPEATS = re.compile(r"^\d+_(?=.)")
LISTED = 5  # of the files that there are instead, so many are named
MAX_FILES = 200_000  # in one folder: more means that somebody's whole disk was meant by mistake


def read_folder(path, caption_file=None, file_column="file_name", text_column="text", size=32):
    """All captioned pictures of a folder or zip, as square pictures of `size` pixels, in the caption file's order.

    path: a folder, or a .zip of one (read in place).
    caption_file: its name; None finds metadata.csv or metadata.jsonl, also in a sub-folder. Where there is no table
        at all, a picture's caption is the text file of the same name beside it; where no picture has such a file, but
        at least two sub-folders hold pictures, or one that is named like "10_cat", each sub-folder's name less such a
        number is the caption of its pictures (a warning says so).
    file_column, text_column: the columns that name an image and its caption. An image is looked for beside the
        caption file, then in the sub-folders below it. Of a list of captions the first is taken.
    size: width and height in pixels. Pictures keep their shape: see `fedgen_lab.pictures.squares.square`.

    Every column but the caption becomes an attribute. A picture that cannot be used (cut short, not an image,
    missing, without a caption) is left out: a warning counts and names them, and `attributes.attrs["skipped"]` lists
    all as "name: reason".

    Raises FileNotFoundError where `path` is not there, and ValueError where it is neither folder nor zip, the caption
    file or a column is missing, or not one picture can be used. Each says what was looked for and what was found.
    """
    check_whole("size", size)
    path = Path(path).expanduser()
    skipped: list[str] = []
    with _opened(path, skipped) as (names, read):
        # Which rows or text files are there, and which of them name a picture and caption it?
        sidecars = _sidecars(names)
        tables = _caption_files(path, names, sidecars, caption_file, file_column, text_column)
        if tables:
            candidates = _in_tables(path, tables, names, read, file_column, text_column, skipped)
            looked_for = f"the pictures named in column {file_column!r} of {', '.join(tables)}"
        elif sidecars:
            candidates = _in_sidecars(sidecars, names, read, skipped)
            looked_for = "pictures with a text file of the same name beside them"
        else:
            candidates = _in_sub_folders(names, read, skipped)
            looked_for = "pictures in sub-folders"
        # Read and square them.
        searched = f"Looked for {looked_for}; found {_listing(names)}."
        pictures = gather(candidates, len(candidates), size, skipped, str(path), searched)
    if not tables and not sidecars:
        warnings.warn(
            f"{path} has no caption file: the names of its sub-folders are the captions.",
            stacklevel=2,
        )
    return pictures


# -- a folder and a zip look the same: a list of names, and a function that reads one ------------------------------
@contextmanager
def _opened(path, skipped):
    """The names of all visible files in a folder or zip, sorted, and a function from a name to bytes.

    Names are written with "/", whatever system made the zip. Links to folders are not followed, but added to `skipped`.
    """
    if path.is_dir():
        files = list(islice((file for file in path.rglob("*") if _is_leaf(file)), MAX_FILES + 1))
        if len(files) > MAX_FILES:
            raise ValueError(
                f"{path} holds more than {MAX_FILES:,} files. Give the folder of the pictures themselves."
            )
        members = {_name(file.relative_to(path).as_posix()): file for file in files}
        linked = [name for name, file in members.items() if file.is_dir() and _is_visible(name)]
        for name in linked:
            skipped.append(f"{name}: a link to a folder; put the folder itself there")
            del members[name]

        def read(name):
            file = members[name].resolve()
            if not file.is_relative_to(path.resolve()):
                raise ValueError("a link that leaves the folder; put the file itself there")
            _check_bytes(file.stat().st_size)
            return file.read_bytes()

        yield sorted(filter(_is_visible, members)), read
    elif not path.exists():
        raise FileNotFoundError(
            f"There is no folder or zip at {path} (looked from {Path.cwd()}). Check the path."
        )
    elif not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is neither a folder nor a zip. Give the folder that holds the pictures, or a .zip of it."
        )
    else:
        with zipfile.ZipFile(path) as archive:
            members = {_name(info.filename): info for info in archive.infolist()}

            def read(name):
                if members[name].flag_bits & 1:
                    raise ValueError("locked with a password")
                _check_bytes(members[name].file_size)  # zipfile never unpacks more than this
                return archive.read(members[name])

            yield (
                sorted(name for name in members if _is_visible(name) and not name.endswith("/")),
                read,
            )


def _is_leaf(file):
    """A file, or a link to a folder, which `rglob` does not look into."""
    return file.is_file() or (file.is_symlink() and file.is_dir())


def _name(name):
    return name.replace("\\", "/")


def _check_bytes(number):
    if number > MAX_BYTES:
        raise ValueError(
            f"unpacks to {number / 2**20:.0f} MB; at most {MAX_BYTES // 2**20} MB are read"
        )


def _is_visible(name):
    """Leaves out what file managers add: .DS_Store, .ipynb_checkpoints, __MACOSX."""
    return not any(
        folder.startswith(".") or folder == "__MACOSX" for folder in PurePosixPath(name).parts
    )


def _is_picture(name):
    return name.lower().endswith(SUFFIXES)


# -- captions ---------------------------------------------------------------------------------------------------------
def _caption_files(path, names, sidecars, caption_file, file_column, text_column):
    """The caption files to read: those of the right name that lie highest up; none where text files or the names of
    sub-folders serve."""
    usual = (_name(str(caption_file)),) if caption_file else CAPTION_FILES
    for candidate in usual:
        matches = [name for name in names if f"/{name}".endswith(f"/{candidate}")]
        if matches:
            highest = min(name.count("/") for name in matches)
            return [name for name in matches if name.count("/") == highest]
    looked_for = repr(caption_file) if caption_file else " or ".join(CAPTION_FILES)
    tables = [name for name in names if name.lower().endswith(TABLES)]
    if caption_file or tables:
        tip = ""
        if tables:
            tip = f" Perhaps pass caption_file={tables[0]!r}, and the names of its columns?"
        if sidecars:
            tip += (
                f" Or take caption_file and all tables ({', '.join(TABLES)}) away: then text files such as "
                f"{next(iter(sidecars.values()))} are the captions."
            )
        raise ValueError(
            f"{path} holds no caption file {looked_for}; found {_listing(names)}.{tip}"
        )
    if sidecars:
        return []
    folders = {PurePosixPath(name).parent for name in names if _is_picture(name) and "/" in name}
    if len(folders) < 2 and not any(REPEATS.match(folder.name) for folder in folders):
        raise ValueError(
            f"No captioned pictures in {path}. Looked for {looked_for} with the columns {file_column!r} and "
            f"{text_column!r}, then for text files of the pictures' names (a.txt beside a.png), then for at least two "
            "sub-folders of pictures whose names could be captions (or one named like 10_cat); "
            f"found {_listing(names)}."
        )
    return []


def _in_tables(path, tables, names, read, file_column, text_column, skipped):
    """A `Candidate` for each row that names a picture which is there and captions it."""
    files_by_end = defaultdict(list)  # the last part of a plain name -> (plain name, name)
    for name in names:
        plain = _plain(name)
        files_by_end[plain.rpartition("/")[2]].append((plain, name))
    candidates, used = [], set()
    for table in tables:
        folder = table.rpartition("/")[0]
        try:
            content = read(table)
        except Exception as error:  # of a dozen types, as with pictures
            raise ValueError(f"{table} in {path} cannot be read: {error}.") from error
        for line, row, fault in read_rows(
            path, table, content, (file_column, text_column), skipped
        ):
            name, caption = text_of(row.get(file_column)), text_of(row.get(text_column))
            files = _matches(files_by_end, folder, name) if name else []
            used.update(files)
            if not name:
                skipped.append(f"{table} line {line}: no file name in column {file_column!r}")
            elif fault:
                skipped.append(f"{name}: {fault}")
            elif not files:
                skipped.append(f"{name}: no such file")
            elif len(files) > 1:
                skipped.append(f"{name}: fits {len(files)} files; write its sub-folder too")
            elif not caption:
                skipped.append(f"{name}: no caption")
            else:
                attributes = {key: _countable(row[key]) for key in row if key != text_column}
                candidates.append(Candidate(files[0], caption, attributes, partial(read, files[0])))
    skipped += [f"{name}: no caption" for name in names if _is_picture(name) and name not in used]
    return candidates


def _countable(value):
    """A list or table of JSON as text, which can be counted and compared."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _plain(name):
    """A name in which letter case, backslashes and the two ways to write accents do not matter."""
    return _name(unicodedata.normalize("NFC", name)).casefold()


def _matches(files_by_end, folder, name):
    """The files that a row's `name` fits, beside its table or else below it. Only listed files ever do."""
    plain_name = _plain(name).removeprefix("./")
    base = _plain(f"{folder}/" if folder else "")
    files = files_by_end.get(plain_name.rpartition("/")[2], [])
    beside = [file for plain, file in files if plain == base + plain_name]
    below = [
        file for plain, file in files if plain.startswith(base) and plain.endswith(f"/{plain_name}")
    ]
    fitting = beside or below
    exact = [file for file in fitting if file.endswith(name)]  # where letter case alone differs
    return exact if len(exact) == 1 else fitting


def _sidecars(names):
    """The text file beside each picture that has one of the same name: picture -> text file."""
    texts = [name for name in names if name.lower().endswith(SIDECARS)]
    # Letter case matters only where two names differ by nothing else.
    by_stem = {_plain(_stem(name)): name for name in texts} | {_stem(name): name for name in texts}
    text_beside = {
        name: by_stem.get(_stem(name)) or by_stem.get(_plain(_stem(name)))
        for name in filter(_is_picture, names)
    }
    return {name: text for name, text in text_beside.items() if text}


def _stem(name):
    return name.rpartition(".")[0]


def _in_sidecars(sidecars, names, read, skipped):
    """A `Candidate` for each picture whose caption stands in a text file beside it."""
    candidates = []
    for name in filter(_is_picture, names):
        text = sidecars.get(name)
        try:
            if text is None:
                raise ValueError(f"no caption; write it into {_stem(name)}.txt")
            caption = " ".join(read(text).decode("utf-8-sig").split())  # all lines as one
            if not caption:
                raise ValueError(f"no caption; {text} is empty")
        except UnicodeDecodeError:
            skipped.append(f"{name}: no caption; {text} is not UTF-8 text, save it as UTF-8")
        except Exception as error:  # of a dozen types, as with pictures
            skipped.append(f"{name}: {error}")
        else:
            attributes = {"file_name": name, "folder": PurePosixPath(name).parent.name}
            candidates.append(Candidate(name, caption, attributes, partial(read, name)))
    stems = {_plain(_stem(name)) for name in filter(_is_picture, names)}
    for name in names:
        if name.lower().endswith(SIDECARS) and _plain(_stem(name)) not in stems:
            skipped.append(f"{name}: no picture of the same name beside it")
    return candidates


def _in_sub_folders(names, read, skipped):
    """A `Candidate` for each picture that lies in a sub-folder, whose name is its caption."""
    candidates = []
    for name in filter(_is_picture, names):
        folder = PurePosixPath(name).parent.name
        if folder:
            caption = REPEATS.sub("", folder).replace("_", " ").replace("-", " ").strip()
            attributes = {"file_name": name, "folder": folder}
            candidates.append(Candidate(name, caption, attributes, partial(read, name)))
        else:
            skipped.append(f"{name}: lies in no sub-folder, so it has no caption")
    return candidates


def _listing(names):
    """What was found instead, in a few words."""
    if not names:
        return "no files at all"
    pictures = sum(map(_is_picture, names))
    dots = ", ..." if len(names) > LISTED else ""
    return f"{len(names)} files, {pictures} of them named like pictures ({', '.join(names[:LISTED])}{dots})"
