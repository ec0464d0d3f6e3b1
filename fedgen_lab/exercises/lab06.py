"""The exercises of lab 06: the server's way back, the bytes of a cut, and reading labels off smashed data.

The U is that of HuSCF-GAN (arXiv 2507.12979). Labels read off by the means of shadow data: the simplest of the attacks
in `fedgen_lab.privacy.smashed`.
"""

from fedgen_lab.exercises.checks import Exercise, failed, passed


# -- 06.1 -------------------------------------------------------------------------------------------------------------
def _body(seed):
    """A small body of the server with fresh weights, an activation that came up, and the gradient that came after."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3, padding=1), torch.nn.Tanh()).double()
    draw = {"generator": generator, "dtype": torch.float64}
    return body, torch.randn(4, 2, 5, 5, **draw), torch.randn(4, 3, 5, 5, **draw)


def _check_backward(server_backward):
    import torch

    def near(x, y):
        return (
            torch.is_tensor(x) and x.shape == y.shape and torch.allclose(x.double(), y, atol=1e-9)
        )

    for seed in (11, 12):
        body, received, gradient = _body(seed)
        leaf = received.clone().requires_grad_()
        out = body(leaf)
        right, *weights = torch.autograd.grad(out, [leaf, *body.parameters()], gradient)
        unit = torch.autograd.grad(body(leaf).sum(), leaf)[0]
        got = server_backward(body, received.clone(), gradient.clone())
        if near(got, right):
            if any(p.grad is None for p in body.parameters()):
                return failed(
                    "What you send down is right, but the server's own weights got no gradient, so it can't learn.",
                    "Which of torch's two ways, `backward` and `autograd.grad`, fills `.grad` of the weights?",
                )
            if not all(
                near(p.grad, wanted) for p, wanted in zip(body.parameters(), weights, strict=True)
            ):
                return failed(
                    "What you send down is right, but the gradients of the server's weights are not those of one pass.",
                    "How often does your function go backwards?",
                )
            continue
        if near(got, unit):
            return failed(
                "This is the gradient of the sum of the body's output: the gradient from the device is not used.",
                "What does `backward` of a tensor that isn't one number take as its argument?",
            )
        if near(got, gradient):
            return failed(
                "This is what came up, sent down again unchanged.",
                "What has the body done on the way forward?",
            )
        if near(got, out.detach()):
            return failed(
                "This is the body's output: the way forward.",
                "Where is the gradient at what went in?",
            )
        if any(near(got, wanted) for wanted in weights):
            return failed(
                "This is the gradient of a weight. It stays on the server.",
                "At which tensor did the cut lie?",
            )
        if torch.is_tensor(got) and got.shape == right.shape:
            factor = float((got.double() * right).sum() / right.square().sum())
            if near(got, factor * right):
                return failed(
                    f"The direction is right, but it is {factor:.3g} times as long as it should be.",
                    "The gradient that arrives is final as it is. Has a mean crept in?",
                )
        if not torch.is_tensor(got) or got.shape != right.shape:
            return failed(
                f"The result must be a tensor of the shape of what came up, {tuple(right.shape)}.",
                "With which tensor on the device will this gradient be multiplied?",
            )
        return failed(
            "The result is not the gradient of the loss at what came up.",
            "The chain rule has two factors here. Which one arrives, and which one does the body add?",
        )
    return passed(
        "The device can go on from here as if the body had been its own: that is all of split learning."
    )


# -- 06.2 -------------------------------------------------------------------------------------------------------------
# Five outputs for each net, in bytes: primes, so that no two mistakes give the same sum.
_OUTPUTS = (
    ((1009, 2003, 3001, 4001, 5003), (101, 211, 307, 401, 503)),
    ((13, 29, 53, 79, 107), (7, 3, 5, 2, 11)),
)


def _sums(cut, generator, discriminator, d_times=3):
    g1, g3, d1, d3 = (int(bit) for bit in cut)
    return generator[g1] + generator[3 - g3] + d_times * (discriminator[d1] + discriminator[3 - d3])


def _check_bytes(up_bytes):
    cuts = [f"{number:04b}" for number in range(16)]
    for g, d in _OUTPUTS:
        try:
            got = [float(up_bytes(cut, list(g), list(d))) for cut in cuts]
        except (TypeError, ValueError):
            return failed("The answer must be one number.", "Which sum do you return?")

        def fits(rule, g=g, d=d, got=got):
            return all(abs(one - rule(cut, g, d)) < 0.5 for one, cut in zip(got, cuts, strict=True))

        if fits(_sums):
            continue
        told = (
            (
                lambda cut, g, d: _sums(cut, g, d, 1),
                "The discriminator is passed once in yours.",
                "What does it look at in one iteration, one after the other?",
            ),
            (
                lambda cut, g, d: _sums(cut, g, d, 2),
                "The discriminator is passed twice in yours: fakes and real pictures.",
                "Where does the generator's own lesson come from?",
            ),
            (
                lambda cut, g, d: 3 * _sums(cut, g, d, 1),
                "You count three passes of the generator too.",
                "How often are fakes made in one iteration?",
            ),
            (
                lambda cut, g, d: 2 * _sums(cut, g, d),
                "These are the bytes up and down together.",
                "What does the device send, and what does it receive?",
            ),
            (
                lambda cut, g, d: g[int(cut[0])] + 3 * d[int(cut[2])],
                "Only activations are counted.",
                "What else goes up, once the tail knows its loss?",
            ),
            (
                lambda cut, g, d: g[3 - int(cut[1])] + 3 * d[3 - int(cut[3])],
                "Only gradients are counted.",
                "What goes up before there is any loss?",
            ),
            (
                lambda cut, g, d: _sums("".join("10"[int(bit)] for bit in cut), g, d),
                "Every bit is read the wrong way round.",
                "In the cut 0000, who holds blocks 1 and 3?",
            ),
            (
                lambda cut, g, d: _sums(
                    f"{cut[0]}{1 - int(cut[1])}{cut[2]}{1 - int(cut[3])}", g, d
                ),
                "The heads are right; at the tails the bit is read the wrong way round.",
                "If the device holds block 3, which block's output comes down to it?",
            ),
            (
                lambda cut, g, d: _sums(
                    f"{1 - int(cut[0])}{cut[1]}{1 - int(cut[2])}{cut[3]}", g, d
                ),
                "The tails are right; at the heads the bit is read the wrong way round.",
                "If the device holds block 1, which block's output goes up?",
            ),
            (
                lambda cut, g, d: _sums(cut, d, g),
                "Generator and discriminator have changed places.",
                "Which net do the first two bits cut?",
            ),
            (
                lambda cut, g, d: _sums("0110", g, d),
                "Your answer is the same for all cuts.",
                "Where do you use `cut`?",
            ),
        )
        for rule, message, question in told:
            if fits(rule):
                return failed(message, question)
        if len(set(got)) == 1:
            return failed("Your answer is the same for all cuts.", "Where do you use `cut`?")
        wrong = next(
            cut for cut, one in zip(cuts, got, strict=True) if abs(one - _sums(cut, g, d)) >= 0.5
        )
        return failed(
            f"For the cut {wrong} and outputs of {list(g)} and {list(d)} bytes, {_sums(wrong, g, d)} bytes go up; "
            f"yours says {got[cuts.index(wrong)]:g}.",
            "Can you find its eight tensors in the ledger of the dashboard, four of each kind?",
        )
    return passed("Eight tensors up, eight down, and which ones they are is decided by four bits.")


# -- 06.3 -------------------------------------------------------------------------------------------------------------
def _wiretap(net, seed, number):
    """Smashed data (N, C, h, w) of a fresh head of this net, and the labels behind them."""
    import torch

    from fedgen_lab.split.nets import SIZES, new_discriminator, new_generator

    size, draws = SIZES["lab14"], torch.Generator().manual_seed(seed)
    head = (new_generator if net == "generator" else new_discriminator)(size, seed=5)[0]

    def batch(number):
        labels = torch.randint(size.num_labels, (number,), generator=draws)
        shape = (size.z_dim,) if net == "generator" else size.picture
        with torch.no_grad():
            return head(torch.randn(number, *shape, generator=draws), labels), labels

    batches = [batch(64) for _ in range(number // 64)]
    return torch.cat([sent for sent, _ in batches]), torch.cat([labels for _, labels in batches])


def _check_labels(guess_labels):
    import torch

    for net in ("generator", "discriminator"):
        (mine, known), (theirs, secret) = _wiretap(net, 1, 1024), _wiretap(net, 2, 128)
        got = guess_labels(mine.clone(), known.clone(), theirs.clone())
        try:
            got = torch.as_tensor(got)
        except (TypeError, ValueError, RuntimeError):
            return failed("The guesses must be one tensor of labels.", "What do you return?")
        if got.shape == (len(theirs), 10):
            return failed(
                "This is one number for each of the ten labels, not yet a guess.",
                "Which of the ten do you choose?",
            )
        if got.shape == known.shape:
            return failed(
                f"You return {len(known)} guesses, but {len(theirs)} activations came from the device.",
                "Whose labels do you already know, and whose do you want?",
            )
        if got.shape != secret.shape:
            return failed(
                f"The guesses must have the shape ({len(theirs)},); yours have {tuple(got.shape)}.",
                "How many labels does one picture have?",
            )
        right = float((got == secret).float().mean())
        if right > 0.9:
            continue
        flat, others = mine.flatten(1), theirs.flatten(1)
        nearest = torch.cdist(others, flat)
        means = torch.stack([flat[known == label].mean(0) for label in range(10)])
        if torch.equal(got, known[nearest.argmin(1)]):
            return failed(
                f"The nearest single example tells {right:.0%} of the labels of the {net}'s side: it resembles in its "
                "noise as much as in its label.",
                "What is left of many examples of one label when the noise cancels out?",
            )
        if torch.equal(got, torch.cdist(others, means).argmax(1)):
            return failed(
                "You choose the label whose mean is farthest away.",
                "Largest distance, or smallest?",
            )
        if got.unique().numel() == 1:
            return failed("Every activation gets the same guess.", "Where do you use `theirs`?")
        return failed(
            f"{right:.0%} of the {net}'s labels are right; guessing blindly gives 10%, and ten means give over 90%.",
            "How far is each activation from the mean of `mine` for label 0? And for label 1?",
        )
    return passed(
        "Ten means are enough. The label never crossed the wire, and the server has it all the same."
    )


EXERCISES = (
    Exercise(
        key="06.1",
        title="The server's way back",
        dots=2,
        minutes=8,
        check=_check_backward,
        hints=(
            "What came up has no history. torch must be told to watch it, before the body is run once more.",
            "Detach it and call `requires_grad_()`; run the body; go backwards from the output with the gradient.",
            "`out.backward(gradient)` fills `.grad` of the weights and of the watched input. Which one goes down?",
        ),
        solution="""
