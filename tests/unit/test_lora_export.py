"""Claims about adapters taken home: fedgen_lab/lora/export.py (lab 04)."""

import pytest
import torch
from safetensors import safe_open

from fedgen_lab.lora.adapter import add_adapter, load_trainable, remove_adapter, trainable_state
from fedgen_lab.lora.export import FILE_NAME, SPELLINGS, read_provenance, save_adapter
from fedgen_lab.lora.pipeline import draw, load_pipeline

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


def test_the_header_says_where_the_adapter_comes_from(trained, tmp_path):
    for kind in SPELLINGS:
        path = save_adapter(trained[0], tmp_path / kind, kind, PROVENANCE, 0.0)
        assert read_provenance(path) == {key: str(value) for key, value in PROVENANCE.items()}


def test_what_is_not_an_adapter_is_refused_by_name(tmp_path):
    a, b = "x.to_q.lora_A.default.weight", "x.to_q.lora_B.default.weight"
    fine = {a: torch.ones(2, 3), b: torch.ones(3, 2)}
    for kind, state, words in (
        ("webui", fine, "kind must be one of .* got 'webui'"),
        ("kohya", fine | {"conv_in.weight": torch.ones(1)}, "'conv_in.weight' is no part of one"),
        ("kohya", fine | {b: torch.full((3, 2), torch.nan)}, "lora_B.default.weight holds NaN"),
        ("kohya", {b: fine[b]}, "x.to_q has"),
        ("kohya", {}, "no adapter"),
    ):
        with pytest.raises(ValueError, match=words):
            save_adapter(state, tmp_path, kind, PROVENANCE, 0.0)
    assert not list(tmp_path.iterdir())
