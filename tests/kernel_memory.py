"""How much memory a lab's kernel has taken: what `conftest.py` watches and `make measure` notes."""

import re
from pathlib import Path


def peak_megabytes(pid):
    """The most memory process `pid` has held at once since it started (Linux's VmHWM), in megabytes (10^6 bytes).

    Returns None where the system does not tell (macOS, Windows) or the process is gone.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return None
    peak = re.search(r"VmHWM:\s*(\d+)", status)  # in kibibytes
    return int(peak[1]) * 1024 / 1e6 if peak else None
