"""A learner's own pictures: a folder or zip of captioned images becomes `Pictures`.

The layout is the one the Hugging Face Hub calls `imagefolder`: images beside a `metadata.csv` or `metadata.jsonl` whose
`file_name` and `text` say which caption belongs to which image. Other names are arguments. Used by lab 03's second tab.

Nothing is unpacked to disk, nothing outside the folder or zip is opened, and only the small finished pictures are kept.
"""

import csv
import io
import json
import unicodedata
import warnings
import zipfile
from collections import defaultdict
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath

from fedgen_lab.knobs import check_whole
from fedgen_lab.pictures.collection import Candidate, gather

CAPTION_FILES = ("metadata.csv", "metadata.jsonl")  # looked for in this order
TABLES = (".csv", ".tsv", ".jsonl")
SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
MAX_BYTES = 256 * 2**20  # of one file: what is larger is no small picture, but may be a zip bomb
LISTED = 5  # of the files that there are instead, so many are named
MAX_FILES = 200_000  # in one folder: more means that somebody's whole disk was meant by mistake


def read_folder(path, caption_file=None, file_column="file_name", text_column="text", size=32):
    """All captioned pictures of a folder or zip, as square pictures of `size` pixels, in the caption file's order.

    path: a folder, or a .zip of one (read in place).
    caption_file: its name; None finds metadata.csv or metadata.jsonl, also in a sub-folder. Where there is no table
        at all, but at least two sub-folders hold pictures, each sub-folder's name is the caption of its pictures (a
        warning says so).
    file_column, text_column: the columns that name an image and its caption. An image is looked for beside the
        caption file, then in the sub-folders below it.
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
    with _opened(path) as (names, read):
        # Which rows are there, and which of them name a picture and caption it?
        tables = _caption_files(path, names, caption_file, file_column, text_column)
        if tables:
            candidates = _in_tables(path, tables, names, read, file_column, text_column, skipped)
            looked_for = f"the pictures named in column {file_column!r} of {', '.join(tables)}"
        else:
            candidates = _in_sub_folders(names, read, skipped)
            looked_for = "pictures in sub-folders"
        # Read and square them.
        searched = f"Looked for {looked_for}; found {_listing(names)}."
        pictures = gather(candidates, len(candidates), size, skipped, str(path), searched)
    if not tables:
        warnings.warn(
            f"{path} has no caption file: the names of its sub-folders are the captions.",
            stacklevel=2,
        )
    return pictures


# -- a folder and a zip look the same: a list of names, and a function that reads one ------------------------------
@contextmanager
def _opened(path):
    """The names of all visible files in a folder or zip, sorted, and a function from a name to bytes."""
    if path.is_dir():
        files = list(islice(filter(Path.is_file, path.rglob("*")), MAX_FILES + 1))
        if len(files) > MAX_FILES:
            raise ValueError(
                f"{path} holds more than {MAX_FILES:,} files. Give the folder of the pictures themselves."
            )
        names = [file.relative_to(path).as_posix() for file in files]

        def read(name):
            _check_bytes((path / name).stat().st_size)
            return (path / name).read_bytes()

        yield sorted(filter(_is_visible, names)), read
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
            members = {info.filename: info for info in archive.infolist() if not info.is_dir()}

            def read(name):
                if members[name].flag_bits & 1:
                    raise ValueError("locked with a password")
                _check_bytes(members[name].file_size)  # zipfile never unpacks more than this
                return archive.read(name)

            yield sorted(filter(_is_visible, members)), read


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
def _caption_files(path, names, caption_file, file_column, text_column):
    """The caption files to read: those of the right name that lie highest up; none where sub-folders' names serve."""
    usual = (str(caption_file).replace("\\", "/"),) if caption_file else CAPTION_FILES
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
        raise ValueError(
            f"{path} holds no caption file {looked_for}; found {_listing(names)}.{tip}"
        )
    if len({name.rpartition("/")[0] for name in names if _is_picture(name) and "/" in name}) < 2:
        raise ValueError(
            f"No captioned pictures in {path}. Looked for {looked_for} with the columns {file_column!r} and "
            f"{text_column!r}, then for at least two sub-folders of pictures whose names could be captions; "
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
        for line, row in _read_table(path, table, read(table), (file_column, text_column), skipped):
            name, caption = _text(row.get(file_column)), _text(row.get(text_column))
            files = _matches(files_by_end, folder, name) if name else []
            used.update(files)
            if not name:
                skipped.append(f"{table} line {line}: no file name in column {file_column!r}")
            elif not files:
                skipped.append(f"{name}: no such file")
            elif len(files) > 1:
                skipped.append(f"{name}: fits {len(files)} files; write its sub-folder too")
            elif not caption:
                skipped.append(f"{name}: no caption")
            else:
                file = files[0]
                attributes = {key: row[key] for key in row if key != text_column}
                candidates.append(Candidate(file, caption, attributes, partial(read, file)))
    skipped += [f"{name}: no caption" for name in names if _is_picture(name) and name not in used]
    return candidates


def _plain(name):
    """A name in which letter case, backslashes and the two ways to write accents do not matter."""
    return unicodedata.normalize("NFC", name).replace("\\", "/").casefold()


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


def _read_table(path, table, content, columns, skipped):
    """(line number, row) of a CSV, TSV or JSON-lines file. Broken JSON lines are skipped by number."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{table} in {path} is not UTF-8 text ({error.reason}). Save it as UTF-8."
        ) from None
    rows = []
    if table.lower().endswith(".jsonl"):
        for line, json_text in enumerate(text.splitlines(), 1):
            try:
                row = json.loads(json_text) if json_text.strip() else None
            except ValueError:
                row = json_text
            if isinstance(row, dict):
                for key, value in row.items():
                    if isinstance(value, list | dict):  # as text it can be counted and compared
                        row[key] = json.dumps(value, ensure_ascii=False)
                rows.append((line, row))
            elif row is not None:
                skipped.append(f"{table} line {line}: not a JSON object")
        present = dict.fromkeys(key for _, row in rows for key in row)
    else:
        header = text.lstrip().partition("\n")[0]
        delimiter = max(",;\t", key=header.count)  # spreadsheets of half the world write semicolons
        try:
            reader = csv.DictReader(
                io.StringIO(text), delimiter=delimiter, skipinitialspace=True, restval=""
            )
            present = reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
            for row in reader:
                row.pop(None, None)  # more cells than columns
                rows.append((reader.line_num, row))
        except csv.Error as error:
            raise ValueError(
                f"{table} in {path} cannot be read as a table: {error}. Save it again as CSV UTF-8."
            ) from None
    missing = [column for column in columns if column not in present]
    if missing:
        raise ValueError(
            f"{table} in {path} has no column {' or '.join(map(repr, missing))}; its columns are "
            f"{', '.join(map(repr, present)) or 'none'}. Name them with file_column= and text_column=."
        )
    return rows


def _text(value):
    return "" if value is None else str(value).strip()


def _in_sub_folders(names, read, skipped):
    """A `Candidate` for each picture that lies in a sub-folder, whose name is its caption."""
    candidates = []
    for name in filter(_is_picture, names):
        folder = PurePosixPath(name).parent.name
        if folder:
            caption = folder.replace("_", " ").replace("-", " ").strip()
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
