"""CheckedFedAvg: federated averaging that looks before it averages.

Flower's `FedAvg` averages whatever arrives: one client that sends NaN spoils the model of all. Here every upload is
checked first, and a client that fails is left out by name while the round goes on with the others. FedAvg: McMahan et
al. 2017, arXiv 1602.05629. Taught in lab 01.
"""

import logging
import math
import time
from statistics import median_low
from typing import NamedTuple

import numpy as np
from flwr.app import ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedgen_lab.federation.arrays import record_of, values_of
from fedgen_lab.federation.averages import change_of, norm, weighted_mean
from fedgen_lab.federation.clients import checked, content_of

_log = logging.getLogger("flwr")  # `flwr log` shows it; a LabGrid keeps it quiet


class Refusal(NamedTuple):
    """An upload that was not averaged."""

    round: int
    client: (
        str  # "client 2" (its partition id), or "node 71830..." while the partition id is unknown
    )
    reason: str  # a whole sentence that names the client


class Averaging:
    """FedAvg's protocol: everyone gets the arrays and sends them back trained; the new ones are their combination.

    Another protocol hands itself to `CheckedFedAvg(protocol=...)` and overrides what it does otherwise.
    """

    fraction_evaluate = 0.0  # of the clients that try the new arrays out on pictures of theirs

    def __init__(self):
        self.client_states = {}  # partition id -> the state its last upload stands for, where that is another
        self.personal_losses = {}  # round -> the mean loss of the clients' models, where these differ

    def begin(self, strategy, grid):
        """Before round 1."""

    def content(self, strategy, node_id, server_round, record):
        """What goes down to one node, from the `RecordDict` that FedAvg would send."""
        return record

    def origin(self, strategy, node_id, server_round, arrays):
        """The `ArrayRecord` that this node's upload must look like, and that it trained from."""
        return arrays

    def note_answers(self, server_round, nodes, answered):
        """Which of the nodes that were asked answered."""

    def note_metrics(self, server_round, metrics):
        """The averaged metrics of an evaluation."""

    def merge(self, strategy, server_round, uploads, weights):
        """The next `latest` out of the accepted uploads, {partition id: ArrayRecord}, and their numbers of examples."""
        return strategy.combined(server_round, strategy.latest, uploads.values(), weights)


