"""The client of the U as a Flower app: each hop of `fedgen_lab.split.half` answers one kind of message.

A SuperNode may start a new process for every message, so nothing is kept in memory there: blocks, Adam's moments and
the one tensor that a later hop goes back through live in Flower's `Context.state`, noise and batch come from the seed,
and forward passes are computed again. In a notebook memory may be kept (`keep=True`), and clients with the same cut may
be computed in one pass (`stacked_clients`); neither changes the result. Lab 06.
"""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedgen_lab.federation.arrays import tensors_of
from fedgen_lab.split import stacked
from fedgen_lab.split.batch import addressee, draw_batch, own_data, start_nets
from fedgen_lab.split.defence import protect, to_bytes
from fedgen_lab.split.half import HOPS, Half, segments
from fedgen_lab.split.latency import block_flops
from fedgen_lab.split.wire import SMASHED, array, read


def u_client_app(dealt=None, keep=False):
    """The device's `ClientApp`: answers "query.hello" and "train.HOP" for every hop of `half.HOPS`.

    dealt: whose pictures the clients hold, else `deal(scenario)`. keep: hold nets and graphs in memory between messages
    instead of in `Context.state`; for one process that hears every message.
    """
    app, kept = ClientApp(), {}

    @app.query("hello")
    def introduce(message: Message, context: Context) -> Message:
        """Who am I, and how many pictures do I hold?"""
        scenario, client, _, labels = _own(context, dealt)
        if len(labels) < 2:
            raise ValueError(
                f"Client {client} holds {len(labels)} pictures; BatchNorm needs at least two."
            )
        metrics = MetricRecord({"partition-id": client, "num-examples": len(labels)})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    def answer(message: Message, context: Context) -> Message:
        cut, action = message.content["config"]["cut"], message.metadata.message_type.split(".")[1]
        node = kept.get(context.node_id)
        if node is None or node.cut != cut:
            node = _Node([_own(context, dealt)], cut)
            if "blocks" in context.state:
                node.wake(context.state)
        (reply,) = node.answer(action, {0: message}).values()
        if isinstance(reply, Exception):
            raise reply
        if keep:
            kept[context.node_id] = node
        else:
            node.sleep(context.state)
        return reply

    for action in HOPS:
        app.train(action)(answer)
    return app


def stacked_clients(dealt=None):
    """A handler for `LabGrid(stacked=...)`: answers as `u_client_app` does, all clients of one cut in one pass.

    For a new run make a new one.
    """
    nodes, places = {}, {}  # the group of clients -> node; node id -> (group, place in it)

    def handle(messages, contexts):
        category, _, action = messages[0].metadata.message_type.partition(".")
        if category != "train" or action not in HOPS:
            return None
        if not places:
            groups = {}
            for message, context in zip(messages, contexts, strict=True):
                own = _own(context, dealt)
                size = min(own[0].batch_size, len(own[3]))
                groups.setdefault((message.content["config"]["cut"], size), []).append(
                    (context.node_id, own)
                )
            for group, members in groups.items():
                nodes[group] = _Node([own for _, own in members], group[0], stack=True)
                places.update(
                    {node_id: (group, place) for place, (node_id, _) in enumerate(members)}
                )
        asked = {}
        for number, context in enumerate(contexts):
            group, place = places[context.node_id]
            asked.setdefault(group, {})[place] = number
        replies = [None] * len(messages)
        for group, numbers in asked.items():
            answers = nodes[group].answer(
                action, {place: messages[number] for place, number in numbers.items()}
            )
            for place, reply in answers.items():
                replies[numbers[place]] = reply
        return replies

    return handle


