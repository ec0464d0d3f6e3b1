"""Clusters from taps, weights from KL divergence, and averages layer by layer: what each may and may not do."""

import numpy as np
import pytest
import torch

from fedgen_lab.split.clusters import (
    aggregate,
    aggregate_layers,
    cluster,
    is_statistic,
    kld_scores,
    scale_free,
    weights,
)
from fedgen_lab.split.nets import SIZES, new_discriminator, new_generator

GROUPS = np.array([0, 1, 0, 1, 0, 1])
COUNTS = np.array([600, 400, 100, 200, 300, 50])


def rng(seed=0):
    return np.random.default_rng(seed)


def two_domains(clients=8, features=200, gap=1.0, seed=0):
    """Taps of clients of two domains in turn, and noise of spread 0.3."""
    draw = rng(seed)
    centres = gap * draw.normal(size=(2, features))
    return centres[np.arange(clients) % 2] + 0.3 * draw.normal(size=(clients, features))


def activations(clients=6, channels=4, positions=9, seed=0):
    return rng(seed).normal(size=(clients, channels, positions))


def whole_model(seed):
    """A whole GAN's state by full names: "g.1.0.weight"."""
    size = SIZES["lab14"]
    nets = {"g": new_generator(size, seed), "d": new_discriminator(size, seed + 100)}
    return {
        f"{net}.{name}": tensor
        for net, blocks in nets.items()
        for name, tensor in blocks.state_dict().items()
    }


ALWAYS = {"g.0", "g.4", "d.0", "d.4"}
EVERY = {f"{net}.{block}" for net in "gd" for block in range(5)}


def only(state, blocks):
    return {name: tensor for name, tensor in state.items() if name[:3] in blocks}


# ---- clusters


@pytest.mark.parametrize("k", [2, 0], ids=["k given", "k by silhouette"])
def test_clients_of_two_domains_make_two_clusters(k):
    assert cluster(two_domains(), k).tolist() == [0, 1] * 4


@pytest.mark.parametrize("domains", [2, 3, 4], ids=lambda n: f"{n} domains")
def test_the_silhouette_finds_as_many_clusters_as_there_are_domains(domains):
    centres = rng(1).normal(size=(domains, 200))
    taps = centres[np.arange(12) % domains] + 0.3 * rng(2).normal(size=(12, 200))
    assert cluster(taps).tolist() == [i % domains for i in range(12)]


@pytest.mark.parametrize("clients", [1, 2, 3, 8], ids=lambda n: f"{n} clients")
def test_where_nothing_separates_the_clients_there_is_one_cluster(clients):
    assert cluster(two_domains(clients, gap=0.0)).tolist() == [0] * clients
    assert cluster(np.ones((clients, 5))).tolist() == [0] * clients


def test_clusters_are_numbered_by_their_first_client_whatever_the_seed():
    taps = two_domains()
    assert all(cluster(taps, 2, seed).tolist() == [0, 1] * 4 for seed in range(5))


def test_more_clusters_than_different_taps_are_not_made():
    assert cluster(np.array([[0.0], [0.0], [1.0]]), 3).tolist() == [0, 0, 1]


def test_a_tap_with_nan_stands_alone_and_disturbs_no_other_client():
    taps = two_domains()
    taps[2, 5], taps[3, 0] = np.nan, np.inf
    assert cluster(taps).tolist() == [0, 1, 2, 3, 0, 1, 0, 1]
    assert cluster(np.full((3, 4), np.nan)).tolist() == [0, 1, 2]


def test_clusters_follow_their_clients_in_whatever_order_they_come():
    taps, order = two_domains(), rng(3).permutation(8)
    before, after = cluster(taps), cluster(taps[order])
    assert ((before[order][:, None] == before[order]) == (after[:, None] == after)).all()


@pytest.mark.parametrize(
    "taps, k, words",
    [
        (np.ones((3, 2, 2)), 0, "shape .clients, features."),
        (np.ones((3, 2)), -1, "k must be a whole number.*got -1"),
    ],
    ids=["shape", "k"],
)
def test_taps_of_a_wrong_shape_or_a_negative_k_are_refused(taps, k, words):
    with pytest.raises(ValueError, match=words):
        cluster(taps, k)


# ---- scores


