"""What a learner guessed, tried and passed: one JSON file beside the labs, `my_progress.json`, never sent anywhere.

FEDGEN_PROGRESS names another file. Used by all labs through `check`, `predict`, `recall` and `progress`.
"""

import json
import os
import tempfile
import warnings
from pathlib import Path

from fedgen_lab.files import patiently

SECTIONS = ("exercises", "guesses", "recall")
_unsaved: dict[
    Path, dict
] = {}  # what could not be written to disk, so that a read-only folder does not stop a lesson


def progress_file() -> Path:
    """Where progress is kept: FEDGEN_PROGRESS, else my_progress.json in the labs' folder."""
    if os.environ.get("FEDGEN_PROGRESS"):
        path = Path(os.environ["FEDGEN_PROGRESS"]).expanduser()
        return path / "my_progress.json" if path.is_dir() else path
    here = Path.cwd()
    folder = here / "labs" if here.name != "labs" and (here / "labs").is_dir() else here
    return folder / "my_progress.json"


def load() -> dict:
    """Everything kept so far, as {"exercises": {key: facts}, "guesses": {key: facts}, "recall": {key: facts}}.

    A file that cannot be read as progress is renamed (nothing is deleted), a warning says so, and the record starts
    anew.
    """
    path = progress_file()
    kept = json.loads(json.dumps(_unsaved.get(path, parse("{}"))))
    try:
        return merge(kept, _on_disk(path))
    except (OSError, ValueError) as error:
        _set_aside(path, error)
        return kept


def note(section: str, key: str, **facts) -> None:
    """Add facts to what is known about one exercise, guess or recall question, and save at once."""
    everything = load()  # read again each time: another notebook may have written meanwhile
    everything[section].setdefault(key, {}).update(facts)
    save(everything)


def save(everything: dict) -> None:
    """Write the whole record in one step, so that a crash never leaves half a file."""
    path = progress_file()
    temporary = None
    try:
        if path in _unsaved:  # another notebook may have saved meanwhile
            everything = merge(everything, _on_disk(path))
        text = json.dumps({"format": 1, **everything}, indent=1, ensure_ascii=False, sort_keys=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "wb", dir=path.parent, delete=False, suffix=".part"
        ) as file:
            temporary = Path(file.name)
            file.write(
                text.encode("utf-8", "backslashreplace")
            )  # half a letter stays as JSON writes it: \ud800
        patiently(lambda: os.replace(temporary, path))
        _unsaved.pop(path, None)
    except (OSError, ValueError) as error:
        if path not in _unsaved:
            warnings.warn(
                f"Progress cannot be saved to {path} ({error}). It is kept until the kernel stops.",
                stacklevel=2,
            )
        _unsaved[path] = everything
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


def parse(text: str) -> dict:
    """A record from its JSON text; parts of another shape are left out.

    Raises ValueError where it is not a record of this lab at all.
    """
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"this is not JSON ({error})") from None
    except RecursionError:
        raise ValueError("this is not a progress file: it is nested too deeply") from None
    if not isinstance(found, dict) or (
        found and not any(isinstance(found.get(part), dict) for part in SECTIONS)
    ):
        raise ValueError(
            f"this is not a progress file: it has none of the parts {', '.join(SECTIONS)}"
        )
    everything = {}
    for section in SECTIONS:
        entries = found.get(section)
        entries = entries if isinstance(entries, dict) else {}
        everything[section] = {
            key: facts for key, facts in entries.items() if isinstance(facts, dict)
        }
    return everything


def merge(ours: dict, theirs: dict) -> dict:
    """Both records in one: an exercise passed in either is passed, and a guess already made here stays."""
    merged = {section: {**theirs[section], **ours[section]} for section in SECTIONS}
    for key in set(ours["exercises"]) & set(theirs["exercises"]):
        a, b = ours["exercises"][key], theirs["exercises"][key]
        counts = {name: max(count(a, name), count(b, name)) for name in ("tries", "hints")}
        marks = {
            name: True
            for name in ("passed", "solution_seen")
            if a.get(name) is True or b.get(name) is True
        }
        merged["exercises"][key] = {**b, **a, **counts, **marks}
    return merged


def count(facts: dict, name: str) -> int:
    """A whole number from a record that somebody may have edited by hand."""
    value = facts.get(name, 0)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _on_disk(path: Path) -> dict:
    """The record in the file, which Notepad may have saved; an empty one where there is no file."""
    try:
        return parse(patiently(lambda: path.read_text(encoding="utf-8-sig")))
    except (FileNotFoundError, NotADirectoryError):
        return parse("{}")


def _set_aside(path: Path, error: Exception) -> None:
    number = 1
    while (aside := path.with_name(f"{path.stem}.broken-{number}{path.suffix}")).exists():
        number += 1
    try:
        path.rename(aside)
        warnings.warn(
            f"{path.name} could not be read: {error}. It is now called {aside.name}, and a new one begins.",
            stacklevel=4,
        )
    except OSError:
        if path not in _unsaved:
            warnings.warn(
                f"{path} could not be read: {error}. Progress is kept until the kernel stops.",
                stacklevel=4,
            )
        _unsaved.setdefault(path, parse("{}"))
