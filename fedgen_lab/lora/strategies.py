"""Which Flower strategy a scenario asks for, and the strategy that puts the aggregation rules of lab 04 on the wire.

Labs 03, 04, 05 and 08. A strategy is the server's half of a round: whom it asks, what it sends, how it checks and
aggregates what comes back. Every combination of knobs is decided in `strategy_of`; modules are imported when needed.
"""

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict

from fedgen_lab.federation.arrays import tensors_of
from fedgen_lab.federation.fedavg import CheckedFedAvg
from fedgen_lab.lora.received import CORE, MERGING, fresh_adapter
from fedgen_lab.lora.rules import (
    LINEAR,
    RULES,
    compact,
    factors,
    fold,
    frame,
    part,
    pruned,
    resized,
    sent_part,
    stacked,
    unfold,
)
from fedgen_lab.lora.upload import unpack


def strategy_of(scenario, network=None, work_flops=0.0, **checked):
    """The strategy for a `Scenario`. `checked` goes to `CheckedFedAvg`, the rest to `wireless/reacting.py`.

    Raises ValueError, naming both knobs, for a combination that makes no sense.
    """
    refuse_contradictions(scenario)
    checked = {"min_available_nodes": scenario.num_clients, "seed": scenario.seed, **checked}
    if scenario.upload != "float32":

        def read(arrays, expected):
            return ArrayRecord(unpack(arrays, tensors_of(expected), scenario))

        checked["read"] = read
    if scenario.defence != "mean":
        from fedgen_lab.privacy.robust import robust_combine

        checked["combine"] = robust_combine(scenario)
    elif (scenario.clip or scenario.noise_multiplier) and not scenario.secure:
        from fedgen_lab.privacy.dp import private_mean

        asked = scenario.num_clients  # a constant, since who answered is private too
        if scenario.select in ("random", "fastest"):
            asked = max(int(scenario.num_clients * scenario.fraction), 1)
        uploads = scenario.buffer or asked
        checked["combine"] = private_mean(
            scenario.clip, scenario.noise_multiplier, uploads, scenario.seed
        )
    base = CheckedFedAvg if scenario.method == "full" else RuleStrategy
    of_rule = {} if scenario.method == "full" else {"scenario": scenario}
    if scenario.secure:
        from fedgen_lab.privacy.secure import SecureFedAvg

        kind = type(f"Secure{base.__name__}", (SecureFedAvg, base), {}) if of_rule else SecureFedAvg
        return kind(
            most_examples=scenario.pictures_per_client,
            clip=scenario.clip,
            noise_multiplier=scenario.noise_multiplier,
            **of_rule,
            **checked,
        )
    if scenario.buffer or scenario.deadline_seconds or scenario.select != "all":
        from fedgen_lab.wireless.reacting import reacting_strategy

        plain = scenario.buffer and scenario.rule == "fedit"  # FedBuff takes the mean itself
        return reacting_strategy(
            scenario, network, work_flops, CheckedFedAvg if plain else base, **checked
        )
    return base(**of_rule, **checked)


