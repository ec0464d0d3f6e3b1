"""The exercises of lab 09: the one-third rule, a disguise that a copy detector misses, and the distance that sees it.

The rule is Yoon et al.'s (2023) and Gu et al.'s (arXiv 2310.02664); the detector is the first half of PDFed's Q-N score
(arXiv 2409.18245), on pixels; the repair is what `fedgen_lab.memorization.distance` computes fast.
"""

from fedgen_lab.exercises.checks import Exercise, failed, passed


# -- 09.1 -------------------------------------------------------------------------------------------------------------
def _apart(generated, training):
    """The distances of every generated picture to every training picture: (N, M)."""
    import torch

    return torch.cdist(generated.flatten(1).double(), training.flatten(1).double())


def _third(generated, training, unique=True, share=1 / 3):
    """Who is nearer to one training picture than `share` of the way to the second; `unique`: duplicates once."""
    import torch

    training = torch.unique(training, dim=0) if unique else training
    two = _apart(generated, training).topk(2, largest=False).values  # (N, 2)
    return two[:, 0] < share * two[:, 1]


def _pool(seed, channels, scale, twice):
    """Copies of all degrees and fresh pictures (40), the training pictures (30), `twice` of them there again."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def draw(n):
        return scale * torch.randn(n, channels, 4, 4, generator=generator)

    training = draw(24)
    copied = training[torch.arange(30) % 24]
    blur = torch.linspace(0, 0.95, 30)[torch.randperm(30, generator=generator)].reshape(-1, 1, 1, 1)
    return torch.cat([copied + blur * draw(30), draw(10)]), torch.cat([training, training[:twice]])


def _check_third(third_rule):
    import torch

    for seed, channels, scale, twice in ((1, 1, 1.0, 0), (2, 3, 0.2, 0), (3, 3, 5.0, 6)):
        generated, training = _pool(seed, channels, scale, twice)
        right = _third(generated, training)
        got = torch.as_tensor(third_rule(generated.clone(), training.clone()))
        if got.shape != right.shape:
            return failed(
                f"One answer belongs to each of the {len(generated)} generated pictures; yours has the shape "
                f"{tuple(got.shape)}.",
                "Over which pictures do you take the minimum?",
            )
        if not bool(((got == 0) | (got == 1)).all()):
            return failed(
                "These are ratios or distances, not yes or no.", "What is the ratio compared with?"
            )
        got = got.bool()
        if bool((got == right).all()):
            continue
        apart = _apart(generated, training)
        two = apart.topk(2, largest=False).values
        told = (
            (
                _third(generated, training, unique=False),
                "Copies of a training picture that is there twice escape you: its twin is the second nearest, and "
                "just as near.",
                "What should happen to the training pictures before any distance is computed?",
            ),
            (
                _third(generated, training, share=3**-0.5),
                "You flag too many: these are squared distances. One third of the way is one ninth of its square.",
                "Which root is missing?",
            ),
            (
                _third(generated, training, share=1 / 9),
                "You flag too few: you compare distances with one ninth.",
                "Are yours distances or squared distances?",
            ),
            (
                ~right,
                "You flag the pictures that are no copies.",
                "Is a copy nearer or farther than the rest?",
            ),
            (
                two[:, 0] < 1 / 3,
                "You compare the distance with one third itself, so it matters how bright the pictures are.",
                "One third of what?",
            ),
            (
                two[:, 0] < apart.mean(1) / 3,
                "You compare with the mean of all training pictures. They lie much farther than the second nearest.",
                "Which training picture is the yardstick of the rule?",
            ),
            (
                torch.ones_like(right),
                "You call every picture a copy.",
                "On which side of `<` does the third stand?",
            ),
            (
                torch.zeros_like(right),
                "You call no picture a copy, not even an exact one.",
                "What is its ratio?",
            ),
        )
        for wrong, message, question in told:
            if bool((got == wrong).all()):
                return failed(message, question)
        row = int((got != right).nonzero()[0])
        about = (
            ""
            if twice
            else f" Its nearest distances have the ratio {two[row, 0] / two[row, 1]:.2f}."
        )
        return failed(
            f"Picture {row} of a pool {'is' if right[row] else 'is not'} a copy by the rule; you say the opposite."
            f"{about}",
            "Which two distances does the rule compare for this picture?",
        )
    return passed("A copy stands out: it is much nearer to one training picture than to any other.")


# -- 09.2 -------------------------------------------------------------------------------------------------------------
def _confirmed(pictures, training):
    """The share of pictures that a pixel-wise Q-N confirms: nearer than mean - std / 2, and correlated above 0.8."""
    import torch

    own = _apart(training, training).fill_diagonal_(float("inf")).min(1).values
    near, row = _apart(pictures, training).min(1)
    a, b = (
        x.flatten(1).double() - x.flatten(1).double().mean(1, keepdim=True)
        for x in (pictures, training[row])
    )
    alike = torch.nn.functional.cosine_similarity(a, b)
    return float(((near < own.mean() - own.std() / 2) & (alike > 0.8)).double().mean())


def _scenes(seed, number=40):
    """Smooth pictures without symmetry: (number, 3, 12, 12) in [-1, 1]."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(number, 3, 4, 4, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(12, 12), mode="bilinear")


