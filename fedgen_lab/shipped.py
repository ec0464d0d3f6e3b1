"""Where the shipped data lies: the tiny Stable Diffusion, the judges, the fingerprinter, the recorded sweeps.

An installed wheel carries them inside the package (fedgen_lab/data, a build mapping); a checkout or an editable install
has them in the repository's `data` folder. Nothing is downloaded.
"""

from importlib import resources
from pathlib import Path

NAMES = ("tiny-sd", "judge", "domain-judges", "fingerprinter", "first-adapter", "sweeps")


def shipped(name: str) -> Path:
    """The folder of shipped data called `name`, one of `NAMES`.

    Raises ValueError for another name, FileNotFoundError when the folder is not there.
    """
    if name not in NAMES:
        raise ValueError(f"nothing called {name!r} is shipped. Choose from: {', '.join(NAMES)}.")
    inside = Path(str(resources.files("fedgen_lab"))) / "data" / name
    beside = Path(__file__).resolve().parent.parent / "data" / name
    for folder in (inside, beside):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"the shipped folder {name!r} is neither at {inside} nor at {beside}. "
        "Install the package again, or work from a full checkout of the repository."
    )
