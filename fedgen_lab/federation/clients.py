"""THE place where a server asks its clients, looks at what comes back, and names who is left out.

An answer comes from outside: it may be missing, an error, or hold NaN, or arrays of other names, shapes and types than
it should. Whatever is wrong is the end of a sentence that begins with the client: the round goes on without it, and the
sentence stays in `refused`. Labs 01 and 03 to 08.
"""

import logging
import math
import time
from statistics import median_low
from typing import NamedTuple

import numpy as np
from flwr.common.constant import ErrorCode

from fedgen_lab.federation.arrays import read

LOOK_SECONDS = 0.2  # Flower's own `send_and_receive` looks for answers every three seconds; one hop of a U takes less
TOO_LARGE = 100  # times what is usual: such a change is an error or an attack
_log = logging.getLogger("flwr")  # `flwr log` shows it; a LabGrid keeps it quiet


class Refusal(NamedTuple):
    """An answer that was not used."""

    round: int
    client: str  # "client 2" by its partition id, or "node 71830..." while that is unknown
    reason: str  # a whole sentence that names the client


class Clients:
    """The clients of one run as the server knows them.

    `expected`: how many the run is meant for. `partitions`: node id -> partition id, as far as known; a `LabGrid` knows
    them, on other engines the clients' answers say so. `refused`: a `Refusal` for whatever was not used. `silent`:
    nodes that let a round wait until its timeout; they are not asked again.
    """

    def __init__(self, expected=1):
        self.expected, self.partitions, self.silent, self.refused = expected, {}, set(), []
        self.usual = {}  # partition id -> how much each client changed its arrays when answers were last accepted

    def order(self, node_id):
        """What to sort nodes by, so that every engine gives the same bits: the partition id."""
        return self.partitions.get(node_id, math.inf), node_id

    def name(self, node_id):
        """ "client 2", or "node 71830..." while its partition id is unknown."""
        is_known = node_id in self.partitions
        return f"client {self.partitions[node_id]}" if is_known else f"node {node_id}"

    def connected(self, grid, server_round, patience_seconds=30.0):
        """The nodes to ask, in order. Round 1 waits until `expected` are there, later ones until there is one."""
        self.partitions.update(getattr(grid, "partitions", {}))
        fewest = self.expected if server_round == 1 else 1
        end = time.monotonic() + patience_seconds
        while True:
            node_ids = [node_id for node_id in grid.get_node_ids() if node_id not in self.silent]
            if len(node_ids) >= fewest:
                break
            if time.monotonic() > end:
                count = f"{len(node_ids)} of {fewest} clients were connected"
                reason = f"{count} after {patience_seconds:.0f} s; the round went on with them."
                self.refuse(server_round, "everyone", reason)
                break
            _log.info("Waiting for %d clients; %d are connected.", fewest, len(node_ids))
            time.sleep(min(2.0, patience_seconds))
        return sorted(node_ids, key=self.order)

    def exchange(self, grid, server_round, messages, timeout, check, step=""):
        """Send {node id: message}, wait `timeout` seconds at most, and sift what comes back."""
        replies = ask(grid, messages, timeout)
        return self.sift(server_round, messages, replies, check, step)

    def sift(self, server_round, node_ids, replies, check, step=""):
        """The answers that pass, as [(partition id, node id, what `check` returned)] in order; others are refused.

        replies: {node id: reply} of those that were asked, `node_ids`. `check(node_id, content)` raises ValueError with
        the end of a sentence. step: the part of the round that this is, for the sentence.
        """
        # who answered, and who that is
        for node_id, reply in replies.items():
            partition = None if reply.has_error() else partition_of(reply.content)
            if partition is not None:
                self.partitions.setdefault(node_id, partition)
        self._name_the_last(node_ids)
        # one answer after the other
        passed, seen = [], set()
        for node_id in sorted(node_ids, key=self.order):
            partition = self.partitions.get(node_id, node_id)
            try:
                if node_id not in replies:
                    self.silent.add(node_id)
                    raise ValueError("did not answer in time and is not asked again")
                if partition in seen:
                    raise ValueError(
                        "has the same partition id as another client; start each SuperNode with its own"
                    )
                answer = check(node_id, content_of(replies[node_id]))
            except ValueError as fault:
                self.leave_out(server_round, self.name(node_id), fault, step)
                continue
            except Exception as error:  # bytes from outside: anything can be wrong with them
                fault = f"sent what cannot be used ({type(error).__name__}: {error})"
                self.leave_out(server_round, self.name(node_id), fault, step)
                continue
            seen.add(partition)
            passed.append((partition, node_id, answer))
        return passed

    def without_giants(self, server_round, answers, changes):
        """The answers, (partition id, ...), whose change is at most 100 times as large as what is usual."""
        # what is usual: the larger median of these changes and the last's, as first steps from zero are small; whoever
        # is there twice counts once
        latest = {answer[0]: change for answer, change in zip(answers, changes, strict=True)}
        if len(latest) > 1:
            usual = max(median_low(latest.values()), median_low(self.usual.values() or [0.0]))
        else:
            usual = median_low([*latest.values(), *self.usual.values()] or [0.0])
        limit = TOO_LARGE * usual
        within = {client: change for client, change in latest.items() if change <= limit}
        self.usual = within or self.usual
        kept = []
        for answer, change in zip(answers, changes, strict=True):
            if change > limit > 0:  # a median of zero says nothing about what is usual
                fault = (
                    f"changed its arrays {change / usual:,.0f} times as much as the median client"
                )
                self.leave_out(server_round, f"client {answer[0]}", fault)
            else:
                kept.append(answer)
        return kept

    def leave_out(self, server_round, client, fault, step=""):
        """Refuse a client's answer. fault: the end of a sentence that begins with the client."""
        fault = str(fault).rstrip(".") + (f" (in the step {step!r})" if step else "")
        reason = f"{client.capitalize()} {fault}; the round went on without it."
        self.refuse(server_round, client, reason)

    def refuse(self, server_round, client, reason):
        """Write a refusal down, and into Flower's log. client: a name, or "everyone"."""
        self.refused.append(Refusal(server_round, client, reason))
        _log.warning("Round %d: %s", server_round, reason)

    def _name_the_last(self, node_ids):
        """When one node of n never told its partition id, and one id of 0 .. n-1 is missing, it is that one."""
        nameless = [node_id for node_id in node_ids if node_id not in self.partitions]
        everyone = set(range(max(self.expected, len(self.partitions) + len(nameless))))
        missing = everyone - set(self.partitions.values())
        if len(nameless) == 1 and len(missing) == 1:
            self.partitions[nameless[0]] = missing.pop()


