"""One button for each option of a question: read without opening anything, pressed by mouse or by Tab and Space.

Why buttons: JupyterLab takes the arrow keys for itself, so they leave a drop-down list instead of moving in it, and a
group of radio buttons has no name for screen readers.
"""

from collections.abc import Callable

import ipywidgets as widgets

STYLE = (  # long options wrap instead of being cut off
    "<style>.fedgen-option { white-space: normal; height: auto; min-height: 28px; line-height: 1.4; text-align: left; "
    "padding: 3px 10px; max-width: 100%; }</style>"
)


class Options:
    """The options of one question. `box` is what is shown; `chosen` the text of the one chosen last, or None."""

    def __init__(self, options: list[str], on_choose: Callable[[str], None]) -> None:
        self.texts, self.chosen, self._on_choose = (
            [str(option) for option in options],
            None,
            on_choose,
        )
        self.buttons = [
            widgets.Button(description=text, layout={"width": "auto"}) for text in self.texts
        ]
        for text, button in zip(self.texts, self.buttons, strict=True):
            button.add_class("fedgen-option")
            button.on_click(lambda _, text=text: self.choose(text))
        self.box = widgets.VBox(
            [widgets.HTML(STYLE, layout={"height": "0", "margin": "0"}), *self.buttons]
        )
        self.box.layout.align_items = "flex-start"

    def choose(self, text: str) -> None:
        """Choose an option, as pressing its button does. Raises ValueError for a text that is no option."""
        self.mark(text)
        self._on_choose(text)

    def mark(self, text: str) -> None:
        """Show an option as chosen, with a word-like mark and not by colour, without telling anybody."""
        if text not in self.texts:
            raise ValueError(f"the options are {', '.join(map(repr, self.texts))}; got {text!r}.")
        self.chosen = text
        for one, button in zip(self.texts, self.buttons, strict=True):
            button.description = f"✓ {one}" if one == text else one

    def close(self) -> None:
        """Let nothing be chosen any more."""
        for button in self.buttons:
            button.disabled = True
