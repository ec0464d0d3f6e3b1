"""Lab 07's view of clusters, weights and samples says what it shows, and turning alpha trains nothing."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from fedgen_lab.dashboards.cluster_view import (
    ClusterView,
    alpha_lines,
    cluster_view,
    samples_html,
    scores_of,
    tap_map,
    weight_bars,
)
from fedgen_lab.split.clusters import cluster, kld_scores, weights
from fedgen_lab.split.nets import SIZES, new_generator
from fedgen_lab.split.scenario import GanOutcome, GanRound, GanScenario

CHANNELS = SIZES["lab14"].discriminator[2]
SCENARIO = GanScenario(num_clients=6, domains="digits,runes", rounds=4, warm_up=1)


def dealt():
    counts = np.full((6, 10), 15)
    counts[3, [2, 7]] = 0
    labels = {"digits": tuple("0123456789"), "runes": tuple("abcdefghij")}
    return SimpleNamespace(
        domain_of=np.arange(6) % 2,
        domains=list(labels),
        counts=pd.DataFrame(counts),
        held_out=[SimpleNamespace(name=name, label_names=names) for name, names in labels.items()],
    )


def gan_round(number=3, stray=False, gone=()):
    draw = np.random.default_rng(number)
    centres = draw.normal(size=(2, CHANNELS * 9))
    domain = np.arange(6) % 2
    if stray:
        domain[5] = 0
    taps = centres[domain] + 0.2 * draw.normal(size=(6, CHANNELS * 9))
    groups = np.zeros(6, int) if number <= SCENARIO.warm_up else cluster(taps)
    taps[list(gone)], groups[list(gone)] = np.nan, -1
    return GanRound(number, 4, [], groups, np.full(6, 1 / 3), taps)


def outcome(**changes):
    history = [GanRound(0, 4, []), gan_round(1), gan_round(2), gan_round(3)]
    states = [new_generator(SIZES["lab14"], seed).state_dict() for seed in range(5)] + [None]
    return GanOutcome(
        **{"scenario": SCENARIO, "generators": states, "history": history, "trace": None, **changes}
    )


def test_the_map_tells_truth_by_shape_and_clusters_by_colour_and_number():
    chart, sentence, table = tap_map(gan_round(), dealt())
    looks = {trace.name: (trace.marker.symbol, trace.marker.color) for trace in chart.data}
    assert set(looks) == {"digits in cluster 0", "runes in cluster 1", "digits", "runes"}
    (first, blue), (second, orange) = looks["digits in cluster 0"], looks["runes in cluster 1"]
    assert (
        first != second
        and blue != orange
        and (looks["digits"][0], looks["runes"][0]) == (first, second)
    )
    assert [trace.name for trace in chart.data if trace.showlegend is not False] == [
        "digits",
        "runes",
    ]
    assert [text for trace in chart.data for text in trace.text or ()] == [
        "0 (0)",
        "2 (0)",
        "4 (0)",
        "1 (1)",
        "3 (1)",
        "5 (1)",
    ]
    assert "Round 3: 2 clusters, each with clients of one domain only." in sentence
    assert table["cluster"].tolist() == [0, 1, 0, 1, 0, 1]


def test_clients_that_lie_close_share_a_label_and_no_client_goes_without():
    one = gan_round()
    one.taps[2] = one.taps[0] + 1e-6
    words = [note.text.replace("<br>", " ") for note in tap_map(one, dealt())[0].layout.annotations]
    assert any(text.startswith("0, 2") and text.endswith("(0)") for text in words)
    named = [int(client) for text in words for client in text.split(" (")[0].split(", ")]
    assert sorted(named) == list(range(6))


def test_a_client_among_clients_of_another_domain_is_named():
    assert "client 5 stands" in tap_map(gan_round(stray=True), dealt())[1]
    assert "warm-up" in tap_map(gan_round(1), dealt(), warm_up=1)[1]


def test_a_client_that_is_gone_is_in_no_chart():
    one = gan_round(gone=[2])
    counts, scores = np.full(6, 150), scores_of(one, SCENARIO)
    for _, _, table in (tap_map(one, dealt()), weight_bars(counts, scores, one.groups, 1.0)):
        assert table["client"].tolist() == [0, 1, 3, 4, 5]
    assert "client 2" not in alpha_lines(counts, scores, one.groups, 1.0)[2]


def test_scores_are_made_from_the_taps_of_the_round():
    one = gan_round()
    assert scores_of(one, SCENARIO) == pytest.approx(
        kld_scores(one.taps.reshape(6, CHANNELS, 9), one.groups)
    )


def test_bars_show_the_weights_beside_fedavg_and_say_which_client_changes_most():
    counts, groups = np.array([100, 100, 300, 100]), np.array([0, 0, 0, 1])
    scores = np.array([0.0, 0.0, 0.7, np.nan])
    chart, sentence, table = weight_bars(counts, scores, groups, 1.0)
    assert table["weight"].to_numpy() == pytest.approx(weights(counts, scores, groups, 1.0))
    assert "client 2 changes most: 0.6 by FedAvg" in sentence
    assert [trace.name for trace in chart.data] == ["FedAvg (alpha = 0)", "alpha = 1"]
    assert chart.data[0].marker.pattern.shape and not chart.data[1].marker.pattern.shape


def test_the_alpha_chart_says_how_near_alpha_one_is_to_fedavg_and_what_doubles_a_weight():
    counts, groups, scores = np.full(2, 100), np.zeros(2, int), np.array([0.0, 0.01])
    _, sentence, table = alpha_lines(counts, scores, groups, 1.0)
    assert "within 0.5 % of FedAvg's" in sentence and "alpha = 69.3" in sentence
    last = table.iloc[-1]
    assert last["client 0"] == pytest.approx(1) and last["client 1"] == pytest.approx(0, abs=1e-6)
    assert "same score" in alpha_lines(counts, [0.0, 0.0], groups, 1.0)[1]


def test_labels_that_a_client_never_held_are_marked_in_words_and_by_a_frame():
    shown = samples_html(outcome().generators, dealt(), SIZES["lab14"])
    assert shown.count("<img alt=") == 50 and shown.count("is gone") == 1
    assert shown.count("never held</small>") == shown.count("dashed") == 2
    assert "client 3, runes: c, a label it never held" in shown and "0 / a" in shown


def test_turning_a_knob_draws_again_and_a_running_view_follows_the_newest_round(capsys):
    view = ClusterView(SCENARIO, dealt())
    for one in outcome().history:
        view.add(one)
    assert view.round.value == 3 and "Round 3" in view.map.sentence
    view.alpha.set(500)
    assert "alpha = 500" in view.bars.sentence
    view.round.set(1)
    assert "Round 1: warm-up" in view.map.sentence
    view.add(gan_round(4))
    assert view.round.value == 1  # the learner looks at an older round


def test_the_view_of_a_finished_run_shows_everything_and_a_run_without_taps_says_why_not(capsys):
    view = cluster_view(outcome(), dealt())
    assert len(view.rounds) == 3 and "<img" in view.samples.value
    with pytest.raises(ValueError, match="'huscf' has no taps to show"):
        cluster_view(outcome(history=[]), dealt())
