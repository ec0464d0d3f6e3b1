"""A recorded run on the clock of a wireless network."""

import numpy as np
import pytest

from fedgen_lab.federation import SERVER, Trace
from fedgen_lab.wireless.channel import (
    Network,
    fading_gains,
    path_loss_db,
    phase_seconds,
    place_clients,
    rate_bps,
)
from fedgen_lab.wireless.replay import meet_deadline, replay

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
    assert (
        phases["download"]
        == sent[sent.sender == SERVER].bytes.sum()
        == timeline.rounds.bytes_down.sum()
    )
    assert (
        phases["upload"]
        == sent[sent.sender != SERVER].bytes.sum()
        == timeline.rounds.bytes_up.sum()
    )
    assert timeline.clients.bytes_up.tolist() == [3 * (SIZE - client) for client in range(4)]


def test_doubling_the_bandwidth_never_slows_a_round():
    trace = run_of(8, 5)
    seconds = [
        replay(trace, Network(8, bandwidth_hz=band)).rounds.seconds
        for band in (1e3, 1e5, 1e6, 2e6, 4e6, 1e9)
    ]
    assert all(
        (faster < slower).all() for slower, faster in zip(seconds, seconds[1:], strict=False)
    )


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
    assert len(timeline.events) == len(
        timeline.rounds
    ) == 0 and timeline.clients.joules.tolist() == [0, 0]


def test_a_network_with_too_few_clients_is_an_error_that_says_so():
    with pytest.raises(
        ValueError,
        match="has a client 3, but the network has only 2 clients; give it num_clients=4",
    ):
        replay(run_of(4), Network(2))


def test_the_same_seed_gives_the_same_timeline():
    assert replay(run_of(), Network(seed=1)).events.equals(replay(run_of(), Network(seed=1)).events)
    assert not replay(run_of(), Network(seed=1)).events.equals(
        replay(run_of(), Network(seed=2)).events
    )


@pytest.mark.parametrize("law", ["shannon", "cqi"])
def test_the_shortest_round_of_all_allocations_is_min_max(law):
    trace = run_of(6, 8, size=2_000_000)
    rounds = {
        allocation: replay(trace, Network(6, rate_law=law, allocation=allocation)).rounds.seconds
        for allocation in ("equal", "proportional", "min-max")
    }
    assert (rounds["min-max"] <= rounds["equal"] * (1 + 1e-6)).all()
    assert (rounds["min-max"] <= rounds["proportional"] * (1 + 1e-6)).all()
    assert rounds["min-max"].sum() < 0.95 * rounds["equal"].sum()


def test_with_min_max_every_upload_of_a_round_ends_at_the_same_moment():
    events = replay(run_of(6, 8), Network(6, allocation="min-max")).events
    uploads = events[events.phase == "upload"].groupby("round").end_seconds
    assert np.allclose(uploads.min(), uploads.max(), rtol=1e-6)


def test_shares_like_the_bits_are_equal_shares_when_all_send_alike():
    trace = Trace()
    for client in range(4):
        trace.add(1, 0, SERVER, client, "train", SIZE)
        trace.add(1, 0, client, SERVER, "train", SIZE, FLOPS)
    equal, proportional = (
        replay(trace, Network(allocation=name)).events for name in ("equal", "proportional")
    )
    assert np.allclose(equal.end_seconds, proportional.end_seconds)


def test_a_broadcast_reaches_everyone_at_the_worst_listeners_moment_and_costs_the_air_only_once():
    trace = run_of(10, 3, size=4_000_000)
    unicast, broadcast = (
        replay(trace, Network(10, downlink=name)) for name in ("unicast", "broadcast")
    )
    heard = broadcast.events[broadcast.events.phase == "download"].groupby("round").end_seconds
    assert np.allclose(heard.min(), heard.max())
    assert broadcast.clients.download_seconds.max() < unicast.clients.download_seconds.max()
    network = Network(10, downlink="broadcast")
    gain = 10 ** (-place_clients(network).path_loss_db / 10) * fading_gains(network, 2)[:, 1, 1]
    worst = rate_bps(20e6, 43, gain, 7).min()
    assert heard.max().iloc[0] == pytest.approx(8 * 4_000_009 / worst)


