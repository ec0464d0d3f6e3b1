"""Who gets how much of the uplink: in equal parts, by bits, or so that the round is as short as it can be.

A link is one number here, its *reach*: P g / N0, the band in hertz over which the noise is as strong as the signal
(`channel.reach_hz`). Shannon's rate in a band b is then b log2(1 + reach / b). Taught in lab 05. The band that just
carries S bits in a given time has a closed form with Lambert's W, and the shortest round follows by bisection: the idea
of Yang et al., "Energy efficient federated learning over wireless communication networks" (arXiv 1911.02417).
"""

import numpy as np

from fedgen_lab.wireless.channel import CQI_EFFICIENCY, CQI_NEEDS_DB

_CQI_CEILING = CQI_EFFICIENCY / 10 ** (
    CQI_NEEDS_DB / 10
)  # (15,): rate / reach that a line can't exceed; falling


def equal(bits, band_hz):
    """The same share for each who sends: bits (..., K) -> hertz (..., K), zero for those who send nothing."""
    sending = np.asarray(bits) > 0
    return band_hz * sending / np.maximum(sending.sum(-1, keepdims=True), 1)


def proportional(bits, band_hz):
    """Shares like the number of bits to send: bits (..., K) -> hertz (..., K)."""
    bits = np.asarray(bits, float)
    return band_hz * bits / np.maximum(bits.sum(-1, keepdims=True), 1)


def min_max(bits, ready_seconds, reach_hz, band_hz, rate_law="shannon"):
    """The shares that let the last client finish as early as possible. All arrays (..., K); returns hertz (..., K).

    Client k can begin to send at `ready_seconds`, when it has downloaded and computed. At the best shares all who send
    finish at the same moment T: otherwise one who is early could lend band to the last. For a given T each needs the
    band of `band_for`, the sum falls as T grows, and T is where it meets `band_hz`.
    """
    bits, ready, reach = np.broadcast_arrays(
        *(np.asarray(x, float) for x in (bits, ready_seconds, reach_hz))
    )
    sending = bits > 0

    def band(finish):  # infinite where the time is too short for any band
        seconds = np.where(sending, finish[..., None] - ready, 1.0)
        return np.where(sending, _band(bits, seconds, reach, rate_law), 0.0)

    # No earlier than anyone's limit for an endless band; no later than everybody's time in an equal share.
    early = np.where(sending, ready + bits / limit_bps(reach, rate_law), 0.0).max(-1)
    share = np.where(sending, equal(bits, band_hz), 1.0)
    late = np.where(sending, ready + bits / _rate(share, reach, rate_law), 0.0).max(-1)
    late = late * (1 + 1e-12)  # so that rounding can't make it too early
    while (late - early > 1e-9 * late).any():  # some thirty halvings
        middle = (early + late) / 2
        fits = band(middle).sum(-1) <= band_hz
        early, late = np.where(fits, early, middle), np.where(fits, middle, late)
    # Where the band is so wide that one client's limit alone decides, rounding may ask for an endless band.
    hertz = np.minimum(band(late), band_hz)
    return hertz * np.minimum(band_hz / np.maximum(hertz.sum(-1, keepdims=True), 1e-300), 1)


def band_for(bits, seconds, reach_hz, rate_law="shannon"):
    """The smallest band, in hertz, that carries `bits` in `seconds`; arrays are welcome.

    From bits / seconds = b log2(1 + reach / b) follows, with G = bits ln 2 / (seconds reach),
    b = -bits ln 2 / (seconds (W(-G exp(-G)) + G)) on the branch W_-1 of Lambert's function. Raises ValueError where
    G >= 1: even an endless band would be too slow, so the device needs more time, fewer bits or a better place.
    """
    bits, seconds, reach = np.broadcast_arrays(
        *(np.asarray(x, float) for x in (bits, seconds, reach_hz))
    )
    limit = limit_bps(reach, rate_law)
    with np.errstate(divide="ignore"):
        needed = np.where(bits > 0, bits / np.maximum(seconds, 0), 0.0)
    late = np.argwhere(np.atleast_1d(needed >= limit))
    if len(late):
        which = tuple(late[0]) if needed.ndim else ()
        where = f"Client {late[0][-1]}" if needed.ndim else "The client"
        raise ValueError(
            f"{where} can't send {bits[which]:.4g} bits in {seconds[which]:.4g} s: no band gives it more than "
            f"{limit[which]:.4g} bit/s. Give it more time, fewer bits or a better channel."
        )
    return np.where(bits > 0, _band(bits, seconds, reach, rate_law), 0.0)[()]


def limit_bps(reach_hz, rate_law="shannon"):
    """The rate that no band exceeds: reach / ln 2 after Shannon, less with the CQI table."""
    return np.asarray(reach_hz) * (1 / np.log(2) if rate_law == "shannon" else _CQI_CEILING[0])


def _rate(band, reach, rate_law):
    """Bits per second in a band, as `channel.rate_bps` has it."""
    if rate_law == "shannon":
        return band * np.log1p(reach / band) / np.log(2)
    return (
        CQI_EFFICIENCY * np.minimum(band[..., None], reach[..., None] / 10 ** (CQI_NEEDS_DB / 10))
    ).max(-1)


def _band(bits, seconds, reach, rate_law):
    """`band_for` without its check: infinite where no band is enough."""
    from scipy.special import lambertw

    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        rate = np.where(seconds > 0, bits / seconds, np.inf)
        if rate_law == "cqi":  # the highest line of the table that this reach can fill at this rate
            line = (reach[..., None] * _CQI_CEILING >= rate[..., None]).sum(-1) - 1
            return np.where(line >= 0, rate / CQI_EFFICIENCY[np.maximum(line, 0)], np.inf)
        g = np.where(rate * np.log(2) < reach, rate * np.log(2) / reach, np.nan)
        return np.nan_to_num(
            -rate * np.log(2) / (lambertw(-g * np.exp(-g), -1).real + g), nan=np.inf
        )
