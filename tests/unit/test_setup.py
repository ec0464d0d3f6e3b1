"""The set-up says one thing: pyproject.toml, environment.yml and binder/ agree, and so do the commands around them."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="a script for a POSIX shell")
# conda-forge's names where they differ
ON_CONDA = {"torch": "pytorch-cpu", "jupyter-core": "jupyter_core"}
ONLY_CONDA = {"python", "pip", "hatchling"}  # what conda has to be told and pip knows by itself


def split(requirement):
    """("torch", {">=2.8", "<3"}) for "torch>=2.8,<3"."""
    cut = min(
        (requirement.find(sign) for sign in "<>=!~" if sign in requirement),
        default=len(requirement),
    )
    return requirement[:cut].strip(), frozenset(
        part.strip() for part in requirement[cut:].split(",") if part.strip()
    )


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def conda_dependencies(path):
    dependencies = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))["dependencies"]
    from_pip = [line for entry in dependencies if isinstance(entry, dict) for line in entry["pip"]]
    return [line for line in dependencies if isinstance(line, str)], from_pip


@pytest.fixture
def install_torch():
    spec = importlib.util.spec_from_file_location("install_torch", ROOT / "install_torch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", ["environment.yml", "binder/environment.yml"])
def test_conda_gets_the_names_and_ranges_that_pip_gets(path):
    from_conda, from_pip = conda_dependencies(path)
    wanted = dict(split(line) for line in project()["dependencies"])
    found = {name: allowed for name, allowed in map(split, from_conda) if name not in ONLY_CONDA}
    names = {conda: pip for pip, conda in ON_CONDA.items()}
    found = {names.get(name, name): allowed for name, allowed in found.items()} | dict(
        map(split, from_pip)
    )
    assert found == wanted


def test_every_dependency_is_a_range_and_none_is_pinned():
    for requirement in project()["dependencies"]:
        _, allowed = split(requirement)
        signs = sorted(
            part[0] for part in allowed if not part.startswith("!=")
        )  # one release left out is no pin
        assert signs == ["<", ">"], requirement


def test_a_release_that_is_left_out_belongs_to_the_range_and_not_to_the_name():
    assert split("ipykernel>=6.29,!=7.0.*,<8") == ("ipykernel", {">=6.29", "!=7.0.*", "<8"})


# web3 speaks in the types of the first three, torchmetrics asks the last what is installed; both name the ranges
# themselves, and a second range here could only contradict them.
BROUGHT = {"eth-abi", "eth-account", "eth-utils", "lightning-utilities"}


@pytest.mark.parametrize(
    "folder, extras", [("fedgen_lab", ["hub"]), ("tests", ["hub", "test"]), ("data", ["test"])]
)
def test_every_package_that_is_imported_is_a_declared_dependency(folder, extras):
    lines = project()["dependencies"] + [
        line for name in extras for line in project()["optional-dependencies"][name]
    ]
    declared = {re.match(r"[\w-]+", line)[0] for line in lines} | BROUGHT
    files = list((ROOT / folder).rglob("*.py"))
    ours = (
        {path.stem for path in files}
        | {path.name for path in ROOT.iterdir()}
        | {"fedgen_lab", "install_torch"}
    )
    brought = packages_distributions()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for module in (
                {module.split(".")[0] for module in modules} - ours - sys.stdlib_module_names
            ):
                names = {name.lower().replace("_", "-") for name in brought.get(module, [module])}
                assert names & declared, f"{path} imports {module}"


def test_nothing_that_windows_would_have_to_build_is_asked_for():
    for path in ("pyproject.toml", "environment.yml", "binder/environment.yml"):
        asked = re.sub(r" *#.*", "", (ROOT / path).read_text(encoding="utf-8"))
        assert "py-evm]" not in asked and "pysha3" not in asked, (
            path
        )  # the extra brings a package without wheels


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_package_without_a_wheel_is_named(monkeypatch):
    wheels = load(ROOT / "tests/install/wheels.py")
    why = "hint: Wheels are required for `safe-pysha3` because building from source is disabled for all packages"
    answers = {("--only-binary", ":all:"): ({}, why), (): ({"a": "1"}, "")}
    monkeypatch.setattr(
        wheels, "resolve", lambda project, python, system, *options: answers[options]
    )
    assert wheels.lacking(None, "3.12", "windows") == ["safe-pysha3 has no wheel"]
    answers["--only-binary", ":all:"] = ({"a": "0.9"}, "")
    assert wheels.lacking(None, "3.12", "windows")[0].startswith(
        "a 1 has no wheel (the last that has is 0.9)"
    )
    answers["--only-binary", ":all:"] = ({"a": "1"}, "")
    assert wheels.lacking(None, "3.12", "windows") == []


def test_a_floor_that_nobody_ever_has_is_named():
    lowest = load(ROOT / "tests/install/lowest.py")
    assert lowest.unreached({"a": "1.5", "b": "2"}, {"a": "1.5.0", "b": "2.0.1"}) == [
        "b: 2 is allowed, and nothing older than 2.0.1 goes with the rest"
    ]
    floors = lowest.floors(project())
    assert (
        floors["torch"] == "2.8"
        and floors["eth-tester"] == "0.14.0b1"
        and floors["ipykernel"] == "6.29"
    )


@pytest.mark.parametrize("path", ["environment.yml", "binder/environment.yml"])
def test_conda_pins_python_to_a_minor_version_we_support_and_installs_nothing_editable(path):
    from_conda, from_pip = conda_dependencies(path)
    assert [line for line in from_conda if line.startswith("python=")] == ["python=3.12"]
    assert project()["requires-python"] == ">=3.11,<3.14"
    assert not [line for line in from_pip if line.startswith(("-e", "."))]
    assert yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))["channels"] == ["conda-forge"]


def test_binder_gets_no_ray_and_installs_the_package_without_its_dependencies():
    from_conda, from_pip = conda_dependencies("binder/environment.yml")
    assert not [line for line in from_conda + from_pip if "ray" in line or "simulation" in line]
    post_build = (ROOT / "binder/postBuild").read_text(encoding="utf-8")
    assert "set -euo pipefail" in post_build
    assert "install --no-deps --no-build-isolation" in post_build


@POSIX
def test_binder_sessions_use_one_thread_and_the_binder_profile():
    command, environment = [ROOT / "binder/start", "env"], {"PATH": os.environ["PATH"]}
    said = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=True, encoding="utf-8"
    ).stdout
    assert {"OMP_NUM_THREADS=1", "MKL_NUM_THREADS=1", "FEDGEN_PROFILE=binder"} <= set(said.split())


@POSIX
@pytest.mark.parametrize("path", [".ci/run", "binder/postBuild", "binder/start"])
def test_scripts_can_be_run_and_parse(path):
    assert os.access(ROOT / path, os.X_OK)
    assert subprocess.run(["bash", "-n", ROOT / path]).returncode == 0


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Put small scripts before everything else on the PATH."""

    def put(**scripts):
        for name, body in scripts.items():
            script = tmp_path / name.replace("_", "-")
            script.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
            script.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return put


