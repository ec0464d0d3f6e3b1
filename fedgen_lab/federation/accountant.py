"""What noise is worth: the epsilon and delta of a run whose sums are clipped and noisy.

Lab 08. z, the noise multiplier, is the noise's deviation in units of what one client (or picture) can change at most.
What it buys is an epsilon, always together with a delta and the accountant that found it.
"""

import math
import warnings
from functools import lru_cache
from typing import NamedTuple

DELTA = 1e-5  # of every guarantee: the chance that epsilon doesn't hold
TIGHT_UP_TO = 50.0  # epsilon; beyond it no promise is left to be tight about


class Spent(NamedTuple):
    """A guarantee: (epsilon, delta)-differential privacy under adding or removing one client (or picture)."""

    epsilon: float
    delta: float
    accountant: str  # "exact", "prv" or "rdp"

    def __str__(self):
        return (
            f"epsilon = {self.epsilon:.3g} at delta = {self.delta:g} ({self.accountant} accountant)"
        )


def privacy_spent(noise_multiplier, releases, sample_rate=1.0):
    """What `releases` noisy sums cost together, each over a random share `sample_rate` of the clients (or pictures).

    The accountant is the tightest that fits: "exact" (`exact_epsilon`) for sample_rate 1; else "prv" up to epsilon 50
    and "rdp" beyond (`sampled_epsilon`). No noise is epsilon infinity. Returns a `Spent` at DELTA.
    Raises ValueError for arguments out of range.
    """
    if not noise_multiplier >= 0 or not releases >= 0 or not 0 < sample_rate <= 1:
        raise ValueError(
            "Privacy needs noise_multiplier and releases of at least 0 and sample_rate in (0, 1]; "
            f"got {noise_multiplier!r}, {releases!r} and {sample_rate!r}."
        )
    accountant = "exact" if sample_rate == 1 else "prv"
    if noise_multiplier in (0, math.inf) or releases == 0:
        epsilon = math.inf if releases and not noise_multiplier else 0.0
    elif accountant == "exact":
        epsilon = exact_epsilon(noise_multiplier, releases, DELTA)
    else:
        # PRV's grid would outgrow a small machine where there is hardly any privacy.
        epsilon = sampled_epsilon("rdp", noise_multiplier, releases, sample_rate, DELTA)
        if epsilon > TIGHT_UP_TO:
            accountant = "rdp"
        else:
            epsilon = sampled_epsilon("prv", noise_multiplier, releases, sample_rate, DELTA)
    return Spent(epsilon, DELTA, accountant)


def spent_by(scenario, rounds):
    """The guarantee of `rounds` rounds of a `Scenario` with noise; None where it has none."""
    return privacy_spent(scenario.noise_multiplier, rounds) if scenario.noise_multiplier else None


def exact_epsilon(noise_multiplier, releases, delta):
    """The epsilon of `releases` noisy sums over everybody, which together are one Gaussian mechanism.

    Closed form of delta(epsilon), solved for epsilon: Balle & Wang, arXiv 1805.06530, theorem 8.
    """
    from scipy.optimize import brentq
    from scipy.special import log_ndtr, ndtr

    ratio = math.sqrt(releases) / noise_multiplier  # of what one user can change to the noise

    def excess(epsilon):
        # delta(epsilon) = Phi(r/2 - eps/r) - e^eps Phi(-r/2 - eps/r), minus the delta that is allowed
        likelier = ndtr(ratio / 2 - epsilon / ratio)
        # the exponent is at most 0, but for rounding
        return likelier - math.exp(min(epsilon + log_ndtr(-ratio / 2 - epsilon / ratio), 0)) - delta

    if excess(0.0) <= 0:
        return 0.0
    upper = ratio**2 / 2 + ratio * math.sqrt(2 * math.log(1 / delta)) + 1
    return brentq(excess, 0.0, upper)


@lru_cache(maxsize=256)  # each takes up to a second
def sampled_epsilon(accountant, noise_multiplier, releases, sample_rate, delta):
    """The epsilon by one of Opacus's accountants, where each client (or picture) is drawn by its own coin.

    "prv": the distribution of the privacy loss, convolved numerically (Gopi et al., arXiv 2106.02848), an upper bound
    within 0.02 of the truth. "rdp": Renyi moments (Mironov, arXiv 1702.07476), looser.
    """
    with warnings.catch_warnings():
        # Opacus speaks of the orders it tries and of logarithms of zero.
        warnings.simplefilter("ignore")
        from opacus.accountants import create_accountant

        account = create_accountant(accountant)
        account.history = [(float(noise_multiplier), float(sample_rate), int(releases))]
        return max(float(account.get_epsilon(delta)), 0.0)
