"""Who gets how much of the band: the shares sum to it, and the min-max shares can't be beaten."""

import numpy as np
import pytest

from fedgen_lab.wireless.allocate import band_for, equal, limit_bps, min_max, proportional
from fedgen_lab.wireless.channel import rate_bps, reach_hz

BAND = 5e6
RATE_LAWS = ("shannon", "cqi")


def clients(seed, number=8):
    """Bits, seconds until ready and reach of some clients in an ordinary cell."""
    rng = np.random.default_rng(seed)
    return (
        rng.uniform(1e5, 8e6, number),
        rng.uniform(0.2, 4, number),
        10 ** rng.uniform(6.5, 10, number),
    )


def rate(band, reach, law="shannon"):
    """The channel's own rate at this reach, so that the two modules are held against each other."""
    return rate_bps(band, 0.0, reach / reach_hz(0.0, 1.0, 0.0), 0.0, law)


def test_reach_is_the_band_at_which_noise_equals_signal():
    assert rate(3e6, 3e6) == pytest.approx(3e6)  # a ratio of one carries one bit a second and hertz


@pytest.mark.parametrize("share", [equal, proportional])
def test_simple_shares_sum_to_the_band_and_leave_the_silent_out(share):
    bits = np.array([[1e6, 3e6, 0.0], [0.0, 0.0, 5.0], [0.0, 0.0, 0.0]])
    hertz = share(bits, BAND)
    assert np.allclose(hertz.sum(1), [BAND, BAND, 0]) and (hertz[bits == 0] == 0).all()
    assert np.allclose(
        hertz[0], [BAND / 2, BAND / 2, 0] if share is equal else [BAND / 4, 3 * BAND / 4, 0]
    )


@pytest.mark.parametrize("law", RATE_LAWS)
@pytest.mark.parametrize("seed", range(5))
def test_the_closed_form_carries_the_bits_in_exactly_the_time_given(seed, law):
    bits, seconds, reach = clients(seed)
    seconds = np.maximum(seconds, 1.5 * bits / limit_bps(reach, law))
    band = band_for(bits, seconds, reach, law)
    assert np.allclose(rate(band, reach, law) * seconds / bits, 1, rtol=1e-9)
    if law == "shannon":  # the smallest such band: a little less is too little
        assert (rate(band * 0.999, reach) * seconds < bits).all()


@pytest.mark.parametrize("seed", range(5))
def test_with_min_max_shares_all_clients_finish_together_and_use_the_whole_band(seed):
    bits, ready, reach = clients(seed)
    band = min_max(bits, ready, reach, BAND, "shannon")
    finish = ready + bits / rate(band, reach)
    assert np.ptp(finish) < 1e-6 * finish.max()
    assert band.sum() == pytest.approx(BAND, rel=1e-6) and band.sum() <= BAND


@pytest.mark.parametrize("seed", range(3))
def test_min_max_is_what_a_numerical_optimiser_finds(seed):
    from scipy.optimize import minimize

    bits, ready, reach = clients(seed, 4)

    def finish(band):
        return ready + bits / rate(band * 1e6, reach)

    start = [BAND / 4e6] * 4 + [finish(np.full(4, BAND / 4e6)).max()]
    found = minimize(
        lambda x: x[-1],
        start,
        method="SLSQP",
        bounds=[(1e-3, None)] * 5,
        options={"ftol": 1e-12, "maxiter": 500},
        constraints=[
            {"type": "ineq", "fun": lambda x: BAND / 1e6 - x[:-1].sum()},
            {"type": "ineq", "fun": lambda x: x[-1] - finish(x[:-1])},
        ],
    )
    ours = min_max(bits, ready, reach, BAND, "shannon") / 1e6
    assert found.success
    assert finish(ours).max() == pytest.approx(found.x[-1], rel=1e-5)
    assert np.allclose(ours, found.x[:-1], rtol=1e-2)


@pytest.mark.parametrize("law", RATE_LAWS)
@pytest.mark.parametrize("seed", range(5))
def test_no_other_shares_end_the_round_earlier(seed, law):
    bits, ready, reach = clients(seed)
    best = (ready + bits / rate(min_max(bits, ready, reach, BAND, law), reach, law)).max()
    rng = np.random.default_rng(seed)
    tries = [equal(bits, BAND), proportional(bits, BAND), *(BAND * rng.dirichlet(np.ones(8), 50))]
    assert all(best <= (ready + bits / rate(band, reach, law)).max() * (1 + 1e-9) for band in tries)


def test_bandwidth_cannot_save_a_client_that_is_too_far_away():
    bits, ready, reach = clients(0)
    reach[3] = 1e4
    floor = ready[3] + bits[3] * np.log(2) / 1e4
    for band in (BAND, 1000 * BAND):
        hertz = min_max(bits, ready, reach, band, "shannon")
        assert (ready + bits / rate(hertz, reach)).max() >= floor


@pytest.mark.parametrize("law", RATE_LAWS)
def test_who_sends_nothing_gets_nothing_and_holds_nobody_up(law):
    bits, ready, reach = clients(1)
    bits[2], ready[2] = 0.0, 1e6
    hertz = min_max(bits, ready, reach, BAND, law)
    assert hertz[2] == 0 and np.isfinite(hertz).all()
    others = np.arange(8) != 2
    assert np.allclose(
        hertz[others], min_max(bits[others], ready[others], reach[others], BAND, law)
    )
    assert (min_max(np.zeros(3), np.ones(3), np.full(3, 1e8), BAND, law) == 0).all()


def test_many_rounds_at_once_are_the_same_rounds_one_by_one():
    rounds = [clients(seed) for seed in range(6)]
    together = min_max(*(np.stack(column) for column in zip(*rounds, strict=True)), BAND, "shannon")
    assert np.allclose(together, [min_max(*one, BAND, "shannon") for one in rounds], rtol=1e-6)


@pytest.mark.parametrize("law", RATE_LAWS)
def test_no_band_is_enough_for_a_time_that_is_too_short(law):
    limit = limit_bps(1e4, law)
    band = band_for(np.array([0.999, 1.001]) * limit, 1.0, 1e4, law)
    assert np.isfinite(band[0]) and band[1] == np.inf
    assert band_for(1e6, 0.0, 1e9, law) == np.inf
