"""The limit on a lab's memory is real: a notebook that takes too much fails, and at the cell that did it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from kernel_memory import peak_megabytes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What a test worker says of two labs, of which one takes more than the limit of 250 MB."""
    if peak_megabytes("self") is None:
        pytest.skip("this system does not tell a process's peak memory")
    folder = tmp_path_factory.mktemp("labs")
    for name in ("conftest.py", "tests/kernel_memory.py"):
        shutil.copy(ROOT / name, folder)
    (folder / "pytest.ini").write_text("[pytest]\nkernel_megabytes = 250\n", encoding="utf-8")
    for name, size in (("large", 300_000_000), ("small", 3)):
        cells = [
            nbformat.v4.new_code_cell(source)
            for source in ("small = 1", f"taken = b'x' * {size}", "del taken")
        ]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / f"{name}.ipynb")
    quick = 'import sys\n\nsys.modules["rfc3987_syntax"] = None\n'  # as in conftest.py, and before nbval is loaded
    (folder / "quick.py").write_text(quick, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "quick",
        "--nbval-lax",
        "--nbval-current-env",
        "-n",
        "1",
        ".",
    ]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, encoding="utf-8"
    ).stdout


def test_a_lab_that_takes_too_much_memory_fails_once_and_at_the_cell_that_did_it(said):
    assert "1 failed, 5 passed" in said
    assert re.search(r"FAILED large.ipynb::ipynb::Cell 1|_ large.ipynb::Cell 1 _", said)
    assert re.search(r"memory reached 3\d\d MB in this cell; a lab must stay below 250 MB", said)


def test_the_peak_of_every_lab_is_told(said):
    assert re.search(r"3\d\d MB  large.ipynb", said)
    assert re.search(r" [12]?\d\d MB  small.ipynb", said)


def test_a_process_that_took_memory_and_gave_it_back_still_has_its_peak():
    if peak_megabytes("self") is None:
        pytest.skip("this system does not tell a process's peak memory")
    code = (
        "from kernel_memory import peak_megabytes; big = b'x' * 200_000_000; del big; "
        "print(peak_megabytes('self'))"
    )
    peak = float(
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT / "tests",
            capture_output=True,
            check=True,
            encoding="utf-8",
        ).stdout
    )
    assert 200 < peak < 300
    assert peak_megabytes(2**22 + 1) is None
