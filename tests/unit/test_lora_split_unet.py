"""Claims about the UNet in two halves and about training it over Flower messages: fedgen_lab/lora/split_*.py."""

from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from flwr.app import ArrayRecord, Message, RecordDict
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fedgen_lab.federation.protocol import crossings
from fedgen_lab.federation.run import run_app
from fedgen_lab.lora import split_client, split_server
from fedgen_lab.lora.adapter import (
    ATTENTION,
    adapter_bytes,
    add_adapter,
    load_trainable,
    trainable_state,
)
from fedgen_lab.lora.federated import local_seed
from fedgen_lab.lora.local import new_adam, noised_batch, target_of, train
from fedgen_lab.lora.pipeline import Encoded
from fedgen_lab.lora.split_client import split_client_app
from fedgen_lab.lora.split_server import run_split, split_server_app
from fedgen_lab.lora.split_step import device_step, edge_steps
from fedgen_lab.lora.split_unet import (
    DeviceHalf,
    EdgeHalf,
    cuts,
    device_flops,
    on_device,
    smashed_on_meta,
    traffic,
)
from fedgen_lab.scenario import Scenario
from fedgen_lab.wireless.channel import Network
from fedgen_lab.wireless.replay import replay

CUTS = ("conv_in", "down_blocks.0", "down_blocks.1", "mid_block")
KINDS = {
    "plain": {},
    "text_in_time": {"addition_embed_type": "text", "addition_embed_type_num_heads": 2},
    "two_layers": {"layers_per_block": 2},
}


def tiny_unet(seed=0, **changes):
    config = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "cross_attention_dim": 8,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DConditionModel(**{**config, **changes}).eval().requires_grad_(False)


def random_pictures(seed, number=5):
    draw = torch.Generator().manual_seed(seed)
    return Encoded(
        torch.randn(number, 4, 8, 8, generator=draw), torch.randn(number, 5, 8, generator=draw)
    )


def tiny_base(scenario, folder=""):
    """A base on random latents: what they show doesn't matter to the arithmetic. Client i holds 5 + i pictures."""
    unet = tiny_unet(addition_embed_type="text", addition_embed_type_num_heads=2)
    add_adapter(unet, scenario.rank) if scenario.method == "lora" else unet.requires_grad_(True)
    return SimpleNamespace(
        unet=unet,
        schedule=DDPMScheduler(prediction_type="v_prediction"),
        encoded=lru_cache(lambda client: random_pictures(client, 5 + client)),
        held_out=lru_cache(lambda: random_pictures(99, 3)),
    )


@pytest.fixture(autouse=True)
def random_latents(monkeypatch):
    """Devices and edge train on `tiny_base` instead of the pipeline that ships."""
    for module in (split_client, split_server):
        monkeypatch.setattr(module, "Base", tiny_base)


def tiny_scenario(**changes):
    few = {
        "num_clients": 1,
        "rounds": 1,
        "local_steps": 2,
        "batch_size": 4,
        "rank": 2,
        "method": "full",
    }
    return Scenario(**{**few, **changes})


def federated_by_hand(scenario):
    """Federated averaging of whole UNets in ten lines: `local.train` for each client, then the weighted mean."""
    base = tiny_base(scenario)
    state = trainable_state(base.unet)
    for server_round in range(1, scenario.rounds + 1):
        states, sizes = [], []
        for client in range(scenario.num_clients):
            load_trainable(base.unet, state)
            own, seed = base.encoded(client), local_seed(scenario, client, server_round)
            train(
                base.unet,
                base.schedule,
                own,
                scenario.local_steps,
                scenario.batch_size,
                scenario.rate,
                seed,
            )
            states.append(trainable_state(base.unet))
            sizes.append(len(own))
        state = {
            n: sum(s[n] * (k / sum(sizes)) for s, k in zip(states, sizes, strict=True))
            for n in state
        }
    return state


