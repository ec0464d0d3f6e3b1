"""Claims about the small dashboards of labs 04 and 05: traffic by phase, the hand-off knob, the mixture knobs."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from fedgen_lab.dashboards import phases
from fedgen_lab.dashboards.controls import knob
from fedgen_lab.dashboards.mixture_knobs import mixture_knobs
from fedgen_lab.dashboards.phases import (
    hand_off_knob,
    hand_off_table,
    like_minded,
    traffic_chart,
    traffic_lines,
)
from fedgen_lab.dashboards.redrawn import Redrawn
from fedgen_lab.lora.adapter import add_adapter, trainable_state
from fedgen_lab.lora.mixture import add_adapters
from fedgen_lab.lora.pipeline import load_pipeline
from fedgen_lab.lora.split_unet import traffic


@pytest.fixture(scope="module")
def pipeline(small_folder):
    return load_pipeline(small_folder, device="cpu")


@pytest.fixture
def inline(monkeypatch):
    monkeypatch.setenv("FEDGEN_RUN", "inline")


def tiny_unet():
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            cross_attention_dim=8,
            norm_num_groups=4,
            attention_head_dim=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )


def test_the_lines_are_those_of_the_table_of_traffic():
    lines = traffic_lines(tiny_unet(), 100, 5).set_index(["way", "pictures a round"])["megabytes"]
    table = traffic(tiny_unet(), 100, 5, steps=10, batch=100).set_index("way")
    for way, row in table.iterrows():
        assert lines[way, 1000] == pytest.approx(float(row.up_bytes + row.down_bytes) / 1e6)


def test_the_sentence_names_the_crossovers_of_the_table():
    chart, sentence, _ = traffic_chart(traffic_lines(tiny_unet(), 100, 5))
    row = traffic(tiny_unet(), 100, 5).set_index("way").loc["split after conv_in"]
    for way, most in (("LoRA", row.below_lora_up_to), ("whole model", row.below_whole_up_to)):
        words = (
            f"sends less than {way} up to {most:,} pictures"
            if most
            else f"never sends less than {way}"
        )
        assert words in sentence
    assert [line.name for line in chart.data][:3] == list(phases.ROLES)


def test_like_minded_prompts_share_object_and_background_and_nothing_else_by_design():
    captions, wanted = like_minded(5, each=3, seed=4)
    groups = wanted[["object", "background"]].to_numpy().reshape(5, 3, 2)
    assert (groups == groups[:, :1]).all() and len(set(groups[:, 0, 0])) == 5
    assert len(captions) == 15
    assert all(row.object in text for text, row in zip(captions, wanted.itertuples(), strict=True))
    assert like_minded(5, each=3, seed=4)[0] == captions


def test_later_hand_overs_save_steps_and_the_table_counts_them(pipeline, monkeypatch):
    monkeypatch.setattr(phases, "STEPS", 4)
    captions, wanted = like_minded(1)
    table = hand_off_table(pipeline, captions, wanted, [1, 2], (0, 2, 4)).set_index("hand_off")
    assert table["steps"].tolist() == [8, 6, 4] and table["edge_steps"].tolist() == [0, 2, 4]
    assert (
        table[["layout", "details"]].to_numpy().min() >= 0
        and table[["layout", "details"]].to_numpy().max() <= 1
    )


def test_the_hand_off_knob_draws_both_rows_and_says_what_was_saved(pipeline, monkeypatch, inline):
    monkeypatch.setattr(phases, "STEPS", 4)
    captions, wanted = like_minded(1)
    made = hand_off_knob(pipeline, captions, wanted, [1, 2])
    assert "7 denoising steps instead of 8" in made.sentence  # one of them for both
    made.knobs["step"].set(0)
    assert (
        "8 denoising steps instead of 8" in made.sentence
        and "Nothing is handed over" in made.sentence
    )
    made.knobs["step"].set(2)
    assert "6 denoising steps instead of 8" in made.sentence and "8,192 bytes" in made.sentence
    made.knobs["similarity"].set(1.0)
    assert "in 2 groups" in made.sentence and made.shown.value.count("<img") == 4


def test_the_weights_of_a_mixture_are_what_is_drawn(pipeline, small_folder, inline):
    donor = load_pipeline(small_folder, device="cpu")
    add_adapter(donor.unet, 2)
    draw = torch.Generator().manual_seed(0)
    person = {
        name: 0.2 * torch.randn(p.shape, generator=draw)
        for name, p in trainable_state(donor.unet).items()
    }
    add_adapters(
        pipeline.unet, {"ada": person, "bob": {name: -value for name, value in person.items()}}
    )
    made = mixture_knobs(pipeline, ["ada", "bob"], ["a solid red star on a blue background"], [3])
    assert "1 x ada:" in made.sentence and "0.000 per pixel" not in made.sentence
    made.knobs["ada"].set(0.0)
    assert "the base alone: 0.000 per pixel" in made.sentence


def test_a_knob_turned_while_it_draws_is_drawn_last():
    seen = []

    def paint(a):
        seen.append(a)
        if len(seen) == 1:
            made.knobs["a"].set(3)
        return f"<p>{a}</p>", f"Drawn with {a}."

    made = Redrawn({"a": knob("A", 1, 0, 5)}, paint)
    made.job.start()
    made.job.join(5)
    assert (
        seen == [1, 3]
        and made.sentence == "Drawn with 3."
        and "Drawn with 3." in made.status.sentence
    )
