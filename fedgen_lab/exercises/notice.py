"""A few sentences for the learner: as a quiet box in a notebook, as plain text anywhere else.

Whatever `check`, `hint`, `reveal` and the others say, they say through here, so that it looks and reads alike in
every lab.
"""

import html
import re
from dataclasses import dataclass

COLOURS = {
    "good": "#009E73",
    "bad": "#D55E00",
    "plain": "#0072B2",
}  # only beside words that say the same


@dataclass(frozen=True)
class Notice:
    """Something that was said. `text` is all of it, as plain text."""

    text: str

    def __str__(self) -> str:
        return self.text

    def _ipython_display_(self) -> None:
        """Shown when it was said; naming it at the end of a cell does not show it twice."""


def say(head: str, *paragraphs: str, tone: str = "plain", code: str = "") -> Notice:
    """Show a head line, paragraphs and perhaps some source code in the running cell; empty paragraphs are left out."""
    paragraphs = tuple(filter(None, paragraphs))
    text = "\n".join([head, *paragraphs, *([code] if code else [])])
    source = f'<pre style="overflow-x: auto"><code>{html.escape(code)}</code></pre>' if code else ""
    body = (
        f"<strong>{inline(head)}</strong>"
        + "".join(f"<br>{inline(one)}" for one in paragraphs)
        + source
    )
    show(box(body, tone), text)
    return Notice(text)


def box(body: str, tone: str = "plain") -> str:
    """HTML in the lab's quiet box, which fits light and dark themes and is read aloud when it appears."""
    look = f"border-left: 4px solid {COLOURS[tone]}; padding: 6px 10px; line-height: 1.5; white-space: normal; "
    look += "color: var(--jp-ui-font-color1, #222); background: var(--jp-layout-color2, #eee)"
    return f'<div role="status" style="{look}">{body}</div>'


def inline(text: str) -> str:
    """Text as HTML, with `backticks` as code."""
    return re.sub(r"`([^`\n]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def show(html_text: str, text: str) -> None:
    """Put HTML and the same as plain text into the running cell; where there is none, print the text."""
    from IPython import get_ipython

    if get_ipython() is None:
        print(text)
    else:
        from IPython.display import display

        display({"text/html": html_text, "text/plain": text}, raw=True)
