"""The judge and the scores: what they say about pictures whose truth is known."""

import pytest
import torch

from fedgen_lab.pictures.sprites import (
    HELD_OUT_OBJECTS,
    HELD_OUT_STYLES,
    OBJECTS,
    STYLES,
    draw_sprites,
)
from fedgen_lab.scores import (
    FEATURES,
    WORDS,
    fid,
    judged,
    kid,
    load_judge,
    precision_recall,
    prompt_fidelity,
)

EVERY_WORD = {"objects": OBJECTS + HELD_OUT_OBJECTS, "styles": STYLES + HELD_OUT_STYLES}
UNSEEN_SEED = 20_260_101  # used by no training script


@pytest.fixture(scope="module")
def judge():
    return load_judge()


@pytest.fixture(scope="module")
def unseen():
    return draw_sprites(300, UNSEEN_SEED, **EVERY_WORD)


def test_judge_gets_all_four_right_on_renders_it_never_saw(judge, unseen):
    assert prompt_fidelity(unseen.images, unseen.attributes, judge)["all"] >= 0.97


def test_bytes_and_floats_are_judged_alike(judge, unseen):
    assert judged(unseen.images[:64], judge).equals(judged(unseen.as_tensor()[:64], judge))


def test_fidelity_counts_each_attribute_and_all_four_at_once(judge, unseen):
    wrong = unseen.attributes.copy()
    half = len(wrong) // 2
    wrong.loc[: half - 1, "object"] = wrong["object"][:half].map(
        lambda w: "star" if w != "star" else "heart"
    )
    truth, shares = (
        prompt_fidelity(unseen.images, table, judge) for table in (unseen.attributes, wrong)
    )
    assert abs(shares["object"] - 0.5) < 0.02 and abs(shares["all"] - 0.5) < 0.02
    assert shares["colour"] == truth["colour"] and set(shares) == {*WORDS, "all"}


def test_features_have_their_width_and_differ_between_pictures(judge, unseen):
    features = judge.features(unseen.as_tensor()[:8])
    assert features.shape == (8, FEATURES) and not torch.allclose(features[0], features[1])


def test_kid_is_near_zero_for_the_same_distribution_and_large_for_another(judge, unseen):
    same = draw_sprites(200, UNSEEN_SEED + 1, **EVERY_WORD).images
    stars = draw_sprites(200, UNSEEN_SEED + 2, objects=("star",), styles=("solid",)).images
    near, far = kid(unseen.images[:200], same, judge), kid(unseen.images[:200], stars, judge)
    assert abs(near) < 0.1 * far


def test_kid_grows_with_noise_and_repeats_for_the_same_seed(judge, unseen):
    pictures = unseen.as_tensor()[:200]
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(pictures.shape, generator=rng)
    values = [kid(pictures, pictures + amount * noise, judge, seed=1) for amount in (0.1, 0.4, 1.0)]
    assert values == sorted(values)
    state = torch.get_rng_state()
    assert kid(pictures, pictures + noise, judge, seed=1) == values[2]
    assert torch.equal(
        state, torch.get_rng_state()
    )  # scoring leaves the learner's own random numbers alone


def test_fid_orders_pictures_as_kid_does(judge, unseen):
    real = unseen.images
    same = draw_sprites(300, UNSEEN_SEED + 3, **EVERY_WORD).images
    stars = draw_sprites(300, UNSEEN_SEED + 4, objects=("star",)).images
    assert fid(real, real, judge) == pytest.approx(0, abs=1e-2)
    assert fid(real, same, judge) < 0.2 * fid(real, stars, judge)


def test_pictures_of_another_size_can_be_compared(judge):
    pictures = torch.randint(0, 256, (20, 3, 48, 48), dtype=torch.uint8)
    assert kid(pictures, pictures.flip(0), judge, subset_size=20) == pytest.approx(
        kid(pictures, pictures, judge, subset_size=20), abs=1e-3
    )


def test_too_few_pictures_is_a_sentence_with_a_remedy(judge, unseen):
    with pytest.raises(
        ValueError, match="at least 50 pictures.*got 3 real and 60 generated.*subset_size"
    ):
        kid(unseen.images[:3], unseen.images[:60], judge)
    with pytest.raises(ValueError, match="kid"):
        fid(unseen.images[:100], unseen.images[:200], judge)
    with pytest.raises(ValueError, match="got 0 pictures"):
        prompt_fidelity(unseen.images[:0], unseen.attributes[:0], judge)
    with pytest.raises(ValueError, match="missing: style"):
        prompt_fidelity(unseen.images[:4], unseen.attributes[:4].drop(columns="style"), judge)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (lambda x: x * torch.nan, "60 of the 60 {side} pictures hold NaN or infinity"),
        (lambda x: x / 0, "{side} pictures hold NaN or infinity"),
        (
            lambda x: (x + 1) * 127.5,
            "{side} pictures given as floats must lie in .-1, 1.; got values up to 2",
        ),
        (lambda x: x.long(), "{side} pictures must be uint8 or float"),
    ],
    ids=["nan", "inf", "0..255", "int64"],
)
@pytest.mark.parametrize("side", ["real", "generated"])
@pytest.mark.parametrize("score", [kid, precision_recall])
def test_what_no_picture_can_hold_is_refused_by_name(judge, unseen, score, side, broken, says):
    good = unseen.images[:60].float() / 127.5 - 1
    sides = {"real": good, "generated": good, side: broken(good)}
    with pytest.raises(ValueError, match=says.format(side=side)):
        score(**sides, judge=judge)
