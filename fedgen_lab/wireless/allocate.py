"""Rates and shares of a band, once a link is one number: how fast it is, and who gets how much of the uplink.

The number is its *reach*: P g / N0, the band in hertz over which the noise is as strong as the signal
(`channel.reach_hz`). Taught in lab 05. Rate: Shannon 1948; 3GPP TS 38.214, table 5.2.2.1-2 (CQI). The band that just
carries S bits in a given time has a closed form with Lambert's W, and the shortest round follows by bisection: the idea
of Yang et al., "Energy efficient federated learning over wireless communication networks" (arXiv 1911.02417).
"""

import numpy as np

# The 15 ways of modulation and coding that a receiver may ask for by its channel quality indicator (CQI 1 to 15), in
# bits per second and hertz: TS 38.214 table 5.2.2.1-2. Each needs a signal-to-noise ratio, in dB; the standard leaves
# that open, and these are the values in common use.
CQI_EFFICIENCY = np.array(
    [
        0.1523,
        0.2344,
        0.3770,
        0.6016,
        0.8770,
        1.1758,
        1.4766,
        1.9141,
        2.4063,
        2.7305,
        3.3223,
        3.9023,
        4.5234,
        5.1152,
        5.5547,
    ]
)
CQI_NEEDS_DB = np.array(
    [-6.7, -4.7, -2.3, 0.2, 2.4, 4.3, 5.9, 8.1, 10.3, 11.7, 14.1, 16.3, 18.7, 21.0, 22.7]
)
_CQI_NEEDS = 10 ** (CQI_NEEDS_DB / 10)  # (15,): as plain ratios
_CQI_CEILING = CQI_EFFICIENCY / _CQI_NEEDS  # (15,): rate / reach that a line can't exceed; falling


# -- rates ----------------------------------------------------------------------------------------------------------
def rate_in(band_hz, reach_hz, rate_law):
    """Bits per second in a band: Shannon's b log2(1 + reach / b), or the best line of the CQI table. See `rate_bps`."""
    if rate_law == "shannon":
        return band_hz * np.log1p(reach_hz / band_hz) / np.log(2)
    # Line i works in any band up to reach / (the ratio it needs): (..., 15).
    fillable = np.minimum(
        np.asarray(band_hz)[..., None], np.asarray(reach_hz)[..., None] / _CQI_NEEDS
    )
    return (CQI_EFFICIENCY * fillable).max(-1)


def limit_bps(reach_hz, rate_law):
    """The rate that no band exceeds: reach / ln 2 after Shannon, less with the CQI table."""
    return np.asarray(reach_hz) * (1 / np.log(2) if rate_law == "shannon" else _CQI_CEILING[0])


def band_for(bits, seconds, reach_hz, rate_law):
    """The smallest band, in hertz, that carries `bits` in `seconds`; infinite where no band is enough. Of arrays.

    From bits / seconds = b log2(1 + reach / b) follows, with G = bits ln 2 / (seconds reach),
    b = -bits ln 2 / (seconds (W(-G exp(-G)) + G)) on the branch W_-1 of Lambert's function. Where G >= 1 even an
    endless band would be too slow: the device needs more time, fewer bits or a better place.
    """
    from scipy.special import lambertw

    bits, seconds, reach = _arrays(bits, seconds, reach_hz)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        rate = np.where(seconds > 0, bits / seconds, np.inf)
        if rate_law == "cqi":
            # The highest line of the table that this reach can fill at this rate.
            line = (reach[..., None] * _CQI_CEILING >= rate[..., None]).sum(-1) - 1
            is_possible, band = line >= 0, rate / CQI_EFFICIENCY[line]
        else:
            g = rate * np.log(2) / reach
            is_possible, band = g < 1, -rate * np.log(2) / (lambertw(-g * np.exp(-g), -1).real + g)
    return np.where(bits > 0, np.where(is_possible, band, np.inf), 0.0)


# -- shares ---------------------------------------------------------------------------------------------------------
def equal(bits, band_hz):
    """The same share for each who sends: bits (..., K) -> hertz (..., K), zero for those who send nothing."""
    return proportional(np.asarray(bits) > 0, band_hz)


def proportional(bits, band_hz):
    """Shares like the number of bits to send: bits (..., K) -> hertz (..., K)."""
    bits = np.asarray(bits, float)
    return band_hz * bits / np.maximum(bits.sum(-1, keepdims=True), 1)


def min_max(bits, ready_seconds, reach_hz, band_hz, rate_law):
    """The shares that let the last client finish as early as possible. All arrays (..., K); returns hertz (..., K).

    Client k can begin to send at `ready_seconds`, when it has downloaded and computed. At the best shares all who send
    finish at the same moment T: otherwise one who is early could lend band to the last. For a given T each needs the
    band of `band_for`, the sum falls as T grows, and T is where it meets `band_hz`.
    """
    bits, ready, reach = _arrays(bits, ready_seconds, reach_hz)
    sending = bits > 0

    def needed(end):
        """The band that each client needs to be done at `end`, (...)."""
        return band_for(bits, end[..., None] - ready, reach, rate_law)

    def finish(rate):
        """When the last who sends is done, (...), all of them at these rates."""
        return np.where(sending, ready + bits / rate, 0.0).max(-1)

    # No earlier than anyone's limit for an endless band; no later than everybody's time in an equal share.
    early = finish(limit_bps(reach, rate_law))
    late = finish(rate_in(np.where(sending, equal(bits, band_hz), 1.0), reach, rate_law))
    late = late * (1 + 1e-12)  # so that rounding can't make it too early
    # Halve the span between them until it is nothing: some thirty times.
    while (late - early > 1e-9 * late).any():
        middle = (early + late) / 2
        fits = needed(middle).sum(-1) <= band_hz
        early, late = np.where(fits, early, middle), np.where(fits, middle, late)
    # Where the band is so wide that one client's limit alone decides, rounding may ask for an endless band.
    hertz = np.minimum(needed(late), band_hz)
    return hertz * np.minimum(band_hz / np.maximum(hertz.sum(-1, keepdims=True), 1e-300), 1)


def _arrays(*values):
    """These as arrays of numbers of one shape."""
    return np.broadcast_arrays(*(np.asarray(value, float) for value in values))
