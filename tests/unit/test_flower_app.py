"""What `flwr run .` finds in pyproject.toml is in step with the package."""

import importlib
import io
import logging
import re
import tempfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_files
from flwr.clientapp import ClientApp
from flwr.common.config import validate_config
from flwr.serverapp import ServerApp

import fedgen_lab
from fedgen_lab.federation import run_app
from fedgen_lab.scenario import Scenario
from fedgen_lab.split.half import HOPS
from fedgen_lab.split.scenario import METHODS, GanScenario

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
APP = PROJECT["tool"]["flwr"]["app"]


def test_every_knob_of_a_scenario_is_a_run_config_key_with_the_same_default():
    config = dict(APP["config"])
    assert config.pop("save-to") == "" and config.pop("experiment") == "lora"
    for written, scenario in ((config.pop("gan"), GanScenario()), (config, Scenario())):
        assert written == scenario.to_run_config()
        assert {key: type(value) for key, value in written.items()} == {
            key: type(value) for key, value in scenario.to_run_config().items()
        }


def test_a_scenario_survives_the_run_config():
    scenario = Scenario(num_clients=3, skew=0.5, seed=7, method="full")
    assert Scenario.from_run_config({**scenario.to_run_config(), "save-to": "x"}) == scenario


def test_flower_accepts_the_project_file_and_finds_the_components():
    is_valid, errors, _ = validate_config(PROJECT, check_module=True, project_dir=ROOT)
    assert is_valid, errors
    for component, kind in (("serverapp", ServerApp), ("clientapp", ClientApp)):
        module, _, name = APP["components"][component].partition(":")
        assert isinstance(getattr(importlib.import_module(module), name), kind)


def test_the_version_flower_reads_is_the_packages_own():
    assert PROJECT["project"]["version"] == fedgen_lab.__version__


def test_the_bundle_holds_no_code_that_would_hide_the_installed_package_and_no_weights():
    names = [
        "pyproject.toml",
        "LICENSE",
        "README.md",
        "fedgen_lab/__init__.py",
        "data/tiny-sd/model_index.json",
    ]
    fab, _ = build_fab_from_files(
        {name: ROOT / name if (ROOT / name).exists() else b"" for name in names}
    )
    assert set(zipfile.ZipFile(io.BytesIO(fab)).namelist()) == {
        "pyproject.toml",
        "LICENSE",
        ".info/CONTENT",
    }


def test_a_simulation_worker_finds_the_client_by_its_name():
    """Ray pickles the ClientApp; a function inside a function, or one behind a cache, can't be sent."""
    from fedgen_lab.flower_app import client_app, train_on_own_pictures

    assert train_on_own_pictures.__qualname__ == "train_on_own_pictures"
    kinds = {f"train.{hop}" for hop in (*HOPS, "loss", "learn")} | {
        "query.hello",
        "query.default",
        "evaluate.default",
    }
    for method in set(METHODS) - {"huscf"}:
        what = importlib.import_module(f"fedgen_lab.split.rivals.{method}").WHAT
        kinds |= {kind if "." in kind else f"{kind}.default" for kind in what}
    assert set(client_app._registered_funcs) == kinds


@pytest.mark.parametrize("method", METHODS)
def test_every_gan_method_runs_by_the_run_config_alone_and_saves_its_generators(method, tmp_path):
    from fedgen_lab.flower_app import client_app, server_app

    knobs = GanScenario(
        num_clients=2,
        rounds=1,
        iterations=1,
        batch_size=4,
        pictures_per_client=8,
        domains="digits",
        method=method,
    ).to_run_config()
    knobs = {f"gan.{key}": value for key, value in knobs.items()}
    config = {"experiment": "gan", **knobs, "save-to": str(tmp_path / "g")}
    assert not run_app(server_app, client_app, 2, config).stopped
    assert (tmp_path / "g").exists()


def test_with_a_cut_in_the_run_config_the_app_trains_the_unet_in_two_and_saves_it(
    tmp_path, small_folder
):
    from safetensors.torch import load_file

    from fedgen_lab.flower_app import client_app, server_app

    few = {
        "num_clients": 2,
        "rounds": 1,
        "local_steps": 1,
        "batch_size": 2,
        "pictures_per_client": 2,
    }
    few |= {"base_model": str(small_folder)}
    config = {**Scenario(**few, cut="down_blocks.1").to_run_config(), "experiment": "lora"}
    run = run_app(server_app, client_app, 2, {**config, "save-to": str(tmp_path / "adapter")})
    assert set(run.trace.frame()["kind"]) == {"train.start", "train.loss", "train.learn"}
    saved = load_file(tmp_path / "adapter")
    trained = {
        name.split(".")[1]  # after "unet."
        for name, value in saved.items()
        if ".lora_B." in name and value.abs().max() > 0
    }
    assert trained == {
        "down_blocks",
        "mid_block",
    }  # B is zero at the start; both sides of the cut learn


GAN = {"experiment": "gan", "gan.num-clients": 2, "gan.rounds": 1, "gan.iterations": 1}
GAN |= {"gan.batch-size": 4, "gan.pictures-per-client": 8, "gan.domains": "digits"}
RUNS = {  # knobs of a run that writes a file at its end
    "lora": {"experiment": "lora"},
    "split": {"experiment": "lora", "cut": "down_blocks.1"},
    "huscf": GAN,
    "fedgan": {**GAN, "gan.method": "fedgan"},
}


@pytest.mark.parametrize("run", RUNS)
def test_a_path_that_can_not_be_written_is_refused_before_anything_is_sent(run, tmp_path):
    from fedgen_lab.flower_app import server_app

    def client(message, context):
        pytest.fail("a client was asked")

    (tmp_path / "file").touch()
    for path, reason in (
        (tmp_path, "a folder or a device is there"),
        (tmp_path / "file" / "x", "(Not a directory|exists)"),
        ("/proc/nope/x", ""),
        ("/dev/full", "a folder or a device is there"),
        (f"{tmp_path}/{'x' * 300}", "too long"),
        ("nul\0", "null"),
    ):
        words = f'save-to="{re.escape(str(path))}" can\'t be written: .*{reason}.*Name a file'
        with pytest.raises(ValueError, match=words):
            run_app(server_app, client, 2, {**RUNS[run], "save-to": str(path)})
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_what_can_not_be_written_at_the_end_is_still_returned_and_the_log_says_so(
    tmp_path, monkeypatch, caplog
):
    from fedgen_lab.federation.saving import keep_result

    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = tmp_path / "gone" / "x.safetensors"
    keep_result(lambda file: file.write_bytes(b"12"), path)
    (instead,) = tmp_path.glob("fedgen-*/*")
    assert instead.read_bytes() == b"12" and instead.name == path.name
    assert f'could not be written to "{path}"' in caplog.text and str(instead) in caplog.text

    def full(file):
        file.write_bytes(b"1")
        raise OSError(28, "No space left on device")

    keep_result(full, tmp_path / "x.safetensors")
    assert "No space left on device" in caplog.text and "still returns it" in caplog.text
    assert not list(tmp_path.glob("*.safetensors"))