class _Node:
    """One client, or a stack of clients with the same cut and batch size, between two messages."""

    def __init__(self, members, cut, stack=False):
        self.members, self.cut, self.stack, self.at = members, cut, stack, None
        self.scenario, bits = members[0][0], [int(bit) for bit in cut]
        nets = [dict(zip("gd", start_nets(self.scenario), strict=True)) for _ in members]
        names = [name for part in segments(bits).values() for name in part]
        blocks = {}
        for name in names:
            own = [net[name[0]][int(name[2])] for net in nets]
            blocks[name] = stacked.stack(own) if stack else own[0]
        self.half = Half(blocks, bits, self.scenario.learning_rate, self.scenario.decorrelation)
        self.dtype = next(blocks["g.0"].parameters()).dtype

    def answer(self, action, messages):
        """The replies to one hop's messages by place, or exceptions; who is not asked computes on zeros meanwhile."""
        hop, some = HOPS[action], next(iter(messages.values()))
        config = some.content["config"]
        server_round, iteration, go_on = (
            config["server-round"],
            config["iteration"],
            config["go-on"],
        )
        if "blocks" in some.content:
            states = {
                place: tensors_of(message.content["blocks"]) for place, message in messages.items()
            }
            self._load(
                [states.get(place, states[min(states)]) for place in range(len(self.members))]
            )
        outputs = ()
        if action != "finish":
            self._at(server_round, iteration)
            outputs = getattr(self.half, action)(
                *(self._gather(name, messages) for name in hop.down)
            )
        if action == "learn_g":
            outputs = ()
            if go_on:
                self._at(server_round, iteration + 1)
                outputs = self.half.start()
                iteration += 1
        replies, states = {}, self._states() if action == "learn_g" and not go_on else None
        for place, message in messages.items():
            content = RecordDict({"metrics": self._metrics(place, hop)})
            try:
                if outputs:
                    mine = [out[place] if self.stack else out for out in outputs]
                    arrays = zip(hop.up, mine, strict=True)
                    content["tensors"] = self._wire(arrays, place, server_round, iteration)
                elif states:
                    content["blocks"] = ArrayRecord(states[place])
                replies[place] = Message(content, reply_to=message)
            except ValueError as why:  # what can't be sent, such as NaN in 8 bits
                replies[place] = why
        return replies

    def wake(self, state):
        """Take up what `sleep` wrote."""
        self._load([tensors_of(state["blocks"])])
        self.half.asleep = {
            net: tensors_of(state[f"adam.{net}"]) for net in "gd" if f"adam.{net}" in state
        }
        if "g_body" in state["received"]:
            self.half.kept["g_body"] = read(state["received"]["g_body"]).requires_grad_()

    def sleep(self, state):
        """Write down what the next message needs: blocks, Adam's moments, and what came from the generator's body."""
        state["blocks"] = ArrayRecord(self._states()[0])
        for net, moments in self.half.moments().items():
            state[f"adam.{net}"] = ArrayRecord(moments)
        received = {"g_body": self.half.kept["g_body"]} if "g_body" in self.half.kept else {}
        state["received"] = ArrayRecord(received)

    def _at(self, server_round, iteration):
        """Draw the batch of this iteration: z, labels, pictures."""
        if self.at == (server_round, iteration):
            return
        drawn = [
            draw_batch(scenario, pictures.to(self.dtype), labels, client, server_round, iteration)
            for scenario, client, pictures, labels in self.members
        ]
        pictures, labels, z = map(torch.stack, zip(*drawn, strict=True)) if self.stack else drawn[0]
        self.half.batch, self.at = (z, labels, pictures), (server_round, iteration)

    def _gather(self, name, messages):
        """A tensor that came down: (B, ...), or (N, B, ...) with zeros for clients that were not asked."""
        given = {
            place: read(message.content["tensors"][name]) for place, message in messages.items()
        }
        if not self.stack:
            return given[0]
        nothing = torch.zeros_like(next(iter(given.values())))
        return torch.stack([given.get(place, nothing) for place in range(len(self.members))])

    def _wire(self, arrays, place, server_round, iteration):
        """Tensors as an `ArrayRecord`; smashed data with the scenario's defences."""
        record, scenario, client = ArrayRecord(), self.scenario, self.members[place][1]
        for name, tensor in arrays:
            tensor = tensor.detach()
            if name in SMASHED and scenario.noise:
                seed = scenario.seed_of(client, server_round, iteration, SMASHED[name])
                tensor = protect(tensor, scenario.noise, 32, torch.Generator().manual_seed(seed))
            if name in SMASHED and scenario.bits == 8:
                tensor, low, step = to_bytes(tensor)
                record[f"{name}.scale"] = array(torch.tensor([low, step], dtype=torch.float64))
            record[name] = array(tensor)
        return record

    def _metrics(self, place, hop):
        scenario, client, _, labels = self.members[place]
        work = block_flops(scenario.size, min(scenario.batch_size, len(labels)))
        flops = 0
        for direction, part, times in hop.work:
            spent = getattr(work.generator if part[0] == "g" else work.discriminator, direction)
            flops += times * sum(spent[int(name[2])] for name in segments(self.half.cut)[part])
        return MetricRecord(
            {"partition-id": client, "num-examples": len(labels), "flops": float(flops)}
        )

    def _states(self):
        """The blocks of each member as {"g.0.embedding.weight": tensor, ...}."""
        states = [{} for _ in self.members]
        for name, block in self.half.blocks.items():
            for state, own in zip(
                states, stacked.unstack(block) if self.stack else [block.state_dict()], strict=True
            ):
                state.update({f"{name}.{key}": value for key, value in own.items()})
        return states

    def _load(self, states):
        for name, block in self.half.blocks.items():
            own = [{key: state[f"{name}.{key}"] for key in block.state_dict()} for state in states]
            stacked.load(block, own) if self.stack else block.load_state_dict(own[0])


def _own(context, dealt):
    """(scenario, client, pictures, labels) of the node whose context this is."""
    scenario, client = addressee(context)
    return scenario, client, *own_data(scenario, client, dealt)
