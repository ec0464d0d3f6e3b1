"""A job can be watched, stopped and started again, and never gets in another one's way."""

import contextvars
import platform
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fedgen_lab.dashboards import job as job_module
from fedgen_lab.dashboards.controls import StatusLine
from fedgen_lab.dashboards.job import Job, error_sentence
from fedgen_lab.dashboards.panel import Panel


@pytest.fixture(autouse=True)
def _threads(monkeypatch):
    monkeypatch.delenv("FEDGEN_RUN", raising=False)
    yield
    if job_module._running is not None:
        job_module._running.cancel()
        job_module._running.join(10)


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def endless(job):
    steps = 0
    while job.report(f"Step {steps}."):
        steps += 1
        time.sleep(0.002)
    return steps


def test_a_job_runs_in_a_thread_and_leaves_the_caller_free():
    seen = []
    job = Job(lambda job: threading.current_thread(), lambda job: seen.append(job.state))
    assert job.state == "idle"
    assert job.start()
    assert job.join(10)
    assert job.state == "done" and job.message == "Done."
    assert job.result is not threading.main_thread()
    assert seen[-1] == "done"


def test_an_inline_job_is_over_when_start_returns(monkeypatch):
    monkeypatch.setenv("FEDGEN_RUN", "inline")
    job = Job(lambda job: threading.current_thread())
    assert job.start()
    assert job.state == "done"
    assert job.result is threading.current_thread()


def test_a_stopped_job_keeps_what_it_computed():
    job = Job(endless)
    job.start()
    until(lambda: job.message.startswith("Step 3"))
    job.cancel()
    assert job.join(10)
    assert job.state == "cancelled" and job.message == "Stopped."
    assert job.result >= 3


def test_a_job_can_be_started_again_after_it_was_stopped():
    job = Job(endless)
    for _ in range(2):
        assert job.start()
        job.cancel()
        assert job.join(10)
        assert job.state == "cancelled"


def test_an_error_is_kept_whole_and_shown_as_a_sentence():
    def work(job):
        raise ValueError("skew must lie in [0, 1]; got 1.7")

    shown = []
    job = Job(work, lambda job: shown.append((job.state, job.message)))
    job.start()
    job.join(10)
    assert job.state == "failed" and isinstance(job.error, ValueError)
    assert shown[-1] == ("failed", "skew must lie in [0, 1]; got 1.7.")


def test_every_error_sentence_says_what_to_do_or_is_one_of_ours():
    assert "fewer clients" in error_sentence(MemoryError())
    assert "KeyError: 'loss'" in error_sentence(KeyError("loss"))
    assert "restart the kernel" in error_sentence(KeyError("loss"))
    assert error_sentence(ValueError("Choose fewer clients.")) == "Choose fewer clients."


def test_a_drawing_error_fails_the_job_and_the_status_line_still_hears_of_it():
    said = []

    def draw(job):
        said.append(job.state)
        if job.state == "done":
            raise RuntimeError("no such chart")

    job = Job(lambda job: 1, draw)
    job.start()
    job.join(10)
    assert job.state == "failed" and "no such chart" in job.message
    assert said[-1] == "failed"
    assert job_module._running is None


def test_at_most_five_updates_a_second_and_always_the_last():
    drawn = []

    def work(job):
        began = time.monotonic()
        number = 0
        while time.monotonic() - began < 0.7:
            number += 1
            job.report(f"Step {number}.")
        return number

    job = Job(work, lambda job: drawn.append((time.monotonic(), job.state)))
    job.start()
    job.join(10)
    times = [when for when, state in drawn if state == "running"]
    assert all(later - earlier >= 0.19 for earlier, later in zip(times, times[1:], strict=False))
    assert job.result > len(drawn)
    assert drawn[-1][1] == "done"


def test_a_second_job_is_told_to_wait_and_does_not_disturb_the_first():
    said = []
    first, second = Job(endless), Job(endless, lambda job: said.append(job.message))
    first.start()
    assert second.start() is False
    assert second.state == "idle"
    assert "Another run is going on" in said[-1] and "stop it" in said[-1]
    assert first.state == "running" and not first.should_stop()
    first.cancel()
    first.join(10)
    assert second.start() is True


def test_a_job_started_while_another_one_stops_waits_for_its_end():
    at_work = []

    def slow_to_stop(job):
        while not job.should_stop():
            time.sleep(0.005)
        time.sleep(0.2)
        at_work.append("first ended")

    first, second = Job(slow_to_stop), Job(lambda job: at_work.append("second began"))
    first.start()
    first.cancel()
    assert second.start()
    assert second.join(10) and second.state == "done"
    assert at_work == ["first ended", "second began"]
    assert first.state == "cancelled"