def refuse_contradictions(scenario):
    """Raises ValueError, naming both knobs, for a combination of knobs that makes no sense."""
    lora, rule = scenario.method == "lora", scenario.rule
    only_means = {
        "noise_multiplier": scenario.noise_multiplier > 0,
        "clip": scenario.clip > 0,
        "secure": scenario.secure == 1,
        "defence": scenario.defence != "mean",
        "buffer": scenario.buffer > 0,
    }
    for knob, is_on in only_means.items():
        if lora and is_on and rule not in LINEAR:
            _contradict(
                scenario,
                "rule",
                knob,
                f"{rule} needs every upload on its own, {knob} acts on their mean",
            )
    for is_wrong, one, other, why in (
        (
            not lora and rule != "fedit",
            "method",
            "rule",
            "a full model has no factors; its rule is plain averaging",
        ),
        (not lora and scenario.ranks, "method", "ranks", "a full model has no rank"),
        (not lora and scenario.lora_alpha, "method", "lora_alpha", "a full model has no alpha"),
        (
            scenario.noise_multiplier and not scenario.clip,
            "noise_multiplier",
            "clip",
            "noise is in units of clip",
        ),
        (
            scenario.noise_multiplier and scenario.defence != "mean",
            "noise_multiplier",
            "defence",
            "the noise is for a mean of clipped updates",
        ),
        (
            scenario.noise_multiplier and scenario.buffer,
            "noise_multiplier",
            "buffer",
            "a fast client may be in one merge twice, which the noise does not cover",
        ),
        (
            scenario.secure and scenario.defence != "mean",
            "secure",
            "defence",
            "a server that sees only the sum can't tell clients apart",
        ),
        (
            scenario.secure and scenario.upload != "float32",
            "secure",
            "upload",
            "masks cancel in sums of whole numbers",
        ),
        (
            scenario.secure and (scenario.buffer or scenario.deadline_seconds),
            "secure",
            "buffer" if scenario.buffer else "deadline_seconds",
            "masks cancel only when a whole round is summed",
        ),
        (
            scenario.secure and scenario.select != "all",
            "secure",
            "select",
            "everyone agrees on masks with everyone",
        ),
        (
            scenario.secure and scenario.num_clients < 2,
            "secure",
            "num_clients",
            "one client's sum is its update",
        ),
        (
            scenario.secure and rule == "fed-sb",
            "secure",
            "rule",
            "its beginning sends gradients in the clear",
        ),
        (
            scenario.secure and scenario.clip and rule == "rolora",
            "clip",
            "rule",
            "with secure aggregation a device clips against what came down, which is the other factor",
        ),
        (
            scenario.buffer and lora and rule not in ("fedit",),
            "buffer",
            "rule",
            "the rule needs rounds",
        ),
        (scenario.buffer and scenario.lora_alpha, "buffer", "lora_alpha", "set one of them to 0"),
        (
            scenario.upload == "top-k" and rule in ("flora", "hetlora", "flexlora") and lora,
            "upload",
            "rule",
            "what was left out has no place in the next round's new factors",
        ),
    ):
        if is_wrong:
            _contradict(scenario, one, other, why)


def _contradict(scenario, one, other, why):
    values = f"{one}={getattr(scenario, one)!r} and {other}={getattr(scenario, other)!r}"
    raise ValueError(f"{values} don't go together: {why}. Change one of them.")