def gather(grid, number, patience_seconds):
    """The ids of the nodes that are connected once there are `number` of them, or once patience is over."""
    end = time.monotonic() + patience_seconds
    while len(node_ids := list(grid.get_node_ids())) < number and time.monotonic() < end:
        time.sleep(LOOK_SECONDS)
    return node_ids


def ask(grid, messages, timeout):
    """Send {key: message} and wait for `timeout` seconds at most: {key: reply} of those who answered."""
    waiting = [
        message_id
        for message_id in grid.push_messages(list(messages.values()))
        if message_id is not None
    ]
    end, replies = time.monotonic() + timeout, {}
    while waiting:
        replies |= {
            reply.metadata.reply_to_message_id: reply for reply in grid.pull_messages(waiting)
        }
        waiting = [message_id for message_id in waiting if message_id not in replies]
        if time.monotonic() > end:
            break
        if waiting:
            time.sleep(LOOK_SECONDS)
    answers = {key: replies.get(message.metadata.message_id) for key, message in messages.items()}
    return {key: reply for key, reply in answers.items() if reply is not None}


def content_of(reply):
    """The records of a reply, or of None. Raises ValueError with what its sender did instead."""
    if reply is None:
        raise ValueError("did not answer in time")
    if not reply.has_error():
        return reply.content
    if reply.error.code == ErrorCode.NODE_UNAVAILABLE:
        raise ValueError("lost its connection")
    raise ValueError(f"sent an error instead of an answer: {reply.error.reason.rstrip('.')}")


def checked(arrays, expected):
    """The NumPy arrays of an `ArrayRecord`, by name.

    expected: name -> a tensor or anything else with a shape and a dtype. Raises ValueError unless the names, shapes and
    dtypes are these and all numbers are finite.
    """
    if missing := sorted(set(expected) - set(arrays)):
        raise ValueError(f"left out {len(missing)} arrays, the first is {missing[0]!r}")
    if extra := sorted(set(arrays) - set(expected)):
        raise ValueError(f"sent {len(extra)} arrays nobody asked for, the first is {extra[0]!r}")
    values = {}
    for name, array in arrays.items():
        shape, dtype = tuple(expected[name].shape), str(expected[name].dtype).removeprefix("torch.")
        try:
            value = read(array)
            is_right = value.shape == shape and str(value.dtype) == dtype
            is_finite = is_right and np.isfinite(value).all()
        except Exception as error:  # bytes from outside: anything can be wrong with them
            raise ValueError(f"sent {name!r} in a form that cannot be read ({error})") from None
        if not is_right:
            raise ValueError(
                f"sent {name!r} as {value.dtype} {value.shape} where {dtype} {shape} belongs"
            )
        if not is_finite:
            raise ValueError(f"sent NaN or infinity in {name!r}")
        values[name] = value
    return values


def partition_of(content):
    """The partition id that a client gives in its metrics, or None."""
    for record in content.metric_records.values():
        if isinstance(record.get("partition-id"), int):
            return record["partition-id"]
    return None
