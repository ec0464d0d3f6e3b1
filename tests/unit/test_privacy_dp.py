"""Claims about differential privacy on adapters: lora/private.py and federation/accountant.py (lab 08)."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from scipy import integrate, stats

from fedgen_lab.federation.accountant import (
    DELTA,
    exact_epsilon,
    privacy_spent,
    sampled_epsilon,
    spent_by,
)
from fedgen_lab.federation.averages import clipped, norm, private_mean
from fedgen_lab.federation.fedavg import CheckedFedAvg
from fedgen_lab.federation.run import run_app
from fedgen_lab.lora.adapter import add_adapter, trainable_state
from fedgen_lab.lora.pipeline import Encoded
from fedgen_lab.lora.private import AT_ONCE, picture_gradients, train_privately
from fedgen_lab.lora.strategies import strategy_of
from fedgen_lab.scenario import Scenario

SHAPES = {"a": (3, 5), "b": (7,)}


def arrays(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {
        name: (scale * rng.normal(size=shape)).astype(np.float32) for name, shape in SHAPES.items()
    }


@pytest.fixture(scope="module")
def unet():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            cross_attention_dim=8,
            norm_num_groups=2,
            attention_head_dim=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )
    add_adapter(net.eval(), rank=2, seed=0)
    return net


@pytest.fixture
def adapter(unet):
    """The UNet with an adapter that is no longer zero, and the same one for every test."""
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in unet.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draws))
    return unet


@pytest.fixture(scope="module")
def encoded():
    draws = torch.Generator().manual_seed(2)
    return Encoded(torch.randn(6, 4, 8, 8, generator=draws), torch.randn(6, 5, 8, generator=draws))


# -- the accountant ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("z", "releases", "delta"), [(1.0, 1, 1e-5), (2.0, 10, 1e-2), (0.7, 30, 1e-6)]
)
def test_the_exact_epsilon_is_where_the_privacy_loss_integral_meets_delta(z, releases, delta):
    epsilon = exact_epsilon(z, releases, delta)
    sigma = z / math.sqrt(releases)  # the sums together are one Gaussian with a user's change of 1
    with_user, without = stats.norm(1, sigma), stats.norm(0, sigma)
    start = 0.5 + epsilon * sigma**2  # from here on the densities differ by more than e^epsilon
    area, _ = integrate.quad(
        lambda x: with_user.pdf(x) - np.exp(epsilon) * without.pdf(x),
        start,
        start + 30 * sigma,
    )
    assert area == pytest.approx(delta, rel=1e-4)


@pytest.mark.parametrize(("z", "releases"), [(1.0, 5), (4.0, 20), (0.5, 3)])
def test_three_accountants_agree_and_none_promises_more_than_the_truth(z, releases):
    exact = privacy_spent(z, releases).epsilon
    prv, rdp = (sampled_epsilon(name, z, releases, 1.0, DELTA) for name in ("prv", "rdp"))
    assert exact <= prv <= exact + 0.02
    assert exact < rdp < 1.3 * exact + 0.2


def test_prv_and_rdp_are_opacus_own_for_pictures_drawn_by_coins():
    from opacus.accountants import PRVAccountant, RDPAccountant

    for kind, name in ((PRVAccountant, "prv"), (RDPAccountant, "rdp")):
        accountant = kind()
        for _ in range(40):
            accountant.step(noise_multiplier=1.1, sample_rate=0.25)
        found = sampled_epsilon(name, 1.1, 40, 0.25, 1e-5)
        assert found == pytest.approx(accountant.get_epsilon(1e-5))


def test_drawing_few_pictures_at_a_time_costs_less_and_more_noise_costs_less():
    few, all_of_them = privacy_spent(1.0, 40, 0.25), privacy_spent(1.0, 40, 1.0)
    assert few.accountant == "prv" and few.epsilon < all_of_them.epsilon / 2
    epsilons = [privacy_spent(z, 10).epsilon for z in (0.1, 0.5, 1.0, 2.0, 8.0, 100.0)]
    assert epsilons == sorted(epsilons, reverse=True) and epsilons[-1] < 0.2


def test_no_noise_is_no_privacy_and_hardly_any_is_counted_without_a_large_grid():
    assert privacy_spent(0.0, 1).epsilon == math.inf
    assert privacy_spent(1.0, 0).epsilon == 0.0
    weak = privacy_spent(0.05, 1000, 0.5)
    assert weak.accountant == "rdp" and weak.epsilon > 1000


def test_an_epsilon_is_shown_with_its_delta_and_its_accountant():
    assert str(privacy_spent(1.0, 5)) == "epsilon = 11.5 at delta = 1e-05 (exact accountant)"


@pytest.mark.parametrize(
    "wrong",
    [
        {"noise_multiplier": -1.0},
        {"sample_rate": 0.0},
        {"sample_rate": 1.5},
        {"releases": -1},
        {"noise_multiplier": math.nan},
    ],
    ids=["noise", "no rate", "rate", "releases", "nan"],
)
def test_nonsense_is_refused(wrong):
    with pytest.raises(ValueError, match="Privacy needs"):
        privacy_spent(**{"noise_multiplier": 1.0, "releases": 1, **wrong})


# -- user level -------------------------------------------------------------------------------------------------------


def test_clipping_keeps_the_direction_and_leaves_short_updates_alone():
    update = arrays(0)
    short = clipped(update, 0.5)
    assert norm(short) == pytest.approx(0.5, rel=1e-12)
    ratio = 0.5 / norm(update)
    assert all(np.allclose(short[name], update[name] * ratio) for name in update)
    assert all(np.array_equal(clipped(update, 1e6)[name], update[name]) for name in update)
    assert norm(clipped({"a": np.zeros(3)}, 1.0)) == 0.0


def sum_of_a_round(lengths):
    """The sum of clipped changes that a server releases when clients change one number by these lengths; clip 1."""
    server, kept = ServerApp(), []
    client = ClientApp()

    @client.train()
    def train(message, context):
        i = int(context.node_config["partition-id"])
        arrays = {"a": np.array([lengths[i]], np.float32)}
        metrics = MetricRecord({"num-examples": 1, "partition-id": i})
        content = {"arrays": ArrayRecord({k: Array(v) for k, v in arrays.items()}), "m": metrics}
        return Message(RecordDict(content), reply_to=message)

    @server.main()
    def main(grid, context):
        scenario = Scenario(num_clients=len(lengths), clip=1.0, method="full")
        kept.append(strategy_of(scenario))
        start = ArrayRecord({"a": Array(np.zeros(1, np.float32))})
        kept[0].start(grid, start, num_rounds=1)

    run_app(server, client, len(lengths))
    assert not kept[0].refused
    return float(kept[0].latest["a"].numpy()[0]) * len(lengths)


@pytest.mark.parametrize("newcomer", [1.0, -1.0, 1e6, 1e-9])
@pytest.mark.parametrize("others", [[1e-3, 1e-3, 1.0, 1.0], [1e-3] * 5, [1e4, 1e-4, 3.0]])
def test_one_client_more_moves_the_sum_by_no_more_than_the_clip(others, newcomer):
    # Were uploads refused by the median of all, one client could decide over several others' fate.
    assert abs(sum_of_a_round([*others, newcomer]) - sum_of_a_round(others)) <= 1.0 + 1e-5


def test_without_noise_there_is_no_guarantee_and_with_endless_noise_nothing_is_told():
    assert spent_by(Scenario(), 5) is None
    spent = spent_by(Scenario(clip=1.0, noise_multiplier=1.0), 5)
    assert spent == privacy_spent(1.0, 5) and spent.delta == DELTA
    assert privacy_spent(math.inf, 1).epsilon == 0 and privacy_spent(1e-12, 1).epsilon > 1e20


def test_without_noise_and_with_room_the_private_mean_is_the_mean():
    sent, uploads = arrays(0), [arrays(i) for i in (1, 2, 3)]
    new = private_mean(1e6, 0.0, 3)(1, sent, uploads, [5, 1, 9])
    for name in sent:
        assert np.allclose(new[name], np.mean([u[name] for u in uploads], axis=0), atol=1e-6)
        assert new[name].dtype == np.float32


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_one_client_more_moves_the_sum_by_at_most_the_clip(scale):
    sent, uploads = arrays(0), [arrays(i) for i in (1, 2, 3)] + [arrays(4, scale)]
    combine = private_mean(0.7, 1.3, 4, secret=5)
    with_them, without = (
        combine(1, sent, some, [1] * len(some)) for some in (uploads, uploads[:3])
    )
    moved = norm({name: 4.0 * (with_them[name].astype(float) - without[name]) for name in sent})
    assert moved == pytest.approx(
        0.7, rel=1e-4
    )  # all four are longer than the clip: exactly that much


def test_noise_has_the_promised_size_and_follows_from_seed_and_round():
    sent = {"a": np.zeros((200, 200), dtype=np.float32)}
    combine = private_mean(2.0, 1.5, 10, secret=3)
    new = combine(1, sent, [sent, sent], [1, 1])["a"]
    assert new.std() == pytest.approx(2.0 * 1.5 / 10, rel=0.02) and abs(new.mean()) < 0.01
    assert np.array_equal(new, private_mean(2.0, 1.5, 10, secret=3)(1, sent, [sent], [1])["a"])
    for other in (
        combine(2, sent, [sent], [1])["a"],
        private_mean(2.0, 1.5, 10, secret=4)(1, sent, [sent], [1])["a"],
    ):
        assert abs(np.corrcoef(new.ravel(), other.ravel())[0, 1]) < 0.05


def test_noise_does_not_depend_on_the_order_of_the_arrays():
    sent = arrays(0)
    turned = {name: sent[name] for name in reversed(sent)}
    one, other = (
        private_mean(1.0, 1.0, 2, secret=3)(1, some, [some], [1]) for some in (sent, turned)
    )
    assert all(np.array_equal(one[name], other[name]) for name in sent)


def test_noise_without_a_clip_is_refused_with_both_names():
    with pytest.raises(ValueError, match="noise_multiplier=1 needs a clip above 0"):
        private_mean(0.0, 1.0, 4)


def test_it_is_the_rule_of_a_flower_run_in_which_a_client_fails():
    client, server, kept = ClientApp(), ServerApp(), []

    @client.train()
    def answer(message, context):
        i = int(context.node_config["partition-id"])
        if i == 2:
            raise RuntimeError("out of battery")
        values = {"w": torch.full((3,), 10.0 * (i + 1))}
        metrics = MetricRecord({"num-examples": 1 + i, "partition-id": i})
        return Message(
            RecordDict({"arrays": ArrayRecord(values), "metrics": metrics}), reply_to=message
        )

    @server.main()
    def main(grid, context):
        kept.append(
            CheckedFedAvg(min_available_nodes=3, combine=private_mean(math.sqrt(3.0), 0.0, 3))
        )
        kept[0].start(grid, ArrayRecord({"w": torch.zeros(3)}), num_rounds=1)

    run_app(server, client, 3)
    # Two updates of norm 1 in every number after clipping, over the three that were asked.
    assert np.allclose(kept[0].latest["w"].numpy(), 2 / 3, atol=1e-6)
    assert [refusal.client for refusal in kept[0].refused] == ["client 2"]


# -- sample level -----------------------------------------------------------------------------------------------------


def batch_of(encoded, number, seed=0):
    draws = torch.Generator().manual_seed(seed)
    noisy, target = (torch.randn(number, 4, 8, 8, generator=draws) for _ in range(2))
    return noisy, torch.randint(1000, (number,), generator=draws), encoded.text[:number], target


def test_every_picture_gets_the_gradient_it_would_have_alone(adapter, encoded):
    parameters = {name: p for name, p in adapter.named_parameters() if p.requires_grad}
    noisy, timesteps, text, target = batch_of(encoded, AT_ONCE + 2)
    view = {name: p.detach() for name, p in parameters.items()}
    losses, gradients = picture_gradients(adapter, view, noisy, timesteps, text, target)
    for i in range(AT_ONCE + 2):
        one = slice(i, i + 1)
        guess = adapter(noisy[one], timesteps[one], encoder_hidden_states=text[one]).sample
        loss = torch.nn.functional.mse_loss(guess, target[one])
        assert losses[i] == pytest.approx(loss.item(), rel=1e-5)
        for name, alone in zip(
            parameters, torch.autograd.grad(loss, parameters.values()), strict=True
        ):
            assert torch.allclose(gradients[name][i], alone, rtol=1e-4, atol=1e-6), name


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_opacus_finds_the_same_gradients(adapter, encoded):
    from opacus import GradSampleModule

    noisy, timesteps, text, target = batch_of(encoded, 3)
    parameters = {name: p for name, p in adapter.named_parameters() if p.requires_grad}
    view = {name: p.detach() for name, p in parameters.items()}
    _, ours = picture_gradients(adapter, view, noisy, timesteps, text, target)
    theirs = GradSampleModule(adapter.train(), loss_reduction="sum")
    try:
        guess = theirs(noisy, timesteps, encoder_hidden_states=text).sample
        (guess - target).square().mean(dim=(1, 2, 3)).sum().backward()
        for name, parameter in parameters.items():
            assert torch.allclose(parameter.grad_sample, ours[name], rtol=1e-4, atol=1e-6), name
    finally:
        theirs.to_standard_module().eval()


class WatchedSGD(torch.optim.Optimizer):
    """Stands in for AdamW: notes the gradient that it is given and changes nothing."""

    seen = []

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    def step(self):
        WatchedSGD.seen.append(
            [p.grad.clone() for group in self.param_groups for p in group["params"]]
        )


def gradients_of(monkeypatch, adapter, encoded, steps=1, batch_size=6, **privacy):
    monkeypatch.setattr(torch.optim, "AdamW", WatchedSGD)
    WatchedSGD.seen = []
    schedule = DDPMScheduler()
    losses = train_privately(adapter, schedule, encoded, steps, batch_size, 1e-3, 7, **privacy)
    return [torch.cat([g.flatten() for g in one]) for one in WatchedSGD.seen], losses


def test_one_picture_moves_the_step_by_at_most_the_clip_over_the_batch(
    monkeypatch, adapter, encoded
):
    (step,), _ = gradients_of(monkeypatch, adapter, encoded, clip=1e-6, noise_multiplier=0.0)
    assert 0 < step.norm() <= 1e-6 * (1 + 1e-4)  # the mean of six vectors of that length
    one = Encoded(encoded.latents[:1], encoded.text[:1])
    (step,), _ = gradients_of(
        monkeypatch, adapter, one, batch_size=4, clip=1e-6, noise_multiplier=0.0
    )
    assert step.norm() == pytest.approx(1e-6, rel=1e-4)


def test_with_room_and_without_noise_the_step_is_the_plain_mean_gradient(
    monkeypatch, adapter, encoded
):
    (free,), losses = gradients_of(monkeypatch, adapter, encoded, clip=1e6, noise_multiplier=0.0)
    draws = torch.Generator().manual_seed(7)
    torch.rand(6, generator=draws)  # the coins: all six are drawn
    noise = torch.randn(6, 4, 8, 8, generator=draws)
    timesteps = torch.randint(1000, (6,), generator=draws)
    noisy = DDPMScheduler().add_noise(encoded.latents, noise, timesteps)
    loss = torch.nn.functional.mse_loss(
        adapter(noisy, timesteps, encoder_hidden_states=encoded.text).sample, noise
    )
    plain = torch.autograd.grad(loss, [p for p in adapter.parameters() if p.requires_grad])
    assert torch.allclose(free, torch.cat([g.flatten() for g in plain]), rtol=1e-3, atol=1e-6)
    assert losses == [pytest.approx(loss.item(), rel=1e-5)]


def test_the_noise_of_a_step_is_the_clip_times_the_multiplier_over_the_expected_batch(
    monkeypatch, adapter, encoded
):
    steps, _ = gradients_of(
        monkeypatch, adapter, encoded, steps=4, batch_size=3, clip=1e-3, noise_multiplier=100.0
    )
    assert torch.cat(steps).std() == pytest.approx(1e-3 * 100 / 3, rel=0.05)


def test_private_training_repeats_by_seed_learns_something_and_reports(adapter, encoded):
    before, schedule, told = trainable_state(adapter), DDPMScheduler(), []
    runs = []
    for _ in range(2):
        with torch.no_grad():
            for name, parameter in adapter.named_parameters():
                if name in before:
                    parameter.copy_(before[name])
        losses = train_privately(
            adapter,
            schedule,
            encoded,
            3,
            4,
            1e-2,
            11,
            lambda *step: told.append(step),
            clip=0.1,
            noise_multiplier=0.5,
        )
        runs.append((losses, trainable_state(adapter)))
    assert runs[0][0] == runs[1][0] and all(
        torch.equal(runs[0][1][n], runs[1][1][n]) for n in before
    )
    assert any(not torch.equal(runs[0][1][n], before[n]) for n in before)
    assert [(step, steps) for step, steps, _ in told[:3]] == [(1, 3), (2, 3), (3, 3)]
    assert all(p.grad is None for p in adapter.parameters())


def test_a_step_on_which_nobody_is_drawn_is_noise_alone(monkeypatch, adapter, encoded):
    steps, losses = gradients_of(
        monkeypatch, adapter, encoded, steps=6, batch_size=1, clip=1e-6, noise_multiplier=1.0
    )
    assert len(steps) == 6 and len(losses) < 6 and all(step.norm() > 0 for step in steps)


def test_a_clip_of_zero_is_refused(adapter, encoded):
    with pytest.raises(ValueError, match="clip must be above 0"):
        train_privately(
            adapter, DDPMScheduler(), encoded, 1, 1, 1e-3, 0, clip=0.0, noise_multiplier=1.0
        )
