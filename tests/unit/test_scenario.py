"""Claims about scenarios: they refuse nonsense by name, and survive the journey through a Flower run config."""

from dataclasses import replace

import pytest

from fedgen_lab.scenario import Scenario, profile


def test_the_learning_rate_follows_the_base_and_the_method():
    assert Scenario(learning_rate=0.01, base_model="any").rate == 0.01
    tiny, real = Scenario(), Scenario(base_model="owner/name")
    assert real.rate == 1e-4 and tiny.rate > 10 * real.rate
    assert replace(tiny, method="full").rate < tiny.rate / 2
    assert replace(tiny, base_model="owner/name").rate == real.rate


@pytest.mark.parametrize(
    "knob, value",
    [
        ("num_clients", 0),
        ("num_clients", 2.5),
        ("num_clients", float("nan")),
        ("rounds", True),
        ("skew", 1.7),
        ("skew", float("nan")),
        ("bandwidth_hz", 0),
        ("bandwidth_hz", float("inf")),
        ("learning_rate", -1e-3),
        ("dealing", "by hand"),
        ("ratio", 0.5),
        ("dirichlet_alpha", 0),
        ("targets", "convolutions"),
        ("method", "magic"),
        ("seed", -1),
        ("local_steps", -3),
        ("rule", "magic"),
        ("ranks", "2,x"),
        ("ranks", "0,4"),
        ("ranks", "2,4"),
        ("lora_alpha", -1.0),
        ("upload", "zip"),
        ("keep", 0.0),
        ("select", "best"),
        ("fraction", 1.5),
        ("deadline_seconds", float("nan")),
        ("buffer", 9),
        ("clip", -1.0),
        ("defence", "hope"),
        ("attackers", 0.5),
        ("secure", 2),
    ],
)
def test_a_senseless_knob_is_refused_by_name_and_value(knob, value):
    with pytest.raises(ValueError, match=knob) as error:
        Scenario(**{knob: value})
    assert repr(value) in str(error.value)


def test_a_scenario_survives_the_journey_through_a_run_config():
    scenario = Scenario(num_clients=7, skew=0.25, pictures="some/folder", method="full", seed=3)
    config = scenario.to_run_config()
    assert all(
        "_" not in key and isinstance(value, str | int | float) for key, value in config.items()
    )
    assert Scenario.from_run_config({**config, "save-to": "x", "partition-id": 1}) == scenario


def test_the_test_profile_is_smaller_than_the_lesson(monkeypatch):
    monkeypatch.setenv("FEDGEN_PROFILE", "test")
    small = Scenario.for_profile(num_clients=3)
    monkeypatch.delenv("FEDGEN_PROFILE")
    assert (
        small.num_clients == 3
        and small.rounds * small.local_steps < Scenario.for_profile().local_steps
    )
    assert Scenario.for_profile() == Scenario(rounds=3)


def test_an_unknown_profile_is_named(monkeypatch):
    monkeypatch.setenv("FEDGEN_PROFILE", "mainframe")
    with pytest.raises(ValueError, match="mainframe"):
        profile()


def test_ranks_are_dealt_in_turn():
    assert Scenario(num_clients=4, rule="flora", ranks="2,4,8").client_ranks == (2, 4, 8, 2)
    assert Scenario(num_clients=3, rank=5).client_ranks == (5, 5, 5)
    assert Scenario(num_clients=2, ranks="6").client_ranks == (6, 6)
