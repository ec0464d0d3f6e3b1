"""Progress: one file, never half written, never lost, taken along by export and import."""

import base64
import datetime
import json
import os
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
    board.import_button.value = (
        {
            "name": "my_progress.json",
            "type": "application/json",
            "size": len(content),
            "content": memoryview(content),
            "last_modified": datetime.datetime.now(),
        },
    )


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
    assert json.loads(file.read_text(encoding="utf-8"))["exercises"] == {
        "98.1": {"tries": 1, "hints": 2}
    }
    assert [path.name for path in file.parent.iterdir()] == [
        "my_progress.json"
    ]  # no half-written file stays


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
        file.write_text("{" * number, encoding="utf-8")
        with pytest.warns(UserWarning):
            store.load()
        assert (
            file.with_name(f"my_progress.broken-{number}.json").read_text(encoding="utf-8")
            == "{" * number
        )


def test_a_file_edited_by_hand_keeps_its_good_parts(file):
    file.parent.mkdir()
    content = '{"exercises": {"98.1": {"passed": true, "tries": "many"}, "98.2": 3}, "guesses": [1], "x": 1}'
    file.write_text(content, encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        everything = store.load()
    assert everything == {
        "exercises": {"98.1": {"passed": True, "tries": "many"}},
        "guesses": {},
        "recall": {},
    }
    assert store.count(everything["exercises"]["98.1"], "tries") == 0
    progress()


def test_where_nothing_can_be_saved_the_lesson_goes_on(tmp_path, monkeypatch):
    (tmp_path / "a_file").write_text("in the way", encoding="utf-8")
    monkeypatch.setenv("FEDGEN_PROGRESS", str(tmp_path / "a_file" / "my_progress.json"))
    with pytest.warns(UserWarning, match="cannot be saved"):
        store.note("guesses", "98.skew", guess="up")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        store.note("guesses", "98.rank", guess="down")
    assert set(store.load()["guesses"]) == {"98.skew", "98.rank"}


@pytest.fixture
def held_open(monkeypatch):
    """A function: for so many calls of os.replace somebody has the file open, as on Windows."""
    replace, left = os.replace, [0]

    def refuse(*names):
        left[0] -= 1
        if left[0] >= 0:
            raise PermissionError(
                13, "The process cannot access the file because it is being used by another process"
            )
        return replace(*names)

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return lambda times: left.__setitem__(0, times)


def names_beside(file):
    return [path.name for path in file.parent.iterdir()]


def test_a_file_that_somebody_holds_open_for_a_moment_is_replaced_without_a_word(file, held_open):
    store.note("exercises", "98.1", tries=1)
    held_open(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.note("exercises", "98.2", tries=1)
    assert set(json.loads(file.read_text(encoding="utf-8"))["exercises"]) == {"98.1", "98.2"}
    assert names_beside(file) == ["my_progress.json"]


def test_what_could_not_be_saved_joins_what_another_notebook_saved_meanwhile(file, held_open):
    store.note("exercises", "01.a", tries=1)
    held_open(100)
    with pytest.warns(UserWarning, match="cannot be saved"):
        store.note("exercises", "01.b", tries=1)
    assert names_beside(file) == ["my_progress.json"]
    held_open(0)
    theirs = json.loads(file.read_text(encoding="utf-8"))
    theirs["exercises"] |= {"02.other": {"tries": 1}, "01.a": {"tries": 5, "passed": True}}
    file.write_text(json.dumps(theirs), encoding="utf-8")
    assert store.load()["exercises"].keys() == {"01.a", "01.b", "02.other"}
    store.note("exercises", "01.c", tries=1)
    kept = json.loads(file.read_text(encoding="utf-8"))["exercises"]
    assert kept.keys() == {"01.a", "01.b", "01.c", "02.other"}
    assert kept["01.a"]["tries"] == 5 and kept["01.a"]["passed"] is True


def test_a_file_that_cannot_be_read_for_a_moment_is_neither_put_aside_nor_lost(file, monkeypatch):
    store.note("exercises", "98.1", passed=True)
    read, left = type(file).read_text, [3]

    def refuse(path, *args, **kwargs):
        left[0] -= 1
        if left[0] >= 0:
            raise PermissionError(13, "Permission denied")
        return read(path, *args, **kwargs)

    monkeypatch.setattr(type(file), "read_text", refuse)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    store.note("exercises", "98.2", passed=True)
    assert set(store.load()["exercises"]) == {"98.1", "98.2"} and names_beside(file) == [
        "my_progress.json"
    ]


def test_a_file_that_can_be_neither_read_nor_put_aside_is_not_written_over(file, monkeypatch):
    store.note("exercises", "98.1", passed=True)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with (
        monkeypatch.context() as locked,
        pytest.warns(UserWarning, match="kept until the kernel stops"),
    ):
        locked.setattr(type(file), "read_text", refuse)
        locked.setattr(type(file), "rename", refuse)
        store.note("exercises", "98.2", passed=True)
    store.note("exercises", "98.3", passed=True)
    kept = json.loads(file.read_text(encoding="utf-8"))["exercises"]
    assert set(kept) == {"98.1", "98.2", "98.3"} and names_beside(file) == ["my_progress.json"]


def test_a_file_saved_by_notepad_is_read_and_imported(file):
    file.parent.mkdir()
    text = '{"exercises": {"98.1": {"passed": true}}}'
    file.write_text(text, encoding="utf-8-sig")  # Notepad puts a mark before the text
    assert store.load()["exercises"] == {"98.1": {"passed": True}}
    board = progress()
    upload(board, '{"exercises": {"98.2": {"passed": true}}}'.encode("utf-8-sig"))
    assert set(store.load()["exercises"]) == {"98.1", "98.2"}


def test_half_a_letter_in_the_file_stops_no_exercise_and_is_kept(file):
    file.parent.mkdir()
    file.write_text('{"guesses": {"98.skew": {"guess": "\\ud800 \u00e4"}}}', encoding="utf-8")
    store.note("exercises", "98.1", passed=True)
    assert store.load()["guesses"] == {"98.skew": {"guess": "\ud800 \u00e4"}}
    assert names_beside(file) == ["my_progress.json"]
    assert json.loads(exported(progress()))["guesses"] == store.load()["guesses"]


def test_a_folder_in_place_of_the_file_holds_it(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDGEN_PROGRESS", str(tmp_path))
    assert store.progress_file() == tmp_path / "my_progress.json"


# -- the board
def test_the_board_counts_lab_by_lab(capsys):
    some_progress()
    board = progress()
    row = board.table.set_index("Lab").loc["98"]
    assert (
        row["Guesses made"] == 2
        and row["Guesses right"] == "1 of 1"
        and row["Recalled"] == "1 of 1"
    )
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
    theirs = {
        "exercises": {"98.1": {"tries": 9, "passed": False}, "98.2": {"passed": True}},
        "guesses": {"98.skew": {"guess": "down"}},
    }
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
    upload(
        board,
        json.dumps(
            {"exercises": {}, "guesses": {"<img src=x onerror=alert(1)>.1": {"guess": "x"}}}
        ).encode(),
    )
    assert "<img" not in board.view.value


def test_buttons_carry_words_and_no_icons():
    board = progress()
    assert (board.export_button.description, board.export_button.icon) == ("Export my progress", "")
    assert (board.import_button.description, board.import_button.icon) == ("Import progress", "")
