"""Replay: put a recorded run on the clock of a wireless network.

What was sent does not depend on how fast the radio is, so the seconds can be worked out afterwards, for any
bandwidth, in milliseconds and without training again. Rounds are synchronous: a client downloads, computes and
uploads, and the server waits for the last one, the straggler. Taught in labs 03 and 05.
"""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from fedgen_lab.federation.trace import SERVER
from fedgen_lab.wireless.channel import phase_joules, phase_seconds, place_clients

PHASES = ("download", "compute", "upload")


class Timeline(NamedTuple):
    """A run on the clock.

    `events`: round, client, phase ("download", "compute" or "upload"), start_seconds, end_seconds, bytes, joules
    (what the device spends); one row for each client and phase of an exchange in which something happened. `rounds`:
    round, seconds, end_seconds, bytes_up, bytes_down, straggler (the client everybody waited for). `clients`: the
    columns of `place_clients`, and download_seconds, compute_seconds, upload_seconds, bytes_up, bytes_down, joules,
    rounds_as_straggler.
    """

    events: pd.DataFrame
    rounds: pd.DataFrame
    clients: pd.DataFrame


def replay(trace, network):
    """The `Timeline` of a `Trace` on a `Network`.

    An exchange is one step of a round: all its downloads start together, and the next exchange starts when its last
    upload has arrived. A message of S bytes takes 8 S / rate seconds; a client that spends F operations computes for
    F / speed seconds.

    Raises ValueError when the trace has more clients than the network.
    """
    sent = trace.frame()
    is_down = sent["sender"] == SERVER
    client = sent["receiver"].where(is_down, sent["sender"])  # (M,) one per message
    last = max(client, default=0)
    network.check_fits(last + 1, f"The trace has a client {last}")
    # What was sent in each exchange, from and to each client: (E, K), in the order of sending.
    exchange = sent.groupby(["round", "step"], sort=False).ngroup()  # (M,)
    rounds = sent["round"][~exchange.duplicated()].to_numpy()  # (E,)
    shape = len(rounds), network.num_clients

    cells = exchange * network.num_clients + client  # (M,)

    def total(values):
        """What each client's messages of an exchange sum up to, (E, K)."""
        return np.bincount(cells, values, math.prod(shape)).reshape(shape)

    bytes_down, bytes_up = total(sent["bytes"] * is_down), total(sent["bytes"] * ~is_down)
    flops = total(sent["flops"])
    # How long that takes, and what it costs.
    places = place_clients(network)
    seconds = phase_seconds(network, places, rounds, bytes_down, flops, bytes_up)  # (3, E, K)
    joules = phase_joules(network, places, flops, seconds)
    # On the clock: the slowest client decides when the next exchange begins.
    finish = seconds.sum(0)  # (E, K) since the exchange began
    length = finish.max(1)  # (E,)
    end = np.cumsum(length)
    ends = (end - length)[:, None] + np.cumsum(seconds, 0)  # (3, E, K)
    # As tables: exchange by exchange, client by client, phase by phase.
    sizes = np.stack([bytes_down, np.zeros(shape), bytes_up])
    happened = (sizes > 0) | (seconds > 0)
    in_exchange, by_client, in_phase = np.nonzero(happened.transpose(1, 2, 0))
    place = (in_phase, in_exchange, by_client)
    events = pd.DataFrame(
        {
            "round": rounds[in_exchange],
            "client": by_client,
            "phase": np.take(PHASES, in_phase),
            "start_seconds": (ends - seconds)[place],
            "end_seconds": ends[place],
            "bytes": sizes[place].astype(int),
            "joules": joules[place],
        }
    )
    exchanges = pd.DataFrame(
        {"round": rounds, "seconds": length, "end_seconds": end, "straggler": finish.argmax(1)}
    )
    return timeline_of(events, exchanges, places)


def timeline_of(events, exchanges, places):
    """The `Timeline` of `events`, as it has them, by clients at `places` (see `place_clients`).

    exchanges: a table of round, seconds, end_seconds and straggler; a round has one or more.
    """
    by_round = exchanges.groupby("round", sort=False)
    rounds = by_round.agg({"seconds": "sum", "end_seconds": "max"})  # a row for each, by number

    def total(values, key, rows):
        """What the events' `values` sum up to: a column for each phase, `rows` by the events' column `key`."""
        sums = values.groupby([events[key], events["phase"]]).sum().unstack()
        return sums.reindex(index=rows, columns=PHASES).fillna(0)

    # How long each phase took, what travelled, and what it cost.
    seconds = total(events["end_seconds"] - events["start_seconds"], "client", places.index)
    clients = places.join(seconds.add_suffix("_seconds"))
    for key, table in (("client", clients), ("round", rounds)):
        traffic = total(events["bytes"], key, table.index).astype(int)
        table["bytes_up"], table["bytes_down"] = traffic["upload"], traffic["download"]
    spent = events.groupby("client")["joules"].sum()
    clients["joules"] = spent.reindex(clients.index, fill_value=0.0).astype(float)
    # Who was waited for: in a round of several exchanges, in the longest.
    rounds["straggler"] = exchanges["straggler"][by_round["seconds"].idxmax()].to_numpy()
    waits = rounds["straggler"].value_counts()
    clients["rounds_as_straggler"] = waits.reindex(clients.index, fill_value=0)
    return Timeline(events, rounds.reset_index(), clients)


def meet_deadline(timeline, deadline_seconds):
    """What a deadline would have cut off: the rounds of a `Timeline` in which nobody waits longer than that.

    Columns: round, seconds (no more than the deadline), arrived (how many uploads came in time), late (the clients
    whose upload came too late, as a tuple). What those clients know is missing from the average. Rounds of one exchange
    only; raises ValueError for a deadline that isn't above 0.
    """
    if not deadline_seconds > 0:
        raise ValueError(f"deadline_seconds must be larger than 0; got {deadline_seconds!r}.")
    rounds = timeline.rounds.set_index("round")
    uploads = timeline.events[timeline.events["phase"] == "upload"].set_index("round")
    # Which uploads ended later than that after their round had begun?
    began = (rounds["end_seconds"] - rounds["seconds"])[uploads.index]
    is_late = uploads["end_seconds"] - began > deadline_seconds
    missed = uploads["client"][is_late].groupby("round").agg(tuple)
    cut = rounds[["seconds"]].clip(upper=deadline_seconds)
    cut["arrived"] = (~is_late).groupby("round").sum().reindex(cut.index, fill_value=0)
    cut["late"] = [missed.get(server_round, ()) for server_round in cut.index]
    return cut.reset_index()
