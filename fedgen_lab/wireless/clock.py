"""A clock that runs while a federation runs, so that servers can react to simulated time.

`replay` tells afterwards how long a run would have taken; with the same formulas this clock tells it meanwhile. Used by
`reacting` and `fedbuff`. Taught in lab 05.
"""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
from flwr.common.serde import error_to_proto, recorddict_to_proto

from fedgen_lab.federation.grid import flops_of
from fedgen_lab.wireless.channel import phase_joules, phase_seconds, place_clients
from fedgen_lab.wireless.replay import PHASES, timeline_of

EVENTS = ("round", "client", "phase", "start_seconds", "end_seconds", "bytes", "joules")
EXCHANGES = ("round", "seconds", "end_seconds", "straggler")
NOBODY = -1  # the straggler of a round in which nobody was asked


class Clock:
    """Simulated time of one run on a `Network`: what took how long, and what time it is (`now`, in seconds)."""

    def __init__(self, network):
        self.network = network
        self.places = place_clients(network)
        self.now = 0.0
        self._events = []  # rows of EVENTS
        self._exchanges = []  # rows of EXCHANGES

    def check_fits(self, num_clients):
        """Raises ValueError when there are more clients than the network has."""
        self.network.check_fits(num_clients, f"{num_clients} clients are connected")

    def seconds(self, server_round, sizes, **different):
        """Download, compute and upload of E possible exchanges in one round, (3, E, K).

        sizes (3, E, K): bytes down, operations, bytes up. `different`: what the network is assumed to have otherwise,
        such as allocation="equal".
        """
        rounds = np.full(sizes.shape[1], server_round)
        return phase_seconds(replace(self.network, **different), self.places, rounds, *sizes)

    def exchange(self, server_round, clients, sizes, deadline):
        """Book an exchange with `clients`, who begin together now; it ends with the last one, or at the deadline.

        sizes (3, K): bytes down, operations, bytes up, zero for the others. Returns the seconds that they take, (K,).
        """
        seconds = self.seconds(server_round, sizes[:, None])[:, 0]  # (3, K)
        finish = seconds.sum(0)
        for client in clients:
            lasts, size = seconds[:, client], sizes[:, client]
            self.write_down(server_round, client, self.now, lasts, size, self.now + deadline)
        straggler = int(finish.argmax()) if clients else NOBODY
        self.end_exchange(server_round, self.now + np.minimum(finish, deadline).max(), straggler)
        return finish

    def write_down(self, server_round, client, start, seconds, sizes, until=math.inf):
        """A client's exchange: seconds (3,) of its phases, sizes (bytes down, flops, bytes up), cut off at `until`."""
        bytes_down, flops, bytes_up = sizes
        place = self.places.iloc[[client]]
        joules = phase_joules(self.network, place, flops, seconds[:, None, None])[:, 0, 0]  # (3,)
        sent = (bytes_down, 0, bytes_up)
        for phase, lasts, size, cost in zip(PHASES, seconds, sent, joules, strict=True):
            if start < until and (size or lasts):
                share = min(1.0, (until - start) / lasts) if lasts else 1.0
                end = start + lasts if share == 1 else until
                done = (start, end, int(size * share), cost * share)
                self._events.append((server_round, client, phase, *done))
            start += lasts

    def end_exchange(self, server_round, end, straggler):
        """Set the clock to the end of an exchange, for which `straggler` was waited; a round has one or more."""
        self._exchanges.append((server_round, end - self.now, end, straggler))
        self.now = end

    def timeline(self):
        """The `Timeline` so far, as `replay` would give it; what a deadline cut off is not in it."""
        events = pd.DataFrame(self._events, columns=EVENTS)
        return timeline_of(events, pd.DataFrame(self._exchanges, columns=EXCHANGES), self.places)


def bytes_of(content):
    """The size of a `RecordDict` on the wire."""
    return recorddict_to_proto(content).ByteSize()


def sizes_of(message, reply):
    """Bytes down, operations that the client says it spent, bytes up: of a message and its reply, if there is one."""
    flops, up = 0.0, 0
    if reply is not None and reply.has_error():
        up = error_to_proto(reply.error).ByteSize()
    elif reply is not None:
        up = bytes_of(reply.content)
        flops = flops_of(reply.content)
    return bytes_of(message.content), flops, up
