"""The exercises of lab 05: the rate of a link, the shortest round, and rounding that is right on average.

Shannon 1948; Yang et al. 2019 (arXiv 1911.02417) on the shortest round; Alistarh et al. 2017 (arXiv 1610.02132).
"""

from fedgen_lab.exercises.checks import Exercise, failed, passed


def _check_rate(rate):
    import numpy as np

    rng = np.random.default_rng(11)
    bands, reaches = 10 ** rng.uniform(5, 8, 6), 10 ** rng.uniform(5, 9, 6)
    right = bands * np.log2(1 + reaches / bands)
    got = np.array([float(rate(float(b), float(r))) for b, r in zip(bands, reaches, strict=True)])

    def near(other):
        return np.allclose(got, other, rtol=1e-6)

    if near(right):
        return passed(
            "With ever more band the rate ends at reach / ln 2: the same power, spread over more noise."
        )
    if near(right * np.log(2)):
        return failed(
            "This counts in natural units, not in bits.",
            "Which base has a logarithm that counts bits?",
        )
    if near(bands * np.log2(1 + reaches)):
        return failed(
            "A signal over the noise of one hertz is not the signal over the noise in the whole band.",
            "If the band doubles, what becomes of the noise in it?",
        )
    if near(bands * np.log2(reaches / bands)):
        return failed(
            "Where noise and signal are equally strong the rate must not be zero.",
            "What is added to SNR?",
        )
    if near(np.log2(1 + reaches / bands)):
        return failed("These are bits per second and hertz.", "How many hertz are there?")
    if near(bands * np.log2(1 + bands / reaches)):
        return failed(
            "Here a stronger signal is slower.",
            "Which of the two is the signal and which the noise?",
        )
    return failed(
        f"In a band of 1 MHz with a reach of 1 MHz the rate is 1 Mbit/s; yours says {float(rate(1e6, 1e6)):g}.",
        "How strong is the signal over the noise there?",
    )


def _check_shortest(shortest_round):
    import numpy as np

    def cell(seed):
        rng = np.random.default_rng(seed)
        ready, bits = rng.uniform(1, 5, 5), rng.uniform(1, 9, 5)

        def needed(finish):  # efficiency one: bits / time is the band
            return float(np.sum(bits / (finish - ready))) if finish > ready.max() else float("inf")

        return needed, 3.0, float(ready.max()), 1000.0

    asked, limit = [], 20_000
    for seed in range(4):
        needed, band, early, late = cell(seed)

        def counted(finish, needed=needed):
            asked.append(finish)
            if len(asked) > limit:
                raise RuntimeError("needed was asked more than 20,000 times")
            return needed(finish)

        right = early, late
        for _ in range(80):
            middle = sum(right) / 2
            right = (right[0], middle) if needed(middle) <= band else (middle, right[1])
        try:
            got = float(shortest_round(counted, band, early, late))
        except RuntimeError as error:
            if "20,000" not in str(error):
                raise
            return failed(
                "It never ends, or goes in tiny steps.",
                "By how much does each question shrink what is left?",
            )
        if np.isclose(got, right[1], rtol=1e-3):
            continue
        if np.isclose(got, early, rtol=1e-3) or np.isclose(got, late, rtol=1e-3):
            return failed(
                f"Your answer ran to an end of the interval, {got:.4g} s.",
                "If the band needed at the middle is too much, must the round be longer or shorter?",
            )
        if np.isclose(got, (early + late) / 2, rtol=1e-3):
            return failed(
                "That is the middle after a single step.",
                "What do you do with the half that is left?",
            )
        return failed(
            f"At your {got:.4g} s the clients need a band of {needed(got):.3g}, and there are {band:g}.",
            "When may you stop halving?",
        )
    return passed(
        f"All clients finish together, and it took about {len(asked) // 4} questions: each halves the doubt."
    )


