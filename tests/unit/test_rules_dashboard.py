"""Claims about lab 04's dashboard: its knobs make the scenario they name, and its charts say what the numbers say."""

import math

import pytest
import torch

from fedgen_lab.dashboards.lora_live import loss_chart
from fedgen_lab.dashboards.rules import RuleRun, RulesDashboard, bias_chart, directions_chart
from fedgen_lab.lora.export import provenance_of
from fedgen_lab.scenario import MIXED_RANKS, RULES, Scenario


@pytest.fixture
def dashboard():
    return RulesDashboard(Scenario.for_profile(skew=1.0))


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_and_every_rank_it_allows_makes_a_scenario(dashboard, rule):
    dashboard.rule.value = rule
    assert dashboard.ranks.disabled == (rule not in MIXED_RANKS)
    for _, ranks in dashboard.ranks.options if rule in MIXED_RANKS else ():
        dashboard.ranks.value = ranks
        assert dashboard.scenario().ranks == ranks
    assert dashboard.scenario().rule == rule


def test_a_rule_with_one_rank_takes_mixed_ranks_back(dashboard):
    dashboard.rule.value, dashboard.ranks.value = "flora", "2,4,8"
    dashboard.rule.value = "fedit"
    assert dashboard.scenario().ranks == "" and "flexlora" in dashboard.estimate.value


def test_knobs_at_both_ends_are_scenarios(dashboard):
    for knob in dashboard.knobs:
        for end in (knob.number.min, knob.number.max):
            knob.set(end)
            assert isinstance(dashboard.scenario(), Scenario)


def test_the_legend_of_the_losses_says_the_rule_even_of_a_single_run():
    runs = [RuleRun(Scenario(rule=rule, seed=seed)) for rule, seed in (("flora", 0), ("ffa", 1))]
    for run in runs:
        run.losses = {0: 1.0}
    for number, names in ((1, ["live, flora"]), (2, ["live, flora, seed 0", "live, ffa, seed 1"])):
        chart, _, _ = loss_chart(runs[:number], None, "rounds", 5e6, 4, 1.0)
        assert [line.name for line in chart.data] == names


def test_the_charts_say_what_was_measured():
    run = RuleRun(Scenario(rule="flexlora", ranks="2,8"))
    assert bias_chart([])[2] is None and directions_chart([])[2] is None
    run.bias, run.energy = {"down.to_q": 0.1, "up.to_k": 0.3}, (0.5, 0.9, 1.0)
    _, words, table = bias_chart([run])
    assert "20%" in words and "30%" in words and len(table) == 2
    _, words, table = directions_chart([run])
    assert "90%" in words and list(table["share"]) == [0.5, 0.9, 1.0]
    assert "flexlora" in run.name and "2,8" in run.name


def test_a_download_is_offered_for_the_newest_adapter_alone_and_refused_in_words(dashboard):
    def run(b):
        made = RuleRun(Scenario(rule="flexlora"))
        names = {factor: f"mid.to_q.lora_{factor}.default.weight" for factor in "AB"}
        made.adapter = {names["A"]: torch.ones(2, 3), names["B"]: torch.full((3, 2), b)}
        made.provenance = provenance_of(made.scenario, 3)
        return made

    take_home = dashboard.take_home
    assert take_home.button.disabled
    for b, words in ((0.0, "changes nothing"), (math.nan, "holds NaN"), (1.0, "<a download=")):
        dashboard.panel.runs.append(run(b))
        take_home.button.click()
        assert words in take_home.links.value and not take_home.button.disabled
    dashboard.panel.runs.append(RuleRun(Scenario()))
    take_home.button.click()
    assert take_home.links.value == "" and take_home.button.disabled
