"""The radio: path loss by distance, fading by luck, the rate that follows, and the seconds and joules of an exchange.

Clients stand somewhere in the cell of one base station. Distance, walls and a seeded draw decide how much of the sent
power arrives; from that and from the bandwidth follows the rate, and from the bytes how long an exchange takes. Taught
in labs 03 and 05. Path loss: 3GPP TR 38.901, tables 7.4.1-1 and 7.4.2-1, "UMi - Street Canyon". Rates and shares of the
band: `fedgen_lab.wireless.allocate`.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from fedgen_lab.knobs import Knobs, knob
from fedgen_lab.wireless.allocate import equal, min_max, proportional, rate_in

SPEED_OF_LIGHT = 3.0e8  # m/s, as TR 38.901 rounds it
THERMAL_NOISE_DBM = -174.0  # per hertz, at room temperature
STATION_HEIGHT_M, DEVICE_HEIGHT_M = 10.0, 1.5  # TR 38.901's UMi: a lamp post, a hand
NEAREST_M = 10.0  # the path loss formula starts here
SHADOWING_DB = (4.0, 7.82)  # standard deviation with and without line of sight
DEEPEST_FADE = 1e-6  # -60 dB; keeps every time finite
CARRIER_HZ = 3.5e9  # the main band of 5G; UMi holds from 0.5 to 100 GHz
DEVICE_NOISE_FIGURE_DB = 7.0
RECEIVING_WATTS, COMPUTING_WATTS = 0.5, 4.0  # of a device
FLOPS_PER_CYCLE = 50.0  # with kappa: so the median device runs at 2 GHz
ALLOCATIONS = ("equal", "proportional", "min-max")


@dataclass(frozen=True)
class Network(Knobs):
    """One cell: a base station and `num_clients` devices at seeded places.

    The uplink band is shared by the clients that upload in the same step, by `allocation` (see
    `fedgen_lab.wireless.allocate`), and a device sends with all its power in its own share. `downlink` "unicast" shares
    the downlink band and the station's power equally; "broadcast" sends one message once, to all who listen, at the
    rate of the worst of them. `rate_law`: see `rate_bps`. Client i stands at the same place, and sees the same fading
    in round r, however many other clients or rounds there are and whatever the bandwidth.

    Raises ValueError, naming the parameter and its value, when a value makes no sense.
    """

    num_clients: int = knob(4, 1)
    # At 5 MHz an upload of the tiny adapter is seen beside the computing.
    bandwidth_hz: float = knob(5e6, 1, 1e12, words="The uplink band, in hertz.")
    downlink_hz: float = knob(20e6, 1, 1e12)  # a station has more to say than a device
    cell_radius_m: float = knob(200.0, NEAREST_M, 5000, words="There UMi holds.")  # a street
    device_power_dbm: float = knob(23.0, -100, 100)  # 0.2 W, the limit of a phone
    station_power_dbm: float = knob(43.0, -100, 100)  # 20 W
    station_noise_figure_db: float = knob(5.0)
    # A round of the tiny model costs about 1.3e11 operations (20 steps, batch 16). On an old phone, at 1e11 a second,
    # that is a second or two: as long as the link takes at 5 MHz, so both show in the Gantt chart.
    flops_per_second: float = knob(1e11, above=0, words="Of the median device.")
    speed_spread: float = knob(  # of ten, the best is about five times the slowest
        0.5, 0, words="Standard deviation of ln(speed)."
    )
    fading: bool = knob(True, words="Rayleigh, drawn anew for each client in each round.")
    shadowing: bool = knob(False, words="Log-normal, drawn once for each client.")
    seed: int = knob(0, 0, 2**32 - 1)
    rate_law: str = knob(
        "shannon",
        options=("shannon", "cqi"),
        words="shannon: what no radio beats; cqi: what 5G reaches.",
    )
    allocation: str = knob(
        "equal",
        options=ALLOCATIONS,
        words="proportional: to the bits; min-max: the shortest round.",
    )
    downlink: str = knob("unicast", options=("unicast", "broadcast"))
    kappa: float = knob(  # 1e-28 is usual
        0.0,
        0,
        words="Computing costs kappa x cycles x (cycles a second)^2 joules; 0: power x time.",
    )

    def check_fits(self, num_clients, reason):
        """Raises ValueError, with the reason, when there are more clients than the network has."""
        if num_clients > self.num_clients:
            raise ValueError(
                f"{reason}, but the network has only {self.num_clients} clients; give it num_clients={num_clients}."
            )


def path_loss_db(distance_m, carrier_hz, line_of_sight):
    """How much weaker the signal gets over `distance_m` along the ground (10 m to 5 km), in dB. Arrays are welcome.

    3GPP TR 38.901 table 7.4.1-1, UMi - Street Canyon, with d the distance between the antennas and f in GHz: 32.4 +
    21 log d + 20 log f in line of sight up to the breakpoint 4 h h' f / c (210 m at 3.5 GHz), steeper behind it;
    without line of sight 22.4 + 35.3 log d + 21.3 log f, and never less than in line of sight.
    """
    ground, height = np.asarray(distance_m, float), STATION_HEIGHT_M - DEVICE_HEIGHT_M
    log_d, log_f = np.log10(np.hypot(ground, height)), np.log10(carrier_hz / 1e9)
    # In sight of the station, before and behind the breakpoint.
    breakpoint = 4 * (STATION_HEIGHT_M - 1) * (DEVICE_HEIGHT_M - 1) * carrier_hz / SPEED_OF_LIGHT
    near = 32.4 + 21 * log_d + 20 * log_f
    far = 32.4 + 40 * log_d + 20 * log_f - 9.5 * np.log10(breakpoint**2 + height**2)
    seen = np.where(ground <= breakpoint, near, far)
    # Out of its sight, with a device at 1.5 m.
    unseen = 22.4 + 35.3 * log_d + 21.3 * log_f
    return np.where(line_of_sight, seen, np.maximum(seen, unseen))


def line_of_sight_probability(distance_m):
    """How likely a device at this distance sees the station: TR 38.901 table 7.4.2-1, UMi - Street Canyon."""
    distance = np.maximum(distance_m, 18.0)  # nearer than 18 m: always
    return 18 / distance + np.exp(-distance / 36) * (1 - 18 / distance)


def rate_bps(bandwidth_hz, power_dbm, gain, noise_figure_db, rate_law="shannon"):
    """The rate in bit/s in a band; `gain` is the part of the power that arrives. Arrays are welcome.

    "shannon": b log2(1 + P g / (N0 b)), which no radio can beat. "cqi": what a radio of 5G reaches, the best line of
    the CQI table. A device whose signal is too weak for its whole share sends in a part of it, as real ones do.

    More bandwidth always helps, but less and less: for b -> infinity Shannon's rate ends at P g / (N0 ln 2), because
    the same power is spread over more noise. No bandwidth saves a device that is too far away.
    """
    return rate_in(bandwidth_hz, reach_hz(power_dbm, gain, noise_figure_db), rate_law)


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
    # Luck, (K,) each: where a client stands, and whether it is in sight; its shadowing and speed.
    area, turn, sight = np.array([rng.random(3) for rng in _generators(network, 0)]).T
    shadow, skill = np.array([rng.standard_normal(2) for rng in _generators(network, 1)]).T
    # The square root spreads clients evenly over the area of the ring between 10 m and the edge of the cell.
    inner, outer = NEAREST_M**2, network.cell_radius_m**2
    distance, angle = np.sqrt(inner + area * (outer - inner)), 2 * np.pi * turn
    # What is lost on the way.
    seen = sight < line_of_sight_probability(distance)
    loss = path_loss_db(distance, CARRIER_HZ, seen)
    if network.shadowing:
        loss = loss + shadow * np.where(seen, *SHADOWING_DB)
    return pd.DataFrame(
        {
            "client": np.arange(network.num_clients),
            "distance_m": distance,
            "x_m": distance * np.cos(angle),
            "y_m": distance * np.sin(angle),
            "line_of_sight": seen,
            "path_loss_db": loss,
            "flops_per_second": network.flops_per_second * np.exp(network.speed_spread * skill),
        }
    )


def fading_gains(network, rounds):
    """Rayleigh fading: the factor |h|^2 ~ Exp(1) by which power rises or falls. (K, rounds, 2): uplink, downlink."""
    if not network.fading:
        return np.ones((network.num_clients, rounds, 2))
    gains = np.array([rng.standard_exponential((rounds, 2)) for rng in _generators(network, 2)])
    return np.maximum(gains, DEEPEST_FADE)


def _generators(network, purpose):
    """One generator per client and purpose, so that no draw depends on how many others there are."""
    for client in range(network.num_clients):
        yield np.random.default_rng(
            np.random.SeedSequence(network.seed, spawn_key=(client, purpose))
        )


# -- an exchange: download, compute, upload -------------------------------------------------------------------------
def phase_seconds(network, clients, rounds, bytes_down, flops, bytes_up):
    """How long clients download, compute and upload: (3, E, K) seconds for E exchanges of K clients.

    clients: `place_clients(network)`; rounds: (E,) whole numbers, which decide the fading; the rest: (E, K). This is
    the whole clock of a synchronous round, for those who need it while a run goes on.
    """
    # How much of the power arrives: path loss and this round's fading.
    fading = fading_gains(network, int(rounds.max(initial=0)) + 1)[:, rounds]  # (K, E, 2)
    gain = 10 ** (-clients["path_loss_db"].to_numpy() / 10) * fading.transpose(2, 1, 0)  # (2, E, K)
    download = _download_seconds(network, gain[1], bytes_down)
    compute = flops / clients["flops_per_second"].to_numpy()
    # Those who upload share the band, and each sends with all its power in its share.
    bits = 8 * bytes_up
    reach = reach_hz(network.device_power_dbm, gain[0], network.station_noise_figure_db)
    if network.allocation == "equal":
        band = equal(bits, network.bandwidth_hz)
    elif network.allocation == "proportional":
        band = proportional(bits, network.bandwidth_hz)
    else:
        band = min_max(bits, download + compute, reach, network.bandwidth_hz, network.rate_law)
    band = np.where(band > 0, band, 1.0)  # who sends nothing has no band, and any rate will do
    upload = bits / rate_in(band, reach, network.rate_law)
    return np.stack([download, compute, upload])


def _download_seconds(network, gain, bytes_down):
    """Seconds to download, (E, K): side by side, or one broadcast of the largest message to all who listen."""
    is_listening = bytes_down > 0
    power, band = network.station_power_dbm, network.downlink_hz
    if network.downlink == "unicast":
        # The station's power is shared like its band.
        shares = np.maximum(is_listening.sum(1, keepdims=True), 1)
        power, band = power - 10 * np.log10(shares), band / shares
    rate = rate_bps(band, power, gain, DEVICE_NOISE_FIGURE_DB, network.rate_law)
    if network.downlink == "broadcast":
        # The largest message goes out once, at the rate of the worst of those who listen.
        rate = np.where(is_listening, rate, np.inf).min(1, keepdims=True)
        bytes_down = is_listening * bytes_down.max(1, keepdims=True)
    return 8 * bytes_down / rate


def phase_joules(network, clients, flops, seconds):
    """What the devices spend, (3, E, K): power times time, or kappa x cycles x (cycles a second)^2 for computing."""
    transmitting_watts = 10 ** (network.device_power_dbm / 10) / 1000
    watts = np.array([RECEIVING_WATTS, COMPUTING_WATTS, transmitting_watts])
    joules = seconds * watts[:, None, None]
    if network.kappa > 0:
        hertz = clients["flops_per_second"].to_numpy() / FLOPS_PER_CYCLE  # (K,)
        joules[1] = network.kappa * (flops / FLOPS_PER_CYCLE) * hertz**2
    return joules
