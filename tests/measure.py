"""`make measure`: run every lab on one thread, note what it took in labs/measured.json and in the lab's own header.

Seconds are the wall clock from the kernel's start to the end of the last cell, CPU seconds those of the kernel and the
processes it started, megabytes the kernel's peak (VmHWM) once every dashboard was started. Linux only. Give names to
measure only some: measure.py 02 03
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

import nbformat
from kernel_memory import peak_megabytes
from nbclient import NotebookClient

from fedgen_lab.course import LABS, REPOSITORY, lab

FOLDER = Path(__file__).resolve().parents[1] / "labs"
MEASURED = FOLDER / "measured.json"
SET_UP_ID = "5e70c311"
START_IDLE = "from fedgen_lab.dashboards.panel import start_idle; start_idle()"
SET_UP_CELL = f"""# Set-up. On Colab this installs the course. Where another lab is still running, it says so.
from importlib.util import find_spec

if find_spec("fedgen_lab") is None:
    %pip install -q --no-deps git+{REPOSITORY}
from fedgen_lab.session import finish, set_up

set_up()"""  # the first code cell of every lab


def cpu_seconds(pid):
    """Processor time that `pid` and its finished children have used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def measure(path):
    """Run the notebook at `path` from top to bottom; raises nbclient's CellExecutionError when a cell fails."""
    notebook, beside = nbformat.read(path, as_version=4), {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, timeout=1200, kernel_name="python3", resources=beside)
    start = time.perf_counter()
    with client.setup_kernel():
        for index, cell in enumerate(client.nb.cells):
            client.execute_cell(cell, index)
        pid = client.km.provisioner.pid
        seconds = {
            "seconds": round(time.perf_counter() - start, 1),
            "cpu_seconds": round(cpu_seconds(pid), 1),
        }
        client.nb.cells.append(nbformat.v4.new_code_cell(START_IDLE))
        client.execute_cell(client.nb.cells[-1], len(client.nb.cells) - 1)
        return {**seconds, "peak_megabytes": round(peak_megabytes(pid))}


def launch_links(name):
    """Markdown that opens lab `name` on Binder, on Colab, or as a page to read. The badges are local images."""
    path = f"labs/{lab(name).name}.ipynb"
    owner_and_name = REPOSITORY.removeprefix("https://github.com/")
    binder = f"https://mybinder.org/v2/gh/{owner_and_name}/HEAD?labpath={quote(path, safe='')}"
    colab = f"https://colab.research.google.com/github/{owner_and_name}/blob/main/{path}"
    return (
        f"[![Open in Binder](images/launch-binder.svg)]({binder}) · "
        f"[![Open in Colab](images/launch-colab.svg)]({colab}) · [Read on GitHub]({REPOSITORY}/blob/main/{path})"
    )


def header(name, measured):
    """The line on time and memory at the head of lab `name`, from `measured`, the content of labs/measured.json."""
    record = measured[lab(name).name]
    return (
        f"**Time:** about {lab(name).minutes} minutes; computing is {record['cpu_seconds']:.0f} seconds on one core. "
        f"**Memory:** {record['peak_megabytes']:.0f} MB at the peak."
    )


def dress(notebook, name, measured):
    """Put the measured header, the launch links and the set-up cell of lab `name` into `notebook`, in place."""
    for start, line in (("**Time:**", header(name, measured)), ("[![", launch_links(name))):
        places = [
            (cell, number)
            for cell in notebook["cells"][:3]
            if cell["cell_type"] == "markdown"
            for number, text in enumerate("".join(cell["source"]).splitlines())
            if text.startswith(start)
        ]
        cell, number = places[0] if places else (notebook["cells"][0], None)
        lines = "".join(cell["source"]).splitlines()
        lines = (
            [*lines, "", line] if number is None else [*lines[:number], line, *lines[number + 1 :]]
        )
        cell["source"] = split(lines)
    cells = [cell for cell in notebook["cells"] if "setup" not in cell["metadata"].get("tags", [])]
    set_up = {
        "cell_type": "code",
        "execution_count": None,
        "id": SET_UP_ID,
        "metadata": {"tags": ["setup"]},
    }
    set_up |= {"outputs": [], "source": split(SET_UP_CELL.splitlines())}
    notebook["cells"] = [cells[0], set_up, *cells[1:]]


def split(lines):
    """These lines as a notebook's file keeps them: all but the last with their line break."""
    return [text + "\n" for text in lines[:-1]] + lines[-1:]


def main(names):
    """Measure the labs called `names` (all when there are none) and write what came out."""
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "FEDGEN_RUN": "inline",
        "FEDGEN_PROFILE": "binder",
    }
    measured = json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.exists() else {}
    for one in [lab(name) for name in names] or LABS:
        path = FOLDER / f"{one.name}.ipynb"
        with tempfile.TemporaryDirectory() as scratch:
            os.environ["FEDGEN_PROGRESS"] = str(Path(scratch) / "my_progress.json")
            measured[one.name] = measure(path)
        print(one.name, measured[one.name], flush=True)
        MEASURED.write_text(
            json.dumps(dict(sorted(measured.items())), indent=2) + "\n", encoding="utf-8"
        )
        notebook = json.loads(path.read_text(encoding="utf-8"))
        dress(notebook, one.name, measured)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
