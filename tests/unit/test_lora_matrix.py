"""The table of rules against the link says what each rule is known for, on fresh random adapters."""

import pytest

from fedgen_lab.lora import rules
from fedgen_lab.lora.matrix import AIR_NOISE, COLUMNS, compatibility, verdict
from fedgen_lab.scenario import MIXED_RANKS

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module", params=SEEDS)
def table(request):
    return compatibility(request.param)


def works(table, column):
    return set(table.index[table[column] < 1e-4])


def test_every_rule_has_a_row(table):
    assert list(table.index) == list(rules.RULES) and list(table.columns) == list(COLUMNS)


def test_a_sum_is_enough_for_exactly_the_rules_that_are_nothing_but_the_mean(table):
    assert works(table, "secure aggregation") == {
        name for name, rule in rules.RULES.items() if rule.takes_mean
    }


def test_rules_that_average_one_factor_or_stack_or_add_the_residual_are_exact(table):
    assert works(table, "exact") == {"ffa", "rolora", "flora", "fedex", "fed-sb"}


def test_no_rule_for_different_ranks_is_refused_them_and_no_other_takes_them(table):
    assert set(table.index[table["mixed ranks"].notna()]) == set(MIXED_RANKS)
    assert works(table, "mixed ranks") == {"flora"}


def test_noise_in_the_air_hits_a_product_of_two_factors_harder_than_one_factor(table):
    noisy = table["sum over the air"]
    for name in ("ffa", "fedsa", "rolora", "fed-sb"):
        assert noisy[name] == pytest.approx(AIR_NOISE, rel=0.5)
    assert noisy["fedit"] > noisy["ffa"]


def test_rounding_to_8_bits_moves_every_rule_by_about_a_percent(table):
    assert (table["int8"] > 0).all() and (table["int8"] < 0.02).all()


def test_what_a_client_kept_back_fits_unless_the_server_changes_the_basis(table):
    assert works(table, "memory of top-k") == set(rules.RULES) - {"flora", "flexlora"}
    assert verdict(table.loc["flora", "memory of top-k"]) == "not possible"


def test_who_missed_a_round_lacks_something_where_the_server_adds_to_the_base_or_sends_factors_in_turn(
    table,
):
    assert set(rules.RULES) - works(table, "missed round") == {"flora", "fedex", "rolora"}


def test_the_table_is_computed_a_rule_that_looks_at_single_uploads_fails_its_test(monkeypatch):
    class FirstClientOnly(rules.FFALoRA):
        def __call__(self, uploads, weights):
            mean = rules.mean(uploads, [0.5]) if len(uploads) == 1 else uploads[0]
            return rules.Merged(mean, {})

    monkeypatch.setitem(rules.RULES, "ffa", FirstClientOnly())
    changed = compatibility(0)
    assert "ffa" not in works(changed, "secure aggregation") | works(changed, "exact")


def test_the_same_seed_gives_the_same_table():
    assert compatibility(3).equals(compatibility(3)) and not compatibility(3).equals(
        compatibility(4)
    )


def test_entries_in_words():
    assert [verdict(x) for x in (0.0, float("nan"), 0.031, 0.4)] == [
        "yes",
        "not possible",
        "3.1% off",
        "40% off",
    ]
