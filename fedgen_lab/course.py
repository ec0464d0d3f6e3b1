"""The course itself: where it lives, which labs it has and in which order, and whether this machine is ready for them.

Used by lab 00, by every lab's first cell, which asks here what is missing, and by `make measure`, which writes the
heads of the labs; no paper behind it. The repository's address stands here, once. Nothing heavy is imported at the top.
"""

import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil

from fedgen_lab.shipped import NAMES, shipped

REPOSITORY = "https://github.com/fedgen-lab/fedgen-lab"
# Of the 1,000 that one Binder session is sure to have, its server takes 120.
MEMORY_LIMIT_MEGABYTES = 850
MAIN_LIBRARIES = (
    "torch",
    "diffusers",
    "peft",
    "transformers",
    "flwr",
    "plotly",
    "ipywidgets",
    "ipykernel",
)


@dataclass(frozen=True)
class Lab:
    """One lab: its file name without ".ipynb", a reader's minutes, its title, and what one can do after it."""

    name: str
    minutes: int
    title: str
    outcome: str


_TABLE = (
    (
        "00_start_here",
        30,
        "Start here",
        "run a first federated experiment and find your way through the course",
    ),
    (
        "01_federated_averaging",
        50,
        "Federated averaging",
        "write FedAvg yourself and say what skew does to it",
    ),
    (
        "02_stable_diffusion_in_miniature",
        60,
        "Stable Diffusion in miniature",
        "take a text-to-image model apart and build LoRA by hand",
    ),
    (
        "03_federated_lora",
        60,
        "Federated LoRA",
        "fine-tune one Stable Diffusion on many devices and count what it costs",
    ),
    (
        "04_aggregation_rules",
        50,
        "Aggregation rules",
        "make one adapter out of many in ten ways, and say what each misses and what it costs",
    ),
    (
        "05_wireless",
        60,
        "Wireless links",
        "put a federated run on the clock of a radio cell and say when the radio is the bottleneck",
    ),
    (
        "06_u_shaped_split",
        60,
        "U-shaped split",
        "train one GAN between weak devices and a server, and say what its wire tells",
    ),
    (
        "07_huscf_gan",
        60,
        "HuSCF-GAN",
        "train GANs on devices of several domains, and say who learns with whom and which method wins where",
    ),
    (
        "08_what_leaks",
        60,
        "What leaks",
        "rebuild a picture from an update, test membership, stop a backdoor, and say what each protection costs",
    ),
    (
        "09_memorization",
        60,
        "Memorization",
        "tell a model that has learned from one that has copied, and say what each score can't see",
    ),
    (
        "10_pdfed",
        60,
        "PDFed",
        "keep a ledger that shows every forgery, train without a server, and say which voter sees a leak",
    ),
)
LABS = tuple(Lab(*row) for row in _TABLE)


def lab(name):
    """The `Lab` called `name`, "03_federated_lora" or just "03". Raises ValueError for a name that no lab has."""
    for candidate in LABS:
        if name in (candidate.name, candidate.name[:2]):
            return candidate
    names = ", ".join(candidate.name for candidate in LABS)
    raise ValueError(f"No lab is called {name!r}. There are: {names}.")


def course_map():
    """All labs as a Markdown table with links, to be shown in a notebook."""
    from IPython.display import Markdown

    rows = ["| Lab | After this you can | Minutes |", "|---|---|---|"]
    for entry in LABS:
        link = f"[{entry.name[:2]} {entry.title}]({entry.name}.ipynb)"
        rows.append(f"| {link} | {entry.outcome} | {entry.minutes} |")
    return Markdown("\n".join(rows))


def free_megabytes():
    """The memory that programs can still take here, a container's limit included, in megabytes."""
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text("utf-8"))
        free = min(free, limit - int((group / "memory.current").read_text("utf-8")))
    except (OSError, ValueError):
        pass  # no container, or one without a limit: "max"
    return free / 1e6


