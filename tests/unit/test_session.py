"""A lab's first cell installs only what is missing and finds the other labs that run; its end frees memory."""

import json
import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
from jupyter_client import BlockingKernelClient
from packaging.requirements import Requirement

from fedgen_lab import session


@pytest.fixture
def needs(monkeypatch):
    """Makes these the requirements of the course."""
    return lambda *lines: monkeypatch.setattr(
        session, "declared_requirements", lambda: [*map(Requirement, lines)]
    )


def test_where_all_is_there_nothing_is_installed_and_nothing_is_said(needs, monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    needs("numpy>=1", "pandas>=1,<99")
    session.set_up()
    assert capsys.readouterr().out == ""


def test_what_is_missing_or_too_old_is_missing_but_never_what_belongs_to_the_host(needs):
    needs(
        "not-there>=2,<3",
        "numpy>=999",
        "pandas>=1",
        "torch>=999",
        "ipykernel<1",
        "ipython<1",
        "jupyterlab<1",
    )
    assert session.missing() == ["not-there<3,>=2", "numpy>=999"]


def test_pip_gets_what_is_missing_and_must_keep_the_hosts_own_versions(monkeypatch, capsys):
    asked = []

    def run(command, **_):
        asked.extend(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    session.install(["not-there<3,>=2", "another[extra]>=1"])
    assert asked[1:5] == ["-m", "pip", "install", "-q"] and "not-there<3,>=2" in asked
    assert (
        f"torch=={metadata.version('torch')}" in asked
        and f"ipykernel=={metadata.version('ipykernel')}" in asked
    )
    assert capsys.readouterr().out == "Installed for the labs: not-there, another.\n"


def test_an_install_that_fails_says_why_in_one_line_and_the_lab_goes_on(capsys):
    session.install(["./there-is-no-such-folder"])
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "could not be installed" in said


def test_the_end_of_a_lab_empties_caches_and_says_who_gives_the_rest_back(capsys):
    from fedgen_lab.pictures import sprites

    cached = [value for value in vars(sprites).values() if hasattr(value, "cache_info")]
    sprites.draw_sprites(2, seed=0)
    assert sum(one.cache_info().currsize for one in cached) > 0
    session.finish()
    assert sum(one.cache_info().currsize for one in cached) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "MB" in said and "Shut Down" in said


def test_without_a_notebook_there_are_no_labs_beside():
    assert session.running_labs() == []


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A Jupyter server with three notebooks running, two of them labs: (ask(path, method, body), {name: session})."""
    folder = tmp_path_factory.mktemp("notebooks")
    runtime = tmp_path_factory.mktemp("runtime")
    patch = pytest.MonkeyPatch()
    patch.setenv("JUPYTER_RUNTIME_DIR", str(runtime))
    for name in ("00_start_here", "03_federated_lora", "my_own"):
        nbformat.write(nbformat.v4.new_notebook(), folder / f"{name}.ipynb")
    command = [
        sys.executable,
        "-m",
        "jupyter_server",
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        "--port=0",
    ]
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [*command, f"--ServerApp.root_dir={folder}"], stdout=log, stderr=log
        )
    try:
        server = None
        for _ in range(600):
            time.sleep(0.1)
            if (server := _answering(runtime)) or process.poll() is not None:
                break
        assert server, (folder / "log.txt").read_text(encoding="utf-8")
        yield server
    finally:
        process.terminate()
        process.wait(60)
        patch.undo()


def _answering(runtime):
    """The server's note, once it answers: the note lies there a moment before it listens."""
    try:
        (note,) = runtime.glob("jpserver-*.json")
        server = json.loads(note.read_text(encoding="utf-8"))
        return server if session._ask(server, "api/sessions") == [] else None
    except (OSError, ValueError):
        return None


def start(server, name):
    """Open a notebook on the server, as a click on it does; returns the kernel's id."""
    import urllib.request

    body = {"path": name, "name": name, "type": "notebook", "kernel": {"name": "python3"}}
    request = urllib.request.Request(
        server["url"] + "api/sessions", json.dumps(body).encode(), method="POST"
    )
    request.add_header("Authorization", f"token {server['token']}")
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())["kernel"]["id"]


def value_in(kernel, code, expression):
    """What this expression is, as text, in the kernel with this id, after this code."""
    client = BlockingKernelClient(
        connection_file=str(Path(os.environ["JUPYTER_RUNTIME_DIR"], f"kernel-{kernel}.json"))
    )
    client.load_connection_file()
    client.start_channels()
    try:
        reply = client.execute(
            code, user_expressions={"value": expression}, reply=True, timeout=120
        )["content"]
        assert reply["status"] == "ok", reply
        return reply["user_expressions"]["value"]["data"]["text/plain"]
    finally:
        client.stop_channels()


def test_a_lab_finds_the_other_labs_that_run_and_shuts_one_down_but_never_itself(
    server, monkeypatch
):
    own = start(server, "00_start_here.ipynb")
    start(server, "03_federated_lora.ipynb")
    start(server, "my_own.ipynb")
    code = "from fedgen_lab.session import running_labs; labs = running_labs()"
    found = value_in(own, code, "[(lab.name, lab.megabytes > 1) for lab in labs]")
    assert found == "[('03_federated_lora.ipynb', True)]"
    monkeypatch.setattr(session, "_own_kernel", lambda: "a kernel of another server")
    assert session.running_labs() == []
    assert value_in(own, "labs[0].shut_down()", "running_labs()") == "[]"
    left = {one["path"] for one in session._ask(server, "api/sessions")}
    assert left == {"00_start_here.ipynb", "my_own.ipynb"}


def test_the_notice_names_what_runs_and_its_button_ends_it(monkeypatch):
    shown, ended = [], []
    monkeypatch.setattr("IPython.display.display", shown.append)
    monkeypatch.setattr(session.RunningLab, "shut_down", lambda lab: ended.append(lab.session))
    third, fourth = ("03_federated_lora.ipynb", 773.0, {}, "a"), ("04.ipynb", None, {}, "b")
    session.show_running([session.RunningLab(*third), session.RunningLab(*fourth)])
    said, first, second = shown[0].children
    assert "03_federated_lora.ipynb (773 MB)" in said.value and "04.ipynb" in said.value
    first.click()
    assert ended == ["a"] and first.disabled and "is shut down" in first.description
    assert "03_federated_lora" not in said.value and "04.ipynb" in said.value
    second.click()
    assert said.value == ""


def test_a_button_whose_lab_does_not_end_says_what_to_do(monkeypatch):
    def refuse(lab):
        raise OSError("403")

    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    monkeypatch.setattr(session.RunningLab, "shut_down", refuse)
    session.show_running([session.RunningLab("03_federated_lora.ipynb", 773.0, {}, "a")])
    said, button = shown[0].children
    button.click()
    assert "Kernel > Shut Down Kernel" in button.description and "03_federated_lora" in said.value