def _roughness(pictures):
    return float(pictures.diff(dim=-1).abs().mean())


def _check_disguise(disguised):
    import torch

    training = _scenes(4)
    got = disguised(training.clone())
    if not torch.is_tensor(got) or got.shape != training.shape:
        return failed(
            f"The answer must be as many pictures of the same shape, {tuple(training.shape)}.",
            "Which of the four axes should change, and which stay?",
        )
    turned = [training.rot90(k, (2, 3)) for k in (1, 2, 3)] + [training.mT, training.mT.flip(2, 3)]
    known = (
        (
            training,
            "These are the pictures as they were; the detector confirms every one.",
            "What could be swapped?",
        ),
        (
            training.flip(0),
            "You changed the order of the pictures, and each is still there as it was.",
            "Which axis of (N, C, H, W) is left and right?",
        ),
        (
            training.flip(1),
            "You swapped red and blue: a person sees other colours.",
            "Which axis holds the columns?",
        ),
        *(
            (x, "You turned the pictures: a person notices.", "Which axis holds the columns?")
            for x in turned
        ),
        (
            training.flip(2),
            "You turned the pictures upside down: a person notices.",
            "Which axis holds the columns?",
        ),
        (
            -training,
            "These are negatives: a person notices.",
            "Can you leave all values as they are, elsewhere?",
        ),
    )
    for other, message, question in known:
        if torch.allclose(got, other, atol=1e-5):
            return failed(message, question)
    values, before = (x.flatten(2).sort().values for x in (got, training))
    if not torch.allclose(values.to(before), before, atol=0.02):
        return failed(
            "The pictures hold other values than before. The fewer of them stay, the less was copied.",
            "Can you leave every value as it is and only move it?",
        )
    if _roughness(got) > 1.3 * _roughness(training):
        return failed(
            "Pixels that were neighbours no longer are: a person sees noise.",
            "Which way of moving pixels do people hardly notice?",
        )
    found = _confirmed(got, training)
    if found > 0.1:
        still = f"The detector still confirms {found:.0%} of the copies."
        return failed(still, "How far did you move things, and how many?")
    return passed(
        f"Every picture is a copy, and the detector on pixels confirms {found:.0%} of them."
    )


# -- 09.3 -------------------------------------------------------------------------------------------------------------
def _crops(a, b, dy, dx):
    """The parts of a and b (C, H, W) that lie on each other when b is moved by (dy, dx)."""
    h, w = a.shape[-2:]
    return (
        x[:, max(y, 0) : h + min(y, 0), max(z, 0) : w + min(z, 0)]
        for x, y, z in ((a, dy, dx), (b, -dy, -dx))
    )


