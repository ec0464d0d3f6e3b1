"""The exercises of lab 04: the exact mean of adapters as one adapter, and what each rule sends down.

Wang et al. 2024 (FLoRA, arXiv 2409.05976); Bai et al. 2024 (FlexLoRA, arXiv 2402.11505).
"""

from fedgen_lab.exercises.checks import Exercise, failed, passed


def _check_stack(exact_mixture):
    import torch

    generator = torch.Generator().manual_seed(4)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def near(x, y):
        return (
            torch.is_tensor(x) and x.shape == y.shape and torch.allclose(x.double(), y, atol=1e-6)
        )

    ranks, weights = (2, 1, 3), [0.5, 0.2, 0.3]
    downs, ups = [draw(r, 5) for r in ranks], [draw(4, r) for r in ranks]
    products = [up @ down for up, down in zip(ups, downs, strict=True)]
    wanted = sum(w * p for w, p in zip(weights, products, strict=True))
    got = exact_mixture([down.clone() for down in downs], [up.clone() for up in ups], list(weights))
    if not (
        isinstance(got, tuple | list) and len(got) == 2 and all(torch.is_tensor(one) for one in got)
    ):
        return failed(
            "The result must be two tensors, A and B.", "Which two factors make one adapter?"
        )
    a, b = got
    if a.shape == (4, 6) and b.shape == (6, 5):
        return failed(
            "The two factors are swapped.",
            "A has rank rows, B has rank columns. Which comes first here?",
        )
    if a.ndim != 2 or b.ndim != 2 or a.shape != (6, 5) or b.shape != (4, 6):
        return failed(
            f"A is {tuple(a.shape)} and B is {tuple(b.shape)}; with ranks 2, 1 and 3 they must be (6, 5) and (4, 6).",
            "Along which side can A's of different rank be put together so that B A becomes a sum?",
        )
    product = b @ a
    if near(product, wanted):
        one = exact_mixture(downs[:1], ups[:1], [1.0])
        if not near(one[1] @ one[0], products[0]):
            return failed(
                "One client alone must give its own change.", "Does a number belong to the example?"
            )
        return passed(
            "Stacking is exact for any ranks; the price is an adapter whose rank is the sum of all."
        )
    if near(product, sum(w * w * p for w, p in zip(weights, products, strict=True))):
        return failed(
            "Every weight counts twice.",
            "If both factors carry the weight, what does their product carry?",
        )
    if near(product, sum(products)):
        return failed(
            "This is the sum of the changes, without the weights.",
            "Where can a weight stand, once?",
        )
    return failed(
        "B A is not the weighted sum of the clients' B A.",
        "Which column of B meets which row of A?",
    )


def _check_down(numbers_down):
    examples = [(96, 64, 8, 4), (32, 48, 2, 10), (64, 64, 4, 1)]  # inputs, outputs, rank, clients
    right = {
        "fedit": lambda i, o, r, k: r * (i + o),
        "ffa": lambda i, o, r, k: r * o,
        "flora": lambda i, o, r, k: k * r * (i + o),
    }
    for rule, numbers in right.items():
        for example in examples:
            wanted, got = numbers(*example), numbers_down(rule, *example)
            if got == wanted:
                continue
            i, o, r, k = example
            if rule == "ffa" and got == r * i:
                return failed(
                    "These are the numbers of A.",
                    "FFA-LoRA freezes A. Which factor still has to travel?",
                )
            if rule == "ffa" and got == r * (i + o):
                return failed(
                    "FFA-LoRA sends less than both factors.",
                    "Why does a frozen A never have to travel?",
                )
            if rule == "flora" and got == r * (i + o):
                return failed(
                    "This is one client's adapter.",
                    "What does a client of FLoRA add to W0 after a round?",
                )
            if got == 4 * wanted:
                return failed(
                    "These are bytes.", "The question is for numbers. How many bytes has a float32?"
                )
            if got == i * o:
                return failed("This is the whole weight.", "Which factors travel instead?")
            return failed(
                f"{rule} sends {wanted} numbers down to a client for a layer of {i} inputs and {o} outputs at rank {r} "
                f"with {k} clients; yours says {got!r}.",
                "Which factors come down under this rule, and of how many clients?",
            )
    return passed(
        "A frozen factor halves the way down; stacking multiplies it by the number of clients."
    )


EXERCISES = (
    Exercise(
        key="04.1",
        title="The exact mixture as one adapter",
        dots=2,
        minutes=10,
        check=_check_stack,
        hints=(
            "A product of two matrices is a sum over the inner index: each column of B times the row of A it meets.",
            "Put all A's on top of each other and all B's side by side. And the weights?",
            "`torch.cat([w * down for ...])` for A, `torch.cat(ups, 1)` for B: the weight on one of them only.",
        ),
        solution="""
def exact_mixture(downs, ups, weights):
    import torch

    A = torch.cat([weight * down for weight, down in zip(weights, downs)])  # (sum of ranks, inputs)
    B = torch.cat(list(ups), 1)  # (outputs, sum of ranks)
    return A, B
""",
    ),
    Exercise(
        key="04.2",
        title="What a rule sends down",
        dots=1,
        minutes=5,
        check=_check_down,
        hints=(
            "A has rank x inputs numbers, B has outputs x rank. Which of them does a client need from the server?",
            "FFA-LoRA draws A once from a seed that everybody has. FLoRA sends everybody's factors to everybody.",
            "fedit: rank * (inputs + outputs); ffa: rank * outputs; flora: clients times fedit.",
        ),
        solution="""
def numbers_down(rule, inputs, outputs, rank, clients):
    both = rank * (inputs + outputs)
    return {"fedit": both, "ffa": rank * outputs, "flora": clients * both}[rule]
""",
    ),
)

RECALL = [
    (
        "What travels in federated LoRA?",
        ["pictures", "the adapter's A and B", "the whole UNet"],
        1,
        "Only the adapter: here a twentieth of the UNet. The pictures and the frozen weights stay where they are.",
    ),
    (
        "The server averages A and B one by one. What does it get?",
        [
            "the mean of the products B A",
            "the product of the means, something else",
            "the sum of the products",
        ],
        1,
        "The more the clients differ, the more of the mean product it misses.",
    ),
    (
        "What decides how long a synchronous round lasts?",
        ["the mean client", "the slowest client", "the server"],
        1,
        "The server waits for the last upload: the straggler sets the pace.",
    ),
]
