"""Recorded runs are drawn as they were written: the nearest point, the spread over seeds, and who recorded them."""

import json

import numpy as np
import pytest

from fedgen_lab.dashboards import lora_live
from fedgen_lab.dashboards.lora_recorded import Recorded

ROUNDS = 3


def entry(method, num_clients, skew, seed, losses, **result):
    point = {"method": method, "num_clients": num_clients, "skew": skew}
    return {"point": point, "seed": seed, "seconds": 1.0, "result": {"loss": losses, **result}}


@pytest.fixture
def sweep(tmp_path):
    radio = {
        "megabytes_up": [0, 1, 2, 3],
        "megabytes_down": [0, 1, 2, 3],
        "wireless_seconds": [0, 4, 8, 12],
    }
    points = [
        entry(
            "lora",
            clients,
            skew,
            seed,
            [1.0, 0.8, 0.6, 0.5 + 0.1 * seed + skew],
            object={"0": 0, "3": 0.5},
            **radio,
        )
        for clients in (2, 4, 16)
        for skew in (0.0, 1.0)
        for seed in (0, 1, 2)
    ]
    points += [entry("centralised", 4, 0.0, seed, [1.0, 0.5, 0.3, 0.2]) for seed in (0, 1, 2)]
    path = tmp_path / "federated_lora.json"
    made = {
        "versions": {"torch": "2.13.0", "flwr": "1.41.0"},
        "date": "2026-11-21T05:00:00",
        "command": "...",
    }
    path.write_text(
        json.dumps({"name": "federated_lora", "made": made, "points": points}), encoding="utf-8"
    )
    return path


def test_the_nearest_recorded_point_is_taken_clients_by_their_ratio(sweep):
    recorded = Recorded(sweep)
    assert recorded.nearest("lora", 5, 0.1) == {"method": "lora", "num_clients": 4, "skew": 0.0}
    assert recorded.nearest("lora", 9, 0.9) == {"method": "lora", "num_clients": 16, "skew": 1.0}
    assert recorded.nearest("lora", 3, 0.0)["num_clients"] in (2, 4)
    assert recorded.nearest("no such method", 4, 0) is None


def test_a_curve_is_the_mean_of_its_seeds_between_the_lowest_and_the_highest(sweep):
    curve = Recorded(sweep).curve("lora", 4, 0.0)
    assert curve.seeds == (0, 1, 2)
    assert curve.mean[-1] == pytest.approx(0.6)
    assert (curve.low[-1], curve.high[-1]) == (pytest.approx(0.5), pytest.approx(0.7))
    assert list(curve.x) == [0, 1, 2, 3]


def test_the_same_curve_stands_over_rounds_megabytes_and_seconds(sweep):
    recorded = Recorded(sweep)
    assert list(recorded.curve("lora", 4, 0.0, "megabytes").x) == [0, 2, 4, 6]
    assert list(recorded.curve("lora", 4, 0.0, "wireless seconds").x) == [0, 4, 8, 12]
    alone = recorded.curve(
        "centralised", 4, 0.0, "megabytes"
    )  # sends nothing here: only its end is a level
    assert list(alone.x) == [0] and list(alone.mean) == [pytest.approx(0.2)]


def test_the_table_of_ends_has_a_row_for_each_point_and_one_for_the_base(sweep):
    table = Recorded(sweep).ends().set_index(["method", "num_clients", "skew"])
    assert len(table) == 1 + 6 + 1 and (table["seeds"] == 3).all()
    federated = table.loc[("lora", 4, 0.0)]
    assert federated["loss"] == pytest.approx(0.6) and federated["megabytes"] == 6
    assert (federated["loss_low"], federated["loss_high"]) == (
        pytest.approx(0.5),
        pytest.approx(0.7),
    )
    base = table.loc["base"].iloc[0]
    assert base["loss"] == 1.0 and base["object"] == 0 and base["megabytes"] == 0


def test_the_sentence_says_when_with_what_and_over_which_seeds(sweep):
    assert (
        Recorded(sweep).provenance()
        == "Recorded on 2026-11-21 with torch 2.13.0, flwr 1.41.0; seeds 0, 1, 2."
    )


def test_a_missing_or_a_foreign_file_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="python data/record/record.py federated_lora"):
        Recorded(tmp_path / "federated_lora.json")
    (tmp_path / "other.json").write_text("[1, 2]", encoding="utf-8")
    with pytest.raises(ValueError, match="not a recorded sweep"):
        Recorded(tmp_path / "other.json")


@pytest.mark.parametrize("axis", lora_live.AXES)
def test_the_chart_draws_and_tables_every_recorded_method_that_has_the_axis(sweep, axis):
    chart, sentence, table = lora_live.loss_chart([], Recorded(sweep), axis, 5e6, 4, 1.0)
    lines = {trace.name for trace in chart.data if trace.mode != "none"}
    levels = {note.text for note in chart.layout.annotations}
    assert "recorded federated LoRA" in lines
    # It was recorded at skew 0 only, and the name says so.
    central = "recorded centralised LoRA (4 clients, skew 0)"
    assert central in lines if axis == "rounds" else f"{central}, at its end" in levels
    assert sentence.startswith(
        "Recorded (4 clients, skew 1, 3 seeds): loss 1.000 at the start, 1.600 at the end."
    )
    assert np.isfinite(table["loss"]).all()


def test_without_recorded_and_live_runs_the_chart_says_what_to_do():
    _, sentence, table = lora_live.loss_chart([], None, "rounds", 5e6, 4, 0.0)
    assert "press Start" in sentence and table is None
