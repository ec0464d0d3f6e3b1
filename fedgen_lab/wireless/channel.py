"""The channel: path loss by distance, fading by luck, and the rate that Shannon allows or that a radio reaches.

Clients stand somewhere in the cell of one base station. Distance, walls and a seeded draw decide how much of the sent
power arrives; from that and from the bandwidth follows the rate. Taught in labs 03 and 05. Path loss: 3GPP TR 38.901,
tables 7.4.1-1 and 7.4.2-1, "UMi - Street Canyon". Rate: Shannon 1948; 3GPP TS 38.214, table 5.2.2.1-2 (CQI).
"""

import math
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd

SPEED_OF_LIGHT = 3.0e8  # m/s, as TR 38.901 rounds it
THERMAL_NOISE_DBM = -174.0  # per hertz, at room temperature
STATION_HEIGHT_M, DEVICE_HEIGHT_M = 10.0, 1.5  # TR 38.901's UMi: a lamp post, a hand
NEAREST_M = 10.0  # the path loss formula starts here
SHADOWING_DB = {True: 4.0, False: 7.82}  # standard deviation with and without line of sight
DEEPEST_FADE = 1e-6  # -60 dB; keeps every time finite
RATE_LAWS, ALLOCATIONS, DOWNLINKS = (
    ("shannon", "cqi"),
    ("equal", "proportional", "min-max"),
    ("unicast", "broadcast"),
)

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