def server_backward(body, received, gradient):
    received = received.detach().requires_grad_()  # the numbers, watched from here on
    body(received).backward(gradient)  # fills .grad of the body's weights, and of `received`
    return received.grad  # what goes down
""",
    ),
    Exercise(
        key="06.2",
        title="The bytes of a cut",
        dots=1,
        minutes=6,
        check=_check_bytes,
        hints=(
            "Four kinds of tensors go up: activations at two heads, gradients at two tails. How often each?",
            "At a head the last block of the device speaks: block 0, or block 1 if its bit is 1. A gradient at a tail "
            "is as large as what came down: the output of block 3, or of block 2 if the bit is 1.",
            "For the generator: `generator[g1] + generator[3 - g3]`. The discriminator is passed three times.",
        ),
        solution="""
def up_bytes(cut, generator, discriminator):
    g1, g3, d1, d3 = (int(bit) for bit in cut)
    of_generator = generator[g1] + generator[3 - g3]  # activation at the head, gradient at the tail
    of_discriminator = discriminator[d1] + discriminator[3 - d3]
    return of_generator + 3 * of_discriminator  # fakes, real pictures, and the fakes again
""",
    ),
    Exercise(
        key="06.3",
        title="Read the labels",
        dots=2,
        minutes=10,
        check=_check_labels,
        hints=(
            "You have a thousand activations whose labels you know. What do those of one label have in common?",
            "Take the mean of `mine` for each of the ten labels, and give each of `theirs` the label of the nearest.",
            "Flatten first: `mine.flatten(1)`. The means are `mine[labels == k].mean(0)`; "
            "`torch.cdist` gives all distances at once.",
        ),
        solution="""
def guess_labels(mine, labels, theirs):
    import torch

    mine, theirs = mine.flatten(1), theirs.flatten(1)
    means = torch.stack([mine[labels == label].mean(0) for label in range(10)])  # (10, F)
    return torch.cdist(theirs, means).argmin(1)
""",
    ),
)

RECALL = [
    (
        "What crosses the wire in federated LoRA, and how often?",
        [
            "the pictures, once",
            "the adapter, down and up in every round",
            "the adapter, in every training step",
        ],
        1,
        "A client trains many steps in between. In this lab something crosses several times in every single step.",
    ),
    (
        "The server averages A and B of all adapters, one by one. What does it miss?",
        [
            "nothing",
            "that the mean of products is not the product of means",
            "the clients' learning rates",
        ],
        1,
        "What a layer adds is B A. The more the clients differ, the further mean(B) mean(A) is from mean(B A).",
    ),
    (
        "You replay a recorded run with ten times the bandwidth. What changes?",
        ["the bytes", "the seconds of the uploads", "the loss"],
        1,
        "What was sent does not depend on the radio. Only the clock does.",
    ),
]
