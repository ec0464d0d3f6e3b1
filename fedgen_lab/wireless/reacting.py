"""Synchronous servers that react to the clock: they choose who trains, and stop waiting at a deadline.

Simulated time runs along and changes the run itself: who is asked, and whose upload still counts. Random choice:
McMahan et al. 2017, arXiv 1602.05629; as many clients as make a deadline: FedCS, Nishio and Yonetani 2019, arXiv
1804.08333. Asynchronous servers are in `fedbuff`. Taught in lab 05.
"""

import math

import numpy as np
from flwr.app import RecordDict

from fedgen_lab.federation.clients import partition_of
from fedgen_lab.federation.fedavg import CheckedFedAvg
from fedgen_lab.wireless.channel import Network
from fedgen_lab.wireless.clock import Clock, bytes_of, sizes_of
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

    Attributes: those of `CheckedFedAvg`; `clock`, a `Clock`.
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
        if select == "deadline" and not deadline_seconds > 0:
            raise ValueError(
                f'select="deadline" needs a deadline_seconds above 0; got {deadline_seconds!r}.'
            )
        super().__init__(fraction_train=fraction if select == "random" else 1.0, **checked)
        self.select, self.fraction, self.deadline = select, fraction, deadline_seconds or math.inf
        if select == "deadline":
            self.unasked = f"No client can make the deadline of {self.deadline:.3g} s"
        self.clock = Clock(network)
        self._too_late = {}  # node id -> seconds, of the present exchange
        # Bytes down, operations and bytes up: of each client's last answer (3, K), and of whoever gave none (3, 1).
        self._sizes = np.full((3, network.num_clients), np.nan)
        self._typical, self._work_flops = None, work_flops

    def configure_train(self, server_round, arrays, config, grid):
        """Ask all who are connected or a random fraction, or of all those that `select` takes by the clock."""
        messages = super().configure_train(server_round, arrays, config, grid)
        clients = [self.clients.partitions.get(m.metadata.dst_node_id) for m in messages]
        # Elsewhere than on a LabGrid the first answers tell who is who.
        if self.select in ("fastest", "deadline") and None not in clients:
            chosen = self._chosen(server_round, clients)
            self._asked = [
                m for m, client in zip(messages, clients, strict=True) if client in chosen
            ]
        return self._asked

    def _connected(self, server_round, grid):
        node_ids = super()._connected(server_round, grid)
        self.clock.check_fits(len(node_ids))
        return node_ids

    def _chosen(self, server_round, clients):
        """The partition ids to ask, out of those of the n clients that are connected."""
        if self._typical is None:
            model = bytes_of(RecordDict({"arrays": self.latest}))
            self._typical = np.array([[model], [self._work_flops], [model]])
        sizes = np.where(np.isnan(self._sizes), self._typical, self._sizes)[:, None]  # (3, 1, K)
        number, is_here = len(clients), np.isin(np.arange(sizes.shape[-1]), clients)
        # Who would be done first if the band were shared equally? Whoever isn't here comes last.
        alike = self.clock.seconds(server_round, is_here * sizes, allocation="equal").sum(0)[0]
        order = np.argsort(np.where(is_here, alike, np.inf), kind="stable")
        if self.select == "fastest":
            return order[: max(int(number * self.fraction), 1)]
        # How long would the m fastest take together? In row m - 1 they send, and nobody else does.
        first = np.tri(number, len(order))[:, np.argsort(order)]  # (n, K)
        lasts = self.clock.seconds(server_round, first * sizes).sum(0).max(1)  # (n,)
        in_time = np.flatnonzero(lasts <= self.deadline)
        return order[: in_time.max(initial=-1) + 1]

    def _accepted(self, server_round, replies, start_of=None):
        """Put the exchange on the clock, then check its answers. Only a round's uploads can be late."""
        replies = list(replies)
        answers = {reply.metadata.reply_to_message_id: reply for reply in replies}
        sizes, nodes, answered = np.zeros_like(self._sizes), {}, []
        for message in self._asked:
            node_id, reply = message.metadata.dst_node_id, answers.get(message.metadata.message_id)
            client = self.clients.partitions.get(node_id)
            if client is None and reply is not None and not reply.has_error():
                client = partition_of(reply.content)
            if client in range(sizes.shape[1]):
                nodes[client] = node_id
                sizes[:, client] = sizes_of(message, reply)
                if reply is not None:
                    answered.append(client)
        is_training = start_of is not None and server_round > 0
        deadline = self.deadline if is_training else math.inf
        finish = self.clock.exchange(server_round, nodes, sizes, deadline)
        self._too_late = {
            node_id: finish[client]
            for client, node_id in nodes.items()
            if finish[client] > deadline
        }
        # What the answers tell about the next round; whoever never answered is taken for their mean.
        if is_training and answered:
            self._sizes[:, answered] = sizes[:, answered]
            self._typical = sizes[:, answered].mean(1, keepdims=True)
        return super()._accepted(server_round, replies, start_of)

    def _checked(self, node_id, sent, start):
        if node_id in self._too_late:
            seconds = self._too_late[node_id]
            raise ValueError(
                f"was too late, after {seconds:.3g} s with a deadline of {self.deadline:.3g} s"
            )
        return super()._checked(node_id, sent, start)
