"""The exercises of lab 02 accept their solutions, name typical mistakes, and leave an untouched stub alone."""

import pytest
import torch

from fedgen_lab.exercises import check
from fedgen_lab.exercises.checks import find
from fedgen_lab.exercises.lab02 import EXERCISES


@pytest.fixture(autouse=True)
def own_progress(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDGEN_PROGRESS", str(tmp_path / "my_progress.json"))


# -- typical wrong answers --------------------------------------------------------------------------------------------
def mixed_without_roots(clean, noise, kept):
    return kept * clean + (1 - kept) * noise


def mixed_the_wrong_way_round(clean, noise, kept):
    return (1 - kept) ** 0.5 * clean + kept**0.5 * noise


def noise_simply_added(clean, noise, kept):
    return clean + (1 - kept) * noise


def noise_weighted_by_one_minus_the_root(clean, noise, kept):
    return kept**0.5 * clean + (1 - kept**0.5) * noise


def clean_latent_written_over(clean, noise, kept):
    return clean.mul_(kept**0.5).add_((1 - kept) ** 0.5 * noise)


def only_one_latent(clean, noise, kept):
    return (kept**0.5 * clean + (1 - kept) ** 0.5 * noise)[0]


def factors(kept):
    return kept**0.5, (1 - kept) ** 0.5


def velocity_added(noisy, velocity, kept_now, kept_next):
    a, s = factors(kept_now)
    b, u = factors(kept_next)
    return b * (a * noisy + s * velocity) + u * (s * noisy - a * velocity)


def step_without_roots(noisy, velocity, kept_now, kept_next):
    clean = kept_now * noisy - (1 - kept_now) * velocity
    noise = (1 - kept_now) * noisy + kept_now * velocity
    return kept_next * clean + (1 - kept_next) * noise


def always_clean(noisy, velocity, kept_now, kept_next):
    a, s = factors(kept_now)
    return a * noisy - s * velocity


def fresh_noise(noisy, velocity, kept_now, kept_next):
    b, u = factors(kept_next)
    return b * always_clean(noisy, velocity, kept_now, kept_next) + u * torch.randn_like(noisy)


def noisy_in_place_of_noise(noisy, velocity, kept_now, kept_next):
    b, u = factors(kept_next)
    return b * always_clean(noisy, velocity, kept_now, kept_next) + u * noisy


def velocity_in_place_of_noise(noisy, velocity, kept_now, kept_next):
    b, u = factors(kept_next)
    return b * always_clean(noisy, velocity, kept_now, kept_next) + u * velocity


def velocity_taken_for_noise(noisy, velocity, kept_now, kept_next):
    a, s = factors(kept_now)
    b, u = factors(kept_next)
    return b * (noisy - s * velocity) / a + u * velocity


def merged_without_scale(weight, a, b, alpha):
    return weight + b @ a


def merged_by_alpha(weight, a, b, alpha):
    return weight + alpha * (b @ a)


def merged_by_alpha_over_out(weight, a, b, alpha):
    return weight + alpha / len(b) * (b @ a) if len(weight) > 2 else weight + b @ a


def merged_in_place(weight, a, b, alpha):
    weight += alpha / len(a) * (b @ a)
    return weight


def only_the_adapter(weight, a, b, alpha):
    return alpha / len(a) * (b @ a)


def factors_the_wrong_way_round(weight, a, b, alpha):
    return weight + alpha / len(a) * (a @ b)


def the_sum_of_the_factors(weight, a, b, alpha):
    return weight + alpha / len(a) * (b + a)


WRONG = {
    "02.1": {
        mixed_without_roots: "spread",
        mixed_the_wrong_way_round: "With kept = 1",
        noise_simply_added: "With kept = 0",
        noise_weighted_by_one_minus_the_root: "spread",
        clean_latent_written_over: "changes the tensors",
        only_one_latent: "shape",
    },
    "02.2": {
        velocity_added: "adds the velocity",
        step_without_roots: "two factors do not fit",
        always_clean: "always ends at the clean latent",
        fresh_noise: "fresh noise",
        noisy_in_place_of_noise: "You put the noisy latent back",
        velocity_in_place_of_noise: "the noise beside it",
        velocity_taken_for_noise: "Given the true velocity",
    },
    "02.3": {
        merged_without_scale: "ignores alpha",
        merged_by_alpha: "alpha itself",
        merged_by_alpha_over_out: "divide alpha by 5",
        merged_in_place: "writes into",
        only_the_adapter: "With B = 0",
        factors_the_wrong_way_round: "must have the weight's shape|cannot be multiplied",
        the_sum_of_the_factors: "With B = 0",
    },
}
MISTAKES = [
    (key, wrong, told) for key, mistakes in WRONG.items() for wrong, told in mistakes.items()
]


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.key)
def test_the_solution_passes(exercise):
    assert check(exercise.key, exercise.run_solution()).passed


@pytest.mark.parametrize(
    ("key", "wrong", "told"), MISTAKES, ids=[wrong.__name__ for _, wrong, _ in MISTAKES]
)
def test_a_typical_mistake_is_named_and_gets_a_question(key, wrong, told):
    verdict = find(key).check(wrong) if "|" not in told else check(key, wrong)
    assert verdict.state == "failed"
    assert any(part in verdict.message for part in told.split("|")), verdict.message
    assert verdict.question.count("?") >= 1


@pytest.mark.parametrize("key", WRONG)
def test_mistakes_of_different_kinds_are_told_apart(key):
    messages = [check(key, wrong).message for wrong in WRONG[key]]
    same_kind = {"02.1": 1, "02.3": 1}.get(
        key, 0
    )  # two mistakes there break the very same property
    assert len(set(messages)) >= len(messages) - same_kind


@pytest.mark.parametrize("key", WRONG)
def test_an_untouched_stub_is_not_tried(key):
    def stub(*args, **kwargs):
        raise NotImplementedError("Write your answer here.")

    assert check(key, stub).state == "not tried"


@pytest.mark.parametrize("key", WRONG)
def test_a_constant_answer_fails(key):
    assert check(key, lambda *args: torch.zeros(2, 3)).state == "failed"
    assert check(key, lambda *args: 0).state == "failed"


def test_a_step_may_be_written_with_math_sqrt():
    from math import sqrt

    def noised(clean, noise, kept):
        return sqrt(kept) * clean + sqrt(1 - kept) * noise

    assert check("02.1", noised).passed


def test_every_exercise_belongs_to_lab_02_and_keeps_its_hints_from_giving_the_code_at_once():
    for exercise in EXERCISES:
        assert exercise.key.startswith("02.")
        assert exercise.hints[0].count("`") <= 2
