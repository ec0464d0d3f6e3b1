"""Synchronous servers that react to the clock: they choose who trains, and stop waiting at a deadline.

Simulated time runs along and changes the run itself: who is asked, and whose upload still counts. Random choice:
McMahan et al. 2017, arXiv 1602.05629; as many clients as make a deadline: FedCS, Nishio and Yonetani 2019, arXiv
1804.08333. Asynchronous servers are in `fedbuff`. Taught in lab 05.
"""

import math

import numpy as np
from flwr.app import MessageType, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto

from fedgen_lab.federation.clients import partition_of
from fedgen_lab.federation.fedavg import CheckedFedAvg
from fedgen_lab.scenario import SELECTIONS
from fedgen_lab.wireless.channel import Network
from fedgen_lab.wireless.clock import NOBODY, Clock, sizes_of
from fedgen_lab.wireless.fedbuff import FedBuff


def reacting_strategy(scenario, network=None, work_flops=0.0, **checked):
    """The strategy for a scenario's `select`, `fraction`, `deadline_seconds` and `buffer`; the rest goes to
    `CheckedFedAvg`.

    `network`: the scenario's own cell unless given. `work_flops`: what a client computes in a round, as far as the
    server can tell before the first answer. Raises ValueError, naming both knobs, when they contradict each other.
    """
    network = network or Network(scenario.num_clients, scenario.bandwidth_hz, seed=scenario.seed)
    if not scenario.buffer:
        return ReactingFedAvg(
            network,
            select=scenario.select,
            fraction=scenario.fraction,
            deadline_seconds=scenario.deadline_seconds,
            work_flops=work_flops,
            **checked,
        )
    for knob, off in (("select", "all"), ("deadline_seconds", 0.0)):
        if getattr(scenario, knob) != off:
            raise ValueError(
                f"buffer={scenario.buffer} lets every client work without rounds, so {knob}="
                f"{getattr(scenario, knob)!r} has nothing to decide; set buffer=0 or {knob}={off!r}."
            )
    return FedBuff(network, buffer=scenario.buffer, **checked)


