"""README is true: its examples run as they stand there, and what nobody ran is marked. Its commands: tests/readme."""

import re
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from readme_blocks import ROOT, block_with, read_blocks

from fedgen_lab.course import MEMORY_LIMIT_MEGABYTES
from fedgen_lab.pictures.folders import read_folder
from fedgen_lab.split.deal import published_scenario

README = (ROOT / "README.md").read_text(encoding="utf-8")
WORDS = {  # of each block that a test runs
    word
    for path in (Path(__file__), *(ROOT / "tests" / "readme").glob("test_*.py"))
    for word in re.findall(r'block_with\("([^"]+)"\)', path.read_text(encoding="utf-8"))
}


def run(block):
    """Run a Python block in the present folder; what it leaves behind, by name."""
    names = {}
    exec(compile(block.text, "README.md", "exec"), names)
    return names


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """The two pictures of README's example, in the present folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("cat.png", "boat.png"):
        Image.new("RGB", (48, 36)).save(name)


def test_every_block_is_run_by_a_test_or_says_that_it_was_not_tried():
    for block in read_blocks():
        assert any(word in block.text for word in WORDS) == block.is_tried, block
    assert [block.language for block in read_blocks() if not block.is_tried] == [
        "bat",
        "bash",
    ]  # Windows, conda


def test_a_block_is_not_tried_where_the_paragraph_before_it_says_so():
    tried, untried = read_blocks(
        "One.\n\n```bash\na\n```\n\nTwo (not tried\nhere):\n\n```bash\nb\n```\n"
    )
    assert tried.is_tried and not untried.is_tried


def test_pictures_with_the_captions_of_readmes_table_are_read(pictures):
    Path("metadata.csv").write_text(block_with("file_name,text").text, encoding="utf-8")
    assert read_folder(".").captions == ["a black cat", "a red boat on blue water"]


def test_pictures_in_a_zip_with_names_of_ones_own_are_read(pictures):
    with zipfile.ZipFile("my_pictures.zip", "w") as archive:
        archive.writestr(
            "captions.csv",
            block_with("file_name,text").text.replace("file_name,text", "file,caption"),
        )
        for name in ("cat.png", "boat.png"):
            archive.write(name)
    assert len(run(block_with("read_folder("))["pictures"]) == 2


def test_the_example_of_a_gan_trains_one(capsys):
    outcome = run(block_with("run_gan("))["outcome"]
    assert len(outcome.generators) == outcome.scenario.num_clients
    assert [round.round for round in outcome.history] == list(range(outcome.scenario.rounds + 1))
    assert "GanRound" in capsys.readouterr().out


def test_names_and_numbers_in_readmes_sentences_are_those_of_the_code():
    targets = set(re.findall(r"`make ([a-z-]+)", README))
    assert targets <= set(
        re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    limit = f"{MEMORY_LIMIT_MEGABYTES:,} MB"
    assert f"A lab's kernel takes up to {limit} of memory" in README
    assert (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").count(limit) == 2
    assert [published_scenario(f"S{number}").num_clients > 0 for number in range(1, 7)] == 6 * [
        True
    ]
