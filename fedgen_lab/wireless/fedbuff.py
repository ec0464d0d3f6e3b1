"""FedBuff: asynchronous federated averaging, in which nobody waits for the slowest.

Whoever has uploaded starts again at once from the newest model, and every few uploads the server merges what it has;
old work counts less. Nguyen et al. 2022, arXiv 2106.06639. Taught in lab 05.
"""

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict

from fedgen_lab.federation.arrays import record_of, values_of
from fedgen_lab.federation.fedavg import CheckedFedAvg, with_common_metrics
from fedgen_lab.federation.grid import LabGrid
from fedgen_lab.knobs import check_whole
from fedgen_lab.wireless.clock import NOBODY, Clock, sizes_of


class FedBuff(CheckedFedAvg):
    """Asynchronous federated averaging: nobody waits; whenever `buffer` uploads have arrived they are merged.

    Every client always works. When its upload arrives it gets the newest model and starts again, so it may have begun
    s merges ago; its change is then weighted by 1 / sqrt(1 + s). A merge is a round: `num_rounds` of them are a run.

    On a `LabGrid` uploads arrive by simulated time, each client having an equal share of the band all along; on other
    engines as they come. A client's n-th piece of work travels as "job" in its config, beside "server-round", so that
    it can draw new batches when the model has not changed. Unusable uploads are refused by name. (What is too large to
    be honest can't be told while only one client was ever heard of.)

    Attributes: those of `CheckedFedAvg`; `clock`, a `Clock` (at zero unless on a `LabGrid`); `merged`, a list of
    (round, client, staleness) of every upload that was merged. Raises ValueError when `buffer` is not at least 1.
    """

    def __init__(self, network, *, buffer=2, **checked):
        super().__init__(**checked)
        check_whole("buffer", buffer)
        self.buffer, self.clock, self.merged = int(buffer), Clock(network), []
        self._jobs = Counter()  # node id -> pieces of work that it got
        self._under_way = {}  # message id -> `_Work`
        self._collected = []  # what is merged next: (work, partition id, content, size of the change)

    def start(self, grid, initial_arrays, num_rounds=3, timeout=None, **configs):
        """As `CheckedFedAvg`'s, where a merge is a round."""
        self.timeout = timeout or self.timeout
        result = super().start(grid, initial_arrays, num_rounds, **configs)
        for work in self._under_way.values():  # nobody waits any more for what is under way
            if work.book:
                work.book(num_rounds, until=self.clock.now)
        return result

    def configure_train(self, server_round, arrays, config, grid):
        """Wait for `buffer` usable uploads, fewer if nobody is left; there is nobody to ask after that.

        Whoever sent one works on at once; whoever sent something unusable may try again after the merge.
        """
        self._collected, self._asked, moment, client = [], [], self.clock.now, NOBODY
        # Everyone who is connected and has nothing to do begins.
        busy = {work.node_id for work in self._under_way.values()}
        node_ids = self._connected(server_round, grid)
        self.clock.check_fits(len(node_ids))
        for node_id in node_ids:
            if node_id not in busy:
                self._send(grid, node_id, server_round, config, moment)
        # One upload after the other arrives.
        while self._under_way and len(self._collected) < self.buffer:
            work = self._next(grid)
            self._asked = [work.message]
            if work.book:
                moment, client = work.arrival, work.client
                work.book(server_round)
            answers = {work.node_id: work.reply} if work.reply else {}
            check = partial(self._checked, start=work.sent)
            for partition, node_id, content in self.clients.sift(
                server_round, [work.node_id], answers, check
            ):
                self._collected.append((work, partition, content, self._changes[node_id]))
                if len(self._collected) < self.buffer:
                    self._send(grid, node_id, server_round, config, moment)
        self.clock.end_exchange(server_round, moment, client)
        return []

    def aggregate_train(self, server_round, replies):
        """Merge what was collected: w + the mean of (w_k - what k had received) / sqrt(1 + staleness)."""
        answers, changes, latest = [], [], values_of(self.latest)
        for work, partition, content, change in self._collected:
            self.client_arrays[partition] = content[self.arrayrecord_key]
            # The upload as if it had begun at `latest`, its change made smaller by its staleness.
            staleness, sent, moved = server_round - work.server_round, values_of(work.sent), {}
            for name, trained in values_of(self.client_arrays[partition]).items():
                step = (trained - sent[name]) / math.sqrt(1 + staleness)
                moved[name] = (latest[name] + step).astype(trained.dtype)
            content[self.arrayrecord_key] = record_of(moved)
            answers.append((partition, staleness, content))
            changes.append(change / math.sqrt(1 + staleness))
        kept = with_common_metrics(self._without_giants(server_round, answers, changes))
        self.merged += [(server_round, partition, staleness) for partition, staleness, _ in kept]
        # A fast client may be there twice.
        contents = [content for _, _, content in kept]
        uploads = {number: content[self.arrayrecord_key] for number, content in enumerate(contents)}
        return self._average(server_round, contents, uploads)

    def _send(self, grid, node_id, server_round, config, begun):
        """Give a client the newest model."""
        self._jobs[node_id] += 1
        config = ConfigRecord({**config, "server-round": server_round, "job": self._jobs[node_id]})
        record = RecordDict({self.arrayrecord_key: self.latest, self.configrecord_key: config})
        message = Message(record, node_id, MessageType.TRAIN)
        (message_id,) = grid.push_messages([message])
        self._under_way[message_id] = _Work(node_id, message, server_round, self.latest, begun)

    def _next(self, grid):
        """Take the piece of work that ends next out of `_under_way`: by the clock, or as answers come."""
        while True:
            waiting = [key for key, work in self._under_way.items() if work.reply is None]
            for reply in grid.pull_messages(waiting):
                work = self._under_way[reply.metadata.reply_to_message_id]
                work.reply, work.arrival = reply, time.monotonic()
                if isinstance(grid, LabGrid):
                    self._put_on_the_clock(work)
            key = min(self._under_way, key=lambda key: self._under_way[key].arrival)
            first = self._under_way[key]
            if first.reply is not None or time.monotonic() - first.pushed > self.timeout:
                return self._under_way.pop(key)
            time.sleep(1.0)

    def _put_on_the_clock(self, work):
        """A `LabGrid` answers at once; the clock says when the answer would arrive, as if all worked alike."""
        work.client = client = self.clients.partitions[work.node_id]
        sizes = np.array(sizes_of(work.message, work.reply))
        job, everyone = self._jobs[work.node_id], np.ones((1, len(self.clock.places)))
        seconds = self.clock.seconds(
            job, sizes[:, None, None] * everyone, allocation="equal", downlink="unicast"
        )[:, 0, client]
        work.arrival = work.begun + seconds.sum()
        work.book = partial(
            self.clock.write_down, client=client, start=work.begun, seconds=seconds, sizes=sizes
        )


@dataclass
class _Work:
    """One piece of work of one client in `FedBuff`. Without a reply it has not ended, or never will."""

    node_id: int
    message: Message
    server_round: int  # in which it began
    sent: ArrayRecord  # what the client received
    begun: float  # on the clock
    pushed: float = field(default_factory=time.monotonic)
    reply: Message | None = None
    arrival: float = math.inf  # seconds of the clock; elsewhere than on a LabGrid, of this machine
    client: int = NOBODY  # this and the next only on the clock
    book: Callable | None = None  # (server_round, until) -> nothing: writes it down
