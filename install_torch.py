"""Install PyTorch into the running environment, without gigabytes of CUDA where there is no NVIDIA GPU.

`make lab` and `make test` call this before they install the rest. On Linux, PyPI's torch for Intel and AMD processors
brings the CUDA libraries along (about 3 GB); PyTorch's own index has a build of 190 MB for the processor alone, with
"+cpu" at the end of its version. So, on such a machine without a working NVIDIA GPU, take the newest "+cpu" build that

1. pip itself is configured to see (PIP_FIND_LINKS, PIP_INDEX_URL, pip.conf: a folder of wheels, a mirror), else
2. PyTorch's CPU index offers, asked once and briefly, so that a machine that can't reach it neither fails nor waits.

Everywhere else, and where neither has one, do nothing: `pip install .` then takes torch from where pip gets the rest.
"""

import platform
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

CPU_INDEX = [
    "--index-url",
    "https://download.pytorch.org/whl/cpu",
    "--timeout",
    "10",
    "--retries",
    "0",
]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def has_nvidia_gpu():
    """Whether nvidia-smi is there and lists at least one GPU."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, encoding="utf-8"
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU" in listed.stdout


def cpu_builds(listing):
    """The "+cpu" versions, newest first, in what `pip index versions` prints."""
    lines = [line for line in listing.splitlines() if line.startswith("Available versions:")]
    return [
        version.strip()
        for line in lines
        for version in line.partition(":")[2].split(",")
        if "+cpu" in version
    ]


def offered(options):
    """The "+cpu" versions that pip can see with `options`; none when it can't say within two minutes."""
    try:
        asked = subprocess.run(
            [*PIP, "index", "versions", "torch", *options],
            capture_output=True,
            timeout=120,
            encoding="utf-8",
        )
    except subprocess.TimeoutExpired:
        return []
    return cpu_builds(asked.stdout)


def main():
    """Install torch if this machine needs the smaller build and one is on offer."""
    if find_spec("torch"):
        return print("torch: already there.")
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "AMD64"):
        return print("torch: pip's usual build is the right one here.")
    if has_nvidia_gpu():
        return print("torch: an NVIDIA GPU is here, so pip's usual build with CUDA it is.")
    project = tomllib.loads(Path(__file__).with_name("pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    wanted = next(line for line in project["dependencies"] if line.startswith("torch>"))
    for place, options in (("pip's own configuration", []), ("PyTorch's CPU index", CPU_INDEX)):
        for version in offered(options)[:1]:
            print(f"torch: no NVIDIA GPU here, taking {version} from {place}.", flush=True)
            if (
                subprocess.run(
                    [*PIP, "install", "-q", *options, wanted, f"torch=={version}"]
                ).returncode
                == 0
            ):
                return None
    return print(
        "torch: no CPU build is on offer here; pip's usual build follows, which may be large."
    )


if __name__ == "__main__":
    main()
