"""The recorded sweep of lab 08: what each way to combine a round's uploads tells, stops and costs, with three seeds.

Every point of a seed judges the very same uploads (`fedgen_lab.privacy.uploads`), those of the lab's own round: five
clients, the last one with a backdoor, starting from the adapter that ships. Clips are in units of the median length of
the honest clients' changes. Under secure aggregation the server's AUC is that of everybody, and nothing else changes.
"""

from functools import lru_cache

import numpy as np
import pandas as pd

from fedgen_lab.privacy.robust import combine, norm
from fedgen_lab.privacy.uploads import first_adapter, judge, run_uploads
from fedgen_lab.privacy.uploads import measure as combined
from fedgen_lab.scenario import Scenario
from fedgen_lab.shipped import shipped
from fedgen_lab.sweep import read_sweep

SEEDS = (0, 1, 2)
HONEST = "mean of the honest"  # as if there were no attacker


def _point(defence, clip=0.0, noise_multiplier=0.0):
    return {"defence": defence, "clip": clip, "noise_multiplier": noise_multiplier}


POINTS = [
    _point(HONEST),
    _point("mean"),
    _point("clip"),
    _point("median"),
    _point("trimmed"),
    _point("krum"),
    _point("mean", 1.0),
    _point("mean", 1.0, 0.01),
    _point("mean", 1.0, 0.1),
    _point("mean", 1.0, 1.0),
    _point("mean", 0.3, 0.01),
    _point("mean", 0.3, 0.1),
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
    return run_uploads(scenario_of(seed), start=first_adapter())


def measure(point, seed):
    """What `uploads.judge` and `uploads.measure` say about one way to combine, as plain numbers."""
    uploads = uploads_of(seed)
    honest = uploads.states[: -uploads.scenario.attackers]
    if point["defence"] == HONEST:
        found = judge(uploads, combine(uploads.received, honest)[0])
        found |= {
            "server's auc": uploads.overheard.auc,
            "server's tpr": uploads.overheard.tpr,
            "attacker's share": 0.0,
        }
    else:
        changes = [
            {name: state[name] - uploads.received[name] for name in state} for state in honest
        ]
        clip = point["clip"] * float(np.median([norm(change) for change in changes]))
        found = combined(uploads, clip, point["noise_multiplier"], point["defence"])
    plain = {
        name: round(float(value), 4)
        for name, value in found.items()
        if name not in ("state", "pictures")
    }
    return plain | {"loss before": round(uploads.loss_before, 4)}


def recorded_leaks():
    """The recorded runs as a data frame: a row for each, with its way to combine, its seed and its numbers."""
    points = read_sweep(shipped("sweeps") / "what_leaks.json")["points"]
    return pd.DataFrame(
        [entry["point"] | {"seed": entry["seed"]} | entry["result"] for entry in points]
    )
