"""Claims about the rules on the wire: what clients start from, what the server makes of it, and what it refuses."""

from copy import deepcopy
from dataclasses import replace
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from safetensors.torch import save

from fedgen_lab.federation.fedavg import Averaging, CheckedFedAvg
from fedgen_lab.federation.grid import LabGrid
from fedgen_lab.federation.secure_device import secured
from fedgen_lab.federation.trace import SERVER
from fedgen_lab.lora.adapter import load_model, trainable_state
from fedgen_lab.lora.device import LoraDevice, prepare
from fedgen_lab.lora.local import train
from fedgen_lab.lora.pipeline import Encoded
from fedgen_lab.lora.rules import RULES, bias_by_layer, factors, part
from fedgen_lab.lora.strategies import RuleProtocol, strategy_of
from fedgen_lab.scenario import Scenario

SMALL = Scenario(
    num_clients=3, rounds=3, local_steps=2, batch_size=2, pictures_per_client=4, skew=1.0, rank=3
)
SERVED = [rule for rule in RULES if rule != "fedsa"]  # whose server has a whole model


@pytest.fixture(autouse=True, scope="module")
def tiny():
    """Devices with a random UNet of a few thousand weights, one attention, random pictures: the rules don't care."""
    torch.manual_seed(0)
    settings = {
        "sample_size": 8,
        "block_out_channels": (8,),
        "layers_per_block": 1,
        "cross_attention_dim": 8,
        "norm_num_groups": 2,
        "attention_head_dim": 4,
        "down_block_types": ("CrossAttnDownBlock2D",),
        "mid_block_type": None,
        "up_block_types": ("UpBlock2D",),
    }
    base = UNet2DConditionModel(**settings).requires_grad_(False)

    def load_pipeline(source, dtype=None):
        return SimpleNamespace(unet=deepcopy(base))

    def encode(pipeline, pictures):  # four numbers in a row, the first one the client's
        generator = torch.Generator().manual_seed(pictures[0])
        return Encoded(
            torch.randn(4, 4, 8, 8, generator=generator), torch.randn(4, 5, 8, generator=generator)
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedgen_lab.lora.device.load_pipeline", load_pipeline)
        patch.setattr(
            "fedgen_lab.lora.device.deal",
            lambda scenario: SimpleNamespace(
                clients=[range(client, client + 4) for client in range(9)], held_out=range(99, 103)
            ),
        )
        patch.setattr("fedgen_lab.lora.device.encode", encode)
        patch.setattr("fedgen_lab.lora.device.noise_schedule", lambda pipeline: DDPMScheduler())
        patch.setattr("fedgen_lab.lora.device.step_flops", lambda *_: 1.0)
        yield


@pytest.fixture(scope="module")
def start(tiny):
    return {rank: trainable_state(prepare(replace(SMALL, rank=rank)).unet) for rank in (3, 4, 9)}


@pytest.fixture(scope="module")
def guess():
    """What a UNet computes for fixed inputs."""
    generator = torch.Generator().manual_seed(0)
    noisy, text = (
        torch.randn(1, 4, 8, 8, generator=generator),
        torch.randn(1, 5, 8, generator=generator),
    )

    @torch.no_grad()
    def of(unet):
        return unet(noisy, torch.tensor([400]), encoder_hidden_states=text).sample

    return of


class Watched:
    """A run of a scenario whose clients are looked at before and after their training, and can be made to misbehave."""

    def __init__(self, scenario, start, guess, spoil=None, gone=()):
        self.starts, self.trained, self.models, self.whole = {}, {}, [], []
        device = LoraDevice(
            lambda client, state: self.trained.update({(len(self.models), client): state})
        )
        app = ClientApp()

        @app.train()
        def watch(message: Message, context):
            config = message.content["config"]
            if "setup" in config:
                return device.gradients(message, context)
            at = int(config["server-round"]), int(context.node_config["partition-id"])
            if at in gone:
                raise ConnectionError("out of reach")
            turn = device.begin(message, context)
            self.starts[at] = guess(turn.unet)
            losses = train(turn.unet, turn.schedule, turn.encoded, 1, 2, 1e-2, turn.seed)
            reply = device.end(turn, trainable_state(turn.unet), losses)
            if spoil is not None and at[1] == 2:
                state = spoil(
                    {k: t.clone() for k, t in reply.content["arrays"].to_torch_state_dict().items()}
                )
                reply.content = RecordDict(
                    {"arrays": ArrayRecord(state), "metrics": reply.content["metrics"]}
                )
            return reply

        @app.evaluate()
        def evaluate(message: Message, context):
            return device.evaluate(message, context)

        def hear(_, arrays, __):
            self.models.append(arrays)
            self.whole.append(dict(self.strategy.protocol.client_states))

        self.strategy = strategy_of(scenario, on_round=hear)
        app = secured(app) if scenario.secure else app
        with LabGrid(app, scenario.num_clients, scenario.to_run_config()) as grid:
            self.result = self.strategy.start(
                grid, ArrayRecord(start[max(scenario.client_ranks)]), scenario.rounds
            )
        self.sent, self.unet = grid.trace.frame(), device._base(scenario).unet

    def model(self, server_round):
        return self.models[server_round - 1].to_torch_state_dict()


@pytest.fixture(scope="module")
def two_rounds(start, guess):
    """Two rounds under a rule, run once for all who look at them."""
    return lru_cache(lambda rule: Watched(replace(SMALL, rule=rule, rounds=2), start, guess))


def change(state):
    return {layer: b.double() @ a.double() for layer, (a, b) in factors(state).items()}


def assert_close(got, wanted, tolerance=2e-4):
    size = sum(w.norm() ** 2 for w in wanted.values()) ** 0.5
    assert float(sum((got[k] - wanted[k]).norm() ** 2 for k in wanted) ** 0.5 / size) < tolerance


def mean_of(changes):
    return {layer: sum(c[layer] for c in changes) / len(changes) for layer in changes[0]}


@pytest.mark.parametrize("rule", SERVED)
def test_every_client_starts_from_the_servers_model_also_after_missing_a_round(rule, start, guess):
    watched = Watched(
        replace(SMALL, rule=rule, rounds=4), start, guess, gone={(1, 2), (2, 1), (3, 1)}
    )
    assert [(r, c) for r, c, _ in watched.strategy.refused] == [
        (1, "client 2"),
        (2, "client 1"),
        (3, "client 1"),
    ]
    fresh = prepare(SMALL).unet
    for server_round in (2, 3, 4):
        load_model(fresh, watched.model(server_round - 1))
        wanted = guess(fresh)
        for client in range(3):
            if (server_round, client) in watched.starts:
                torch.testing.assert_close(
                    watched.starts[server_round, client], wanted, rtol=0, atol=5e-4
                )
    assert (4, 1) in watched.starts and (2, 2) in watched.starts
    assert (watched.starts[4, 1] - watched.starts[1, 0]).abs().max() > 0.005, (
        "something was learned"
    )


@pytest.mark.parametrize("rule", SERVED)
def test_the_server_makes_of_the_uploads_what_the_rule_says(rule, two_rounds):
    watched = two_rounds(rule)
    assert not watched.strategy.refused
    for server_round in (1, 2):
        states = [watched.trained[server_round - 1, client] for client in range(3)]
        model = watched.model(server_round)
        before = change(watched.model(server_round - 1)) if server_round > 1 else None
        if rule in ("ffa", "rolora"):
            states = list(watched.whole[server_round - 1].values())
            assert_close(change(model), mean_of([change(s) for s in states]))
            assert max(bias_by_layer(states, [1 / 3] * 3).values()) < 1e-3
        elif rule == "flora":
            mean = mean_of([change(s) for s in states])
            assert_close(change(model), {k: mean[k] + before[k] for k in mean} if before else mean)
        elif rule == "fedex":
            mean = mean_of([change(s) for s in states])
            earlier = [
                change(m) for m in watched.strategy.protocol.server.merges[: server_round - 1]
            ]
            assert_close(change(model), {k: mean[k] + sum(e[k] for e in earlier) for k in mean})
        elif rule == "fed-sb":
            assert_close(
                change(model),
                mean_of([change(s) for s in watched.whole[server_round - 1].values()]),
            )
        else:
            wanted = RULES[rule](states, [1 / 3] * 3).adapter
            assert_close(change(model), change(wanted))


def test_fedit_gives_the_bits_of_plain_federated_averaging(start, guess):
    watched = Watched(SMALL, start, guess)
    plain = CheckedFedAvg(min_available_nodes=3)
    device, app = LoraDevice(), ClientApp()

    @app.train()
    def client(message: Message, context):
        turn = device.begin(message, context)
        losses = train(turn.unet, turn.schedule, turn.encoded, 1, 2, 1e-2, turn.seed)
        return device.end(turn, trainable_state(turn.unet), losses)

    with LabGrid(app, 3, SMALL.to_run_config()) as grid:
        plain.start(grid, ArrayRecord(start[3]), SMALL.rounds)
    assert all(
        torch.equal(plain.latest.to_torch_state_dict()[k], t) for k, t in watched.model(3).items()
    )
    assert list(grid.trace.frame()["bytes"]) == list(watched.sent["bytes"])


def test_what_crosses_the_wire_is_as_large_as_the_file_of_it(start, two_rounds):
    whole, one = start[3], {}
    for rule in sorted(RULES.keys() - {"hetlora", "lora-fair"}):  # they send what FedIT sends
        sent = two_rounds(rule).sent
        up = sent[(sent["round"] == 2) & (sent["receiver"] == SERVER) & (sent["kind"] == "train")][
            "bytes"
        ]
        down = sent[(sent["round"] == 2) & (sent["sender"] == SERVER) & (sent["kind"] == "train")][
            "bytes"
        ]
        one[rule] = up.iloc[0], down.iloc[0]
    files = {which: len(save(part(whole, which))) for which in ("A", "B", "AB")}
    wanted = {
        "fedit": ("AB", "AB"),
        "ffa": ("B", "B"),
        "fedsa": ("A", "A"),
        "rolora": ("A", "B"),
        "flexlora": ("AB", "AB"),
    }
    header = (
        250 * len(whole) + 500
    )  # names and shapes, in Flower's form or in safetensors', and the config
    for rule, (up, down) in wanted.items():
        assert (
            abs(one[rule][0] - files[up]) < header and abs(one[rule][1] - files[down]) < header
        ), rule
    numbers = sum(t.numel() * 4 for t in whole.values())
    assert numbers * 3 < one["flora"][1] < numbers * 3 + header, "the stack of three"
    assert numbers * 3 < one["fedex"][1] < numbers * 3 + 2 * header, (
        "A, B and a residual of rank (K - 1) r"
    )
    cores = 3 * 3 * 4 * len(whole) // 2
    assert cores < one["fed-sb"][0] < cores + header


@pytest.mark.parametrize("rule", ["flexlora", "hetlora"])
def test_a_round_without_the_largest_client_costs_it_no_rank(rule, start, guess):
    mixed = replace(SMALL, rule=rule, ranks="2,3,2", rounds=3)
    watched = Watched(mixed, start, guess, gone={(2, 1)})
    server = watched.strategy.protocol.server
    # The round that it missed gave only two directions; in the next one all of its own three learn again.
    for a, b in factors(watched.trained[2, 1]).values():
        assert len(a) == 3 and (a.norm(dim=1) > 0).all() and (b.norm(dim=0) > 0).all()
    assert server.ranks == [2, 3, 2]
    whole = factors(watched.model(2))
    assert all(len(a) == 3 for a, _ in whole.values())


def test_fed_sb_refuses_a_rank_that_no_layer_has(start, guess):
    with pytest.raises(ValueError, match="rank must be at most 8 with rule 'fed-sb'.* got 9"):
        high = replace(SMALL, rule="fed-sb", rank=9)
        Watched(high, start, guess)


@pytest.mark.parametrize("rule", ["flora", "flexlora", "hetlora"])
def test_clients_of_different_ranks_take_part(rule, start, guess):
    mixed = replace(SMALL, rule=rule, ranks="1,2,4", rounds=2)
    watched = Watched(mixed, start, guess)
    assert not watched.strategy.refused
    for client, rank in enumerate((1, 2, 4)):
        kept = watched.strategy.protocol.server.ranks[client] if rule == "hetlora" else rank
        assert {a.shape[0] for a, _ in factors(watched.trained[1, client]).values()} == {kept}
    if rule == "flora":
        fresh = prepare(SMALL).unet
        load_model(fresh, watched.model(1))
        torch.testing.assert_close(watched.starts[2, 0], guess(fresh), rtol=0, atol=5e-4)


@pytest.mark.parametrize(
    ("rule", "alpha"),
    [
        ("fedit", 1.0),
        ("ffa", 6.0),
        ("rolora", 1.0),
        ("flora", 6.0),
        ("flexlora", 1.0),
        ("fed-sb", 6.0),
    ],
)
def test_the_model_is_the_same_whatever_the_scale(rule, alpha, start, guess):
    watched = Watched(replace(SMALL, rule=rule, lora_alpha=alpha, rounds=2), start, guess)
    fresh = prepare(SMALL).unet
    load_model(fresh, watched.model(1))
    torch.testing.assert_close(watched.starts[2, 1], guess(fresh), rtol=0, atol=5e-4)


def test_b_stays_at_home_under_fedsa(start, guess):
    watched = Watched(replace(SMALL, rule="fedsa"), start, guess)
    assert set(watched.strategy.client_arrays[0]) == set(part(start[3], "A"))
    assert all(not b.any() for _, b in factors(watched.model(3)).values()), "the server has none"
    one, other = watched.trained[2, 0], watched.trained[2, 1]
    assert all(not torch.equal(one[name], other[name]) for name in part(start[3], "B")), (
        "everyone has an own B"
    )
    assert len(watched.strategy.protocol.personal_losses) == 3


SPOILS = {
    "nan": (
        lambda state: {**state, next(iter(state)): next(iter(state.values())) * float("nan")},
        "NaN",
    ),
    "wrong-rank": (
        lambda state: {k: t[:2] if t.shape[0] == 3 else t[..., :2] for k, t in state.items()},
        "where",
    ),
    "1000-times": (lambda state: {k: t * 1000 for k, t in state.items()}, "times as much"),
    "left-out": (lambda state: dict(list(state.items())[1:]), "left out"),
}


@pytest.mark.parametrize(
    "rule, how",
    [
        (rule, how)
        for rule in RULES
        for how in SPOILS
        if rule in ("fedit", "flora") or how == "1000-times"
    ],
)
def test_a_spoilt_upload_is_refused_by_name_and_the_round_completes(rule, how, start, guess):
    spoil, words = SPOILS[how]
    watched = Watched(replace(SMALL, rule=rule, rounds=1), start, guess, spoil)
    ((server_round, client, reason),) = watched.strategy.refused
    assert (server_round, client) == (1, "client 2") and words in reason
    assert set(watched.strategy.protocol.client_states) == {0, 1}
    assert all(torch.isfinite(t).all() for t in watched.model(1).values())
    if rule == "fedit":
        for name, tensor in watched.model(1).items():
            both = [watched.trained[0, client][name] for client in (0, 1)]
            torch.testing.assert_close(tensor, (both[0] + both[1]) / 2)


def test_packed_uploads_reach_every_rule(start, guess, two_rounds):
    for rule in ("fedit", "flora"):
        plain = two_rounds(rule)
        packed = Watched(replace(SMALL, rule=rule, rounds=1, upload="int8"), start, guess)
        first_round = plain.sent[plain.sent["round"] == 1]
        assert_close(change(packed.model(1)), change(plain.model(1)), 0.05)
        assert (
            not packed.strategy.refused and packed.sent["bytes"].sum() < first_round["bytes"].sum()
        )


def test_strategy_of_gives_the_rule_or_plain_averaging():
    assert type(strategy_of(SMALL).protocol) is RuleProtocol
    assert type(strategy_of(replace(SMALL, method="full")).protocol) is Averaging


@pytest.mark.parametrize(
    "knobs",
    [
        {"defence": "median"},
        {"defence": "trimmed", "rule": "ffa"},
        {"clip": 1.0, "noise_multiplier": 0.01},
        {"clip": 0.5, "rule": "fedsa"},
        {"secure": 1},
        {"secure": 1, "rule": "ffa"},
        {"select": "fastest", "fraction": 0.5},
        {"select": "random", "fraction": 0.7, "rule": "flora"},
        {"buffer": 2},
        {"deadline_seconds": 1e4, "rule": "fedex"},
        {"upload": "top-k", "keep": 0.5, "rule": "rolora"},
        {"upload": "int8", "buffer": 2},
    ],
    ids=lambda knobs: ",".join(f"{knob}={value}" for knob, value in knobs.items()),
)
def test_knobs_that_go_together_run_together(knobs, start, guess):
    many = replace(SMALL, num_clients=4, rounds=2, **knobs)
    watched = Watched(many, start, guess)
    assert not watched.strategy.refused
    state = watched.strategy.latest.to_torch_state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
    assert any(not torch.equal(state[name], tensor) for name, tensor in start[3].items()), (
        "something was learned"
    )


@pytest.mark.parametrize(
    "knobs",
    [
        {"rule": "flora", "noise_multiplier": 1.0, "clip": 1.0},
        {"rule": "fedex", "secure": 1},
        {"rule": "flexlora", "defence": "median"},
        {"method": "full", "rule": "ffa"},
        {"noise_multiplier": 1.0, "clip": 0.0},
        {"noise_multiplier": 1.0, "buffer": 2, "clip": 1.0},
        {"secure": 1, "defence": "krum"},
        {"secure": 1, "upload": "int8"},
        {"secure": 1, "buffer": 2},
        {"secure": 1, "select": "fastest"},
        {"secure": 1, "rule": "fed-sb"},
        {"rule": "rolora", "buffer": 2},
        {"upload": "top-k", "rule": "flora"},
    ],
    ids=lambda knobs: ",".join(f"{knob}={value}" for knob, value in knobs.items()),
)
def test_knobs_that_contradict_each_other_are_both_named(knobs):
    with pytest.raises(ValueError) as error:
        strategy_of(replace(SMALL, **knobs))
    assert all(knob in str(error.value) for knob in list(knobs)[:2])


@pytest.mark.parametrize(
    ("knobs", "uploads"),
    [
        ({}, 4),
        ({"select": "random", "fraction": 0.5}, 2),
        ({"select": "fastest", "fraction": 0.25}, 1),
        ({"buffer": 3}, 3),
    ],
    ids=["all", "random", "fastest", "buffer"],
)
def test_clipping_takes_the_mean_over_those_who_were_asked(knobs, uploads, start):
    strategy = strategy_of(replace(SMALL, num_clients=4, clip=1e9, **knobs))
    one, none = np.ones(3, np.float32), np.zeros(3, np.float32)
    merged = strategy.combine(1, {"w": none}, [{"w": one}] * uploads, [1] * uploads)
    np.testing.assert_allclose(merged["w"], one)
