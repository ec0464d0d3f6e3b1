"""Who holds what in an experiment with GANs: client i holds domain i mod D, and the published scenarios at any size."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fedgen_lab.pictures.domains import load_domain
from fedgen_lab.split.deal import DIGITS, SCENARIOS, SCHEMES, deal, deal_to, published_scenario
from fedgen_lab.split.scenario import GanScenario

SETS = Path(__file__).parents[3] / "shared" / "data"
BOTH = f"mnist:{SETS / 'mnist'},fashion:{SETS / 'fashion-mnist'}"
has_both = pytest.mark.skipif(
    not (SETS / "mnist").exists() or not (SETS / "fashion-mnist").exists(),
    reason="../shared/data/mnist or ../shared/data/fashion-mnist is absent",
)


def digits(**changes):
    return deal(
        GanScenario(**{"domains": "digits", "num_clients": 4, "pictures_per_client": 100} | changes)
    )


def rows_of(pictures):
    return [each.numpy().tobytes() for each in pictures]


def test_client_i_holds_pictures_of_domain_i_mod_d():
    dealt = deal(GanScenario(num_clients=5, domains="digits, letters", pictures_per_client=30))
    assert dealt.domains == ["digits", "letters"] and dealt.domain_of.tolist() == [0, 1, 0, 1, 0]
    real = set(rows_of(load_domain("digits", side=14).as_tensor()))
    for client, pictures in enumerate(dealt.pictures):
        assert tuple(pictures.shape) == (30, 1, 14, 14) and pictures.dtype == torch.float32
        assert -1 <= pictures.min() and pictures.max() <= 1
        assert all((row in real) == (client % 2 == 0) for row in rows_of(pictures))


@pytest.mark.parametrize("share", ["skew", *SCHEMES])
def test_nobody_holds_a_held_out_picture_and_no_two_clients_the_same(share):
    dealt = digits(share=share, pictures_per_client=100)
    assert len(dealt.held_out) == 1 and len(dealt.held_out[0]) == 359
    held = [row for pictures in dealt.pictures for row in rows_of(pictures)]
    assert len(set(held)) == len(held)
    assert not set(held) & set(rows_of(dealt.held_out[0].as_tensor()))


@pytest.mark.parametrize("share", ["skew", *SCHEMES])
def test_the_seed_decides_who_holds_what(share):
    first, again, other = (
        digits(share=share, seed=seed, batch_size=batch) for seed, batch in ((0, 4), (0, 8), (1, 4))
    )
    assert all(torch.equal(a, b) for a, b in zip(first.pictures, again.pictures, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.labels, other.labels, strict=True))


def test_a_device_alone_deals_itself_what_it_holds():
    scenario = GanScenario(
        num_clients=5, domains="digits,letters", pictures_per_client=30, skew=0.5
    )
    dealt = deal(scenario)
    for client in range(5):
        pictures, labels = deal_to(scenario, client)
        assert torch.equal(pictures, dealt.pictures[client]) and torch.equal(
            labels, dealt.labels[client]
        )
    with pytest.raises(ValueError, match=r"client must lie in 0\.\.4; got 5"):
        deal_to(scenario, 5)


def test_counts_say_how_many_pictures_of_each_label_a_client_holds():
    dealt = digits(share="non-iid")
    assert dealt.counts.shape == (4, 10)
    assert (dealt.counts.index.name, dealt.counts.columns.name) == ("client", "label")
    for client, labels in enumerate(dealt.labels):
        assert dealt.counts.loc[client].tolist() == labels.bincount(minlength=10).tolist()


def test_the_skew_knob_goes_from_all_labels_alike_to_one_each():
    assert (digits(skew=0.0).counts == 10).all(axis=None)
    for client, row in digits(skew=1.0).counts.iterrows():
        assert row[client] == 100 == row.sum()


def test_drawn_domains_have_enough_of_every_label_for_the_strongest_skew():
    dealt = deal(GanScenario(domains="garments", num_clients=12, pictures_per_client=40, skew=1.0))
    held = [row for pictures in dealt.pictures for row in rows_of(pictures)]
    assert len(set(held)) == len(held) == 480


@pytest.mark.parametrize("share", ["skew", "iid"])
def test_unequal_clients_hold_ten_times_as_much_at_the_end_and_as_many_in_all(share):
    sizes = digits(share=share, unequal=True, num_clients=8, pictures_per_client=60).counts.sum(
        axis=1
    )
    assert sizes.is_monotonic_increasing and 8 < sizes[7] / sizes[0] < 12
    assert abs(sizes.sum() - 480) <= 8


def test_unequal_clients_keep_the_mixture_that_the_skew_asks_for():
    counts = digits(skew=0.5, unequal=True, pictures_per_client=100).counts
    own = np.array([counts.loc[client, client] / counts.loc[client].sum() for client in range(4)])
    assert ((own > 0.45) & (own < 0.65)).all()


@pytest.mark.parametrize(
    "name, left_out, parts",
    [
        ("S1", {0}, {1}),
        ("S2", {0, 2, 3, 4}, {1, 2 / 3}),
        ("S3", {0}, {1}),
        ("S4", {0, 2, 3, 4}, {1, 2 / 3}),
        ("S5", {2, 3}, {1, 1 / 3, 1 / 6}),
        ("S6", {0}, {1}),
    ],
    ids=list(SCENARIOS),
)
def test_published_scenarios_leave_labels_out_as_the_original_does(name, left_out, parts):
    share, domains, *_ = SCENARIOS[name]
    names = ",".join(
        ["digits"] * domains
    )  # one real domain several times: quick to read, and large enough
    dealt = deal(published_scenario(name, 12, domains=names, pictures_per_client=100))
    missing, sizes = (dealt.counts == 0).sum(axis=1), dealt.counts.sum(axis=1)
    assert set(missing[sizes > 40]) <= left_out  # one with few pictures may miss more by chance
    assert sizes.max() <= 100
    if domains > 1:  # there is more than a client may hold, as in the original
        assert set(sizes) <= {round(part * 100) for part in parts}
    assert (sizes.nunique() > 1) == (name in ("S2", "S4", "S5"))


def test_the_shares_of_the_original_add_up_to_one():
    for left_out, parts in SCHEMES.values():
        assert sum(left_out.values()) == pytest.approx(1) and sum(parts.values()) == pytest.approx(
            1
        )


@pytest.mark.parametrize("name", SCENARIOS)
def test_published_scenarios_have_the_original_size_unless_a_number_of_clients_is_given(name):
    share, domains, clients, each = SCENARIOS[name]
    whole = published_scenario(name, domains=",".join(["notmnist:x"] * domains))
    assert (whole.num_clients, whole.pictures_per_client, whole.share) == (clients, each, share)
    assert (whole.size, whole.batch_size, whole.rounds, whole.learning_rate) == (
        "reference",
        64,
        50,
        2e-4,
    )
    assert whole.iterations == 5 * (12 if name == "S6" else 10)
    lesson = published_scenario(name, 8, rounds=2)
    assert (lesson.num_clients, lesson.size, lesson.rounds) == (8, "lab14", 2)
    assert lesson.domain_names == ["digits", "garments", "runes", "letters"][:domains]


def test_offline_scenarios_of_the_original_size_share_out_the_digits_that_there_are():
    assert len(load_domain("digits")) == DIGITS
    scenario = published_scenario("S1", size="lab14")
    assert scenario.num_clients == 100 and scenario.pictures_per_client == 14
    assert (deal(scenario).counts.sum(axis=1) == 14).all()


def test_four_domains_run_offline():
    dealt = deal(published_scenario("S6", 8, pictures_per_client=20))
    assert dealt.domain_of.tolist() == [0, 1, 2, 3] * 2 and len(dealt.held_out) == 4
    assert [tuple(held.images.shape[1:]) for held in dealt.held_out] == [(1, 14, 14)] * 4
    assert (dealt.counts.sum(axis=1) == 20).all()


@has_both
def test_scenario_s5_of_the_original_size_on_its_own_data():
    scenario = published_scenario("S5", domains=BOTH, size="lab14")
    dealt = deal(scenario)
    sizes, missing = dealt.counts.sum(axis=1), (dealt.counts == 0).sum(axis=1)
    assert set(sizes) == {600, 200, 100} and set(missing) == {2, 3}
    assert 35 <= (sizes == 600).sum() <= 65 and 45 <= (missing == 3).sum() <= 75
    assert [len(held) for held in dealt.held_out] == [10_000, 10_000]  # their own test sets


def test_colour_nets_take_sprites_by_style():
    dealt = deal(
        GanScenario(domains="sprites:glowing", num_clients=1, pictures_per_client=20, size="colour")
    )
    assert (
        tuple(dealt.pictures[0].shape)
        == (20, 3, 32, 32)
        == (20, *dealt.held_out[0].images.shape[1:])
    )


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"domains": "digits", "size": "colour"},
            "'digits' are grey; nets of size 'colour' take .* that are in colour",
        ),
        (
            {"domains": "sprites:solid", "num_clients": 1},
            "are in colour; nets of size 'lab14' take pictures that are grey",
        ),
        (
            {"domains": "digits,letters", "num_clients": 1},
            "2 domains need at least as many clients; num_clients is 1",
        ),
        ({"domains": " , "}, "domains must name at least one domain"),
        ({"domains": "digits,numbers"}, "no domain called 'numbers'"),
        (
            {"domains": "digits", "share": "iid", "pictures_per_client": 500},
            "1,438 pictures; this scenario deals 4,000",
        ),
        (
            {"domains": "digits", "pictures_per_client": 5000},
            "deals 5,000 of them. Lower pictures_per_client",
        ),
    ],
    ids=[
        "grey for colour",
        "colour for grey",
        "few clients",
        "no domain",
        "unknown",
        "iid too few",
        "skew too few",
    ],
)
def test_what_cannot_be_dealt_is_said_in_a_sentence(changes, message):
    with pytest.raises(ValueError, match=message):
        deal(GanScenario(**changes))


def test_a_scenario_that_was_never_published_is_refused():
    with pytest.raises(ValueError, match="no published scenario 'S7'. Choose from: S1, S2"):
        published_scenario("S7")


def test_a_domain_with_too_few_pictures_to_judge_by_is_named_before_anybody_trains(tmp_path):
    labels = np.arange(20, dtype=np.uint8) % 10  # two of each: a fifth of that rounds to none
    for name, array in (("images-idx3", np.zeros((20, 28, 28), np.uint8)), ("labels-idx1", labels)):
        head = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
        (tmp_path / f"train-{name}-ubyte").write_bytes(head + array.tobytes())
    with pytest.raises(
        ValueError, match=f"held-out part of 'idx:{tmp_path}' has 0 pictures; scores need 7 or more"
    ):
        deal(GanScenario(num_clients=2, domains=f"digits,idx:{tmp_path}", pictures_per_client=10))


@pytest.mark.parametrize(
    "knob, value",
    [
        ("num_clients", 4.0),
        ("num_clients", "4"),
        ("num_clients", None),
        ("rounds", float("inf")),
        ("seed", 1.0),
        ("seed", None),
        ("num_clusters", 2.0),
        ("kld_alpha", "1"),
        ("noise", None),
        ("skew", "0.5"),
        ("bandwidth_hz", None),
        ("learning_rate", "1e-3"),
        ("domains", None),
        ("cuts", None),
    ],
)
def test_a_knob_of_another_type_is_refused_by_name(knob, value):
    with pytest.raises(ValueError, match=f"{knob} must .*; got {value!r}"):
        GanScenario(**{knob: value})


def test_whole_numbers_of_numpy_and_spaces_between_cuts_are_taken():
    scenario = GanScenario(
        num_clients=np.int64(2), seed=np.int32(1), kld_alpha=np.float32(1), cuts="0110, 1111"
    )
    assert scenario.num_clients == 2 and scenario.cuts == "0110, 1111"
