"""Who holds what: every split serves every client, and the skew knob turns one way."""

import numpy as np
import pandas as pd
import pytest

from fedgen_lab.partition import (
    by_skew,
    concept_counts,
    dirichlet,
    iid,
    mean_js_distance,
    pathological,
    unequal,
)


def table(*sizes):
    """Pictures of len(sizes) concepts, sizes[i] of concept i, in mixed order."""
    concepts = np.repeat([f"concept {i:02d}" for i in range(len(sizes))], sizes)
    return pd.DataFrame({"object": np.random.default_rng(7).permutation(concepts)})


EVEN = table(*[60] * 4)
LOPSIDED = table(1, 2, 3, 60)
SPLITS = {
    "iid": lambda attributes, clients, seed: iid(attributes, clients, seed),
    "dirichlet, tiny alpha": lambda attributes, clients, seed: dirichlet(
        attributes, "object", clients, 1e-9, seed
    ),
    "dirichlet 0.1": lambda attributes, clients, seed: dirichlet(
        attributes, "object", clients, 0.1, seed
    ),
    "dirichlet, huge alpha": lambda attributes, clients, seed: dirichlet(
        attributes, "object", clients, 1e30, seed
    ),
    "pathological 1": lambda attributes, clients, seed: pathological(
        attributes, "object", clients, 1, seed
    ),
    "pathological all": lambda attributes, clients, seed: pathological(
        attributes, "object", clients, 4, seed
    ),
    "unequal": lambda attributes, clients, seed: unequal(attributes, clients, seed, 10),
    "unequal, huge ratio": lambda attributes, clients, seed: unequal(
        attributes, clients, seed, 1e12
    ),
    "skew 0": lambda attributes, clients, seed: by_skew(
        attributes, "object", clients, 0.0, 8, seed
    ),
    "skew 1": lambda attributes, clients, seed: by_skew(
        attributes, "object", clients, 1.0, 8, seed
    ),
}
DEALT_ONCE = [name for name in SPLITS if not name.startswith("skew")]


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize("attributes", [EVEN, LOPSIDED], ids=["even", "lopsided"])
def test_no_client_is_ever_left_with_nothing(name, attributes):
    for clients in (1, 5, 66):
        parts = SPLITS[name](attributes, clients, 3)
        assert len(parts) == clients and all(len(part) > 0 for part in parts)
        assert all(0 <= part.min() and part.max() < len(attributes) for part in parts)


