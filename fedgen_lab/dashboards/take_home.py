"""The button "Download the adapter": what a live run trained, as files that other programs load.

Labs 03 and 04. A link holds the whole file, so it works wherever the notebook does, and nothing is left on a server.
"""

import html
import tempfile
from base64 import b64encode
from pathlib import Path

import ipywidgets as widgets

from fedgen_lab.dashboards import controls

READERS = {  # a spelling -> who reads it
    "diffusers": "diffusers",
    "kohya": "ComfyUI and kohya",
}
MOST_BYTES = 16e6  # in a link; a browser takes more, but slowly


class TakeHome:
    """The button of a `Panel` whose runs have an `adapter`, and the links that a press shows under its status line."""

    def __init__(self, panel):
        self.panel = panel
        self.button = controls.button("Download the adapter", self.offer)
        self.links = widgets.HTML(layout={"width": "100%"})
        buttons, status, *pictures = panel.box.children
        buttons.children = (*buttons.children, self.button)
        panel.box.children = (buttons, status, self.links, *pictures)
        self._run = None  # whose files the links hold
        self.update()

    def update(self):
        """There is something to download as soon as the newest run has an adapter; an older run's links go."""
        run = self.panel.latest()
        self.button.disabled = run is None or not run.adapter
        if run is not self._run:
            self.links.value = ""

    def offer(self):
        """Show a link for each spelling, or a sentence that says why there is none."""
        self.update()
        if self.button.disabled:  # a new run began since it was pressed
            return
        self._run = self.panel.latest()
        try:
            words = links_html(self._run.adapter, self._run.provenance)
        except ValueError as error:
            words = f"<b>Problem:</b> {html.escape(str(error))}"
        self.links.value = f'<div class="fedgen-note" aria-live="polite">{words}</div>'


def links_html(state, provenance):
    """The adapter as links that hold it, one for each of `READERS`, and where it comes from, as HTML.

    Raises ValueError when it has no effect, numbers that are not finite, or too many of them.
    """
    from fedgen_lab.lora.export import save_adapter

    if not any(tensor.any() for name, tensor in state.items() if ".lora_B." in name):
        raise ValueError(
            f"This adapter changes nothing, for its B is zero: {provenance['rule']} has no model that all share. "
            "Choose another rule and start again."
        )
    links = []
    for kind, reader in READERS.items():
        name = f"{provenance['rule']}-{kind}.safetensors"
        with tempfile.TemporaryDirectory() as folder:
            file = save_adapter(state, Path(folder) / name, kind, provenance, alpha=0.0)
            content = file.read_bytes()
        if len(content) > MOST_BYTES:
            raise ValueError(
                f"The adapter has {len(content) / 1e6:.0f} MB, too much for a link. "
                "fedgen_lab.lora.export.save_adapter writes it to a file; lab 04 shows how."
            )
        data = f"data:application/octet-stream;base64,{b64encode(content).decode()}"
        words = f"Save {name} for {reader} ({len(content) / 1e6:.2g} MB)"
        links.append(f'<a download="{name}" href="{data}">{words}</a>')
    entries = [f"{key} {value}" for key, value in provenance.items() if value is not None]
    header = html.escape(", ".join(entries))
    return f"{'<br>'.join(links)}<br>The header of each says: {header}."
