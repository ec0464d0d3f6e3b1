"""Where the shipped data lies: the tiny Stable Diffusion, the judges, the fingerprinter, the recorded sweeps.

An installed wheel carries data and labs inside the package (fedgen_lab/data and fedgen_lab/labs, a build mapping); a
checkout or an editable install has them in the repository's folders. Nothing is downloaded.
"""

from importlib import resources
from pathlib import Path

NAMES = ("tiny-sd", "judge", "domain-judges", "fingerprinter", "first-adapter", "sweeps")


def shipped(name):
    """The folder of shipped data called `name`, one of `NAMES`.

    Raises ValueError for another name, FileNotFoundError when the folder is not there.
    """
    if name not in NAMES:
        raise ValueError(f"nothing called {name!r} is shipped. Choose from: {', '.join(NAMES)}.")
    return shipped_path(f"data/{name}")


def shipped_path(path):
    """Where this path of the repository lies. Raises FileNotFoundError when it is not there."""
    inside = Path(str(resources.files("fedgen_lab"))) / path
    beside = Path(__file__).resolve().parent.parent / path
    for place in (inside, beside):
        if place.exists():
            return place
    raise FileNotFoundError(
        f"{path} is neither at {inside} nor at {beside}. "
        "Install the package again, or work from a full checkout of the repository."
    )
