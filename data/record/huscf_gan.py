"""The recorded sweep of lab 07: HuSCF-GAN and its rivals on the published scenarios, at lab size, three seeds each.

Domains that need no download stand in for the published ones (`fedgen_lab.split.deal`), so figures compare between
methods here, not with the paper's. `fedgen_lab.dashboards.huscf_recorded` reads it for lab 07.
"""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch

from fedgen_lab.pictures.domains import load_domain
from fedgen_lab.split.deal import deal, published_scenario
from fedgen_lab.split.nets import SIZES, generate, new_generator
from fedgen_lab.split.run import run_gan
from fedgen_lab.split.scenario import METHODS, GanRound
from fedgen_lab.split.scoring import score, utility
from fedgen_lab.wireless.channel import Network
from fedgen_lab.wireless.replay import replay

SEEDS = (0, 1, 2)
CLIENTS = 8
SCORED = (2, 4, 6, 8)  # rounds; utility after the last only
PICTURES = 200  # drawn by each client's generator for the scores of a round
DRAW = 1003  # the purpose of the seeds that pictures for utility are drawn with

# Written out, so that no profile changes what is recorded: the lesson's size.
LAB = {
    "rounds": 8,
    "iterations": 40,
    "batch_size": 16,
    "learning_rate": 1e-3,
    "size": "lab14",
    "pictures_per_client": 150,
}

# Two domains with labels left out carry the comparison; then four domains, then one. S3 and S5 lie to both sides of S4.
POINTS = [
    {"scenario": name, "method": method}
    for name in ("S4", "S6", "S1", "S5", "S2", "S3")
    for method in METHODS
]


def scenario_of(point, seed):
    """The scenario of a recorded point."""
    scenario = published_scenario(point["scenario"], CLIENTS, **LAB)
    return replace(scenario, method=point["method"], seed=seed)


def measure(point, seed):
    """Run one point; returns its scores by domain and round, and what the wire and the devices had to do for them.

    Keys: domains; rounds, those that were scored; by measure a list (domains) of lists (rounds), `ceiling` and utility
    a list (domains). By round from 0, totals so far: megabytes_up, megabytes_down, wireless_seconds. gigaflops: of the
    devices, all together. groups, by client, where a method makes them; refused: how many clients were.
    """
    scenario, tables = scenario_of(point, seed), {}
    dealt = deal(scenario)

    def score_round(event):
        if isinstance(event, GanRound) and event.round in SCORED:
            tables[event.round] = score(event.generators, dealt, scenario, number=PICTURES)

    outcome = run_gan(scenario, on_event=score_round)
    result = {"domains": dealt.domains, "rounds": list(tables)}
    for name in ("image_score", "kid", "fid", "precision", "recall", "right_label"):
        by_domain = zip(*(table[name] for table in tables.values()), strict=True)
        result[name] = [_rounded(by_round) for by_round in by_domain]
    result["ceiling"] = _rounded(tables[SCORED[-1]]["ceiling"])
    result |= _useful(outcome.generators, dealt, scenario)
    groups = outcome.history[-1].groups
    work = outcome.trace.frame()["flops"].sum()  # only devices say what they spent
    return (
        result
        | _on_the_air(scenario, outcome.trace)
        | {
            "gigaflops": round(float(work) / 1e9, 1),
            "groups": None if groups is None else [int(group) for group in groups],
            "refused": len(outcome.refused),
        }
    )


def _useful(generators, dealt, scenario):
    """`utility` by domain, of pictures by all of its clients, and `accuracy_ceiling`: after as many real ones.

    Every client draws from noise of its own: where clients share a generator, the classifier still sees new pictures.
    """
    rows, size = [], SIZES[scenario.size]
    labels = torch.arange(PICTURES) % size.num_labels
    for number, (name, held_out) in enumerate(zip(dealt.domains, dealt.held_out, strict=True)):
        drawn, generator = [], new_generator(size, 0)
        for client in np.flatnonzero(dealt.domain_of == number):
            generator.load_state_dict(generators[client])
            drawn.append(generate(generator, labels, scenario.seed_of(DRAW, int(client))))
        ceiling = _accuracy_after_real_ones(name, size.side, len(drawn) * PICTURES, scenario.seed)
        useful = utility(torch.cat(drawn), labels.repeat(len(drawn)), held_out, scenario.seed)
        rows.append(useful | {"accuracy_ceiling": ceiling})
    return {name: _rounded(row[name] for row in rows) for name in rows[0]}


@lru_cache(maxsize=32)
def _accuracy_after_real_ones(name, side, number, seed):
    """The accuracy of a classifier that saw as many real pictures, or all there are."""
    real = load_domain(name, side=side, seed=seed)
    real = real.take(range(min(number, len(real))))
    held_out = load_domain(name, side=side, seed=seed, held_out=True)
    return utility(real.as_tensor(), real.labels, held_out, seed)["accuracy"]


def _on_the_air(scenario, trace):
    """Megabytes and seconds so far, by round from 0."""
    network = Network(
        num_clients=scenario.num_clients, bandwidth_hz=scenario.bandwidth_hz, seed=scenario.seed
    )
    rounds = replay(trace, network).rounds.set_index("round")
    rounds = rounds.reindex(range(scenario.rounds + 1), fill_value=0)
    megabytes = {f"megabytes_{way}": (f"bytes_{way}", 1e6) for way in ("up", "down")}
    columns = megabytes | {"wireless_seconds": ("seconds", 1)}
    return {
        name: _rounded(np.cumsum(rounds[column]) / unit) for name, (column, unit) in columns.items()
    }


def _rounded(values):
    """Plain numbers with four digits behind the point, None for what could not be measured."""
    return [round(float(value), 4) if np.isfinite(value) else None for value in values]