@dataclass(frozen=True)
class Network:
    """One cell: a base station and `num_clients` devices at seeded places.

    The uplink band is shared by the clients that upload in the same step, by `allocation` (see
    `fedgen_lab.wireless.allocate`), and a device sends with all its power in its own share. `downlink` "unicast" shares
    the downlink band and the station's power equally; "broadcast" sends one message once, to all who listen, at the
    rate of the worst of them. `rate_law`: see `rate_bps`. Client i stands at the same place, and sees the same fading
    in round r, however many other clients or rounds there are and whatever the bandwidth.

    Raises ValueError, naming the parameter and its value, when a value makes no sense.
    """

    num_clients: int = 4
    bandwidth_hz: float = (
        5e6  # uplink; at 5 MHz an upload of the tiny adapter is seen beside the computing
    )
    downlink_hz: float = 20e6  # a station has more to say than a device
    cell_radius_m: float = 200.0  # a street
    carrier_hz: float = 3.5e9  # the main band of 5G
    device_power_dbm: float = 23.0  # 0.2 W, the limit of a phone
    station_power_dbm: float = 43.0  # 20 W
    device_noise_figure_db: float = 7.0
    station_noise_figure_db: float = 5.0
    # A round of the tiny model costs about 1.3e11 operations (20 steps, batch 16). On an old phone, at 1e11 a second,
    # that is a second or two: as long as the link takes at 5 MHz, so both show in the Gantt chart.
    flops_per_second: float = 1e11  # the median device
    speed_spread: float = (
        0.5  # standard deviation of ln(speed): of ten, the best is about five times the slowest
    )
    computing_watts: float = 4.0
    receiving_watts: float = 0.5
    fading: bool = True  # Rayleigh, drawn anew for each client in each round
    shadowing: bool = False  # log-normal, drawn once for each client
    seed: int = 0
    rate_law: str = "shannon"  # what no radio can beat; "cqi": what a radio of 5G reaches
    allocation: str = "equal"  # or "proportional" to the bits, or "min-max": the shortest round
    downlink: str = "unicast"  # or "broadcast"
    kappa: float = (
        0.0  # above 0: computing costs kappa x cycles x (cycles a second)^2 joules; 1e-28 is usual
    )
    flops_per_cycle: float = 50.0  # so the median device runs at 2 GHz; only used with kappa

    def __post_init__(self):
        if (
            isinstance(self.num_clients, bool)
            or int(self.num_clients) != self.num_clients
            or self.num_clients < 1
        ):
            raise ValueError(
                f"num_clients must be a whole number of at least 1; got {self.num_clients!r}."
            )
        if int(self.seed) != self.seed or self.seed < 0:
            raise ValueError(f"seed must be a whole number of at least 0; got {self.seed!r}.")
        for name, known in (
            ("rate_law", RATE_LAWS),
            ("allocation", ALLOCATIONS),
            ("downlink", DOWNLINKS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}."
                )
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, str) and not math.isfinite(value):
                raise ValueError(f"{field.name} must be a finite number; got {value!r}.")
        for name in ("bandwidth_hz", "downlink_hz"):
            if not 1 <= getattr(self, name) <= 1e12:
                raise ValueError(
                    f"{name} must lie in [1, 1e12] hertz; got {getattr(self, name)!r}."
                )
        for name in ("device_power_dbm", "station_power_dbm"):
            if not -100 <= getattr(self, name) <= 100:
                raise ValueError(
                    f"{name} must lie in [-100, 100] dBm; got {getattr(self, name)!r}."
                )
        for name in ("flops_per_second", "flops_per_cycle"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be larger than 0; got {getattr(self, name)!r}.")
        for name in ("speed_spread", "computing_watts", "receiving_watts", "kappa"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative; got {getattr(self, name)!r}.")
        if not NEAREST_M <= self.cell_radius_m <= 5000:
            raise ValueError(
                f"cell_radius_m must lie in [10, 5000], where UMi holds; got {self.cell_radius_m!r}."
            )
        if not 0.5e9 <= self.carrier_hz <= 100e9:
            raise ValueError(
                f"carrier_hz must lie in [0.5e9, 100e9], where UMi holds; got {self.carrier_hz!r}."
            )


def path_loss_db(distance_m, carrier_hz, line_of_sight):
    """How much weaker the signal gets over `distance_m` along the ground (10 m to 5 km), in dB. Arrays are welcome.

    3GPP TR 38.901 table 7.4.1-1, UMi - Street Canyon, with d the distance between the antennas and f in GHz: 32.4 +
    21 log d + 20 log f in line of sight up to the breakpoint 4 h h' f / c (210 m at 3.5 GHz), steeper behind it;
    without line of sight 22.4 + 35.3 log d + 21.3 log f, and never less than in line of sight.
    """
    ground, gigahertz = np.asarray(distance_m, float), carrier_hz / 1e9
    distance = np.hypot(ground, STATION_HEIGHT_M - DEVICE_HEIGHT_M)
    breakpoint = 4 * (STATION_HEIGHT_M - 1) * (DEVICE_HEIGHT_M - 1) * carrier_hz / SPEED_OF_LIGHT
    bend = 9.5 * np.log10(breakpoint**2 + (STATION_HEIGHT_M - DEVICE_HEIGHT_M) ** 2)
    near = 32.4 + 21 * np.log10(distance) + 20 * np.log10(gigahertz)
    far = 32.4 + 40 * np.log10(distance) + 20 * np.log10(gigahertz) - bend
    seen = np.where(ground <= breakpoint, near, far)
    unseen = (
        22.4
        + 35.3 * np.log10(distance)
        + 21.3 * np.log10(gigahertz)
        - 0.3 * (DEVICE_HEIGHT_M - 1.5)
    )
    return np.where(line_of_sight, seen, np.maximum(seen, unseen))


def line_of_sight_probability(distance_m):
    """How likely a device at this distance sees the station: TR 38.901 table 7.4.2-1, UMi - Street Canyon."""
    distance = np.maximum(np.asarray(distance_m, float), 18.0)  # nearer than 18 m: always
    return 18 / distance + np.exp(-distance / 36) * (1 - 18 / distance)


def rate_bps(bandwidth_hz, power_dbm, gain, noise_figure_db, rate_law="shannon"):
    """The rate in bit/s in a band; `gain` is the part of the power that arrives. Arrays are welcome.

    "shannon": b log2(1 + P g / (N0 b)), which no radio can beat. "cqi": what a radio of 5G reaches, the best line of
    the CQI table. A device whose signal is too weak for its whole share sends in a part of it, as real ones do.

    More bandwidth always helps, but less and less: for b -> infinity Shannon's rate ends at P g / (N0 ln 2), because
    the same power is spread over more noise. No bandwidth saves a device that is too far away.
    """
    if rate_law == "shannon":
        return (
            bandwidth_hz
            * np.log1p(signal_to_noise(bandwidth_hz, power_dbm, gain, noise_figure_db))
            / math.log(2)
        )
    reach = np.asarray(reach_hz(power_dbm, gain, noise_figure_db))[..., None]
    # Line i works in any band up to reach / (the ratio it needs): (..., 15).
    fillable = np.minimum(np.asarray(bandwidth_hz)[..., None], reach / 10 ** (CQI_NEEDS_DB / 10))
    return (CQI_EFFICIENCY * fillable).max(-1)


def signal_to_noise(bandwidth_hz, power_dbm, gain, noise_figure_db):
    """Received power over the noise in the band, as a plain ratio: P g / (N0 b)."""
    noise_per_hertz = 10 ** ((THERMAL_NOISE_DBM + noise_figure_db) / 10)  # mW
    return 10 ** (power_dbm / 10) * gain / (noise_per_hertz * bandwidth_hz)


def reach_hz(power_dbm, gain, noise_figure_db):
    """P g / N0: the band over which the noise is as strong as the signal. All of a link in one number, in hertz."""
    return signal_to_noise(1.0, power_dbm, gain, noise_figure_db)


def place_clients(network):
    """Where the clients stand and how fast they compute; one row per client.

    Columns: client, distance_m, x_m, y_m, line_of_sight, path_loss_db (with shadowing, if any), flops_per_second.
    """
    draws = np.array(
        [rng.random(3) for rng in _generators(network, 0)]
    )  # (K, 3): radius, angle, line of sight
    normals = np.array(
        [rng.standard_normal(2) for rng in _generators(network, 1)]
    )  # (K, 2): shadowing, speed
    # The square root spreads clients evenly over the area of the ring between 10 m and the edge of the cell.
    inner, outer = NEAREST_M**2, network.cell_radius_m**2
    distance, angle = np.sqrt(inner + draws[:, 0] * (outer - inner)), 2 * np.pi * draws[:, 1]
    seen = draws[:, 2] < line_of_sight_probability(distance)
    loss = path_loss_db(distance, network.carrier_hz, seen)
    if network.shadowing:
        loss = loss + normals[:, 0] * np.where(seen, SHADOWING_DB[True], SHADOWING_DB[False])
    return pd.DataFrame(
        {
            "client": np.arange(network.num_clients),
            "distance_m": distance,
            "x_m": distance * np.cos(angle),
            "y_m": distance * np.sin(angle),
            "line_of_sight": seen,
            "path_loss_db": loss,
            "flops_per_second": network.flops_per_second
            * np.exp(network.speed_spread * normals[:, 1]),
        }
    )


def fading_gains(network, rounds):
    """Rayleigh fading: the factor |h|^2 ~ Exp(1) by which power rises or falls. (K, rounds, 2): uplink, downlink."""
    if not network.fading:
        return np.ones((network.num_clients, rounds, 2))
    gains = np.array([rng.standard_exponential((rounds, 2)) for rng in _generators(network, 2)])
    return np.maximum(gains, DEEPEST_FADE)


def _generators(network, what):
    """One generator per client and purpose, so that no draw depends on how many others there are."""
    keys = [
        np.random.SeedSequence(network.seed, spawn_key=(client, what))
        for client in range(network.num_clients)
    ]
    return [np.random.default_rng(key) for key in keys]
