"""The sweep of lab 10: what its points ask for, what is told of a model, and how the file is read and drawn."""

import json
from dataclasses import replace

import numpy as np
import pytest
from recorders import recorder

from fedgen_lab.dashboards.peers_recorded import (
    NAMES,
    PUBLISHED,
    SCORES,
    directions,
    table_chart,
    table_view,
)
from fedgen_lab.peers.scenario import PeersScenario, deal
from fedgen_lab.recorded import recorded

pdfed = recorder("pdfed")
MEASURES, PICTURES = pdfed.MEASURES, pdfed.PICTURES


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Q-N of fld-fid is 10 times the peers plus the seed; qn takes a tenth off, qn-dedup one half."""
    entries = [
        {
            "point": {"peers": peers, "method": method},
            "seed": seed,
            "result": dict.fromkeys(MEASURES, 1.0) | {"qn": factor * (10 * peers + seed)},
        }
        for peers in (2, 8)
        for method, factor in (("fld-fid", 1.0), ("qn", 0.9), ("qn-dedup", 0.5))
        for seed in (0, 1)
    ]
    path = tmp_path / "pdfed.json"
    path.write_text(json.dumps({"name": "pdfed", "made": {}, "points": entries}), encoding="utf-8")
    monkeypatch.setattr("fedgen_lab.recorded.shipped", lambda name: tmp_path)
    return recorded("pdfed")


def test_every_point_is_a_scenario_and_all_peers_together_train_on_as_many_pictures():
    points = {json.dumps(point) for point in pdfed.POINTS}
    assert len(points) == len(pdfed.POINTS) == len(pdfed.METHODS) + 3 * 4
    for point in pdfed.POINTS:
        scenario = pdfed.scenario_of(point, 1)
        assert scenario.num_peers == point["peers"] and scenario.seed == 1
        assert PICTURES - 8 < scenario.num_peers * scenario.train_pictures <= PICTURES


def test_a_peer_trains_on_as_many_pictures_as_asked_and_keeps_the_rest_to_judge_with():
    dealt = deal(PeersScenario(num_peers=3, pictures_per_peer=90, train_pictures=10))
    assert [len(holding.train) for holding in dealt] == [10, 10, 10]
    assert [len(holding.held_out) for holding in dealt] == [80, 80, 80]
    labels = [np.bincount(holding.train.labels, minlength=10).tolist() for holding in dealt]
    assert labels[0] != labels[1]  # not the first classes for everybody
    seen = [
        image.numpy().tobytes()
        for holding in dealt
        for part in (holding.train, holding.held_out)
        for image in part.images
    ]
    assert len(set(seen)) == 270
    with pytest.raises(
        ValueError, match=r"train_pictures must be a whole number from 0 to 45; got 46"
    ):
        PeersScenario(pictures_per_peer=90, train_pictures=46)


@pytest.mark.parametrize("method", ["qn", "fedavg"])
def test_a_point_is_measured_by_scores_that_no_peer_went_by(method, monkeypatch):
    point = {"peers": 2, "method": method}
    monkeypatch.setitem(pdfed.MODELS, 2, 4)
    monkeypatch.setattr(pdfed, "LAST", 1)
    small = replace(pdfed.scenario_of(point, 0), steps=2, samples=64, width=8)
    monkeypatch.setattr(pdfed, "scenario_of", lambda point, seed: small)
    result = pdfed.measure(point, 0)
    assert result["models"] == 4 and set(MEASURES) - set(result) == (
        {"crossed", "seconds"} if method == "fedavg" else set()
    )
    assert all(np.isfinite(value) for value in result.values()) and 0 <= result["auc"] <= 1
    assert (
        result["qn"] >= result["fid"] / 2 - 1e-4
    )  # novelty is added, never taken off; both have four digits


def test_directions_compare_with_quality_alone_seed_by_seed(runs):
    table = directions("qn").set_index(["peers", "method"])
    assert table.loc[(2, NAMES["qn"]), "ours"] == -10 == table.loc[(8, NAMES["qn"]), "lowest"]
    assert table.loc[(8, NAMES["qn-dedup"]), "highest"] == -50
    assert table.loc[(8, NAMES["qn"]), "published"] == round(100 * (1.573 / 1.705 - 1)) == -8
    assert (
        set(PUBLISHED["qn"]) == {2, 4, 6, 8} and len(table) == 4
    )  # nothing of 4 and 6 peers was recorded


@pytest.mark.parametrize("score", SCORES)
def test_the_chart_has_a_line_for_every_method_and_bars_from_seed_to_seed(runs, score):
    chart, sentence, table = table_chart(runs, score)
    assert [trace.name for trace in chart.data] == [
        NAMES[name] for name in ("fld-fid", "qn", "qn-dedup")
    ]
    assert "2 seeds" in sentence and len(table) == 6
    if SCORES[score] == "qn":
        assert list(chart.data[1].y) == pytest.approx([0.9 * 20.5, 0.9 * 80.5])
        assert (
            list(chart.data[0].error_y.array) == [0.5, 0.5]
            and "from 20.5 with 2 peers to 80.5 with 8" in sentence
        )


def test_where_nothing_was_recorded_the_chart_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("fedgen_lab.recorded.shipped", lambda name: tmp_path)
    assert directions("fid").empty and "published" in directions("fid")
    assert table_chart(recorded("pdfed"))[1] == "Nothing was recorded."


def test_the_view_redraws_for_another_score(monkeypatch):
    monkeypatch.setenv("FEDGEN_RUN", "inline")
    view = table_view()
    drawn = []
    view.chart.update = lambda *chart: drawn.append(chart)
    view.score.value = list(SCORES)[1]
    assert len(drawn) == 1


def test_what_lab_10_says_of_the_recorded_sweep():
    shipped = recorded("pdfed")
    scores = shipped.groupby(["method", "peers"])[["qn", "auc", "crossed", "fid", "kid"]]
    mean, low, high = scores.mean(), scores.min(), scores.max()
    plain, novelty = ("fld-fid", 4), ("qn", 4)
    assert (
        high.loc[novelty, "qn"] < low.loc[plain, "qn"]
        and mean.loc[novelty, "fid"] < mean.loc[plain, "fid"]
    )
    assert mean.loc[plain, "crossed"] == 0 < 0.3 < low.loc[novelty, "crossed"]
    two, four, eight = (mean.loc[("fld-fid", peers)] for peers in (2, 4, 8))
    assert max(two["qn"], eight["qn"]) < four["qn"]  # few pictures each; then too little training
    assert two["kid"] < four["kid"] < eight["kid"] / 2
    assert two["auc"] > four["auc"] > eight["auc"]
    by_method = mean.xs(4, level="peers")
    assert (
        by_method["fid"].idxmin()
        == by_method["qn"].idxmin()
        == by_method["auc"].idxmax()
        == "fedavg"
    )
