"""Progress: one file, never half written, never lost, taken along by export and import."""

import base64
import datetime
import json
import re
import warnings

import pytest

from fedgen_lab.exercises import progress, store
from fedgen_lab.exercises.progress import export_text, import_text, progress_table


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    path = tmp_path / "labs" / "my_progress.json"
    monkeypatch.setenv("FEDGEN_PROGRESS", str(path))
    return path


def some_progress():
    store.note("exercises", "98.1", tries=2, passed=True)
    store.note("exercises", "98.2", tries=1, passed=False)
    store.note("guesses", "98.skew", guess="up", actual="up", right=True)
    store.note("guesses", "98.rank", guess="down")
    store.note("recall", "98.1", answer="a", right=True)


def upload(board, content):
    board.import_button.value = ({
        "name": "my_progress.json", "type": "application/json", "size": len(content),
        "content": memoryview(content), "last_modified": datetime.datetime.now(),
    },)


def exported(board):
    board.export_button.click()
    return base64.b64decode(re.search(r'base64,([^"]+)"', board.message.value)[1])


# -- the file
def test_progress_lies_beside_the_labs(tmp_path, monkeypatch):
    monkeypatch.delenv("FEDGEN_PROGRESS")
    (tmp_path / "labs").mkdir()
    for folder in (tmp_path, tmp_path / "labs"):
        monkeypatch.chdir(folder)
        assert store.progress_file() == tmp_path / "labs" / "my_progress.json"


def test_what_is_noted_is_on_disk_at_once_and_facts_add_up(file):
    store.note("exercises", "98.1", tries=1)
    store.note("exercises", "98.1", hints=2)
    assert json.loads(file.read_text())["exercises"] == {"98.1": {"tries": 1, "hints": 2}}
    assert [path.name for path in file.parent.iterdir()] == ["my_progress.json"]  # no half-written file stays


RUBBISH = [b"", b"{", b"[1, 2]", b'"text"', b"\xff\xfe\x00", b'{"something": "else"}', b"[" * 99999]


@pytest.mark.parametrize("content", RUBBISH, ids=range(len(RUBBISH)))
def test_a_corrupted_file_is_put_aside_with_a_message_and_nothing_stops(file, content):
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.warns(UserWarning, match="could not be read.*my_progress.broken-1.json"):
        store.note("exercises", "98.1", passed=True)
    assert store.load()["exercises"]["98.1"]["passed"] is True
    assert file.with_name("my_progress.broken-1.json").read_bytes() == content


def test_a_second_corrupted_file_does_not_replace_the_first(file):
    file.parent.mkdir()
    for number in (1, 2):
        file.write_text("{" * number)
        with pytest.warns(UserWarning):
            store.load()
        assert file.with_name(f"my_progress.broken-{number}.json").read_text() == "{" * number


def test_a_file_edited_by_hand_keeps_its_good_parts(file):
    file.parent.mkdir()
    file.write_text('{"exercises": {"98.1": {"passed": true, "tries": "many"}, "98.2": 3}, "guesses": [1], "x": 1}')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        everything = store.load()
    assert everything == {"exercises": {"98.1": {"passed": True, "tries": "many"}}, "guesses": {}, "recall": {}}
    assert store.count(everything["exercises"]["98.1"], "tries") == 0
    progress()


def test_where_nothing_can_be_saved_the_lesson_goes_on(tmp_path, monkeypatch):
    (tmp_path / "a_file").write_text("in the way")
    monkeypatch.setenv("FEDGEN_PROGRESS", str(tmp_path / "a_file" / "my_progress.json"))
    with pytest.warns(UserWarning, match="cannot be saved"):
        store.note("guesses", "98.skew", guess="up")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        store.note("guesses", "98.rank", guess="down")
    assert set(store.load()["guesses"]) == {"98.skew", "98.rank"}


def test_a_folder_in_place_of_the_file_holds_it(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDGEN_PROGRESS", str(tmp_path))
    assert store.progress_file() == tmp_path / "my_progress.json"


# -- the board
def test_the_board_counts_lab_by_lab(capsys):
    some_progress()
    board = progress()
    row = board.table.set_index("Lab").loc["98"]
    assert row["Guesses made"] == 2 and row["Guesses right"] == "1 of 1" and row["Recalled"] == "1 of 1"
    assert "98" in capsys.readouterr().out


def test_every_lab_with_exercises_is_listed_from_the_start():
    from fedgen_lab.exercises.checks import exercises_of, labs

    table = progress_table(store.load()).set_index("Lab")
    for lab in labs():
        assert table.loc[lab, "Exercises passed"] == f"0 of {len(exercises_of(lab))}"


def test_export_then_import_elsewhere_gives_the_same_progress(tmp_path, monkeypatch):
    some_progress()
    before = store.load()
    content = exported(progress())
    monkeypatch.setenv("FEDGEN_PROGRESS", str(tmp_path / "elsewhere.json"))
    board = progress()
    upload(board, content)
    assert store.load() == before
    assert "Imported. Exercises: 2, guesses: 2." in board.message.value
    assert board.table.set_index("Lab").loc["98"]["Guesses made"] == 2


def test_an_import_loses_nothing_that_is_here():
    some_progress()
    theirs = {"exercises": {"98.1": {"tries": 9, "passed": False}, "98.2": {"passed": True}},
              "guesses": {"98.skew": {"guess": "down"}}}
    import_text(json.dumps(theirs))
    everything = store.load()
    assert everything["exercises"]["98.1"] == {"tries": 9, "hints": 0, "passed": True}
    assert everything["exercises"]["98.2"]["passed"] is True
    assert everything["guesses"]["98.skew"]["guess"] == "up"


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\x89PNG\xff", b"[]", b'{"cells": []}'])
def test_importing_rubbish_says_so_and_changes_nothing(content):
    some_progress()
    before = export_text()
    board = progress()
    upload(board, content)
    assert "Problem:" in board.message.value and "Nothing was imported" in board.message.value
    assert export_text() == before


def test_an_imported_file_cannot_put_code_into_the_page():
    board = progress()
    upload(board, json.dumps({"exercises": {}, "guesses": {"<img src=x onerror=alert(1)>.1": {"guess": "x"}}}).encode())
    assert "<img" not in board.view.value


def test_buttons_carry_words_and_no_icons():
    board = progress()
    assert (board.export_button.description, board.export_button.icon) == ("Export my progress", "")
    assert (board.import_button.description, board.import_button.icon) == ("Import progress", "")
