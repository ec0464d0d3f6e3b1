"""`fedgen-lab html` and `make html`: executed copies of the labs, to read without Jupyter and without a network.

A copy has no kernel, so its knobs could do nothing: each widget becomes the words and pictures it shows. Charts stay as
they are, with plotly's script inside the page. Only formulas, where a lab has some, are set by MathJax from its host.
"""

import html
import os
import re
import shutil
import tempfile
from itertools import zip_longest
from pathlib import Path

import nbformat
from nbclient import execute
from nbconvert import HTMLExporter

from fedgen_lab.course import LABS, lab
from fedgen_lab.labs_folder import shipped_labs

WIDGET = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"


def still(widgets, model_id):
    """What the widget `model_id` shows, as HTML, from the notebook's `widgets` state; empty for a button."""
    values = widgets[model_id]["state"]
    layout = widgets.get(str(values.get("layout")).removeprefix("IPY_MODEL_"), {})
    if layout.get("state", {}).get("display") == "none":
        return ""
    if "children" in values:  # with titles, where they are tabs
        titles = [f"<h4>{html.escape(title)}</h4>" for title in values.get("titles") or ()]
        inside = [still(widgets, child.removeprefix("IPY_MODEL_")) for child in values["children"]]
        pairs = zip_longest(titles, inside, fillvalue="")
        return f"<div>{''.join(title + child for title, child in pairs)}</div>"
    if widgets[model_id]["model_name"] == "HTMLModel":
        return values["value"]
    label = html.escape(values.get("description", ""))
    if "_options_labels" in values:
        return f"<p>{label} {html.escape(' / '.join(values['_options_labels']))}</p>"
    if label and isinstance(values.get("value"), int | float | str):
        return f"<p>{label}: {html.escape(str(values['value']))}</p>"
    return ""


def run(path):
    """The notebook at `path`, executed, with every widget in its outputs replaced by what it shows."""
    notebook = nbformat.read(path, as_version=4)
    execute(notebook, str(path.parent), timeout=1200, kernel_name="python3")
    widgets = notebook.metadata.pop("widgets", {}).get(STATE, {}).get("state", {})
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            shown = output.get("data", {})
            view = shown.pop(WIDGET, None)
            if view:  # some outputs bring their own words for where there is no widget
                shown.setdefault("text/html", still(widgets, view["model_id"]))
    return notebook


def convert(notebook, folder):
    """The page for `notebook`; its links to other labs lead to their copies. Relative pictures come from `folder`."""
    has_formulas = any(
        "$" in cell.source for cell in notebook.cells if cell.cell_type == "markdown"
    )
    exporter = HTMLExporter(embed_images=True, require_js_url="")
    if not has_formulas:
        exporter.mathjax_url = "data:,"
    page, _ = exporter.from_notebook_node(notebook, {"metadata": {"path": str(folder)}})
    return re.sub(r'(href="\d\d_\w+)\.ipynb', r"\1.html", page)


def write_pages(names, folder):
    """Write the copies of the labs called `names`, or of all, to `folder`. Raises ValueError for an unknown name."""
    chosen = [lab(name) for name in names] or LABS
    folder.mkdir(exist_ok=True)
    os.environ["FEDGEN_RUN"] = "inline"
    # The labs run in a copy: where they came from may be read-only, and nobody's progress is touched.
    with tempfile.TemporaryDirectory() as scratch:
        labs = shutil.copytree(shipped_labs(), Path(scratch) / "labs")
        for entry in chosen:
            os.environ["FEDGEN_PROGRESS"] = str(Path(scratch) / f"{entry.name}.json")
            notebook = run(labs / f"{entry.name}.ipynb")
            notebook.metadata["title"] = f"{entry.name[:2]} {entry.title}"
            page = folder / f"{entry.name}.html"
            page.write_text(convert(notebook, labs), encoding="utf-8")
            print(page, f"{page.stat().st_size / 1e6:.1f} MB", flush=True)
