"""Claims about adapters taken home: fedgen_lab/lora/export.py (lab 04)."""

import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from fedgen_lab.federation import run_app
from fedgen_lab.flower_app import client_app
from fedgen_lab.lora.adapter import (
    add_adapter,
    load_model,
    load_trainable,
    remove_adapter,
    trainable_state,
)
from fedgen_lab.lora.data import deal
from fedgen_lab.lora.device import prepare
from fedgen_lab.lora.export import (
    FILE_NAME,
    SPELLINGS,
    provenance_of,
    read_provenance,
    save_adapter,
)
from fedgen_lab.lora.federated import draw_strip, lora_server_app
from fedgen_lab.lora.pipeline import draw, load_pipeline
from fedgen_lab.lora.split_server import split_server_app
from fedgen_lab.scenario import Scenario

PROMPTS, SEEDS = (
    ["a striped red star on a blue background", "a solid white moon on a black background"],
    [1, 2],
)
PROVENANCE = {"rule": "flexlora", "rounds": 10, "clients": 4, "epsilon": None, "base": "tiny-sd"}


@pytest.fixture(scope="module")
def pipeline(small_folder):
    return load_pipeline(small_folder, device="cpu")


def adapter(unet, rank=4, alpha=None, seed=0):
    """Put an adapter with random numbers in both factors on the UNet; returns its state."""
    add_adapter(unet, rank, alpha)
    draw_from = torch.Generator().manual_seed(seed)
    state = {
        name: 0.3 * torch.randn(t.shape, generator=draw_from)
        for name, t in trainable_state(unet).items()
    }
    load_trainable(unet, state)
    return state


def pictures(pipeline):
    return draw(pipeline, PROMPTS, SEEDS, steps=3)


@pytest.fixture(scope="module")
def trained(pipeline):
    """An adapter of rank 4 and alpha 16, and what it draws."""
    state = adapter(pipeline.unet, rank=4, alpha=16)
    drawn = pictures(pipeline)
    remove_adapter(pipeline.unet)
    assert (drawn - pictures(pipeline)).abs().max() > 0.1  # else equal pictures would say nothing
    return state, drawn


@pytest.mark.parametrize("kind", SPELLINGS)
def test_plain_diffusers_draws_the_same_pictures_from_the_file(pipeline, trained, kind, tmp_path):
    state, drawn = trained
    path = save_adapter(state, tmp_path, kind, PROVENANCE, alpha=16)
    assert path == tmp_path / FILE_NAME
    pipeline.load_lora_weights(str(tmp_path))
    again = pictures(pipeline)
    pipeline.unload_lora_weights()
    assert (again - drawn).abs().max() < 0.02  # of a range of 2: other layers round otherwise


@pytest.mark.parametrize("kind", SPELLINGS)
def test_every_layer_may_have_a_rank_of_its_own(pipeline, kind, tmp_path):
    full = adapter(pipeline.unet, rank=6)
    layers = sorted({name.partition(".lora_")[0] for name in full})
    ranks = {layer: (1, 2, 2, 6)[i % 4] for i, layer in enumerate(layers)}
    pruned, padded = {}, {}
    for name, tensor in full.items():
        rank, is_a = ranks[name.partition(".lora_")[0]], ".lora_A." in name
        pruned[name] = tensor[:rank] if is_a else tensor[:, :rank]
        padded[name] = torch.zeros_like(tensor)
        padded[name][: len(pruned[name]), : pruned[name].shape[1]] = pruned[name]
    load_trainable(pipeline.unet, padded)
    x, t, text = (
        torch.randn(2, 4, 16, 16),
        torch.tensor([5, 500]),
        torch.randn(2, 16, pipeline.unet.config.cross_attention_dim),
    )
    expected = pipeline.unet(x, t, text).sample.detach()
    remove_adapter(pipeline.unet)
    path = save_adapter(pruned, tmp_path / "own.safetensors", kind, PROVENANCE, 0.0)
    pipeline.load_lora_weights(str(path))
    again = pipeline.unet(x, t, text).sample.detach()
    pipeline.unload_lora_weights()
    torch.testing.assert_close(again, expected, rtol=1e-4, atol=1e-4)


