"""Recall: a few questions on the lab before, answered from memory, each with the reason once it is answered.

Calling something back to mind keeps it longer than reading it again (Roediger and Karpicke 2006). Opens every lab
from 01 on.
"""

import ipywidgets as widgets

from fedgen_lab.exercises import store
from fedgen_lab.exercises.notice import inline
from fedgen_lab.exercises.options import Options
from fedgen_lab.exercises.predict import show_live


class Recall:
    """Questions of one lab. `options` are their buttons, `whys` what is said after each answer, `box` all of it."""

    def __init__(self, lab: str, questions: list[tuple]) -> None:
        self.lab, self.questions = lab, questions
        self.first: dict[int, bool] = {}  # whether the first answer to each question was right
        self.options, self.whys, rows = [], [], []
        for number, (question, options, _, _) in enumerate(questions):
            self.options.append(
                Options(options, lambda text, number=number: self._answered(number, text))
            )
            self.whys.append(widgets.HTML())
            asked = widgets.HTML(
                f"<p style='white-space: normal'><strong>{number + 1}.</strong> {inline(question)}</p>"
            )
            rows += [asked, self.options[-1].box, self.whys[-1]]
        self.summary = widgets.HTML()
        self.box = widgets.VBox([*rows, self.summary])

    def answer(self, number: int, option: str) -> None:
        """Answer question `number` (from 1), as pressing the option's button does."""
        self.options[number - 1].choose(option)

    def _answered(self, number: int, text: str) -> None:
        question, options, right, why = self.questions[number]
        is_right = text == str(options[right])
        if number not in self.first:  # only the answer from memory counts
            self.first[number] = is_right
            store.note(
                "recall", f"{self.lab}.{number + 1}", question=question, answer=text, right=is_right
            )
        start = "Right." if is_right else f"Not quite: {options[right]}."
        self.whys[
            number
        ].value = f'<div role="status" style="white-space: normal">{inline(f"{start} {why}")}</div>'
        if len(self.first) == len(self.questions):
            self.summary.value = (
                f"<div>{sum(self.first.values())} of {len(self.first)} right at once.</div>"
            )

    def _ipython_display_(self) -> None:
        """Shown already by `recall`."""


def recall(lab: str, questions: list[tuple]) -> Recall:
    """Ask questions of the form (question, options, index of the right option, why). lab: the lab that asks, like "01".

    Raises ValueError for a question of another form.
    """
    if not (isinstance(lab, str) and len(lab) == 2 and lab.isdigit()):
        raise ValueError(f'lab must be a number of two digits as text, like "01"; got {lab!r}.')
    for one in questions:
        options = one[1] if len(one) == 4 and not isinstance(one[1], str) else ()
        if len(set(map(str, options))) < max(2, len(options)) or one[2] not in range(len(options)):
            raise ValueError(
                f"a recall question is (question, two or more options, index of the right one, why); got {one!r}."
            )
    made = Recall(lab, list(questions))
    fixed, text = [], []
    for number, (question, options, right, why) in enumerate(questions, 1):
        listed = "".join(f"<li>{inline(str(option))}</li>" for option in options)
        answer = f"<details><summary>Answer {number}</summary>{inline(f'{options[right]}. {why}')}</details>"
        fixed.append(
            f"<p><strong>{number}.</strong> {inline(question)}</p><ul>{listed}</ul>{answer}"
        )
        text.append("\n".join([f"{number}. {question}", *(f"   - {option}" for option in options)]))
    show_live(made.box, "".join(fixed), "\n".join(text))
    return made
