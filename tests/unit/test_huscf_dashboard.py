"""The dashboards of lab 07: real runs on tiny scenarios and small recorded sweeps, without a browser."""

import io
import json
from contextlib import redirect_stdout

import numpy as np
import pytest

from fedgen_lab.dashboards.huscf import DOMAINS, LABELS, huscf_dashboard
from fedgen_lab.dashboards.huscf_live import METHOD_NAMES, GanRun, estimate_seconds, score_chart
from fedgen_lab.dashboards.huscf_recorded import (
    PRICES,
    duels,
    recorded_gans,
    rivals_chart,
    rivals_view,
)
from fedgen_lab.split.scenario import METHODS, GanScenario

SMALL = {"num_clients": 2, "domains": "letters,runes", "rounds": 2, "iterations": 1, "warm_up": 1}
SMALL |= {"batch_size": 4, "pictures_per_client": 8}


def show(**changes):
    with redirect_stdout(io.StringIO()):  # without a notebook, display() prints
        return huscf_dashboard(**{**SMALL, **changes})


@pytest.fixture(scope="module")
def finished():
    """A dashboard whose first run has ended."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDGEN_RUN", "inline")
        yield show()


def test_a_run_ends_with_scores_of_every_round_and_domain_and_says_so(finished):
    run = finished.panel.latest()
    table = run.table(20e6)
    assert table.groupby("round")["domain"].agg(list).to_dict() == dict.fromkeys(
        (0, 1, 2), ["letters", "runes"]
    )
    assert finished.panel.status.sentence.startswith("Done: 2 of 2 rounds in")
    assert "Image score: letters" in finished.panel.status.sentence
    assert "round 2 of 2, image score" in finished.score_chart.sentence
    assert "Held-out real pictures score" in finished.score_chart.sentence


def test_every_client_draws_one_picture_of_each_label(finished):
    assert finished.panel.pictures.value.count("<img") == 2 * 10
    assert 'alt="client 1, runes' in finished.panel.pictures.value


def test_clusters_and_weights_belong_to_the_round_of_the_knob(finished):
    finished.round.set(1)
    assert "warm-up, plain FedAvg" in finished.tap_chart.sentence
    assert finished.weight_chart.sentence.endswith("the run itself took FedAvg's weights.")
    finished.round.set(2)
    assert "Round 2" in finished.tap_chart.sentence and "warm-up" not in finished.tap_chart.sentence


def test_turning_alpha_weighs_anew_and_trains_nothing(finished):
    runs = list(finished.panel.runs)
    finished.alpha.set(500.0)
    assert finished.weight_chart.sentence.startswith("At alpha = 500")
    finished.alpha.set(1.0)
    assert finished.panel.runs == runs


def test_another_bandwidth_re_times_a_run_and_changes_nothing_else(finished):
    slow, fast = (finished.panel.latest().table(hertz) for hertz in (1e6, 1e9))
    assert slow["wireless_seconds"].iloc[-1] > fast["wireless_seconds"].iloc[-1] > 0
    same = ["round", "domain", "image_score", "megabytes"]
    assert slow[same].equals(fast[same])
    finished.axis.value = "wireless seconds"
    finished.bandwidth.set(1.0)
    assert "on the wireless link at 1 MHz" in finished.score_chart.sentence
    finished.bandwidth.set(20.0)


@pytest.mark.parametrize("measure", ["KID", "right label", "precision", "recall"])
def test_every_score_can_be_drawn_with_its_numbers_as_a_table(finished, measure):
    chart, sentence, table = score_chart(finished.panel.runs, measure, "megabytes", 20e6)
    assert len(chart.data) == len(finished.panel.runs) and measure in sentence
    assert len(table) == 3 * 2 * len(finished.panel.runs)


def test_the_estimate_follows_the_pace_of_the_last_run(finished):
    pace = finished.panel.latest().seconds_per_picture
    assert pace is None or pace > 0
    scenario = GanScenario(**SMALL)
    assert estimate_seconds(scenario, 1.0) - estimate_seconds(scenario, 0.5) == pytest.approx(
        2 * 1 * 2 * 4 * 0.5
    )
    assert "You can stop at any time" in finished.estimate.value


def test_the_lessons_run_is_meant_to_take_about_a_minute(monkeypatch):
    monkeypatch.setenv("FEDGEN_PROFILE", "binder")
    assert 30 < estimate_seconds(GanScenario.for_profile()) < 70


def test_every_method_of_the_package_can_be_chosen(finished):
    assert set(METHOD_NAMES) == set(METHODS) == {value for _, value in finished.method.options}


def test_knobs_turned_to_both_ends_describe_a_scenario_that_makes_sense(finished):
    before = finished.scenario()
    for knob in finished.knobs:
        first = knob.value
        for end in (knob.number.min, knob.number.max):
            knob.set(end)
            assert isinstance(finished.scenario(), GanScenario)
        knob.set(first)
    for domains in DOMAINS.values():
        finished.domains.value = domains
        assert finished.scenario().domains == domains
    finished.domains.value = before.domains
    for share in LABELS.values():
        finished.share.value = share
        assert finished.scenario().share == share
        assert finished.skew.number.disabled == (share != "skew"), (
            "a knob without effect can't be turned"
        )
    finished.share.value = "skew"
    assert finished.scenario() == before


def test_too_few_clients_for_the_domains_is_a_sentence_and_not_a_traceback(finished):
    finished.domains.value = DOMAINS["digits, garments, runes, letters"]
    finished.panel.start()
    assert finished.panel.job.state == "failed"
    assert "4 domains need at least as many clients" in finished.panel.status.sentence
    finished.domains.value = SMALL["domains"]


def test_a_rival_has_no_clusters_and_the_page_says_so():
    dashboard = show(method="fedgan", rounds=1, iterations=1)
    assert dashboard.panel.status.sentence.startswith("Done: 1 of 1 rounds")
    assert "its rivals have none" in dashboard.tap_chart.sentence
    assert "FedGAN" in dashboard.score_chart.sentence


def test_a_stopped_run_keeps_the_rounds_that_were_complete():
    from fedgen_lab.dashboards.huscf_live import run_live

    run = GanRun(GanScenario(**SMALL))

    class Impatient:  # a job that is stopped in the middle of round 2
        should_stop = staticmethod(lambda: run.rounds >= 1)
        report = staticmethod(lambda sentence: True)

    run_live(run, Impatient())
    assert run.rounds == 1 and run.computed
    assert run.trace.frame()["round"].max() == 1
    assert "1 of 2 rounds" in run.summary()


# ---- what was recorded


def result(score, seed, domains=("digits", "runes")):
    """What one recorded run holds; the two domains lie 0.2 apart."""
    last = [score + 0.01 * seed + (0.1 if number else -0.1) for number in range(len(domains))]
    return {
        "domains": list(domains),
        "rounds": [2, 8],
        "image_score": [[1.0, value] for value in last],
        "kid": [[1.0, 10 - value] for value in last],
        "precision": [[None, None] for _ in last],
        "recall": [[None, None] for _ in last],
        "right_label": [[None, None] for _ in last],
        "ceiling": [9.0, 10.0],
        "accuracy": last,
        "accuracy_ceiling": [None, None],
        "megabytes_up": [0, 5.0],
        "megabytes_down": [0, 7.0],
        "wireless_seconds": [0, 100.0 * score],
        "gigaflops": 3.0,
        "fid": [[None, None] for _ in last],
        "refused": 0,
    }


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """The file that stands in for the sweep that ships."""
    scores = {("S4", "huscf"): 8.0, ("S4", "fedgan"): 7.0, ("S4", "local"): 8.01}
    scores |= {("S6", "huscf"): 5.0, ("S6", "local"): 6.0}
    points = [
        {
            "point": {"scenario": scenario, "method": method},
            "seed": seed,
            "result": result(score, seed),
        }
        for (scenario, method), score in scores.items()
        for seed in (0, 1, 2)
    ]
    path = tmp_path / "huscf_gan.json"
    path.write_text(
        json.dumps({"name": "huscf_gan", "made": {}, "points": points}), encoding="utf-8"
    )
    monkeypatch.setattr("fedgen_lab.recorded.shipped", lambda name: tmp_path)
    return path


def test_recorded_runs_are_averaged_over_domains_and_seeds_after_the_last_round(sweep):
    row = recorded_gans().set_index(["scenario", "method"]).loc[("S4", "huscf")]
    assert row["seeds"] == 3 and row["megabytes"] == 12.0 and row["ceiling"] == 9.5
    assert (row["image_score_low"], row["image_score"], row["image_score_high"]) == pytest.approx(
        (8.0, 8.01, 8.02)
    )
    assert np.isnan(row["fid"])


def test_a_duel_is_won_only_when_every_seed_beats_every_seed(sweep):
    table = recorded_gans()
    verdicts = duels(table, "image_score")
    assert verdicts.loc["S4"].to_dict() == {"local only": "level", "FedGAN": "better"}
    assert verdicts.loc["S6", "local only"] == "worse"
    assert duels(table, "kid").loc["S4", "FedGAN"] == "better", "of KID, less is better"


def test_one_seed_decides_no_duel(sweep):
    content = json.loads(sweep.read_text(encoding="utf-8"))
    content["points"] = [
        run for run in content["points"] if run["point"]["method"] != "fedgan" or run["seed"] == 0
    ]
    sweep.write_text(json.dumps(content), encoding="utf-8")
    assert duels(recorded_gans(), "image_score").loc["S4", "FedGAN"] == "too few seeds"


def test_a_sweep_with_one_method_only_has_no_duels(sweep):
    table = recorded_gans()
    assert duels(table[table["method"] == "huscf"], "image_score").size == 0


def test_the_chart_of_rivals_names_the_best_and_the_cheapest_and_the_real_pictures(sweep):
    for price in PRICES:
        chart, sentence, table = rivals_chart(recorded_gans(), "S4", "image score", price)
        assert {trace.name for trace in chart.data} == {"HuSCF-GAN", "local only", "FedGAN"}
        assert (
            "the best image score has local only" in sentence
            and "Real pictures reach 9.5" in sentence
        )
        assert list(table["method"]) == ["HuSCF-GAN", "local only", "FedGAN"]
    assert (
        "takes FedGAN" in rivals_chart(recorded_gans(), "S4", "image score", "wireless seconds")[1]
    )


def test_where_nothing_was_recorded_the_page_says_so(sweep):
    assert "not recorded" in rivals_chart(recorded_gans(), "S4", "FID")[1]
    with redirect_stdout(io.StringIO()):
        view = rivals_view(recorded_gans())
    view.scenario.value = "S6"
    assert "S6" in view.chart.sentence
    sweep.unlink()
    empty = recorded_gans()
    assert empty.empty and {"scenario", "method", "image_score"} <= set(empty)
    assert "not recorded" in rivals_chart(empty, "S4")[1]


def test_the_file_that_ships_can_be_read():
    table = recorded_gans()
    assert set(table["method"]) <= set(METHODS)
    assert (table["image_score_low"] <= table["image_score_high"]).all() if len(table) else True
