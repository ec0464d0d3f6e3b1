"""The recorded sweep of lab 08: what each way to combine a round's uploads tells, stops and costs, with three seeds.

Every point of a seed judges the very same uploads (`fedgen_lab.privacy.uploads`), those of the lab's own round: five
clients, the last one with a backdoor, starting from the adapter that ships. Clips are in units of the median length of
the honest clients' changes. Under secure aggregation the server's AUC is that of everybody, and nothing else changes.
"""

from functools import lru_cache

import numpy as np

from fedgen_lab.federation.averages import combine, norm
from fedgen_lab.privacy import uploads as round_of_uploads
from fedgen_lab.scenario import Scenario

SEEDS = (0, 1, 2)
HONEST = "mean of the honest"  # as if there were no attacker
POINTS = [
    {"defence": defence, "clip": clip, "noise_multiplier": noise_multiplier}
    for defence, clip, noise_multiplier in (
        (HONEST, 0.0, 0.0),
        ("mean", 0.0, 0.0),
        ("clip", 0.0, 0.0),
        ("median", 0.0, 0.0),
        ("trimmed", 0.0, 0.0),
        ("krum", 0.0, 0.0),
        ("mean", 1.0, 0.0),
        ("mean", 1.0, 0.01),
        ("mean", 1.0, 0.1),
        ("mean", 1.0, 1.0),
        ("mean", 0.3, 0.01),
        ("mean", 0.3, 0.1),
    )
]


def scenario_of(seed):
    """The round of lab 08, with more prompts."""
    return Scenario(
        num_clients=5,
        attackers=1,
        pictures_per_client=16,
        local_steps=40,
        batch_size=8,
        num_prompts=24,
        seed=seed,
    )


@lru_cache(maxsize=len(SEEDS))
def uploads_of(seed):
    """A seed's uploads: the same in every worker process, and trained once in each."""
    return round_of_uploads.run_uploads(scenario_of(seed), start=round_of_uploads.first_adapter())


def measure(point, seed):
    """What `uploads.judge` and `uploads.measure` say about one way to combine, as plain numbers."""
    uploads = uploads_of(seed)
    honest = uploads.states[: -uploads.scenario.attackers]
    if point["defence"] == HONEST:
        mean = combine(uploads.received, honest)[0]
        verdict = round_of_uploads.judge(uploads, mean) | {
            "server's auc": uploads.overheard.auc,
            "server's tpr": uploads.overheard.tpr,
            "attacker's share": 0.0,
        }
    else:
        changes = [
            {name: state[name] - uploads.received[name] for name in state} for state in honest
        ]
        clip = point["clip"] * float(np.median([norm(change) for change in changes]))
        verdict = round_of_uploads.measure(
            uploads, clip, point["noise_multiplier"], point["defence"]
        )
    numbers = {
        name: round(float(value), 4)
        for name, value in verdict.items()
        if name not in ("state", "pictures")
    }
    return numbers | {"loss before": round(uploads.loss_before, 4)}
