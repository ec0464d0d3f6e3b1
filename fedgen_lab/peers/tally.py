"""What the votes of a run come to: who is paid, who votes as the others do, and what noise on votes costs.

Lab 10. PDFed (arXiv 2409.18245) leaves open what a vote earns and how exact it is; the rules for pay are those of
contract.vy. Laplace noise on votes: Dwork et al., TCC 2006.
"""

import math

import numpy as np
import pandas as pd

from fedgen_lab.peers.votes import noisy_vote, one_vote

DRAWS = 50  # of the noise
NOISE_KEY = 5  # of the seed


def rewards_of(outcome):
    """What the contract pays each peer of a `PeersOutcome`, (peers,), in rewards: contract.vy's rules, on any ledger.

    A vote that is its voter's best so far earns the model one reward, as long as the pot lasts (here it does). Half
    goes to the author, half to the parents, who share theirs in turn. Strangers' votes count; what strangers are paid
    is not told.
    """
    models, best = outcome.models(), {}
    row = {content: number for number, content in enumerate(models["content"])}
    credit, kept = np.zeros(len(models)), np.zeros(len(outcome.peers))
    for event in (
        event for moment in outcome.moments for event in moment.events if event.kind == "Revealed"
    ):
        if event.values["score"] < best.get(event.account, math.inf):
            best[event.account] = event.values["score"]
            credit[row[event.values["content"]]] += 1
    for number in reversed(range(len(models))):
        parents = list(models["parents"][number])
        if models["author"][number] >= 0:
            kept[models["author"][number]] += credit[number] / (2 if parents else 1)
        credit[parents] += credit[number] / 2 / max(1, len(parents))
    return kept


def agreement(votes, peer, liars=()):
    """How near one peer's revealed votes come to the mean of the honest others': (gap, correlation).

    votes: a table as of `PeersOutcome.votes`; liars: peers whose votes don't count. gap: mean of |vote - mean| / mean
    over the models with votes of both; correlation: Pearson's over them, NaN where there are fewer than three.
    """
    others = votes.drop(columns=list({peer, *liars})).mean(axis=1)
    both = pd.DataFrame({"own": votes[peer], "others": others}).dropna()
    gap = ((both["own"] - both["others"]).abs() / both["others"].clip(lower=1e-9)).mean()
    return float(gap), float(both["own"].corr(both["others"])) if len(both) > 2 else math.nan


def best_chosen(scores, quality, sensitivity, epsilons=(8.0, 2.0, 0.5), rule="mean", seed=0):
    """What the noise costs: how often noisy votes choose the best model; a data frame (epsilon, chosen, loses).

    scores: (models, voters), exact votes; quality: (models,), of which the lowest is the best model. chosen: share of
    `DRAWS` in which the models' votes, by the rule, are lowest for the best model; loses: by how much the chosen
    model's quality is worse, on average. The first row, epsilon infinite, has exact votes.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(NOISE_KEY,)))
    quality, rows = np.asarray(quality), []
    for epsilon in (np.inf, *epsilons):
        noisy = [
            [[noisy_vote(one, epsilon, sensitivity, rng) for one in votes] for votes in scores]
            for _ in range(DRAWS)
        ]
        picks = np.array([np.argmin([one_vote(votes, rule) for votes in each]) for each in noisy])
        rows.append(
            (epsilon, (picks == quality.argmin()).mean(), (quality[picks] - quality.min()).mean())
        )
    return pd.DataFrame(rows, columns=["epsilon", "chosen", "loses"])
