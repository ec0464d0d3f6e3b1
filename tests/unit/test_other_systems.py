"""What Windows does in another way, shown without it: encodings, files held open, calls that it has not."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedgen_lab.files import patiently

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = sorted((ROOT / "fedgen_lab").rglob("*.py"))
SOURCES = PACKAGE + sorted((ROOT / "data").rglob("*.py")) + sorted((ROOT / "tests").rglob("*.py"))
SOURCES += [ROOT / "conftest.py", ROOT / "install_torch.py"]


def nodes(path):
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def place(path, node):
    return f"{path.relative_to(ROOT).as_posix()}:{node.lineno}"


# -- encodings: Windows reads and writes text in an encoding of its own where none is named

READERS = {"read_text": 0, "write_text": 1}  # where the encoding stands if it has no keyword


def needs_encoding(call):
    """Whether this call reads or writes text and does not say in which encoding."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    owner = getattr(call.func.value, "id", "") if isinstance(call.func, ast.Attribute) else ""
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in keywords or None in keywords:
        return False
    if name in READERS:
        return len(call.args) <= READERS[name]
    if owner in ("subprocess", "sp") or name == "Popen":
        return any(
            getattr(keywords.get(word), "value", False) is True
            for word in ("text", "universal_newlines")
        )
    if name == "NamedTemporaryFile":
        return "b" not in getattr(call.args[0] if call.args else keywords.get("mode"), "value", "b")
    if name != "open" or owner in ("os", "Image", "gzip", "webbrowser", "zipfile", "archive"):
        return False
    place = 0 if isinstance(call.func, ast.Attribute) and owner not in ("io", "builtins") else 1
    mode = call.args[place] if len(call.args) > place else keywords.get("mode", ast.Constant("r"))
    return "b" not in str(getattr(mode, "value", mode))


@pytest.mark.parametrize(
    "code, wanted",
    [
        ("open(p)", True),
        ("open(p, 'a')", True),
        ("open(p, 'rb')", False),
        ("open(p, encoding='utf-8')", False),
        ("p.open()", True),
        ("p.open('wb')", False),
        ("p.read_text()", True),
        ("p.read_text('utf-8')", False),
        ("p.write_text(x)", True),
        ("p.write_text(x, encoding='utf-8')", False),
        ("p.read_text(errors='replace')", True),
        ("subprocess.run(c, text=True)", True),
        ("subprocess.run(c, capture_output=True)", False),
        ("subprocess.Popen(c, text=True, encoding='utf-8')", False),
        ("NamedTemporaryFile('w')", True),
        ("NamedTemporaryFile('wb')", False),
        ("NamedTemporaryFile()", False),
    ],
)
def test_a_call_without_an_encoding_is_noticed(code, wanted):
    assert needs_encoding(ast.parse(code, mode="eval").body) is wanted


def test_whoever_reads_or_writes_text_names_the_encoding():
    calls = [(path, node) for path in SOURCES for node in nodes(path) if isinstance(node, ast.Call)]
    assert not [place(path, call) for path, call in calls if needs_encoding(call)]


