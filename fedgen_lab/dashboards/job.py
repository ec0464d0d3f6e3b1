"""A job: long work that leaves the notebook free, reports as it goes, and stops when asked.

Used by every dashboard. A cell that computes for a minute also blocks its own Stop button, because button clicks wait
behind it; so the work runs in a thread, and the thread only reports. With FEDGEN_RUN=inline (tests, HTML copies) the
same work runs inside `start()`, so a cell behaves alike with and without a browser.
"""

import atexit
import contextvars
import ctypes
import gc
import os
import sys
import threading
import time

STATES = ("idle", "running", "cancelled", "done", "failed")
SECONDS_BETWEEN_UPDATES = 0.2  # five a second: the eye follows, and the browser keeps up
SECONDS_BETWEEN_COLLECTIONS = 3.0  # of processor time
SECONDS_BETWEEN_TRIMS = (
    1.0  # of processor time; a run frees as much as it takes, and the C library keeps it
)

_turn = threading.RLock()
_collected_at = 0.0  # processor time of this process
_trimmed_at = 0.0  # the same
_running = None  # the one job of this kernel that computes now: Flower allows one run per process
_drawing_for = contextvars.ContextVar("the job in whose thread this is", default=None)


class Job:
    """One piece of work behind a Start and a Stop button. It can be started again when it has ended.

    work(job) -> result: the work. It calls `job.report(sentence)` as it goes and stops soon after `job.should_stop()`
        turns true, returning what it has.
    on_update(job): draws the present state: at most five times a second while the work reports, and once at the end.
        It tells the status line first and draws then, so that a chart that fails can't keep the state from it.
    status: the dashboard's StatusLine. It hears of an error even where `on_update` fails.

    `state` is one of STATES, `message` a sentence for the status line, `result` what the work returned (also after a
    stop), `error` the exception of a failed job, whole.

    Making a job stops a job that an earlier run of the same notebook cell left running. Another cell's job is never
    touched: `start()` then returns False and says so in `message`, and `stop()` stops that other job.
    """

    def __init__(self, work, on_update=None, status=None):
        self.work = work
        self.on_update = on_update or (lambda job: None)
        self.status = status
        self.state = "idle"
        self.message = ""
        self.result = None
        self.error = None
        self._stop = threading.Event()
        self._refused = False  # because another job of this kernel was running
        self._thread = None
        self._drawn_at = 0.0
        self._cell, self._execution = _here()
        with _turn:
            if _running is not None and self._cell and _running._cell == self._cell:
                if _running._execution != self._execution:
                    _running.cancel()

    def start(self):
        """Start the work; False when this job or another one of this kernel is already running."""
        global _running
        with _turn:
            earlier = _running
            if earlier is self:
                return False
            self._refused = earlier is not None and not earlier.should_stop()
            if self._refused:
                self.message = (
                    "Another run is going on in this notebook: stop it or wait, then start again."
                )
                self._draw()
                return False
            _running = self
            self._stop.clear()
            self.state, self.message = "running", "Starting."
            self.result = self.error = None
            self._drawn_at = 0.0
        # In a copy of this context: ipykernel 7.0 looks there for the cell that a thread's output belongs to.
        run = contextvars.copy_context().run
        if runs_inline():
            run(self._run, None)
        else:
            # Daemon, so that a kernel can always end; `_stop_at_exit` gives it a moment to end well.
            self._thread = threading.Thread(
                target=run, args=(self._run, earlier), name="fedgen-job", daemon=True
            )
            try:
                self._thread.start()
            except RuntimeError as error:  # the system has no thread left
                self._end("failed", error)
        return True

    def stop(self):
        """What a Stop button does: cancel this job, or the job for which its start was refused."""
        with _turn:
            if self.state == "running" or not self._refused:
                self.cancel()
            elif _running is not None:
                _running.cancel()
                self.message = "The other run stops after its present step. Then start again."

    def can_stop(self):
        """True while there is something for a Stop button to stop."""
        job = _running if self._refused else self
        return job is not None and job.state == "running" and not job.should_stop()

    def cancel(self):
        """Ask the work to stop at its next step. What it has computed so far is kept."""
        if self.state == "running":
            self._stop.set()
            self.message = "Stopping after the present step."

    def should_stop(self):
        """True once `cancel()` was called: hand this function to the experiment."""
        return self._stop.is_set()

    def report(self, sentence):
        """Called by the work: set the status line and, five times a second at most, draw. False means: stop now."""
        if not self.should_stop():
            self.message = sentence
        now = time.monotonic()
        if now - self._drawn_at >= SECONDS_BETWEEN_UPDATES:
            self._draw()
            self._drawn_at = time.monotonic()
        if time.process_time() - _trimmed_at > SECONDS_BETWEEN_TRIMS:
            _trim()
        return not self.should_stop()

    def fail(self, error):
        """Something of this job could not be drawn: a run that goes on ends, and the status line says why."""
        first = self.error is None
        self.error = self.error or error
        self.message = error_sentence(self.error)
        if self.state == "running":
            self._stop.set()
        else:
            self.state = "failed"
        drawn = False
        if first:  # once only: what fails in a chart's timer would start that timer again
            try:
                self.on_update(self)
                drawn = True
            except Exception:
                pass  # the same error most likely; it is told below
        if self.status is not None:
            self.status.say(self.message, "failed")
        elif not drawn:
            raise error

    def join(self, timeout=None):
        """Wait until the work has ended, at most `timeout` seconds; True when it has."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
        return self.state != "running"

    def _draw(self):
        try:
            self.on_update(self)
        except Exception as error:
            self.fail(error)

    def _run(self, earlier):
        _drawing_for.set(self)
        state, error = "cancelled", None
        try:
            if earlier is not None:
                earlier.join()
            self.result = self.work(self)
            if not self.should_stop():
                state = "done"
        except (
            KeyboardInterrupt
        ):  # the kernel's own stop button, where the work runs inside the cell
            raise
        except BaseException as caught:
            state, error = "failed", caught
            if not isinstance(caught, Exception):
                raise
        finally:
            self._end(state, error)

    def _end(self, state, error):
        """The work is over, by whatever: let the next job run, say so, and draw for the last time."""
        global _running
        error = self.error or error  # what could not be drawn on the way came first
        words = {"done": "Done.", "cancelled": "Stopped."}
        with _turn:
            if error is not None:
                state, self.error = "failed", error
            self.state = state
            self.message = words[state] if error is None else error_sentence(error)
            # Before the last drawing, which lets the Start button be pressed again.
            if _running is self:
                _running = None
        try:
            self._draw()
        finally:
            give_memory_back()


def drawing_job():
    """The job in whose thread, or in whose timer, this is called; None elsewhere."""
    return _drawing_for.get()


def runs_inline():
    """True when dashboards compute inside the cell (FEDGEN_RUN=inline: tests, HTML copies) and not in a thread."""
    return os.environ.get("FEDGEN_RUN", "") == "inline"


def error_sentence(error):
    """What the status line says about an exception: what was wrong and what to do."""
    text = str(error).strip()
    if isinstance(error, MemoryError):
        return (
            "The memory is used up. Restart the kernel, then choose fewer clients or a lower rank."
        )
    if isinstance(error, (ValueError, FileNotFoundError)) and text:
        # Our own errors are sentences with a remedy already.
        return text if text.endswith((".", "!", "?")) else text + "."
    detail = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"The run failed ({detail}). Start it again; if that fails too, restart the kernel and run all cells anew."


def give_memory_back(*_):
    """What was freed and the C library keeps for itself goes back to the system: 100 to 200 MB in a lab that trains.

    After much computing Python's own cycles are collected first, which takes 0.3 seconds: a run leaves models in them.
    """
    global _collected_at
    if time.process_time() - _collected_at > SECONDS_BETWEEN_COLLECTIONS:
        gc.collect()
        _collected_at = time.process_time()
    _trim()


def _trim():
    global _trimmed_at
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # glibc; musl has none
        trim(0)
    _trimmed_at = time.process_time()


def _give_memory_back_after_every_cell():
    """In a notebook also cells without a job free tensors; on Binder that decides whether the kernel is killed."""
    try:
        from IPython import get_ipython
    except ImportError:  # a node without notebooks
        return
    shell = get_ipython()
    if shell is not None:
        shell.events.register("post_run_cell", give_memory_back)


def _here():
    """The notebook cell being run and this run of it, or ("", "") where no cell runs.

    JupyterLab sends an id of the cell. VS Code and Colab send none: there a cell is known by its text.
    """
    try:
        from IPython import get_ipython

        parent = get_ipython().get_parent()
        cell = parent["metadata"].get("cellId") or parent["content"].get("code", "")
        return cell, parent["header"].get("msg_id", "")
    except (ImportError, AttributeError, KeyError, TypeError):
        return "", ""


_give_memory_back_after_every_cell()


@atexit.register
def _stop_at_exit():
    if _running is not None:
        _running.cancel()
        _running.join(timeout=5)
