"""The same federation on the clock of one cell, with different answers to slow devices and thin links.

Wait for all, stop at a deadline, ask the fastest only, never wait (FedBuff), or send less (int8, top-k): each is a few
knobs of the `Scenario`, and all of them train for real while simulated time decides who counts. Taught in lab 05. The
servers are in `wireless/reacting.py` and `wireless/fedbuff.py`, the uploads in `lora/upload.py`.
"""

from dataclasses import dataclass, replace

import pandas as pd

from fedgen_lab.federation.run import run_app
from fedgen_lab.lora.federated import lora_client_app, lora_server_app
from fedgen_lab.scenario import Scenario
from fedgen_lab.wireless.replay import Timeline, replay


@dataclass(frozen=True)
class OnAir:
    """What a run on the clock leaves behind.

    `progress`: one row a round, from 0: round, loss (held-out denoising loss), seconds, megabytes_up, megabytes_down
    (all three since the start), left_out (how many clients were refused in this round, late ones among them) and
    staleness (the mean age of what was merged, in merges; 0 in synchronous rounds).
    """

    scenario: Scenario
    progress: pd.DataFrame
    timeline: Timeline
    state: dict  # the last global parameters, by name
    refused: tuple  # (round, client, reason)
    stopped: bool


def ways(scenario, deadline_seconds, buffer=2, fraction=0.5):
    """What lab 05 compares, by name: scenarios that differ from `scenario` in how they treat time and bytes only.

    FedBuff gets as many rounds as it takes to merge as many uploads as the others wait for.
    """
    merges = max(1, round(scenario.rounds * scenario.num_clients / buffer))
    return {
        "wait for all": scenario,
        "deadline": replace(scenario, deadline_seconds=deadline_seconds),
        "fastest": replace(scenario, select="fastest", fraction=fraction),
        "FedBuff": replace(scenario, buffer=buffer, rounds=merges),
        "int8": replace(scenario, upload="int8"),
        "top-k": replace(scenario, upload="top-k"),
    }


def run_on_air(scenario, network, should_stop=None, on_round=None, on_step=None):
    """Run a scenario on a `Network`'s clock and return its `OnAir`.

    `on_round(RoundDone, progress)` is called after every round with the progress so far, `on_step(StepDone)` after
    every local step; both may raise `Stopped`. Raises ValueError when the network has fewer clients than the scenario.
    """
    if network.num_clients < scenario.num_clients:
        raise ValueError(
            f"The scenario has {scenario.num_clients} clients, but the network has only {network.num_clients}; "
            f"give it num_clients={scenario.num_clients}."
        )
    losses, strategies = {}, []

    def report(done):
        losses[done.round] = done.loss
        if on_round is not None:
            timeline = _timeline(strategies[0], done.trace, network)
            on_round(done, _progress(losses, strategies[0], timeline))

    run = run_app(
        lora_server_app(on_round=report, keep=strategies.append, network=network),
        lora_client_app(on_step=on_step),
        scenario.num_clients,
        scenario.to_run_config(),
        should_stop,
    )
    (strategy,) = strategies
    timeline = _timeline(strategy, run.trace, network)
    return OnAir(
        scenario=scenario,
        progress=_progress(losses, strategy, timeline),
        timeline=timeline,
        state=strategy.latest.to_torch_state_dict(),
        refused=tuple(strategy.refused),
        stopped=run.stopped,
    )


def _timeline(strategy, trace, network):
    """By the strategy's own clock, or, if nothing depended on time, by the recorded run."""
    return strategy.clock.timeline() if hasattr(strategy, "clock") else replay(trace, network)


def _progress(losses, strategy, timeline):
    """`OnAir.progress`, so far."""
    progress = pd.DataFrame({"round": list(losses), "loss": list(losses.values())})

    # What the run has taken until the end of each round.
    columns = ["seconds", "bytes_up", "bytes_down"]
    rounds = timeline.rounds.set_index("round")[columns]
    rounds = rounds.reindex(progress["round"], fill_value=0).cumsum()
    progress["seconds"] = rounds["seconds"].to_numpy()
    for direction in ("up", "down"):
        progress[f"megabytes_{direction}"] = rounds[f"bytes_{direction}"].to_numpy() / 1e6

    # Who was left out of each round.
    refusals = [refusal.round for refusal in strategy.refused if refusal.client != "everyone"]
    left_out = pd.Series(refusals, dtype=int).value_counts()
    progress["left_out"] = left_out.reindex(progress["round"], fill_value=0).to_numpy()

    # How old was what an asynchronous server merged.
    merged = pd.DataFrame(getattr(strategy, "merged", []), columns=["round", "client", "staleness"])
    ages = merged.astype({"round": int}).groupby("round")["staleness"].mean()
    progress["staleness"] = ages.reindex(progress["round"], fill_value=0.0).to_numpy(float)
    return progress
