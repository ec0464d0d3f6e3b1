"""CheckedFedAvg: federated averaging that looks before it averages.

Flower's `FedAvg` averages whatever arrives: one client that sends NaN spoils the model of all. Here every upload is
checked first, and a client that fails is left out by name while the round goes on with the others. FedAvg: McMahan et
al. 2017, arXiv 1602.05629. Taught in lab 01.
"""

import math

import numpy as np
from flwr.app import ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedgen_lab.federation.arrays import record_of, values_of
from fedgen_lab.federation.averages import change_of, norm, weighted_mean
from fedgen_lab.federation.clients import Clients, checked


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
    `ArrayRecord` as it was packed for the wire into one like `expected`, or raises ValueError with the end of a
    sentence; uploads come as they are unless it is given.
    """

    unasked = "No client is connected"  # why a round asks nobody

    def __init__(
        self,
        *,
        timeout=300.0,  # seconds; longer than any honest round, a dead SuperNode is noticed long before
        join_timeout=60.0,  # seconds; SuperNodes that were started before the run are there at once
        on_round=None,
        combine=weighted_mean,
        read=None,
        protocol=None,
        is_clipped=False,  # then no upload is refused for its size
        seed=0,  # draws the clients of a round when fraction_train < 1
        min_available_nodes=1,
        **fedavg,
    ):
        self.protocol = protocol or Averaging()
        super().__init__(
            fraction_evaluate=self.protocol.fraction_evaluate,
            min_train_nodes=1,
            min_evaluate_nodes=1,
            min_available_nodes=min_available_nodes,
            **fedavg,
        )
        self.timeout, self.join_timeout = timeout, join_timeout
        self.on_round, self.seed = on_round, seed
        self.combine, self.read, self.is_clipped = combine, read, is_clipped
        self.clients, self.latest, self.client_arrays = Clients(min_available_nodes), None, {}
        self._asked = []  # the messages of the present exchange
        self._changes = {}  # node id -> how much its last upload changed the arrays

    @property
    def refused(self):
        """A `Refusal` for whatever was not averaged, in order."""
        return self.clients.refused

    def start(self, grid, initial_arrays, num_rounds=3, timeout=None, **configs):
        """FedAvg's `start`; returns its `Result`. `timeout` is the strategy's own unless given."""
        self.latest = initial_arrays
        self.protocol.begin(self, grid)
        return super().start(
            grid, initial_arrays, num_rounds, timeout=timeout or self.timeout, **configs
        )

    def configure_train(self, server_round, arrays, config, grid):
        """Ask the clients of this round to train `arrays`."""
        return self._ask(server_round, arrays, config, grid, MessageType.TRAIN, self.fraction_train)

    def configure_evaluate(self, server_round, arrays, config, grid):
        """Ask the clients of this round to evaluate `arrays`."""
        fraction = self.fraction_evaluate
        return self._ask(server_round, arrays, config, grid, MessageType.EVALUATE, fraction)

    def aggregate_train(self, server_round, replies):
        """Average the uploads that pass the checks; (None, None) if nobody is left. Returns (arrays, metrics)."""
        replies = list(replies)
        nodes = {m.metadata.message_id: m.metadata.dst_node_id for m in self._asked}
        answered = {nodes.get(r.metadata.reply_to_message_id) for r in replies if not r.has_error()}
        self.protocol.note_answers(server_round, nodes.values(), answered)
        accepted = self._uploads(
            server_round,
            replies,
            lambda node_id: self.protocol.origin(self, node_id, server_round, self.latest),
        )
        self.client_arrays = {
            partition: content[self.arrayrecord_key] for partition, _, content in accepted
        }
        contents = [content for _, _, content in accepted]
        return self._average(server_round, contents, self.client_arrays)

    def _average(self, server_round, contents, uploads):
        """End a round: the protocol makes the next `latest` of `uploads`, {key: `ArrayRecord`} in the same order."""
        arrays, metrics = None, None
        if contents:
            metrics = self.train_metrics_aggr_fn(contents, self.weighted_by_key)
            weights = [content["metrics"][self.weighted_by_key] for content in contents]
            self.latest = arrays = self.protocol.merge(self, server_round, uploads, weights)
        else:
            fault = "No client sent a usable update" if self._asked else self.unasked
            self.clients.refuse(server_round, "everyone", f"{fault}; the model stays as it was.")
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
        nodes = self.clients.connected(grid, 1, self.join_timeout)
        self._asked = [Message(content, node_id, MessageType.TRAIN) for node_id in nodes]
        replies = grid.send_and_receive(self._asked, timeout=self.timeout)
        accepted = self._uploads(0, replies, lambda node_id: expected)
        self.clients.usual = {}  # of these answers, not of the rounds'
        return [
            (answer[self.arrayrecord_key], answer["metrics"][self.weighted_by_key])
            for _, _, answer in accepted
        ]

    def aggregate_evaluate(self, server_round, replies):
        """Average the metrics of the clients that answered; None if nobody did."""
        contents = [content for _, _, content in self._accepted(server_round, replies)]
        if not contents:
            return None
        metrics = self.evaluate_metrics_aggr_fn(contents, self.weighted_by_key)
        self.protocol.note_metrics(server_round, metrics)
        return metrics

    def _ask(self, server_round, arrays, config, grid, message_type, fraction):
        """Messages to the connected clients, or to a `fraction` of them drawn by the seed."""
        self._asked = []
        if fraction == 0.0:
            return self._asked
        node_ids = self._connected(server_round, grid)
        number = min(len(node_ids), max(int(len(node_ids) * fraction), 1))
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
        """The ids of the nodes to ask, in the order of partition ids."""
        patience = self.join_timeout if server_round == 1 else 30.0
        return self.clients.connected(grid, server_round, patience)

    def _uploads(self, server_round, replies, start_of):
        """The uploads that pass all checks, as (partition id, node id, content) in order."""
        accepted = self._accepted(server_round, replies, start_of)
        changes = [self._changes[node_id] for _, node_id, _ in accepted]
        return self._without_giants(server_round, accepted, changes)

    def _without_giants(self, server_round, answers, changes):
        # where uploads are clipped, no one's fate may hang on the others' sizes: it would tell about these
        if self.is_clipped:
            return answers
        return self.clients.without_giants(server_round, answers, changes)

    def _accepted(self, server_round, replies, start_of=None):
        """The answers that pass on their own, in order. `start_of(node_id)`: the `ArrayRecord` that an upload must look
        like, and that it trained from; not given where only metrics are due."""
        nodes = {m.metadata.message_id: m.metadata.dst_node_id for m in self._asked}
        answers = {nodes.get(reply.metadata.reply_to_message_id): reply for reply in replies}

        def check(node_id, content):
            return self._checked(node_id, content, None if start_of is None else start_of(node_id))

        return with_common_metrics(self.clients.sift(server_round, nodes.values(), answers, check))

    def _checked(self, node_id, sent, start):
        """What a client sent as RecordDict(arrays, metrics). Raises ValueError with what is wrong."""
        arrays, metrics = list(sent.array_records.values()), list(sent.metric_records.values())
        if len(metrics) != 1 or (start is not None and len(arrays) != 1):
            raise ValueError(
                f"sent {len(arrays)} array and {len(metrics)} metric records where one each belongs"
            )
        weight = metrics[0].get(self.weighted_by_key)
        if not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise ValueError(
                f"gave {self.weighted_by_key!r} as {weight!r} where a positive number belongs"
            )
        for name, value in metrics[0].items():
            if not np.isfinite(value).all() or (name == "flops" and not np.min(value) >= 0):
                raise ValueError(f"gave {name!r} as {value!r} where a finite number belongs")
        content = RecordDict({"metrics": metrics[0]})
        if start is not None:
            upload = arrays[0] if self.read is None else self.read(arrays[0], start)
            content[self.arrayrecord_key] = upload
            change = change_of(checked(upload, start), values_of(start))
            self._changes[node_id] = norm(change)
        return content


def with_common_metrics(accepted):
    """The same answers with those metrics only that all of them give and that can be averaged."""
    records = [content["metrics"] for _, _, content in accepted]
    shared = set.intersection(*map(set, records)) - {"partition-id"} if records else set()
    shared = {key for key in shared if len({np.shape(record[key]) for record in records}) == 1}
    for _, _, content in accepted:
        content["metrics"] = MetricRecord(
            {key: content["metrics"][key] for key in content["metrics"] if key in shared}
        )
    return accepted
