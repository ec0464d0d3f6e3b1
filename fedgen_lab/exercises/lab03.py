"""The exercises of lab 03: what an adapter costs, what averaging its factors loses, and how long a round lasts.

Hu et al. 2021 (LoRA, arXiv 2106.09685); Sun et al. 2024 (arXiv 2403.12313) and Singhal et al. 2024 (arXiv 2410.09432)
on why averaging both factors is not averaging the update.
"""

from fedgen_lab.exercises.checks import Exercise, failed, passed


def _check_bytes(round_bytes):
    layers = [(96, 64), (48, 96), (32, 32)]  # (inputs, outputs)
    got, rank, clients = round_bytes(layers, 4, 3), 4, 3
    one_way = sum(rank * (a + b) for a, b in layers) * 4
    whole = sum(a * b for a, b in layers) * 4
    if got == 2 * clients * one_way:
        for layers, rank, clients in (([(5, 7)], 1, 1), ([(128, 16)] * 4, 16, 9)):
            right = 2 * clients * 4 * sum(rank * (a + b) for a, b in layers)
            if round_bytes(layers, rank, clients) != right:
                return failed(
                    f"It fits one example, but for {clients} clients, rank {rank}, layers {layers} it is not {right}.",
                    "Does a number in your function belong to the example instead of to its arguments?",
                )
        return passed("Bytes grow with rank x (inputs + outputs), never with inputs x outputs.")
    if got in (2 * clients * whole, clients * whole, whole):
        return failed(
            "These are the bytes of the whole weight matrices, not of the adapter.",
            "Which two small matrices travel instead of a matrix of inputs x outputs?",
        )
    if got == clients * one_way:
        return failed(
            "Only one direction is counted.",
            "A round begins before a client has trained: what must it receive first?",
        )
    if got in (one_way, 2 * one_way):
        return failed("This is what one client moves.", "How many clients take part in the round?")
    if got in (2 * clients * one_way / 4, 2 * clients * one_way * 2):
        return failed(
            "The count of numbers is right, the count of bytes is not.",
            "How many bytes has a float32?",
        )
    if got in (
        2 * clients * 4 * sum(rank * a for a, _ in layers),
        2 * clients * 4 * sum(rank * b for _, b in layers),
    ):
        return failed(
            "Only one of the two factors is counted.", "A has rank x inputs numbers. And B?"
        )
    return failed(
        f"For three small layers, rank 4 and 3 clients it must be {2 * clients * one_way} bytes; yours says {got}.",
        "Can you count one layer by hand: the numbers in A, the numbers in B, four bytes each?",
    )


def _check_gap(averaging_gap):
    import torch

    generator = torch.Generator().manual_seed(7)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def near(x, y):
        return (
            torch.is_tensor(x) and x.shape == y.shape and torch.allclose(x.double(), y, atol=1e-6)
        )

    downs, ups = (
        [draw(2, 5) for _ in range(3)],
        [draw(4, 2) for _ in range(3)],
    )  # A: (r, in), B: (out, r)
    mean_of_products = sum(up @ down for up, down in zip(ups, downs, strict=True)) / 3
    product_of_means = (sum(ups) / 3) @ (sum(downs) / 3)
    gap = mean_of_products - product_of_means
    got = averaging_gap(downs, ups)
    if near(got, gap):
        same = averaging_gap([downs[0]] * 4, [ups[0]] * 4)
        if not near(same, torch.zeros(4, 5, dtype=torch.float64)):
            return failed(
                "Four clients with one and the same adapter must leave no gap.",
                "By what do you divide?",
            )
        return passed(
            "The gap is zero where clients agree, and grows as they drift apart: that is what skew does."
        )
    if near(got, -gap):
        return failed(
            "The size is right, the sign is not.",
            "What must be added to the server's product to get the true mean?",
        )
    if near(got, mean_of_products):
        return failed(
            "This is the true mean of the updates; the gap is what the server misses of it.",
            "Subtract what?",
        )
    if near(got, product_of_means):
        return failed(
            "This is what the server has after averaging A and B; the gap is what it misses.",
            "Misses of what?",
        )
    if near(got, 3 * mean_of_products - product_of_means) or near(got, 3 * gap):
        return failed(
            "Somewhere a sum stands where a mean belongs.", "How many clients share the first term?"
        )
    if torch.is_tensor(got) and got.shape in ((5, 4), (2, 2)):
        return failed(
            f"The result has the shape {tuple(got.shape)}; an update of this layer is 4 x 5 (outputs x inputs).",
            "W + B A: which factor stands on the left?",
        )
    return failed(
        "For three clients this is not mean(B A) - mean(B) mean(A).",
        "What are the two things that are compared, and which of them does the server compute?",
    )