class CheckedFedAvg(FedAvg):
    """Flower's `FedAvg`, with every upload checked before it is averaged.

    A client's answer is refused when it is an error, has NaN or infinity in it, has other names, shapes or dtypes
    than the arrays the server sent, gives no sensible "num-examples", or changed its arrays over 100 times as much as
    the median client of this round and the last. A client that never answers is refused too:
    a SuperLink notices within a minute that a SuperNode is gone, and after `timeout` seconds the round stops waiting
    for any other. The next rounds ask whoever is still connected. If nobody is left, the arrays stay as they were.

    Uploads are averaged in the order of partition ids, so every engine gives the same bits. The first round waits
    until `min_available_nodes` clients are connected, or at most `join_timeout` seconds. All other arguments are
    FedAvg's; clients evaluate only where the protocol says so.

    Attributes: `refused`, a list of `Refusal`; `latest`, the newest global `ArrayRecord`, also after a stop;
    `client_arrays`, partition id -> `ArrayRecord` uploaded in the last round. `on_round(server_round, arrays,
    metrics)` is called after each round with the new arrays and the averaged metrics (empty when nobody was left).
    `combine(server_round, sent, uploads, weights)` makes the new arrays out of the accepted uploads: dicts of NumPy
    arrays by name in the order of partition ids, `sent` what the server had, `weights` the numbers of examples;
    `weighted_mean` unless given. `protocol`: an `Averaging`, or what does otherwise. `read(arrays, expected)` turns an
    `ArrayRecord` as it was packed for the wire into one like `expected`, or raises ValueError with a sentence; uploads
    come as they are unless it is given.
    """

    def __init__(
        self,
        *,
        timeout=300.0,  # seconds; longer than any honest round, a dead SuperNode is noticed long before
        join_timeout=60.0,  # seconds; SuperNodes that were started before the run are there at once
        on_round=None,
        combine=None,
        read=None,
        protocol=None,
        seed=0,  # draws the clients of a round when fraction_train < 1
        min_train_nodes=1,
        min_evaluate_nodes=1,
        min_available_nodes=1,
        **fedavg,
    ):
        self.protocol = protocol or Averaging()
        super().__init__(
            fraction_evaluate=self.protocol.fraction_evaluate,
            min_train_nodes=min_train_nodes,
            min_evaluate_nodes=min_evaluate_nodes,
            min_available_nodes=min_available_nodes,
            **fedavg,
        )
        self.timeout, self.join_timeout = timeout, join_timeout
        self.on_round, self.seed = on_round, seed
        self.combine, self.read = combine or weighted_mean, read
        self.refused, self.latest, self.client_arrays = [], None, {}
        self._partitions = {}  # node id -> partition id, as far as known
        self._silent = set()  # nodes that let a round wait until its timeout
        self._asked = []  # the messages of the present exchange
        self._usual = []  # how much each client changed its arrays when uploads were last accepted

    def start(self, grid, initial_arrays, num_rounds=3, timeout=None, **configs):
        """FedAvg's `start`; returns its `Result`. `timeout` is the strategy's own unless given."""
        self.latest = initial_arrays
        # a LabGrid knows who is who; on other engines the clients say so
        self._partitions.update(getattr(grid, "partitions", {}))
        self.protocol.begin(self, grid)
        return super().start(
            grid, initial_arrays, num_rounds, timeout=timeout or self.timeout, **configs
        )

    def configure_train(self, server_round, arrays, config, grid):
        """Ask the clients of this round to train `arrays`."""
        fraction, fewest = self.fraction_train, self.min_train_nodes
        return self._ask(server_round, arrays, config, grid, MessageType.TRAIN, fraction, fewest)

    def configure_evaluate(self, server_round, arrays, config, grid):
        """Ask the clients of this round to evaluate `arrays`."""
        fraction, fewest = self.fraction_evaluate, self.min_evaluate_nodes
        return self._ask(server_round, arrays, config, grid, MessageType.EVALUATE, fraction, fewest)

    def aggregate_train(self, server_round, replies):
        """Average the uploads that pass the checks; (None, None) if nobody is left. Returns (arrays, metrics)."""
        replies = list(replies)
        nodes = self._nodes_of_messages()
        answered = {nodes.get(r.metadata.reply_to_message_id) for r in replies if not r.has_error()}
        self.protocol.note_answers(server_round, nodes.values(), answered)
        accepted = self._accepted(server_round, replies, self.latest)
        self.client_arrays = {
            partition: content[self.arrayrecord_key] for partition, _, content in accepted
        }
        arrays, metrics = None, None
        if accepted:
            contents = [content for _, _, content in accepted]
            metrics = self.train_metrics_aggr_fn(contents, self.weighted_by_key)
            weights = [content["metrics"][self.weighted_by_key] for content in contents]
            self.latest = arrays = self.protocol.merge(
                self, server_round, self.client_arrays, weights
            )
        else:
            fault = "No client sent a usable update" if self._asked else "No client is connected"
            self._refuse(server_round, "everyone", f"{fault}; the model stays as it was.")
        if self.on_round is not None:
            self.on_round(server_round, self.latest, metrics or MetricRecord())
        return arrays, metrics

    def combined(self, server_round, sent, uploads, weights):
        """`combine` on `ArrayRecord`s: what the server had, the clients' uploads, their numbers of examples."""
        states = [values_of(record) for record in uploads]
        return record_of(self.combine(server_round, values_of(sent), states, weights))

    def ask_apart(self, grid, config, expected):
        """One exchange before round 1: [(arrays like `expected`, number of examples)] of the answers that pass."""
        content = RecordDict({self.arrayrecord_key: ArrayRecord(), self.configrecord_key: config})
        nodes = self._connected(1, grid)
        self._asked = [Message(content, node_id, MessageType.TRAIN) for node_id in nodes]
        replies = grid.send_and_receive(self._asked, timeout=self.timeout)
        accepted = [answer for _, _, answer in self._accepted(0, replies, expected)]
        self._usual = []  # of these answers, not of the rounds'
        return [
            (answer[self.arrayrecord_key], answer["metrics"][self.weighted_by_key])
            for answer in accepted
        ]

    def partition_of(self, node_id):
        """The partition id of a node; None while it is unknown."""
        return self._partitions.get(node_id)

    def aggregate_evaluate(self, server_round, replies):
        """Average the metrics of the clients that answered; None if nobody did."""
        contents = [
            content for _, _, content in self._accepted(server_round, replies, expected=None)
        ]
        if not contents:
            return None
        metrics = self.evaluate_metrics_aggr_fn(contents, self.weighted_by_key)
        self.protocol.note_metrics(server_round, metrics)
        return metrics

    def _ask(self, server_round, arrays, config, grid, message_type, fraction, fewest):
        """Messages to the connected clients, or to a `fraction` of them drawn by the seed."""
        self._asked = []
        if fraction == 0.0:
            return self._asked
        node_ids = self._connected(server_round, grid)
        number = min(len(node_ids), max(int(len(node_ids) * fraction), fewest))
        if number < len(node_ids):
            draw = np.random.default_rng([self.seed, server_round])
            node_ids = [
                node_ids[i] for i in sorted(draw.choice(len(node_ids), number, replace=False))
            ]
        config["server-round"] = server_round
        record = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        self._asked = [
            Message(
                self.protocol.content(self, node_id, server_round, record), node_id, message_type
            )
            for node_id in node_ids
        ]
        return self._asked

    def _connected(self, server_round, grid):
        """The ids of the nodes to ask, in the order of partition ids; the first round waits until enough are there."""
        fewest, patience = 1, 30.0
        if server_round == 1:
            fewest, patience = self.min_available_nodes, self.join_timeout
        end = time.monotonic() + patience
        while True:
            node_ids = [node_id for node_id in grid.get_node_ids() if node_id not in self._silent]
            if len(node_ids) >= fewest:
                break
            if time.monotonic() > end:
                reason = (
                    f"{len(node_ids)} of {fewest} clients were connected after {patience:.0f} s"
                )
                self._refuse(server_round, "everyone", f"{reason}; the round went on with them.")
                break
            _log.info("Waiting for %d clients; %d are connected.", fewest, len(node_ids))
            time.sleep(min(2.0, patience))
        return sorted(node_ids, key=self._order)

    def _nodes_of_messages(self):
        """{message id: node id} of those who were asked last."""
        return {m.metadata.message_id: m.metadata.dst_node_id for m in self._asked}

    def _order(self, node_id):
        return self._partitions.get(node_id, math.inf), node_id

    def _accepted(self, server_round, replies, expected):
        """The answers that pass, as (partition id, node id, content) in order; the others are refused by name."""
        # who answered, and who that is
        nodes = self._nodes_of_messages()
        answers = {nodes.get(reply.metadata.reply_to_message_id): reply for reply in replies}
        for node_id, reply in answers.items():
            partition = None if reply.has_error() else _partition_id(reply.content)
            if partition is not None:
                self._partitions.setdefault(node_id, partition)
        self._name_the_last_one(nodes.values())
        # one answer after the other

        accepted, changes, seen = [], [], set()
        for node_id in sorted(nodes.values(), key=self._order):
            partition = self._partitions.get(node_id, node_id)
            try:
                if node_id not in answers:
                    self._silent.add(node_id)
                    raise ValueError("did not answer in time and is not asked again")
                if partition in seen:
                    raise ValueError(
                        "has the same partition id as another client; start each SuperNode with its own"
                    )
                start = self._origin(node_id, server_round, expected)
                content = self._checked(answers[node_id], start)
            except ValueError as fault:
                self._leave_out(server_round, self._name_of(node_id), fault)
                continue
            seen.add(partition)
            accepted.append((partition, node_id, content))
            if start is not None:
                changes.append(change_norm(content[self.arrayrecord_key], start))
        if expected is not None:
            accepted = self._without_giants(server_round, accepted, changes)
        return _with_common_metrics(accepted)

    def _origin(self, node_id, server_round, expected):
        """The arrays that this node's upload must look like, and that it trained from; None where none are due."""
        if expected is None:
            return None
        return self.protocol.origin(self, node_id, server_round, expected)

    def _without_giants(self, server_round, accepted, changes):
        """The accepted answers whose change is at most 100 times what is usual."""
        limit = 100 * _usual_change(changes, self._usual)
        kept, self._usual = [], [change for change in changes if change <= limit] or self._usual
        for answer, change in zip(accepted, changes, strict=True):
            if change > limit > 0:  # a median of zero says nothing about what is usual
                fault = f"changed its arrays {100 * change / limit:,.0f} times as much as the median client"
                self._leave_out(server_round, f"client {answer[0]}", fault)
            else:
                kept.append(answer)
        return kept

    def _name_of(self, node_id):
        partition = self.partition_of(node_id)
        return f"node {node_id}" if partition is None else f"client {partition}"

    def _leave_out(self, server_round, client, fault):
        reason = f"{client.capitalize()} {str(fault).rstrip('.')}; the round went on without it."
        self._refuse(server_round, client, reason)

    def _name_the_last_one(self, node_ids):
        """When one node of n never told its partition id, and one id of 0 .. n-1 is missing, it is that one."""
        nameless = [node_id for node_id in node_ids if node_id not in self._partitions]
        everyone = set(range(max(self.min_available_nodes, len(self._partitions) + len(nameless))))
        missing = everyone - set(self._partitions.values())
        if len(nameless) == 1 and len(missing) == 1:
            self._partitions[nameless[0]] = missing.pop()

    def _checked(self, reply, expected):
        """The reply's content as RecordDict(arrays, metrics); raises ValueError with what is wrong."""
        sent = content_of(reply)
        arrays, metrics = list(sent.array_records.values()), list(sent.metric_records.values())
        if len(metrics) != 1 or (expected is not None and len(arrays) != 1):
            raise ValueError(
                f"sent {len(arrays)} array and {len(metrics)} metric records where one each belongs"
            )
        weight = metrics[0].get(self.weighted_by_key)
        if not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise ValueError(
                f"gave {self.weighted_by_key!r} as {weight!r} where a positive number belongs"
            )
        content = RecordDict({"metrics": metrics[0]})
        if expected is not None:
            content[self.arrayrecord_key] = self._read(arrays[0], expected)
            checked(content[self.arrayrecord_key], expected)
        return content

    def _read(self, arrays, expected):
        if self.read is None:
            return arrays
        try:
            return self.read(arrays, expected)
        except Exception as error:  # bytes from outside: anything can be wrong with them
            raise ValueError(
                f"sent an upload that cannot be read ({str(error).rstrip('.')})"
            ) from None

    def _refuse(self, server_round, client, reason):
        self.refused.append(Refusal(server_round, client, reason))
        _log.warning("Round %d: %s", server_round, reason)


def change_norm(arrays, start):
    """How far two `ArrayRecord`s of the same names and shapes are apart."""
    return norm(change_of(values_of(arrays), values_of(start)))


def _usual_change(changes, last):
    """The larger median of this round's changes and the last's; for a single upload, the smaller one."""
    if len(changes) < 2:
        return median_low(changes + last) if changes else 0.0
    return max(
        median_low(changes), median_low(last or [0.0])
    )  # the first steps from zero are small


def _partition_id(content):
    """The partition id that a client gives in its metrics, or None."""
    for record in content.metric_records.values():
        if isinstance(record.get("partition-id"), int):
            return record["partition-id"]
    return None


def _with_common_metrics(accepted):
    """The same answers with those metrics only that all of them give and that can be averaged."""
    records = [content["metrics"] for _, _, content in accepted]
    shared = set.intersection(*map(set, records)) - {"partition-id"} if records else set()
    shared = {key for key in shared if len({np.shape(record[key]) for record in records}) == 1}
    for _, _, content in accepted:
        content["metrics"] = MetricRecord(
            {key: content["metrics"][key] for key in content["metrics"] if key in shared}
        )
    return accepted
