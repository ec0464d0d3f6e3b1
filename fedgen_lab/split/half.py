"""The client's half of the U: heads and tails of both nets, one method per hop. `u_client` sends them as messages.

A client holds the first and the last block of generator and discriminator, and what its cut gives it besides. Pictures,
labels, noise and losses stay with it; what it sends is activations one way and gradients the other. Lab 06; HuSCF-GAN,
arXiv 2507.12979; split learning in a U: Vepakomma et al., arXiv 1812.00564.
"""

from contextlib import contextmanager
from dataclasses import dataclass

import torch

from fedgen_lab.split.defence import leakage_penalty
from fedgen_lab.split.local import adversarial_loss, load_moments, moments_of, new_adam
from fedgen_lab.split.nets import run_blocks


@dataclass(frozen=True)
class Hop:
    """One exchange: tensors that come down, tensors that go up, in words, and the passes a client computes for it."""

    down: tuple
    up: tuple
    words: str
    work: tuple  # (direction, part of the client's half, how many times)


HOPS = {
    "start": Hop(
        (),
        ("g_head",),
        "down: the client's blocks; up: activations of the generator's head",
        (("forward", "g_head", 1),),
    ),
    "fakes": Hop(
        ("g_body",),
        ("d_head_fake", "d_head_real"),
        "down: activations of the generator's body; up: activations of the discriminator's head, on fakes and "
        "on real pictures",
        (("forward", "g_tail", 1), ("forward", "d_head", 2)),
    ),
    "judge": Hop(
        ("d_body_fake", "d_body_real"),
        ("d_body_fake", "d_body_real"),
        "down: activations of the discriminator's body; up: gradients at them",
        (("forward", "d_tail", 2), ("backward", "d_tail", 2)),
    ),
    "learn_d": Hop(
        ("d_head_fake", "d_head_real"),
        ("d_head_fool",),
        "down: gradients at the discriminator's head; up: the new head's activations on the same fakes",
        (("backward", "d_head", 2), ("forward", "d_head", 1)),
    ),
    "fool": Hop(
        ("d_body_fool",),
        ("d_body_fool",),
        "down: activations of the new discriminator's body; up: gradients at them",
        (("forward", "d_tail", 1), ("backward", "d_tail", 1)),
    ),
    "back_to_g": Hop(
        ("d_head_fool",),
        ("g_body",),
        "down: gradients at the discriminator's head; up: gradients at the generator's body",
        (("backward", "d_head", 1), ("backward", "g_tail", 1)),
    ),
    "learn_g": Hop(
        ("g_head",),
        ("g_head",),
        "down: gradients at the generator's head; up: the new head's activations for the next iteration, or "
        "after a round's last one the client's blocks",
        (("backward", "g_head", 1), ("forward", "g_head", 1)),
    ),
    "finish": Hop((), (), "down: the client's averaged blocks; up: nothing", ()),
}


def segments(cut):
    """Which blocks each part of the client's half is made of, for a cut (g1, g3, d1, d3): {"g_head": ["g.0", ...]}."""
    g1, g3, d1, d3 = cut
    return {
        "g_head": ["g.0", "g.1"][: 1 + g1],
        "g_tail": ["g.3", "g.4"][1 - g3 :],
        "d_head": ["d.0", "d.1"][: 1 + d1],
        "d_tail": ["d.3", "d.4"][1 - d3 :],
    }


