"""What the server reads off smashed data: labels and pictures, at every cut, and with defences."""

from functools import partial
from pathlib import Path

import pytest
import torch

from fedgen_lab.federation.run import run_app
from fedgen_lab.pictures.domains import load_domain
from fedgen_lab.privacy.smashed import attack, infer_labels, reconstruct, smash
from fedgen_lab.split.batch import draw_batch, start_nets
from fedgen_lab.split.deal import deal
from fedgen_lab.split.nets import SIZES, new_discriminator, new_generator
from fedgen_lab.split.scenario import GanScenario
from fedgen_lab.split.u_client import u_client_app
from fedgen_lab.split.u_server import u_server_app
from fedgen_lab.split.wire import read

SIZE = SIZES["lab14"]
MNIST = Path(__file__).resolve().parents[3] / "shared" / "data" / "mnist"


@pytest.fixture(scope="module")
def secret():
    return load_domain("digits", number=64, side=14)


@pytest.fixture(scope="module")
def auxiliary():
    return load_domain("runes", number=400, side=14).as_tensor()


def go_on(step):
    """Nobody stops the training of a reader."""


def _attack(secret, auxiliary, **more):
    nets = new_generator(SIZE, 0), new_discriminator(SIZE, 1)
    return attack(*nets, secret.as_tensor(), secret.labels, auxiliary, **{"steps": 40, **more})


@pytest.fixture(scope="module")
def plain(secret, auxiliary):
    return {depth: _attack(secret, auxiliary, depth=depth) for depth in (1, 2)}


@pytest.mark.parametrize("depth", [1, 2], ids=["block 1 on the server", "block 1 on the client"])
def test_every_label_is_read_off_both_nets_though_none_was_sent(plain, depth):
    assert plain[depth].label_accuracy["generator"] > 0.9
    assert plain[depth].label_accuracy["discriminator"] > 0.9
    assert (plain[depth].guessed == plain[depth].labels).float().mean() == plain[
        depth
    ].label_accuracy["discriminator"]


def test_real_digits_are_rebuilt_by_a_reader_that_saw_only_runes(plain):
    assert plain[1].mse < 0.4 * plain[1].baseline_mse
    assert plain[2].mse < 0.7 * plain[2].baseline_mse
    assert plain[1].rebuilt.shape == plain[1].pictures.shape == (64, 1, 14, 14)
    assert plain[1].rebuilt.abs().max() <= 1


def test_a_deeper_cut_blurs_the_pictures(plain):
    assert plain[1].mse < plain[2].mse


def test_eight_bits_hide_nothing(plain, secret, auxiliary):
    leak = _attack(secret, auxiliary, bits=8)
    assert leak.label_accuracy["discriminator"] > 0.9
    assert leak.mse < 1.1 * plain[1].mse


def test_noise_hides_pictures_before_it_hides_labels(plain, secret, auxiliary):
    leak = _attack(secret, auxiliary, noise=2.0)
    assert leak.mse > 1.5 * plain[1].mse
    assert leak.label_accuracy["discriminator"] > 0.9


