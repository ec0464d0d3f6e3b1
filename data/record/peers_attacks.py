"""The recorded sweep of lab 10's attackers: what they get from honest peers under each rule for votes.

PDFed (arXiv 2409.18245) says that bad models "will not be picked up", and tries no attack. Here one peer of four
attacks, or two as sybils, in a small world (`SMALL`): peers train for a few steps and judge by the paper's Q-N. Where
nobody attacks, the same numbers say what an honest peer in the attacker's place gets.
"""

import math

import numpy as np

from fedgen_lab.memorization.ddpm import weights
from fedgen_lab.peers.measure import measure_model
from fedgen_lab.peers.peer import start_model
from fedgen_lab.peers.run import run_peers
from fedgen_lab.peers.scenario import PeersScenario
from fedgen_lab.peers.store import unpack_weights
from fedgen_lab.peers.tally import agreement, rewards_of

SEEDS = (0, 1, 2)
SMALL = {
    "num_peers": 4,
    "validators": 1,  # so that a peer hears three others about a model that is not its own
    "steps": 20,
    "samples": 64,
    "width": 8,
    "pictures_per_peer": 128,
    "objective": "qn",
}
PLAIN = {
    "attack": "",
    "attackers": 1,
    "vote_rule": "mean",
    "open_votes": False,
    "seconds": 10.0,
    "commit_blocks": 12,  # so short that votes are revealed while there is still something to choose
}
LONGER = {"attack": "vote-copier", "seconds": 20.0, "commit_blocks": 16}  # more votes to compare
POINTS = [
    PLAIN | changes
    for changes in (
        {},
        {"attack": "sybils", "attackers": 2},
        {"attack": "sybils", "attackers": 2, "vote_rule": "worst"},
        {"attack": "sybils", "attackers": 2, "vote_rule": "median"},
        {"attack": "withholder"},
        {"attack": "free-rider"},
        {"attack": "copycat"},
        {"attack": "poisoner"},
        {"attack": "poisoner", "vote_rule": "worst"},
        {"attack": "sybils", "attackers": 2, "vote_rule": "trimmed"},
        LONGER,
        LONGER | {"open_votes": True},
        {"attack": "evader"},
        {"attack": "evader", "vote_rule": "worst"},
        {"attack": "poisoner", "vote_rule": "median"},
        {"attack": "evader", "vote_rule": "median"},
        {"attack": "poisoner", "vote_rule": "trimmed"},
        {"attack": "evader", "vote_rule": "trimmed"},
    )
]
MEASURED = 2  # so many of the last honest models
CACHE = {}  # what earlier points of this process computed: the honest peers' models are the same in most of them


def measure(point, seed):
    """Run one point; returns numbers by peer (lists, the attackers last) and for the last honest models (means).

    models: submitted, by author. went_on: row a, column b: models of a that go on from one of b. rewards: what the
    contract pays, as `rewards_of` says. vote_gap, vote_correlation: as `agreement` says. kid, copied: as
    `measure_model` says.
    """
    attacked = point if point["attack"] else point | {"attackers": 0}
    scenario = PeersScenario(**SMALL, **attacked, seed=seed)
    outcome = run_peers(scenario, known=CACHE)
    models, honest = outcome.models(), scenario.num_peers - scenario.attackers

    # Who goes on from whose models.
    went_on = np.zeros((scenario.num_peers, scenario.num_peers), int)
    for author, parents in zip(models["author"], models["parents"], strict=True):
        for parent in parents:
            went_on[author, models["author"][parent]] += 1

    # What the last honest models are worth.
    like, scores = weights(start_model(scenario)), []
    for cid in models["cid"][models["author"] < honest][-MEASURED:]:
        if (seed, cid) not in CACHE:
            CACHE[seed, cid] = measure_model(
                scenario, unpack_weights(cid, outcome.store.get(cid), like)
            )
        scores.append(CACHE[seed, cid])

    # How near everybody's votes are to those of the honest.
    liars = range(honest, scenario.num_peers)
    near = np.array([agreement(outcome.votes(), peer, liars) for peer in range(scenario.num_peers)])
    return {
        "models": [int((models["author"] == peer).sum()) for peer in range(scenario.num_peers)],
        "went_on": went_on.tolist(),
        "rewards": rewards_of(outcome).round(3).tolist(),
        "vote_gap": _finite(near[:, 0]),
        "vote_correlation": _finite(near[:, 1]),
        "kid": round(float(np.mean([score["kid"] for score in scores])), 4),
        "copied": round(float(np.mean([score["copied"] for score in scores])), 4),
    }


def _finite(values):
    return [round(float(value), 4) if math.isfinite(value) else None for value in values]