@pytest.mark.parametrize("reference", [False, True], ids=["corrected", "reference"])
def test_the_divergence_of_identical_clients_is_zero(reference):
    same = np.repeat(activations(1), 5, axis=0)
    assert kld_scores(same, reference=reference) == pytest.approx(np.zeros(5), abs=1e-12)


@pytest.mark.parametrize("reference", [False, True], ids=["corrected", "reference"])
def test_the_score_is_the_divergence_worked_out_by_hand(reference):
    taps = activations(3, channels=2, positions=4)
    p = np.exp(taps) / np.exp(taps).sum(axis=2, keepdims=True)
    for k in range(3):
        q = np.mean([p[j] for j in range(3) if j != k], axis=0)
        from_p, to_q = (q, p[k]) if reference else (p[k], q)
        by_hand = (from_p * np.log(from_p / to_q)).sum(axis=1).mean()
        assert kld_scores(taps, reference=reference)[k] == pytest.approx(by_hand, rel=1e-12)


def test_in_reference_mode_the_score_is_what_torch_calls_kl_div_with_the_arguments_of_the_published_code():
    taps = torch.from_numpy(activations(2))
    p = taps.softmax(dim=2)
    published = torch.nn.functional.kl_div(p[0].log(), p[1], reduction="batchmean")
    assert kld_scores(taps, reference=True)[0] == pytest.approx(published.item(), rel=1e-12)
    assert kld_scores(taps)[0] != pytest.approx(published.item(), rel=1e-3)


def test_a_client_is_compared_with_its_own_cluster_only():
    taps = activations()
    scores = kld_scores(taps, GROUPS)
    assert scores[GROUPS == 1] == pytest.approx(kld_scores(taps[GROUPS == 1]))
    assert scores != pytest.approx(kld_scores(taps))


def test_the_odd_one_out_has_the_highest_score():
    taps = activations(1) + 0.05 * activations(6, seed=1)
    taps[4] = activations(1, seed=9)
    assert kld_scores(taps).argmax() == 4


def test_a_client_alone_or_with_nan_has_no_score_and_the_others_keep_theirs():
    taps = activations()
    taps[3, 0, 0] = np.nan
    rest = [0, 1, 2, 4, 5]
    scores = kld_scores(taps)
    assert np.isnan(scores[3]) and scores[rest] == pytest.approx(kld_scores(taps[rest]))
    assert np.isnan(kld_scores(taps, np.arange(6))).all()


def test_huge_activations_give_a_finite_score():
    taps = activations(2)
    taps[0, 0, 0] = 1e6
    assert (
        np.isfinite(kld_scores(taps)).all() and np.isfinite(kld_scores(taps, reference=True)).all()
    )


def test_a_scale_free_score_does_not_change_with_the_scale():
    scores = np.array([0.01, np.nan, 0.03, 0.02])
    assert scale_free(scores)[[0, 2, 3]] == pytest.approx([0.5, 1.5, 1.0]) and np.isnan(
        scale_free(scores)[1]
    )
    assert scale_free(1000 * scores)[[0, 2, 3]] == pytest.approx([0.5, 1.5, 1.0])
    assert scale_free(np.zeros(3)).tolist() == [0, 0, 0]


# ---- weights


def test_weights_sum_to_one_in_every_cluster():
    result = weights(COUNTS, kld_scores(activations(), GROUPS), GROUPS, alpha=3.0)
    assert [result[GROUPS == group].sum() for group in (0, 1)] == pytest.approx([1, 1])


def test_without_alpha_the_weights_are_those_of_fedavg():
    scores = kld_scores(activations())
    assert weights(COUNTS, scores, None, alpha=0.0) == pytest.approx(COUNTS / COUNTS.sum())


def test_a_very_large_alpha_picks_the_client_closest_to_the_others():
    scores = kld_scores(activations(), GROUPS)
    picked = weights(COUNTS, scores, GROUPS, alpha=1e9)
    for group in (0, 1):
        members = np.flatnonzero(GROUPS == group)
        assert picked[members[scores[members].argmin()]] == 1 and picked[members].sum() == 1


def test_at_alpha_one_scores_as_measured_hardly_differ_from_fedavg():
    scores = np.array([0.005, 0.055])  # the widest gap seen in the published code's runs
    ratio = np.divide(*weights([600, 600], scores, None, alpha=1.0))
    assert 1.0 < ratio < 1.06
    assert np.divide(*weights([600, 600], scores, None, alpha=np.log(2) / 0.05)) == pytest.approx(2)


