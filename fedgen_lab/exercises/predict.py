"""Predict, then run: a guess is stored before a cell runs and shown beside the result.

Being surprised by the answer is what helps to remember it (Brod 2021, doi:10.3758/s13423-021-01904-1). Used by all
labs.
"""

import html

import ipywidgets as widgets

from fedgen_lab.exercises import store
from fedgen_lab.exercises.notice import Notice, inline, say, show
from fedgen_lab.exercises.options import Options


class Prediction:
    """A question with options. `options.buttons` are its buttons; `guess` is what is stored, or None."""

    def __init__(self, key: str, question: str, options: list[str]) -> None:
        self.key, self.question, self.note = key, question, widgets.HTML()
        self.options = Options(options, self._store)
        facts = store.load()["guesses"].get(key, {})
        if facts.get("guess") in self.options.texts:
            self.options.mark(facts["guess"])
        if "actual" in facts:  # a guess made after the answer is known would be none
            self.options.close()
            self._say(f"You guessed {facts.get('guess')}; it was {facts['actual']}.")
        elif self.options.chosen is not None:
            self._say(f"You guessed {self.options.chosen}. Now run the next cell.")

    @property
    def guess(self) -> str | None:
        return store.load()["guesses"].get(self.key, {}).get("guess")

    def choose(self, option: str) -> None:
        """Guess `option`, as pressing its button does."""
        self.options.choose(option)

    def _store(self, option: str) -> None:
        store.note("guesses", self.key, question=self.question, guess=option)
        self._say(f"Noted: you guess {option}. Now run the next cell.")

    def _say(self, sentence: str) -> None:
        self.note.value = f'<div role="status">{html.escape(sentence)}</div>'

    def _ipython_display_(self) -> None:
        """Shown already by `predict`."""


def predict(key: str, question: str, options: list[str]) -> Prediction:
    """Ask for a guess before the next cell is run. key: the lab and a word, like "01.skew"; options: two or more texts.

    The guess is kept in the progress file until `reveal(key, ...)` shows it beside the result.
    Raises ValueError for fewer than two options or a key without a lab.
    """
    _check_key(key)
    if isinstance(options, str) or len(options) < 2 or len(set(map(str, options))) != len(options):
        raise ValueError(f"a prediction needs at least two different options; got {options!r}.")
    made = Prediction(key, question, list(options))
    listed = "".join(f"<li>{inline(option)}</li>" for option in made.options.texts)
    fixed = f"<p><strong>Predict:</strong> {inline(question)}</p><ul>{listed}</ul>"
    text = "\n".join([f"Predict: {question}", *(f"- {option}" for option in made.options.texts)])
    asked = widgets.HTML(
        f"<p style='white-space: normal'><strong>Predict:</strong> {inline(question)}</p>"
    )
    show_live(widgets.VBox([asked, made.options.box, made.note]), fixed, text)
    return made


def reveal(key: str, actual, sentence: str = "") -> Notice:
    """Show the stored guess beside what happened. actual: the option that was right, or any text; sentence: why.

    Works also where nobody guessed. Raises ValueError for a key without a lab.
    """
    _check_key(key)
    actual = str(actual)
    guess = store.load()["guesses"].get(key, {}).get("guess")
    if guess is None:
        return say(f"It was {actual}.", "You made no guess this time.", sentence)
    store.note("guesses", key, actual=actual, right=guess == actual)
    if guess == actual:
        return say(f"You guessed {guess}, and it was {actual}.", sentence, tone="good")
    return say(f"You guessed {guess}; it was {actual}.", sentence)


def show_live(widget: widgets.Widget, fixed_html: str, text: str) -> None:
    """A widget where a front end can show one; its words alone in HTML copies and in plain Python."""
    from IPython import get_ipython

    from fedgen_lab.dashboards.job import runs_inline

    if get_ipython() is None or runs_inline():
        show(fixed_html, text)
    else:
        from IPython.display import display

        bundle = (
            widget._repr_mimebundle_()
        )  # the reference that JupyterLab turns into the live widget
        display({**bundle, "text/plain": text}, raw=True)


def _check_key(key: str) -> None:
    lab, dot, name = str(key).partition(".")
    if not (len(lab) == 2 and lab.isdigit() and dot and name):
        raise ValueError(
            f'a prediction\'s key is lab, dot and a word, like "01.skew"; got {key!r}.'
        )
