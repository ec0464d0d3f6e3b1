"""`make test` tells all: its summary names every failed test of every stage, the ten slowest, and the red stages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SUMMARY = Path(__file__).resolve().parents[1] / "summary.py"


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Two stages as pytest writes them: one green, one with a failed test, a failed fixture and a skipped test."""
    folder = tmp_path_factory.mktemp("stages")
    (folder / "test_good.py").write_text("def test_right(): pass\n", encoding="utf-8")
    (folder / "test_bad.py").write_text(
        "import pytest\n"
        "@pytest.fixture\ndef broken(): raise RuntimeError\n"
        "def test_wrong(): assert 1 == 2\n"
        "def test_unready(broken): pass\n"
        "@pytest.mark.skip\ndef test_left_out(): pass\n",
        encoding="utf-8",
    )
    for stage in ("good", "bad"):
        pytest_here = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        subprocess.run(
            [
                *pytest_here,
                f"--rootdir={folder}",
                f"--junitxml={folder}/{stage}.xml",
                folder / f"test_{stage}.py",
            ],
            capture_output=True,
            env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        )
    return folder


def summary(*arguments):
    done = subprocess.run(
        [sys.executable, SUMMARY, *arguments], capture_output=True, text=True, encoding="utf-8"
    )
    return done.returncode, done.stdout


def test_a_red_stage_makes_it_red_and_every_failed_test_is_named(reports):
    code, said = summary(reports, "bad")
    assert code == 1 and "Red: bad." in said
    assert (
        "2 failed:" in said
        and "bad: test_bad::test_wrong" in said
        and "bad: test_bad::test_unready" in said
    )
    assert (
        "good: 1 passed, 0 failed, 0 skipped" in said
        and "bad: 0 passed, 2 failed, 1 skipped" in said
    )


def test_all_green_is_green_and_the_slowest_are_listed(reports):
    code, said = summary(reports)
    assert code == 0 and "Every stage is green." in said
    assert "The slowest ten:" in said and "good: test_good::test_right" in said


def test_a_stage_that_wrote_no_report_is_red_all_the_same(tmp_path):
    code, said = summary(tmp_path, "browser")
    assert code == 1 and "Red: browser." in said
