"""An HTML copy of a lab shows what its widgets showed, and needs nothing from anywhere else."""

import re

import nbformat
import pytest

from fedgen_lab import html_copies
from fedgen_lab.html_copies import convert, run, write_pages

SOURCE = """
import ipywidgets as widgets
question = widgets.HTML("<p>What crosses the wire?</p>")
answer = widgets.Dropdown(options=["pictures", "adapters"], description="Answer:")
hidden = widgets.HTML("not yet", layout={"display": "none"})
widgets.VBox([question, answer, hidden, widgets.Button(description="Check")])
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labs")
    text = nbformat.v4.new_markdown_cell("# A lab\n\nNext: [lab 01](01_federated_averaging.ipynb)")
    nbformat.write(
        nbformat.v4.new_notebook(cells=[text, nbformat.v4.new_code_cell(SOURCE)]),
        folder / "lab.ipynb",
    )
    return convert(run(folder / "lab.ipynb"), folder)


def test_a_widget_becomes_the_words_it_shows_and_hidden_ones_stay_hidden(page):
    output = page[page.index("<p>What crosses the wire?</p>") :]
    assert "<p>Answer: pictures / adapters</p>" in output
    assert "not yet" not in output


def test_links_to_other_labs_lead_to_their_copies(page):
    assert 'href="01_federated_averaging.html"' in page


def test_no_script_style_or_picture_comes_from_another_host(page):
    assert not re.search(r"<(script|img|link)[^>]*(src|href)=\"https?:", page)
    assert "unpkg" not in page


def test_the_labs_run_in_a_copy_so_that_nothing_lands_where_they_came_from(tmp_path, monkeypatch):
    labs, writes = (
        tmp_path / "labs",
        "from pathlib import Path; Path('made.txt').write_text('made'); 6 * 7",
    )
    labs.mkdir()
    for name in ("FEDGEN_RUN", "FEDGEN_PROGRESS"):
        monkeypatch.setenv(name, "")  # both are set on the way, and must not reach the next test
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(writes)])
    nbformat.write(notebook, labs / "00_start_here.ipynb")
    monkeypatch.setattr(html_copies, "shipped_labs", lambda: labs)
    write_pages(["00"], tmp_path / "html")
    assert "42" in (tmp_path / "html" / "00_start_here.html").read_text(encoding="utf-8")
    assert [path.name for path in labs.iterdir()] == ["00_start_here.ipynb"]


def test_a_lab_that_does_not_exist_gets_no_page(tmp_path):
    with pytest.raises(ValueError, match="No lab is called '99'"):
        write_pages(["99"], tmp_path / "html")
    assert not (tmp_path / "html").exists()
