"""The same federation on the clock of one cell, with different answers to slow devices and thin links.

Wait for all, stop at a deadline, ask the fastest only, never wait (FedBuff), or send less (int8, top-k): each is a few
knobs of the `Scenario`, and all of them train for real while simulated time decides who counts. Taught in lab 05. The
servers are in `wireless/reacting.py` and `wireless/fedbuff.py`, the uploads in `lora/upload.py`.
"""

from dataclasses import dataclass, replace

import pandas as pd

from fedgen_lab.federation.run import run_app
from fedgen_lab.lora.federated import lora_client_app, lora_server_app
from fedgen_lab.wireless.replay import Timeline, replay


@dataclass(frozen=True)
class OnAir:
    """What a run on the clock leaves behind.

    `progress`: one row a round, from 0: round, loss (held-out denoising loss), seconds, megabytes_up, megabytes_down,
    joules of all devices together (these four since the start), left_out (how many clients were refused in this round,
    late ones among them) and staleness (the mean age of what was merged, in merges; 0 in synchronous rounds).
    """

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

    def so_far(trace):
        """The timeline by the strategy's own clock, or, if nothing depended on time, by the record; the progress."""
        (strategy,) = strategies
        has_clock = hasattr(strategy, "clock")
        timeline = strategy.clock.timeline() if has_clock else replay(trace, network)
        return timeline, _progress(losses, strategy, timeline)

    def report(done):
        losses[done.round] = done.loss
        if on_round is not None:
            on_round(done, so_far(done.trace)[1])

    run = run_app(
        lora_server_app(on_round=report, keep=strategies.append, network=network),
        lora_client_app(on_step=on_step),
        scenario.num_clients,
        scenario.to_run_config(),
        should_stop,
    )
    timeline, progress = so_far(run.trace)
    return OnAir(
        progress=progress,
        timeline=timeline,
        state=strategies[0].latest.to_torch_state_dict(),
        refused=tuple(strategies[0].refused),
        stopped=run.stopped,
    )


def _progress(losses, strategy, timeline):
    """`OnAir.progress`, so far."""
    progress = pd.DataFrame({"loss": losses}).rename_axis("round")

    # What the run has taken until the end of each round.
    rounds = timeline.rounds.set_index("round").reindex(progress.index, fill_value=0)
    taken = rounds[["seconds", "bytes_up", "bytes_down"]].cumsum()
    progress["seconds"] = taken["seconds"]
    joules = timeline.events.groupby("round")["joules"].sum()
    progress["joules"] = joules.reindex(progress.index, fill_value=0.0).cumsum()
    progress["megabytes_up"] = taken["bytes_up"] / 1e6
    progress["megabytes_down"] = taken["bytes_down"] / 1e6

    # Who was left out of each round, and how old was what an asynchronous server merged.
    refusals = [refusal.round for refusal in strategy.refused if refusal.client != "everyone"]
    progress["left_out"] = pd.Series(refusals, dtype=int).value_counts()
    merged = pd.DataFrame(getattr(strategy, "merged", []), columns=["round", "client", "staleness"])
    progress["staleness"] = merged.astype(float).groupby("round")["staleness"].mean()
    none = {"left_out": 0, "staleness": 0.0}
    return progress.fillna(none).astype({"left_out": int}).reset_index()
