"""Stacked clients: one pass for many clients is the same as many passes."""

import pytest
import torch
from torch import nn

from fedgen_lab.split.local import adversarial_loss, gan_step, new_adam
from fedgen_lab.split.nets import SIZES, Size, new_discriminator, new_generator, run_blocks
from fedgen_lab.split.stacked import load, stack, unstack

CLIENTS, BATCH = 3, 5
SMALL = Size("small", 28, 1, (12, 8, 6, 4), (4, 6, 8, 10))
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def clients_of(size, dtype=torch.float64, number=CLIENTS):
    """Generators and discriminators of so many clients, all different."""
    generators = [new_generator(size, 10 + i).to(dtype) for i in range(number)]
    return generators, [new_discriminator(size, 50 + i).to(dtype) for i in range(number)]


def batch_of(size, dtype=torch.float64, seed=0, number=CLIENTS):
    draw = torch.Generator().manual_seed(seed)
    z = torch.randn(number, BATCH, size.z_dim, generator=draw, dtype=dtype)
    pictures = torch.rand(number, BATCH, *size.picture, generator=draw, dtype=dtype) * 2 - 1
    return z, pictures, torch.randint(size.num_labels, (number, BATCH), generator=draw)


def assert_same_state(stacked, blocks, tolerance):
    for state, block in zip(unstack(stacked), blocks, strict=True):
        assert list(state) == list(block.state_dict())
        for name, tensor in block.state_dict().items():
            torch.testing.assert_close(state[name], tensor, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "size", [SMALL, SIZES["lab14"], SIZES["colour"]], ids=["small", "lab14", "colour"]
)
def test_training_steps_of_stacked_clients_equal_the_steps_of_each(size):
    generators, discriminators = clients_of(size)
    generator, discriminator = stack(generators), stack(discriminators)
    plain = [
        (g, d, new_adam([g], 1e-3), new_adam([d], 1e-3))
        for g, d in zip(generators, discriminators, strict=True)
    ]
    g_adam, d_adam = new_adam([generator], 1e-3), new_adam([discriminator], 1e-3)
    for step in range(2):
        z, pictures, labels = batch_of(size, seed=step)
        losses = [gan_step(*nets, pictures[i], labels[i], z[i]) for i, nets in enumerate(plain)]
        together = gan_step(generator, discriminator, g_adam, d_adam, pictures, labels, z)
        assert together == pytest.approx(torch.tensor(losses).sum(0).tolist(), rel=1e-6)
    assert_same_state(generator, generators, 1e-9)
    assert_same_state(discriminator, discriminators, 1e-9)


def test_a_training_step_in_float32_leads_to_the_same_pictures():
    # Not weight by weight: a bias in front of BatchNorm has no gradient but rounding error, of which Adam makes a whole
    # step. BatchNorm takes that bias away again.
    size = SIZES["lab14"]
    generators, discriminators = clients_of(size, torch.float32)
    generator, discriminator = stack(generators), stack(discriminators)
    z, pictures, labels = batch_of(size, torch.float32)
    gan_step(
        generator,
        discriminator,
        new_adam([generator], 2e-4),
        new_adam([discriminator], 2e-4),
        pictures,
        labels,
        z,
    )
    for i, (g, d) in enumerate(zip(generators, discriminators, strict=True)):
        gan_step(g, d, new_adam([g], 2e-4), new_adam([d], 2e-4), pictures[i], labels[i], z[i])
    fakes = run_blocks(generator, z, labels)
    for i, g in enumerate(generators):
        alone = run_blocks(g, z[i], labels[i])
        assert (fakes[i] - alone).square().mean().sqrt() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    "size", [SMALL, SIZES["lab14"], SIZES["reference"]], ids=["small", "lab14", "reference"]
)
def test_outputs_and_gradients_of_stacked_clients_are_those_of_each(size, dtype):
    generators, discriminators = clients_of(size, dtype)
    generator, discriminator = stack(generators), stack(discriminators)
    z, _, labels = batch_of(size, dtype)
    z.requires_grad_()

    def gradients(g, d, z, labels):
        fakes = run_blocks(g, z, labels)
        logits = run_blocks(d, fakes, labels)
        parameters = [*g.parameters(), *d.parameters()]
        return [
            fakes,
            logits,
            *torch.autograd.grad(adversarial_loss(logits, real=True), [z, *parameters]),
        ]

    together = gradients(generator, discriminator, z, labels)
    for i in range(CLIENTS):
        zi = z[i].detach().requires_grad_()
        alone = gradients(generators[i], discriminators[i], zi, labels[i])
        # in float32 rounding turns a unit on or off now and then, and then gradients differ by more than rounding
        compared = len(together) if dtype == torch.float64 else 2
        for a, b in list(zip(together, alone, strict=True))[:compared]:
            torch.testing.assert_close(a[i], b, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert_same_state(generator, generators, TOLERANCE[dtype])  # the running statistics too


@pytest.mark.parametrize(
    "size", [SIZES["lab14"], SIZES["reference"]], ids=["little work", "large work"]
)
def test_a_chain_of_layers_takes_one_tensor_of_all_clients_or_a_list(size):
    generators, _ = clients_of(size)
    chain = stack([generator[1] for generator in generators])
    x = torch.rand(CLIENTS, BATCH, size.generator[0], 7, 7, dtype=torch.float64)
    together = chain(x)
    torch.testing.assert_close(
        torch.stack(list(chain.one_by_one(list(x)))), together, rtol=0, atol=0
    )
    for i, generator in enumerate(generators):
        torch.testing.assert_close(together[i], generator[1](x[i]), rtol=1e-10, atol=1e-10)


def test_one_client_never_feels_what_another_one_does():
    _, discriminators = clients_of(SMALL)
    discriminator = stack(discriminators)
    _, pictures, labels = batch_of(SMALL)
    before = run_blocks(discriminator, pictures, labels)
    pictures[1] = float("nan")
    after = run_blocks(discriminator, pictures, labels)
    assert after[1].isnan().all()
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]], rtol=0, atol=0)


