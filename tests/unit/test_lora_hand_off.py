"""Claims about split denoising: fedgen_lab/lora/hand_off.py (lab 05)."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from flwr.app import ConfigRecord, Message, RecordDict

from fedgen_lab.federation.run import run_app
from fedgen_lab.lora.hand_off import (
    begin,
    denoise,
    finish,
    group_prompts,
    hand_off_apps,
    run_hand_off,
    split_draw,
)
from fedgen_lab.lora.pipeline import draw, load_pipeline

ALIKE = ["a striped red star on a blue background", "a solid red star on a blue background"]
PROMPTS = [ALIKE[0], "an outlined green key on a yellow background", ALIKE[1]]
SEEDS, STEPS = [5, 6, 7], 6


@pytest.fixture(scope="module")
def pipeline(small_folder):
    return load_pipeline(small_folder, device="cpu")


@pytest.fixture(scope="module")
def whole(pipeline):
    return draw(pipeline, PROMPTS, SEEDS, steps=STEPS)


# -- one picture in two parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("hand_off", [0, 1, 3, 5, 6])
def test_handed_over_at_any_step_the_same_prompt_gives_the_same_bits(pipeline, whole, hand_off):
    half_way = denoise(pipeline, PROMPTS, begin(pipeline, SEEDS, STEPS), hand_off)
    assert half_way.step == hand_off
    assert torch.equal(finish(pipeline, PROMPTS, half_way), whole)


def test_that_holds_for_more_pictures_than_are_finished_at_once(pipeline, whole, monkeypatch):
    monkeypatch.setattr("fedgen_lab.lora.hand_off.FINISHED_AT_ONCE", 2)
    half_way = denoise(pipeline, PROMPTS, begin(pipeline, SEEDS, STEPS), 2)
    torch.testing.assert_close(finish(pipeline, PROMPTS, half_way), whole, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sampler", [DDIMScheduler, EulerDiscreteScheduler])
def test_that_holds_for_samplers_without_memory(pipeline, sampler, monkeypatch):
    monkeypatch.setattr(pipeline, "scheduler", sampler.from_config(pipeline.scheduler.config))
    half_way = denoise(pipeline, PROMPTS[:1], begin(pipeline, [3], STEPS), 2)
    assert half_way.memory == ()
    assert torch.equal(
        finish(pipeline, PROMPTS[:1], half_way), draw(pipeline, PROMPTS[:1], [3], steps=STEPS)
    )


def test_another_multistep_sampler_hands_its_last_guesses_over(pipeline, monkeypatch):
    sampler = DEISMultistepScheduler.from_config(pipeline.scheduler.config)
    monkeypatch.setattr(pipeline, "scheduler", sampler)
    half_way = denoise(pipeline, PROMPTS[:1], begin(pipeline, [3], STEPS), 3)
    assert torch.equal(
        finish(pipeline, PROMPTS[:1], half_way), draw(pipeline, PROMPTS[:1], [3], steps=STEPS)
    )


@pytest.mark.parametrize("kind", [EulerAncestralDiscreteScheduler, UniPCMultistepScheduler])
def test_a_sampler_whose_memory_is_not_known_is_named(pipeline, kind, monkeypatch):
    sampler = kind.from_config(pipeline.scheduler.config)
    monkeypatch.setattr(pipeline, "scheduler", sampler)
    with pytest.raises(ValueError, match=f"What {kind.__name__} remembers"):
        denoise(pipeline, PROMPTS[:1], begin(pipeline, [3], STEPS), 2)


def test_without_the_samplers_memory_it_would_be_another_picture(pipeline, whole):
    half_way = denoise(pipeline, PROMPTS, begin(pipeline, SEEDS, STEPS), 3)
    forgetful = type(half_way)(half_way.step, half_way.steps, half_way.latents)
    assert not torch.allclose(finish(pipeline, PROMPTS, forgetful), whole, atol=1e-3)


@pytest.mark.parametrize("until", [1, 7])
def test_a_step_that_is_not_ahead_is_named(pipeline, until):
    half_way = denoise(pipeline, PROMPTS, begin(pipeline, SEEDS, STEPS), 2)
    with pytest.raises(ValueError, match=rf"until must lie in \[2, 6\]; got {until}"):
        denoise(pipeline, PROMPTS, half_way, until)


def test_half_the_bytes_in_half_precision(pipeline):
    half_way = denoise(pipeline, PROMPTS, begin(pipeline, SEEDS, STEPS), 2)
    one = half_way.take([1])
    assert (
        one.bytes == 2 * 4 * 16 * 16 * 4
    )  # the latent, and as much again that the sampler remembers
    assert one.take([0], torch.float16).bytes == one.bytes / 2
    assert torch.equal(one.latents[0], half_way.latents[1])


# -- many who share --------------------------------------------------------------------------------------------------


def test_similar_prompts_come_together_and_others_do_not(pipeline):
    groups = group_prompts(pipeline, PROMPTS)
    assert sorted(map(sorted, groups)) == [[0, 2], [1]]
    assert sorted(map(sorted, group_prompts(pipeline, PROMPTS, similarity=0.999))) == [
        [0],
        [1],
        [2],
    ]
    assert sorted(group_prompts(pipeline, PROMPTS, similarity=-1.0)[0]) == [0, 1, 2]
    assert group_prompts(pipeline, PROMPTS[:1]) == [[0]]


def test_equal_prompts_always_share(pipeline):
    assert len(group_prompts(pipeline, [PROMPTS[1]] * 3, similarity=1.0)) == 1


def test_of_two_prompts_the_first_leads_whatever_the_last_bits_say(pipeline):
    words = ["a red heart on white", "a blue heart on white", "a green star on black"]
    for pair in [(a, b) for a in words for b in words if a != b]:
        assert group_prompts(pipeline, list(pair), similarity=-1.0) == [[0, 1]]


def test_the_most_typical_prompt_leads_its_group(pipeline):
    prompts = [*ALIKE, ALIKE[0]]  # the striped star is asked for twice
    (group,) = group_prompts(pipeline, prompts)
    assert prompts[group[0]] == ALIKE[0]


def test_with_no_shared_steps_split_drawing_is_plain_drawing_bit_for_bit(pipeline, whole):
    pictures, groups, edge_steps = split_draw(pipeline, PROMPTS, SEEDS, 0, STEPS)
    assert torch.equal(pictures, whole) and edge_steps == 0 and len(groups) == 3


def test_who_leads_or_is_alone_gets_the_picture_of_plain_drawing(pipeline, whole):
    pictures, groups, edge_steps = split_draw(pipeline, PROMPTS, SEEDS, 3, STEPS)
    assert edge_steps == 3 * len(groups) == 6
    leaders = [group[0] for group in groups]
    for i in range(3):
        assert torch.allclose(pictures[i], whole[i], atol=1e-4) == (i in leaders)


def test_the_later_the_hand_off_the_more_alike_the_pictures_of_a_group(pipeline):
    apart = []
    for hand_off in (0, 3, STEPS):
        pictures, _, _ = split_draw(pipeline, ALIKE, SEEDS[:2], hand_off, STEPS)
        apart.append((pictures[0] - pictures[1]).abs().mean().item())
    assert apart[0] > apart[1] > apart[2] == 0


# -- over messages ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hand_off", [0, 3])
def test_as_a_flower_app_every_device_ends_up_with_the_same_picture(pipeline, hand_off):
    pictures, trace = run_hand_off(pipeline, PROMPTS, SEEDS, hand_off, STEPS, torch.float32)
    expected, _, _ = split_draw(pipeline, PROMPTS, SEEDS, hand_off, STEPS)
    assert torch.allclose(torch.stack([pictures[i] for i in range(3)]), expected, atol=1e-4)
    sent = trace.frame()
    assert list(sent.kind.unique()) == ["query.prompt", "query.finish"]


def test_the_bytes_on_the_wire_are_those_of_the_latents(pipeline):
    for dtype, each in ((torch.float32, 4), (torch.float16, 2)):
        _, trace = run_hand_off(pipeline, PROMPTS, SEEDS, 3, STEPS, dtype)
        sent = trace.frame()
        down = sent[(sent.kind == "query.finish") & (sent.sender == -1)].bytes
        assert (down > 2 * 4 * 16 * 16 * each).all() and (down < 2 * 4 * 16 * 16 * each + 600).all()
        assert (sent[sent.receiver == -1].bytes < 200).all()  # prompts go up, pictures never


def test_a_picture_handed_over_in_half_precision_differs_by_less_than_eight_bits_show(pipeline):
    exact, half = (
        run_hand_off(pipeline, PROMPTS[:1], SEEDS[:1], 3, STEPS, dtype)[0]
        for dtype in (torch.float32, torch.float16)
    )
    assert 0 < (exact[0] - half[0]).abs().max() < 2 * 2 / 255


@pytest.mark.parametrize("kind", ["an_error", "nonsense"])
def test_a_device_that_asks_for_nonsense_is_left_out_and_the_others_get_their_pictures(
    pipeline, kind
):
    pictures = {}
    server_app, honest = hand_off_apps(
        pipeline, PROMPTS, SEEDS, 2, STEPS, torch.float32, pictures.__setitem__
    )

    def answer(message, context):
        if context.node_config["partition-id"] == 1:
            if kind == "an_error":
                raise RuntimeError("out of reach")
            return Message(
                RecordDict({"wish": ConfigRecord({"prompt": "a star"})}), reply_to=message
            )
        return honest(message, context)

    run_app(server_app, answer, 3)
    assert set(pictures) == {0, 2}
