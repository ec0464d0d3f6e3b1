"""LabGrid: Flower in one process.

A Flower `ServerApp` talks to its clients through a `Grid`. This one delivers each message to the `ClientApp` right
here, in this process, so a federated run starts at once and fits a small notebook; Flower's simulation and its
SuperLink run the very same app on more machines. Nothing is shared between server and client: what crosses the wire
is serialised and read back with Flower's own code, so the bytes in the `Trace` are true. Taught in lab 01. Flower:
Beutel et al. 2020, arXiv 2007.14390.
"""

import logging
import threading
from contextlib import contextmanager

import numpy as np
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import error_to_proto, recorddict_from_proto, recorddict_to_proto
from flwr.serverapp import Grid
from flwr.supercore.run import Run as FlowerRun
from flwr.supercore.task_identity import TaskIdentity

from fedgen_lab.federation.secret import secret_for
from fedgen_lab.federation.trace import SERVER, Trace

RUN_ID = 1  # a LabGrid holds one run
_one_run_at_a_time = threading.RLock()  # Flower's TaskIdentity is one per process


class Stopped(Exception):
    """The learner pressed Stop: `should_stop()` was true when the grid was about to speak to a client."""


class LabGrid(Grid):
    """A Flower `Grid` whose nodes are `num_clients` copies of `client_app` in this process.

    Each node has its own `Context`: node config {"partition-id": i, "num-partitions": n} as in Flower's simulation and
    a "secret" (see `federation.secret`), its own copy of `run_config`, and a state that lasts from message to message.
    Node ids are drawn at random: they are not partition ids.

    `should_stop()` is asked before every message; when it is true the exchange raises `Stopped`. `on_message(sent)`
    is called with every `Sent` that was written into `trace`. An exception in a client becomes a Flower `Error`
    reply, as on a real node, except `Stopped`, which passes through.

    `stacked(messages, contexts)` may answer all messages of one push and type at once: a faster twin of `client_app`
    that gives the same replies, as a list in the order of the messages with an exception where that client raised one,
    or None to leave them to `client_app`. Each message still crosses the wire on its own.

    Use it in a `with` block: Flower's messages need to know which task makes them, and Flower's log is kept quiet
    meanwhile. One run at a time holds the block; another run in another thread waits for its turn.

    Raises ValueError if there is not at least one client.
    """

    def __init__(
        self,
        client_app,
        num_clients,
        run_config=None,
        should_stop=None,
        on_message=None,
        stacked=None,
    ):
        if isinstance(num_clients, bool) or int(num_clients) != num_clients or num_clients < 1:
            raise ValueError(
                f"num_clients must be a whole number of at least 1; got {num_clients!r}."
            )
        self.trace = Trace()
        self._client_app, self._stacked = client_app, stacked
        self._should_stop, self._on_message = should_stop, on_message
        node_ids = np.random.default_rng(num_clients).integers(2**32, 2**62, size=int(num_clients))
        self.partitions = {int(node_id): partition for partition, node_id in enumerate(node_ids)}
        self._contexts = {
            node_id: Context(
                run_id=RUN_ID,
                node_id=node_id,
                node_config={
                    "partition-id": partition,
                    "num-partitions": int(num_clients),
                    "secret": secret_for(partition),
                },
                state=RecordDict(),
                run_config=dict(run_config or {}),
            )
            for node_id, partition in self.partitions.items()
        }
        self._run = FlowerRun.create_empty(RUN_ID)
        self._replies, self._messages, self._exchanges = {}, 0, {}

    def __enter__(self):
        while not _one_run_at_a_time.acquire(timeout=0.1):
            self._stop_if_asked()
        self._leave = _flower_task(RUN_ID, SUPERLINK_NODE_ID)
        self._leave.__enter__()
        return self

    def __exit__(self, *error):
        self._leave.__exit__(*error)
        _one_run_at_a_time.release()

    def set_run(self, run):
        """Set the run, as Flower's engines do."""
        self._run = run

    @property
    def run(self):
        """Flower's description of the run."""
        return self._run

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        """A new `Message` to the node `dst_node_id`; the same as calling `Message(...)`."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self):
        """The node ids of all clients. Raises `Stopped` when the run should stop."""
        self._stop_if_asked()
        return list(self._contexts)

    def push_messages(self, messages):
        """Deliver each message to its client, keep the answers, and return the message ids."""
        steps = {}  # all messages of one push and one round are one step of that round
        if self._stacked is None:
            return [self._deliver([message], steps)[0] for message in messages]
        types = dict.fromkeys(message.metadata.message_type for message in messages)
        together = [[m for m in messages if m.metadata.message_type == kind] for kind in types]
        return [message_id for batch in together for message_id in self._deliver(batch, steps)]

    def pull_messages(self, message_ids):
        """The answers to these messages; each answer is handed out once."""
        replies = [self._replies.pop(message_id, None) for message_id in message_ids]
        return [reply for reply in replies if reply is not None]

    def send_and_receive(self, messages, *, timeout=None):
        """Deliver the messages and return the answers. `timeout` has no meaning here: no client can be out of reach."""
        return self.pull_messages(self.push_messages(messages))

    def _stop_if_asked(self):
        if self._should_stop is not None and self._should_stop():
            raise Stopped("The run was stopped.")

    def _deliver(self, messages, steps):
        """Send messages of one type to their clients, run these and keep the answers, all by Flower's serialisation."""
        self._stop_if_asked()
        received, contexts, sizes = [], [], []
        for message in messages:
            node_id = message.metadata.dst_node_id
            if node_id not in self._contexts:
                raise ValueError(f"No client has the node id {node_id}; use one of get_node_ids().")
            self._messages += 1
            message.metadata.__dict__["_message_id"] = str(
                self._messages
            )  # what every Flower engine does
            content, size = _cross_the_wire(message.content)
            received.append(Message(content, metadata=message.metadata))
            contexts.append(self._contexts[node_id])
            sizes.append(size)
        replies = self._stacked_answers(received, contexts) if self._stacked is not None else None
        if replies is None:
            replies = [
                self._answer(message, context)
                for message, context in zip(received, contexts, strict=True)
            ]
        for message, context, size, reply in zip(messages, contexts, sizes, replies, strict=True):
            server_round = _server_round(message.content)
            if server_round not in steps:
                steps[server_round] = self._exchanges[server_round] = (
                    self._exchanges.get(server_round, -1) + 1
                )
            step, partition, kind = (
                steps[server_round],
                self.partitions[context.node_id],
                message.metadata.message_type,
            )
            self._record(server_round, step, SERVER, partition, kind, size)
            if reply.has_error():
                size, flops, error = (
                    error_to_proto(reply.error).ByteSize(),
                    0.0,
                    reply.error.reason or "unknown error",
                )
            else:
                reply.content, size = _cross_the_wire(reply.content)
                flops, error = flops_of(reply.content), ""
            self._record(server_round, step, partition, SERVER, kind, size, flops, error)
            self._replies[message.metadata.message_id] = reply
        return [message.metadata.message_id for message in messages]

    def _answer(self, message, context):
        """What the client says: its reply, or an `Error` reply if it raised one."""
        try:
            with _flower_task(RUN_ID, context.node_id):
                reply = self._client_app(message, context)
            if not isinstance(reply, Message):
                raise TypeError(
                    f"the client must return a flwr.app.Message; it returned {type(reply).__name__}"
                )
            return reply
        except Stopped:
            raise
        except Exception as error:
            return _error_reply(error, message)

    def _stacked_answers(self, messages, contexts):
        """The same for many clients at once; None if the stacked handler leaves them to the plain one."""
        try:
            with _flower_task(RUN_ID, contexts[0].node_id):
                replies = self._stacked(messages, contexts)
        except Stopped:
            raise
        except Exception as error:  # nobody in particular: each of them gets it
            replies = [error] * len(messages)
        if replies is None:
            return None
        pairs = zip(messages, replies, strict=True)
        return [
            _error_reply(reply, message) if isinstance(reply, Exception) else reply
            for message, reply in pairs
        ]

    def _record(self, *row):
        sent = self.trace.add(*row)
        if self._on_message is not None:
            self._on_message(sent)


