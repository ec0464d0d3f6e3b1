"""The dashboard of lab 09: what it says of a run, what its chart shows, pictures beside their originals."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from recorders import recorder

from fedgen_lab.dashboards import copying as dashboard
from fedgen_lab.dashboards.copying import (
    AXES,
    KINDS,
    CopyingDashboard,
    CopyingRun,
    copies_chart,
    originals_view,
)
from fedgen_lab.memorization import sweep_copying
from fedgen_lab.memorization.making import Copying, private_pictures
from fedgen_lab.memorization.sweep_copying import (
    DRAWN,
    LESSON,
    NUMBERS,
    Judged,
    judge_copies,
    recorded_copying,
)
from fedgen_lab.privacy.membership import judge_scores

recorder_of_copying = recorder("copying")
POINTS, SEEDS, PIXELS = (
    recorder_of_copying.POINTS,
    recorder_of_copying.SEEDS,
    recorder_of_copying.PIXELS,
)


@pytest.fixture(autouse=True)
def inline(monkeypatch):
    monkeypatch.setenv("FEDGEN_RUN", "inline")


def judged(copied=0.75, others=0.0, ratios=(0.9, 0.1, 0.5)):
    drawn, training = torch.zeros(len(ratios), 3, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    nearest = np.arange(len(ratios)) % 2
    return Judged(3, copied, others, 0.2, 0.97, 0.5, drawn, np.array(ratios), training, nearest)


def recording():
    """A row for every point and seed; whoever repeats more copies more."""
    return pd.DataFrame(
        [
            {
                "model": "lora",
                "seed": seed,
                "copied": min(1, point["times"] / 16),
                "others": 0.0,
                "ratio": 0.5,
                "auc": 0.9,
                "tpr": 0,
            }
            | point
            for point in POINTS
            for seed in SEEDS
        ]
    )


def test_a_run_says_how_many_drawings_are_copies_and_how_well_members_are_told():
    run = CopyingRun(Copying())
    assert not run.computed and run.strip() == "" and "half trained" in run.summary()
    run.judged = judged()
    assert "of 3 of the 4 pictures that were there 16 times" in run.summary()
    assert "75% are copies, for others 0%" in run.summary() and "AUC 0.97" in run.summary()
    run.judged = judged(others=None)
    assert "others" not in run.summary()


def test_the_strip_has_the_likest_copy_first():
    run = CopyingRun(Copying())
    run.judged = judged()
    strip = run.strip()
    assert strip.index("ratio 0.10") < strip.index("ratio 0.50") < strip.index("ratio 0.90")
    assert strip.count('alt="nearest training picture: ratio') == 3


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_chart_shows_what_was_recorded_along_every_knob(kind, axis):
    chart, sentence, table = copies_chart(recording(), [], kind, axis)
    assert len(chart.data) == 1 and sentence.startswith(f"Recorded by {axis}")
    assert len(table) == len(SEEDS) * len(chart.data[0].x) and table[AXES[axis]].nunique() >= 2


def test_along_a_knob_nothing_else_differs_from_the_lesson():
    along = dashboard.along_knob(recording(), "times")
    assert sorted(along["times"].unique()) == [1, 2, 4, 8, 16]
    assert all((along[name] == value).all() for name, value in LESSON.items() if name != "times")
    few = dashboard.along_knob(recording(), "pictures")
    assert sorted(few["pictures"].unique()) == [8, 32, 512] and (few["times"] == 1).all()


def test_live_runs_are_marked_on_the_chart_and_a_bare_chart_says_so():
    run = CopyingRun(Copying(times=9))
    run.judged = judged()
    chart, sentence, _ = copies_chart(
        recording(), [run, CopyingRun(Copying())], "copies", "repetitions"
    )
    assert (
        list(chart.data[-1].x) == [9]
        and list(chart.data[-1].y) == [0.75]
        and "1 live, marked by a star" in sentence
    )
    _, sentence, table = copies_chart(pd.DataFrame(), [], "copies", "rank")
    assert sentence.startswith("Nothing is recorded along rank") and table is None


def test_the_knobs_describe_what_is_trained(monkeypatch):
    asked = []
    monkeypatch.setattr(dashboard, "run_copying", lambda run, job: asked.append(run.copying))
    board = CopyingDashboard(Copying(), recording())
    (
        board.times.set(3),
        board.pictures.set(8),
        board.steps.set(20),
        board.rank.set(2),
        board.seed.set(5),
    )
    board.noise.set(0.5), board.canaries.set(2)
    board.captions.value = False
    board.panel.start()
    assert asked == [
        Copying(
            pictures=8,
            times=3,
            steps=20,
            rank=2,
            unique_captions=False,
            canaries=2,
            clip=1.0,
            noise_multiplier=0.5,
            seed=5,
        )
    ]
    board.noise.set(0.0)
    assert board.copying().clip == 0


def test_stopped_before_it_has_drawn_a_run_is_not_judged(monkeypatch):
    from fedgen_lab.memorization import making

    def train(copying, on_step, should_stop):
        on_step(1, copying.steps, 0.5)
        board.panel.stop()

    monkeypatch.setattr(making, "train_copying", train)
    board = CopyingDashboard(Copying(), recording())
    board.panel.start()
    assert board.panel.job.state == "cancelled" and not board.panel.latest().computed
    assert board.panel.status.sentence.startswith("Stopped: nothing was drawn yet")


def test_pictures_stand_beside_their_nearest_training_picture_sorted_by_the_chosen_score():
    generator = torch.Generator().manual_seed(0)
    training = torch.rand(20, 1, 8, 8, generator=generator) * 2 - 1
    generated = torch.cat([training[[7, 3]], torch.rand(10, 1, 8, 8, generator=generator) * 2 - 1])
    view = originals_view(
        generated, training, {"first": -np.arange(12.0), "last": np.arange(12.0)}, match="plain"
    )
    assert view.rows[:2].tolist() == [7, 3] and view.order().tolist() == list(range(12))
    view.score.value = "last"
    assert view.order()[0] == 11 and "The likest".lower() in view.status.sentence
    view.page.set(2)
    assert "pictures 9 to 12 of 12" in view.status.sentence
    with pytest.raises(ValueError, match="The score 'short' has 3 numbers for 12 pictures"):
        originals_view(generated, training, {"short": np.zeros(3)})


def test_the_race_has_a_row_and_a_curve_for_each_detector():
    rng = np.random.default_rng(0)
    good, bad = (judge_scores(rng.normal(shift, 1, 300), rng.normal(0, 1, 300)) for shift in (4, 0))
    chart, sentence, table = dashboard.roc_chart({"coin": bad, "eye": good})
    assert table["detector"].tolist() == ["eye", "coin"] and len(chart.data) == 4
    assert sentence.startswith("At 1 % false alarms eye finds") and table["AUC"].tolist() == [
        good.auc,
        bad.auc,
    ]


def test_a_model_that_returns_the_watched_pictures_is_judged_a_copier():
    copying = Copying(pictures=8, duplicated=4)
    private = private_pictures(copying)

    def judge(drawn_from, monkeypatch):
        def draw(trained, rows, seed, on_step):
            on_step()
            return drawn_from[rows], rows

        monkeypatch.setattr(sweep_copying, "draw_copies", draw)
        monkeypatch.setattr(
            sweep_copying, "membership", lambda *_: SimpleNamespace(auc=0.5, tpr=0.0)
        )
        return judge_copies(SimpleNamespace(copying=copying, private=private, model=None))

    with pytest.MonkeyPatch.context() as patch:
        copier = judge(private.pictures.as_tensor(), patch)
        assert (
            copier.copied == copier.others == 1
            and copier.captions == 4
            and len(copier.drawn) == DRAWN + DRAWN // 2
        )
        honest = judge(private_pictures(Copying(pictures=8, seed=1)).pictures.as_tensor(), patch)
        assert honest.copied == honest.others == 0
        other = judge(private.held_out.as_tensor(), patch)
        assert other.copied == other.others == 0, (
            "a copy of a picture that was not trained on is none"
        )


def test_canaries_are_neither_drawn_nor_counted_among_the_private_pictures(monkeypatch):
    copying, asked = Copying(pictures=6, duplicated=4, canaries=3), []
    private = private_pictures(copying)

    def draw(trained, rows, seed, on_step):
        asked.extend(rows)
        return private.pictures.as_tensor()[rows], rows

    def attack(model, members, others, name):
        asked.append(len(members) - 1)
        return SimpleNamespace(auc=0.5, tpr=0.0)

    monkeypatch.setattr(sweep_copying, "draw_copies", draw)
    monkeypatch.setattr(sweep_copying, "membership", attack)
    found = judge_copies(SimpleNamespace(copying=copying, private=private, model=None))
    assert set(asked) == set(range(6)) and len(found.training) == 6 and found.others == 1


def test_how_often_a_picture_was_seen_follows_from_the_knobs(monkeypatch, tmp_path):
    entries = [
        {"point": point, "seed": 0, "result": dict.fromkeys(NUMBERS, 0.5)} for point in POINTS
    ]
    (tmp_path / "copying.json").write_text(
        json.dumps({"name": "copying", "made": {}, "points": entries}), encoding="utf-8"
    )
    monkeypatch.setattr("fedgen_lab.recorded.shipped", lambda name: tmp_path)
    seen = recorded_copying()["seen"].round().tolist()
    assert seen[0] == 974 and seen[1] == 175  # 350 x 16 pictures are shown, of 92 in all and of 32
    (tmp_path / "copying.json").unlink()
    assert recorded_copying().empty and "seen" in recorded_copying()


def test_what_is_recorded_belongs_to_the_sweep_and_no_run_is_there_twice():
    recorded = recorded_copying()
    if recorded.empty:
        pytest.skip("nothing is recorded yet")
    knobs = ["model", *LESSON]
    assert not recorded.duplicated([*knobs, "seed"]).any()
    assert all(
        row in [{"model": "lora"} | point for point in POINTS]
        for row in recorded[knobs].to_dict("records")
    )


def test_what_was_recorded_bears_out_the_lab():
    recorded = recorded_copying()

    def mean(**changes):
        wanted = {"model": "lora"} | LESSON | changes
        rows = recorded[
            np.logical_and.reduce([recorded[name] == value for name, value in wanted.items()])
        ]
        return rows[["copied", "others", "auc"]].astype(float).mean()

    lesson, once, many, few = (
        mean(),
        mean(times=1),
        mean(times=1, pictures=512),
        mean(times=1, pictures=8),
    )
    assert lesson["copied"] > 0.9 and lesson["others"] == 0, (
        "the repeated pictures come back, no others"
    )
    assert once["copied"] == 0 and few["copied"] == 1, "few pictures need no repetition"
    assert once["auc"] > 0.9, "no copies is not no leakage"
    assert many["copied"] == 0 and many["auc"] < 0.6, "among many pictures there is nothing to tell"
    assert mean(steps=100)["copied"] < 0.1 < mean(times=4)["copied"] < 0.5 < lesson["copied"]
    assert mean(rank=4)["copied"] < lesson["copied"]
    private = mean(clip=1.0, noise_multiplier=0.5)
    assert private["copied"] == 0 and private["auc"] < 0.65, "DP noise stops copies and the attack"
    pixels, many = mean(**PIXELS), mean(**PIXELS | {"times": 1, "pictures": 512})
    assert pixels["copied"] > 0.9 and pixels["others"] < 0.3 and many["copied"] == 0, (
        "a pixel model copies as well"
    )