@POSIX
@pytest.mark.skipif(not shutil.which("make"), reason="there is no make here")
def test_make_says_which_python_it_needs_where_there_is_none(commands, tmp_path):
    commands(
        **{
            name: "exit 1"
            for name in ("python3", "python", "python3.11", "python3.12", "python3.13")
        }
    )
    command = ["make", f"VENV={tmp_path}/venv", f"{tmp_path}/venv/made"]
    tried = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert tried.returncode != 0
    assert "FedGen Lab needs Python 3.11, 3.12 or 3.13" in tried.stderr
    assert not (tmp_path / "venv").exists()


@POSIX
def test_a_gpu_counts_only_where_nvidia_smi_lists_one(install_torch, commands):
    commands(nvidia_smi="echo 'GPU 0: NVIDIA H200'")
    assert install_torch.has_nvidia_gpu()
    commands(
        nvidia_smi="echo 'NVIDIA-SMI has failed because it could not reach the driver'; exit 9"
    )
    assert not install_torch.has_nvidia_gpu()


def test_the_newest_cpu_build_that_pip_lists_is_taken_and_cuda_builds_are_not(install_torch):
    listing = "torch (2.15.0)\nAvailable versions: 2.15.0, 2.14.0+cu130, 2.14.0+cpu, 2.13.0+cpu\n  INSTALLED: 2.15.0\n"
    assert install_torch.cpu_builds(listing) == ["2.14.0+cpu", "2.13.0+cpu"]
    assert install_torch.cpu_builds("ERROR: No matching distribution found for torch\n") == []


def test_a_folder_of_wheels_named_by_pip_find_links_is_honoured(
    install_torch, tmp_path, monkeypatch
):
    (tmp_path / "torch-2.9.9+cpu-py3-none-any.whl").touch()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert install_torch.offered([]) == ["2.9.9+cpu"]


def test_an_index_that_cannot_be_reached_offers_nothing_and_is_asked_only_once(
    install_torch, monkeypatch
):
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    assert install_torch.CPU_INDEX[-2:] == ["--retries", "0"]
    assert (
        install_torch.offered(["--index-url", "http://127.0.0.1:9/", *install_torch.CPU_INDEX[2:]])
        == []
    )


def test_the_citation_names_the_three_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    papers = {value["value"] for paper in citation["references"] for value in paper["identifiers"]}
    assert {"arXiv:2307.07146", "arXiv:2507.12979", "arXiv:2409.18245"} <= papers
    assert citation["license"] == project()["license"] == "Apache-2.0"
