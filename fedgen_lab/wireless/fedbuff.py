"""FedBuff: asynchronous federated averaging, in which nobody waits for the slowest.

Whoever has uploaded starts again at once from the newest model, and every few uploads the server merges what it has;
old work counts less. Nguyen et al. 2022, arXiv 2106.06639. Taught in lab 05.
"""

import math
import time
from collections import Counter
from typing import NamedTuple

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp.strategy import Result

from fedgen_lab.federation.fedavg import CheckedFedAvg, _with_common_metrics, change_norm
from fedgen_lab.federation.grid import LabGrid
from fedgen_lab.wireless.clock import NOBODY, Clock, sizes_of


class FedBuff(CheckedFedAvg):
    """Asynchronous federated averaging: nobody waits; whenever `buffer` uploads have arrived they are merged.

    Every client always works. When its upload arrives it gets the newest model and starts again, so it may have begun
    s merges ago; its change is then weighted by 1 / sqrt(1 + s). A merge is a round: `num_rounds` of them are a run.

    On a `LabGrid` uploads arrive by simulated time, each client having an equal share of the band all along; on other
    engines as they come. A client's n-th piece of work travels as "job" in its config, beside "server-round", so that
    it can draw new batches when the model has not changed. Unusable uploads are refused by name.

    Attributes: those of `CheckedFedAvg`; `clock`, a `Clock` (at zero unless on a `LabGrid`); `merged`, a list of
    (round, client, staleness) of every upload that was merged. Raises ValueError when `buffer` is not at least 1.
    """

    def __init__(self, network, *, buffer=2, **checked):
        super().__init__(**checked)
        if int(buffer) != buffer or buffer < 1:
            raise ValueError(f"buffer must be a whole number of at least 1 upload; got {buffer!r}.")
        self.buffer, self.clock, self.merged = int(buffer), Clock(network), []
        self._jobs, self._under_way, self._simulated = Counter(), {}, False

    def start(
        self,
        grid,
        initial_arrays,
        num_rounds=3,
        timeout=None,
        train_config=None,
        evaluate_fn=None,
        **_,
    ):
        """Run until `num_rounds` merges are done; returns Flower's `Result`."""
        self.latest, self._config, result = (
            initial_arrays,
            dict(train_config or {}),
            Result(arrays=initial_arrays),
        )
        self._simulated = isinstance(grid, LabGrid)
        try_out = evaluate_fn or (lambda server_round, arrays: None)
        result.evaluate_metrics_serverapp[0] = try_out(0, self.latest) or MetricRecord()
        for server_round in range(1, num_rounds + 1):
            self._set_to_work(grid, server_round)
            collected = self._collect(grid, server_round, timeout or self.timeout)
            metrics = self._merge(server_round, collected)
            result.arrays, result.train_metrics_clientapp[server_round] = self.latest, metrics
            result.evaluate_metrics_serverapp[server_round] = (
                try_out(server_round, self.latest) or MetricRecord()
            )
        if self._simulated:  # nobody waits any more for what is under way
            for work in self._under_way.values():
                self.clock.write_down(
                    num_rounds, work.client, work.begun, work.seconds, work.sizes, self.clock.now
                )
        return result

    def _set_to_work(self, grid, server_round):
        """Give the newest model to everyone who is connected and has nothing to do."""
        busy = {work.message.metadata.dst_node_id for work in self._under_way.values()}
        node_ids = self._connected(server_round, grid)
        self.clock.check_fits(len(node_ids))
        for node_id in node_ids:
            if node_id not in busy:
                self._send(grid, node_id, server_round, self.clock.now)

    def _collect(self, grid, server_round, timeout):
        """Wait for `buffer` usable uploads: a list of (work, partition id, content), shorter if nobody is left.

        Whoever sent one works on at once; whoever sent something unusable may try again after the merge.
        """
        collected, moment, client = [], self.clock.now, NOBODY
        while self._under_way and len(collected) < self.buffer:
            work = self._next(grid, timeout)
            self._asked, replies = [work.message], [] if work.reply is None else [work.reply]
            accepted = self._accepted(server_round, replies, lambda node_id, work=work: work.sent)
            collected += [(work, partition, content) for partition, _, content in accepted]
            if self._simulated:
                moment, client = work.arrival, work.client
                self.clock.write_down(server_round, client, work.begun, work.seconds, work.sizes)
            if accepted and len(collected) < self.buffer:
                self._send(grid, work.message.metadata.dst_node_id, server_round, moment)
        self.clock.end_exchange(server_round, moment, client)
        return collected

    def _merge(self, server_round, collected):
        """Merge what was collected into `latest`: w + the mean of (w_k - what k had received) / sqrt(1 + staleness)."""
        metrics, answers, changes = MetricRecord(), [], []
        for work, partition, content in collected:
            staleness = server_round - work.server_round
            moved = self._moved(content[self.arrayrecord_key], work.sent, staleness)
            answers.append(
                (partition, staleness, RecordDict({**content, self.arrayrecord_key: moved}))
            )
            changes.append(change_norm(moved, self.latest))
            self.client_arrays[partition] = content[self.arrayrecord_key]
        kept = _with_common_metrics(self.clients.without_giants(server_round, answers, changes))
        if kept:
            contents = [content for _, _, content in kept]
            self.merged += [
                (server_round, partition, staleness) for partition, staleness, _ in kept
            ]
            metrics = self.train_metrics_aggr_fn(contents, self.weighted_by_key)
            uploads = [content[self.arrayrecord_key] for content in contents]
            weights = [content["metrics"][self.weighted_by_key] for content in contents]
            self.latest = self.combined(server_round, self.latest, uploads, weights)
        else:
            self.clients.refuse(
                server_round,
                "everyone",
                "No client sent a usable update; the model stays as it was.",
            )
        if self.on_round is not None:
            self.on_round(server_round, self.latest, metrics)
        return metrics

    def _moved(self, trained, sent, staleness):
        """An upload as if it had begun at `latest`, its change made smaller by its staleness."""
        moved = {}
        for name, array in trained.items():
            change = (array.numpy() - sent[name].numpy()) / math.sqrt(1 + staleness)
            moved[name] = Array(np.asarray(self.latest[name].numpy() + change, dtype=array.dtype))
        return ArrayRecord(moved)

    def _send(self, grid, node_id, server_round, moment):
        """Give a client the newest model. A `LabGrid` answers at once; the clock says when the answer would arrive."""
        self._jobs[node_id] += 1
        config = ConfigRecord(
            {**self._config, "server-round": server_round, "job": self._jobs[node_id]}
        )
        record = RecordDict({self.arrayrecord_key: self.latest, self.configrecord_key: config})
        message = Message(record, node_id, MessageType.TRAIN)
        (message_id,) = grid.push_messages([message])
        work = _Work(
            message,
            server_round,
            self.latest,
            begun=moment if self._simulated else time.monotonic(),
        )
        if self._simulated:
            (reply,), client = grid.pull_messages([message_id]), self.clients.partitions[node_id]
            sizes, everyone = sizes_of(message, reply), np.ones((1, len(self.clock.places)))
            job = self.clock.seconds(
                self._jobs[node_id],
                *(size * everyone for size in sizes),
                allocation="equal",
                downlink="unicast",
            )  # (3, 1, K): as if all worked alike
            seconds = job[:, 0, client]
            work = work._replace(
                reply=reply,
                arrival=moment + seconds.sum(),
                client=client,
                seconds=seconds,
                sizes=sizes,
            )
        self._under_way[message_id] = work

    def _next(self, grid, timeout):
        """Take the next piece of work that ends out of `_under_way`: by the clock, or by waiting for it."""
        while not self._simulated:
            moment = time.monotonic()
            for reply in grid.pull_messages(list(self._under_way)):
                message_id = reply.metadata.reply_to_message_id
                self._under_way[message_id] = self._under_way[message_id]._replace(
                    reply=reply, arrival=moment
                )
            if any(
                work.reply is not None or moment - work.begun > timeout
                for work in self._under_way.values()
            ):
                break
            time.sleep(1.0)
        return self._under_way.pop(
            min(self._under_way, key=lambda message_id: self._under_way[message_id].arrival)
        )


class _Work(NamedTuple):
    """One piece of work of one client in `FedBuff`. Without a reply it has not ended, or never will."""

    message: Message
    server_round: int  # in which it began
    sent: ArrayRecord  # what the client received
    begun: float  # seconds, as `arrival`
    reply: Message | None = None
    arrival: float = math.inf
    client: int = NOBODY  # these three only on the clock
    seconds: np.ndarray | None = None
    sizes: tuple | None = None
