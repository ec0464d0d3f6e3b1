"""Replay: put a recorded run on the clock of a wireless network.

What was sent does not depend on how fast the radio is, so the seconds can be worked out afterwards, for any
bandwidth, in milliseconds and without training again. Rounds are synchronous: a client downloads, computes and
uploads, and the server waits for the last one, the straggler. Taught in labs 03 and 05.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from fedgen_lab.federation.trace import SERVER
from fedgen_lab.wireless.channel import phase_joules, phase_seconds, place_clients

PHASES = ("download", "compute", "upload")


@dataclass(frozen=True)
class Timeline:
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
    is_down = (sent["sender"] == SERVER).to_numpy()
    client = np.where(is_down, sent["receiver"], sent["sender"])  # (M,) one per message
    last = client.max(initial=0)
    network.check_fits(last + 1, f"The trace has a client {last}")
    # What was sent in each exchange, from and to each client: (E, K), in the order of sending.
    exchange = sent.groupby(["round", "step"], sort=False).ngroup().to_numpy()  # (M,)
    rounds = sent[["round", "step"]].drop_duplicates()["round"].to_numpy()  # (E,)

    def total(column, rows):
        table = np.zeros((len(rounds), network.num_clients), sent[column].dtype)
        np.add.at(table, (exchange[rows], client[rows]), sent[column].to_numpy()[rows])
        return table

    bytes_down, bytes_up = total("bytes", is_down), total("bytes", ~is_down)
    flops = total("flops", np.full(len(sent), True))
    # How long that takes, and what it costs.
    places = place_clients(network)
    seconds = phase_seconds(network, places, rounds, bytes_down, flops, bytes_up)  # (3, E, K)
    joules = phase_joules(network, places, flops, seconds)
    # On the clock: the slowest client decides when the next exchange begins.
    finish = seconds.sum(0)  # (E, K) since the exchange began
    length = finish.max(1, initial=0.0)  # (E,)
    end = np.cumsum(length)
    ends = (end - length)[:, None] + np.cumsum(seconds, 0)  # (3, E, K)
    # As tables: exchange by exchange, client by client, phase by phase.
    sizes = np.stack([bytes_down, np.zeros_like(bytes_down), bytes_up])
    happened = (sizes > 0) | (seconds > 0)
    in_exchange, by_client, in_phase = np.nonzero(happened.transpose(1, 2, 0))
    place = (in_phase, in_exchange, by_client)
    events = {
        "round": rounds[in_exchange],
        "client": by_client,
        "phase": np.array(PHASES, object)[in_phase],
        "start_seconds": (ends - seconds)[place],
        "end_seconds": ends[place],
        "bytes": sizes[place],
        "joules": joules[place],
    }
    exchanges = {
        "round": rounds,
        "seconds": length,
        "end_seconds": end,
        "straggler": finish.argmax(1),
    }
    return timeline_of(pd.DataFrame(events), pd.DataFrame(exchanges), places)


def timeline_of(events, exchanges, places):
    """The `Timeline` of `events`, as it has them, by clients at `places` (see `place_clients`).

    exchanges: a table of round, seconds, end_seconds and straggler; a round has one or more.
    """
    # A round is all its exchanges; its straggler is that of its longest one.
    by_round = exchanges.groupby("round", sort=False)
    rounds = by_round.agg({"seconds": "sum", "end_seconds": "max"}).reset_index()
    longest = exchanges.sort_values("seconds", ascending=False, kind="stable")
    longest = longest.drop_duplicates("round").set_index("round")
    # What travelled, in each round and with each client.
    clients = places.copy()
    seconds = events["end_seconds"] - events["start_seconds"]
    for phase in PHASES:
        clients[f"{phase}_seconds"] = _total(seconds, events, phase, clients, "client", float)
    for column, phase in (("bytes_up", "upload"), ("bytes_down", "download")):
        clients[column] = _total(events["bytes"], events, phase, clients, "client", int)
        rounds[column] = _total(events["bytes"], events, phase, rounds, "round", int)
    spent = events.groupby("client")["joules"].sum()
    clients["joules"] = spent.reindex(clients["client"], fill_value=0.0).to_numpy(float)
    # Who was waited for.
    straggler = longest["straggler"].reindex(rounds["round"]).to_numpy(int)
    rounds["straggler"] = straggler
    clients["rounds_as_straggler"] = np.bincount(straggler[straggler >= 0], minlength=len(clients))
    return Timeline(events, rounds, clients)


def _total(values, events, phase, table, key, kind):
    """The sums of events' `values` in one phase, one for each row of `table` by its column `key`."""
    rows = events["phase"] == phase
    sums = values[rows].groupby(events[key][rows]).sum()
    return sums.reindex(table[key], fill_value=0).to_numpy(kind)


def meet_deadline(timeline, deadline_seconds):
    """What a deadline would have cut off: the rounds of a `Timeline` in which nobody waits longer than that.

    Columns: round, seconds (no more than the deadline), arrived (how many uploads came in time), late (the clients
    whose upload came too late, as a tuple). What those clients know is missing from the average. Rounds of one exchange
    only; raises ValueError for a deadline that isn't above 0.
    """
    if not deadline_seconds > 0:
        raise ValueError(f"deadline_seconds must be larger than 0; got {deadline_seconds!r}.")
    rounds = timeline.rounds["round"]
    uploads = timeline.events[timeline.events["phase"] == "upload"]
    # Which uploads ended later than that after their round had begun?
    began = (timeline.rounds["end_seconds"] - timeline.rounds["seconds"]).set_axis(rounds)
    late = uploads["end_seconds"] - began.reindex(uploads["round"]).to_numpy() > deadline_seconds
    missed = uploads[late].groupby("round")["client"].agg(tuple)
    arrived = uploads[~late].groupby("round").size().reindex(rounds, fill_value=0)
    return pd.DataFrame(
        {
            "round": rounds,
            "seconds": np.minimum(timeline.rounds["seconds"], deadline_seconds),
            "arrived": arrived.to_numpy(),
            "late": [missed.get(server_round, ()) for server_round in rounds],
        }
    )
