"""What tests of several folders share: a real Ethereum node."""

import os
import shutil
import signal
import socket
import subprocess
import time

import pytest


@pytest.fixture(scope="session")
def start_anvil(tmp_path_factory):
    """A function that starts a node with options and returns its address: anvil, from the PATH or fetched by npm.

    Without either the test is skipped, which under CI=true is a failure.

    Its attribute `stop`, called with a signal, ends the node that was started last; port: where the next one listens.
    """
    program = shutil.which("anvil")
    if program is None:
        if shutil.which("npm") is None:
            _skip(
                "no anvil and no npm to fetch it with: install npm (Debian: apt install npm) to run this test"
            )
        folder = tmp_path_factory.mktemp("anvil")
        command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder)]
        try:
            subprocess.run(
                [*command, "@foundry-rs/anvil@1.7.1"], check=True, timeout=120, capture_output=True
            )
        except (subprocess.SubprocessError, OSError) as error:
            _skip(f"npm could not fetch anvil: {error}")
        program = str(folder / "node_modules" / ".bin" / "anvil")
    nodes = []

    def start(*options, port=None):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = port or listener.getsockname()[1]
        command = [program, "--port", str(port), "--silent", *options]
        node = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        nodes.append((node, port))
        end = time.monotonic() + 30
        while time.monotonic() < end and node.poll() is None and not _answers(port):
            time.sleep(0.1)
        return f"http://127.0.0.1:{port}"

    def stop(how=signal.SIGTERM):
        node, port = nodes.pop()
        try:
            os.killpg(node.pid, how)  # npm's anvil is a script that starts the node
        except ProcessLookupError:
            pass
        node.wait(10)
        # The script is gone, the node itself may still be there for a moment and hold the port.
        end = time.monotonic() + 30
        while time.monotonic() < end and _answers(port):
            time.sleep(0.1)

    start.stop = stop
    yield start
    while nodes:
        stop()


def _answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _skip(reason):
    """Skip the test; where all must run, fail."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
