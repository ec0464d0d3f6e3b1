"""Which Flower strategy a scenario asks for, and the aggregation rules of lab 04 on the wire.

Labs 03, 04, 05 and 08. A strategy is the server's half of a round: whom it asks, how it checks what comes back; its
protocol says what it sends and what it makes of the answers. Every combination of knobs is decided in `strategy_of`.
"""

import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fedgen_lab.federation.arrays import tensors_of, values_of
from fedgen_lab.federation.averages import private_mean, robust_combine, weighted_mean
from fedgen_lab.federation.fedavg import Averaging, CheckedFedAvg
from fedgen_lab.federation.secure import SecureFedAvg
from fedgen_lab.lora.factors import compact, factors, fold, stacked, unfold
from fedgen_lab.lora.rules import RULES, Seat, ServerState
from fedgen_lab.lora.upload import unpack
from fedgen_lab.wireless.reacting import reacting_strategy


def strategy_of(scenario, network=None, work_flops=0.0, secret=None, **checked):
    """The strategy for a `Scenario`. `secret`: what a trusted server's noise follows from (see
    `federation.secret`). `checked` goes to `CheckedFedAvg`, the rest to `wireless/reacting.py`.

    Raises ValueError, naming both knobs, for a combination that makes no sense.
    """
    refuse_contradictions(scenario)
    checked = {"min_available_nodes": scenario.num_clients, "seed": scenario.seed, **checked}
    # what goes down and what the answers become
    if scenario.method == "lora" and not (scenario.buffer and scenario.rule == "fedit"):
        checked["protocol"] = RuleProtocol(scenario)  # FedBuff takes the mean itself
    # how an upload is read
    if scenario.upload != "float32":

        def read(arrays, expected):
            return ArrayRecord(unpack(arrays, tensors_of(expected), scenario))

        checked["read"] = read
    # how the uploads become one
    checked["combine"] = weighted_mean
    if scenario.defence != "mean":
        checked["combine"] = robust_combine(scenario)
    elif (scenario.clip or scenario.noise_multiplier) and not scenario.secure:
        number = scenario.num_clients  # a constant, since who answered is private too
        if scenario.select in ("random", "fastest"):
            number = max(int(scenario.num_clients * scenario.fraction), 1)
        number = scenario.buffer or number
        checked["combine"] = private_mean(scenario.clip, scenario.noise_multiplier, number, secret)
        checked["is_clipped"] = True
    # who is asked, and who sees what
    if scenario.secure:
        return SecureFedAvg(
            most_examples=scenario.pictures_per_client,
            clip=scenario.clip,
            noise_multiplier=scenario.noise_multiplier,
            **checked,
        )
    if scenario.buffer or scenario.deadline_seconds or scenario.select != "all":
        return reacting_strategy(scenario, network, work_flops, **checked)
    return CheckedFedAvg(**checked)


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
        if lora and is_on and not RULES[rule].takes_mean:
            _contradict(
                scenario,
                "rule",
                knob,
                f"{rule} needs every upload on its own, {knob} acts on their mean",
            )
    for is_wrong, knob, partner, reason in (
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
            scenario.sample_noise and not scenario.sample_clip,
            "sample_noise",
            "sample_clip",
            "noise is in units of sample_clip",
        ),
        (
            scenario.epsilon_budget and not scenario.sample_noise,
            "epsilon_budget",
            "sample_noise",
            "a budget counts what noise leaves to tell",
        ),
        (
            scenario.sample_noise and rule == "fed-sb",
            "sample_noise",
            "rule",
            "its beginning sends gradients in the clear",
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
            _contradict(scenario, knob, partner, reason)


def _contradict(scenario, knob, partner, reason):
    values = f"{knob}={getattr(scenario, knob)!r} and {partner}={getattr(scenario, partner)!r}"
    raise ValueError(f"{values} don't go together: {reason}. Change one of them.")


class RuleProtocol(Averaging):
    """A rule of `lora/rules.py` on the wire: who gets what down, what comes up, what it becomes.

    Whatever a client must have to follow - stacks and residuals that go into W0, RoLoRA's other factor, Fed-SB's fixed
    ones - is sent again from the beginning to whoever did not answer the last message that held it, so clients may come
    late, miss rounds or start anew. `latest` is always the whole model as one adapter with its scale inside B, of
    whatever rank that takes (FedSA: B zero, since the server has none).

    Attributes: `server`, the rule's `ServerState`; `client_states`, partition id -> the folded adapter that the last
    round's upload stands for; `personal_losses`, FedSA's mean loss by round, as the clients measured it.
    """

    def __init__(self, scenario):
        super().__init__()
        self.scenario, self.rule, self.server = scenario, RULES[scenario.rule], None
        self.fraction_evaluate = 1.0 if self.rule.is_personal else 0.0
        self._answered = {}  # node id -> the last round whose message it answered
        self._merges = {}  # node id -> how many merges it had then

    def begin(self, strategy, grid):
        """Start from the adapter that the strategy was given; Fed-SB first agrees on its fixed factors.

        Raises RuntimeError when no client sent a usable gradient.
        """
        start, scenario = tensors_of(strategy.latest), self.scenario
        self.server = ServerState(start, list(scenario.client_ranks))
        if self.rule.has_setup:
            self._set_up(strategy, grid)

    # --- down

    def content(self, strategy, node_id, server_round, record):
        """What one client gets: arrays, config, and what it lacks of the merges."""
        is_behind = self._answered.get(node_id) != server_round - 1
        seat = self._seat(strategy, node_id, server_round)
        arrays = self.rule.down(self.server, seat, is_behind)
        arrays = ArrayRecord(unfold(arrays, self.scenario.lora_alpha))
        content = RecordDict({strategy.arrayrecord_key: arrays})
        config = record[strategy.configrecord_key]
        if self.rule.has_merges:
            merges, since = self.server.merges, self._merges.get(node_id, 0)
            config = ConfigRecord({**config, "merge-from": since, "merge-to": len(merges)})
            if missing := merges[since:]:
                merge = compact(stacked(missing)) if len(missing) > 1 else missing[0]
                content["merge"] = ArrayRecord(merge)
        content[strategy.configrecord_key] = config
        return content

    def _seat(self, strategy, node_id, server_round):
        ranks, client = self.server.ranks, strategy.clients.partitions.get(node_id)
        rank = ranks[client] if client in range(len(ranks)) else max(ranks)
        return Seat(client or 0, rank, server_round, strategy.seed)

    def note_answers(self, server_round, nodes, answered):
        """Who answered has what was sent; who did not gets everything again."""
        for node_id in nodes:
            has_it = node_id in answered
            self._answered[node_id] = server_round if has_it else 0
            self._merges[node_id] = len(self.server.merges) if has_it else 0

    # --- up

    def origin(self, strategy, node_id, server_round, arrays):
        """What this node trained from, as far as it travels."""
        origin = self.rule.origin(self.server, self._seat(strategy, node_id, server_round))
        return ArrayRecord(unfold(origin, self.scenario.lora_alpha))

    def merge(self, strategy, server_round, uploads, weights):
        """The rule itself. Returns the whole model."""
        alpha, rule, server = self.scenario.lora_alpha, self.rule, self.server
        states = {client: fold(tensors_of(record), alpha) for client, record in uploads.items()}
        self.client_states = {
            client: rule.whole(server, state)
            for client, state in states.items()
            if client >= 0  # a mean that secure aggregation let through is nobody's
        }
        if rule.takes_mean:  # defences, private noise and masks may stand in its place
            largest = Seat(0, max(server.ranks), server_round, strategy.seed)
            sent = ArrayRecord(unfold(rule.origin(server, largest), alpha))
            merged = strategy.combined(server_round, sent, uploads.values(), weights)
            server.adapter = {**server.adapter, **fold(tensors_of(merged), alpha)}
        else:
            shares = [weight / sum(weights) for weight in weights]
            merged = rule.merge(server, list(states.values()), shares)
            server.adapter = merged.adapter or server.adapter
            if merged.into_base:
                server.merges.append(merged.into_base)
        rule.settle(server, states)
        return ArrayRecord(rule.model(server))

    def note_metrics(self, server_round, metrics):
        """The mean loss of FedSA's personal models."""
        self.personal_losses[server_round] = float(metrics["loss"])

    # --- Fed-SB's beginning

    def _set_up(self, strategy, grid):
        """Every client's mean gradient comes up, dense; the rule fixes its factors by their mean."""
        pairs = factors(self.server.adapter)
        smallest = min(min(len(b), a.shape[1]) for a, b in pairs.values())
        if self.scenario.rank > smallest:
            raise ValueError(
                f"rank must be at most {smallest} with rule 'fed-sb', the smallest side of a layer of this model; "
                f"got {self.scenario.rank}."
            )
        zeros = {layer: torch.zeros(len(b), a.shape[1]) for layer, (a, b) in pairs.items()}
        config = ConfigRecord({"server-round": 0, "setup": "gradients"})
        accepted = strategy.ask_apart(grid, config, ArrayRecord(zeros))
        if not accepted:
            raise RuntimeError(
                "No client sent a usable gradient, so Fed-SB can't choose its factors; run it again."
            )
        gradients, weights = zip(*accepted, strict=True)
        mean = weighted_mean(0, zeros, [values_of(record) for record in gradients], weights)
        mean = {layer: torch.from_numpy(gradient) for layer, gradient in mean.items()}
        self.rule.set_up(self.server, mean, self.scenario.rank)
