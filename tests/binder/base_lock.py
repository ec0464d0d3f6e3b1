"""The course on Binder, as near as one comes without a container: `make test-binder` runs this.

repo2docker, which builds Binder's images, starts from a base environment whose lock file it ships. That lock holds
ipykernel 7.0.1, where threads start with an empty context. Here the lock's Jupyter packages come first, pip then adds
the course and what it needs, and lab 03's dashboard runs in Chromium. Both environments stay in .venv-binder/.
"""

import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".venv-binder"
JUPYTER = re.compile(
    r"jupyter|ipy|ipywidgets|nb|notebook|traitlets|comm$|tornado|pyzmq|widgetsnbextension"
)
# Names that differ between conda-forge and PyPI; None: no package of its own there.
PYPI_NAMES = {
    "nbconvert-core": "nbconvert",
    "jupyterhub-base": "jupyterhub",
    "jupyterhub-singleuser": None,
}


def main():
    """Build what is missing, then check both: the repository by repo2docker, the dashboard in a browser."""
    repo2docker = environment("repo2docker")
    pip(repo2docker, "jupyter-repo2docker")
    pins = locked_jupyter(repo2docker)
    kernel = next(pin for pin in pins if pin.startswith("ipykernel=="))
    print(
        f"The base lock of repo2docker holds {kernel} and {len(pins) - 1} more Jupyter packages.",
        flush=True,
    )

    repo2docker_accepts_the_repository(repo2docker)

    lab = environment("lab")
    wanted = "\n".join([*pins, (ROOT / "pyproject.toml").read_text(encoding="utf-8")])
    stamp = FOLDER / "installed"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        print("Installing them and the course; the first time this takes some minutes.", flush=True)
        stamp.unlink(missing_ok=True)
        pip(lab, *pins)
        subprocess.run([lab, ROOT / "install_torch.py"], check=True)
        pip(lab, "-e", ROOT, "pytest", "playwright")
        # The course declares a kernel without that fault, so pip has replaced it: back to the lock's.
        pip(lab, "--no-deps", kernel)
        stamp.write_text(wanted, encoding="utf-8")
    installed = output(
        lab, "-c", "from importlib.metadata import version; print(version('ipykernel'))"
    ).strip()
    assert f"ipykernel=={installed}" == kernel, (
        f"the environment has ipykernel {installed}, the base lock {kernel}"
    )

    subprocess.run([lab, Path(__file__).with_name("dashboard.py")], check=True)


def environment(name):
    """The Python of a virtual environment in FOLDER, made if it isn't there."""
    folder = FOLDER / name
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    return python


def pip(python, *what):
    """Install into an environment; quick where all is there."""
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *what], check=True
    )


def output(python, *arguments):
    return subprocess.run(
        [python, *arguments], capture_output=True, text=True, check=True, encoding="utf-8"
    ).stdout


def locked_jupyter(repo2docker):
    """The Jupyter packages of repo2docker's base lock for this Python, as pins that pip understands."""
    code = "import repo2docker.buildpacks.conda as conda; print(conda.__path__[0])"
    lock = Path(output(repo2docker, "-c", code).strip())
    lock /= f"environment.py-3.{sys.version_info.minor}-linux-64.lock"
    pins = []
    for line in lock.read_text(encoding="utf-8").splitlines():
        if not line.startswith("https://"):
            continue
        file = line.partition("#")[0].rpartition("/")[2]
        name, version, _ = file.rsplit("-", 2)
        name = PYPI_NAMES.get(name, name)
        if name is not None and JUPYTER.match(name):
            pins.append(f"{name}=={version}")
    return pins


def repo2docker_accepts_the_repository(repo2docker):
    """`jupyter-repo2docker --no-build` on a clean clone; raises when it does not accept it."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
        command = [repo2docker.with_name("jupyter-repo2docker"), "--no-build", "--debug", clone]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    dockerfile = done.stdout + done.stderr
    assert done.returncode == 0, dockerfile
    for step in ("binder/environment.yml", "binder/postBuild", "binder/start"):
        assert step in dockerfile, (
            f"repo2docker's Dockerfile does not mention {step}:\n{dockerfile}"
        )
    print("repo2docker accepts the repository.", flush=True)


if __name__ == "__main__":
    main()
