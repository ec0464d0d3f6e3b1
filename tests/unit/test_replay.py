"""A recorded run on the clock of a wireless network."""

import numpy as np
import pytest

from fedgen_lab.federation import SERVER, Trace
from fedgen_lab.wireless import Network, path_loss_db, rate_bps, replay
from fedgen_lab.wireless.channel import place_clients

SIZE, FLOPS = 560_000, 1.3e11


def run_of(clients=4, rounds=3, steps=1, size=SIZE, flops=FLOPS):
    trace = Trace()
    for server_round in range(1, rounds + 1):
        for step in range(steps):
            for client in range(clients):
                trace.add(server_round, step, SERVER, client, "train", size + client)
                trace.add(server_round, step, client, SERVER, "train", size - client, flops)
    return trace


def test_one_client_one_round_by_hand():
    network = Network(1, fading=False, speed_spread=0.0, seed=3)
    timeline = replay(run_of(1, 1), network)
    client = place_clients(network).iloc[0]
    gain = 10 ** (-path_loss_db(client.distance_m, 3.5e9, client.line_of_sight) / 10)
    download = 8 * SIZE / rate_bps(20e6, 43, gain, 7)
    upload = 8 * SIZE / rate_bps(5e6, 23, gain, 5)
    ends = np.cumsum([download, FLOPS / 1e11, upload])
    assert np.allclose(timeline.events.end_seconds, ends) and list(timeline.events.phase) == [
        "download",
        "compute",
        "upload",
    ]
    assert np.allclose(timeline.events.joules, [0.5 * download, 4.0 * 1.3, 10**2.3 / 1000 * upload])
    assert timeline.rounds.end_seconds.tolist() == pytest.approx([ends[-1]])


def test_no_byte_is_lost_between_the_trace_and_the_clock():
    trace = run_of()
    sent, timeline = trace.frame(), replay(trace, Network())
    phases = timeline.events.groupby("phase").bytes.sum()
    assert phases["download"] == sent[sent.sender == SERVER].bytes.sum() == timeline.rounds.bytes_down.sum()
    assert phases["upload"] == sent[sent.sender != SERVER].bytes.sum() == timeline.rounds.bytes_up.sum()
    assert timeline.clients.bytes_up.tolist() == [3 * (SIZE - client) for client in range(4)]


def test_doubling_the_bandwidth_never_slows_a_round():
    trace = run_of(8, 5)
    seconds = [replay(trace, Network(8, bandwidth_hz=band)).rounds.seconds for band in (1e3, 1e5, 1e6, 2e6, 4e6, 1e9)]
    assert all((faster < slower).all() for slower, faster in zip(seconds, seconds[1:], strict=False))


def test_more_clients_share_the_band_so_an_upload_takes_longer():
    alone, crowded = (replay(run_of(n, 1), Network(n)).events for n in (1, 10))
    upload = [e[(e.client == 0) & (e.phase == "upload")] for e in (alone, crowded)]
    assert (upload[1].end_seconds - upload[1].start_seconds).item() > 3 * (
        upload[0].end_seconds - upload[0].start_seconds
    ).item()


def test_a_round_ends_with_its_slowest_client_and_the_next_begins_then():
    timeline = replay(run_of(5, 4), Network(5))
    ends = timeline.events.groupby("round").end_seconds.max()
    starts = timeline.events.groupby("round").start_seconds.min()
    assert np.allclose(ends, timeline.rounds.end_seconds) and np.allclose(starts[1:], ends[:-1])
    assert np.allclose(timeline.rounds.seconds.cumsum(), timeline.rounds.end_seconds)
    last = timeline.events.loc[timeline.events.groupby("round").end_seconds.idxmax(), "client"]
    assert last.tolist() == timeline.rounds.straggler.tolist()
    assert timeline.clients.rounds_as_straggler.sum() == 4


def test_bandwidth_moves_the_link_and_not_the_computing():
    def computing(band):
        events = replay(run_of(), Network(bandwidth_hz=band)).events
        return (events.end_seconds - events.start_seconds)[events.phase == "compute"].to_numpy()

    assert np.allclose(computing(1e5), computing(1e8))


def test_at_5_mhz_a_default_round_shows_both_computing_and_uploading():
    clients = replay(run_of(4, 5), Network()).clients
    assert 0.1 < clients.upload_seconds.sum() / clients.compute_seconds.sum() < 2


def test_steps_of_one_round_follow_each_other_and_add_up():
    once, twice = replay(run_of(steps=1), Network()), replay(run_of(steps=2), Network())
    assert len(twice.rounds) == 3
    assert np.allclose(twice.rounds.seconds, 2 * once.rounds.seconds)


def test_a_client_that_stayed_silent_costs_only_its_download():
    trace = Trace()
    trace.add(1, 0, SERVER, 0, "train", SIZE)
    trace.add(1, 0, SERVER, 1, "train", SIZE)
    trace.add(1, 0, 0, SERVER, "train", SIZE, FLOPS)
    events = replay(trace, Network(2)).events
    assert events[events.client == 1].phase.tolist() == ["download"]


@pytest.mark.parametrize("band", [1.0, 1e3, 1e12])
@pytest.mark.parametrize("clients", [1, 64])
def test_both_ends_of_the_knobs_give_finite_numbers(band, clients):
    timeline = replay(run_of(clients, 2), Network(clients, bandwidth_hz=band, cell_radius_m=5000))
    assert np.isfinite(timeline.events[["start_seconds", "end_seconds", "joules"]].to_numpy()).all()
    assert (timeline.rounds.seconds > 0).all()


def test_an_empty_trace_takes_no_time():
    timeline = replay(Trace(), Network(2))
    assert len(timeline.events) == len(timeline.rounds) == 0 and timeline.clients.joules.tolist() == [0, 0]


def test_a_network_with_too_few_clients_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="has a client 3, but the network has only 2 clients; give it num_clients=4"):
        replay(run_of(4), Network(2))


def test_the_same_seed_gives_the_same_timeline():
    assert replay(run_of(), Network(seed=1)).events.equals(replay(run_of(), Network(seed=1)).events)
    assert not replay(run_of(), Network(seed=1)).events.equals(replay(run_of(), Network(seed=2)).events)