def test_a_client_alone_weighs_one_and_one_without_a_score_nothing_beside_others():
    assert weights([5], [np.nan], [0], alpha=1.0).tolist() == [1]
    assert weights([5, 5, 5], [0.1, np.nan, 0.1], None, alpha=1.0).tolist() == [0.5, 0, 0.5]
    assert weights([3, 1], [np.nan, np.nan], None, alpha=1.0).tolist() == [0.75, 0.25]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (([0, 5], [0.1, 0.1], None, 1.0), "at least one picture"),
        (([5, 5], [0.1, 0.1], None, -1.0), "alpha must be a number of at least 0; got -1.0"),
        (([5, 5], [0.1], None, 1.0), "scores must have one entry for each of the 2 clients"),
        (([5, 5], [0.1, 0.1], [0], 1.0), "groups must have one entry for each of the 2 clients"),
    ],
    ids=["no pictures", "alpha", "scores", "groups"],
)
def test_weights_refuse_what_makes_no_sense(arguments, words):
    with pytest.raises(ValueError, match=words):
        weights(*arguments)


# ---- averages


def test_without_alpha_the_average_is_clustered_fedavg():
    states = [whole_model(seed) for seed in range(6)]
    result = aggregate(states, weights(COUNTS, np.ones(6), GROUPS, 0.0), GROUPS)
    for group, state in enumerate(result):
        members = np.flatnonzero(GROUPS == group)
        share = COUNTS[members] / COUNTS[members].sum()
        for name in ("g.0.body.0.weight", "d.1.0.bias", "g.2.1.running_var"):
            fedavg = sum(n * states[k][name].double() for n, k in zip(share, members, strict=True))
            assert torch.allclose(state[name].double(), fedavg, atol=1e-6)


def test_averages_do_not_depend_on_the_order_of_clients():
    states, order = [whole_model(seed) for seed in range(6)], rng(5).permutation(6)
    scores = kld_scores(activations(), GROUPS)
    share = weights(COUNTS, scores, GROUPS, 2.0)
    assert weights(COUNTS[order], scores[order], GROUPS[order], 2.0) == pytest.approx(share[order])
    one = aggregate(states, share, GROUPS)
    other = aggregate([states[k] for k in order], share[order], GROUPS[order])
    assert all(
        torch.allclose(a[name], b[name], atol=1e-7)
        for a, b in zip(one, other, strict=True)
        for name in a
    )


def test_an_average_keeps_types_and_leaves_out_a_client_that_weighs_nothing():
    good, bad = (
        whole_model(0),
        {name: tensor * float("nan") for name, tensor in whole_model(1).items()},
    )
    (state,) = aggregate([good, bad], [1.0, 0.0])
    assert {name: t.dtype for name, t in state.items()} == {
        name: t.dtype for name, t in good.items()
    }
    assert all(torch.equal(state[name], good[name]) for name in good)


def test_states_with_different_names_are_refused_by_name():
    with pytest.raises(ValueError, match="clients 0 and 1 .*'b'.*aggregate_layers"):
        aggregate([{"a": torch.ones(1)}, {"a": torch.ones(1), "b": torch.ones(1)}], [0.5, 0.5])


# ---- layer by layer, with the server's copy

SERVER = {f"{net}.{block}" for net in "gd" for block in (1, 2, 3)}


def layered(batch_norm="cluster", held=None):
    """Four clients in two clusters; client 1 also holds block 1 of the generator, clients 2 and 3 all that they may."""
    held = held or [ALWAYS, ALWAYS | {"g.1"}, EVERY - {"g.2", "d.2"}, EVERY - {"g.2", "d.2"}]
    models, server = [whole_model(seed) for seed in range(4)], only(whole_model(9), SERVER)
    for seed, state in enumerate([*models, server]):  # statistics that differ, as after training
        draw = torch.Generator().manual_seed(seed)
        state |= {
            name: torch.rand(t.shape, generator=draw)
            for name, t in state.items()
            if "running" in name
        }
    states = [only(model, blocks) for model, blocks in zip(models, held, strict=True)]
    share, overall = np.array([0.25, 0.75, 0.5, 0.5]), np.array([0.1, 0.2, 0.3, 0.4])
    result = aggregate_layers(
        states, server, held, share, np.array([0, 0, 1, 1]), overall, batch_norm=batch_norm
    )
    return states, server, *result