def test_in_evaluation_mode_each_client_uses_its_own_running_statistics():
    generators, _ = clients_of(SMALL)
    z, _, labels = batch_of(SMALL)
    for i, generator in enumerate(generators):
        run_blocks(generator, z[i] * (i + 1), labels[i])
        generator.eval()
    generator = stack(generators)
    assert not generator.training
    for i, fakes in enumerate(run_blocks(generator, z, labels)):
        torch.testing.assert_close(
            fakes, run_blocks(generators[i], z[i], labels[i]), rtol=1e-10, atol=1e-10
        )
    assert_same_state(generator, generators, 0)


def test_running_statistics_rest_while_they_are_not_tracked():
    _, discriminators = clients_of(SMALL)
    discriminator = stack(discriminators)
    _, pictures, labels = batch_of(SMALL)
    tracked = run_blocks(discriminator, pictures, labels)
    state = {name: tensor.clone() for name, tensor in discriminator.state_dict().items()}
    for part in discriminator.modules():
        if hasattr(part, "track_running_stats"):
            part.track_running_stats = False
    torch.testing.assert_close(run_blocks(discriminator, pictures, labels), tracked, rtol=0, atol=0)
    assert all(
        torch.equal(tensor, state[name]) for name, tensor in discriminator.state_dict().items()
    )


def test_unstacked_weights_fit_into_plain_blocks_and_back():
    generators, _ = clients_of(SMALL)
    generator = stack(generators)
    strangers = [new_generator(SMALL, 90 + i).double() for i in range(CLIENTS)]
    for stranger, state in zip(strangers, unstack(generator), strict=True):
        stranger.load_state_dict(state)
    assert_same_state(generator, strangers, 0)
    weight = generator[0].body[0].weight
    load(generator, [generators[i].state_dict() for i in (2, 0, 1)])
    assert generator[0].body[0].weight is weight  # an optimiser that holds it goes on
    torch.testing.assert_close(weight[0], generators[2][0].body[0].weight, rtol=0, atol=0)


def test_a_stack_is_a_copy():
    generators, _ = clients_of(SMALL, number=1)
    before = generators[0][1][0].weight.clone()
    with torch.no_grad():
        stack(generators)[1][0].weight.zero_()
    torch.testing.assert_close(generators[0][1][0].weight, before, rtol=0, atol=0)


def test_what_cannot_be_stacked_is_named():
    with pytest.raises(ValueError, match="no block to stack"):
        stack([])
    with pytest.raises(
        ValueError, match=r"Block 1 .*'embedding.weight' is \(10, 784\) of float32 and \(10, 196\)"
    ):
        stack([new_discriminator(SIZES["lab14"], 0)[0], new_discriminator(SMALL, 0)[0]])
    with pytest.raises(ValueError, match="type GELU has no stacked form"):
        stack([nn.Sequential(nn.GELU())])
    generator = stack([new_generator(SMALL, 0)])
    with pytest.raises(ValueError, match="holds 1 clients, but 2 state dicts"):
        load(generator, [{}, {}])
    with pytest.raises(ValueError, match="State dict 0 has no tensor"):
        load(generator, [{"a": torch.ones(1)}])