def _robust(
    a, b, reach=2, mirror=True, both=True, signs=(-1, 1), best=min, total=False, roll=False
):
    """The root-mean-square distance at the best shift and mirror; the options make the typical mistakes."""
    import torch

    found = []
    for flipped in (False, True)[: 1 + mirror]:
        other = b.flip(-1) if flipped else b
        steps = range(-reach if -1 in signs else 0, reach + 1) if both or not flipped else (0,)
        for dy in steps:
            for dx in steps:
                x, y = (
                    (a, torch.roll(other, (dy, dx), (-2, -1))) if roll else _crops(a, other, dy, dx)
                )
                squares = (x - y).double().square()
                found.append(float((squares.sum() if total else squares.mean()).sqrt()))
    return best(found)


def _check_robust(robust_distance):
    import torch

    cases = []
    scenes, others = _scenes(6, 12), _scenes(7, 12)
    for row, (flipped, dy, dx) in enumerate(
        (
            (False, 0, 0),
            (True, 0, 0),
            (False, 2, 1),
            (False, -2, -2),
            (True, 1, -2),
            (True, -2, 0),
            (False, 0, 2),
        )
    ):
        a, b = scenes[row], (scenes[row].flip(-1) if flipped else scenes[row])
        moved = others[row].clone()  # what enters the picture at the edge is new
        to, of = _crops(moved, b, dy, dx)
        to.copy_(of)
        cases.append(
            (f"{'mirrored, ' if flipped else ''}moved by {dy} down and {dx} right", a, moved)
        )
    cases += [("another picture", a, b) for a, b in zip(scenes[8:], others[8:], strict=True)]

    def all_of(distance):
        return torch.tensor([float(distance(a.clone(), b.clone())) for _, a, b in cases]).double()

    try:
        got = all_of(robust_distance)
    except (TypeError, ValueError, RuntimeError):
        return failed(
            "The answer must be one number, the least distance.",
            "Over what do you take the minimum?",
        )
    right = all_of(_robust)
    if torch.allclose(got, right, atol=1e-5):
        return passed(
            "Whoever moves or mirrors a copy is found now. Which disguise would you try next?"
        )
    told = (
        (
            {"reach": 0, "mirror": False},
            "This is the plain distance: neither mirrored nor moved copies are found.",
            "Which pictures could `b` have been made from, one by one?",
        ),
        (
            {"reach": 0},
            "Mirrored copies are found, moved ones are not.",
            "Which shifts do you try?",
        ),
        (
            {"mirror": False},
            "Moved copies are found, mirrored ones are not.",
            "What does `b.flip(-1)` give?",
        ),
        (
            {"both": False},
            "A copy that was mirrored and moved escapes: you try one or the other.",
            "How many combinations of mirror and shift are there?",
        ),
        ({"reach": 1}, "You move by one pixel at most.", "How far does `range(-2, 3)` go?"),
        ({"signs": (1,)}, "You move down and right only.", "Which shifts are missing?"),
        (
            {"roll": True},
            "What leaves on one side comes in on the other, and is compared with something new there.",
            "Which part of the two pictures shows the same, and which should be left out?",
        ),
        (
            {"total": True},
            "You sum over the pixels. Whoever moves farther compares fewer of them, and looks nearer.",
            "By what do you divide?",
        ),
        (
            {"best": max},
            "This is the worst match, not the best.",
            "Which of all the distances is the copy's?",
        ),
    )
    for mistake, message, question in told:
        if torch.allclose(
            got, all_of(lambda a, b, mistake=mistake: _robust(a, b, **mistake)), atol=1e-5
        ):
            return failed(message, question)
    if torch.allclose(got, right.square(), atol=1e-5):
        return failed("These are squared distances.", "What is the root in root-mean-square for?")
    row = int((got - right).abs().argmax())
    return failed(
        f"For a picture that is {cases[row][0]} the distance is {right[row]:.3f}; yours says {got[row]:.3f}.",
        "Which rows and columns of the two pictures lie on each other there?",
    )


