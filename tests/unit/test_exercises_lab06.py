"""The exercises of lab 06: the solution passes, each typical mistake hears its own message, the stub is not tried."""

import pytest
import torch
from exercise_claims import claims_on

from fedgen_lab.exercises import check
from fedgen_lab.exercises.checks import find
from fedgen_lab.exercises.lab06 import EXERCISES


def backward(of, received, body):
    received = received.detach().requires_grad_()
    of(body(received)).backward()
    return received.grad


def without_weights(body, received, gradient):
    received = received.detach().requires_grad_()
    return torch.autograd.grad(body(received), received, gradient)[0]


def twice(body, received, gradient):
    backward(lambda out: (out * gradient).sum(), received, body)
    return backward(lambda out: (out * gradient).sum(), received, body)


def gradient_of_a_weight(body, received, gradient):
    body(received).backward(gradient)
    return body[0].weight.grad


def parts(cut, generator, discriminator):
    g1, g3, d1, d3 = (int(bit) for bit in cut)
    return generator[g1], generator[3 - g3], discriminator[d1], discriminator[3 - d3]


def sums(cut, generator, discriminator, g_times=1, d_times=3):
    a, b, c, d = parts(cut, generator, discriminator)
    return g_times * (a + b) + d_times * (c + d)


def flipped(cut, places):
    return "".join(str(1 - int(bit)) if place in places else bit for place, bit in enumerate(cut))


def means(mine, labels):
    return torch.stack([mine.flatten(1)[labels == label].mean(0) for label in range(10)])


def distances(mine, labels, theirs):
    return torch.cdist(theirs.flatten(1), means(mine, labels))


WRONG = {
    "06.1": {
        "the gradient from the device is not used": lambda body, x, g: backward(torch.sum, x, body),
        "sent down again unchanged": lambda body, x, g: g,
        "weights got no gradient": without_weights,
        "not those of one pass": twice,
        "the way forward": lambda body, x, g: body(x).detach(),
        "the gradient of a weight": gradient_of_a_weight,
        "times as long": lambda body, x, g: backward(lambda out: (out * g).mean(), x, body),
        "of the shape of what came up": lambda body, x, g: backward(
            lambda out: (out * g).sum(), x, body
        ).sum(0),
        "not the gradient of the loss at what came up": lambda body, x, g: torch.zeros_like(x) + 1,
    },
    "06.2": {
        "passed once": lambda cut, g, d: sums(cut, g, d, d_times=1),
        "passed twice": lambda cut, g, d: sums(cut, g, d, d_times=2),
        "three passes of the generator": lambda cut, g, d: sums(cut, g, d, g_times=3),
        "up and down together": lambda cut, g, d: 2 * sums(cut, g, d),
        "Only activations": lambda cut, g, d: parts(cut, g, d)[0] + 3 * parts(cut, g, d)[2],
        "Only gradients": lambda cut, g, d: parts(cut, g, d)[1] + 3 * parts(cut, g, d)[3],
        "Every bit is read": lambda cut, g, d: sums(flipped(cut, (0, 1, 2, 3)), g, d),
        "at the tails the bit": lambda cut, g, d: sums(flipped(cut, (1, 3)), g, d),
        "at the heads the bit": lambda cut, g, d: sums(flipped(cut, (0, 2)), g, d),
        "have changed places": lambda cut, g, d: sums(cut, d, g),
        "the same for all cuts": lambda cut, g, d: sum(g) + sum(d),
        "must be one number": lambda cut, g, d: list(g),
        "For the cut 0000": lambda cut, g, d: sums(cut, g, d) + 1,
    },
    "06.3": {
        "not yet a guess": distances,
        "activations came from the device": lambda mine, y, theirs: distances(mine, y, mine).argmin(
            1
        ),
        "must have the shape": lambda mine, y, theirs: distances(mine, y, theirs).argmin(
            1, keepdim=True
        ),
        "The nearest single example": lambda mine, y, theirs: y[
            torch.cdist(theirs.flatten(1), mine.flatten(1)).argmin(1)
        ],
        "farthest away": lambda mine, y, theirs: distances(mine, y, theirs).argmax(1),
        "the same guess": lambda mine, y, theirs: torch.zeros(len(theirs), dtype=torch.long),
        "guessing blindly": lambda mine, y, theirs: y[: len(theirs)],
        "one tensor of labels": lambda mine, y, theirs: "labels",
    },
}


TestExercises = claims_on(EXERCISES, WRONG)


@pytest.mark.parametrize("number", range(3))
def test_another_way_to_read_labels_counts_too(number):
    """A linear reader, fitted by least squares, is no mean of anything and passes as well."""

    def guess_labels(mine, labels, theirs):
        wanted = torch.nn.functional.one_hot(labels, 10).float() - 0.1
        mine, theirs, ridge = mine.flatten(1), theirs.flatten(1), 10.0 ** (number + 1)
        weights = torch.linalg.solve(mine @ mine.T + ridge * torch.eye(len(mine)), wanted)
        return (theirs @ mine.T @ weights).argmax(1)

    assert check("06.3", guess_labels).passed


def test_the_bytes_of_the_solution_are_those_that_cross_the_wire():
    from fedgen_lab.split.hops import iteration
    from fedgen_lab.split.local import new_adam
    from fedgen_lab.split.nets import SIZES, new_discriminator, new_generator, run_blocks

    size, labels = SIZES["lab14"], torch.arange(4)
    z, pictures = torch.randn(4, size.z_dim), torch.zeros(4, *size.picture)
    g, d = new_generator(size, 0), new_discriminator(size, 1)
    outputs = [
        [4 * run_blocks(net[:n], x, labels).numel() for n in range(1, 6)]
        for net, x in ((g, z), (d, pictures))
    ]
    up_bytes = find("06.2").run_solution()
    for cut in ("0000", "0110", "1011"):
        hops = list(iteration(g, d, new_adam(g, 1e-3), new_adam(d, 1e-3), pictures, labels, z, cut))
        assert sum(hop.bytes for hop in hops if hop.up) == up_bytes(cut, *outputs)
