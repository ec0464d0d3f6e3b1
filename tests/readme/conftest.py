"""README's commands run in shells of their own; what they start is ended with the helpers of the engine tests."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "engines"))

from flower import end_process, family, free_port  # noqa: E402


class Terminal:
    """Shells in one home folder: `run` waits for a script, `start` doesn't. The lab's environment is active."""

    def __init__(self, home):
        self.home, self.started = home, []
        self.environment = os.environ | {
            "HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "NO_PROXY": "*",
            "OMP_NUM_THREADS": "1",
        }

    def run(self, script, cwd=ROOT, timeout=1500):
        """Run a script to its end and return what it printed; fails with that when a command in it fails."""
        process = self.start(script, cwd)
        said, _ = process.communicate(timeout=timeout)
        assert process.returncode == 0, f"{script}\n{said}"
        return said

    def start(self, script, cwd=ROOT, output=subprocess.PIPE):
        """Start a script; what it prints is on the process's `stdout`, or goes to the open file `output`."""
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=cwd,
            env=self.environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            encoding="utf-8",
        )
        self.started.append(process)
        return process

    def serve(self, script, port, cwd=ROOT):
        """Start a script that goes on, and wait until it listens on `port` (None: don't wait); prints to a log."""
        log = self.home / f"{len(self.started)}.log"
        with open(log, "wb") as output:
            process = self.start(script, cwd, output)
        end = time.monotonic() + 600  # a guard against hanging
        while port is not None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", int(port))) == 0:
                    return
            assert process.poll() is None and time.monotonic() < end, log.read_text("utf-8")
            time.sleep(0.2)

    def close(self):
        """End everything that was started here, first politely; also what has left its parent but lives in our home."""
        ours = [process for started in self.started for process in family(started.pid)]
        for process in psutil.process_iter():
            try:
                if process not in ours and process.environ().get("HOME") == str(self.home):
                    ours.append(process)
            except psutil.Error:
                pass
        for process in ours:
            end_process(process, "terminate")
        for process in psutil.wait_procs(ours, timeout=10)[1]:
            end_process(process, "kill")


@pytest.fixture
def terminal(tmp_path):
    terminal = Terminal(tmp_path)
    yield terminal
    terminal.close()


@pytest.fixture
def ports():
    """A function that gives a free port in place of each that README names: the same one every time it is asked."""
    taken = {}
    return lambda named: str(taken.setdefault(named, free_port()))
