"""Claims about many clients' adapters in one pass: fedgen_lab/lora/stacked.py (lab 03)."""

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedgen_lab.federation.grid import Stopped, run_app
from fedgen_lab.lora import stacked
from fedgen_lab.lora.adapter import add_adapter, load_trainable, trainable_state
from fedgen_lab.lora.local import train
from fedgen_lab.lora.pipeline import Encoded
from fedgen_lab.lora.stacked import StackedAdapters, Turn, stacked_handler, train_stacked

SCHEDULE = DDPMScheduler(num_train_timesteps=100)
KNOBS = {"steps": 3, "batch_size": 4, "learning_rate": 1e-3}


def new_unet(dtype=torch.float32, rank=3, alpha=None):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            cross_attention_dim=8,
            norm_num_groups=4,
            attention_head_dim=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ).eval()
    add_adapter(unet, rank, alpha)
    return unet.double() if dtype is torch.float64 else unet


def pictures(client, dtype=torch.float32):
    draw = torch.Generator().manual_seed(100 + client)
    number = 6 + client  # nobody holds as many as another
    return Encoded(
        torch.randn(number, 4, 8, 8, generator=draw, dtype=dtype),
        torch.randn(number, 5, 8, generator=draw, dtype=dtype),
    )


def state_of(unet, client, rank=None):
    """An adapter like the UNet's, with numbers of this client's own in both factors."""
    draw, state = torch.Generator().manual_seed(client), {}
    for name, tensor in trainable_state(unet).items():
        rows, columns = tensor.shape
        if rank is not None:
            rows, columns = (rank, columns) if ".lora_A." in name else (rows, rank)
        state[name] = 0.1 * torch.randn(rows, columns, generator=draw, dtype=tensor.dtype)
    return state


def turn_of(unet, client, state, **knobs):
    message = context = None
    return Turn(
        message,
        context,
        unet,
        SCHEDULE,
        pictures(client, unet.dtype),
        state,
        seed=client,
        **(KNOBS | knobs),
    )


def one_by_one(turns):
    """What `local.train` makes of the same turns: a list of (state, losses)."""
    results = []
    for turn in turns:
        load_trainable(turn.unet, turn.state)
        losses = train(
            turn.unet,
            turn.schedule,
            turn.encoded,
            turn.steps,
            turn.batch_size,
            turn.learning_rate,
            turn.seed,
        )
        results.append((trainable_state(turn.unet), losses))
    return results


def assert_alike(ours, plain, tolerance):
    for (state, losses), (plain_state, plain_losses) in zip(ours, plain, strict=True):
        torch.testing.assert_close(state, plain_state, rtol=0, atol=tolerance)
        torch.testing.assert_close(losses, plain_losses, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("merged", [0, 1000], ids=["beside-W", "merged-into-W"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 0.05), (torch.float64, 1e-6)], ids=["single", "double"]
)
def test_stacked_training_equals_one_client_after_another(monkeypatch, merged, dtype, tolerance):
    """Judged as a share of the way that all weights went: in single precision, AdamW can turn the rounding of one
    gradient near zero into a whole step."""
    monkeypatch.setattr(stacked, "MERGED", merged)
    unet = new_unet(dtype, alpha=7)
    turns = [turn_of(unet, client, state_of(unet, client)) for client in range(3)]
    plain = one_by_one(turns)
    for (state, losses), (plain_state, plain_losses), turn in zip(
        train_stacked(turns), plain, turns, strict=True
    ):
        apart = sum((state[name] - plain_state[name]).square().sum() for name in plain_state).sqrt()
        went = sum(
            (turn.state[name] - plain_state[name]).square().sum() for name in plain_state
        ).sqrt()
        assert apart < tolerance * went
        assert losses == pytest.approx(plain_losses, rel=1e-4)


def test_gradients_are_clipped_client_by_client():
    unet = new_unet(torch.float64)
    loud = {name: 30 * tensor for name, tensor in state_of(unet, 0).items()}
    turns = [turn_of(unet, 0, loud, steps=2), turn_of(unet, 1, state_of(unet, 1), steps=2)]
    assert_alike(train_stacked(turns), one_by_one(turns), 1e-7)


def test_frozen_factors_stay_in_the_unet_and_the_others_train():
    unet = new_unet(torch.float64)
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(".lora_B." in name)
    turns = [turn_of(unet, client, state_of(unet, client)) for client in range(2)]
    assert all(".lora_B." in name for name in turns[0].state)
    assert_alike(train_stacked(turns), one_by_one(turns), 1e-7)


def test_clients_of_different_rank_go_together():
    ranks, alpha = (1, 3), 6
    together = new_unet(torch.float64, rank=3)
    turns = [
        turn_of(together, client, state_of(together, client, rank), scale=alpha / rank)
        for client, rank in enumerate(ranks)
    ]
    apart = [new_unet(torch.float64, rank, alpha) for rank in ranks]
    plain = [turn_of(unet, client, turns[client].state) for client, unet in enumerate(apart)]
    assert_alike(train_stacked(turns), one_by_one(plain), 1e-7)


