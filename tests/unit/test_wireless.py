"""The channel against numbers worked out by hand from TR 38.901 and Shannon's formula."""

import math
from dataclasses import replace

import numpy as np
import pytest

from fedgen_lab.wireless.allocate import CQI_EFFICIENCY, CQI_NEEDS_DB
from fedgen_lab.wireless.channel import (
    Network,
    fading_gains,
    line_of_sight_probability,
    path_loss_db,
    place_clients,
    rate_bps,
    reach_hz,
    signal_to_noise,
)

CARRIER = 3.5e9


def test_path_loss_at_100_m_is_the_standards():
    # d3D = sqrt(100^2 + 8.5^2) = 100.3606 m
    # LOS: 32.4 + 21 * 2.001563 + 20 * 0.544068 = 85.3142; NLOS: 22.4 + 35.3 * 2.001563 + 21.3 * 0.544068 = 104.6438
    assert path_loss_db(100, CARRIER, True) == pytest.approx(85.3142, abs=1e-3)
    assert path_loss_db(100, CARRIER, False) == pytest.approx(104.6438, abs=1e-3)


def test_behind_the_breakpoint_the_loss_grows_with_the_fourth_power():
    # breakpoint 4 * 9 * 0.5 * 3.5e9 / 3e8 = 210 m. At 400 m, d3D = 400.0903 m:
    # 32.4 + 40 * 2.602158 + 10.8814 - 9.5 * log10(210^2 + 8.5^2) = 32.4 + 104.0863 + 10.8814 - 44.1281 = 103.2396
    assert path_loss_db(400, CARRIER, True) == pytest.approx(103.2396, abs=1e-3)


def test_the_two_pieces_meet_at_the_breakpoint():
    assert path_loss_db(209.99, CARRIER, True) == pytest.approx(
        path_loss_db(210.01, CARRIER, True), abs=0.1
    )


def test_without_line_of_sight_the_loss_is_never_smaller():
    distances = np.linspace(10, 5000, 500)
    assert (path_loss_db(distances, CARRIER, False) >= path_loss_db(distances, CARRIER, True)).all()


def test_line_of_sight_gets_rarer_with_distance():
    assert line_of_sight_probability(10) == 1 and line_of_sight_probability(18) == 1
    assert line_of_sight_probability(100) == pytest.approx(0.18 + math.exp(-100 / 36) * 0.82)
    assert (np.diff(line_of_sight_probability(np.linspace(18, 500, 100))) < 0).all()


def test_the_rate_is_shannons():
    # 1 MHz, 23 dBm, 100 dB of loss, NF 5: -77 dBm over -174 + 5 + 60 = -109 dBm is 32 dB, a ratio of 1584.89
    assert rate_bps(1e6, 23, 1e-10, 5) == pytest.approx(1e6 * math.log2(1 + 10**3.2))


def test_bandwidth_without_end_gives_only_p_g_over_n0_ln_2():
    noise_per_hertz = 10 ** ((-174 + 5) / 10)  # mW
    limit = 10**2.3 * 1e-13 / (noise_per_hertz * math.log(2))
    assert rate_bps(1e12, 23, 1e-13, 5) == pytest.approx(limit, rel=1e-3)
    assert rate_bps(1e9, 23, 1e-13, 5) < limit


def test_more_bandwidth_is_never_slower():
    bands = np.logspace(0, 12, 200)
    assert (np.diff(rate_bps(bands, 23, 1e-11, 5)) > 0).all()


def test_the_cqi_rate_is_the_tables_line_for_the_ratio_in_the_band():
    for ratio_db, line in ((-6.7, 0), (4.3, 5), (5.8, 5), (22.7, 14), (60.0, 14)):
        gain = 10 ** (ratio_db / 10) / signal_to_noise(1e6, 0, 1.0, 5) * (1 + 1e-12)
        assert rate_bps(1e6, 0, gain, 5, "cqi") >= 1e6 * CQI_EFFICIENCY[line] * (1 - 1e-9)
        if ratio_db in (-6.7, 22.7, 60.0):  # at the ends of the table no narrower band does better
            assert rate_bps(1e6, 0, gain, 5, "cqi") == pytest.approx(1e6 * CQI_EFFICIENCY[line])


def test_no_line_of_the_cqi_table_beats_shannon():
    assert (CQI_EFFICIENCY < np.log2(1 + 10 ** (CQI_NEEDS_DB / 10))).all()
    bands, gains = np.meshgrid(np.logspace(2, 9, 60), np.logspace(-16, -7, 60))
    shannon, cqi = (rate_bps(bands, 23, gains, 5, law) for law in ("shannon", "cqi"))
    assert (cqi < shannon).all() and (cqi > 0).all()


def test_a_weak_signal_fills_only_a_part_of_its_band():
    # 20 dB below what the lowest line needs in 1 MHz: the lowest line still works in a hundredth of it
    gain = 10 ** (-26.7 / 10) / signal_to_noise(1e6, 0, 1.0, 5)
    assert rate_bps(1e6, 0, gain, 5, "cqi") == pytest.approx(1e4 * CQI_EFFICIENCY[0])
    assert rate_bps(1e9, 0, gain, 5, "cqi") == pytest.approx(1e4 * CQI_EFFICIENCY[0])


