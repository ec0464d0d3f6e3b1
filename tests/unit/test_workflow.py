"""The workflow asks for what is there: its make targets, its files, and bounds that it may take away."""

import re
import shutil
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))
JOBS = WORKFLOW["jobs"]


def make_targets():
    lines = (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
    return {match[1] for line in lines if (match := re.match(r"([a-z][a-z-]*):", line))}


def commands(job):
    return [step["run"] for step in JOBS[job]["steps"] if "run" in step]


def test_every_make_target_that_the_workflow_names_exists():
    weekly = JOBS["weekly"]["strategy"]["matrix"]["target"]
    assert weekly and {*weekly, "test"} <= make_targets()
    assert commands("weekly") == [".ci/run ${{ matrix.target }}"] and commands("test") == [
        ".ci/run"
    ]


def test_every_heavy_check_runs_weekly():
    stages = re.search(
        r"^STAGES := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )[1].split()
    tests = {name for name in make_targets() if name.startswith(("test-", "check-"))}
    assert set(JOBS["weekly"]["strategy"]["matrix"]["target"]) == tests - {
        f"test-{name}" for name in stages
    }


def test_every_make_target_stands_in_contributing():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert not {target for target in make_targets() if f"`make {target}`" not in text}


def test_a_commit_is_tested_once_and_the_weekly_jobs_leave_commits_alone():
    on = WORKFLOW[True]  # YAML 1.1 reads the word "on" as true
    assert on["push"] == {"branches": ["main"]} and "pull_request" in on
    assert WORKFLOW["concurrency"]["cancel-in-progress"] is True
    for job in ("newest", "weekly"):
        assert (
            JOBS[job]["if"]
            == "github.event_name == 'schedule' || github.event_name == 'workflow_dispatch'"
        )


def test_every_job_has_a_limit_of_time_and_only_reads_the_repository():
    assert all("timeout-minutes" in job for job in JOBS.values())
    assert WORKFLOW["permissions"] == {"contents": "read"}


def test_windows_and_macos_install_wheels_only_and_run_unit_tests_and_a_lab():
    job, run = JOBS["other-systems"], "\n".join(commands("other-systems"))
    assert job["strategy"]["matrix"]["system"] == ["windows-latest", "macos-latest"]
    assert job["env"]["PIP_ONLY_BINARY"] == ":all:"
    assert "tests/unit" in run and (ROOT / re.search(r"labs/\S+\.ipynb", run)[0]).is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="a command for a POSIX shell")
def test_the_newest_run_takes_every_upper_bound_away_but_pythons_and_vypers(tmp_path):
    (sed,) = [command for command in commands("newest") if command.startswith("sed ")]
    (tmp_path / "binder").mkdir()
    names = ("pyproject.toml", "environment.yml", "binder/environment.yml")
    for name in names:
        shutil.copy(ROOT / name, tmp_path / name)
    subprocess.run(sed, shell=True, cwd=tmp_path, check=True)
    files = [folder / "pyproject.toml" for folder in (ROOT, tmp_path)]
    before, after = (tomllib.loads(path.read_text(encoding="utf-8"))["project"] for path in files)
    assert after["requires-python"] == before["requires-python"]
    every, kept = (
        [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
        for project in (before, after)
    )
    assert (
        [line for line in every if "vyper" in line]
        == [line for line in kept if "vyper" in line]
        != []
    )
    bounds = [re.search(r",(<[\d.]+)", line) for line in kept if "vyper" not in line]
    assert bounds and all(bound and bound[1] == "<9999" for bound in bounds)
    for name in names[1:]:
        lines = (tmp_path / name).read_text("utf-8").splitlines()
        packages = [line for line in lines if re.match(r" +- [\w-]+>", line)]
        assert packages and not [line for line in packages if "<" in line and ",<9999" not in line]


def test_dependabot_and_the_templates_can_be_read_and_name_every_lab():
    from fedgen_lab.course import LABS

    github = ROOT / ".github"
    dependabot = yaml.safe_load((github / "dependabot.yml").read_text(encoding="utf-8"))
    assert dependabot["updates"][0]["package-ecosystem"] == "github-actions"
    for template in ("bug.yml", "lab_feedback.yml"):
        form = yaml.safe_load((github / "ISSUE_TEMPLATE" / template).read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= form.keys()
        assert {part["type"] for part in form["body"]} <= {
            "textarea",
            "input",
            "dropdown",
            "checkboxes",
            "markdown",
        }
    (labs,) = [part["attributes"]["options"] for part in form["body"] if part.get("id") == "lab"]
    assert labs == [f"{lab.name[:2]} {lab.title}" for lab in LABS]


@pytest.mark.skipif(sys.platform == "win32", reason="a script for a POSIX shell")
def test_ci_run_asks_for_npm_where_there_is_none_and_hands_targets_to_make(tmp_path):
    """Small programs stand in for the machine's: a Debian that has everything but npm, then one that has it."""
    (tmp_path / "apt-get").write_text('#!/bin/sh\necho "apt-get $@"\n', encoding="utf-8")
    (tmp_path / "make").write_text('#!/bin/sh\necho "make $@ CI=$CI"\n', encoding="utf-8")
    for name in ("chromium", "python3"):
        (tmp_path / name).write_text("#!/bin/sh\n", encoding="utf-8")
    (tmp_path / "id").write_text("#!/bin/sh\necho 0\n", encoding="utf-8")
    for name in ("bash", "env", "dirname"):
        (tmp_path / name).symlink_to(shutil.which(name))

    def said(*arguments):
        for path in tmp_path.iterdir():
            if not path.is_symlink():
                path.chmod(0o755)
        command = [ROOT / ".ci" / "run", *arguments]
        path = {"PATH": str(tmp_path)}
        return subprocess.run(
            command, env=path, capture_output=True, check=True, encoding="utf-8"
        ).stdout

    assert "apt-get install -y -qq --no-install-recommends npm\nmake test CI=true\n" in said()
    (tmp_path / "npm").write_text("#!/bin/sh\n", encoding="utf-8")
    assert said("test-lowest") == "make test-lowest CI=true\n"