def test_one_listener_hears_a_broadcast_like_its_own_message():
    alone = [
        replay(run_of(1), Network(1, downlink=name)).events for name in ("unicast", "broadcast")
    ]
    assert np.allclose(alone[0].end_seconds, alone[1].end_seconds)


def test_with_kappa_computing_costs_cycles_times_frequency_squared():
    events = replay(run_of(1, 1), Network(1, speed_spread=0.0, kappa=1e-28)).events
    # 1.3e11 operations at 50 a cycle are 2.6e9 cycles, at 1e11 / 50 = 2e9 of them a second
    assert events.joules[events.phase == "compute"].item() == pytest.approx(1e-28 * 2.6e9 * 2e9**2)
    fast, slow = (
        replay(run_of(1, 1), Network(1, flops_per_second=s, kappa=1e-28)).clients.joules
        for s in (2e11, 1e11)
    )
    assert fast.item() > slow.item()  # a fast device pays for its speed


def test_the_cqi_table_slows_a_round_down_but_ranks_stay_finite():
    shannon, cqi = (
        replay(run_of(8, 5), Network(8, rate_law=law)).rounds.seconds for law in ("shannon", "cqi")
    )
    assert (cqi > shannon).all() and np.isfinite(cqi).all()


@pytest.mark.parametrize("allocation", ["proportional", "min-max"])
@pytest.mark.parametrize("law", ["shannon", "cqi"])
@pytest.mark.parametrize("band", [1.0, 1e12])
def test_every_allocation_stays_finite_at_both_ends(allocation, law, band):
    network = Network(
        12, bandwidth_hz=band, cell_radius_m=5000, allocation=allocation, rate_law=law
    )
    timeline = replay(run_of(12, 3, steps=2), network)
    assert np.isfinite(timeline.events[["start_seconds", "end_seconds", "joules"]].to_numpy()).all()
    assert len(replay(Trace(), network).rounds) == 0


def test_one_exchange_alone_takes_what_it_takes_in_a_replay():
    network = Network(5, allocation="min-max", seed=2)
    timeline = replay(run_of(5, 3), network)
    size = np.arange(5)
    alone = phase_seconds(
        network,
        place_clients(network),
        np.array([2]),
        SIZE + size[None],
        np.full((1, 5), FLOPS),
        SIZE - size[None],
    )
    assert alone.sum(0).max() == pytest.approx(timeline.rounds.seconds[1])


def test_a_deadline_ends_a_round_and_names_who_came_too_late():
    timeline = replay(run_of(6, 5), Network(6))
    ends = timeline.events[timeline.events.phase == "upload"].pivot(
        index="round", columns="client", values="end_seconds"
    )
    finish = ends.sub(
        timeline.rounds.end_seconds.to_numpy() - timeline.rounds.seconds.to_numpy(), axis=0
    )
    deadline = float(finish.stack().median())
    cut = meet_deadline(timeline, deadline)
    assert (cut.seconds <= deadline).all() and (cut.seconds <= timeline.rounds.seconds).all()
    for row in cut.itertuples():
        on_time = finish.loc[row.round] <= deadline
        assert row.arrived == on_time.sum() and row.late == tuple(on_time.index[~on_time])
    assert 0 < sum(map(len, cut.late)) == 30 - cut.arrived.sum()


def test_a_late_deadline_changes_nothing_and_an_early_one_leaves_nobody():
    timeline = replay(run_of(4, 3), Network())
    late, early = meet_deadline(timeline, 1e9), meet_deadline(timeline, 1e-9)
    assert (
        late.seconds.equals(timeline.rounds.seconds)
        and (late.arrived == 4).all()
        and set(late.late) == {()}
    )
    assert (early.arrived == 0).all() and set(early.late) == {(0, 1, 2, 3)}
    with pytest.raises(ValueError, match="deadline_seconds must be larger than 0; got 0"):
        meet_deadline(timeline, 0)