def _check_rounding(round_by_chance):
    import numpy as np

    rng = np.random.default_rng(5)
    x = np.array([0.0, 0.25, -0.25, 2.9, -7.5, 3.0])
    chance = rng.random((20_000, len(x)))
    got = np.array([round_by_chance(x.copy(), row) for row in chance[:4]])
    if got.shape != (4, len(x)):
        return failed(
            "The result must have the shape of x.",
            "What does one call get, and what should it give back?",
        )
    if not np.array_equal(got, np.round(got)):
        return failed("Not all results are whole numbers.", "Which whole numbers lie next to 2.9?")
    got = np.asarray(round_by_chance(np.broadcast_to(x, chance.shape).copy(), chance), float)
    if (np.abs(got - x) >= 1).any():
        return failed(
            f"{x[np.abs(got - x).max(0).argmax()]:g} was rounded past its two neighbours.",
            "Between which two whole numbers may you choose?",
        )
    mean = got.mean(0)
    if np.allclose(mean, x, atol=0.02):
        return passed(
            "Every single result is off, and their mean is right: the errors of many clients cancel."
        )
    if (got == got[0]).all():
        return failed(
            f"Chance decides nothing: 0.25 always becomes {got[0, 1]:g}, and so does the mean of many.",
            "How often should 0.25 become 1, so that the mean is 0.25?",
        )
    if np.allclose(
        mean - np.floor(x),
        np.where(x == np.floor(x), mean - np.floor(x), 1 - (x - np.floor(x))),
        atol=0.02,
    ):
        return failed(
            "0.25 is rounded up three times of four.",
            "How often should it go up, if the mean is to be 0.25?",
        )
    if np.allclose(
        mean - np.floor(x), np.where(x == np.floor(x), mean - np.floor(x), 0.5), atol=0.02
    ):
        return failed(
            "0.25 goes up and down equally often, as if it were 0.5.",
            "Which part of x says how often?",
        )
    worst = np.abs(mean - x).argmax()
    return failed(
        f"On average {x[worst]:g} becomes {mean[worst]:.3g}.",
        "Have you tried numbers below zero, and whole numbers?",
    )


EXERCISES = (
    Exercise(
        key="05.1",
        title="The rate of a link",
        dots=1,
        minutes=5,
        check=_check_rate,
        hints=(
            "Reach is the band over which the noise is as strong as the signal. How strong is the signal in your band?",
            "The signal over the noise in a band of `bandwidth_hz` is reach_hz / bandwidth_hz.",
            "Shannon: hertz, times the logarithm to base 2 of one plus that ratio. `math.log2` is there.",
        ),
        solution="""
def rate(bandwidth_hz, reach_hz):
    import math

    return bandwidth_hz * math.log2(1 + reach_hz / bandwidth_hz)
""",
    ),
    Exercise(
        key="05.2",
        title="The shortest round",
        dots=2,
        minutes=10,
        check=_check_shortest,
        hints=(
            "The longer the round may last, the less band the clients need. Ask for the time half-way.",
            "Too much band needed: the answer lies in the later half, so `early` moves. Otherwise `late` moves.",
            "Repeat fifty times: `middle = (early + late) / 2`, compare `needed(middle)` with the band, move one end.",
        ),
        solution="""
def shortest_round(needed, band_hz, early, late):
    for _ in range(50):
        middle = (early + late) / 2
        if needed(middle) <= band_hz:
            late = middle
        else:
            early = middle
    return late
""",
    ),
    Exercise(
        key="05.3",
        title="Rounding by chance",
        dots=2,
        minutes=8,
        check=_check_rounding,
        hints=(
            "0.25 should become 1 once in four times, and 0 otherwise. `chance` lies evenly between 0 and 1.",
            "Go up where `chance` is in the last quarter: where 0.25 + chance reaches 1.",
            "What does rounding down do to x + chance?",
        ),
        solution="""
def round_by_chance(x, chance):
    import numpy as np

    return np.floor(x + chance)
""",
    ),
)

RECALL = [
    (
        "The server averages A and B one by one. What does it miss?",
        ["nothing", "how A and B vary together over the clients", "the scale of the adapter"],
        1,
        "The mean of the products B A is not the product of the means; the covariance of the factors is missing.",
    ),
    (
        "FLoRA stacks the adapters of K clients, which is exact. What is its price?",
        ["K times as many bytes down", "K times as many bytes up", "K times as many rounds"],
        0,
        "Everyone uploads its own factors, but the stack of all of them goes down to everyone.",
    ),
    (
        "A synchronous round begins. When does it end?",
        [
            "when half of the clients have answered",
            "after the mean client's time",
            "when the last upload has arrived",
        ],
        2,
        "The average needs all uploads, so the straggler sets the pace.",
    ),
]