def test_kohya_files_say_what_other_programs_look_for(trained, tmp_path):
    state, _ = trained
    path = save_adapter(state, tmp_path / "mine.safetensors", "kohya", PROVENANCE, alpha=16)
    with safe_open(path, "pt") as file:
        names, header = set(file.keys()), file.metadata()
        alphas = {float(file.get_tensor(name)) for name in names if name.endswith(".alpha")}
    assert len(names) == len(state) * 3 // 2 and alphas == {4.0}
    assert all(name.startswith("lora_unet_") and name.count(".") in (1, 2) for name in names)
    assert (
        header["ss_network_module"] == "networks.lora"
        and header["ss_network_dim"] == header["ss_network_alpha"] == "4"
    )
    # The tiny model is no Stable Diffusion 1.x, and of others the version isn't known.
    assert header["ss_sd_model_name"] == "tiny-sd" and "ss_base_model_version" not in header


def test_the_header_says_where_the_adapter_comes_from(trained, tmp_path):
    for kind in SPELLINGS:
        path = save_adapter(trained[0], tmp_path / kind, kind, PROVENANCE, 0.0)
        assert read_provenance(path) == {key: str(value) for key, value in PROVENANCE.items()}


def test_what_is_not_an_adapter_is_refused_by_name(tmp_path):
    a, b = "x.to_q.lora_A.default.weight", "x.to_q.lora_B.default.weight"
    fine = {a: torch.ones(2, 3), b: torch.ones(3, 2)}
    for kind, state, words, *alpha in (
        ("kohya", fine, "alpha must be", math.inf),
        ("kohya", fine, "alpha must be", math.nan),
        ("diffusers", fine, "alpha must be", 1e39),
        ("diffusers", fine | {b: fine[b] * 1e10}, "lora_B.default.weight holds NaN", 1e30),
        ("diffusers", fine | {a: fine[a].double() * 1e300}, "lora_A.default.weight holds NaN"),
        ("webui", fine, "kind must be one of .* got 'webui'"),
        ("kohya", fine | {"conv_in.weight": torch.ones(1)}, "'conv_in.weight' is no part of one"),
        ("kohya", fine | {b: torch.full((3, 2), torch.nan)}, "lora_B.default.weight holds NaN"),
        ("kohya", {b: fine[b]}, "x.to_q has"),
        ("kohya", {}, "no adapter"),
    ):
        with pytest.raises(ValueError, match=words):
            save_adapter(state, tmp_path, kind, PROVENANCE, *alpha or [0.0])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "knobs",
    [
        {"rule": "flora", "ranks": "2,4", "lora_alpha": 8.0, "rounds": 2},
        {"cut": "down_blocks.1", "lora_alpha": 16.0},
        {"method": "full"},
    ],
    ids=str,
)
def test_a_run_saves_what_plain_diffusers_draws_as_the_run_did(
    knobs, pipeline, small_folder, tmp_path
):
    few = {"num_clients": 2, "rounds": 1, "local_steps": 2, "batch_size": 2}
    few |= {"pictures_per_client": 2, "learning_rate": 0.02, "base_model": str(small_folder)}
    scenario, path = Scenario(**few | knobs), tmp_path / "home" / "result.safetensors"
    config = scenario.to_run_config()
    kept, own, dealt = [], prepare(scenario), deal(scenario)
    maker = split_server_app if scenario.cut else lora_server_app
    run_app(maker(keep=kept.append), client_app, 2, config | {"save-to": str(path)})
    if scenario.cut:
        load_trainable(own.unet, kept[0].state)
    else:
        load_model(own.unet, kept[0].latest.to_torch_state_dict())
    drawn = draw_strip(own, dealt)

    base = load_pipeline(small_folder, device="cpu")
    before = draw_strip(base, dealt)
    if scenario.method == "full":
        base.unet.load_state_dict(load_file(path))
    else:
        base.load_lora_weights(str(path))
    after = draw_strip(base, dealt)
    assert (after - drawn).abs().max() < 0.02 < 0.1 < (after - before).abs().max()
    origin = read_provenance(path)
    assert origin["rounds"] == str(scenario.rounds) and origin["base"] == "small-sd"
    assert origin["epsilon"] == origin["delta"] == "None" and origin["clients"] == "2"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_header_has_epsilon_and_delta_where_there_is_noise():
    origin = provenance_of(Scenario(clip=1.0, noise_multiplier=2.0), 3, (1.5, 1e-5))
    assert (origin["epsilon"], origin["delta"], origin["rounds"]) == (1.5, 1e-5, 3)
    assert origin["base"] == "tiny-sd" and origin["rule"] == "fedit"
