"""A clock that runs while a federation runs, so that servers can react to simulated time.

`replay` tells afterwards how long a run would have taken; with the same formulas this clock tells it meanwhile. Used by
`reacting` and `fedbuff`. Taught in lab 05.
"""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
from flwr.common.serde import error_to_proto, recorddict_to_proto

from fedgen_lab.wireless.channel import place_clients
from fedgen_lab.wireless.replay import PHASES, Timeline, phase_joules, phase_seconds

NOBODY = -1  # the straggler of a round in which nobody was asked


class Clock:
    """Simulated time of one run on a `Network`: what took how long, and what time it is (`now`, in seconds)."""

    def __init__(self, network):
        self.network, self.places, self.now = network, place_clients(network), 0.0
        self._events, self._rounds = [], []

    def check_fits(self, num_clients):
        """Raises ValueError when there are more clients than the network has."""
        if num_clients > self.network.num_clients:
            raise ValueError(
                f"{num_clients} clients are connected, but the network has only {self.network.num_clients} clients; "
                f"give it num_clients={num_clients}."
            )

    def seconds(self, server_round, bytes_down, flops, bytes_up, **different):
        """Download, compute and upload of E possible exchanges in one round: (3, E, K) from sizes (E, K).

        `different`: what the network is assumed to have otherwise, such as allocation="equal".
        """
        rounds = np.full(len(bytes_down), server_round)
        return phase_seconds(
            replace(self.network, **different), self.places, rounds, bytes_down, flops, bytes_up
        )

    def write_down(self, server_round, client, start, seconds, sizes, until=math.inf):
        """A client's exchange: seconds (3,) of its phases, sizes (bytes down, flops, bytes up), cut off at `until`."""
        down, flops, up = sizes
        full = np.zeros((3, 1, self.network.num_clients))
        full[:, 0, client] = seconds
        joules = phase_joules(self.network, self.places, np.full_like(full[0], flops), full)[
            :, 0, client
        ]  # (3,)
        for phase, lasts, size, cost in zip(PHASES, seconds, (down, 0, up), joules, strict=True):
            if start < until and (size or lasts):
                part = min(1.0, (until - start) / lasts) if lasts else 1.0
                end = start + lasts if part == 1 else until
                self._events.append(
                    (server_round, client, phase, start, end, int(size * part), cost * part)
                )
            start += lasts

    def end_exchange(self, server_round, end, straggler):
        """Set the clock to the end of an exchange, for which `straggler` was waited; a round has one or more."""
        seconds, last = (
            end - self.now,
            self._rounds[-1] if self._rounds else (None, 0.0, 0.0, NOBODY, 0.0),
        )
        before, longest = (last[1], last[4]) if last[0] == server_round else (0.0, -1.0)
        if last[0] == server_round:
            self._rounds.pop()
            straggler = straggler if seconds > longest else last[3]
        self._rounds.append((server_round, before + seconds, end, straggler, max(seconds, longest)))
        self.now = end

    def timeline(self):
        """The `Timeline` so far, as `replay` would give it; what a deadline cut off is not in it."""
        columns = ["round", "client", "phase", "start_seconds", "end_seconds", "bytes", "joules"]
        events = pd.DataFrame(self._events, columns=columns)
        rounds = pd.DataFrame(
            self._rounds,
            columns=["round", "seconds", "end_seconds", "straggler", "longest_exchange"],
        )
        clients = self.places.copy()
        phases = {phase: rows for phase, rows in events.groupby("phase")}
        for phase in PHASES:
            rows = phases.get(phase, events[:0])
            spent = (rows["end_seconds"] - rows["start_seconds"]).groupby(rows["client"]).sum()
            clients[f"{phase}_seconds"] = spent.reindex(
                clients["client"], fill_value=0.0
            ).to_numpy()
        for column, phase in (("bytes_up", "upload"), ("bytes_down", "download")):
            rows = phases.get(phase, events[:0])
            for table, key in ((rounds, "round"), (clients, "client")):
                table[column] = (
                    rows.groupby(key)["bytes"]
                    .sum()
                    .reindex(table[key], fill_value=0)
                    .to_numpy()
                    .astype(int)
                )
        spent = events.groupby("client")["joules"].sum()
        clients["joules"] = (
            spent.reindex(clients["client"], fill_value=0.0).to_numpy().astype(float)
        )
        waited_for = rounds.loc[rounds["straggler"] != NOBODY, "straggler"].astype(int)
        clients["rounds_as_straggler"] = np.bincount(waited_for, minlength=len(clients))
        rounds = rounds[["round", "seconds", "end_seconds", "bytes_up", "bytes_down", "straggler"]]
        return Timeline(events, rounds, clients)


def sizes_of(message, reply):
    """Bytes down, operations that the client says it spent, bytes up: of a message and its reply, if there is one."""
    down, flops, up = recorddict_to_proto(message.content).ByteSize(), 0.0, 0
    if reply is not None and reply.has_error():
        up = error_to_proto(reply.error).ByteSize()
    elif reply is not None:
        up = recorddict_to_proto(reply.content).ByteSize()
        flops = sum(
            float(record.get("flops", 0.0)) for record in reply.content.metric_records.values()
        )
    return down, flops, up
