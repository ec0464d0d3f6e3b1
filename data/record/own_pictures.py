"""The recorded sweep of lab 03's second tab: the same job on real pictures, OpenMoji's groups spread over the clients.

OpenMoji (CC BY-SA 4.0) is not part of the lab. To record it, name its zip: FEDGEN_OPENMOJI=openmoji-72-plain.zip. The
losses are of held-out emoji of all groups; there is no judge of emoji, so no fidelity.
"""

import os
from pathlib import Path

from fedgen_lab.lora.baselines import run_local_only
from fedgen_lab.lora.federated import run_federated
from fedgen_lab.scenario import Scenario

SEEDS = (0, 1, 2)
POINTS = [
    {"method": method, "num_clients": 9, "skew": skew, "pictures": "openmoji"}
    for method, skew in (("lora", 0.0), ("lora", 1.0), ("local_only", 1.0), ("local_only", 0.0))
]


def scenario_of(point, seed, pictures):
    """Nine clients, as many as OpenMoji has groups, five rounds of ten local steps each. `pictures`: the zip."""
    return Scenario(
        num_clients=point["num_clients"],
        skew=point["skew"],
        seed=seed,
        local_steps=10,
        pictures=str(pictures),
        concept="unicode_group",
        caption_file="captions.csv",
        file_column="file",
        text_column="caption",
    )


def measure(point, seed):
    """Run one point; returns the held-out loss by round. Raises FileNotFoundError without the pictures."""
    pictures = Path(os.environ.get("FEDGEN_OPENMOJI", "openmoji-72-plain.zip"))
    if not pictures.is_file():
        raise FileNotFoundError(
            f"No OpenMoji at {pictures}; set FEDGEN_OPENMOJI to the zip of its pictures."
        )
    scenario = scenario_of(point, seed, pictures)
    outcome = (run_federated if point["method"] == "lora" else run_local_only)(scenario)
    return {"loss": [round(float(loss), 5) for loss in outcome.rounds["loss"]]}
