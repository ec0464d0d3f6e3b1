"""What a client does to its smashed data before it leaves."""

import numpy as np
import pytest
import torch

from fedgen_lab.split.defence import (
    distance_correlation,
    from_bytes,
    leakage_penalty,
    protect,
    to_bytes,
)


def _draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_without_a_defence_the_wire_carries_the_activation_itself():
    activation = _draw(4, 3, 5, 5).requires_grad_()
    sent = protect(activation)
    assert torch.equal(sent, activation) and not sent.requires_grad


def test_noise_is_as_large_as_asked_relative_to_the_activation():
    for scale in (0.01, 100.0):
        activation = scale * _draw(64, 8, 7, 7)
        added = protect(activation, noise=0.5, generator=_seeded()) - activation
        assert added.std() / activation.std() == pytest.approx(0.5, rel=0.02)
        assert abs(added.mean() / added.std()) < 0.02


def test_the_same_seed_sends_the_same_noise_and_another_seed_does_not():
    activation = _draw(4, 8, 3, 3, dtype=torch.float32)
    first, again, other = (protect(activation, 1.0, 8, _seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_eight_bits_are_a_quarter_of_the_bytes_and_off_by_half_a_step_at_most():
    activation = _draw(16, 8, 7, 7, dtype=torch.float32)
    codes, low, step = to_bytes(activation)
    assert codes.dtype == torch.uint8 and codes.shape == activation.shape
    assert codes.nbytes * 4 == activation.nbytes
    assert (from_bytes(codes, low, step) - activation).abs().max() <= 0.5001 * step
    assert len(protect(activation, bits=8).unique()) <= 256


def test_protect_in_eight_bits_is_what_the_receiver_reads_from_the_bytes():
    for dtype in (torch.float32, torch.float64):
        activation = _draw(4, 3, 5, 5, dtype=dtype)
        codes, low, step = to_bytes(activation)
        assert torch.equal(protect(activation, bits=8), from_bytes(codes, low, step, dtype))
        assert protect(activation, bits=8).dtype == dtype


def test_a_constant_activation_survives_eight_bits():
    assert torch.equal(protect(torch.full((2, 3), 1.5), bits=8), torch.full((2, 3), 1.5))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_what_is_not_finite_is_not_sent_in_eight_bits(bad):
    activation = torch.zeros(2, 3)
    activation[1, 1] = bad
    with pytest.raises(ValueError, match="can't be sent in 8 bits"):
        protect(activation, bits=8)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bits": 4}, "bits must be 8 or 32; got 4"),
        ({"noise": -1}, "noise must be"),
        ({"noise": 1}, "Generator"),
    ],
    ids=["bits", "negative noise", "no generator"],
)
def test_a_defence_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        protect(torch.ones(2, 2), **change)


def _by_the_book(x, a):
    """Székely's definition, pair by pair in plain numpy."""

    def centred(v):
        d = np.array([[np.sqrt(((p - q) ** 2).sum()) for q in v] for p in v])
        return d - d.mean(0) - d.mean(1)[:, None] + d.mean()

    x, a = centred(np.asarray(x)), centred(np.asarray(a))
    return np.sqrt((x * a).mean() / np.sqrt((x * x).mean() * (a * a).mean()))


def test_distance_correlation_is_szekelys_definition():
    x, a = _draw(12, 5), _draw(12, 7, seed=1)
    assert float(distance_correlation(x, a)) == pytest.approx(_by_the_book(x, a), rel=1e-12)


def test_distance_correlation_is_one_for_a_turned_and_scaled_copy_and_small_for_independent_numbers():
    x = _draw(200, 3)
    turn = torch.linalg.qr(_draw(3, 3, seed=1)).Q
    assert float(distance_correlation(x, 7 * x @ turn + 2)) == pytest.approx(1, abs=1e-9)
    assert float(distance_correlation(x, _draw(200, 3, seed=2))) < 0.25


def test_distance_correlation_sees_dependence_that_correlation_does_not():
    x = _draw(200, 1)
    assert (
        abs(np.corrcoef(x[:, 0], x[:, 0] ** 2)[0, 1])
        < 0.2
        < 0.4
        < float(distance_correlation(x, x**2))
    )


def test_distance_correlation_has_the_gradient_that_finite_differences_find():
    x, a = _draw(6, 4), _draw(6, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: distance_correlation(x, a), a)


def test_equal_rows_and_constants_leave_value_and_gradient_finite():
    x, a = _draw(6, 4, dtype=torch.float32), torch.ones(6, 3, requires_grad=True)
    value = distance_correlation(x, a)
    value.backward()
    assert value == 0 and torch.isfinite(a.grad).all()
    a = _draw(6, 3, dtype=torch.float32)
    a[1] = a[0]
    a.requires_grad_()
    distance_correlation(x, a).backward()
    assert torch.isfinite(a.grad).all()


def test_a_stack_of_clients_has_the_penalties_of_each():
    sent, pictures = _draw(3, 8, 4, 2, 2), _draw(3, 8, 1, 6, 6, seed=1)
    labels = torch.arange(24).view(3, 8) % 10
    together = leakage_penalty(sent, labels, pictures)
    alone = [leakage_penalty(*parts) for parts in zip(sent, labels, pictures, strict=True)]
    assert together.shape == (3,) and torch.allclose(together, torch.stack(alone), atol=1e-12)
    assert (together > leakage_penalty(sent, labels)).all()


def test_a_few_steps_on_the_penalty_make_a_head_tell_less():
    from fedgen_lab.split.nets import SIZES, new_discriminator

    head = new_discriminator(SIZES["lab14"], seed=0)[0]
    pictures, labels = _draw(16, 1, 14, 14, dtype=torch.float32), torch.arange(16) % 10
    adam = torch.optim.Adam(head.parameters(), lr=1e-2)
    told = []
    for _ in range(15):
        penalty = leakage_penalty(head(pictures, labels), labels, pictures)
        adam.zero_grad()
        penalty.backward()
        adam.step()
        told.append(penalty.item())
    assert told[-1] < told[0] - 0.05