def self_check():
    """Is this machine ready for the labs? A data frame with one row per question: what, found, fine, and what to do."""
    import pandas as pd
    import torch

    from fedgen_lab.knobs import profile

    rows = []

    def ask(question, answer, is_fine=True, remedy=""):
        rows.append((question, str(answer), "yes" if is_fine else "no", "" if is_fine else remedy))

    # Python and the libraries that the course declares to need.
    is_supported = (3, 11) <= sys.version_info[:2] <= (3, 13)
    remedy = "Install Python 3.11, 3.12 or 3.13 and run `make lab` again."
    ask("Python", platform.python_version(), is_supported, remedy)
    as_needed = 0
    for requirement in declared_requirements():
        is_fine = is_met(requirement)
        if is_fine and requirement.name not in MAIN_LIBRARIES:
            as_needed += 1
        else:
            installed = installed_version(requirement.name) or "missing"
            ask(requirement.name, installed, is_fine, f"pip install '{requirement}'")
    ask("other libraries", f"{as_needed} as needed")
    # The machine.
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none, and none is needed"
    ask("graphics processor", gpu)
    ask("threads of torch", f"{torch.get_num_threads()} on {os.cpu_count()} cores")
    free = free_megabytes()
    remedy = f"A lab needs up to {MEMORY_LIMIT_MEGABYTES:,} MB: close other notebooks."
    ask("free memory", f"{free:,.0f} MB", free >= MEMORY_LIMIT_MEGABYTES, remedy)
    ask("profile", profile())
    # What ships, and what a lab does with it.
    remedy = "Get a full copy of the repository, with its `data` folder."
    for name in NAMES:
        _, is_there = _try(shipped, name)
        ask(f"data: {name}", name if is_there else "missing", is_there, remedy)
    remedy = "Install the lab again: `make lab`, or `pip install -e .`"
    ask("tokenizer of tiny-sd", *_try(_read_words), remedy)
    remedy = "pip install 'ipykernel!=7.0.*', restart the kernel"
    ask("live runs", *_try(_draw_from_a_thread), remedy)
    return pd.DataFrame(rows, columns=["what", "found", "fine", "what to do"])


def declared_requirements():
    """What the installed course declares to need, extras left out, as `packaging`'s requirements.

    Empty where the course is not installed, but only lies on the path.
    """
    from packaging.requirements import Requirement

    try:
        lines = requires("fedgen-lab") or []
    except PackageNotFoundError:
        return []
    requirements = [Requirement(line) for line in lines]
    return [line for line in requirements if not line.marker or line.marker.evaluate({"extra": ""})]


def is_met(requirement):
    """Whether what is installed here meets this requirement."""
    installed = installed_version(requirement.name)
    return installed is not None and requirement.specifier.contains(installed, prereleases=True)


def installed_version(name):
    """The version of this library that is installed here, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _try(attempt, *arguments):
    """(what `attempt(*arguments)` says, True), or (its error in words, False)."""
    try:
        return attempt(*arguments), True
    except Exception as error:  # whatever it is, it is the answer
        return f"{type(error).__name__}: {error}", False


def _read_words():
    """Let the shipped model's tokenizer read a caption."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(str(shipped("tiny-sd") / "tokenizer"))
    words = tokenizer.tokenize("a red star")
    if len(words) != 3:
        raise ValueError(f"'a red star' was read as {words}")
    return "loads"


def _draw_from_a_thread():
    """Let a small job draw from its thread, as the dashboards do."""
    from IPython import get_ipython
    from IPython.display import display

    from fedgen_lab.dashboards.job import Job

    if get_ipython() is None:
        return "no notebook here"
    empty = {"text/html": "", "text/plain": ""}
    handle = display(empty, raw=True, display_id=True)
    job = Job(lambda job: handle.update(empty, raw=True))
    if not job.start():
        return "one is going on"
    if not job.join(10):
        raise TimeoutError("drawing from a thread takes more than 10 seconds")
    if job.error is not None:
        raise job.error
    return "draw"