class ReactingFedAvg(CheckedFedAvg):
    """Synchronous rounds on a clock: `CheckedFedAvg` that chooses its clients and need not wait for all of them.

    `select`: "all"; "random", a `fraction` drawn by the seed; "fastest", the `fraction` that would be done first if the
    band were shared equally; "deadline", as many as make `deadline_seconds` together. FedCS adds clients one by one to
    a queue for the band; here they share it, so the slowest are left out until the rest are in time (our form for
    OFDMA). The server knows places, speeds and the round's fading; sizes and work it takes from the last answers.

    With `deadline_seconds` > 0 a round ends then at the latest: uploads that arrive later are dropped and named, and
    the others are averaged. Time is simulated on every engine, so all of them drop the same uploads.

    Attributes: those of `CheckedFedAvg`; `clock`, a `Clock`; `late`, a list of (round, client, seconds it would take).
    """

    def __init__(
        self,
        network,
        *,
        select="all",
        fraction=1.0,
        deadline_seconds=0.0,
        work_flops=0.0,
        **checked,
    ):
        if select not in SELECTIONS:
            raise ValueError(f"select must be one of {', '.join(SELECTIONS)}; got {select!r}.")
        if select == "deadline" and not deadline_seconds > 0:
            raise ValueError(
                f'select="deadline" needs a deadline_seconds above 0; got {deadline_seconds!r}.'
            )
        super().__init__(fraction_train=fraction if select == "random" else 1.0, **checked)
        self.select, self.fraction, self.deadline = select, fraction, deadline_seconds or math.inf
        self.clock, self.late, self._too_late = Clock(network), [], {}
        self._guess = np.zeros(
            (3, network.num_clients)
        )  # bytes down, flops, bytes up of every client
        self._guess[1] = work_flops
        self._heard_of, self._nobody_in_time = np.zeros(network.num_clients, bool), False
        self._choosing = False  # only who trains is chosen

    def aggregate_train(self, server_round, replies):
        """As the other bases', but says so when nobody was asked because nobody can make the deadline."""
        if not self._nobody_in_time:
            return super().aggregate_train(server_round, replies)
        reason = (
            f"No client can make the deadline of {self.deadline:.3g} s; the model stays as it was."
        )
        self.clients.refuse(server_round, "everyone", reason)
        self.clock.end_exchange(server_round, self.clock.now, NOBODY)
        if self.on_round is not None:
            self.on_round(server_round, self.latest, MetricRecord())
        return None, None

    def _ask(self, server_round, arrays, config, grid, message_type, *how_many):
        self._choosing, self._nobody_in_time = message_type == MessageType.TRAIN, False
        return super()._ask(server_round, arrays, config, grid, message_type, *how_many)

    def _connected(self, server_round, grid):
        """The nodes to ask: all that are connected, or those that `select` takes by the clock."""
        node_ids = super()._connected(server_round, grid)
        self.clock.check_fits(len(node_ids))
        is_everyone_known = all(node_id in self.clients.partitions for node_id in node_ids)
        if self.select in ("all", "random") or not self._choosing or not is_everyone_known:
            return node_ids  # elsewhere than on a LabGrid the first answers tell who is who
        nodes = {self.clients.partitions[node_id]: node_id for node_id in node_ids}
        return [
            nodes[client]
            for client in sorted(self._choose(server_round, np.array(list(nodes), int)))
        ]

    def _choose(self, server_round, clients):
        """Which of these partition ids (n,) to ask."""
        if not self._heard_of.any():
            self._guess[[0, 2]] = recorddict_to_proto(
                RecordDict({"arrays": self.latest})
            ).ByteSize()
        present = np.isin(np.arange(self._guess.shape[1]), clients)[None]  # (1, K)
        alike = self.clock.seconds(
            server_round, *(present * self._guess[:, None]), allocation="equal"
        )
        order = clients[np.argsort(alike.sum(0)[0, clients], kind="stable")]  # the fastest first
        if self.select == "fastest":
            return order[: max(int(len(order) * self.fraction), self.min_train_nodes)]
        first = np.zeros((len(order), self._guess.shape[1]))  # (n, K): row m has the m + 1 fastest
        first[:, order] = np.tril(np.ones((len(order), len(order))))
        lasts = (
            self.clock.seconds(server_round, *(first * self._guess[:, None])).sum(0).max(1)
        )  # (n,)
        in_time = np.flatnonzero(lasts <= self.deadline)
        self._nobody_in_time = not len(in_time)
        return order[: in_time[-1] + 1] if len(in_time) else order[:0]

    def _accepted(self, server_round, replies, start_of=None):
        """Put the exchange on the clock before its answers are checked; late are uploads only."""
        replies = list(replies)
        deadline = self.deadline if start_of is not None and server_round > 0 else math.inf
        self._put_on_the_clock(server_round, replies, deadline)
        return super()._accepted(server_round, replies, start_of)

    def _put_on_the_clock(self, server_round, replies, deadline):
        """Time the exchange and note the late answers in `_too_late`, by node id."""
        answers = {reply.metadata.reply_to_message_id: reply for reply in replies}
        sizes, nodes, answered = (
            np.zeros(self._guess.shape),
            {},
            [],
        )  # (3, K): bytes down, flops, bytes up
        for message in self._asked:
            reply = answers.get(message.metadata.message_id)
            client = self.clients.partitions.get(message.metadata.dst_node_id)
            if client is None and reply is not None and not reply.has_error():
                client = partition_of(reply.content)
            if client in range(len(self._heard_of)):
                nodes[client] = message.metadata.dst_node_id
                answered += [client] if reply is not None else []
                sizes[:, client] = sizes_of(message, reply)
        seconds = self.clock.seconds(server_round, *sizes[:, None])[:, 0]  # (3, K)
        finish, start = seconds.sum(0), self.clock.now
        ends = np.minimum(finish, deadline)
        self._too_late = {}
        for client, node_id in nodes.items():
            self.clock.write_down(
                server_round, client, start, seconds[:, client], sizes[:, client], start + deadline
            )
            if finish[client] > deadline:
                self._too_late[node_id] = float(finish[client])
                self.late.append((server_round, client, float(finish[client])))
        straggler = int(finish.argmax()) if nodes else NOBODY
        self.clock.end_exchange(server_round, start + ends.max(), straggler)
        if self._choosing and answered:
            self._guess[:, answered] = sizes[:, answered]
            self._heard_of[answered] = True
            self._guess[:, ~self._heard_of] = sizes[:, answered].mean(1, keepdims=True)

    def _checked(self, node_id, sent, start):
        seconds = self._too_late.get(node_id)
        if seconds is not None:
            raise ValueError(
                f"was too late, after {seconds:.3g} s with a deadline of {self.deadline:.3g} s"
            )
        return super()._checked(node_id, sent, start)
