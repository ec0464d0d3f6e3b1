"""The recall questions, predictions and exercises of lab 02: noising, one step of sampling, merging a LoRA adapter.

Forward process: Ho et al. 2020, arXiv 2006.11239, eq. 4. Deterministic sampling: Song et al. 2021 (DDIM), arXiv
2010.02502, eq. 12, written with velocities (Salimans and Ho 2022, arXiv 2202.00512). LoRA: Hu et al. 2021, arXiv
2106.09685, section 4.
"""

from fedgen_lab.exercises.checks import Exercise, failed, passed

RECALL = [
    (
        "A client holds three times as many pictures as another. How much does its upload count in FedAvg?",
        ["As much as the other's", "Three times as much", "A third as much"],
        1,
        "Uploads are weighted by the number of pictures behind them.",
    ),
    (
        "What makes averaging hurt?",
        [
            "Clients that hold different things and train long in between",
            "Many rounds",
            "Few pictures a client",
        ],
        0,
        "They drift apart, and the average of far-apart models is good at nothing.",
    ),
    (
        "A model has a million 32-bit weights. How large is one client's upload?",
        ["One megabyte", "Four megabytes", "That depends on its pictures"],
        1,
        "Four bytes a weight, whatever the pictures. This lab makes uploads smaller.",
    ),
]
GUESSES = {  # what `predict` asks in the lab: the question and the options
    "words": ("Which caption is nearer?", ["the same words in another order", "one word replaced"]),
    "half": (
        "At which level is half of the variance noise?",
        ["about 100", "about 350", "about 500"],
    ),
    "lie": (
        "At level 700 under the wrong caption: what does it believe in?",
        ["the hidden picture", "the caption", "a mixture of both"],
    ),
    "first": (
        "How many of 16 first beliefs show everything asked for?",
        ["none", "up to half", "more than half"],
    ),
    "guidance": (
        "What rises for sure, from guidance 1 to 7?",
        ["prompts that come out right", "colours at the end of their range"],
    ),
    "bytes": (
        "How much smaller than the UNet is the adapter?",
        ["2 times", "20 times", "1,000 times"],
    ),
    "old": (
        "After the training, what happens to the old objects?",
        ["they stay as they were", "some become umbrellas", "all become umbrellas"],
    ),
}
TOLERANCE = 1e-4


def _latents(seed):
    """A clean latent and some noise, both (2, 4, 8, 8) with unit spread, the same for the same seed."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 4, 8, 8, generator=generator), torch.randn(
        2, 4, 8, 8, generator=generator
    )


def _near(value, expected):
    return value.shape == expected.shape and float((value - expected).abs().max()) < TOLERANCE


def _shape_verdict(value, expected, what):
    """A failed verdict when `value` is no tensor of `expected`'s shape, else None."""
    import torch

    if not isinstance(value, torch.Tensor):
        return failed(
            f"The answer must be a tensor; yours is a {type(value).__name__}.",
            "What does your last line return?",
        )
    if value.shape != expected.shape:
        return failed(
            f"The answer must have {what}, {tuple(expected.shape)}; yours has {tuple(value.shape)}.",
            "Which operation in your function changes the shape?",
        )
    return None


# -- 02.1 noise -------------------------------------------------------------------------------------------------------
def _check_noised(noised):
    import torch

    clean, noise = _latents(1)
    kept = torch.tensor(0.36)
    before = clean.clone(), noise.clone()
    value = noised(clean, noise, kept)
    wrong_shape = _shape_verdict(value, clean, "the latent's shape")
    if wrong_shape:
        return wrong_shape
    if not (torch.equal(clean, before[0]) and torch.equal(noise, before[1])):
        return failed(
            "Your function changes the tensors it is given.",
            "Which of your operations works in place?",
        )
    if _near(value, noise.mul(0.6) + clean.mul(0.8)) or not _near(
        noised(clean, noise, torch.tensor(1.0)), clean
    ):
        return failed(
            "With kept = 1 nothing is lost: the clean latent itself must come back. Yours is something else.",
            "Which of the two tensors does `kept` belong to, and what is left of the other when kept is 1?",
        )
    if not _near(noised(clean, noise, torch.tensor(0.0)), noise):
        return failed(
            "With kept = 0 nothing but noise is left, and yours keeps something else.",
            "What must the clean latent be multiplied by when kept is 0, and the noise?",
        )
    if not abs(float(value.std()) - 1) < 0.1:
        return failed(
            f"Latent and noise have a spread of 1, and so must the mixture; yours has {float(value.std()):.2f}.",
            "`kept` is a share of the variance. What happens to a variance when you multiply a tensor by a number?",
        )
    for seed, share in ((2, 0.09), (3, 0.81)):
        clean, noise = _latents(seed)
        if not _near(
            noised(clean, noise, torch.tensor(share)),
            share**0.5 * clean + (1 - share) ** 0.5 * noise,
        ):
            return failed(
                f"At kept = {share} the mixture is not the one of the formula above.",
                "What are the two factors at kept = 0.81, as numbers, and what are yours?",
            )
    return passed(
        "Picture and noise trade places while the spread stays at 1: the UNet sees the same range at every level."
    )


