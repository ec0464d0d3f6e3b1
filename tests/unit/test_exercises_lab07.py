"""The exercises of lab 07: the solution passes, each typical mistake hears its own message, the stub is not tried."""

import numpy as np
import pytest
import torch
from exercise_claims import claims_on

from fedgen_lab.exercises import check
from fedgen_lab.exercises.checks import find
from fedgen_lab.exercises.lab07 import EXERCISES, RECALL


def within(raw, groups):
    return raw / np.array([raw[groups == group].sum() for group in groups])


def used(own, server):
    return [server if mine is None else mine for mine in own]


def held(own, weights):
    return [(weight, mine) for weight, mine in zip(weights, own, strict=True) if mine is not None]


def own_only(own, weights):
    return sum(weight * mine for weight, mine in held(own, weights))


def share(own, weights):
    return sum(weight for weight, _ in held(own, weights))


def path(bits, zero, one, batch):
    return np.where(bits == 0, zero + batch, one)


WRONG = {
    "07.1": {
        "sum to 1 over all clients": lambda n, s, g, a: (
            n * np.exp(-a * s) / (n * np.exp(-a * s)).sum()
        ),
        "differs most from its cluster weighs most": lambda n, s, g, a: within(
            n * np.exp(a * s), g
        ),
        "three times the pictures": lambda n, s, g, a: within(np.exp(-a * s), g),
        "FedAvg within each cluster": lambda n, s, g, a: within(n, g),
        "as if it were 1": lambda n, s, g, a: within(n * np.exp(-s), g),
        "do not sum to 1": lambda n, s, g, a: n * np.exp(-a * s),
        "weigh the same": lambda n, s, g, a: within(np.ones(len(n)), g),
        "divide by the score": lambda n, s, g, a: within(n / (1 + a * s), g),
        "one weight for each": lambda n, s, g, a: (n * np.exp(-a * s)).sum(),
        "For five clients in two clusters": lambda n, s, g, a: within(n * np.exp(-a * s) + 1, g),
    },
    "07.2": {
        "computes with None": lambda own, server, w: sum(
            a * b for a, b in zip(w, own, strict=True)
        ),
        "the rest is scaled up": lambda own, server, w: own_only(own, w) / share(own, w),
        "no longer sum to 1": lambda own, server, w: own_only(own, w),
        "server's copy, unchanged": lambda own, server, w: server,
        "All clients count the same": lambda own, server, w: sum(used(own, server)) / len(own),
        "a sum of copies": lambda own, server, w: sum(used(own, server)),
        "one more client": lambda own, server, w: (own_only(own, w) + server) / (share(own, w) + 1),
        "weighted mean of what each client used": lambda own, server, w: torch.zeros_like(server),
        "a tensor of the layer's own shape": lambda own, server, w: used(own, server),
    },
    "07.3": {
        "has one client's work": lambda b, z, o, s: path(b, z, o, s).max(),
        "takes no time": lambda b, z, o, s: path(b, z, o, 0).max(),
        "wait for the server too": lambda b, z, o, s: path(b, z, o, 0).max() + s * (b == 0).sum(),
        "works for every client": lambda b, z, o, s: path(b, z, o, s * len(b)).max(),
        "one after another": lambda b, z, o, s: path(b, z, o, s * (b == 0).sum()).sum(),
        "mean client's time": lambda b, z, o, s: path(b, z, o, s * (b == 0).sum()).mean(),
        "the wrong way round": lambda b, z, o, s: path(1 - b, z, o, s * (b == 1).sum()).max(),
        "fastest client only": lambda b, z, o, s: path(b, z, o, s * (b == 0).sum()).min(),
        "must be one number": lambda b, z, o, s: path(b, z, o, s * (b == 0).sum()),
        "With the bits [0, 0, 0]": lambda b, z, o, s: 1.0,
    },
}


TestExercises = claims_on(EXERCISES, WRONG)


@pytest.mark.parametrize("key", WRONG)
def test_a_constant_is_no_solution(key):
    assert check(key, lambda *given: 1.0).state == "failed"


def test_the_example_is_not_enough():
    """A function that knows the check's first example by heart fails on the next one."""
    solve = find("07.1").run_solution()

    def two_clusters(counts, scores, groups, alpha):
        return solve(counts, scores, (groups == 1).astype(int), alpha)

    assert "fits one example" in find("07.1").check(two_clusters).message


def test_the_solutions_agree_with_the_package():
    from fedgen_lab.split.clusters import aggregate_layers, weights
    from fedgen_lab.split.cuts import exact_cuts
    from fedgen_lab.split.latency import (
        block_flops,
        deal_devices,
        iteration_legs,
        iteration_seconds,
    )

    counts, scores, groups = (
        np.array([30.0, 10.0, 20.0]),
        np.array([0.3, 0.1, np.nan]),
        np.array([0, 0, 1]),
    )
    ours = find("07.1").run_solution()(counts, np.nan_to_num(scores), groups, 7.0)
    assert ours == pytest.approx(weights(counts, scores, groups, 7.0))

    own, server, each = [torch.ones(2), None], {"g.1.w": torch.zeros(2)}, np.array([0.3, 0.7])
    states = [{"g.1.w": own[0]}, {}]
    _, averaged = aggregate_layers(states, server, [{"g.1"}, set()], each, [0, 0], each)
    assert torch.allclose(
        find("07.2").run_solution()(own, server["g.1.w"], each.tolist()), averaged["g.1.w"]
    )

    devices, work = deal_devices(7), block_flops("lab14", 16)
    legs, middles = iteration_legs(devices, work)
    cuts, seconds = exact_cuts(devices, work)
    leg_seconds = find("07.3").run_solution()
    total = sum(
        leg_seconds(np.array(cuts)[:, leg.bit], *leg.own_seconds(), leg.server_seconds)
        for leg in legs
    )
    assert total + middles.sum() == pytest.approx(seconds) == iteration_seconds(cuts, devices, work)


def test_recall_asks_three_questions_each_with_one_right_answer():
    assert len(RECALL) == 3
    assert all(0 <= right < len(options) for _, options, right, _ in RECALL)
