"""How far a learner has come, with buttons to take that along: Binder forgets everything when its tab is closed.

Shown at the end of every lab. What is kept, and where, stands in `fedgen_lab.exercises.store`.
"""

import base64
import html
import json

import ipywidgets as widgets
import pandas as pd

from fedgen_lab.exercises import checks, store
from fedgen_lab.exercises.predict import show_live


class Board:
    """The table of progress with its buttons. `table`: one row a lab; `text`: the same as plain text."""

    def __init__(self) -> None:
        self.view, self.message = widgets.HTML(), widgets.HTML()
        self.export_button = widgets.Button(
            description="Export my progress", layout={"width": "auto"}
        )
        self.import_button = widgets.FileUpload(
            description="Import progress",
            accept=".json",
            multiple=False,
            icon="",
            layout={"width": "auto"},
        )
        self.export_button.on_click(lambda _: self._export())
        self.import_button.observe(self._import, names="value")
        buttons = widgets.HBox(
            [self.export_button, self.import_button], layout={"flex_flow": "row wrap"}
        )
        self.box = widgets.VBox([self.view, buttons, self.message])
        self.refresh()

    def refresh(self) -> None:
        """Read the progress file again and show it."""
        self.table = progress_table(store.load())
        self.view.value = self.html

    @property
    def html(self) -> str:
        rows = self.table.to_html(index=False, border=0, justify="left")
        look = "color: var(--jp-ui-font-color1, #222); background: var(--jp-layout-color0, #fff)"
        return f'<div style="overflow-x: auto; {look}">{rows}</div>'

    @property
    def text(self) -> str:
        return self.table.to_string(index=False)

    def _export(self) -> None:
        self.refresh()
        content = base64.b64encode(export_text().encode("utf-8", "backslashreplace")).decode()
        address = f"data:application/json;base64,{content}"
        link = f'<a download="my_progress.json" href="{address}">Download my_progress.json</a>'
        self._say(
            f"Your progress is ready: {link}. Import it in another session to go on from here."
        )

    def _import(self, change) -> None:
        if not change["new"]:
            return
        content = bytes(change["new"][0]["content"])
        try:
            self._say(html.escape(import_text(content.decode("utf-8-sig", errors="replace"))))
        except ValueError as error:
            self._say(f"<b>Problem:</b> {html.escape(str(error))}")
        self.refresh()
        self.import_button.value = ()  # so that the same file can be chosen again

    def _say(self, sentence: str) -> None:
        self.message.value = f'<div role="status" style="white-space: normal">{sentence}</div>'

    def _ipython_display_(self) -> None:
        """Shown already by `progress`."""


def progress() -> Board:
    """Show exercises passed, guesses made and questions recalled, lab by lab, with export and import buttons."""
    board = Board()
    show_live(board.box, board.html, board.text)
    return board


def progress_table(everything: dict) -> pd.DataFrame:
    """One row a lab: exercises passed, guesses made and right, recall questions answered right."""
    labs = {
        *checks.labs(),
        *(key.partition(".")[0] for section in everything.values() for key in section),
    }
    rows = []
    for lab in sorted(labs):
        mine = {
            name: [facts for key, facts in section.items() if key.partition(".")[0] == lab]
            for name, section in everything.items()
        }
        keys = {one.key for one in checks.exercises_of(lab)} if lab in checks.labs() else set()
        done = [
            key
            for key, facts in everything["exercises"].items()
            if key in keys and facts.get("passed") is True
        ]
        made = [facts for facts in mine["guesses"] if "guess" in facts]
        revealed = [facts for facts in made if "right" in facts]
        rows.append(
            {
                "Lab": lab,
                "Exercises passed": f"{len(done)} of {len(keys)}" if keys else "",
                "Guesses made": len(made),
                "Guesses right": _right(revealed),
                "Recalled": _right(mine["recall"]),
            }
        )
    return pd.DataFrame(
        rows, columns=["Lab", "Exercises passed", "Guesses made", "Guesses right", "Recalled"]
    )


def export_text() -> str:
    """The whole record as JSON text."""
    return json.dumps({"format": 1, **store.load()}, indent=1, ensure_ascii=False, sort_keys=True)


def import_text(text: str) -> str:
    """Add an exported record to what is here (nothing here is lost) and say what came in.

    Raises ValueError, and changes nothing, where the text is no such record.
    """
    try:
        theirs = store.parse(text)
    except ValueError as error:
        raise ValueError(
            f"Nothing was imported: {error}. Choose a my_progress.json that was exported here."
        ) from None
    store.save(store.merge(store.load(), theirs))
    return f"Imported. Exercises: {len(theirs['exercises'])}, guesses: {len(theirs['guesses'])}."


def _right(entries: list[dict]) -> str:
    return (
        f"{sum(facts.get('right') is True for facts in entries)} of {len(entries)}"
        if entries
        else ""
    )