# -- 02.2 one step of sampling ----------------------------------------------------------------------------------------
def _check_step(ddim_step):
    import torch

    def mixture(clean, noise, kept):
        return kept.sqrt() * clean + (1 - kept).sqrt() * noise

    def velocity(clean, noise, kept):
        return kept.sqrt() * noise - (1 - kept).sqrt() * clean

    one = torch.tensor(1.0)
    for seed, share in ((4, 0.64), (5, 0.2)):
        clean, noise = _latents(seed)
        now = torch.tensor(share)
        noisy, true = mixture(clean, noise, now), velocity(clean, noise, now)
        value = ddim_step(noisy, true, now, one)
        wrong_shape = _shape_verdict(value, noisy, "the latent's shape")
        if wrong_shape:
            return wrong_shape
        if _near(value, now.sqrt() * noisy + (1 - now).sqrt() * true):
            return failed(
                "Stepping to kept = 1 must end at the clean latent; yours adds the velocity where it has to go.",
                "Put noisy = a x + s e and velocity = a e - s x into a noisy - s velocity: what is left?",
            )
        if _near(value, now * noisy - (1 - now) * true):
            return failed(
                "Stepping to kept = 1 must end at the clean latent; your two factors do not fit.",
                "Are `kept` and `1 - kept` shares of the variance or the factors themselves?",
            )
        if not _near(value, clean):
            return failed(
                "Given the true velocity, stepping to kept = 1 must end at the clean latent exactly. Yours does not.",
                "Which sum of `noisy` and `velocity` has no noise left in it?",
            )
        further = ddim_step(noisy, true, now, torch.tensor(0.9))
        if not torch.equal(further, ddim_step(noisy, true, now, torch.tensor(0.9))):
            return failed(
                "Two calls with the same arguments give two results: your step draws fresh noise.",
                "The noise in `noisy` is known once the velocity is. How do you get it out?",
            )
        if _near(further, clean):
            return failed(
                "Your step always ends at the clean latent, wherever kept_next says to stop.",
                "What has to be put back, and how much of it, to stand at the level kept_next?",
            )
        if _near(further, mixture(clean, noisy, torch.tensor(0.9))):
            return failed(
                "You put the noisy latent back where the noise belongs.",
                "Which sum of `noisy` and `velocity` has no picture left in it?",
            )
        if not _near(further, mixture(clean, noise, torch.tensor(0.9))):
            return failed(
                "Your clean latent is right, but at kept_next = 0.9 the noise beside it is not the one in `noisy`.",
                "How is the noise a sum of `noisy` and `velocity`? With the true velocity it must be exact.",
            )
        if not _near(ddim_step(noisy, true, now, now), noisy):
            return failed(
                "A step from a level to itself must change nothing.",
                "Which of your factors belongs to which level?",
            )
    return passed(
        "That is DDIM: believe, then go back to a little less noise. The same seed gives the same picture."
    )


