"""Recorded points computed again, from each sweep that can be: `make check-recordings`, once a week.

Processors round differently, and training carries that on. So bytes agree to a thousandth, a loss to a hundredth, a
score of few pictures to a fifth; a share is allowed one picture more or less.
"""

from dataclasses import replace

import pytest
from recorders import recorder

from fedgen_lab.recorded import read_sweep
from fedgen_lab.shipped import shipped

BYTES, LOSS, SCORE = 1e-3, 0.01, 0.2  # relative
ONE_PICTURE = 0.05  # of 24, a little more than one


def recorded(name, seed=0, **point):
    """The first recorded run of that sweep and seed whose point holds these values."""
    entries = read_sweep(shipped("sweeps") / f"{name}.json")["points"]
    return next(e for e in entries if e["seed"] == seed and point.items() <= e["point"].items())


@pytest.mark.parametrize("method", ["lora", "local_only"])
def test_the_first_round_of_federated_lora(method):
    """Rounds do not know how many will follow, so the first round of a fresh run is the first of the recorded one."""
    from fedgen_lab.lora.baselines import run_local_only
    from fedgen_lab.lora.federated import run_federated

    entry = recorded("federated_lora", method=method, skew=1.0)
    scenario = replace(
        recorder("federated_lora").scenario_of(entry["point"], entry["seed"]), rounds=1
    )
    outcome = (run_federated if method == "lora" else run_local_only)(scenario)
    assert list(outcome.rounds["loss"]) == pytest.approx(entry["result"]["loss"][:2], rel=LOSS)
    if method == "lora":
        up = outcome.trace.frame().query("receiver == -1")["bytes"].sum()
        assert up / 1e6 == pytest.approx(entry["result"]["megabytes_up"][1], rel=BYTES)


def test_a_defence_of_uploads():
    entry = recorded("what_leaks", defence="clip")
    result = recorder("what_leaks").measure(entry["point"], entry["seed"])
    assert result == pytest.approx(entry["result"], rel=LOSS, abs=ONE_PICTURE)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_secret_pictures_behind_smashed_data(seed):
    from fedgen_lab.split.deal import deal

    smashed_data = recorder("smashed_data")
    secret = deal(smashed_data.scenario_of(smashed_data.POINTS[0], seed)).pictures[0][:128]
    baseline = float((secret - secret.mean(0)).square().mean())
    assert baseline == pytest.approx(
        recorded("smashed_data", seed)["result"]["baseline_mse"], abs=1e-4
    )


def test_what_fedgan_sends():
    """It does not depend on how long FedGAN trains, so one short round stands for a recorded one."""
    from fedgen_lab.split.rivals import fedgan

    entry = recorded("huscf_gan", scenario="S4", method="fedgan")
    scenario = recorder("huscf_gan").scenario_of(entry["point"], entry["seed"])
    trace = fedgan.run(replace(scenario, rounds=1, iterations=1)).trace
    up = trace.frame().query("receiver == -1")["bytes"].sum() / 1e6
    assert up == pytest.approx(entry["result"]["megabytes_up"][1], rel=BYTES)


def test_a_run_of_peers():
    """How many models there are follows from the scenario alone; how good they are, with whom is chosen, need not."""
    peers_attacks = recorder("peers_attacks")
    entry = recorded("peers_attacks", **peers_attacks.PLAIN)
    result = peers_attacks.measure(entry["point"], entry["seed"])
    assert result["models"] == entry["result"]["models"]
    assert result["kid"] == pytest.approx(entry["result"]["kid"], rel=SCORE)
