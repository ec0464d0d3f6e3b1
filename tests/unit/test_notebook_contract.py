"""What every lab promises (CONTRIBUTING.md, "The notebook contract"), held against the committed notebooks."""

import json
import re
from importlib import import_module
from pathlib import Path
from statistics import median

import measure
import pytest

from fedgen_lab import course

LABS = Path(__file__).resolve().parents[2] / "labs"
STEPS = ("Predict", "Run", "Investigate", "Modify", "Make")
IMAGE = re.compile(r"!\[(.*?)\]\((.*?)\)|<img\b[^>]*>")

every_lab = pytest.mark.parametrize("name", [one.name for one in course.LABS])


def read(name):
    return json.loads((LABS / f"{name}.ipynb").read_text(encoding="utf-8"))


def sources(name, kind):
    """The source of every cell of this kind but the set-up cell, which is the same in every lab."""
    return [
        "".join(cell["source"])
        for cell in read(name)["cells"]
        if cell["cell_type"] == kind and not sets_up(cell)
    ]


def sets_up(cell):
    return "setup" in cell["metadata"].get("tags", [])


def prose(name):
    return "\n\n".join(sources(name, "markdown"))


def sections(name):
    """The text below each `## ` heading, by heading."""
    parts = re.split(r"(?m)^## +(.+)$", prose(name))
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def steps_in(text):
    """The steps, in the order in which they start a heading or a bold run-in."""
    return re.findall(rf"(?m)^(?:#{{3,}} *|\*\*)({'|'.join(STEPS)})\b", text)


def code_lines(source):
    """The lines of code that are a lab's own: `finish()` ends them all."""
    lines = [line.strip() for line in source.splitlines()]
    return [line for line in lines if line and not line.startswith("#") and line != "finish()"]


def test_the_folder_holds_exactly_the_labs_of_the_course():
    assert sorted(path.stem for path in LABS.glob("*.ipynb")) == [one.name for one in course.LABS]


@every_lab
def test_a_lab_starts_with_its_title_and_what_one_can_do_after_it(name):
    first = read(name)["cells"][0]
    assert first["cell_type"] == "markdown"
    lines = [line for line in "".join(first["source"]).splitlines() if line.strip()]
    assert lines[0].startswith("# ")
    assert "After this you can" in prose(name).split("\n## ")[0]
    assert prose(name).count("\n# ") == 0, "one title is enough"


@every_lab
def test_the_header_quotes_what_was_measured_and_links_to_a_place_to_run(name):
    measured = json.loads((LABS / "measured.json").read_text(encoding="utf-8"))
    head = "\n".join(sources(name, "markdown")[:3]).splitlines()
    assert measure.header(name, measured) in head, "run `make measure`"
    assert measure.launch_links(name) in head, "run `make measure`"
    assert measured[name]["peak_megabytes"] < course.MEMORY_LIMIT_MEGABYTES
    assert measured[name]["cpu_seconds"] <= 240, "a lab must stay within four minutes of one core"


@every_lab
def test_a_lab_sets_itself_up_first_as_all_labs_do_and_frees_memory_last(name):
    code = [cell for cell in read(name)["cells"] if cell["cell_type"] == "code"]
    assert [cell["id"] for cell in code if sets_up(cell)] == [code[0]["id"]]
    assert "".join(code[0]["source"]) == measure.SET_UP_CELL, "run `make measure`"
    assert "finish()" in "".join(code[-1]["source"]).splitlines()


@every_lab
def test_a_lab_recalls_the_one_before(name):
    if name != course.LABS[0].name:
        assert any("Recall" in heading for heading in sections(name))
        assert any("recall(" in source for source in sources(name, "code"))


@every_lab
def test_sections_go_from_a_prediction_to_something_made(name):
    for heading, text in sections(name).items():
        steps = steps_in(text)
        assert steps == sorted(steps, key=STEPS.index), f"{heading}: {steps}"
    missing = set(STEPS) - set(steps_in(prose(name)))
    assert not missing


@every_lab
def test_a_lab_ends_with_a_summary_sources_and_the_next_lab(name):
    parts = sections(name)
    summary = next(text for heading, text in parts.items() if heading.startswith("Summary"))
    assert len(re.findall(r"(?m)^ *(?:[-*]|\d+\.) ", summary)) == 5, (
        "a summary of five lines, one list item each"
    )
    listed = next(text for heading, text in parts.items() if heading.startswith("Sources"))
    assert re.search(r"https?://|\]\(", listed)
    following = [one.name for one in course.LABS] + [course.LABS[0].name]
    assert f"({following[following.index(name) + 1]}.ipynb)" in "\n".join(
        sources(name, "markdown")[-2:]
    )


@every_lab
def test_cells_are_small_and_the_lab_is_neither_thin_nor_long(name):
    counts = [len(code_lines(source)) for source in sources(name, "code")]
    opening = name == course.LABS[0].name  # lab 00 shows the way and may be shorter
    assert max(len(source.splitlines()) for source in sources(name, "code")) <= 25
    assert median(counts) <= 6
    assert (40 if opening else 80) <= sum(counts) <= 200
    assert (900 if opening else 1500) <= len(prose(name).split()) <= 2800


@every_lab
def test_a_lab_is_committed_clean(name):
    notebook = read(name)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) >= (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert "widgets" not in notebook["metadata"]
    ids = [cell.get("id") for cell in notebook["cells"]]
    assert all(ids) and len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code" and "nbval-check-output" not in cell["metadata"].get(
            "tags", []
        ):
            assert not cell["outputs"] and cell["execution_count"] is None, (
                f"cell {cell['id']} has output: clear it"
            )
    assert (LABS / f"{name}.ipynb").stat().st_size < 200_000


@every_lab
def test_every_image_says_in_words_what_it_shows(name):
    for found in IMAGE.finditer(prose(name)):
        words = found[1] if found[2] is not None else re.search(r'alt="([^"]*)"', found[0])
        assert words, found[0]


@every_lab
def test_links_to_files_lead_somewhere(name):
    targets = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", prose(name))
    for target in (markdown or html for markdown, html in targets):
        if not re.match(r"[a-z]+:|#", target):
            assert (LABS / target.partition("#")[0]).exists(), target


@every_lab
def test_the_exercises_in_a_lab_are_those_of_its_module_and_each_has_three_hints_and_a_solution(
    name,
):
    code = "\n".join(sources(name, "code"))
    exercises = import_module(f"fedgen_lab.exercises.lab{name[:2]}").EXERCISES
    checked = re.findall(r"\bcheck\([\"']([\d.]+)[\"']", code)
    assert sorted(checked) == sorted(exercise.key for exercise in exercises)
    assert checked, "a lab without an exercise"
    for exercise in exercises:
        assert exercise.key.startswith(name[:2] + ".")
        assert len(exercise.hints) == 3 and all(exercise.hints) and exercise.solution.strip()
    shown = code + prose(name)
    assert "hint(" in shown and "solution(" in shown, "say how to get a hint and the solution"


@every_lab
def test_no_image_or_script_comes_from_another_host(name):
    assert not re.search(
        r"!\[[^\]]*\]\(https?:|src=[\"']https?:", prose(name) + "\n".join(sources(name, "code"))
    )
