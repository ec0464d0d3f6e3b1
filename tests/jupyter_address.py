"""What tests of commands ask of a JupyterLab that they started: where it is, and the page that stands there."""

import re
import time

import httpx


def read_address(process):
    """The address with its token from what JupyterLab prints; raises RuntimeError with all of it when there is none."""
    said = ""
    for line in process.stdout:
        said += line
        if address := re.search(r"http://127\.0\.0\.1\S+", line):
            return address[0]
    raise RuntimeError(f"JupyterLab did not start:\n{said}")


def get(address, seconds=60):
    """What the server answers; the address is printed a moment before it listens."""
    end = time.monotonic() + seconds
    while True:
        try:
            return httpx.get(address, follow_redirects=True, trust_env=False, timeout=30)
        except httpx.TransportError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
