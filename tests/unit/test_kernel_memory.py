"""The limit on a lab's memory is real: a notebook that takes too much fails, and at the cell that did it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from fedgen_lab.course import peak_megabytes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run_lab(tmp_path):
    if peak_megabytes() is None:
        pytest.skip("this system does not tell a process's peak memory")
    shutil.copy(ROOT / "conftest.py", tmp_path)
    cells = [nbformat.v4.new_code_cell(source) for source in ("small = 1", "large = b'x' * 300_000_000", "del large")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "lab.ipynb")

    def run(limit, *options):
        (tmp_path / "pytest.ini").write_text(f"[pytest]\nkernel_megabytes = {limit}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", *options, "lab.ipynb"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8").stdout

    return run


def test_a_lab_that_takes_too_much_memory_fails_once_and_at_the_cell_that_did_it(run_lab):
    said = run_lab(250)
    assert "1 failed, 2 passed" in said
    assert re.search(r"FAILED lab.ipynb::ipynb::Cell 1|_ lab.ipynb::Cell 1 _", said)
    assert re.search(r"memory reached 3\d\d MB in this cell; a lab must stay below 250 MB", said)


def test_a_lab_below_the_limit_passes_and_its_peak_is_told_also_by_a_worker(run_lab):
    said = run_lab(1000, "-n", "1")
    assert "3 passed" in said
    assert re.search(r"3\d\d MB  lab.ipynb", said)