# -- 02.3 merging -----------------------------------------------------------------------------------------------------
def _check_merge(merge):
    import torch

    weight = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]])  # (out 2, in 3)
    a, b = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[10.0], [20.0]])  # rank 1
    before = weight.clone()
    value = merge(weight, a, b, 1)
    wrong_shape = _shape_verdict(value, weight, "the weight's shape")
    if wrong_shape:
        return wrong_shape
    if not torch.equal(weight, before):
        return failed(
            "Your function writes into `weight`: the base model is changed for good.",
            "Which operation makes a new tensor, and which one works in place?",
        )
    if not _near(merge(weight, a, torch.zeros_like(b), 1), weight):
        return failed(
            "With B = 0 the merged weight must be the base weight.",
            "What is your product when one factor is zero?",
        )
    if not _near(value, before + torch.tensor([[10.0, 20.0, 30.0], [20.0, 40.0, 60.0]])):
        return failed(
            f"For A = [[1, 2, 3]], B = [[10], [20]] and alpha = 1, yours adds {(value - before).tolist()}.",
            "Which entries of B and A meet in row 2, column 3 of the product, and what else do you add or multiply by?",
        )
    generator = torch.Generator().manual_seed(6)
    weight = torch.randn(5, 7, generator=generator)
    a, b = torch.randn(3, 7, generator=generator), torch.randn(5, 3, generator=generator)
    value = merge(weight, a, b, 6)
    if _near(value, weight + b @ a):
        return failed(
            "With alpha twice the rank the adapter must count twice; yours ignores alpha.",
            "By which number is the product B A scaled?",
        )
    if _near(value, weight + 6 * (b @ a)):
        return failed(
            "Rank 3 and alpha 6 must scale by 2; yours scales by alpha itself.",
            "Why would doubling the rank at a fixed alpha otherwise make the adapter louder?",
        )
    for wrong in (5, 7):
        if _near(value, weight + 6 / wrong * (b @ a)):
            return failed(
                f"You divide alpha by {wrong}, which is a size of the layer and not the rank.",
                "A is (rank, in) and B is (out, rank): which of its sizes is the rank?",
            )
    if not _near(value, weight + 2 * (b @ a)):
        return failed(
            "At rank 3 and alpha 6 the sum is not W + 2 B A.",
            "What are your scale and your product there?",
        )
    return passed("Merged, the adapter costs nothing when drawing: one layer, as large as before.")


EXERCISES = (
    Exercise(
        key="02.1",
        title="Noise a latent",
        dots=1,
        minutes=5,
        check=_check_noised,
        hints=(
            "What must come out when `kept` is 1, and when it is 0? Two factors decide it.",
            "`kept` is the share of the variance that stays. A factor f multiplies a variance by f squared.",
            "The factors are `kept**0.5` for the clean latent and `(1 - kept)**0.5` for the noise.",
        ),
        solution="""
def noised(clean, noise, kept):
    return kept**0.5 * clean + (1 - kept) ** 0.5 * noise
""",
    ),
    Exercise(
        key="02.2",
        title="One step of DDIM",
        dots=3,
        minutes=15,
        check=_check_step,
        hints=(
            "Three parts: what is the clean latent, what is the noise, and how are the two mixed at the next level?",
            "Call the factors a and s: noisy = a clean + s noise, velocity = a noise - s clean, and a² + s² = 1. "
            "Solve these two equations for clean and for noise.",
            "clean = a noisy - s velocity; noise = s noisy + a velocity. Mix them with the factors of `kept_next`.",
        ),
        solution="""
def ddim_step(noisy, velocity, kept_now, kept_next):
    a, s = kept_now**0.5, (1 - kept_now) ** 0.5
    clean = a * noisy - s * velocity
    noise = s * noisy + a * velocity
    return kept_next**0.5 * clean + (1 - kept_next) ** 0.5 * noise
""",
    ),
    Exercise(
        key="02.3",
        title="Merge an adapter into its layer",
        dots=2,
        minutes=10,
        check=_check_merge,
        hints=(
            "Compute W + (alpha / rank) B A. In which order must the factors stand so that the shapes fit?",
            "B is (out, rank), A is (rank, in), so B A has the shape of W. The rank is a size of A.",
            "`b @ a` is the product, `len(a)` the rank; return a new tensor rather than writing into `weight`.",
        ),
        solution="""
def merge(weight, a, b, alpha):
    return weight + alpha / len(a) * (b @ a)
""",
    ),
)