class Half:
    """The client's blocks and their optimisers: one method per hop of `HOPS`, in the order of an iteration.

    Tensors are (B, ...), or (N, B, ...) for N clients with the same cut in one: every client's loss is a mean over its
    own B, and the losses are added, so nobody's gradients depend on the others. `batch` is (z, labels, pictures).
    A graph that a later hop goes back through is kept, or else computed again without touching BatchNorm's statistics.
    """

    def __init__(self, blocks, cut, learning_rate, decorrelation=0.0):
        self.blocks, self.cut, self.learning_rate, self.decorrelation = (
            blocks,
            cut,
            learning_rate,
            decorrelation,
        )
        self.parts = {
            part: [blocks[name] for name in names] for part, names in segments(cut).items()
        }
        self.adams, self.asleep = (
            {},
            {},
        )  # net -> its optimiser, once it has learned; net -> moments to begin with
        self.batch, self.kept = None, {}

    def moments(self):
        """What the optimisers of those nets that have learned remember: {net: {"name:key": tensor}}."""
        return {net: moments_of(adam, self._parameters(net)) for net, adam in self.adams.items()}

    def start(self):
        """G's head on noise and labels."""
        return (self._first("g_head"),)

    def fakes(self, g_body):
        """G's tail makes the fakes; D's head looks at them and at the real pictures."""
        self.kept["g_body"] = g_body.requires_grad_()
        self._first("fakes")
        return self._first("d_head_fake"), self._first("d_head_real")

    def judge(self, fake, real):
        """D's tail and its loss; the tail learns at once."""
        fake.requires_grad_(), real.requires_grad_()
        loss = adversarial_loss(run_blocks(self.parts["d_tail"], fake), real=False)
        loss = loss + adversarial_loss(run_blocks(self.parts["d_tail"], real), real=True)
        self._learn("d", [loss], [None])
        return fake.grad, real.grad

    def learn_d(self, fake_gradient, real_gradient):
        """D's head learns, then looks at the same fakes again."""
        outputs, gradients = (
            [self._again("d_head_fake"), self._again("d_head_real")],
            [fake_gradient, real_gradient],
        )
        if self.decorrelation:
            _, labels, pictures = self.batch
            penalty = leakage_penalty(outputs[0], labels, self._again("fakes").detach())
            penalty = penalty + leakage_penalty(outputs[1], labels, pictures)
            outputs.append(self.decorrelation * penalty.sum())
            gradients.append(None)
        self._learn("d", outputs, gradients)
        del self.kept["d_head_fake"], self.kept["d_head_real"]
        return (self._first("d_head_fool"),)

    def fool(self, fooling):
        """G's loss, at D's tail; D learns nothing from it."""
        loss = adversarial_loss(
            run_blocks(self.parts["d_tail"], fooling.requires_grad_()), real=True
        )
        return torch.autograd.grad(loss, fooling)

    def back_to_g(self, gradient):
        """Back through D's head and the fakes; G's tail learns."""
        fooling, g_body = self._again("d_head_fool"), self.kept["g_body"]
        ours = [p for block in self.parts["g_tail"] for p in block.parameters()]
        self._learn(
            "g", [fooling], [gradient], inputs=[g_body, *ours]
        )  # no gradients for D's weights
        for name in ("d_head_fool", "fakes", "g_body"):
            del self.kept[name]
        return (g_body.grad,)

    def learn_g(self, gradient):
        """G's head learns."""
        outputs, gradients = [self._again("g_head")], [gradient]
        if self.decorrelation:
            outputs.append(self.decorrelation * leakage_penalty(outputs[0], self.batch[1]).sum())
            gradients.append(None)
        self._learn("g", outputs, gradients)
        del self.kept["g_head"]

    def _learn(self, net, outputs, gradients, inputs=None):
        if (
            net not in self.adams
        ):  # torch takes two seconds to get its first optimiser ready; most hops do without
            self.adams[net] = new_adam(
                [b for name, b in self.blocks.items() if name[0] == net], self.learning_rate
            )
            load_moments(self.adams[net], self._parameters(net), self.asleep.get(net, {}))
        torch.autograd.backward(outputs, gradients, inputs=inputs)
        self.adams[net].step()
        self.adams[net].zero_grad()

    def _parameters(self, net):
        blocks = [(name, block) for name, block in self.blocks.items() if name[0] == net]
        return [
            (f"{name}.{key}", p) for name, block in blocks for key, p in block.named_parameters()
        ]

    def _first(self, name):
        self.kept[name] = self._forward(name)
        return self.kept[name]

    def _again(self, name):
        if name not in self.kept:
            with _statistics_frozen(self.blocks):
                self._first(name)
        return self.kept[name]

    def _forward(self, name):
        z, labels, pictures = self.batch
        if name == "g_head":
            return run_blocks(self.parts["g_head"], z, labels)
        if name == "fakes":
            return run_blocks(self.parts["g_tail"], self.kept["g_body"])
        if name == "d_head_real":
            return run_blocks(self.parts["d_head"], pictures, labels)
        fakes = self._again("fakes")
        return run_blocks(
            self.parts["d_head"], fakes.detach() if name == "d_head_fake" else fakes, labels
        )


@contextmanager
def _statistics_frozen(blocks):
    """Forward passes in here leave the running statistics of BatchNorm alone."""
    parts = [part for block in blocks.values() for part in block.modules()]
    norms = [part for part in parts if getattr(part, "track_running_stats", False)]
    for part in norms:
        part.track_running_stats = False
    try:
        yield
    finally:
        for part in norms:  # not those that a caller froze before
            part.track_running_stats = True
