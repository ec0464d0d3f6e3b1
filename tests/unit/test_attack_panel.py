"""The attack panel says in words, numbers and pictures what the server read off smashed data."""

import pytest
import torch

from fedgen_lab.dashboards.attack_panel import AttackPanel, attack_panel
from fedgen_lab.privacy.watched import attack_run, watched_run
from fedgen_lab.split.scenario import GanScenario


@pytest.fixture(scope="module")
def panel():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDGEN_RUN", "inline")
        made = AttackPanel("digits", "lab14", seed=0, steps=10)
        made.iterations.set(0)
        made.start()
    return made


def test_an_attack_shows_each_label_once_above_what_the_server_made_of_it(panel):
    assert panel.job.state == "done", panel.job.message
    assert panel.shown.value.count('alt="real, never sent: ') == 10
    assert panel.shown.value.count('alt="rebuilt by the server: ') == 10


def test_the_sentence_says_what_the_numbers_say(panel):
    leak = panel.leak
    assert panel.status.sentence.startswith(
        "1 block before the cut, no protection: the server reads "
    )
    assert (
        f"{leak.mse:.3f}" in panel.status.sentence
        and f"{leak.baseline_mse:.3f}" in panel.status.sentence
    )
    assert panel.frame()["error"].tolist() == [leak.mse]


def test_every_attack_adds_a_row_with_its_knobs(panel, monkeypatch):
    monkeypatch.setenv("FEDGEN_RUN", "inline")
    before = len(panel.rows)
    panel.depth.set(2), panel.noise.set(1.0), panel.iterations.set(1)
    panel.bits.value, panel.auxiliary.value, panel.steps = 8, "letters", 2
    panel.start()
    assert len(panel.rows) == before + 1
    row = panel.rows[-1]
    assert (row["depth"], row["noise"], row["bits"], row["iterations"]) == (2, 1.0, 8, 1)
    assert "2 blocks before the cut, noise 1 and 8 bits" in panel.status.sentence
    assert panel.scenario().cuts == "1010"


def test_a_penalty_that_had_no_time_to_act_is_said_so(panel, monkeypatch):
    monkeypatch.setenv("FEDGEN_RUN", "inline")
    panel.decorrelation.set(1.0), panel.iterations.set(0)
    panel.steps = 1
    panel.start()
    assert "the penalty has changed nothing" in panel.status.sentence


def test_stop_before_the_attack_leaves_no_row(monkeypatch):
    monkeypatch.setenv("FEDGEN_RUN", "inline")
    panel = AttackPanel("digits", "lab14", seed=0, steps=2)
    monkeypatch.setattr(panel.job, "should_stop", lambda: True)
    panel.start()
    assert panel.rows == [] and panel.job.state == "cancelled"


def test_a_half_taught_attacker_is_not_shown_as_a_protection_that_works(monkeypatch):
    monkeypatch.setenv("FEDGEN_RUN", "inline")
    panel = AttackPanel("digits", "lab14", seed=0, steps=2)
    panel.iterations.set(0)
    report = panel.job.report
    monkeypatch.setattr(
        panel.job, "report", lambda said: panel.stop() if "step 1" in said else report(said)
    )
    panel.start()
    assert panel.rows == [] and panel.leak is None and panel.shown.value == ""
    assert "half taught proves nothing" in panel.status.sentence


def test_inline_the_panel_shows_one_attack(monkeypatch):
    monkeypatch.setenv("FEDGEN_RUN", "inline")
    made = attack_panel(domain="garments", steps=1)
    assert len(made.rows) == 1 and "T-shirt, read as" in made.shown.value


def test_the_server_knows_the_heads_it_averaged():
    scenario = GanScenario(
        num_clients=2, rounds=1, iterations=1, cuts="0000", pictures_per_client=40, batch_size=8
    )
    fresh, trained = watched_run(scenario, fresh=True), watched_run(scenario, client=1)
    first, last = (dict(watched.discriminator.named_parameters()) for watched in (fresh, trained))
    assert not any(torch.equal(first[name], last[name]) for name in first)
    own = {name: tensor for name, tensor in trained.generators[1].items() if name.startswith("0.")}
    assert all(
        torch.equal(trained.generator.state_dict()[name], tensor) for name, tensor in own.items()
    )


def test_an_attacker_with_the_clients_own_domain_is_refused():
    scenario = GanScenario(num_clients=2, cuts="0000", pictures_per_client=40)
    watched = watched_run(scenario, fresh=True)
    with pytest.raises(ValueError, match="must not know the client's own domain 'digits'"):
        attack_run(watched, scenario, auxiliary="digits")
    with pytest.raises(ValueError, match="Say which depth to attack"):
        attack_run(watched, GanScenario(num_clients=2), auxiliary="runes")
    with pytest.raises(ValueError, match='Only the method "huscf" sends smashed data'):
        watched_run(GanScenario(method="fedgan"))
