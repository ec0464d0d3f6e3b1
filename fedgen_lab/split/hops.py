"""One iteration of a cut GAN, hop by hop, in plain torch: what crosses the wire, in which order, and how many bytes.

Lab 06. This is the U of HuSCF-GAN (arXiv 2507.12979) for one device and one server, without Flower, so that every
tensor can be looked at. `fedgen_lab.split.run` does the same with messages between real nodes.
"""

from dataclasses import dataclass

import torch
from torch import nn

from fedgen_lab.split.local import adversarial_loss
from fedgen_lab.split.nets import run_blocks


@dataclass(frozen=True)
class Hop:
    """One tensor that crosses the wire.

    net: "generator" or "discriminator". kind: "activation" or "gradient". at: the cut it crosses, "head" or "tail".
    up: from the device to the server. tensor: (B, C, h, w). shown: the pictures (B, C, H, W) the discriminator is
    looking at meanwhile, or None; they stay on the device. why: what happens, in one or two sentences.
    """

    net: str
    kind: str
    at: str
    up: bool
    tensor: torch.Tensor
    shown: torch.Tensor | None
    why: str

    @property
    def bytes(self):
        """The bytes of the numbers alone; a message adds a few hundred for their names and shapes."""
        return self.tensor.numel() * self.tensor.element_size()


def segments(blocks, first, third):
    """Five blocks as head, body and tail (three `nn.ModuleList`s that share their weights).

    first, third: 1 if the device holds block 1, block 3. Raises ValueError for anything but 0 and 1.
    """
    if first not in (0, 1) or third not in (0, 1):
        raise ValueError(f"a cut is made of zeros and ones; got {first!r} and {third!r}.")
    head, tail = (
        1 + first,
        4 - third,
    )  # the body begins at block `head` and ends before block `tail`
    return (
        nn.ModuleList(blocks[:head]),
        nn.ModuleList(blocks[head:tail]),
        nn.ModuleList(blocks[tail:]),
    )


def iteration(generator, discriminator, g_adam, d_adam, pictures, labels, z, cut):
    """One training step cut at `cut` (such as "0110"), as an iterator over its sixteen `Hop`s in their order.

    The arguments are those of `fedgen_lab.split.local.gan_step`, and at the end so are the weights. The server's side
    sees nothing but the hops' tensors.
    """
    bits = [int(bit) for bit in cut]
    whole_g, whole_d = segments(generator, *bits[:2]), segments(discriminator, *bits[2:])
    fakes, g_wire = yield from _forward("generator", whole_g, (z, labels), None, _MAKE)

    d_adam.zero_grad()
    for shown, real, words in ((fakes.detach(), False, _FAKES), (pictures, True, _REAL)):
        logits, wire = yield from _forward("discriminator", whole_d, (shown, labels), shown, words)
        adversarial_loss(
            logits, real
        ).backward()  # down to the tail's input; the loss stays on the device
        yield from _backward("discriminator", wire, shown, words)
    d_adam.step()

    g_adam.zero_grad()
    seen = fakes.detach()
    logits, wire = yield from _forward("discriminator", whole_d, (fakes, labels), seen, _AGAIN)
    adversarial_loss(logits, real=True).backward()
    yield from _backward(
        "discriminator", wire, seen, _AGAIN
    )  # ends in the fakes, and so in the generator's tail
    yield from _backward("generator", g_wire, seen, _LEARN)
    g_adam.step()


def _forward(net, parts, inputs, shown, words):
    """Head on the device, body on the server, tail on the device. Returns what the tail says, and both ends of the
    wire at both cuts."""
    head, body, tail = parts
    at_head = run_blocks(head, *inputs)
    sent = at_head.detach().requires_grad_()  # what arrives is numbers, without their history
    yield Hop(net, "activation", "head", True, sent.detach(), shown, words[0])
    at_tail = run_blocks(body, sent)
    back = at_tail.detach().requires_grad_()
    yield Hop(net, "activation", "tail", False, back.detach(), shown, words[1])
    return run_blocks(tail, back), (at_head, sent, at_tail, back)


def _backward(net, wire, shown, words):
    """The way back, once the device's backward pass has reached the tail's input."""
    at_head, sent, at_tail, back = wire
    yield Hop(net, "gradient", "tail", True, back.grad, shown, words[-2])
    at_tail.backward(back.grad)  # the server's hop
    yield Hop(net, "gradient", "head", False, sent.grad, shown, words[-1])
    at_head.backward(sent.grad)


_MAKE = (
    "The device draws noise z and takes the labels of its batch. The generator's head mixes both; only that leaves.",
    "The server's body answers. The device's tail will make fakes of it, which stay on the device.",
)
_FAKES = (
    "The device shows its fakes to the discriminator's head and sends what the head makes of them.",
    "The server's body answers. On the device the tail judges, and the loss says: these are fakes.",
    "The loss stays. What leaves is how it would change with the tail's input.",
    "The server went backwards through its body and says what the head should change.",
)
_REAL = (
    "Now the real pictures: only what the head makes of them leaves the device.",
    "The server's body answers. On the device the tail judges, and the loss says: these are real.",
    "Again only the gradient at the tail's input leaves.",
    "The server's gradient comes back. After it, every part of the discriminator takes its step.",
)
_AGAIN = (
    "The same fakes, before the discriminator as it is now.",
    "The tail judges once more. This time the loss asks: how far are they from passing as real?",
    "That question goes back as a gradient.",
    "It goes on through the discriminator's head into the fakes, and into the generator's tail.",
)
_LEARN = (
    "The gradient has passed the generator's tail; what is left of it goes to the server's body.",
    "The last gradient reaches the generator's head, and every part of the generator takes its step.",
)
