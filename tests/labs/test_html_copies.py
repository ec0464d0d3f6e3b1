"""An HTML copy of a lab shows what its widgets showed, and needs nothing from anywhere else."""

import re
import sys
from pathlib import Path

import nbformat
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from html_copies import convert, run  # noqa: E402

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
    nbformat.write(nbformat.v4.new_notebook(cells=[text, nbformat.v4.new_code_cell(SOURCE)]), folder / "lab.ipynb")
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