def test_the_unet_is_as_it_was_afterwards():
    unet = new_unet()
    layers, numbers = (
        dict(unet.named_modules()),
        {name: p.clone() for name, p in unet.state_dict().items()},
    )
    strides = [p.stride() for p in unet.parameters()]
    train_stacked([turn_of(unet, client, state_of(unet, client), steps=1) for client in range(2)])
    assert (
        dict(unet.named_modules()) == layers and [p.stride() for p in unet.parameters()] == strides
    )
    torch.testing.assert_close(unet.state_dict(), numbers, rtol=0, atol=0)


def test_a_client_whose_loss_is_not_finite_fails_alone():
    unet = new_unet(torch.float64)
    turns = [turn_of(unet, client, state_of(unet, client)) for client in range(3)]
    turns[1].encoded.latents.fill_(torch.nan)
    first, second, third = train_stacked(turns)
    assert str(second) == "The loss became nan at step 1; lower the learning rate (0.001)."
    assert_alike([first, third], one_by_one([turns[0], turns[2]]), 1e-7)


@pytest.mark.parametrize("damage", ["name", "width"])
def test_states_that_do_not_fit_are_named(damage):
    unet = new_unet()
    fine, state = state_of(unet, 0), state_of(unet, 1)
    name = next(iter(state))
    tensor = state.pop(name)
    state |= (
        {"elsewhere.lora_A.default.weight": tensor}
        if damage == "name"
        else {name: torch.zeros(3, 99)}
    )
    with pytest.raises(ValueError, match="Client 1 can't join" if damage == "name" else "99"):
        StackedAdapters(unet, [fine, state])


def app_of(unet, heard=None):
    """A plain client app, its stacked handler, and a server that asks everyone once: (server, client, stacked)."""

    def begin(message, context):
        client = context.node_config["partition-id"]
        if client == 2:
            raise ValueError("client 2 is not at home")
        state = message.content["arrays"].to_torch_state_dict()
        return Turn(message, context, unet, SCHEDULE, pictures(client), state, seed=client, **KNOBS)

    def end(turn, trained, losses):
        metrics = MetricRecord(
            {"loss": losses[-1], "partition-id": turn.context.node_config["partition-id"]}
        )
        return Message(
            RecordDict({"arrays": ArrayRecord(trained), "metrics": metrics}), reply_to=turn.message
        )

    client_app, server_app = ClientApp(), ServerApp()

    @client_app.train()
    def answer(message, context):
        turn = begin(message, context)
        load_trainable(unet, turn.state)
        losses = train(
            unet, SCHEDULE, turn.encoded, turn.steps, turn.batch_size, turn.learning_rate, turn.seed
        )
        return end(turn, trainable_state(unet), losses)

    start, replies = ArrayRecord(state_of(unet, 9)), []

    @server_app.main()
    def ask(grid, context):
        content = RecordDict({"arrays": start})
        replies.extend(
            grid.send_and_receive([Message(content, node, "train") for node in grid.get_node_ids()])
        )

    return server_app, client_app, stacked_handler(begin, end, heard), replies


def test_the_stacked_handler_answers_as_the_plain_client(monkeypatch):
    monkeypatch.setattr(stacked, "PICTURES", 8)  # three clients that answer, two in a pass
    answers = {}
    for way in ("plain", "stacked"):
        server_app, client_app, handler, replies = app_of(new_unet())
        run = run_app(server_app, client_app, 4, stacked=handler if way == "stacked" else None)
        answers[way] = (
            replies,
            sorted(
                (sent.sender, sent.receiver, sent.bytes) for sent in run.trace.frame().itertuples()
            ),
        )
    assert answers["plain"][1] == answers["stacked"][1] and len(answers["plain"][0]) == 4
    for plain, ours in zip(answers["plain"][0], answers["stacked"][0], strict=True):
        assert plain.has_error() == ours.has_error()
        if plain.has_error():
            assert plain.error.reason == ours.error.reason and "not at home" in ours.error.reason
            continue
        torch.testing.assert_close(
            ours.content["arrays"].to_torch_state_dict(),
            plain.content["arrays"].to_torch_state_dict(),
            rtol=0,
            atol=1e-5,
        )
        assert ours.content["metrics"]["loss"] == pytest.approx(
            plain.content["metrics"]["loss"], abs=1e-5
        )


def test_stop_passes_through_and_leaves_the_unet_whole():
    heard = []

    def stop(turn, step, steps, loss):
        heard.append((step, steps))
        if len(heard) == 4:
            raise Stopped("enough")

    unet = new_unet()
    layers = dict(unet.named_modules())
    server_app, client_app, handler, _ = app_of(unet, stop)
    assert run_app(server_app, client_app, 4, stacked=handler).stopped
    assert heard == [(1, 3)] * 3 + [(2, 3)] and dict(unet.named_modules()) == layers


def test_full_fine_tuning_and_a_single_client_are_left_to_the_plain_app():
    unet = new_unet()
    asked = []

    class Asked:  # only the message type is looked at
        class metadata:
            message_type = "train"

    def begin(message, context):
        asked.append(context)
        return turn_of(unet, 0, {"conv_in.weight": torch.zeros(1)})

    handle = stacked_handler(begin, None)
    assert handle([Asked], [0]) is None and not asked
    assert handle([Asked, Asked], [0, 1]) is None and asked == [0, 1]
