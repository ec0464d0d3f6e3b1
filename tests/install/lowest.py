"""Do the oldest versions that pyproject.toml allows run the course? Unit tests and labs in an environment of them.

    python tests/install/lowest.py [--folder .venv-lowest] [--python 3.11] [--only unit|labs] [pytest's options]

Each direct dependency is at its floor, what those bring is the newest, as with pip. A floor that no resolution reaches
is a mistake in pyproject.toml: say what was tried.
"""

import argparse
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from install_torch import CPU_INDEX  # noqa: E402  (beside the project's files, in no package)

UV = [sys.executable, "-m", "uv", "pip"]
# The limit of memory is for the versions that Binder gets: torch with CUDA's libraries alone takes 250 MB more.
LABS = ["--nbval-lax", "--nbval-current-env", "-o", "kernel_megabytes=1300", "labs"]
RUNS = {"unit": ["-o", "addopts=-ra", "-p", "no:nbval", "tests/unit", "tests/labs"], "labs": LABS}


def floors(project):
    """The oldest version that is allowed of each direct dependency and each need of the tests, by name."""
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + extras["hub"] + extras["test"]
    return dict(re.match(r"([\w-]+)(?:\[.*\])?>=([\w.]+)", line).groups() for line in wanted)


def resolved(python):
    """The floors' versions and the newest of what they bring, by name."""
    command = [*UV, "compile", "--quiet", "--no-config", "--no-annotate", "--no-header"]
    command += [
        "--extra",
        "hub",
        "--extra",
        "test",
        "--resolution",
        "lowest-direct",
        "--python-version",
        python,
    ]
    command.append(str(ROOT / "pyproject.toml"))
    lines = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, encoding="utf-8"
    ).stdout.splitlines()
    return dict(line.split(" ")[0].split("==") for line in lines if "==" in line)


def unreached(floors, versions):
    """A sentence for each floor below what the resolution took: nobody ever has that version."""
    from packaging.version import Version

    return [
        f"{name}: {floor} is allowed, and nothing older than {versions[name]} goes with the rest"
        for name, floor in floors.items()
        if Version(floor) != Version(versions[name])
    ]


def install(folder, python, versions):
    """An environment of these versions; its Python. PyTorch comes without CUDA where its own index can be reached."""
    make = [
        sys.executable,
        "-m",
        "uv",
        "venv",
        "--clear",
        "--seed",
        "--python",
        python,
        str(folder),
    ]
    subprocess.run(make, check=True)
    found = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    here = ["--no-config", "--python", str(found)]
    small = [*UV, "install", *here, "--no-deps", *CPU_INDEX[:2], f"torch=={versions['torch']}+cpu"]
    if sys.platform == "linux" and subprocess.run(small).returncode == 0:
        cuda = [
            name for name in versions if name.startswith("nvidia-") or name in ("torch", "triton")
        ]
        versions = {name: version for name, version in versions.items() if name not in cuda}
    listed = folder / "versions.txt"
    listed.write_text(
        "".join(f"{name}=={version}\n" for name, version in versions.items()), encoding="utf-8"
    )
    subprocess.run([*UV, "install", *here, "--no-deps", "-r", str(listed)], check=True)
    subprocess.run([*UV, "install", *here, "--no-deps", "--editable", str(ROOT)], check=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=ROOT / ".venv-lowest")
    parser.add_argument("--python", default="3.11")
    parser.add_argument("--only", choices=RUNS)
    asked, options = parser.parse_known_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = resolved(asked.python)
    if faults := unreached(floors(project), versions):
        return "Raise these floors in pyproject.toml and both environment files:\n" + "\n".join(
            faults
        )
    python = install(asked.folder.absolute(), asked.python, versions)
    red = []
    for name, arguments in RUNS.items():
        if asked.only in (None, name):
            command = [str(python), "-m", "pytest", "-q", *options, *arguments]
            if subprocess.run(
                command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}
            ).returncode:
                red.append(name)
    return f"Red with the oldest versions: {', '.join(red)}." if red else 0


if __name__ == "__main__":
    sys.exit(main())