@pytest.fixture
def double():
    """Everything in float64: AdamW divides a gradient by its own size, and so makes whole steps of float32's rounding
    wherever a gradient is zero in theory (the key's bias in attention)."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def batch_of(latents, text):
    """A batch of these shapes, as `noised_batch` gives it."""
    return torch.zeros(latents), torch.zeros(latents[:1]), torch.zeros(text), torch.zeros(latents)


def furthest(one, other):
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


# -- the halves ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "side"), [("plain", 8), ("text_in_time", 7), ("two_layers", 7)])
@pytest.mark.parametrize("cut", CUTS)
def test_the_two_halves_compute_what_the_whole_unet_does(cut, kind, side):
    unet, draw = tiny_unet(seed=side, **KINDS[kind]), torch.Generator().manual_seed(side)
    noisy, text = (
        torch.randn(3, 4, side, side, generator=draw),
        torch.randn(3, 5, 8, generator=draw),
    )
    timesteps = torch.tensor([0, 400, 999])
    with torch.no_grad():
        whole = unet(noisy, timesteps, encoder_hidden_states=text).sample
        halves = EdgeHalf(unet, cut)(DeviceHalf(unet, cut)(noisy, timesteps, text), text)
    torch.testing.assert_close(halves, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cut", CUTS)
def test_each_half_computes_with_its_own_parameters_and_no_others(cut):
    unet = tiny_unet(addition_embed_type="text", addition_embed_type_num_heads=2).requires_grad_(
        True
    )
    noisy, text, is_ours = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 8), on_device(unet, cut)
    smashed = DeviceHalf(unet, cut)(noisy, torch.tensor([3, 500]), text)
    sum(tensor.sum() for tensor in smashed.values()).backward()
    used = {name for name, p in unet.named_parameters() if p.grad is not None}
    assert used == {name for name, _ in unet.named_parameters() if is_ours(name)}
    unet.zero_grad()
    EdgeHalf(unet, cut)(
        {name: tensor.detach() for name, tensor in smashed.items()}, text
    ).sum().backward()
    used = {name for name, p in unet.named_parameters() if p.grad is not None}
    assert used == {name for name, _ in unet.named_parameters() if not is_ours(name)}


@pytest.mark.parametrize("cut", CUTS)
def test_the_shapes_of_smashed_data_are_known_beforehand(cut):
    unet, noisy, text = tiny_unet(), torch.randn(3, 4, 8, 8), torch.randn(3, 5, 8)
    smashed = DeviceHalf(unet, cut)(noisy, torch.tensor([1, 2, 3]), text)
    ghosts = smashed_on_meta(unet, cut, batch_of(noisy.shape, text.shape))
    assert all(ghost.is_meta for ghost in ghosts.values())
    assert {n: t.shape for n, t in ghosts.items()} == {n: t.shape for n, t in smashed.items()}


def test_another_cut_is_named_with_those_there_are():
    assert cuts(tiny_unet()) == CUTS
    with pytest.raises(ValueError, match="cut must be one of conv_in, .*; got 'up_blocks.0'"):
        DeviceHalf(tiny_unet(), "up_blocks.0")


def test_a_unet_that_takes_more_than_text_is_refused():
    with pytest.raises(ValueError, match="SD 1.x/2.x"):
        cuts(tiny_unet(num_class_embeds=3))


# -- training over messages ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", CUTS)
def test_split_training_equals_training_the_whole_unet(cut, double):
    scenario = tiny_scenario(seed=4)
    outcome = run_split(scenario, cut)
    assert not outcome.refused
    assert furthest(outcome.state, federated_by_hand(scenario)) < 1e-9
    assert furthest(outcome.state, trainable_state(tiny_base(scenario).unet)) > 1e-4  # it did learn


def test_split_training_of_an_adapter_equals_training_it_whole(double):
    scenario = tiny_scenario(method="lora")
    outcome = run_split(scenario, "down_blocks.1")
    assert outcome.state.keys() == trainable_state(tiny_base(scenario).unet).keys()
    assert furthest(outcome.state, federated_by_hand(scenario)) < 1e-9


def test_with_many_clients_it_equals_federated_averaging_round_after_round(double):
    scenario = tiny_scenario(num_clients=3, rounds=2, local_steps=1)
    outcome = run_split(scenario, "down_blocks.0")
    assert furthest(outcome.state, federated_by_hand(scenario)) < 1e-9
    assert len(outcome.rounds) == 3 and set(outcome.client_states) == {0, 1, 2}


def test_a_device_with_nothing_to_train_says_so():
    outcome = run_split(tiny_scenario(method="lora"), "conv_in")
    assert "cut deeper" in outcome.refused[0].reason
    assert outcome.refused[-1].client == "everyone"


def test_pictures_noise_and_targets_stay_on_the_device():
    """Nothing that goes up has the numbers of a latent, a noise or a target in it."""
    scenario, sent = tiny_scenario(local_steps=2), []
    app = split_client_app()

    def overhear(messages, contexts):
        replies = [
            app(message, context) for message, context in zip(messages, contexts, strict=True)
        ]
        sent.extend(
            t
            for r in replies
            if "tensors" in r.content
            for t in r.content["tensors"].to_torch_state_dict().values()
        )
        return replies

    run_app(
        split_server_app(),
        app,
        1,
        {**scenario.to_run_config(), "cut": "conv_in"},
        stacked=overhear,
    )
    base = tiny_base(scenario)
    draw, latents = (
        torch.Generator().manual_seed(local_seed(scenario, 0, 1)),
        base.encoded(0).latents,
    )
    pick = torch.randint(len(latents), (4,), generator=draw)
    noise = torch.randn((4, 4, 8, 8), generator=draw)
    timesteps = torch.randint(base.schedule.config.num_train_timesteps, (4,), generator=draw)
    target = target_of(base.schedule, latents[pick], noise, timesteps)
    sent = torch.cat([tensor.flatten() for tensor in sent])
    assert len(sent) > 1000
    for secret in (
        latents[pick],
        noise,
        target,
    ):  # thousands of numbers in float32: one or two can be equal by chance
        assert torch.isin(secret, sent).float().mean() < 0.02


def spoil(client, action, how):
    """A client app like the real one, whose `client` spoils its answer to `action` in round 1."""
    honest = split_client_app()

    def answer(message, context):
        reply = honest(message, context)
        is_due = int(message.content["config"]["server-round"]) == 1
        if (
            context.node_config["partition-id"] == client
            and message.metadata.message_type == action
            and is_due
        ):
            return how(message, reply)
        return reply

    return answer


def changed(name, change):
    def how(message, reply):
        tensors = {
            key: change(value) for key, value in reply.content[name].to_torch_state_dict().items()
        }
        return Message(RecordDict({**reply.content, name: ArrayRecord(tensors)}), reply_to=message)

    return how


def vanish(message, reply):
    raise RuntimeError("battery empty")


TROUBLE = {
    "nan_in_smashed_data": (
        "train.start",
        changed("tensors", lambda t: t * float("nan")),
        "NaN or infinity",
    ),
    "other_shape": (
        "train.loss",
        changed("tensors", lambda t: t[:, :2]),
        "where float32 (4, 4, 8, 8) belongs",
    ),
    "error_half_way": ("train.learn", vanish, "battery empty"),
    "overflow": (
        "train.loss",
        changed("tensors", lambda t: t * 0 + 3e38),
        "overflowed at the edge",
    ),
    "too_large": (
        "train.learn",
        changed("tensors", lambda t: t * 1000),
        "as much as the median client",
    ),
}


@pytest.mark.parametrize("kind", TROUBLE)
def test_a_client_in_trouble_is_named_and_the_round_goes_on_without_it(kind):
    action, how, words = TROUBLE[kind]
    scenario, servers = tiny_scenario(num_clients=3, rounds=2, local_steps=1), []
    server_app = split_server_app(keep=servers.append)
    run_app(
        server_app, spoil(1, action, how), 3, {**scenario.to_run_config(), "cut": "down_blocks.0"}
    )
    ((server_round, client, reason),) = servers[0].clients.refused
    assert (server_round, client) == (1, "client 1") and words in reason
    assert set(servers[0].client_states) == {0, 1, 2}  # in the second round it is back
    assert (
        all(value.isfinite().all() for value in servers[0].state.values())
        and len(servers[0].losses) == 3
    )


def test_after_a_stop_the_last_average_is_kept(tmp_path):
    answers = iter([False] * 12 + [True] * 100)
    servers, path = [], tmp_path / "state.safetensors"
    knobs = tiny_scenario(rounds=50, local_steps=1).to_run_config()
    run = run_app(
        split_server_app(servers.append),
        split_client_app(),
        1,
        {**knobs, "cut": "conv_in", "save-to": str(path)},
        should_stop=lambda: next(answers),
    )
    (server,) = servers
    assert run.stopped and 2 < len(server.losses) < 50
    assert len(server.losses) == server.round
    assert furthest(load_file(path), server.state) == 0
    assert furthest(server.state, server.client_states[0]) == 0  # of the last whole round


def test_a_fresh_process_for_every_message_computes_the_same():
    scenario = tiny_scenario(num_clients=2, rounds=2, local_steps=3)
    servers = []
    run_app(
        split_server_app(keep=servers.append),
        split_client_app(),
        2,
        {**scenario.to_run_config(), "cut": "down_blocks.0"},
        stacked=lambda messages, contexts: [
            split_client_app()(message, context)
            for message, context in zip(messages, contexts, strict=True)
        ],
    )
    outcome = run_split(scenario, "down_blocks.0")
    assert not outcome.refused and furthest(servers[0].state, outcome.state) == 0


@pytest.mark.parametrize("cut", CUTS)
def test_both_sides_of_a_step_played_together_are_a_step_of_the_whole_unet(cut, double):
    whole, halves = (tiny_base(tiny_scenario()).unet for _ in range(2))
    schedule, encoded = DDPMScheduler(prediction_type="v_prediction"), random_pictures(0)
    (loss,) = train(whole, schedule, encoded, 1, 4, 2e-3, seed=5)
    batch = noised_batch(schedule, encoded, 4, torch.Generator().manual_seed(5))
    is_device = on_device(halves, cut)
    first = {name: p for name, p in halves.named_parameters() if is_device(name)}
    last = {name: p for name, p in halves.named_parameters() if not is_device(name)}
    device = device_step(DeviceHalf(halves, cut), new_adam(first.values(), 2e-3), batch)
    edge = edge_steps(EdgeHalf(halves, cut), last, new_adam(last.values(), 2e-3))
    ways, messages = zip(*crossings(device, edge), strict=True)
    assert ways == ("up", "down", "up", "down", "up")
    assert messages[2]["loss"] == pytest.approx(loss)
    assert furthest(trainable_state(halves), trainable_state(whole)) < 1e-9


# -- what it costs ---------------------------------------------------------------------------------------------------


@lru_cache
def sd15():
    """The UNet of Stable Diffusion 1.5 without its weights."""
    with torch.device("meta"):
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768)


@pytest.mark.parametrize("cut", ["conv_in", "mid_block"])
def test_the_bytes_foretold_are_the_bytes_that_flower_sends(cut):
    scenario = tiny_scenario()
    sent = run_split(scenario, cut).trace.frame()
    unet = tiny_unet(addition_embed_type="text", addition_embed_type_num_heads=2)
    table = (
        traffic(unet, 0, 5, rounds=1, steps=2, batch=4, rank=2)
        .set_index("way")
        .loc[f"split after {cut}"]
    )
    weights = sum(map(on_device(unet, cut), dict(unet.named_parameters())))
    arrays = weights + 2 * (
        2 * len(smashed_on_meta(unet, cut, batch_of((4, 4, 8, 8), (4, 5, 8)))) + 3
    )  # sent and got, two steps
    for told, real in (
        (table.up_bytes, sent[sent.sender == 0]),
        (table.down_bytes, sent[sent.receiver == 0]),
    ):
        assert (
            0 < real.bytes.sum() - told < 300 * arrays + 200 * len(real)
        )  # names, shapes and headers


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_operations_foretold_are_those_that_torch_counts(method):
    unet, draw = tiny_base(tiny_scenario(method=method)).unet, torch.Generator().manual_seed(0)
    noisy, text = torch.randn(3, 4, 8, 8, generator=draw), torch.randn(3, 5, 8, generator=draw)
    with (
        FlopCounterMode(display=False) as forward,
        sdpa_kernel(SDPBackend.MATH),
    ):  # torch can't look into its fast one
        smashed = DeviceHalf(unet, "down_blocks.1")(noisy, torch.tensor([1, 2, 3]), text)
    with FlopCounterMode(display=False) as backward:
        sum(tensor.sum() for tensor in smashed.values()).backward()
    told = device_flops(unet, "down_blocks.1", batch_of(noisy.shape, text.shape))
    assert told == (forward.get_total_flops(), backward.get_total_flops()) and min(told) > 0


def test_a_device_tells_the_work_behind_each_answer_so_that_a_run_can_be_put_on_a_clock():
    scenario = tiny_scenario(num_clients=2, rounds=2, local_steps=1)
    trace = run_split(scenario, "down_blocks.0").trace
    unet = tiny_base(scenario).unet
    step = sum(device_flops(unet, "down_blocks.0", batch_of((4, 4, 8, 8), (4, 5, 8))))
    spent = trace.frame().groupby("sender")["flops"].sum()
    assert spent[0] == spent[1] == scenario.rounds * scenario.local_steps * step
    rounds = replay(trace, Network(2, flops_per_second=1e9)).rounds
    assert len(rounds) == 2 and (rounds["seconds"] > 0).all()


@pytest.mark.parametrize(
    "knob", [{"rule": "flora"}, {"secure": 1}, {"upload": "int8"}, {"select": "random"}]
)
def test_a_knob_of_other_ways_to_train_is_refused_by_name(knob):
    with pytest.raises(ValueError, match=f"knows no {next(iter(knob))}="):
        run_split(tiny_scenario(**knob), "conv_in")


def test_the_adapter_in_the_table_is_the_adapter_that_is_sent():
    unet = tiny_unet()
    table = traffic(unet, 0, 5, rounds=1, rank=3).set_index("way")
    whole = sum(p.numel() for p in unet.parameters())
    add_adapter(unet, 3)
    assert table.loc["LoRA", "up_bytes"] == adapter_bytes(trainable_state(unet))
    assert table.loc["whole model", "up_bytes"] == 4 * whole


@pytest.mark.parametrize("against", ["LoRA", "whole model"])
def test_at_the_crossover_the_split_turns_from_less_to_more(against):
    column = "below_lora_up_to" if against == "LoRA" else "below_whole_up_to"
    crossover = int(
        traffic(tiny_unet(), 0, 5, rank=8).set_index("way").loc["split after conv_in", column]
    )
    assert crossover > 0
    for pictures, is_less in ((crossover, True), (crossover + 1, False)):
        table = traffic(tiny_unet(), 0, 5, rounds=1, steps=pictures, batch=1, rank=8).set_index(
            "way"
        )
        both = table.up_bytes + table.down_bytes
        assert (both["split after conv_in"] <= both[against]) == is_less


def test_stable_diffusion_15_has_the_sizes_that_were_measured_on_it():
    table = traffic(sd15(), 0, 77, rounds=1, steps=1, batch=1, rank=4, targets=ATTENTION)
    table = table.set_index("way")
    assert table.loc["whole model", "device_parameters"] == 859_520_964
    assert table.loc["LoRA", "up_bytes"] == 4 * 797_184
    kept = table.device_parameters[
        ["split after conv_in", "split after down_blocks.0", "split after down_blocks.1"]
    ]
    np.testing.assert_allclose(kept.astype(float), [2.06e6, 12.6e6, 49.4e6], rtol=2e-3)
    smashed = {}
    for cut in ("conv_in", "mid_block"):
        ghosts = smashed_on_meta(sd15(), cut, batch_of((1, 4, 64, 64), (1, 77, 768)))
        smashed[cut] = sum(ghost.numel() for ghost in ghosts.values())
    assert 2 * smashed["conv_in"] == pytest.approx(2.62e6, rel=5e-3)
    assert 2 * smashed["mid_block"] == pytest.approx(13.4e6, rel=5e-3)


def test_at_full_size_no_cut_sends_less_than_an_adapter_but_all_send_less_than_the_model_for_a_while():
    table = traffic(sd15(), 0, 77, rank=4, targets=ATTENTION)
    splits = table[table.way.str.startswith("split")]
    assert (splits.below_lora_up_to == 0).all() and (splits.below_whole_up_to > 50).all()
