"""The judges and the scores of GANs: what they say about pictures whose truth is known."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fedgen_lab import scores
from fedgen_lab.pictures.domains import Domain, load_domain
from fedgen_lab.shipped import shipped
from fedgen_lab.split.judges import SHIPPED, DomainJudge, judge_for, load_domain_judge, train_judge
from fedgen_lab.split.nets import SIZES, new_generator
from fedgen_lab.split.scenario import GanScenario
from fedgen_lab.split.scoring import (
    image_score,
    label_grid,
    probabilities,
    right_label,
    score,
    utility,
)

UNSEEN = 20_260_101  # a seed that no training script used


class Told(nn.Module):
    """A judge that reads its answer off the first pixel: label 0 to 9, sure of it or not at all."""

    def __init__(self, sure=True):
        super().__init__()
        self.sure = sure

    def read(self, images):
        return images.float()

    def forward(self, images):
        labels = images[:, 0, 0, 0].long()
        return nn.functional.one_hot(labels, 10).float() * (1000 if self.sure else 0)


def told(labels):
    pictures = torch.zeros(len(labels), 1, 14, 14)
    pictures[:, 0, 0, 0] = torch.as_tensor(labels).float()
    return pictures


@pytest.fixture(scope="module")
def held_out():
    """Real pictures of two domains that no client holds."""
    return {name: load_domain(name, 300, 14, UNSEEN, held_out=True) for name in ("digits", "runes")}


# ---- judges


@pytest.mark.parametrize("side", [14, 28])
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_judge_knows_pictures_that_it_never_saw(name, side):
    unseen = load_domain(name, 120, side, UNSEEN, held_out=True)
    judge = judge_for(unseen)
    assert right_label(unseen.images, unseen.labels, judge) >= 0.93
    assert judge is judge_for(unseen)


def test_all_shipped_judges_together_stay_below_a_megabyte():
    files = list(shipped("domain-judges").glob("*.safetensors"))
    assert len(files) == 8 and sum(file.stat().st_size for file in files) < 1e6


def test_a_domain_without_a_shipped_judge_gets_one_trained_on_the_spot_and_the_seed_decides_it():
    training = load_domain("digits", 300, 14)
    first, second = (train_judge(training, seed=1, steps=15, batch_size=32) for _ in range(2))
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    assert right_label(training.images, training.labels, first) > 0.2  # 0.1 is guessing


def test_sprites_are_judged_by_the_sprite_judge():
    sprites = load_domain("sprites:solid", 60, 32, UNSEEN, held_out=True)
    assert right_label(sprites.images, sprites.labels, judge_for(sprites)) > 0.95


def test_bytes_and_floats_and_other_sizes_are_judged_alike(held_out):
    digits, judge = held_out["digits"], load_domain_judge("digits", 14)
    assert torch.allclose(
        probabilities(digits.images, judge), probabilities(digits.as_tensor(), judge), atol=1e-5
    )
    larger = digits.resized(28)
    assert right_label(larger.images, larger.labels, judge) > 0.9


def test_a_judge_refuses_pictures_in_colour_where_it_reads_grey_ones():
    with pytest.raises(ValueError, match=r"\(N, 1, H, W\); got \(2, 3, 14, 14\)"):
        DomainJudge(1, 14).read(torch.zeros(2, 3, 14, 14))


# ---- image score


def test_the_image_score_is_the_number_of_labels_that_are_seen_clearly():
    assert image_score(told(range(10)), Told()) == pytest.approx(10)
    assert image_score(told([0, 1, 2, 0, 1, 2]), Told()) == pytest.approx(3)
    assert image_score(told([4] * 5), Told()) == pytest.approx(1)
    assert image_score(told(range(10)), Told(sure=False)) == pytest.approx(1)


def test_real_pictures_score_high_and_noise_low(held_out):
    judge = judge_for(held_out["runes"])
    noise = torch.rand(300, 1, 14, 14, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert image_score(held_out["runes"].images, judge) > 8.5 > 6 > image_score(noise, judge)


def test_the_right_label_is_the_one_that_was_asked_for():
    assert right_label(told([1, 2, 3, 4]), torch.tensor([1, 2, 0, 0]), Told()) == 0.5


# ---- distances in a judge's features


def test_distances_are_small_to_the_same_domain_and_large_to_another(held_out):
    digits, judge = held_out["digits"].images, judge_for(held_out["digits"])
    own, other = digits[:150], held_out["runes"].images[:150]
    assert abs(scores.kid(digits[150:], own, judge)) < 0.1 * scores.kid(digits[150:], other, judge)
    assert scores.fid(digits[150:], own, judge) < 0.5 * scores.fid(digits[150:], other, judge)
    near, far = (
        scores.precision_recall(digits[150:], pictures, judge) for pictures in (own, other)
    )
    assert min(near) > 0.9 and far[0] < 0.6


def test_one_picture_over_and_over_is_precise_and_recalls_nothing(held_out):
    digits, judge = held_out["digits"].images, judge_for(held_out["digits"])
    precision, recall = scores.precision_recall(
        digits[1:150], digits[:1].repeat(149, 1, 1, 1), judge
    )
    assert precision in (0.0, 1.0) and recall < 0.05
    with pytest.raises(ValueError, match="at least 7 pictures.*Give more pictures"):
        scores.precision_recall(digits[:6], digits, judge)


def test_fid_asks_for_as_many_pictures_as_the_judge_has_features(held_out):
    digits = held_out["digits"].images
    with pytest.raises(ValueError, match="at least 64 pictures.*got 63 real"):
        scores.fid(digits[:63], digits, judge_for(held_out["digits"]))


# ---- utility


def test_real_pictures_teach_a_classifier_and_wrong_labels_do_not(held_out):
    training = load_domain("digits", 400, 14)
    taught = utility(training.as_tensor(), training.labels, held_out["digits"], epochs=4)
    misled = utility(training.as_tensor(), (training.labels + 1) % 10, held_out["digits"], epochs=4)
    assert taught["accuracy"] > 0.75 and misled["accuracy"] < 0.1
    assert taught["false_positive_rate"] < 0.04 < 0.09 < misled["false_positive_rate"]
    assert set(taught) == {
        "accuracy",
        "macro_precision",
        "macro_recall",
        "macro_f1",
        "false_positive_rate",
    }


def test_a_classifier_that_says_one_label_always_has_the_shares_worked_out_by_hand():
    labels = torch.arange(10).repeat(3)
    held_out = Domain(
        "made up", torch.zeros(30, 1, 14, 14, dtype=torch.uint8), labels, tuple("0123456789")
    )
    seen = utility(held_out.as_tensor()[:8], torch.zeros(8, dtype=torch.int64), held_out, epochs=20)
    assert seen["accuracy"] == pytest.approx(0.1) and seen["macro_recall"] == pytest.approx(0.1)
    assert seen["macro_precision"] == pytest.approx(0.01) and seen["macro_f1"] == pytest.approx(
        0.1 * 2 / 11
    )
    assert seen["false_positive_rate"] == pytest.approx(
        0.1
    )  # 27 of 27 for one label, none for nine


# ---- the table of a run

SCENARIO = GanScenario(num_clients=4, domains="digits,runes")


def dealt(held_out):
    return SimpleNamespace(
        domain_of=np.array([0, 1, 0, 1]),
        domains=["digits", "runes"],
        held_out=[held_out["digits"], held_out["runes"]],
    )


def untrained(seed):
    return new_generator(SIZES["lab14"], seed).state_dict()


def test_the_table_has_a_row_per_domain_and_the_ceiling_is_that_of_real_pictures(held_out):
    table = score(
        [untrained(0), untrained(1), None, untrained(2)], dealt(held_out), SCENARIO, number=100
    )
    assert table["domain"].tolist() == ["digits", "runes"] and table["clients"].tolist() == [1, 2]
    for row in table.itertuples():
        real = held_out[row.domain]
        assert row.ceiling == pytest.approx(image_score(real.images, judge_for(real)))
        assert 1 <= row.image_score < row.ceiling and row.kid > 0.1 and row.fid > 0
        assert 0 <= row.right_label < 0.5 and 0 <= row.precision <= 1 and 0 <= row.recall <= 1


def test_the_same_generators_score_the_same_again_and_a_domain_is_the_mean_of_its_clients(held_out):
    one, other = untrained(0), untrained(3)
    states = {
        "both": [one, None, other, None],
        "first": [one, None, None, None],
        "second": [None, None, other, None],
    }
    tables = {
        name: score(state, dealt(held_out), SCENARIO, number=60).iloc[0]
        for name, state in states.items()
    }
    again = score(states["both"], dealt(held_out), SCENARIO, number=60).iloc[0]
    assert tables["both"].equals(again)
    for column in ("image_score", "kid", "recall", "right_label"):
        mean = (tables["first"][column] + tables["second"][column]) / 2
        assert tables["both"][column] == pytest.approx(mean, abs=1e-9)


def test_a_generator_that_draws_nan_is_left_out_and_a_domain_without_clients_has_no_score(held_out):
    broken = {name: tensor * float("nan") for name, tensor in untrained(0).items()}
    table = score([broken, untrained(1), broken, None], dealt(held_out), SCENARIO, number=60)
    assert (
        table["clients"].tolist() == [0, 1]
        and np.isnan(table["image_score"][0])
        and table["ceiling"][0] > 8
    )
    assert np.isnan(table["fid"][1])  # fewer pictures than features


def test_utility_is_scored_on_request_beside_what_real_pictures_would_teach(held_out):
    scenario = replace(SCENARIO, domains="digits", num_clients=1)
    alone = SimpleNamespace(
        domain_of=np.array([0]), domains=["digits"], held_out=[held_out["digits"]]
    )
    row = score([untrained(0)], alone, scenario, number=100, utility=True).iloc[0]
    assert row["accuracy"] < 0.5 < row["accuracy_ceiling"]


# ---- pictures of every label


def test_the_grid_has_one_picture_per_label_and_the_same_noise_for_every_generator():
    size = SIZES["lab14"]
    grid = label_grid(untrained(0), size, seed=4)
    assert grid.shape == (10, 1, 14, 14) and grid.abs().max() <= 1
    assert torch.equal(grid, label_grid(untrained(0), size, seed=4))
    assert not torch.equal(grid, label_grid(untrained(0), size, seed=5))


@pytest.mark.parametrize("number", [6, 0, 50.0, None])
def test_too_few_pictures_to_score_are_refused_before_any_is_drawn(held_out, number):
    with pytest.raises(
        ValueError, match=f"number must be a whole number of pictures, at least 7.*got {number!r}"
    ):
        score([None] * 4, dealt(held_out), SCENARIO, number=number)
