"""Replay: put a recorded run on the clock of a wireless network.

What was sent does not depend on how fast the radio is, so the seconds can be worked out afterwards, for any
bandwidth, in milliseconds and without training again. Rounds are synchronous: a client downloads, computes and
uploads, and the server waits for the last one, the straggler. Taught in labs 03 and 05.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from fedgen_lab.federation.trace import SERVER
from fedgen_lab.wireless.allocate import min_max, proportional
from fedgen_lab.wireless.channel import fading_gains, place_clients, rate_bps, reach_hz

PHASES = ("download", "compute", "upload")


@dataclass(frozen=True)
class Timeline:
    """A run on the clock.

    `events`: round, client, phase ("download", "compute" or "upload"), start_seconds, end_seconds, bytes, joules
    (what the device spends); one row for each client and phase of an exchange in which something happened. `rounds`:
    round, seconds, end_seconds, bytes_up, bytes_down, straggler (the client everybody waited for). `clients`: the
    columns of `place_clients`, and download_seconds, compute_seconds, upload_seconds, bytes_up, bytes_down, joules,
    rounds_as_straggler.
    """

    events: pd.DataFrame
    rounds: pd.DataFrame
    clients: pd.DataFrame


def replay(trace, network):
    """The `Timeline` of a `Trace` on a `Network`.

    An exchange is one step of a round: all its downloads start together, and the next exchange starts when its last
    upload has arrived. A message of S bytes takes 8 S / rate seconds; a client that spends F operations computes for
    F / speed seconds.

    Raises ValueError when the trace has more clients than the network.
    """
    sent = trace.frame()
    down = (sent["sender"] == SERVER).to_numpy()
    client = np.where(down, sent["receiver"], sent["sender"])  # (M,) one per message
    if len(sent) and client.max() >= network.num_clients:
        raise ValueError(
            f"The trace has a client {client.max()}, but the network has only {network.num_clients} clients; "
            f"give it num_clients={client.max() + 1}."
        )
    clients = place_clients(network)
    exchanges = (
        sent[["round", "step"]].drop_duplicates().to_numpy()
    )  # (E, 2) in the order of sending
    exchange = sent.groupby(["round", "step"], sort=False).ngroup().to_numpy()  # (M,)
    shape = (len(exchanges), network.num_clients)  # everything below is (E, K): exchange x client
    bytes_down = _total(exchange[down], client[down], sent["bytes"].to_numpy()[down], shape)
    bytes_up = _total(exchange[~down], client[~down], sent["bytes"].to_numpy()[~down], shape)
    flops = _total(exchange, client, sent["flops"].to_numpy(), shape)

    seconds = phase_seconds(
        network, clients, exchanges[:, 0], bytes_down, flops, bytes_up
    )  # (3, E, K)
    joules = phase_joules(network, clients, flops, seconds)

    finish = seconds.sum(0)  # (E, K) since the exchange began
    length = finish.max(1, initial=0.0)  # (E,): the slowest client decides
    end = np.cumsum(length)
    ends = (end - length)[:, None] + np.cumsum(seconds, 0)  # (3, E, K)
    size = np.stack([bytes_down, np.zeros(shape, int), bytes_up])
    happened = (size > 0) | (seconds > 0)
    events = _events(exchanges[:, 0], happened, ends - seconds, ends, size, joules)
    slowest = finish.argmax(1)
    rounds = _rounds(exchanges[:, 0], length, end, bytes_up.sum(1), bytes_down.sum(1), slowest)

    for phase, spent in zip(PHASES, seconds.sum(1), strict=True):
        clients[f"{phase}_seconds"] = spent
    clients["bytes_up"], clients["bytes_down"], clients["joules"] = (
        bytes_up.sum(0),
        bytes_down.sum(0),
        joules.sum((0, 1)),
    )
    clients["rounds_as_straggler"] = np.bincount(rounds["straggler"], minlength=network.num_clients)
    return Timeline(events, rounds, clients)


def meet_deadline(timeline, deadline_seconds):
    """What a deadline would have cut off: the rounds of a `Timeline` in which nobody waits longer than that.

    Columns: round, seconds (no more than the deadline), arrived (how many uploads came in time), late (the clients
    whose upload came too late, as a tuple). What those clients know is missing from the average. Rounds of one exchange
    only; raises ValueError for a deadline that isn't above 0.
    """
    if not deadline_seconds > 0:
        raise ValueError(f"deadline_seconds must be larger than 0; got {deadline_seconds!r}.")
    uploads = timeline.events[timeline.events["phase"] == "upload"]
    began = (timeline.rounds["end_seconds"] - timeline.rounds["seconds"]).set_axis(
        timeline.rounds["round"]
    )
    late = uploads["end_seconds"] - began.reindex(uploads["round"]).to_numpy() > deadline_seconds
    missed = uploads[late].groupby("round")["client"].agg(tuple)
    rounds = timeline.rounds["round"]
    return pd.DataFrame(
        {
            "round": rounds,
            "seconds": np.minimum(timeline.rounds["seconds"], deadline_seconds),
            "arrived": uploads[~late]
            .groupby("round")
            .size()
            .reindex(rounds, fill_value=0)
            .to_numpy(),
            "late": [missed.get(r, ()) for r in rounds],
        }
    )


def phase_seconds(network, clients, rounds, bytes_down, flops, bytes_up):
    """How long clients download, compute and upload: (3, E, K) seconds for E exchanges of K clients.

    clients: `place_clients(network)`; rounds: (E,) whole numbers, which decide the fading; the rest: (E, K). This is
    the whole clock of a synchronous round, for those who need it while a run goes on.
    """
    fading = fading_gains(network, int(rounds.max(initial=0)) + 1)[:, rounds]  # (K, E, 2)
    gain = 10 ** (-clients["path_loss_db"].to_numpy() / 10) * fading.transpose(2, 1, 0)  # (2, E, K)
    download = _download_seconds(network, gain[1], bytes_down)
    compute = flops / clients["flops_per_second"].to_numpy()
    sending, power = 8 * bytes_up, network.device_power_dbm
    if network.allocation == "equal":
        band = network.bandwidth_hz / np.maximum((bytes_up > 0).sum(1), 1)[:, None]  # (E, 1)
    elif network.allocation == "proportional":
        band = proportional(sending, network.bandwidth_hz)
    else:
        reach = reach_hz(power, gain[0], network.station_noise_figure_db)
        band = min_max(sending, download + compute, reach, network.bandwidth_hz, network.rate_law)
    band = np.where(band > 0, band, 1.0)  # who sends nothing has no band, and any rate will do
    rate = rate_bps(band, power, gain[0], network.station_noise_figure_db, network.rate_law)
    return np.stack([download, compute, sending / rate])


def _download_seconds(network, gain, bytes_down):
    """Seconds to download, (E, K): side by side, or one broadcast of the largest message to all who listen."""
    listening = bytes_down > 0
    power, band = network.station_power_dbm, network.downlink_hz
    if network.downlink == "unicast":  # the station's power is shared like its band
        shares = np.maximum(listening.sum(1), 1)[:, None]
        power, band = power - 10 * np.log10(shares), band / shares
    rate = rate_bps(band, power, gain, network.device_noise_figure_db, network.rate_law)
    if network.downlink == "unicast":
        return 8 * bytes_down / rate
    worst = np.where(listening, rate, np.inf).min(1, initial=np.inf)
    return listening * (8 * bytes_down.max(1, initial=0) / worst)[:, None]


def phase_joules(network, clients, flops, seconds):
    """What the devices spend, (3, E, K): power times time, or kappa x cycles x (cycles a second)^2 for computing."""
    transmitting_watts = 10 ** (network.device_power_dbm / 10) / 1000
    watts = np.array([network.receiving_watts, network.computing_watts, transmitting_watts])
    joules = seconds * watts[:, None, None]
    if network.kappa > 0:
        hertz = clients["flops_per_second"].to_numpy() / network.flops_per_cycle  # (K,)
        joules[1] = network.kappa * (flops / network.flops_per_cycle) * hertz**2
    return joules


def _total(exchange, client, values, shape):
    """Sum the values of all messages of one exchange and client: (E, K)."""
    total = np.zeros(shape, values.dtype)
    np.add.at(total, (exchange, client), values)
    return total


def _events(rounds, happened, starts, ends, size, joules):
    """The rows of `Timeline.events`, in the order of exchanges, clients and phases."""
    at = np.nonzero(happened.transpose(1, 2, 0))  # exchange, client, phase
    here = (at[2], at[0], at[1])
    return pd.DataFrame(
        {
            "round": rounds[at[0]],
            "client": at[1],
            "phase": pd.Categorical.from_codes(at[2], PHASES).astype(object),
            "start_seconds": starts[here],
            "end_seconds": ends[here],
            "bytes": size[here],
            "joules": joules[here],
        }
    )


def _rounds(rounds, length, end, bytes_up, bytes_down, slowest):
    """The rows of `Timeline.rounds`: a round is all its exchanges; its straggler is that of its longest exchange."""
    table = pd.DataFrame(
        {
            "round": rounds,
            "seconds": length,
            "end_seconds": end,
            "bytes_up": bytes_up,
            "bytes_down": bytes_down,
        }
    )
    stragglers = table.assign(straggler=slowest).sort_values(
        "seconds", ascending=False, kind="stable"
    )
    stragglers = stragglers.drop_duplicates("round").set_index("round")["straggler"]
    adding = {"seconds": "sum", "end_seconds": "max", "bytes_up": "sum", "bytes_down": "sum"}
    table = table.groupby("round", sort=False).agg(adding).reset_index()
    table["straggler"] = stragglers.reindex(table["round"]).to_numpy().astype(int)
    return table
