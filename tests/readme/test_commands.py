"""README's commands, as they stand there, in a home folder of their own. `make test-readme`; weekly.

What is put in place of README's words, and why: the address of the repository (a checkout is at hand), /tmp and
/home/you (the test's folder), ports (others may be taken), and no browser. A network is needed for packages.
"""

import shutil
import sysconfig

from jupyter_address import get, read_address
from readme_blocks import ROOT, block_with
from safetensors.torch import load_file

from fedgen_lab.course import REPOSITORY

START = "00_start_here.ipynb"


def commands(block):
    """The lines of a block as commands: those that end with a backslash go on in the next."""
    return block.text.replace("\\\n", "").splitlines()


def test_a_clone_is_set_up_and_opened_by_make_lab(terminal, ports, tmp_path):
    terminal.environment["PATH"] = terminal.environment["PATH"].partition(":")[
        2
    ]  # no environment is active yet
    trust = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
    }
    terminal.environment |= trust  # a checkout may be somebody else's
    (origin := tmp_path / "origin").mkdir()
    (origin / "fedgen-lab").symlink_to(
        ROOT
    )  # the clone takes its name from there, whatever this checkout is called
    script = block_with("make lab").text.replace(REPOSITORY, str(origin / "fedgen-lab"))
    assert script.endswith("make lab\n")
    process = terminal.start(f"{script.strip()} BROWSER=0 PORT={ports(8888)}", tmp_path)
    address = read_address(process)
    assert f":{ports(8888)}/lab/tree/labs/{START}?token=" in address
    assert "JupyterLab" in get(address).text


def test_pip_installs_the_course_and_its_command_opens_the_first_lab(terminal, ports, tmp_path):
    """The new environment sees the packages of this one, so that only the course itself is installed."""
    made, *rest = commands(block_with("pip install git+"))
    here = f"echo {sysconfig.get_path('purelib')} > $(echo fedgen/lib/python*/site-packages)/packages.pth"
    rest = "\n".join(rest).replace(f"git+{REPOSITORY}", str(ROOT))
    assert rest.endswith("fedgen-lab")
    process = terminal.start(f"{made}\n{here}\n{rest} --no-browser --port {ports(8888)}", tmp_path)
    address = read_address(process)
    assert f":{ports(8888)}/lab/tree/{START}?token=" in address
    assert "JupyterLab" in get(address).text
    assert (tmp_path / "fedgen-labs" / START).is_file()
    assert "fine" in terminal.run(
        "source fedgen/bin/activate; which fedgen-lab; fedgen-lab check || true", tmp_path
    )


def test_flowers_simulation_trains_an_adapter(terminal, ports, tmp_path):
    for name in ("FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", "FLWR_LOCAL_CONTROL_API_PORT"):
        terminal.environment[name] = ports(name)
    variables = block_with("export FLWR_TELEMETRY_ENABLED").text
    script = block_with("flwr run . local").text.replace("/tmp/", f"{tmp_path}/")
    for _ in range(
        3
    ):  # Flower gives its SuperLink 15 seconds to start, and Ray 30: a starved machine takes longer
        said, _ = terminal.start(variables + script).communicate(timeout=1500)
        if (tmp_path / "adapter.safetensors").exists():
            break
    assert (tmp_path / "adapter.safetensors").exists(), said
    assert load_file(tmp_path / "adapter.safetensors")


def test_a_server_and_two_devices_train_an_adapter(terminal, ports, tmp_path):
    variables = block_with("export FLWR_TELEMETRY_ENABLED").text

    def with_ours(words):
        for named in ("8000", "9100", "9101"):
            words = words.replace(named, ports(named))
        return words.replace("/tmp/", f"{tmp_path}/").replace("/home/you", str(tmp_path))

    (tmp_path / ".flwr").mkdir()
    (tmp_path / ".flwr" / "config.toml").write_text(
        with_ours(block_with("[superlink.lab]").text), encoding="utf-8"
    )
    terminal.serve(variables + with_ours(block_with("flower-superlink").text), ports("8000"))
    nodes = tmp_path / "fedgen-nodes"
    register = [
        line for line in commands(block_with("flower-supernode")) if line.startswith("flwr ")
    ]
    starts = [
        line
        for line in commands(block_with("flower-supernode"))
        if line.startswith("flower-supernode ")
    ]
    assert len(register) == len(starts) == 2
    terminal.run(variables + "\n".join(register), nodes)
    for line in starts:  # each in its own terminal
        terminal.serve(variables + with_ours(line), None, nodes)
    said = terminal.run(variables + with_ours(block_with("flwr run . lab ").text))
    assert (tmp_path / "adapter.safetensors").exists(), said
    assert load_file(tmp_path / "adapter.safetensors")


def test_peers_run_as_processes_and_end_by_themselves(terminal, ports, tmp_path):
    assert shutil.which("npx"), "README starts the node with npx: install npm"
    terminal.serve(
        block_with("npx ").text.strip() + f" --port {ports('8545')}", ports("8545"), tmp_path
    )
    script = (
        block_with("fedgen_lab.peers.process")
        .text.replace("8545", ports("8545"))
        .replace("/tmp/", f"{tmp_path}/")
    )
    said = terminal.run(script)
    assert len(list((tmp_path / "models").glob("*"))) >= 4, said  # two models and their manifests
    assert (tmp_path / "peer0").is_dir() and (tmp_path / "peer1").is_dir()