class RuleStrategy(CheckedFedAvg):
    """An aggregation rule of `lora/rules.py` as a Flower strategy: who gets what down, what comes up, what it becomes.

    Whatever a client must have to follow - stacks and residuals that go into W0, RoLoRA's other factor, Fed-SB's fixed
    ones - is sent again from the beginning to whoever did not answer the last message that held it, so clients may come
    late, miss rounds or start anew. `latest` is always the whole model as one adapter with its scale inside B, of
    whatever rank that takes (FedSA: B zero, since the server has none).

    Attributes beside `CheckedFedAvg`'s: `adapter`, the folded adapter that clients go on from; `merges`, what was added
    to W0, in order; `ranks`, one a client (HetLoRA prunes them); `client_states`, partition id -> the folded adapter
    that the last round's upload stands for; `personal_losses`, FedSA's mean loss by round, as the clients measured it.
    """

    def __init__(self, scenario, **checked):
        one_part = {"fedsa": 1.0}  # only its clients can try their models out
        super().__init__(fraction_evaluate=one_part.get(scenario.rule, 0.0), **checked)
        self.scenario, self.rule, self.ranks = scenario, scenario.rule, list(scenario.client_ranks)
        self.adapter, self.core, self.merges, self.client_states, self.personal_losses = (
            {},
            {},
            [],
            {},
            {},
        )
        self._round, self._knows, self._setting_up = (
            0,
            {},
            None,
        )  # node id -> the last round whose message it answered
        self._had = {}  # node id -> how many merges it had when it answered

    def start(self, grid, initial_arrays, num_rounds=3, timeout=None, **configs):
        """`CheckedFedAvg.start`; Fed-SB first agrees on its fixed factors."""
        self.adapter = tensors_of(initial_arrays)
        if self.rule == "fed-sb":
            self._partitions.update(getattr(grid, "partitions", {}))
            self._agree_on_a_frame(grid)
        return super().start(grid, initial_arrays, num_rounds, timeout=timeout, **configs)

    def configure_train(self, server_round, arrays, config, grid):
        """Ask the clients of this round, each with what it needs."""
        self._round = server_round
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        """As `CheckedFedAvg`, by the rule; and note who got this round's message."""
        replies = list(replies)
        asked = {
            message.metadata.message_id: message.metadata.dst_node_id for message in self._asked
        }
        answered = {asked.get(r.metadata.reply_to_message_id) for r in replies if not r.has_error()}
        for node_id in asked.values():
            known = (server_round, len(self.merges)) if node_id in answered else (0, 0)
            self._knows[node_id], self._had[node_id] = known
        return super().aggregate_train(server_round, replies)

    def aggregate_evaluate(self, server_round, replies):
        """The mean loss of FedSA's personal models."""
        metrics = super().aggregate_evaluate(server_round, replies)
        if metrics is not None:
            self.personal_losses[server_round] = float(metrics["loss"])
        return metrics

    # --- down

    def _construct_messages(self, record, node_ids, message_type):
        return [
            Message(self._down(node_id, record[self.configrecord_key]), node_id, message_type)
            for node_id in node_ids
        ]

    def _down(self, node_id, config):
        """What one client gets in this round: arrays, config, and what it lacks of the merges."""
        content = RecordDict({self.arrayrecord_key: ArrayRecord(self._arrays_for(node_id))})
        if self.rule in (*MERGING, "fed-sb"):
            since = self._had.get(node_id, 0)
            config = ConfigRecord({**config, "merge-from": since, "merge-to": len(self.merges)})
            if missing := self.merges[since:]:
                content["merge"] = ArrayRecord(
                    compact(stacked(missing)) if len(missing) > 1 else missing[0]
                )
        content[self.configrecord_key] = config
        return content

    def _arrays_for(self, node_id):
        if self.rule == "flora":
            return {}
        if self.rule == "fed-sb":
            return self.core
        sent = unfold(resized(self.adapter, self._rank_of(node_id)), self.scenario.lora_alpha)
        if self.rule == "rolora":
            if self._round == 1:
                return {}  # A from the shared seed, B zero
            behind = self._knows.get(node_id) != self._round - 1
            return sent if behind else part(sent, sent_part(self.rule, self._round - 1))
        return part(sent, sent_part(self.rule, self._round))

    def _rank_of(self, node_id):
        partition = self._partitions.get(node_id, -1)
        return self.ranks[partition] if 0 <= partition < len(self.ranks) else max(self.ranks)

    # --- up

    def _start_of(self, node_id, expected):
        """What this node trained from, as far as it trains; its upload must look the same."""
        if expected is None or self._setting_up is not None:
            return expected and self._setting_up
        rank = self._rank_of(node_id)
        if self.rule == "flora":
            client = self._partitions.get(node_id, 0)
            return ArrayRecord(fresh_adapter(self.adapter, rank, self.seed, client, self._round))
        if self.rule == "fed-sb":
            return ArrayRecord(self.core)
        adapter = unfold(resized(self.adapter, rank), self.scenario.lora_alpha)
        return ArrayRecord(part(adapter, sent_part(self.rule, self._round)))

    def _new_arrays(self, server_round, contents):
        """The rule itself. Returns the whole model."""
        alpha, clients = self.scenario.lora_alpha, list(self.client_arrays)
        arrays = [tensors_of(content[self.arrayrecord_key]) for content in contents]
        examples = [content["metrics"][self.weighted_by_key] for content in contents]
        uploads, weights = (
            [fold(state, alpha) for state in arrays],
            [n / sum(examples) for n in examples],
        )
        self.client_states = {
            c: self._whole(upload) for c, upload in zip(clients, uploads, strict=True)
        }
        if (
            self.rule in LINEAR
        ):  # through the hook, so that defences and private noise can take the mean's place
            sent = {name: tensor.numpy() for name, tensor in self._linear_start().items()}
            plain = [{name: tensor.numpy() for name, tensor in state.items()} for state in arrays]
            combined = self.combine(server_round, sent, plain, examples)
            merged = {name: torch.from_numpy(np.asarray(value)) for name, value in combined.items()}
            if self.rule == "fed-sb":
                self.core = merged
            else:
                self.adapter = {**self.adapter, **fold(merged, alpha)}
        else:
            merged = RULES[self.rule](uploads, weights)
            self.adapter = merged.adapter or self.adapter
            if merged.into_base:
                self.merges.append(merged.into_base)
            if self.rule == "hetlora":
                for client, upload in zip(clients, uploads, strict=True):
                    self.ranks[client] = pruned(upload)
        self.client_states.pop(-1, None)  # a mean that secure aggregation let through is nobody's
        return ArrayRecord(self._model())

    def _linear_start(self):
        if self.rule == "fed-sb":
            return self.core
        return unfold(
            part(self.adapter, sent_part(self.rule, self._round)), self.scenario.lora_alpha
        )

    def _whole(self, upload):
        """The adapter that an upload stands for, with what of it is fixed or known."""
        if self.rule == "fed-sb":
            return self._framed(fold(upload, self.scenario.lora_alpha))
        if self.rule == "fedsa":
            return {**self._without_b(), **upload}
        return {**self.adapter, **upload} if self.rule in ("ffa", "rolora") else upload

    def _framed(self, core):
        fixed = factors(self.merges[0])
        return {
            name: tensor if ".lora_A." in name else fixed[layer][1] @ core[layer + CORE]
            for name, tensor in self.merges[0].items()
            for layer in [name.partition(".lora_")[0]]
        }

    def _without_b(self):
        return {
            name: tensor if ".lora_A." in name else 0 * tensor
            for name, tensor in self.adapter.items()
        }

    def _model(self):
        """The whole model as one folded adapter."""
        if self.rule == "fedsa":
            return self._without_b()
        if self.rule == "fed-sb":
            return self._framed(fold(self.core, self.scenario.lora_alpha))
        going_on = [] if self.rule == "flora" else [self.adapter]
        return compact(stacked([*going_on, *self.merges])) if self.merges else self.adapter

    # --- Fed-SB's beginning

    def _agree_on_a_frame(self, grid):
        """Before round 1: every client's mean gradient comes up, dense; A and B are the first directions of the mean.

        Raises RuntimeError when no client sent a usable gradient.
        """
        sizes = {layer: (b.shape[0], a.shape[1]) for layer, (a, b) in factors(self.adapter).items()}
        self._setting_up = ArrayRecord({layer: torch.zeros(size) for layer, size in sizes.items()})
        config = ConfigRecord({"server-round": 0, "setup": "gradients"})
        content = RecordDict({self.arrayrecord_key: ArrayRecord(), self.configrecord_key: config})
        nodes = self._connected(1, grid)
        self._asked = [Message(content, node_id, MessageType.TRAIN) for node_id in nodes]
        accepted = self._accepted(
            0, grid.send_and_receive(self._asked, timeout=self.timeout), self._setting_up
        )
        self._setting_up, self._usual = None, []
        if not accepted:
            raise RuntimeError(
                "No client sent a usable gradient, so Fed-SB can't choose its factors; run it again."
            )
        contents = [content for _, _, content in accepted]
        examples = [content["metrics"][self.weighted_by_key] for content in contents]
        gradients = [tensors_of(content[self.arrayrecord_key]) for content in contents]
        mean = {
            layer: sum(
                g[layer] * (n / sum(examples)) for g, n in zip(gradients, examples, strict=True)
            )
            for layer in sizes
        }
        self.merges = [frame(mean, self.scenario.rank)]
        ranks = {layer: len(a) for layer, (a, _) in factors(self.merges[0]).items()}
        self.core = {layer + CORE: torch.zeros(rank, rank) for layer, rank in ranks.items()}