def test_running_a_cell_again_stops_its_own_job_and_no_other_cells(monkeypatch):
    here = [("cell-1", "execution-1")]
    monkeypatch.setattr(job_module, "_here", lambda: here[0])
    old = Job(endless)
    old.start()
    Job(endless)  # a second dashboard of the same cell run
    here[0] = ("cell-2", "execution-2")
    Job(endless)  # a dashboard in another cell
    assert not old.should_stop()
    here[0] = ("cell-1", "execution-3")
    new = Job(endless)
    assert old.should_stop()
    assert new.start()
    until(lambda: new.message.startswith("Step"))
    assert old.state == "cancelled" and new.state == "running"


def test_start_of_a_running_job_does_nothing():
    job = Job(endless)
    assert job.start() is True
    assert job.start() is False
    assert job.state == "running"


def test_a_thread_runs_in_the_context_of_the_cell_that_started_it():
    # ipykernel 7.0 keeps the cell that output belongs to in a context variable without a default.
    cell = contextvars.ContextVar("cell")
    cell.set("cell-1")
    job = Job(lambda job: cell.get())
    job.start()
    assert job.join(10) and job.result == "cell-1"


@pytest.mark.parametrize("how", ["inline", "thread"])
@pytest.mark.parametrize(
    "caught, state, words",
    [(SystemExit(3), "failed", "SystemExit"), (KeyboardInterrupt(), "cancelled", "Stopped.")],
    ids=["exit", "interrupt"],
)
def test_whatever_ends_the_work_a_later_start_works(monkeypatch, how, caught, state, words):
    if how == "inline":
        monkeypatch.setenv("FEDGEN_RUN", "inline")
    monkeypatch.setattr(
        threading, "excepthook", lambda arguments: None
    )  # silent, as it is about SystemExit
    errors = [caught]

    def work(job):
        if errors:
            raise errors.pop()
        return "second run"

    shown = []
    job = Job(work, lambda job: shown.append((job.state, job.message)))
    if how == "inline":
        with pytest.raises(type(caught)):  # the cell hears of it, too
            job.start()
    else:
        job.start()
    assert job.join(10)
    assert job.state == state and words in job.message and shown[-1] == (job.state, job.message)
    until(lambda: job_module._running is None)
    assert job.start() and job.join(10)
    assert job.state == "done" and job.result == "second run"


def test_a_start_works_from_the_moment_the_end_is_drawn():
    ends, starts = [], []

    def draw(job):
        if job.state == "done":  # here a dashboard enables its Start button
            ends.append(job.result)
            if len(ends) == 1:
                starts.append(job.start())

    job = Job(lambda job: "a run", draw)
    job.start()
    until(lambda: len(ends) == 2 and starts)
    assert starts == [True]


