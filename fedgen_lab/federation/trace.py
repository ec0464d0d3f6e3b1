"""Trace: the ledger of who sent what to whom.

What is sent does not depend on how fast the radio is. So a run is recorded once, without a clock, and
`wireless.replay` turns the same record into seconds and joules for any bandwidth. Taught in lab 01.
"""

from typing import NamedTuple

import pandas as pd

SERVER = -1  # the server's name in a trace; clients go by their partition id, 0, 1, 2, ...


class Sent(NamedTuple):
    """One message that crossed the wire."""

    round: int  # the server's round; 0 before the first
    step: int  # which exchange of that round: 0 is the first time the server speaks, 1 the second, ...
    sender: int  # SERVER or a partition id
    receiver: int
    kind: str  # Flower's message type: "train", "evaluate", "query" or "train.ACTION"
    bytes: int  # size of the content as Flower serialises it
    flops: float  # work the sender did to make this message, if it says so
    error: str  # "" or the reason why an answer holds an error instead of records


class Trace:
    """Every message of a run, in the order of sending."""

    def __init__(self):
        self._sent = []

    def add(self, round, step, sender, receiver, kind, bytes, flops=0.0, error=""):
        """Write one message down and return it as a `Sent`."""
        sent = Sent(
            int(round), int(step), int(sender), int(receiver), kind, int(bytes), float(flops), error
        )
        self._sent.append(sent)
        return sent

    def __len__(self):
        return len(self._sent)

    def until(self, last_round):
        """A copy without the messages after `last_round`: a run that goes on keeps writing into its own."""
        copy = Trace()
        copy._sent = [sent for sent in self._sent.copy() if sent.round <= last_round]
        return copy

    def frame(self):
        """All messages as a DataFrame: round, step, sender, receiver, kind, bytes, flops, error."""
        frame = pd.DataFrame(self._sent.copy(), columns=list(Sent._fields))
        return frame.astype(
            {name: kind for name, kind in Sent.__annotations__.items() if kind is not str}
        )