def _check_seconds(round_seconds):
    import numpy as np

    download, compute, upload = (
        np.array([1.0, 2.0, 4.0]),
        np.array([9.0, 1.0, 1.0]),
        np.array([1.0, 8.0, 3.0]),
    )
    try:
        got = float(np.asarray(round_seconds(download.copy(), compute.copy(), upload.copy())))
    except (TypeError, ValueError):
        return failed(
            "A round has one length: the result must be one number.", "Which client ends the round?"
        )
    total = download + compute + upload  # 11, 11, 8
    if np.isclose(got, total.max()):
        rng = np.random.default_rng(3)
        for _ in range(5):
            parts = rng.uniform(0, 5, (3, 6))
            if not np.isclose(float(np.asarray(round_seconds(*parts))), parts.sum(axis=0).max()):
                return failed(
                    "It fits one example, but not six clients with other times.",
                    "Does your function look at every client's own three phases together?",
                )
        return passed(
            "A synchronous round lasts as long as its slowest client: the straggler sets the pace."
        )
    if np.isclose(got, download.max() + compute.max() + upload.max()):
        return failed(
            "The slowest download, computing and upload belong to different clients, and nobody has all three.",
            "When does a client begin to compute: when all have downloaded, or when it has?",
        )
    if np.isclose(got, total.mean()):
        return failed(
            "This is the mean client's time, but the server waits for all.",
            "Who has the last word?",
        )
    if np.isclose(got, total.sum()):
        return failed(
            "Here the clients work one after another.",
            "What happens on the others while one computes?",
        )
    if np.isclose(got, total.min()):
        return failed(
            "The server would leave all but the fastest behind.",
            "Which uploads does the average need?",
        )
    return failed(
        f"For three clients that need 11, 11 and 8 seconds the round lasts 11; yours says {got:g}.",
        "What does one client do in a round, one thing after the other?",
    )


EXERCISES = (
    Exercise(
        key="03.1",
        title="The bytes of a round",
        dots=1,
        minutes=5,
        check=_check_bytes,
        hints=(
            "Count the numbers in A and in B of one layer first; then layers, clients, directions and bytes.",
            "A is rank x inputs and B is outputs x rank. Each client downloads both and uploads both, as float32.",
            "Sum `rank * (inputs + outputs)` over the layers, times 4 bytes, times 2 directions, times the clients.",
        ),
        solution="""
def round_bytes(layers, rank, num_clients):
    numbers = sum(rank * (inputs + outputs) for inputs, outputs in layers)  # A and B of every layer
    return 2 * num_clients * numbers * 4  # down and up, float32
""",
    ),
    Exercise(
        key="03.2",
        title="What averaging A and B misses",
        dots=2,
        minutes=10,
        check=_check_gap,
        hints=(
            "A client's update of the layer is B @ A. What is the mean of those? And what does the server hold?",
            "The server holds mean(B) @ mean(A). The gap is what must be added to reach the mean of the products.",
            "`mean_of_products = sum(b @ a for a, b in zip(downs, ups)) / len(ups)`; then subtract the product.",
        ),
        solution="""
def averaging_gap(downs, ups):
    number = len(ups)
    mean_of_products = sum(up @ down for up, down in zip(ups, downs)) / number  # what FedAvg of the layers would give
    product_of_means = (sum(ups) / number) @ (sum(downs) / number)  # what averaging the factors gives
    return mean_of_products - product_of_means
""",
    ),
    Exercise(
        key="03.3",
        title="How long a round lasts",
        dots=1,
        minutes=5,
        check=_check_seconds,
        hints=(
            "Follow one client through the round. Then ask what the server waits for.",
            "Each client's time is the sum of its own three phases.",
            "`(download + compute + upload)` is one number per client; the round ends with the largest.",
        ),
        solution="""
def round_seconds(download, compute, upload):
    return (download + compute + upload).max()
""",
    ),
)

RECALL = [
    (
        "What does the UNet of a Stable Diffusion guess in every step?",
        ["the finished picture", "what noise was put into a latent", "the caption"],
        1,
        "It guesses the noise (or the velocity, the same knowledge in another form); the sampler takes some away.",
    ),
    (
        "Why does a new LoRA adapter change nothing before it is trained?",
        ["A is zero", "B is zero", "its rank is small"],
        1,
        "W + B A is W while B is zero. A is random, so that training has somewhere to go.",
    ),
    (
        "A layer has 96 inputs and 64 outputs. How many numbers does an adapter of rank 4 add?",
        ["4 x 96 x 64", "4 x (96 + 64)", "96 x 64 / 4"],
        1,
        "A has 4 x 96 and B has 64 x 4: the sum of the sides, not their product.",
    ),
]
