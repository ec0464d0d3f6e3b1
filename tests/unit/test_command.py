"""`fedgen-lab`: the wheel carries the labs, the command copies and opens them, and a learner's work stays theirs."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import yaml
from jupyter_address import get, read_address
from links import links

import fedgen_lab
from fedgen_lab import course, labs_folder
from fedgen_lab.__main__ import main
from fedgen_lab.exercises.store import progress_file
from fedgen_lab.labs_folder import RECORD, copy_labs, lab_files, shipped_labs

ROOT = Path(__file__).resolve().parents[2]
FIRST, SECOND = "00_start_here.ipynb", "01_federated_averaging.ipynb"


@pytest.fixture
def copy_older(tmp_path, monkeypatch):
    """A function that copies the labs of an older version: two notebooks and a picture."""
    folder = tmp_path / "older"
    (folder / "images").mkdir(parents=True)
    for name in (FIRST, SECOND):
        (folder / name).write_text(f"an older {name}", encoding="utf-8")
    shutil.copy(shipped_labs() / "images" / "federated_lora.svg", folder / "images")

    def copy(target):
        with monkeypatch.context() as patch:
            patch.setattr(labs_folder, "shipped_labs", lambda: folder)
            return copy_labs(target)

    return copy


def test_the_copies_are_all_labs_and_every_link_in_them_leads_somewhere(tmp_path):
    done = copy_labs(tmp_path / "labs")
    assert done["new"] == lab_files(tmp_path / "labs") and {
        f"{lab.name}.ipynb" for lab in course.LABS
    } < {*done["new"]}
    for notebook in (tmp_path / "labs").glob("*.ipynb"):
        inside = [target for target in links(notebook) if "://" not in target]
        assert inside and not [
            target for target in inside if not (tmp_path / "labs" / target).is_file()
        ]


def test_a_second_time_nothing_is_written_and_a_learners_progress_stays(tmp_path, monkeypatch):
    copy_labs(tmp_path)
    monkeypatch.delenv("FEDGEN_PROGRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    assert progress_file() == tmp_path / "my_progress.json"
    progress_file().write_text("mine", encoding="utf-8")
    assert copy_labs(tmp_path) == {"new": [], "updated": [], "yours": [], "outdated": []}
    assert progress_file().read_text(encoding="utf-8") == "mine"


def test_a_changed_lab_is_kept_and_an_unchanged_one_follows_the_new_version(copy_older, tmp_path):
    folder = tmp_path / "copies"
    copy_older(folder)
    (folder / FIRST).write_text("my notes", encoding="utf-8")
    assert copy_older(folder) == {"new": [], "updated": [], "yours": [FIRST], "outdated": []}
    done = copy_labs(folder)
    assert (done["updated"], done["yours"], done["outdated"]) == ([SECOND], [], [FIRST])
    assert (folder / FIRST).read_text(encoding="utf-8") == "my notes"
    assert (folder / SECOND).read_bytes() == (shipped_labs() / SECOND).read_bytes()
    (folder / FIRST).rename(folder / "my_notes.ipynb")
    assert copy_labs(folder)["new"] == [FIRST]


@pytest.mark.parametrize("record", ["", "no record", "[]", None])
def test_without_a_record_that_can_be_read_every_file_that_differs_is_the_learners(
    copy_older, tmp_path, record
):
    folder = tmp_path / "copies"
    copy_older(folder)
    (folder / RECORD).unlink() if record is None else (folder / RECORD).write_text(
        record, encoding="utf-8"
    )
    assert copy_labs(folder)["outdated"] == [FIRST, SECOND]
    assert (folder / SECOND).read_text(encoding="utf-8") == f"an older {SECOND}"


def test_a_copy_that_is_cut_off_leaves_no_half_file_behind(copy_older, tmp_path, monkeypatch):
    folder = tmp_path / "copies"
    copy_older(folder)

    def full(source, target):
        Path(target).write_text("half", encoding="utf-8")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(OSError, match="can't be copied to .*No space left"):
            copy_labs(folder)
    assert not [*folder.rglob("*.part")]
    assert (folder / FIRST).read_text(encoding="utf-8") == f"an older {FIRST}"
    assert {FIRST, SECOND} <= set(copy_labs(folder)["updated"])


def test_a_file_in_the_way_is_a_sentence_and_not_a_traceback(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("fedgen-labs").write_text("not a folder", encoding="utf-8")
    assert main(["--no-browser"]) == 1
    assert "fedgen-labs is a file, not a folder. Rename it" in capsys.readouterr().err
    Path("fedgen-labs").unlink()
    (Path("fedgen-labs") / FIRST).mkdir(parents=True)
    assert main(["--no-browser"]) == 1
    assert re.search(
        r"The labs can't be copied to .*fedgen-labs: .*directory", capsys.readouterr().err
    )


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="a folder where even root may not write"
)
def test_where_nobody_may_write_the_command_says_so(monkeypatch, capsys):
    monkeypatch.chdir("/proc/self")
    assert main(["--no-browser"]) == 1
    assert "Start in a folder where you may write." in capsys.readouterr().err


@pytest.mark.parametrize("fine", ["yes", "no"])
def test_the_check_ends_with_1_when_something_is_not_fine(monkeypatch, capsys, fine):
    remedy = "" if fine == "yes" else "Install it."
    row = {"what": "torch", "found": "missing", "fine": fine, "what to do": remedy}
    monkeypatch.setattr(course, "self_check", lambda: pd.DataFrame([row]))
    assert main(["check"]) == int(fine == "no")
    assert remedy in capsys.readouterr().out


def test_package_project_citation_and_changelog_name_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert fedgen_lab.__version__ == project["version"] == citation["version"]
    release = re.search(
        r"^## (\S+) - (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert release.groups() == (citation["version"], str(citation["date-released"]))


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A function that runs the command of a wheel, unpacked in a folder of its own, from an empty folder beside it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)]
    subprocess.run(build, check=True)
    with zipfile.ZipFile(*folder.glob("*.whl")) as wheel:
        wheel.extractall(folder / "site")
    (folder / "elsewhere").mkdir()
    environment = os.environ | {
        "PYTHONPATH": str(folder / "site"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
    }

    def run(*arguments, **options):
        command = [sys.executable, "-m", "fedgen_lab", *arguments]
        return subprocess.Popen(
            command,
            cwd=folder / "elsewhere",
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            **options,
        )

    run.folder = folder
    return run


def test_a_wheel_carries_the_labs_and_its_check_finds_the_data(installed):
    site = installed.folder / "site"
    assert lab_files(site / "fedgen_lab" / "labs") == lab_files(ROOT / "labs")
    data = site / "fedgen_lab" / "data"
    assert (data / "sweeps" / "pdfed.json").is_file() and not list(data.rglob("*.py"))
    (points,) = site.glob("*.dist-info/entry_points.txt")
    assert "fedgen-lab = fedgen_lab.__main__:main" in points.read_text("utf-8")
    assert installed("--version").communicate()[0].strip() == f"fedgen-lab {fedgen_lab.__version__}"
    check = installed("check")
    said, _ = check.communicate()
    assert "fine      data: tiny-sd: tiny-sd" in said
    assert check.returncode == int("NOT FINE" in said)


def test_the_command_of_a_wheel_opens_the_first_lab_in_jupyterlab(installed):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    process = installed("--no-browser", "--port", str(port))
    try:
        address = read_address(process)
        assert f":{port}/lab/tree/{FIRST}?token=" in address
        assert "JupyterLab" in get(address).text
        files = get(f"http://127.0.0.1:{port}/api/contents?{address.partition('?')[2]}").json()[
            "content"
        ]
        assert {f"{lab.name}.ipynb" for lab in course.LABS} <= {file["name"] for file in files}
    finally:
        process.kill()
        process.communicate()
    folder = installed.folder / "elsewhere" / "fedgen-labs"
    assert json.loads((folder / RECORD).read_text(encoding="utf-8")).keys() == {*lab_files(folder)}
