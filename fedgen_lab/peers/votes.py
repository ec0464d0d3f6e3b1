"""From many opinions to one model: rules for votes, and what a peer goes on from.

Lab 10. PDFed (arXiv 2409.18245, section 4.1) lets a peer weigh its own score and the others' votes and go on from the
best model; how it weighs them is not given, and nothing is averaged. The rules for votes here, the soup and FedAsync
are ours or others': model soups, Wortsman et al., arXiv 2203.05482; FedAsync, Xie et al., arXiv 1903.03934.
Scores are numbers of which the lower is the better.
"""

import numpy as np
import torch

TRIM = 0.25  # share of the votes that "trimmed" drops at each end
ASYNC_RATE = 0.6  # alpha of FedAsync: how much of the global model an update without delay replaces


def one_vote(votes, rule):
    """The others' votes (V,) on one model as one number; NaN without any vote.

    "mean": a single victim's alarm is divided by V. "median": half the voters must lie. "worst": the highest, so that
    one victim is heard, and one liar can veto anything. "trimmed": the mean without the quarter at each end, at least
    one vote each where there are three or more.
    Raises ValueError for an unknown rule, or votes that are not finite.
    """
    votes = np.sort(np.asarray(votes, dtype=float))
    if not np.isfinite(votes).all():
        raise ValueError(f"Votes must be finite numbers; got {votes}. Refuse the model instead.")
    if rule not in ("mean", "median", "worst", "trimmed"):
        raise ValueError(f"vote_rule must be one of mean, median, worst, trimmed; got {rule!r}.")
    if not len(votes):
        return float("nan")
    if rule == "trimmed" and len(votes) >= 3:
        cut = max(1, int(TRIM * len(votes)))
        votes = votes[cut:-cut]
    return float({"median": np.median, "worst": np.max}.get(rule, np.mean)(votes))


def combined(own, votes, own_weight, rule):
    """A peer's own score of a model and the others' `votes` (V,) as one number; without votes, its own score."""
    others = one_vote(votes, rule)
    return own if np.isnan(others) else own_weight * own + (1 - own_weight) * others


def soup(states, ages, staleness):
    """The weighted mean of models: weights fall by the factor `staleness` for each model that came after.

    states: dicts of tensors; ages: how many models came after each, whole numbers. With staleness 0 the newest alone
    counts. Returns (state, weights (m,)). Raises ValueError for no model.
    """
    if not len(states):
        raise ValueError("A soup needs at least one model.")
    ages = np.asarray(ages, dtype=float)
    weights = float(staleness) ** (ages - ages.min())  # 0 ** 0 is 1
    weights = weights / weights.sum()
    mixed = {
        name: sum(
            float(weight) * state[name] for weight, state in zip(weights, states, strict=True)
        )
        for name in states[0]
    }
    return mixed, weights


def merge_async(model, update, delay, staleness):
    """One step of FedAsync: (1 - a) model + a update, where a falls by `staleness` for each model of delay."""
    rate = ASYNC_RATE * float(staleness) ** delay
    return {name: torch.lerp(model[name], update[name], rate) for name in model}


def noisy_vote(score, epsilon, sensitivity, rng):
    """A score with Laplace noise of scale sensitivity / epsilon, not below 0.

    sensitivity: by how much one picture can change the score. Dwork et al., TCC 2006. One vote spends epsilon.
    """
    return max(0.0, score + rng.laplace(scale=sensitivity / epsilon))
