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

    def seconds(self, server_round, bytes_down, flops, bytes_up, **different):
        """Download, compute and upload of E possible exchanges in one round: (3, E, K) from sizes (E, K).

        `different`: what the network is assumed to have otherwise, such as allocation="equal".
        """
        rounds = np.full(len(bytes_down), server_round)
        network = replace(self.network, **different)
        return phase_seconds(network, self.places, rounds, bytes_down, flops, bytes_up)

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


def sizes_of(message, reply):
    """Bytes down, operations that the client says it spent, bytes up: of a message and its reply, if there is one."""
    down, flops, up = recorddict_to_proto(message.content).ByteSize(), 0.0, 0
    if reply is not None and reply.has_error():
        up = error_to_proto(reply.error).ByteSize()
    elif reply is not None:
        up = recorddict_to_proto(reply.content).ByteSize()
        flops = flops_of(reply.content)
    return down, flops, up
