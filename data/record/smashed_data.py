"""The recorded sweep of lab 06: what each protection of smashed data hides, and what it costs in picture quality.

Both columns come from the same run. Four clients, two of digits and two of letters, train through the U under the
protection; then the server attacks client 0 with the heads that it knows after the last round, having pictures of runes
(see `fedgen_lab.privacy.smashed`). Before the first iteration the distance-correlation penalty has changed nothing yet,
so there the plain wire's figures hold for it too.
"""

from fedgen_lab.privacy.watched import attack_run, watched_run
from fedgen_lab.split.scenario import GanScenario
from fedgen_lab.split.scoring import score

SEEDS = (0, 1, 2)
POINTS = [
    {"cut": cut, "noise": noise, "bits": bits, "decorrelation": decorrelation}
    for cut, noise, bits, decorrelation in (
        ("0000", 0.0, 32, 0.0),
        ("0000", 0.0, 8, 0.0),
        ("0000", 2.0, 32, 0.0),
        ("0000", 0.0, 32, 1.0),
        ("0000", 0.5, 32, 0.0),
        ("0000", 1.0, 32, 0.0),
        ("0000", 0.0, 32, 10.0),
        ("1010", 0.0, 32, 0.0),  # block 1 of both nets on the client, too
        ("1010", 0.0, 32, 1.0),
    )
]


def scenario_of(point, seed):
    """Four clients at the lesson's smallest size, four rounds of forty iterations."""
    return GanScenario(
        num_clients=4,
        rounds=4,
        cuts=point["cut"],
        noise=point["noise"],
        bits=point["bits"],
        decorrelation=point["decorrelation"],
        seed=seed,
    )


def measure(point, seed):
    """Run one point: label accuracies, reconstruction error and its baseline; image score and KID over both domains."""
    scenario = scenario_of(point, seed)
    watched = watched_run(scenario)
    leak = attack_run(watched, scenario)
    scores = score(watched.generators, watched.dealt, scenario, number=250)
    numbers = {
        "labels_from_generator": leak.label_accuracy["generator"],
        "labels_from_discriminator": leak.label_accuracy["discriminator"],
        "mse": leak.mse,
        "baseline_mse": leak.baseline_mse,
    }
    for name in ("image_score", "ceiling", "kid", "right_label"):
        numbers[name] = float(scores[name].mean())
    return {name: round(value, 4) for name, value in numbers.items()}
