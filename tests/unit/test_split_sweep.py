"""Claims about the recorded sweep of lab 07: what it runs does not depend on the machine, and its figures are right."""

import json
from dataclasses import replace

import numpy as np
import pytest
from recorders import recorder

from fedgen_lab.recorded import read_sweep
from fedgen_lab.shipped import shipped
from fedgen_lab.split.rivals import fedgan
from fedgen_lab.split.scenario import METHODS

huscf_gan = recorder("huscf_gan")


def test_every_published_scenario_meets_every_method():
    pairs = {(point["scenario"], point["method"]) for point in huscf_gan.POINTS}
    assert len(pairs) == len(huscf_gan.POINTS) == 6 * len(METHODS) and len(huscf_gan.SEEDS) == 3


@pytest.mark.parametrize("profile", ["binder", "laptop", "gpu", "test"])
def test_a_recorded_scenario_is_the_same_on_every_machine(profile, monkeypatch):
    monkeypatch.setenv("FEDGEN_PROFILE", profile)
    scenario = huscf_gan.scenario_of({"scenario": "S4", "method": "mdgan"}, 2)
    assert (scenario.rounds, scenario.iterations, scenario.batch_size, scenario.size) == (
        8,
        40,
        16,
        "lab14",
    )
    assert (scenario.num_clients, scenario.method, scenario.seed, scenario.share) == (
        8,
        "mdgan",
        2,
        "non-iid",
    )
    assert scenario.domain_names == ["digits", "garments"]


def test_megabytes_and_seconds_add_up_round_by_round():
    scenario = replace(
        huscf_gan.scenario_of({"scenario": "S4", "method": "fedgan"}, 0), rounds=1, iterations=1
    )
    trace = fedgan.run(scenario).trace
    on_the_air = huscf_gan._on_the_air(scenario, trace)
    up = trace.frame().query("receiver == -1")["bytes"].sum() / 1e6
    assert on_the_air["megabytes_up"] == [0, pytest.approx(up, abs=1e-4)]
    assert on_the_air["wireless_seconds"][0] == 0 < on_the_air["wireless_seconds"][1]


def _recorded():
    return read_sweep(shipped("sweeps") / "huscf_gan.json")["points"]


def test_what_is_recorded_is_complete_and_finite():
    keys = [(json.dumps(entry["point"], sort_keys=True), entry["seed"]) for entry in _recorded()]
    assert len(keys) == len(set(keys)) == len(huscf_gan.POINTS) * len(huscf_gan.SEEDS)
    for entry in _recorded():
        result, number = entry["result"], len(entry["result"]["domains"])
        assert (
            entry["point"] in huscf_gan.POINTS
            and entry["seed"] in huscf_gan.SEEDS
            and not result["refused"]
        )
        assert (
            np.shape(result["image_score"])
            == np.shape(result["kid"])
            == (number, len(huscf_gan.SCORED))
        )
        assert all(1 <= value <= 10.01 for of in result["image_score"] for value in of)
        assert len(result["accuracy"]) == len(result["ceiling"]) == number
        assert (
            len(result["megabytes_up"])
            == len(result["wireless_seconds"])
            == huscf_gan.LAB["rounds"] + 1
        )


def test_pictures_cross_once_and_models_every_round():
    """Read off the recorded runs: centralised is cheapest, and smashed data is heavier than models at this size."""
    megabytes = {
        (e["point"]["scenario"], e["point"]["method"], e["seed"]): e["result"]["megabytes_up"][-1]
        for e in _recorded()
    }
    for (name, method, seed), up in megabytes.items():
        central = megabytes.get((name, "centralised", seed))
        if method not in ("centralised", "local") and central is not None:
            assert up > 10 * central
        if method == "huscf" and (name, "fedgan", seed) in megabytes:
            assert up > megabytes[name, "fedgan", seed]


def test_one_domain_made_one_cluster_in_five_of_six_runs_as_lab_07_says():
    last = [
        e["result"]["groups"]
        for e in _recorded()
        if e["point"]["method"] == "huscf" and e["point"]["scenario"] in ("S1", "S2")
    ]
    assert [len(set(groups)) for groups in last].count(1) == 5 and len(last) == 6
