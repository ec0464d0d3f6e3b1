"""The labs as they came, and a learner's copies of them: what the command `fedgen-lab` puts into a folder.

No lab teaches this; no paper behind it.
"""

import hashlib
import json
import os
import shutil

from fedgen_lab.files import patiently
from fedgen_lab.shipped import shipped_path

RECORD = ".fedgen-lab.json"  # in a folder of copies: the hash of each file as it was copied


def shipped_labs():
    """The folder of the labs as they came. Raises FileNotFoundError when it is not there."""
    return shipped_path("labs/00_start_here.ipynb").parent


def lab_files(folder):
    """What belongs to the labs in `folder`, as paths relative to it: notebooks, their pictures, what was measured."""
    patterns = ("[0-9][0-9]_*.ipynb", "images/*", "measured.json")
    return sorted(
        path.relative_to(folder).as_posix()
        for pattern in patterns
        for path in folder.glob(pattern)
        if path.is_file()
    )


def copy_labs(folder):
    """Copy the labs that came with the package to `folder`; never over a learner's work.

    A copy that nobody changed follows a new version of the package. Returns the names of the files by what was done:
    "new", "updated", "yours" (changed by the learner and kept), "outdated" (kept, too, but there is a newer version).
    Raises OSError with a sentence when the folder can't be written.
    """
    source = shipped_labs()
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(
            f"{folder} is a file, not a folder. Rename it, or start in another folder."
        )
    copied = _read_record(folder / RECORD)
    done = {"new": [], "updated": [], "yours": [], "outdated": []}
    try:
        for name in lab_files(source):
            shipped, target = _hash(source / name), folder / name
            present = _hash(target) if target.exists() else None
            if present is None or present == copied.get(name) != shipped:
                # Nobody has worked on it.
                _copy(source / name, target)
                done["updated" if present else "new"].append(name)
            elif present != shipped:
                # It is the learner's: what was copied last stays on record.
                done["yours" if copied.get(name) == shipped else "outdated"].append(name)
                continue
            copied[name] = shipped
        (folder / RECORD).write_text(json.dumps(copied, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise OSError(
            f"The labs can't be copied to {folder.resolve()}: {error}. Start in a folder where you may write."
        ) from error
    return done


def _read_record(path):
    """The record at `path`, empty when there is none: then every file that differs counts as changed."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # no file, no JSON, no dictionary
        return {}


def _hash(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _copy(source, target):
    """Copy in one step, so that nobody ever finds half a file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    half = target.with_name(target.name + ".part")
    try:
        shutil.copyfile(source, half)
        patiently(lambda: os.replace(half, target))
    finally:
        half.unlink(missing_ok=True)