@pytest.mark.parametrize("name", SPLITS)
def test_the_same_seed_gives_the_same_split_and_another_seed_another(name):
    first, again, other = (SPLITS[name](EVEN, 5, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("name", DEALT_ONCE)
def test_no_picture_is_held_twice_while_there_are_enough(name):
    held = np.concatenate(SPLITS[name](EVEN, 7, 0))
    assert len(set(held)) == len(held)


@pytest.mark.parametrize("name", [name for name in DEALT_ONCE if name != "pathological 1"])
def test_every_picture_is_held_by_somebody(name):
    assert sorted(np.concatenate(SPLITS[name](EVEN, 7, 0))) == list(range(len(EVEN)))


@pytest.mark.parametrize("name", DEALT_ONCE)
def test_fewer_pictures_than_clients_is_an_error_that_says_so(name):
    with pytest.raises(ValueError, match="67 clients cannot share 66 pictures"):
        SPLITS[name](LOPSIDED, 67, 0)


def test_iid_shuffles_before_it_cuts():
    ordered = pd.DataFrame({"object": np.repeat(list("abcd"), 50)})
    assert mean_js_distance(concept_counts(ordered, "object", iid(ordered, 4, 0))) < 0.2


def test_dirichlet_grows_more_uneven_as_alpha_falls():
    distances = [
        np.mean(
            [
                mean_js_distance(
                    concept_counts(EVEN, "object", dirichlet(EVEN, "object", 4, alpha, s))
                )
                for s in range(5)
            ]
        )
        for alpha in (1000, 1, 0.01)
    ]
    assert distances[0] < 0.1 < distances[1] < distances[2]


def test_pathological_clients_hold_exactly_the_concepts_they_were_given():
    for number in (1, 2, 3, 4):
        counts = concept_counts(EVEN, "object", pathological(EVEN, "object", 6, number, 0))
        assert ((counts > 0).sum(axis=1) == number).all()
        assert all(
            counts.iloc[client, client % 4] > 0 for client in range(6)
        )  # its own is among them


def test_a_rare_concept_is_dealt_again_rather_than_refused():
    counts = concept_counts(LOPSIDED, "object", pathological(LOPSIDED, "object", 12, 1, 0))
    assert (
        counts["concept 00"].tolist() == [1, 0, 0, 0] * 3
    )  # its only picture, for each of its three holders


def test_unequal_sizes_grow_to_about_the_ratio():
    sizes = [len(part) for part in unequal(EVEN, 5, 0, 10)]
    assert sizes == sorted(sizes) and sum(sizes) == len(EVEN) and 7 < sizes[-1] / sizes[0] < 11
    assert np.ptp([len(part) for part in unequal(EVEN, 7, 0, 1)]) <= 2
    with pytest.raises(ValueError, match="ratio must be a number of at least 1.*got 0.5"):
        unequal(EVEN, 3, 0, 0.5)


# -- the knob
GRID = np.linspace(0, 1, 21)


@pytest.mark.parametrize("num_concepts", [1, 2, 4, 7, 20])
@pytest.mark.parametrize("num_clients", [1, 2, 5, 16])
@pytest.mark.parametrize("pictures_per_client", [1, 5, 64])
def test_distance_starts_at_nothing_and_never_falls_as_the_knob_turns(
    num_concepts, num_clients, pictures_per_client
):
    attributes = table(*range(3, 3 + num_concepts))
    parts = [
        by_skew(attributes, "object", num_clients, skew, pictures_per_client, 0) for skew in GRID
    ]
    distances = [mean_js_distance(concept_counts(attributes, "object", part)) for part in parts]
    assert distances[0] < 1e-6
    assert np.diff(distances).min() > -1e-9
    if num_concepts > 1 and num_clients > 1:
        assert distances[-1] > 0.2


def test_at_full_skew_client_i_holds_concept_i_alone():
    counts = concept_counts(EVEN, "object", by_skew(EVEN, "object", 6, 1.0, 10, 0))
    assert [row.to_numpy().nonzero()[0].tolist() for _, row in counts.iterrows()] == [
        [0],
        [1],
        [2],
        [3],
        [0],
        [1],
    ]


def test_without_skew_every_client_holds_every_concept_equally():
    counts = concept_counts(EVEN, "object", by_skew(EVEN, "object", 6, 0.0, 40, 0))
    assert (counts == 10).all(axis=None)


def test_turning_the_knob_only_replaces_shared_pictures_by_own_ones():
    before = None
    for skew in GRID:
        parts = by_skew(EVEN, "object", 3, skew, 16, 5)
        concepts = [EVEN["object"].to_numpy()[part] for part in parts]
        if before is not None:
            for client, (old, new) in enumerate(zip(before, concepts, strict=True)):
                assert set(new[old != new]) <= {f"concept {client:02d}"}
        before = concepts


def test_the_share_of_own_pictures_is_the_skew():
    for skew in (0.25, 0.5, 0.75):
        own = [
            (EVEN["object"].to_numpy()[part] == f"concept {client:02d}").mean()
            for client, part in enumerate(by_skew(EVEN, "object", 4, skew, 400, 0))
        ]
        assert np.allclose(own, skew + (1 - skew) / 4, atol=0.01)


def test_clients_hold_different_pictures_while_the_pile_lasts():
    held = np.concatenate(by_skew(EVEN, "object", 4, 0.5, 40, 0))
    assert len(set(held)) == len(held)


def test_a_pile_that_runs_out_is_dealt_again_evenly():
    held = np.concatenate(by_skew(table(5, 5), "object", 4, 1.0, 10, 0))
    assert set(np.bincount(held)) == {4}


@pytest.mark.parametrize("skew", [-0.1, 1.7, float("nan")])
def test_a_skew_outside_its_range_is_an_error(skew):
    with pytest.raises(ValueError, match=r"skew must lie in \[0, 1\]; got"):
        by_skew(EVEN, "object", 4, skew, 8, 0)


# -- what is wrong is named
def test_an_unknown_attribute_is_an_error_that_names_those_there_are():
    with pytest.raises(ValueError, match="no attribute 'colour'; they have 'object'"):
        by_skew(EVEN, "colour", 4, 0.5, 8, 0)


@pytest.mark.parametrize("alpha", [0, -1, float("nan"), float("inf")])
def test_an_impossible_alpha_is_an_error(alpha):
    with pytest.raises(ValueError, match="alpha must be a positive number"):
        dirichlet(EVEN, "object", 4, alpha, 0)


@pytest.mark.parametrize("number", [0, 5])
def test_more_concepts_than_there_are_is_an_error(number):
    with pytest.raises(ValueError, match="between 1 and 4"):
        pathological(EVEN, "object", 4, number, 0)


def test_any_attribute_will_do_numbers_and_gaps_too():
    mixed = pd.DataFrame({"group": [3, None, "x", 3.0, "", 7] * 4})
    for parts in (
        by_skew(mixed, "group", 3, 0.5, 6, 0),
        dirichlet(mixed, "group", 3, 1, 0),
        pathological(mixed, "group", 3, 2, 0),
    ):
        assert all(map(len, parts))
    assert "none" in concept_counts(mixed, "group", parts).columns


# -- the number
def test_distance_is_zero_for_equal_mixtures_and_near_one_for_many_strangers():
    assert mean_js_distance([[2, 4], [1, 2], [30, 60]]) < 1e-7
    assert 0.95 < mean_js_distance(np.eye(200)) <= 1


def test_distance_agrees_with_scipy():
    from scipy.spatial.distance import jensenshannon

    counts = np.random.default_rng(0).integers(1, 20, (5, 6))
    expected = np.mean([jensenshannon(row, counts.sum(0), base=2) for row in counts])
    assert mean_js_distance(counts) == pytest.approx(expected)


def test_a_client_with_nothing_has_no_distance():
    with pytest.raises(ValueError, match="at least one picture for each client"):
        mean_js_distance([[1, 2], [0, 0]])