def test_the_same_seed_attacks_alike_and_leaves_the_nets_alone(secret, auxiliary):
    nets = new_generator(SIZE, 0), new_discriminator(SIZE, 1)
    before = [tensor.clone() for net in nets for tensor in net.state_dict().values()]
    few = secret.take(range(32))
    random_state = torch.get_rng_state()
    leaks = [
        attack(*nets, few.as_tensor(), few.labels, auxiliary, noise=0.5, steps=3, seed=4)
        for _ in range(2)
    ]
    assert torch.equal(leaks[0].rebuilt, leaks[1].rebuilt) and torch.equal(
        leaks[0].guessed, leaks[1].guessed
    )
    after = [tensor for net in nets for tensor in net.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(random_state, torch.get_rng_state())


def test_the_guesses_do_not_depend_on_the_secrets_but_through_what_was_sent(secret, auxiliary):
    head = new_discriminator(SIZE, 1)[:1].train()
    draws = torch.Generator().manual_seed(0)
    sent = smash(head, secret.as_tensor()[:32], secret.labels[:32], draws)
    assert sent.shape == (32, 16, 14, 14) and not sent.requires_grad

    def shadows():
        x, y = auxiliary[:64], torch.arange(64) % 10
        return smash(head, x, y, draws), y

    zeros = torch.zeros_like(sent)
    assert len(set(infer_labels(zeros, shadows, 10, 2, 0, go_on).tolist())) == 1

    def pictures():
        return shadows()[0], auxiliary[:64]

    rebuilt = reconstruct(zeros, pictures, SIZE.picture, 2, 0, go_on)
    assert torch.equal(rebuilt[0], rebuilt[1])


def test_smashed_data_are_normalised_batch_by_batch_as_the_client_does_it(secret):
    head = new_discriminator(SIZE, 1)[:1].train()
    x, y = secret.as_tensor()[:32], secret.labels[:32]
    draws = torch.Generator()
    both = smash(head, x, y, draws, batch_size=16)
    assert torch.equal(both[16:], smash(head, x[16:], y[16:], draws, batch_size=16))
    assert not torch.allclose(both, smash(head, x, y, draws, batch_size=32), atol=1e-3)


def test_an_attack_that_is_stopped_uses_what_it_has_learned(secret, auxiliary):
    heard = []
    leak = _attack(secret, auxiliary, on_step=lambda sentence: heard.append(sentence) or False)
    assert len(heard) == 3 and heard[0].startswith("Labels, generator's side, step 1 of 40")
    assert leak.rebuilt.shape == leak.pictures.shape


def test_a_last_batch_of_one_picture_is_left_out(secret, auxiliary):
    leak = _attack(secret.take(range(33)), auxiliary, steps=1)
    assert len(leak.pictures) == len(leak.labels) == 32


def test_pictures_that_do_not_fit_each_other_and_unknown_depths_are_refused(secret, auxiliary):
    with pytest.raises(ValueError, match="same shape"):
        _attack(secret, torch.zeros(10, 1, 28, 28))
    with pytest.raises(ValueError, match="depth must be 1 to 4"):
        _attack(secret, auxiliary, depth=0)


def test_the_attacks_also_work_on_mnist():
    if not MNIST.is_dir():
        pytest.skip("../shared/data/mnist is not there: the attack on MNIST needs it")
    mnist = load_domain(f"mnist:{MNIST}", number=64, side=14, held_out=True)
    leak = _attack(mnist, load_domain("runes", number=400, side=14).as_tensor())
    assert min(leak.label_accuracy.values()) > 0.9
    assert leak.mse < 0.4 * leak.baseline_mse


def test_labels_are_read_off_the_messages_of_a_real_run(auxiliary):
    scenario = GanScenario(
        num_clients=2, domains="digits", rounds=1, iterations=1, cuts="1010", pictures_per_client=40
    )
    dealt, sent = deal(scenario), {}
    app = u_client_app(dealt, keep=True)

    def wire_tap(message, context):
        reply = app(message, context)
        for name, array in reply.content.get("tensors", {}).items():
            sent[name, int(context.node_config["partition-id"])] = read(array)
        return reply

    run_app(u_server_app(), wire_tap, 2, scenario.to_run_config())
    generator, discriminator = start_nets(scenario)  # the server dealt them out itself
    draws = torch.Generator().manual_seed(0)

    def shadows(net):
        labels = torch.randint(10, (64,), generator=draws)
        made = (
            torch.randn(64, 100, generator=draws)
            if net is generator
            else auxiliary[torch.randperm(400, generator=draws)[:64]]
        )
        return smash(net[:2].train(), made, labels, draws), labels

    for name, net in (("g_head", generator), ("d_head_real", discriminator)):
        received = torch.cat([sent[name, 0], sent[name, 1]])
        guessed = infer_labels(received, partial(shadows, net), 10, 40, 0, go_on)
        truth = torch.cat(
            [draw_batch(scenario, dealt.pictures[i], dealt.labels[i], i, 1, 0)[1] for i in (0, 1)]
        )
        assert (guessed == truth).float().mean() > 0.9