def test_at_its_reach_a_signal_is_as_strong_as_the_noise():
    assert signal_to_noise(reach_hz(23, 1e-11, 5), 23, 1e-11, 5) == pytest.approx(1)


NO_SIONNA = "sionna-no-rt is not installed: nothing to compare with"


def test_the_cqi_table_is_made_of_sionnas_lines_of_modulation_and_coding():
    torch = pytest.importorskip("torch")
    sionna = pytest.importorskip("sionna.phy.nr.utils", reason=NO_SIONNA)
    lines = {
        int(order) * float(rate)
        for table in (1, 3)
        for order, rate in zip(
            *sionna.decode_mcs_index(torch.arange(29), table, is_pusch=False), strict=True
        )
    }
    assert all(
        min(abs(line - efficiency) for line in lines) < 1e-4 for efficiency in CQI_EFFICIENCY
    )


@pytest.mark.parametrize("seen", [True, False])
def test_path_loss_and_line_of_sight_are_sionnas(seen):
    torch = pytest.importorskip("torch")
    tr38901 = pytest.importorskip("sionna.phy.channel.tr38901", reason=NO_SIONNA)
    antenna = tr38901.Antenna(
        polarization="single",
        polarization_type="V",
        antenna_pattern="omni",
        carrier_frequency=CARRIER,
    )
    scenario = tr38901.UMiScenario(
        CARRIER, "low", antenna, antenna, "uplink", enable_shadow_fading=False
    )
    distances = np.array([20.0, 100, 205, 215, 400, 1500])
    devices = torch.tensor([[[d, 0.0, 1.5] for d in distances]], dtype=torch.float32)  # (1, K, 3)
    still, inside = torch.zeros_like(devices), torch.zeros(1, len(distances), dtype=torch.bool)
    station = torch.tensor([[[0.0, 0.0, 10.0]]])
    scenario.set_topology(devices, station, still, torch.zeros_like(station), still, inside, seen)
    assert np.allclose(
        scenario.basic_pathloss.numpy().ravel(), path_loss_db(distances, CARRIER, seen), atol=0.02
    )
    assert np.allclose(
        scenario.los_probability.numpy().ravel(), line_of_sight_probability(distances), atol=1e-4
    )


def test_a_client_stands_at_the_same_place_however_many_others_there_are():
    few, many = place_clients(Network(3, seed=7)), place_clients(Network(30, seed=7))
    assert few.equals(many.iloc[:3])
    assert np.array_equal(
        fading_gains(Network(3, seed=7), 5), fading_gains(Network(30, seed=7), 9)[:3, :5]
    )


def test_another_seed_is_another_place():
    assert not place_clients(Network(seed=0)).equals(place_clients(Network(seed=1)))


def test_clients_stand_inside_the_cell_and_spread_evenly_over_its_area():
    distance = place_clients(Network(2000)).distance_m
    assert distance.min() >= 10 and distance.max() <= 200
    assert np.median(distance) == pytest.approx(200 / math.sqrt(2), rel=0.05)


def test_rayleigh_fading_has_mean_one_and_deep_fades():
    gains = fading_gains(Network(50), 200)
    assert gains.mean() == pytest.approx(1, abs=0.02)
    assert (gains < 0.1).mean() == pytest.approx(1 - math.exp(-0.1), abs=0.01)
    assert (fading_gains(Network(2, fading=False), 3) == 1).all()


def test_shadowing_moves_the_path_loss_only_when_asked_for():
    plain, shadowed = place_clients(Network(500)), place_clients(Network(500, shadowing=True))
    difference = (shadowed.path_loss_db - plain.path_loss_db)[~plain.line_of_sight]
    assert difference.std() == pytest.approx(7.82, rel=0.1) and abs(difference.mean()) < 1


def test_equal_devices_have_no_spread():
    assert place_clients(Network(5, speed_spread=0)).flops_per_second.nunique() == 1


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("num_clients", 0),
        ("num_clients", 1.5),
        ("bandwidth_hz", 0),
        ("bandwidth_hz", float("inf")),
        ("bandwidth_hz", -5e6),
        ("downlink_hz", float("nan")),
        ("cell_radius_m", 5),
        ("device_power_dbm", 1e6),
        ("flops_per_second", 0),
        ("speed_spread", -1),
        ("seed", -1),
        ("rate_law", "nyquist"),
        ("allocation", "fair"),
        ("downlink", "multicast"),
        ("kappa", -1e-28),
    ],
)
def test_a_senseless_value_is_an_error_that_names_the_knob(knob, value):
    with pytest.raises(ValueError, match=knob):
        Network(**{knob: value})


def test_a_network_is_changed_by_replacing_it():
    assert replace(Network(), bandwidth_hz=1e6).bandwidth_hz == 1e6
