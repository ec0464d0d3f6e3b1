"""The recorded sweep of lab 10: the shape of PDFed's Table 1 at lab size, and what the paper did not compare with.

PDFed, arXiv 2409.18245, section 5.2: 2, 4, 6 and 8 peers share one set of pictures and select models by quality alone
(eq. 7), by the Q-N score (eq. 6) or by Q-N with de-duplication. Ours beside them: calibrated novelty, a soup of models,
FedAsync and FedAvg. Here few digits are shared and models have had hundreds of steps, there all of CIFAR-10 and
thousands of epochs: only directions can be compared. Read from data/sweeps/pdfed.json; see fedgen_lab/sweep.py.
"""

import json

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
from fedgen_lab.shipped import shipped
from fedgen_lab.split.judges import judge_for

SEEDS = (0, 1, 2)
PICTURES = 64  # that all peers together train on, as the paper's share one set: so few that models begin to copy them
HELD_OUT = 80  # pictures of each peer to judge with
EPOCHS = {2: 50, 4: 75, 6: 75, 8: 100}  # of a peer's pictures before it submits, as in the paper
MODELS = {
    2: 12,
    4: 16,
    6: 20,
    8: 24,
}  # submissions, then the run ends: some 1,200 training steps in all
LAST = 3  # models that are measured, the paper's last ten
LAB = {"batch_size": 16, "samples": 100, "seconds": 1e5}
PAPERS = ("fld-fid", "qn", "qn-dedup")  # the columns of the paper's Table 1
METHODS = {  # what a method changes of a scenario
    **{name: {"objective": name} for name in (*PAPERS, "calibrated")},
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
POINTS = [{"peers": peers, "method": method} for peers in (4, 2, 8, 6) for method in PAPERS]
POINTS += [
    {"peers": 4, "method": method} for method in ("calibrated", "fedavg", "soup", "fedasync")
]
POINTS += [{"peers": peers, "method": "calibrated"} for peers in (2, 8, 6)]


def scenario_of(point, seed):
    """The `PeersScenario` of a recorded point."""
    own = PICTURES // point["peers"]
    return PeersScenario(
        num_peers=point["peers"],
        pictures_per_peer=own + HELD_OUT,
        train_pictures=own,
        seed=seed,
        steps=EPOCHS[point["peers"]] * own // LAB["batch_size"],
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
        rounds, states = MODELS[scenario.num_peers] // scenario.num_peers, []
        run_fedavg(
            scenario, lambda: len(states) >= rounds, lambda number, of, state: states.append(state)
        )
        told = {"models": scenario.num_peers * len(states)}
        states = states[-1:]  # the server keeps one
    else:
        states, told = _last_of_peers(scenario)
    rows = pd.DataFrame([_scores(scenario, state) for state in states])
    return {name: round(float(value), 4) for name, value in (rows.mean().to_dict() | told).items()}


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
    last = [unpack_weights(cid, outcome.store.get(cid), like) for cid in models["cid"].tail(LAST)]
    told = {
        "models": len(models),
        "crossed": models["crossed"].mean(),
        "seconds": models["seconds"].iloc[-1],
    }
    return last, told


def _scores(scenario, state):
    """Scores of a model's weights, against the training pictures of all peers and pictures of nobody."""
    holdings, others = deal(scenario), outsiders(scenario)
    train = torch.cat([holding.train.as_tensor() for holding in holdings])
    model, judge, unseen = start_model(scenario), judge_for(others), others.as_tensor()
    load_weights(model, state)
    drawn = draw_samples(scenario, model, MEASURED_BY)
    told, matches = measure_model(scenario, state, drawn), confirmed(drawn, train)
    return told | {
        "authpct": authenticity(drawn, train, judge, scale="fld"),
        "ct": c_t(drawn, train, unseen, judge, 1),
        "fld": fld(drawn, train, unseen, judge)["fld"],
        "rc": 100 * matches.r_c,
        "qn": quality_novelty(told["fid"], matches, RC_UNIT),
    }


def recorded_pdfed(path=None):
    """The recorded runs as a data frame: a row for each, with peers, method, seed and what `measure` returns.

    path: the JSON file, else the one that ships. Empty, with all columns, where nothing was recorded.
    """
    file = path or shipped("sweeps") / "pdfed.json"
    points = json.loads(file.read_text(encoding="utf-8"))["points"] if file.is_file() else []
    rows = [entry["point"] | {"seed": entry["seed"]} | entry["result"] for entry in points]
    return pd.DataFrame(rows, columns=["peers", "method", "seed", *MEASURES])
