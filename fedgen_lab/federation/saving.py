"""Where a run's result goes: run config "save-to" is tried before round 1, and nothing computed is lost.

Every server app that runs for long, on whatever engine: LoRA, split training and the GANs.
"""

import logging
import tempfile
from contextlib import suppress
from pathlib import Path

from fedgen_lab.files import patiently

_log = logging.getLogger("flwr")
PART = ".part.safetensors"  # behind the name of a file that is being written


def tried_path(run_config):
    """The file that run config "save-to" names, or None where it names none.

    Raises ValueError, naming path, reason and remedy, where no file can be written there.
    """
    name = str(run_config.get("save-to", ""))
    if not name:
        return None
    path = Path(name)
    try:
        path = path.expanduser().absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if not path.is_file():
                raise IsADirectoryError("a folder or a device is there, no file")
            path.open("ab").close()
        # The part of a file that `keep_result` will write first.
        unfinished = path.with_name(path.name + PART)
        unfinished.open("ab").close()
        unfinished.unlink()
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f'save-to="{name}" can\'t be written: {error}. Nothing was trained. Name a file in a folder of the '
            'server\'s machine where you may write, for example save-to="/tmp/adapter.safetensors".'
        ) from error
    return path


def keep_result(write, path):
    """`write(file)` a run's result at its end: to `path`, or to a temporary folder where that fails now.

    The log says so. Nothing is raised: who called the run still gets its result. `path` None: nothing is written.
    """
    if path is None:
        return
    try:
        _write_whole(write, path)
        _log.info('The result of the run is in "%s".', path)
        return
    except Exception as caught:  # a full disk, numbers that no adapter may have
        reason = caught
    try:
        instead = Path(tempfile.mkdtemp(prefix="fedgen-")) / path.name
        _write_whole(write, instead)
        remark = f'It is in "{instead}" instead.'
    except Exception:
        remark = "Nor could a temporary folder; a run in a notebook still returns it."
    _log.error('The result of the run could not be written to "%s": %s. %s', path, reason, remark)


def _write_whole(write, place):
    """The whole file or none: half of one would look like a result."""
    unfinished = place.with_name(place.name + PART)
    try:
        write(unfinished)
        patiently(lambda: unfinished.replace(place))
    finally:
        with suppress(OSError):
            unfinished.unlink()
