"""Where tests get the recorders of sweeps and their harness: data/record is no part of the package."""

import importlib
import sys
from pathlib import Path

FOLDER = str(Path(__file__).resolve().parents[1] / "data" / "record")


def recorder(name):
    """The module that records sweep `name`, or "record", the harness."""
    if FOLDER not in sys.path:
        sys.path.append(FOLDER)
    return importlib.import_module(name)