def test_a_client_without_a_layer_contributes_the_servers_copy():
    states, server, clusters, new_server = layered()
    name = "g.1.0.weight"
    expected = 0.25 * server[name] + 0.75 * states[1][name]
    assert torch.allclose(clusters[0][name], expected, atol=1e-7)
    expected = (
        0.1 * server[name] + 0.2 * states[1][name] + 0.3 * states[2][name] + 0.4 * states[3][name]
    )
    assert torch.allclose(new_server[name], expected, atol=1e-7)


def test_heads_and_tails_are_averaged_within_their_cluster_only():
    states, _, clusters, _ = layered()
    for name in ("g.0.embedding.weight", "d.4.1.weight"):
        assert torch.allclose(
            clusters[0][name], 0.25 * states[0][name] + 0.75 * states[1][name], atol=1e-7
        )
        assert torch.allclose(
            clusters[1][name], 0.5 * states[2][name] + 0.5 * states[3][name], atol=1e-7
        )


def test_the_middle_that_only_the_server_holds_stays_bit_by_bit():
    _, server, clusters, new_server = layered()
    assert all(torch.equal(new_server[name], server[name]) for name in only(server, {"g.2", "d.2"}))
    assert not any(name in state for state in clusters for name in only(server, {"g.2", "d.2"}))
    assert set(new_server) == set(server)


def test_a_cluster_gets_the_blocks_that_its_clients_hold():
    states, _, clusters, _ = layered()
    assert set(clusters[0]) == set(states[1]) and set(clusters[1]) == set(states[2])


def test_one_cluster_that_holds_everything_without_alpha_is_fedgan():
    held = [EVERY] * 4
    states = [whole_model(seed) for seed in range(4)]
    fedavg = np.array([0.4, 0.3, 0.2, 0.1])
    (cluster_state,), server = aggregate_layers(
        states, only(whole_model(9), SERVER), held, fedavg, [0] * 4, fedavg
    )
    (averaged,) = aggregate(states, fedavg)
    assert all(torch.equal(cluster_state[name], averaged[name]) for name in averaged)
    assert all(torch.equal(server[name], averaged[name]) for name in server)


def test_batch_norm_statistics_are_averaged_per_cluster_over_all_or_not():
    name = "g.0.body.1.running_mean"
    states, server, clusters, _ = layered("cluster")
    assert torch.allclose(
        clusters[0][name], 0.25 * states[0][name] + 0.75 * states[1][name], atol=1e-7
    )
    *_, clusters, _ = layered("averaged")
    overall = sum(w * state[name] for w, state in zip((0.1, 0.2, 0.3, 0.4), states, strict=True))
    assert torch.allclose(clusters[0][name], overall, atol=1e-7) and torch.equal(
        clusters[0][name], clusters[1][name]
    )
    *_, clusters, new_server = layered("local")
    assert not any(is_statistic(name) for state in clusters for name in state)
    assert all(torch.equal(new_server[name], server[name]) for name in server if is_statistic(name))


def test_a_layer_that_nobody_gives_and_an_unknown_batch_norm_are_refused():
    with pytest.raises(ValueError, match="nobody gave 'g.1.0.weight' for client 1"):
        states = [{"g.1.0.weight": torch.ones(1)}, {}]
        aggregate_layers(states, {}, [{"g.1"}, set()], [0.5, 0.5], [0, 0], [0.5, 0.5])
    with pytest.raises(ValueError, match='"averaged", "local" or "cluster"; got \'none\''):
        layered("none")


def test_two_pairs_of_equal_clients_make_two_clusters():
    assert cluster([[0.0, 0.0], [5.0, 5.0], [0.0, 0.0], [5.0, 5.0]]).tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("clients", [2, 4])
def test_clients_that_are_each_alone_are_told_apart_only_by_a_given_number(clients):
    apart = 100 * np.eye(clients)
    assert cluster(apart).tolist() == [0] * clients
    assert cluster(apart, clients).tolist() == list(range(clients))