EXERCISES = (
    Exercise(
        key="09.1",
        title="The one-third rule",
        dots=2,
        minutes=8,
        check=_check_third,
        hints=(
            "Two distances decide for each generated picture: to the nearest training picture and to the next.",
            "`torch.cdist` of the flattened pictures gives all distances; `topk(2, largest=False)` the two smallest. "
            "And what if a training picture is there twice?",
            "`torch.unique(training, dim=0)` leaves each training picture once. Then compare column 0 with a third of "
            "column 1.",
        ),
        solution="""
def third_rule(generated, training):
    import torch

    training = torch.unique(training, dim=0)  # a twin would be the second nearest
    distances = torch.cdist(generated.flatten(1), training.flatten(1))  # (N, M)
    nearest = distances.topk(2, largest=False).values  # (N, 2)
    return nearest[:, 0] < nearest[:, 1] / 3
""",
    ),
    Exercise(
        key="09.2",
        title="A copy in disguise",
        dots=1,
        minutes=5,
        check=_check_disguise,
        hints=(
            "The detector compares pixel with pixel. A person looks at what is in the picture.",
            "Swap left and right: the last axis of (N, C, H, W) holds the columns.",
            "`pictures.flip(...)` with the number of that axis.",
        ),
        solution="""
def disguised(pictures):
    return pictures.flip(-1)
""",
    ),
    Exercise(
        key="09.3",
        title="A distance that sees through it",
        dots=3,
        minutes=15,
        check=_check_robust,
        hints=(
            "Try every way in which `b` could have been made from `a`: mirrored or not, moved by -2 to 2 pixels in "
            "both directions. Keep the least distance.",
            "To move by dy rows, compare the rows of `a` from dy on with the rows of `b` that end dy earlier; for a "
            "negative dy it is the other way round. So with the columns.",
            "`a[:, max(dy, 0):h + min(dy, 0), max(dx, 0):w + min(dx, 0)]` lies on "
            "`b[:, max(-dy, 0):h - max(dy, 0), max(-dx, 0):w - max(dx, 0)]`. The mean square of their difference, its "
            "root, and the least of all.",
        ),
        solution="""
def robust_distance(a, b):
    h, w = a.shape[-2:]
    found = []
    for other in (b, b.flip(-1)):
        for dy in range(-2, 3):
            for dx in range(-2, 3):  # only where the two pictures overlap
                of_a = a[:, max(dy, 0) : h + min(dy, 0), max(dx, 0) : w + min(dx, 0)]
                of_b = other[:, max(-dy, 0) : h - max(dy, 0), max(-dx, 0) : w - max(dx, 0)]
                found.append(float((of_a - of_b).square().mean().sqrt()))
    return min(found)
""",
    ),
)

RECALL = [
    (
        "What does membership inference ask of a model?",
        [
            "to draw a training picture",
            "whether a given picture was in the training data",
            "who trained it",
        ],
        1,
        "The attacker has the picture already. Whether the model has seen it is what leaks.",
    ),
    (
        "An attack is judged by its true-positive rate at 1 % false positives. Why not by its share of right guesses?",
        [
            "it is faster",
            "few sure accusations do harm, many half-guesses do not",
            "it needs no non-members",
        ],
        1,
        "One person named with certainty is a leak, even where the guesses about all others are no better than chance.",
    ),
    (
        "In DP-SGD every picture's gradient is clipped, and noise is added. What does that bound?",
        [
            "how much one picture can change the model",
            "the size of the model",
            "the number of pictures",
        ],
        0,
        "What one picture can't change can't be read off either: neither its membership nor a copy of it.",
    ),
]
