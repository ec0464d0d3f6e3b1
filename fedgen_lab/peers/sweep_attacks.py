"""The recorded sweep of lab 10's attackers as a data frame; `data/record/peers_attacks.py` says what was run."""

import math

import numpy as np
import pandas as pd

from fedgen_lab.recorded import recorded


def recorded_attacks():
    """The recorded runs: a row for each, with its knobs, its seed and its numbers.

    models: of all peers. steps: of honest peers, from a model to the next. built_on: share of them that begin at an
    attacker's. paid: share of the rewards that attackers get; fair: that the same peers get where nobody attacks.
    vote_gap, vote_correlation: of the last peer. kid, copied: of the last honest models; they compare between runs with
    as many attackers, since slow peers' last models are worse. Where nobody attacks, the last peer stands in the
    attacker's place. NaN: there was nothing.
    """
    runs = recorded("peers_attacks")
    if runs.empty:
        return runs
    peace = runs[runs["attack"] == ""].set_index(["seed", "seconds"])["rewards"]
    rows = []
    for run in runs.to_dict("records"):
        # The attackers are the last peers; behind the peers come the validators, who are paid too.
        attackers = slice(len(run["models"]) - run["attackers"], len(run["models"]))
        fair = peace.get((run["seed"], run["seconds"]))
        steps = np.array(run["went_on"])[: attackers.start]
        rows.append(
            {
                "models": sum(run["models"]),
                "steps": steps.sum(),
                "built_on": steps[:, attackers].sum() / steps.sum() if steps.any() else math.nan,
                "paid": sum(run["rewards"][attackers]) / sum(run["rewards"]),
                "fair": sum(fair[attackers]) / sum(fair) if fair else math.nan,
                "vote_gap": run["vote_gap"][-1],
                "vote_correlation": run["vote_correlation"][-1],
            }
        )
    knobs = [*runs.attrs["knobs"], "seed"]
    return pd.concat([runs[knobs], pd.DataFrame(rows), runs[["kid", "copied"]]], axis=1)
