"""How every test runs: dashboards run in their cell, experiments are tiny, and each lab's memory is watched.

A lab that runs under nbval has its own kernel. After every cell the peak memory of that process is read; the cell at
which it reaches `kernel_megabytes` (the course's MEMORY_LIMIT_MEGABYTES unless pytest is told otherwise) fails. To the
last cell belongs a start of every dashboard that was not started before. The summary lists each lab's peak.
"""

import os
import sys
import tempfile
from pathlib import Path

import pytest
from kernel_memory import peak_megabytes  # in tests/

from fedgen_lab.course import MEMORY_LIMIT_MEGABYTES

PEAK = "kernel peak in megabytes"  # the key under which a cell's report carries it from a test worker to the summary
KERNEL_PEAKS = {}  # lab -> megabytes
START_IDLE = "from fedgen_lab.dashboards.panel import start_idle; start_idle()"


def pytest_addoption(parser):
    parser.addini(
        "kernel_megabytes", "peak memory at which a lab fails", default=str(MEMORY_LIMIT_MEGABYTES)
    )


def pytest_configure(config):
    # Loading this parser takes seconds; nbformat would check web addresses with it, and no notebook here holds one.
    sys.modules.setdefault("rfc3987_syntax", None)
    os.environ.setdefault("FEDGEN_RUN", "inline")
    os.environ.setdefault("FEDGEN_PROFILE", "test")
    if not hasattr(config, "workerinput"):  # the progress a test makes is nobody's progress
        config.scratch = tempfile.TemporaryDirectory()
        os.environ["FEDGEN_PROGRESS"] = str(Path(config.scratch.name) / "my_progress.json")
    else:
        os.environ["FEDGEN_PROGRESS"] += config.workerinput["workerid"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    result = yield
    kernel = getattr(item.parent, "kernel", None)  # nbval's, on the notebook that the cell is in
    if not hasattr(kernel, "km"):
        return result
    if item.cell is [cell for cell in item.parent.nb.cells if cell.cell_type == "code"][-1]:
        reply = kernel.kc.execute(START_IDLE, reply=True, timeout=600)["content"]
        assert reply["status"] == "ok", f"the lab's dashboards could not be started: {reply}"
    peak = peak_megabytes(kernel.km.provisioner.pid)
    if peak is None:
        assert not sys.platform.startswith("linux"), (
            f"no peak memory could be read for {item.parent.path}"
        )
        return result
    item.user_properties.append((PEAK, peak))
    limit = float(item.config.getini("kernel_megabytes"))
    before, item.parent.kernel_peak = getattr(item.parent, "kernel_peak", 0), peak
    if before < limit <= peak:  # once a lab, at the cell that did it
        told = f"the kernel's memory reached {peak:,.0f} MB in this cell; a lab must stay below {limit:,.0f} MB"
        pytest.fail(told, pytrace=False)
    return result


def pytest_runtest_logreport(report):
    peaks = [value for key, value in report.user_properties if key == PEAK]
    if peaks:
        lab = report.nodeid.split("::")[0]
        KERNEL_PEAKS[lab] = max(peaks[-1], KERNEL_PEAKS.get(lab, 0))


def pytest_terminal_summary(terminalreporter):
    if KERNEL_PEAKS:
        terminalreporter.section("peak memory of each lab's kernel")
        for lab, peak in sorted(KERNEL_PEAKS.items()):
            terminalreporter.write_line(f"{peak:7,.0f} MB  {lab}")
