"""A lab's session: its first cell installs what is missing and tells of labs that still run; its end frees memory.

Every lab begins with `set_up()` and ends with `finish()`. A host such as Binder limits the memory of all open labs
together, and a lab that is done keeps its own until its kernel is shut down. Only what comes with Python or with a
notebook's kernel is imported at the top: on Colab `set_up` is called before anything else is installed.
"""

import gc
import importlib
import json
import os
import re
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil
from ipykernel.connect import get_connection_file
from jupyter_core.paths import jupyter_runtime_dir

from fedgen_lab.course import (
    LABS,
    MEMORY_LIMIT_MEGABYTES,
    declared_requirements,
    installed_version,
    is_met,
)
from fedgen_lab.dashboards.job import give_memory_back
from fedgen_lab.lean import import_pandas, return_large_blocks

# What a notebook itself runs on, and torch, which a host brings for its own processor: another version breaks both.
HOSTS_OWN = ("ipykernel", "ipython", "jupyterlab", "torch")
SECONDS_TO_ANSWER = 3


def set_up():
    """What a lab's first cell calls: install what is missing, save memory, tell which other labs are still running."""
    install(missing())
    return_large_blocks()
    import_pandas()
    labs = running_labs()
    if labs:
        show_running(labs)


def finish():
    """What a lab's last code cell calls: free what can be freed, and say in one line what is left and who frees it."""
    for name, module in list(sys.modules.items()):
        if name.startswith("fedgen_lab."):
            for value in list(vars(module).values()):
                getattr(value, "cache_clear", lambda: None)()
    gc.collect()
    give_memory_back()
    held = psutil.Process().memory_info().rss / 1e6
    print(
        f"This lab still holds {held:,.0f} MB. Before you open the next lab, give them back: Kernel > Shut Down."
    )


# -- what is missing ---------------------------------------------------------------------------------------------------


def missing():
    """The requirements of the installed course that this environment does not meet, as pip takes them.

    What belongs to the host is never among them.
    """
    return [
        str(requirement)
        for requirement in declared_requirements()
        if requirement.name not in HOSTS_OWN and not is_met(requirement)
    ]


def install(requirements):
    """Install these requirements with pip, and say so in one line. The host's own packages stay as they are."""
    if not requirements:
        return
    kept = [f"{name}=={version}" for name in HOSTS_OWN if (version := installed_version(name))]
    command = [sys.executable, "-m", "pip", "install", "-q", *requirements, *kept]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    names = ", ".join(re.match(r"[\w.-]+", requirement)[0] for requirement in requirements)
    if done.returncode:
        output = done.stderr.strip() or done.stdout.strip() or "pip said nothing"
        reason = output.splitlines()[-1]
        print(
            f"These could not be installed: {names} ({reason}). Is there a network? Then run this cell again."
        )
    else:
        importlib.invalidate_caches()
        print(f"Installed for the labs: {names}.")


# -- labs that still run -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunningLab:
    """Another lab of this Jupyter server whose kernel is up."""

    name: str  # its file, "03_federated_lora.ipynb"
    megabytes: float | None  # what its kernel holds; None where that can't be read
    server: dict  # its note: "url", "token" and more
    session: str  # the server's name for it

    def shut_down(self):
        """End its kernel, as *Kernel > Shut Down* does. Raises OSError when the server doesn't."""
        _ask(self.server, f"api/sessions/{self.session}", "DELETE")


def running_labs():
    """Every other lab on the Jupyter server that runs this notebook's kernel; [] where there is no such server.

    A kernel that has no notebook server (a test, VS Code, Colab) has no labs beside it.
    """
    this_kernel = _own_kernel()
    # Every server that this user has started leaves a note in the runtime folder; the newest come first.
    notes = Path(jupyter_runtime_dir()).glob("jpserver-*.json") if this_kernel else ()
    for note in sorted(notes, key=os.path.getmtime, reverse=True):
        try:
            server = json.loads(note.read_text(encoding="utf-8"))
            sessions = [
                session for session in _ask(server, "api/sessions") if session.get("kernel")
            ]
        except (OSError, ValueError):
            continue  # an old note of a server that is gone, or one of somebody else's
        if this_kernel not in [session["kernel"]["id"] for session in sessions]:
            continue
        labs = []
        for session in sessions:
            name, kernel = PurePosixPath(session["path"]).name, session["kernel"]["id"]
            if kernel != this_kernel and _is_lab(name):
                labs.append(RunningLab(name, _held_megabytes(kernel), server, session["id"]))
        return labs
    return []


def show_running(labs):
    """Show these labs in the running cell, with a button for each that shuts it down."""
    import ipywidgets as widgets
    from IPython.display import display

    notice = widgets.HTML(_notice(labs))
    running = list(labs)

    def button_for(lab):
        button = widgets.Button(description=f"Shut down {lab.name}", layout={"width": "auto"})

        def shut_down(_):
            button.disabled = True
            try:
                lab.shut_down()
            except OSError:
                button.description = (
                    f"{lab.name} did not end: choose Kernel > Shut Down Kernel in its tab"
                )
                return
            button.description = f"{lab.name} is shut down"
            running.remove(lab)
            notice.value = _notice(running)

        button.on_click(shut_down)
        return button

    display(widgets.VBox([notice, *map(button_for, labs)]))


def _notice(labs):
    """What is said of the labs that still run, as HTML in the labs' quiet box."""
    if not labs:
        return ""
    from fedgen_lab.exercises.notice import box  # whose room loads pandas and widgets

    held = [f"{lab.name} ({lab.megabytes:,.0f} MB)" if lab.megabytes else lab.name for lab in labs]
    return box(
        f"Still running: {', '.join(held)}. This lab needs up to {MEMORY_LIMIT_MEGABYTES} MB beside that; Binder ends "
        "a session at 2,000 MB. Shut down what you have finished: its page and its pictures stay, its variables go."
    )


def _is_lab(name):
    return name.endswith(".ipynb") and name.startswith(tuple(lab.name for lab in LABS))


def _own_kernel():
    """The id of the kernel that this process is, or None: it stands in the name of its connection file."""
    try:
        return Path(get_connection_file()).stem.removeprefix("kernel-")
    except (RuntimeError, OSError):  # this is no kernel, or one whose file is gone
        return None


def _ask(server, path, method="GET"):
    """What the server answers, from JSON. Raises OSError when it doesn't, ValueError when that isn't JSON."""
    token = server["token"] or os.environ.get("JUPYTERHUB_API_TOKEN", "")
    headers = {"Authorization": f"token {token}"}
    request = urllib.request.Request(f"{server['url']}{path}", headers=headers, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is on this machine
    with opener.open(request, timeout=SECONDS_TO_ANSWER) as answer:
        return json.loads(answer.read() or "null")


def _held_megabytes(kernel):
    """What this kernel's process holds now, in megabytes (10^6 bytes); None where that can't be read."""
    for process in psutil.process_iter(["cmdline", "memory_info"]):
        command, memory = process.info["cmdline"], process.info["memory_info"]
        if memory and f"kernel-{kernel}.json" in " ".join(command or ()):
            return memory.rss / 1e6
    return None
