"""The second tab of lab 03's dashboard: the same job on a learner's own captioned pictures.

Lab 03. A folder, a zip or a Hub data set is read and shown first; then base, local-only and federated models are
compared on pictures that nobody trained on.
"""

import html
from dataclasses import replace

import ipywidgets as widgets

from fedgen_lab.dashboards import charts, controls
from fedgen_lab.dashboards.job import Job
from fedgen_lab.dashboards.lora_live import LiveRun
from fedgen_lab.dashboards.lora_runs import read_pictures, run_own
from fedgen_lab.dashboards.panel import Panel

HELP = (
    "A folder or a zip of images with captions, seen from this notebook's folder (drag a zip into the file browser on "
    "the left to bring it here), or hub:OWNER/NAME. The caption file lists each image's file name and its text. "
    "Without one, the text in cat.txt is the caption of cat.png beside it."
)
SHOWN = 16  # pictures in the preview


class OwnPictures:
    """Fields that say where the pictures are, a preview, a panel that trains on them. `box` is what the tab shows."""

    def __init__(self, scenario, changed):
        self._scenario = scenario
        self.path = controls.text_field("Pictures", placeholder="my_pictures.zip")
        self.caption_file = controls.text_field(
            "Caption file", placeholder="metadata.csv or metadata.jsonl, found by itself"
        )
        self.file_column = controls.text_field("Column of file names", "file_name")
        self.text_column = controls.text_field("Column of captions", "text")
        self.concept = widgets.Combobox(
            description="Column that makes clients differ",
            placeholder="read the pictures to see the columns",
            style={"description_width": "initial"},
            layout={"width": "auto"},
            ensure_option=False,
        )
        self.status = controls.StatusLine("Say where your pictures are, then read them.")
        self.reading = Job(self._read, self._show_reading, self.status)
        self.read_button = controls.button("Read the pictures", self.reading.start)
        self.preview = widgets.HTML(layout={"width": "100%"})
        self.fields = (
            self.path,
            self.caption_file,
            self.file_column,
            self.text_column,
            self.concept,
        )
        self.panel = Panel("Start on these pictures", LiveRun, run_own, self.scenario, changed)
        self.box = widgets.VBox(
            [
                widgets.HTML(f'<span class="fedgen-help">{html.escape(HELP)}</span>'),
                controls.grid(self.fields, smallest="280px"),
                controls.row([self.read_button]),
                self.status.widget,
                self.preview,
                self.panel.box,
            ],
            layout={"width": "100%"},
        )

    def scenario(self):
        """The knobs' scenario with this tab's pictures. Raises ValueError while no pictures or no column is named."""
        path = self.path.value.strip()
        if not path:
            raise ValueError(
                "Fill in the field Pictures: the path of a folder or zip, or hub:OWNER/NAME."
            )
        if not self.concept.value.strip():
            raise ValueError(
                "Fill in the column that makes clients differ; Read the pictures lists the columns there are."
            )
        return replace(
            self._scenario(),
            pictures=path,
            concept=self.concept.value.strip(),
            caption_file=self.caption_file.value.strip(),
            file_column=self.file_column.value.strip(),
            text_column=self.text_column.value.strip(),
        )

    def _read(self, job):
        if not self.path.value.strip():
            raise ValueError(
                "Fill in the field Pictures: the path of a folder or zip, or hub:OWNER/NAME."
            )
        job.report("Reading the pictures.")
        scenario = replace(
            self._scenario(),
            pictures=self.path.value.strip(),
            caption_file=self.caption_file.value.strip(),
            file_column=self.file_column.value.strip(),
            text_column=self.text_column.value.strip(),
        )
        return read_pictures(scenario)

    def _show_reading(self, job):
        self.read_button.disabled = job.state == "running"
        if job.state != "done":
            self.status.say(job.message, job.state)
            return
        pictures, cut = job.result
        columns = concept_columns(pictures.attributes)
        self.concept.options = tuple(columns)
        if not self.concept.value and columns:
            self.concept.value = next(iter(columns))
        self.status.say(reading_sentence(pictures, columns, cut), "done")
        some = range(0, len(pictures), max(1, len(pictures) // SHOWN))[:SHOWN]
        shown = pictures.take(list(some))
        self.preview.value = charts.pictures_html(shown.images, shown.captions, columns=8, scale=2)


def concept_columns(attributes):
    """The columns by which clients can differ, with their number of values: at least two, each twice or more."""
    filled = attributes.astype(str).replace("", None)  # an empty cell is no concept
    counts = {str(name): filled[name].nunique() for name in filled.columns}
    return {name: number for name, number in counts.items() if 2 <= number <= len(attributes) / 2}


def reading_sentence(pictures, columns, cut=(0, 0)):
    """What was read, in words: how many pictures, which were left out, which columns can make clients differ.

    cut: how many captions are cut, and to how many tokens, as `fedgen_lab.lora.pipeline.cut_captions` counts them.
    """
    skipped = pictures.attributes.attrs.get("skipped", [])
    said = f"{len(pictures)} pictures with captions were read."
    if skipped:
        said += f" {len(skipped)} could not be used, the first is {skipped[0]}."
    repeats = len(pictures) - len({image.tobytes() for image in pictures.images.numpy()})
    if repeats:
        said += (
            f" Rows with the very pixels of an earlier row: {repeats} (copies, or further captions of one picture); "
            "such rows stay together, all to train on or all to judge by."
        )
    number, tokens = cut
    if number:
        said += (
            f" Captions that are cut: {number}, because the base model reads {tokens} tokens, its marks for start and "
            f"end among them; put what matters into the first {tokens - 2} words, or fewer where words are rare."
        )
    if columns:
        listed = ", ".join(f"{name} ({number} values)" for name, number in columns.items())
        return f"{said} Columns that can make clients differ: {listed}."
    return f"{said} No column has a value that several pictures share; leave skew at 0, or add such a column."
