"""Has every dependency a wheel on every system that the course is for? A learner there may have no compiler.

    python tests/install/wheels.py [--project pyproject.toml]

Resolves the dependencies, extras included, for each system and Python twice: from wheels alone, and as pip does, which
takes the newest release even where it has to be built. Reads the registry's metadata only; nothing is installed.
"""

import argparse
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.11", "3.12", "3.13")
SYSTEMS = (
    "x86_64-pc-windows-msvc",
    "aarch64-apple-darwin",
    "x86_64-manylinux_2_28",
    "aarch64-manylinux_2_28",
)


def resolve(project, python, system, *options):
    """(versions by name, "") of all packages that `project` needs there, or ({}, why there is no answer)."""
    extras = tomllib.loads(project.read_text(encoding="utf-8"))["project"].get(
        "optional-dependencies", {}
    )
    command = [
        sys.executable,
        "-m",
        "uv",
        "pip",
        "compile",
        "--quiet",
        "--no-config",
        "--no-annotate",
        "--no-header",
    ]
    command += ["--python-version", python, "--python-platform", system, *options, str(project)]
    for extra in extras:
        command += ["--extra", extra]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    if done.returncode:
        return {}, done.stderr
    return dict(
        line.split(" ")[0].split("==") for line in done.stdout.splitlines() if "==" in line
    ), ""


def lacking(project, python, system):
    """A sentence for each package without a wheel there, named; none if all have one."""
    from_wheels, error = resolve(project, python, system, "--only-binary", ":all:")
    if error:
        names = sorted(set(re.findall(r"Wheels are required for `([^`]+)`", error)))
        return [f"{name} has no wheel" for name in names] or [error]
    as_pip_does, error = resolve(project, python, system)
    if error:
        return [error]
    return [
        f"{name} {version} has no wheel (the last that has is {from_wheels.get(name, 'none')}), and pip would build it"
        for name, version in as_pip_does.items()
        if from_wheels.get(name) != version
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--project", type=Path, default=ROOT / "pyproject.toml")
    project, failed = parser.parse_args().project, 0
    for python in PYTHONS:
        for system in SYSTEMS:
            faults = lacking(project, python, system)
            failed += bool(faults)
            print(f"Python {python}, {system}: {'; '.join(faults) or 'wheels for all'}", flush=True)
    print(f"{len(PYTHONS) * len(SYSTEMS) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
