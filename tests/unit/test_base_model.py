"""The shipped tiny Stable Diffusion, as the real pipeline: it loads, draws what it is told, and keeps to its limits.

The full measurement over 256 prompts is tests/benchmarks/bench_base_model.py; here a few prompts keep the test short.
"""

import io
import json
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fedgen_lab.lora.pipeline import draw, load_pipeline
from fedgen_lab.pictures import sprites
from fedgen_lab.scores import load_judge, prompt_fidelity
from fedgen_lab.shipped import shipped

OPENMOJI = (
    Path(__file__).resolve().parents[3] / "shared" / "data" / "openmoji" / "openmoji-72-plain.zip"
)


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline()


def psnr(vae, images):
    """Of the VAE's reconstruction, in dB, averaged over pictures."""
    with torch.no_grad():
        back = vae(images).sample.clamp(-1, 1)
    return float((10 * torch.log10(4 / (back - images).square().mean((1, 2, 3)))).mean())


def test_base_model_draws_what_it_is_told(pipe):
    captions, wanted = sprites.prompts(24, 2026)
    # 93 % is the claim over 256 prompts; with 24 chance alone moves the share by 5 points either way
    assert prompt_fidelity(draw(pipe, captions, range(len(captions))), wanted)["all"] >= 0.8


def test_without_guidance_from_text_it_does_not_know_what_was_wanted(pipe):
    _, wanted = sprites.prompts(12, 2026)
    assert (
        prompt_fidelity(draw(pipe, [""] * 12, range(12), steps=10), wanted, load_judge())["all"]
        <= 0.1
    )


def test_base_model_cannot_draw_the_held_out_objects(pipe):
    captions, wanted = sprites.prompts(12, 5, objects=sprites.HELD_OUT_OBJECTS)
    assert (
        prompt_fidelity(draw(pipe, captions, range(len(captions)), steps=10), wanted)["object"]
        <= 0.1
    )


def test_the_same_seed_gives_the_same_picture(pipe):
    captions = sprites.prompts(2, 0)[0]
    assert torch.allclose(*(draw(pipe, captions, (7, 8), steps=4) for _ in range(2)))


def test_it_ships_in_at_most_12_megabytes_of_safetensors_without_pickles():
    files = [path for path in shipped("tiny-sd").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ".md", ".png"}


def test_every_word_of_the_lab_is_one_token_and_unknown_words_fall_back_to_pieces(pipe):
    words = [
        *sprites.OBJECTS,
        *sprites.HELD_OUT_OBJECTS,
        *sprites.COLOURS,
        *sprites.STYLES,
        *sprites.HELD_OUT_STYLES,
    ]
    assert all(len(pipe.tokenizer.tokenize(word)) == 1 for word in words)
    pieces = pipe.tokenizer.tokenize("zyzzyva")
    assert len(pieces) > 1 and pipe.tokenizer.unk_token not in pieces


def test_the_tokenizer_reads_the_same_tokens_in_every_version_of_transformers(pipe):
    ids = {
        "A striped RED star!": [320, 652, 610, 514, 256],
        "it's  a\tcafe\u0301": [72, 339, 6, 338, 320, 66, 750, 127, 358],
        "zyzzyva 12": [89, 88, 89, 89, 88, 85, 320, 272, 273],
        "a \u661f star \U0001f600": [320, 162, 246, 509, 514, 172, 253, 246, 478],
    }
    assert pipe.tokenizer(list(ids)).input_ids == [[2070, *words, 2071] for words in ids.values()]


def test_the_files_that_transformers_4_reads_say_what_the_one_of_5_says():
    folder = shipped("tiny-sd") / "tokenizer"
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    assert json.loads((folder / "vocab.json").read_text(encoding="utf-8")) == model["vocab"]
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert (
        merges[0].startswith("#version")
        and [line.split(" ") for line in merges[1:]] == model["merges"]
    )


def test_every_template_fits_the_text_encoder(pipe):
    captions = sprites.draw_sprites(200, 0).captions
    longest = max(len(ids) for ids in pipe.tokenizer(captions).input_ids)
    assert longest <= pipe.text_encoder.config.max_position_embeddings


def test_the_vae_gives_sprites_back_nearly_unchanged_held_out_ones_too(pipe):
    assert psnr(pipe.vae, sprites.draw_sprites(128, 1).as_tensor()) >= 31
    held_out = sprites.draw_sprites(
        128, 1, objects=sprites.HELD_OUT_OBJECTS, styles=sprites.HELD_OUT_STYLES
    )
    assert psnr(pipe.vae, held_out.as_tensor()) >= 27


def test_the_vae_gives_emoji_back_recognisably(pipe):
    if not OPENMOJI.exists():
        pytest.skip("no OpenMoji beside the checkout (../shared/data/openmoji)")
    with zipfile.ZipFile(OPENMOJI) as archive:
        files = pd.read_csv(io.BytesIO(archive.read("captions.csv")))["file"][::15]
        pictures = [flat(Image.open(io.BytesIO(archive.read(f"png/{file}")))) for file in files]
    assert psnr(pipe.vae, torch.stack(pictures)) >= 22


def flat(picture: Image.Image) -> torch.Tensor:
    """RGBA of any size on white, (3, 32, 32) in [-1, 1]."""
    picture = picture.convert("RGBA")
    page = (
        Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        .convert("RGB")
        .resize((32, 32))
    )
    return (
        torch.tensor(list(page.tobytes()), dtype=torch.float32).view(32, 32, 3).permute(2, 0, 1)
        / 127.5
        - 1
    )


def test_old_and_new_transformers_know_the_names_of_the_text_encoders_weights(pipe):
    """Transformers 5 writes them without "text_model." and reads both; with 4 random weights would stay, silently."""
    saved, loaded = (
        load_file(shipped("tiny-sd") / "text_encoder" / "model.safetensors"),
        pipe.text_encoder.state_dict(),
    )
    assert len(saved) == len(loaded) and all(name.startswith("text_model.") for name in saved)
    for name, weights in loaded.items():
        assert torch.equal(saved[f"text_model.{name.removeprefix('text_model.')}"], weights)
