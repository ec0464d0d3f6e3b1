"""Fewer libraries in memory: every lab of one session shares one gigabyte.

What is left out here is optional to the library that would load it, and no lab needs it. A function about a library is
to be called before anything else of it is imported.
"""

import ctypes
import importlib
import re
import sys
from unittest import mock

M_MMAP_THRESHOLD = -3  # in malloc.h


def leave_out_scipy():
    """Let diffusers and transformers do without scipy: 56 MB and a second of importing.

    They need it for schedulers and losses that no lab uses.
    """
    import diffusers.utils.import_utils as what_diffusers_finds
    import transformers.utils as what_transformers_finds

    what_diffusers_finds._scipy_available = False
    what_transformers_finds.is_scipy_available = lambda: False


def import_pandas():
    """Import pandas without pyarrow, where that is installed: 45 MB. Who needs pyarrow can import it afterwards."""
    if "pandas" not in sys.modules and "pyarrow" not in sys.modules:
        sys.modules["pyarrow"] = None  # as Python notes what is not installed
        try:
            importlib.import_module("pandas")
        finally:
            del sys.modules["pyarrow"]


def return_large_blocks():
    """Let the C library give a block of 768 kB or more back as soon as it is freed: 15 MB for 2 % of a training's time.

    From 256 kB on it would be 40 to 70 MB, but page faults take a quarter of the time. glibc only.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 768 * 1024)


def import_torchmetrics():
    """Import torchmetrics without scipy, matplotlib and transformers: 111 MB less.

    It needs them for its metrics of texts and sounds and for its plots; the image metrics of this course need torch.
    """
    if "torchmetrics" in sys.modules:
        return
    from lightning_utilities.core import imports

    is_met = imports.RequirementCache.__bool__

    def is_met_and_wanted(requirement):
        is_wanted = re.match(r"torch(metrics)?\b", requirement.requirement or "")
        return is_wanted is not None and is_met(requirement)

    with (
        mock.patch.object(imports.RequirementCache, "__bool__", is_met_and_wanted),
        mock.patch.object(imports, "package_available", lambda name: False),
    ):
        importlib.import_module("torchmetrics")
