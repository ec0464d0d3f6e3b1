"""The recorded sweep of lab 10: the shape of PDFed's Table 1 at lab size, and what the paper did not compare with.

PDFed, arXiv 2409.18245, section 5.2: 2, 4, 6 and 8 peers share one set of pictures and select models by quality alone
(eq. 7), by the Q-N score (eq. 6) or by Q-N with de-duplication. Ours beside them: calibrated novelty, a soup of models,
FedAsync and FedAvg. Here few digits are shared and models have had hundreds of steps, there all of CIFAR-10 and
thousands of epochs: only directions can be compared.
"""

import pandas as pd
import torch

from fedgen_lab.memorization.ddpm import load_weights
from fedgen_lab.memorization.qn import confirmed, quality_novelty
from fedgen_lab.memorization.sets import authenticity, c_t, fld
from fedgen_lab.peers.fedavg import run_fedavg
from fedgen_lab.peers.measure import MEASURED_BY, measure_model
from fedgen_lab.peers.objectives import RC_UNIT
from fedgen_lab.peers.peer import draw_samples, start_model
from fedgen_lab.peers.run import run_peers
from fedgen_lab.peers.scenario import PeersScenario, deal, outsiders
from fedgen_lab.peers.store import unpack_weights
from fedgen_lab.split.judges import judge_for

SEEDS = (0, 1, 2)
PICTURES = 64  # that all peers together train on, as the paper's share one set: so few that models begin to copy them
HELD_OUT = 80  # pictures of each peer to judge with
EPOCHS = {2: 50, 4: 75, 6: 75, 8: 100}  # of a peer's pictures before it submits, as in the paper
MODELS = {2: 12, 4: 16, 6: 20, 8: 24}  # submissions, then the run ends: some 1,200 steps in all
LAST = 3  # models that are measured, the paper's last ten
LAB = {"batch_size": 16, "samples": 100, "seconds": 1e5}
PAPERS = ("fld-fid", "qn", "qn-dedup")  # the columns of the paper's Table 1
METHODS = {  # what a method changes of a scenario
    "fld-fid": {"objective": "fld-fid"},
    "qn": {"objective": "qn"},
    "qn-dedup": {"objective": "qn-dedup"},
    "calibrated": {"objective": "calibrated"},
    "soup": {"objective": "fld-fid", "choice": "soup"},
    "fedasync": {"objective": "fld-fid", "choice": "fedasync"},
    "fedavg": {"objective": "fld-fid"},
}
MEASURES = (
    "kid",
    "fid",
    "copied",
    "auc",
    "tpr",
    "authpct",
    "ct",
    "fld",
    "rc",
    "qn",
    "models",
    "crossed",
    "seconds",
)
POINTS = [
    *({"peers": peers, "method": method} for peers in (4, 2, 8, 6) for method in PAPERS),
    *({"peers": 4, "method": method} for method in ("calibrated", "fedavg", "soup", "fedasync")),
    *({"peers": peers, "method": "calibrated"} for peers in (2, 8, 6)),
]


def scenario_of(point, seed):
    """The `PeersScenario` of a recorded point."""
    pictures = PICTURES // point["peers"]
    return PeersScenario(
        num_peers=point["peers"],
        pictures_per_peer=pictures + HELD_OUT,
        train_pictures=pictures,
        seed=seed,
        steps=EPOCHS[point["peers"]] * pictures // LAB["batch_size"],
        **METHODS[point["method"]],
        **LAB,
    )


def measure(point, seed):
    """Run one point; returns `MEASURES`: what the last models are worth on average, by pictures that no peer held.

    kid, fid, copied, auc, tpr: as in `measure.measure_model`. authpct (in fld's scale), ct (one cell), fld, rc (percent
    of pictures confirmed as copies, one threshold for all classes) and qn (with R_C in percent): the paper's, against
    the training pictures of all peers. models: how many were submitted, in so many simulated seconds; crossed: share of
    them that go on from another peer's; FedAvg has neither.
    """
    scenario = scenario_of(point, seed)
    if point["method"] == "fedavg":
        states, course = _last_of_the_server(scenario)
    else:
        states, course = _last_of_peers(scenario)
    means = pd.DataFrame([_scores(scenario, state) for state in states]).mean().to_dict()
    return {name: round(float(value), 4) for name, value in (means | course).items()}


def _last_of_the_server(scenario):
    """The weights of the one model that FedAvg's server keeps, {"models"}."""
    rounds, states = MODELS[scenario.num_peers] // scenario.num_peers, []
    run_fedavg(
        scenario,
        lambda: len(states) >= rounds,
        lambda number, rounds, state: states.append(state),
    )
    return states[-1:], {"models": scenario.num_peers * len(states)}


def _last_of_peers(scenario):
    """The weights of the last models, {"models", "crossed", "seconds"}."""
    submitted = 0

    def count(moment):
        nonlocal submitted
        submitted += sum(event.kind == "Submitted" for event in moment.events)

    outcome = run_peers(
        scenario, on_moment=count, should_stop=lambda: submitted >= MODELS[scenario.num_peers]
    )
    models, like = outcome.models(), outcome.peers[0].start
    states = [unpack_weights(cid, outcome.store.get(cid), like) for cid in models["cid"].tail(LAST)]
    return states, {
        "models": len(models),
        "crossed": models["crossed"].mean(),
        "seconds": models["seconds"].iloc[-1],
    }


def _scores(scenario, state):
    """Scores of a model's weights, against the training pictures of all peers and pictures of nobody."""
    holdings, strangers = deal(scenario), outsiders(scenario)
    train = torch.cat([holding.train.as_tensor() for holding in holdings])
    model, judge, unseen = start_model(scenario), judge_for(strangers), strangers.as_tensor()
    load_weights(model, state)
    drawn = draw_samples(scenario, model, MEASURED_BY)
    scores, matches = measure_model(scenario, state, drawn), confirmed(drawn, train)
    return scores | {
        "authpct": authenticity(drawn, train, judge, scale="fld"),
        "ct": c_t(drawn, train, unseen, judge, 1),
        "fld": fld(drawn, train, unseen, judge)["fld"],
        "rc": 100 * matches.r_c,
        "qn": quality_novelty(scores["fid"], matches, RC_UNIT),
    }