def test_no_lab_reads_or_writes_text_without_an_encoding():
    for lab in sorted((ROOT / "labs").glob("*.ipynb")):
        for cell in json.loads(lab.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                lines = [
                    line
                    for line in "".join(cell["source"]).splitlines()
                    if not line.lstrip().startswith("%")
                ]
                try:
                    tree = ast.parse("\n".join(lines))
                except IndentationError:  # a block that held nothing but a magic
                    continue
                calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
                assert not any(map(needs_encoding, calls)), (lab.name, cell["source"])


REAL_PATHS = """
import sys, warnings
from pathlib import Path
from PIL import Image

folder, ours = Path(sys.argv[1]), sys.argv[2]
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always", EncodingWarning)
    from fedgen_lab import course
    from fedgen_lab.exercises import store
    from fedgen_lab.peers.chain import Chain
    from fedgen_lab.peers.process import own_key
    from fedgen_lab.peers.store import Folder
    from fedgen_lab.pictures.folders import read_folder
    from fedgen_lab.recorded import SWEEPS, recorded
    open(folder / "no encoding named", "w").close()
    store.note("exercises", "98.1", tries=1)
    store.load()
    course.free_megabytes(), course.course_map()
    recorded(SWEEPS[0]), own_key(folder), Folder(folder / "store").put(b"model"), Chain()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    (folder / "metadata.csv").write_text("file_name,text\\na.png,a caf\u00e9\\n", encoding="utf-8")
    assert read_folder(folder, size=8).captions == ["a caf\u00e9"]
for one in said:
    if one.category is EncodingWarning and one.filename.startswith((ours, "<string>")):
        print(f"{one.filename}:{one.lineno}")
"""


def test_python_itself_finds_no_encoding_left_out_where_the_lab_reads_and_writes(tmp_path):
    """One line of the program above names none, so that it is known to be heard of."""
    command = [sys.executable, "-X", "warn_default_encoding", "-X", "utf8", "-c", REAL_PATHS]
    command += [tmp_path, ROOT / "fedgen_lab"]
    environment = {**os.environ, "FEDGEN_PROGRESS": str(tmp_path / "my_progress.json")}
    done = subprocess.run(
        command, env=environment, capture_output=True, encoding="utf-8", check=True, cwd=ROOT
    )
    wrong = REAL_PATHS.splitlines().index('    open(folder / "no encoding named", "w").close()') + 1
    assert done.stdout.split() == [f"<string>:{wrong}"]


# -- files that are held open


def test_a_file_that_is_free_again_after_a_moment_is_waited_for(monkeypatch):
    waited, answers = [], [PermissionError, PermissionError, "done"]
    monkeypatch.setattr("time.sleep", waited.append)

    def action():
        answer = answers.pop(0)
        if answer is PermissionError:
            raise answer(13, "used by another process")
        return answer

    assert patiently(action) == "done" and len(waited) == 2


def test_a_file_that_stays_held_is_an_error_after_less_than_a_second(monkeypatch):
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)

    def held():
        raise PermissionError(13, "used by another process")

    with pytest.raises(PermissionError, match="another process"):
        patiently(held)
    assert 0.5 < sum(waited) < 1


def test_every_file_of_the_package_and_every_recording_is_moved_into_place_patiently():
    for path in [*PACKAGE, ROOT / "data" / "record" / "record.py"]:
        tree = nodes(path)
        patient = {
            id(inner)
            for call in tree
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "patiently"
            for inner in ast.walk(call)
        }
        for node in tree:
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = getattr(node.func.value, "id", "")
                moves = node.func.attr == "replace" and (len(node.args) == 1 or owner == "os")
                if moves and not node.keywords:
                    assert id(node) in patient, place(path, node)


# -- what Windows has not

POSIX_MODULES = {"fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"}
POSIX_CALLS = {
    "chown",
    "fork",
    "forkpty",
    "geteuid",
    "getpgid",
    "getuid",
    "killpg",
    "mkfifo",
    "setpgid",
    "setsid",
    "umask",
    "SIGALRM",
    "SIGKILL",
    "SIGHUP",
    "SIGUSR1",
    "alarm",
    "pthread_kill",
    "sysconf",
    "nice",
    "getloadavg",
    "sched_getaffinity",
}


def test_the_package_calls_nothing_that_windows_has_not():
    used = set()
    for path in PACKAGE:
        for node in nodes(path):
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") in (
                "os",
                "signal",
                "time",
            ):
                asked_for = f'hasattr(os, "{node.attr}")' in path.read_text(encoding="utf-8")
                used |= (
                    {(node.attr, place(path, node))}
                    if node.attr in POSIX_CALLS and not asked_for
                    else set()
                )
            elif isinstance(node, ast.Import):
                used |= {
                    (name.name, place(path, node))
                    for name in node.names
                    if name.name in POSIX_MODULES
                }
            elif isinstance(node, ast.ImportFrom) and node.module in POSIX_MODULES:
                used.add((node.module, place(path, node)))
            elif isinstance(node, ast.keyword) and node.arg in (
                "preexec_fn",
                "pass_fds",
                "start_new_session",
            ):
                used.add((node.arg, place(path, node.value)))
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in (
                "get_context",
                "set_start_method",
            ):
                used |= {
                    ("fork", place(path, node))
                    for word in node.args
                    if getattr(word, "value", "") == "fork"
                }
    assert not used