@contextmanager
def _flower_task(run_id, node_id):
    """Set Flower's `TaskIdentity` and quieten its log, as a Flower process has them set; put both back afterwards."""
    log = logging.getLogger("flwr")
    identity, level = (
        (TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id),
        log.level,
    )
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, node_id
    if level != logging.ERROR:  # changing it is slow, and a run is thousands of messages
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = identity
        if level != logging.ERROR:
            log.setLevel(level)


def _error_reply(error, message):
    """What a real node sends when its client raised `error`."""
    reason = f"{type(error)}:<'{error}'>"  # the wording of Flower's SuperNode
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


def _cross_the_wire(content):
    """A copy of the records as the other side reads them, and their size in bytes on the wire."""
    wire = recorddict_to_proto(
        content
    )  # Flower's wire form, which shares no memory with the records
    return recorddict_from_proto(wire), wire.ByteSize()


def _server_round(content):
    """The "server-round" that Flower's strategies put into the config; 0 where none is given."""
    for record in content.values():
        if isinstance(record, ConfigRecord | MetricRecord) and "server-round" in record:
            return int(record["server-round"])
    return 0


def flops_of(content):
    """The floating point operations that a client says it spent; 0 where that is no number that could be."""
    for record in content.values():
        if isinstance(record, MetricRecord) and "flops" in record:
            flops = record["flops"]
            return float(flops) if isinstance(flops, int | float) and 0 <= flops < np.inf else 0.0
    return 0.0
