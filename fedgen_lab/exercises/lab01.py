"""The exercises of lab 01: the weighted average, drift, and the bytes of a run (McMahan et al., arXiv 1602.05629)."""

from fedgen_lab.exercises.checks import Exercise, failed, passed

RECALL = (
    (
        "What does a device send to the server after it has trained?",
        ["its pictures", "its captions", "numbers of the model"],
        2,
        "Pictures and captions stay where they are. Only numbers of the model travel.",
    ),
    (
        "Who starts a round?",
        ["the server", "the fastest device", "all devices at once"],
        0,
        "The server sends the present numbers to the devices, and so starts the round.",
    ),
    (
        "What did the devices of lab 00 train?",
        ["the whole model", "a small adapter", "the text encoder"],
        1,
        "The model stayed as it was. Each device trained a small adapter, and the server averaged the adapters.",
    ),
)


# -- 01.1 -------------------------------------------------------------------------------------------------------------
def _uploads(number, seed):
    """Fresh uploads of `number` clients: dictionaries of two float32 tensors."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    shapes = {"first.weight": (3, 2), "first.bias": (3,)}
    return [
        {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        for _ in range(number)
    ]


def _same(one, other, tolerance=1e-5):
    import torch

    return all(
        torch.allclose(one[name].double(), other[name].double(), atol=tolerance) for name in other
    )


def _mean(uploads, counts):
    shares = [count / sum(counts) for count in counts]
    return {
        name: sum(s * u[name].double() for s, u in zip(shares, uploads, strict=True))
        for name in uploads[0]
    }


def _check_average(average):
    uploads = _uploads(3, seed=1)
    before = [{name: tensor.clone() for name, tensor in upload.items()} for upload in uploads]
    found = average(uploads, [5, 20, 75])
    if not isinstance(found, dict) or set(found) != set(uploads[0]):
        return failed(
            "The average must be a dictionary with the same names as an upload.",
            "The server has to load the result into a model. What does `load_state_dict` take?",
        )
    for name, tensor in uploads[0].items():
        if tuple(found[name].shape) != tuple(tensor.shape):
            return failed(
                f"{name!r} has the shape {tuple(found[name].shape)}; it must keep {tuple(tensor.shape)}.",
                "You average over clients. Do you also average over something else?",
            )
    if any(not _same(now, then, 0) for now, then in zip(uploads, before, strict=True)):
        return failed(
            "Your function changed the uploads it was given.",
            "Which operations write into a tensor (`+=`, `mul_`), and which make a new one?",
        )
    if _same(found, _mean(uploads, [5, 20, 75])):
        twice = [uploads[0], uploads[0]]
        if not _same(average(twice, [1, 3]), uploads[0]):
            return failed(
                "With two clients that sent the same weights, the average must be those weights, and yours is not.",
                "Does your function work for any number of clients?",
            )
        return passed(
            "A client with more pictures counts for more, and equal clients change nothing."
        )
    if _same(found, _mean(uploads, [1, 1, 1])):
        return failed(
            "Every client counts the same in your average, though they hold 5, 20 and 75 pictures.",
            "Where do you use `counts`?",
        )
    summed = {name: value * 100 for name, value in _mean(uploads, [5, 20, 75]).items()}
    if _same(found, summed, 1e-3):
        return failed(
            "You multiplied by the counts, but the result is far too large: 100 times.",
            "What must the clients' shares add up to?",
        )
    if _same(found, {name: value / 3 for name, value in summed.items()}, 1e-3):
        return failed(
            "You divided by the number of clients, after multiplying by the number of pictures.",
            "Three clients, but how many pictures in all?",
        )
    if _same(found, {name: 3 * value for name, value in _mean(uploads, [1, 1, 1]).items()}):
        return failed(
            "That is the sum of the uploads, not their average.",
            "What must the clients' shares add up to?",
        )
    if any(_same(found, upload) for upload in uploads):
        return failed("That is the upload of one client.", "What became of the others?")
    return failed(
        "The result is not the average weighted by the number of pictures.",
        "Take one weight and two clients with 1 and 3 pictures. What should come out, and what does?",
    )


# -- 01.2 -------------------------------------------------------------------------------------------------------------
def _check_drift(drift):
    import torch

    average = {"a": torch.zeros(2), "b": torch.zeros(1, 2)}
    one = {
        "a": torch.tensor([3.0, 0.0]),
        "b": torch.tensor([[4.0, 0.0]]),
    }  # 5 away: 3 and 4 are the legs of a triangle
    value = _number(drift([one], average))
    if value is None:
        return failed(
            "The drift must be one number.",
            "Over what do you still have to add up: names, or clients?",
        )
    told = {
        25.0: ("You return the squared distance.", "What undoes a square?"),
        7.0: (
            "You took the root for each tensor and added the roots: 3 + 4 where the distance is 5.",
            "All weights together are one long vector. When do you take the root?",
        ),
        3.5: (
            "You averaged over the tensors.",
            "All weights together are one long vector. What is its length?",
        ),
        12.5: (
            "You averaged squares over the tensors.",
            "What is the length of the vector (3, 4)?",
        ),
        2.5: (
            "You divided by the number of weights, inside the root.",
            "Is the length of the vector (3, 4) a mean?",
        ),
        3.0: (
            "You measured one tensor and left the others out.",
            "Which names does an upload have?",
        ),
        4.0: (
            "You measured one tensor and left the others out.",
            "Which names does an upload have?",
        ),
    }
    for wrong, words in told.items():
        if abs(value - wrong) < 1e-4:
            return failed(*words)
    if abs(value - 5) > 1e-4:
        return failed(
            f"An upload whose differences are 3 and 4 is at a distance of 5, and yours is {value:.4g}.",
            "Square every difference, add them all up: what is left to do?",
        )
    other = {name: -tensor for name, tensor in one.items()}
    value = _number(drift([one, other], average))
    if value is not None and abs(value) < 1e-4:
        return failed(
            "Two clients that went in opposite directions cancel out in yours, though both are far from the average.",
            "What do you average over clients: differences, or distances?",
        )
    if value is not None and abs(value - 10) < 1e-4:
        return failed(
            "You added up the clients' distances.", "What is the mean of two equal distances?"
        )
    shifted = {name: tensor + 1 for name, tensor in average.items()}
    moved = [{name: tensor + 1 for name, tensor in upload.items()} for upload in (one, other)]
    value, again = _number(drift([one, average], average)), _number(drift(moved, shifted))
    if again is None or abs(again - 5) > 1e-4:
        return failed(
            "The drift must not change when all clients and the average move by the same amount, and yours does.",
            "Where do you use `average`?",
        )
    if value is None or abs(value - 2.5) > 1e-4:
        return failed(
            "One client at a distance of 5 and one that did not move have a mean drift of 2.5, and yours differs.",
            "First a distance for each client, then the mean of these numbers: is that your order?",
        )
    return passed(
        "Clients that walk in opposite directions drift as much as clients that walk the same way."
    )


def _number(value):
    """A float, or None where `value` is not one number."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return None


