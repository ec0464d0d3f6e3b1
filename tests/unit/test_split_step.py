"""Claims about lab 06's stepper: it stops at every hop, shows what crosses, and says what never does."""

import re

import pytest
import torch

from fedgen_lab.dashboards.split_step import HOPS, NEVER, SplitStep, map_html, split_step
from fedgen_lab.split.nets import SIZES

SIZE = SIZES["lab14"]


@pytest.fixture
def stepper():
    pictures = torch.rand(4, *SIZE.picture, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return SplitStep("0110", pictures, torch.tensor([1, 2, 3, 4]), SIZE, seed=0)


def test_every_press_of_next_hop_sends_one_tensor_and_says_its_bytes(stepper):
    assert "Nothing has been sent" in stepper.status.sentence
    for number in range(1, HOPS + 1):
        stepper.next_button.click()
        hop = stepper.hops[-1]
        assert len(stepper.hops) == number
        assert (
            f"hop {number} of 16" in stepper.status.sentence
            and f"{hop.bytes:,} bytes" in stepper.status.sentence
        )
        assert NEVER in stepper.sums.value
        images = re.findall(r"<img alt=\"([^\"]+)\"", stepper.strip.value)
        assert len(images) == 3 * 10 + (0 if hop.shown is None else 3) and all(images)
    stepper.next_button.click()
    assert "Iteration 2, hop 1 of 16" in stepper.status.sentence


def test_whole_iteration_finishes_the_one_that_was_begun(stepper):
    for _ in range(5):
        stepper.next_button.click()
    stepper.whole_button.click()
    assert len(stepper.hops) == HOPS and stepper.iterations == 1
    frame = stepper.frame()
    assert list(frame["direction"]) == ["up", "down"] * 8
    assert frame["bytes"].sum() == sum(hop.bytes for hop in stepper.hops)
    assert f"{sum(hop.bytes for hop in stepper.hops if hop.up):,} bytes up" in stepper.sums.value
    stepper.ten_button.click()
    assert len(stepper.hops) == HOPS and stepper.iterations == 11


def test_iterations_train_the_nets_and_start_over_brings_the_first_weights_back(stepper):
    first = [p.clone() for p in stepper.generator.parameters()]
    stepper.whole_iteration()
    assert any(
        not torch.equal(a, b) for a, b in zip(first, stepper.generator.parameters(), strict=True)
    )
    stepper.over_button.click()
    assert all(
        torch.equal(a, b) for a, b in zip(first, stepper.generator.parameters(), strict=True)
    )
    assert not stepper.hops


def test_another_cut_starts_over_and_sends_other_tensors(stepper):
    stepper.whole_iteration()
    before = sum(hop.bytes for hop in stepper.hops)
    stepper.where[1].value = 0
    assert stepper.cut == "0010" and not stepper.hops
    stepper.whole_iteration()
    assert sum(hop.bytes for hop in stepper.hops) < before


def test_the_ledger_is_shown_and_hidden_by_a_button_that_says_which(stepper):
    assert (
        stepper.ledger_button.description == "Show ledger as table"
        and stepper.ledger.layout.display == "none"
    )
    stepper.ledger_button.click()
    assert (
        stepper.ledger_button.description == "Hide ledger as table"
        and stepper.ledger.layout.display == ""
    )


def test_the_map_says_in_words_who_holds_what_and_where_the_tensor_goes(stepper):
    words = re.findall(r'aria-label="([^"]+)"', map_html("0110"))
    assert words == [
        "generator: on the device G0, G3, G4; on the server G1, G2.",
        "discriminator: on the device D0, D1, D4; on the server D2, D3.",
    ]
    stepper.next_hop()
    assert "on the server G1, G2; now its activation goes up at the head." in stepper.map.value


def test_run_inline_it_shows_two_moments_and_the_whole_ledger(monkeypatch, capsys):
    monkeypatch.setenv("FEDGEN_RUN", "inline")
    shown = []
    monkeypatch.setattr(
        "fedgen_lab.dashboards.split_step.display", lambda one: shown.append(one.data)
    )
    made = split_step("1111")  # handwritten digits
    assert made.iterations == 1 and "hop 1 of 16" in shown[0] and "hop 16 of 16" in shown[0]
    assert shown[0].count("<svg") == 4 and shown[0].count("<tr>") > 16


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"cut": "012"}, "cut must be four bits such as \"0110\"; got '012'"),
        ({"size": "huge"}, "size must be one of lab14, lab28, reference, colour; got 'huge'"),
        ({"size": "colour"}, "digits are grey: hand over pictures and labels"),
        ({"pictures": torch.zeros(4, 1, 8, 8)}, r"needs pictures of the shape \(B, 1, 14, 14\)"),
        ({"pictures": torch.zeros(4, 1, 14, 14), "labels": torch.zeros(3)}, "and 3 labels"),
    ],
    ids=["cut", "size", "colour", "shape", "labels"],
)
def test_what_can_not_be_shown_is_refused_in_a_sentence(arguments, words):
    with pytest.raises(ValueError, match=words):
        split_step(**arguments)