def test_a_machine_without_a_free_thread_is_named_and_a_later_start_works(monkeypatch):
    job = Job(lambda job: 1)

    def no_thread(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        job.start()
    assert job.state == "failed" and "can't start new thread" in job.message
    assert job.start() and job.join(10) and job.state == "done"


@pytest.mark.parametrize("when", ["running", "done"])
def test_where_drawing_fails_the_status_line_says_so_all_the_same(when):
    def draw(job):
        if job.state in (when, "failed"):
            raise LookupError("parent_header")

    status = StatusLine("Ready.")
    job = Job(lambda job: job.report("Step 1."), draw, status)
    job.start()
    assert job.join(10)
    assert job.state == "failed" and isinstance(job.error, LookupError)
    assert "Problem" in status.widget.value and "parent_header" in status.sentence
    until(lambda: job_module._running is None)


def test_work_that_swallows_errors_cant_swallow_one_of_drawing():
    # A strategy catches what a client's code raises, and drawing happens inside that.
    def draw(job):
        if job.state == "running":
            raise LookupError("parent_header")

    def work(job):
        try:
            goes_on = job.report("Step 1.")
        except Exception:
            goes_on = True
        assert not goes_on  # nobody sees this run any more
        return "half a result"

    status = StatusLine("Ready.")
    job = Job(work, draw, status)
    job.start()
    assert job.join(10)
    assert (
        job.state == "failed"
        and "parent_header" in job.message
        and "parent_header" in status.sentence
    )
    assert job.result == "half a result"


# ---- cells and Stop buttons


class Shell:
    """What IPython's shell tells of the running cell."""

    def __init__(self):
        self.parent = {}

    def run(self, code, execution, **metadata):
        """As if a front end ran a cell of this text; with cellId as keyword where it sends one."""
        self.parent = {
            "metadata": metadata,
            "header": {"msg_id": execution},
            "content": {"code": code},
        }

    def press(self):
        """As if a learner pressed a button: a message that has no cell."""
        self.parent = {"metadata": {}, "header": {"msg_id": "click"}, "content": {"data": {}}}

    def get_parent(self):
        return self.parent


@pytest.fixture
def shell(monkeypatch):
    import IPython

    shell = Shell()
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    return shell


def test_without_a_cell_id_a_cell_that_is_run_again_takes_its_old_run_over(shell):
    shell.run("dashboard()", "execution-1")
    old = Job(endless)
    shell.press()
    old.start()
    shell.run("other_dashboard()", "execution-2")
    Job(endless)
    assert not old.should_stop()
    shell.run("dashboard()", "execution-3")
    new = Job(endless)
    assert old.should_stop()
    assert new.start()
    until(lambda: new.message.startswith("Step"))
    assert old.state == "cancelled"


def test_with_a_cell_id_cells_of_the_same_text_are_two_cells(shell):
    shell.run("dashboard()", "execution-1", cellId="cell-1")
    old = Job(endless)
    old.start()
    shell.run("dashboard()", "execution-2", cellId="cell-2")
    Job(endless)
    assert not old.should_stop()
    shell.run("dashboard(changed=True)", "execution-3", cellId="cell-1")
    Job(endless)
    assert old.should_stop()


def test_a_refused_start_makes_stop_stop_the_run_that_goes_on():
    first, second = Job(endless), Job(lambda job: "second")
    assert not first.can_stop() and not second.can_stop()
    first.start()
    second.stop()  # nothing was refused, so this has nothing to stop
    assert first.can_stop() and not first.should_stop() and not second.can_stop()
    assert second.start() is False
    assert second.can_stop()
    second.stop()
    assert first.should_stop() and not second.can_stop() and "start again" in second.message
    assert second.start() and second.join(10)
    assert first.state == "cancelled" and second.result == "second"


def test_a_panel_whose_start_was_refused_offers_stop(shell):
    shell.run("dashboard(4)", "execution-1")
    old = Job(endless)
    old.start()
    shell.run(
        "dashboard(5)", "execution-2"
    )  # changed, so without an id nobody can tell that it is the same cell
    panel = Panel("Start", new_run=None, work=None, scenario=None, changed=None)
    panel.start_button.click()
    assert "Another run" in panel.status.sentence and not panel.stop_button.disabled
    panel.stop_button.click()
    assert (
        old.should_stop() and "start again" in panel.status.sentence and panel.stop_button.disabled
    )


@pytest.mark.skipif(
    sys.platform != "linux" or not platform.libc_ver()[0], reason="only glibc can be asked for it"
)
def test_memory_that_a_run_has_freed_goes_back_to_the_system(monkeypatch):
    monkeypatch.setenv("FEDGEN_RUN", "inline")
    told = {}

    def megabytes():
        return (
            int(
                re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))[
                    1
                ]
            )
            / 1024
        )

    def work(job):
        blocks = [bytes(4000) for _ in range(50_000)]
        told["full"] = megabytes()
        return blocks[::1000]  # a few stay, so that the heap doesn't shrink by itself

    Job(work).start()
    assert megabytes() < told["full"] - 100


@pytest.mark.skipif(
    sys.platform != "linux" or not platform.libc_ver()[0], reason="only glibc can be asked for it"
)
def test_memory_that_a_cell_has_freed_goes_back_once_a_dashboard_is_imported():
    # In a process of its own: the hook belongs to the kernel.
    cells = """
import re
import subprocess
from pathlib import Path
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
shell.run_cell("import fedgen_lab.dashboards.job")

def megabytes():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

shell.user_ns["megabytes"] = megabytes
shell.run_cell("blocks = [bytes(4000) for _ in range(50_000)]; full = megabytes()")
shell.run_cell("blocks = blocks[::1000]; held = megabytes()")
print(shell.user_ns["held"] - megabytes(), shell.user_ns["full"] - megabytes())
"""
    done = subprocess.run(
        [sys.executable, "-c", cells], capture_output=True, text=True, check=True, encoding="utf-8"
    )
    by_the_hook, freed = map(float, done.stdout.split()[-2:])
    assert by_the_hook > 100 and freed > 100