# -- 01.3 -------------------------------------------------------------------------------------------------------------
def _check_bytes(run_bytes):
    weights, clients, rounds = (
        1001,
        7,
        13,
    )  # no factor in common, so every mistake has its own ratio
    right = 4 * weights * clients * rounds * 2
    found = _number(run_bytes(weights, clients, rounds))
    if found is None:
        return failed("The answer must be one number.", "What do you return?")
    told = {
        1 / 2: (
            "That is one direction only.",
            "Which two messages does each client take part in, in every round?",
        ),
        1 / 4: ("You counted numbers, not bytes.", "How many bytes does a 32-bit number take?"),
        1 / 8: (
            "You counted numbers, not bytes, and one direction only.",
            "How many bytes does a 32-bit number take, and how often is it sent in a round?",
        ),
        1 / clients: ("That is what one client sends and receives.", "How many clients are there?"),
        1 / rounds: ("That is one round.", "How often are weights sent in the whole run?"),
        8: ("You counted bits.", "How many bits make a byte?"),
        2: ("Each 32-bit number counts as 8 bytes in yours.", "How many bits make a byte?"),
        1 / clients / rounds: (
            "That is one client in one round.",
            "How many clients and rounds are there?",
        ),
        (clients + 1) / (2 * clients): (
            "You count one message from the server for all clients.",
            "The clients are in different places. How often does the server have to send?",
        ),
    }
    for ratio, words in told.items():
        if abs(found - right * ratio) < 0.5:
            return failed(*words)
    if abs(found - right) > 0.5:
        return failed(
            f"For {weights} weights, {clients} clients and {rounds} rounds yours says {found:,.0f}, not what crosses.",
            "Count the messages of one round first. What does each of them hold?",
        )
    if abs(float(run_bytes(10, 1, 1)) - 80) > 0.5:
        return failed(
            "Yours is wrong for ten weights, one client, one round.",
            "Which numbers in your code are fixed?",
        )
    return passed("Twice 4 bytes for each weight, client and round. The pictures play no part.")


EXERCISES = (
    Exercise(
        key="01.1",
        title="Average by the number of pictures",
        dots=1,
        minutes=5,
        check=_check_average,
        hints=(
            "Which share of all pictures does each client hold? These shares add up to 1.",
            "Make a new dictionary. For each name: multiply every client's tensor by its share, and add them up.",
            "With `total = sum(counts)`, one name is `sum(c / total * u[name] for c, u in zip(counts, uploads))`.",
        ),
        solution='''
def average_by_count(uploads, counts):
    """Average dictionaries of tensors, weighted by counts."""
    total = sum(counts)
    average = {}
    for name in uploads[0]:
        average[name] = sum(count / total * upload[name] for count, upload in zip(counts, uploads))
    return average
''',
    ),
    Exercise(
        key="01.2",
        title="How far the clients have drifted",
        dots=2,
        minutes=8,
        check=_check_drift,
        hints=(
            "Start with one client. All its weights together are one long vector: what is its distance to the average?",
            "For each client: add up the squared differences over all names, take one root. Then the mean of these.",
            "`squares = sum(((upload[name] - average[name]) ** 2).sum() for name in average)` is one client's part.",
        ),
        solution='''
def drift_of_uploads(uploads, average):
    """Mean over clients of the Euclidean distance between an upload and the average."""
    distances = []
    for upload in uploads:
        squares = sum(((upload[name] - average[name]) ** 2).sum() for name in average)
        distances.append(float(squares) ** 0.5)
    return sum(distances) / len(distances)
''',
    ),
    Exercise(
        key="01.3",
        title="What a run costs",
        dots=1,
        minutes=5,
        check=_check_bytes,
        hints=(
            "Draw one round with two clients on paper: an arrow for every message.",
            "A round has two messages for each client. Each holds every weight, and a weight takes 4 bytes.",
            "Bytes of one message, times two directions, times clients, times rounds.",
        ),
        solution='''
def run_bytes(num_parameters, num_clients, rounds):
    """Bytes that cross the wire in a whole run of FedAvg with 32-bit weights, down and up."""
    message = 4 * num_parameters
    return message * 2 * num_clients * rounds
''',
    ),
)
