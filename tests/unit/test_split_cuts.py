"""Cuts: the scan over thresholds finds what brute force finds, and no genetic algorithm finds better."""

import random
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from fedgen_lab.split.cuts import exact_cuts, genetic_cuts, parse_cuts
from fedgen_lab.split.latency import (
    Device,
    block_flops,
    deal_devices,
    iteration_seconds,
    memory_bytes,
)

MODES = {"corrected": False, "reference": True}
ALL = np.array(list(product((0, 1), repeat=4)))  # (16, 4)


def random_devices(number, seed, work, limited):
    """Devices that differ by four orders of magnitude, and a server; limited: most can't hold all blocks."""
    draw = np.random.default_rng(seed)
    least, most = memory_bytes((0, 0, 0, 0), work), memory_bytes((1, 1, 1, 1), work)
    devices = [
        Device(
            f"random {i}",
            10 ** draw.uniform(8, 12),
            10 ** draw.uniform(6, 9.5),
            draw.uniform(least, most) if limited else None,
        )
        for i in range(number)
    ]
    return devices, Device("server", 10 ** draw.uniform(10, 12), 1e9)


def fits(cuts, devices, work):
    return (memory_bytes(cuts, work) <= [device.memory_bytes or np.inf for device in devices]).all(
        -1
    )


@pytest.mark.parametrize("num_clients, seconds", [(80, 7.0025), (100, 8.1405), (20, 3.9556)])
def test_reference_mode_gives_the_published_models_optimum(num_clients, seconds):
    found, took = exact_cuts(
        deal_devices(num_clients), block_flops("reference", 64, True), reference=True
    )
    assert took == pytest.approx(seconds, abs=5e-5)
    assert took == iteration_seconds(
        found, deal_devices(num_clients), block_flops("reference", 64, True), reference=True
    )


def test_the_published_devices_best_cuts_at_eighty_clients():
    found, _ = exact_cuts(deal_devices(80), block_flops("reference", 64, True), reference=True)
    fast = (1, 1, 1, 1)
    assert found[:7] == [(0, 0, 0, 0), fast, fast, fast, (0, 0, 1, 0), (1, 1, 1, 0), fast]
    assert found == [found[client % 7] for client in range(80)]  # equal devices, equal cuts


def test_one_slip_is_enough_to_move_a_cut():
    devices, slips = deal_devices(80), {"reference": True}
    right_flops, took = exact_cuts(devices, block_flops("reference", 64), **slips)
    assert took == pytest.approx(4.68, abs=0.005)
    assert right_flops[4] == (1, 1, 1, 0)
    bits = [replace(device, bits_per_second=device.bits_per_second / 8) for device in devices]
    _, took = exact_cuts(
        bits, block_flops("reference", 64, True), **slips, server=Device("server", 672e9, 1e9 / 8)
    )
    assert took == pytest.approx(10.8, abs=0.05)


@pytest.mark.parametrize("limited", [False, True], ids=["any memory", "memory limits"])
@pytest.mark.parametrize("reference", MODES.values(), ids=list(MODES))
@pytest.mark.parametrize("size", ["reference", "lab14"])
def test_the_optimum_is_that_of_brute_force(size, reference, limited):
    work = block_flops(size, 16, reference)
    for number, instances in ((1, 8), (2, 8), (3, 6), (4, 1)):
        every = np.stack(np.meshgrid(*[np.arange(16)] * number), -1).reshape(-1, number)
        every = ALL[every]  # (16^N, N, 4)
        for seed in range(instances):
            devices, server = random_devices(number, seed, work, limited)
            found, seconds = exact_cuts(devices, work, reference, server)
            best = iteration_seconds(
                every[fits(every, devices, work)], devices, work, reference, server
            ).min()
            assert seconds == pytest.approx(best, rel=1e-6 if limited else 1e-12)
            assert fits(np.array(found), devices, work)


@pytest.mark.parametrize("reference", MODES.values(), ids=list(MODES))
def test_for_seven_kinds_of_device_the_optimum_is_that_of_all_512_choices(reference):
    work, devices = block_flops("reference", 64, reference), deal_devices(80)
    found, seconds = exact_cuts(devices, work, reference)
    kinds = np.arange(80) % 7
    for bit in range(4):  # the bits don't touch one another: 4 x 2^7
        choices = np.broadcast_to(np.array(found), (128, 80, 4)).copy()
        choices[:, :, bit] = np.array(list(product((0, 1), repeat=7)))[:, kinds]
        assert iteration_seconds(choices, devices, work, reference).min() == pytest.approx(
            seconds, rel=1e-12
        )


@pytest.mark.parametrize("limited", [False, True], ids=["any memory", "memory limits"])
def test_no_change_of_one_client_is_an_improvement(limited):
    work = block_flops("lab28", 16)
    devices, server = random_devices(20, 3, work, limited)
    found, seconds = exact_cuts(devices, work, server=server)
    for client in range(20):
        changed = np.broadcast_to(np.array(found), (16, 20, 4)).copy()
        changed[:, client] = ALL
        changed = changed[fits(changed, devices, work)]
        assert iteration_seconds(changed, devices, work, server=server).min() >= seconds * (
            1 - 1e-6
        )


def test_the_order_of_the_devices_does_not_matter():
    work = block_flops("reference", 64)
    devices, _ = random_devices(30, 1, work, limited=False)
    found, seconds = exact_cuts(devices, work)
    shuffled = np.random.default_rng(0).permutation(30)
    again, same = exact_cuts([devices[i] for i in shuffled], work)
    assert same == pytest.approx(seconds, rel=1e-12)
    assert again == [found[i] for i in shuffled]


def test_a_block_moves_to_the_server_when_the_device_has_no_memory_for_it():
    work = block_flops("reference", 64)
    fast = Device("fast", 1e14, 1e9)
    roomy, _ = exact_cuts([fast], work)
    assert roomy == [(0, 1, 1, 0)]  # whatever makes the tensors at the cuts small
    tight = replace(fast, memory_bytes=memory_bytes((1, 0, 1, 0), work))
    assert exact_cuts([tight], work)[0][0][1] == 0
    with pytest.raises(ValueError, match="fast has 1.0 MB, but head and tail of both nets"):
        exact_cuts([replace(fast, memory_bytes=1e6)], work)


def test_the_genetic_algorithm_approaches_the_optimum_and_never_passes_it():
    work, devices, seen = block_flops("reference", 64), deal_devices(7), []
    _, optimum = exact_cuts(devices, work)
    cuts, seconds = genetic_cuts(
        devices,
        work,
        seed=1,
        generations=25,
        population=100,
        on_generation=lambda *now: seen.append(now),
    )
    best = [seconds for _, seconds, _ in seen]
    assert [generation for generation, _, _ in seen] == list(range(1, 26))
    assert all(later <= earlier for earlier, later in zip(best[:-1], best[1:], strict=True))
    assert optimum <= seconds * (1 + 1e-12) and seconds < 1.05 * optimum
    assert seconds == best[-1] == iteration_seconds(cuts, devices, work)


def test_the_genetic_algorithm_repeats_itself_and_leaves_pythons_random_numbers_alone():
    work, devices = block_flops("lab14", 16), deal_devices(5)
    random.seed(7)
    expected = random.random()
    random.seed(7)
    one = genetic_cuts(devices, work, seed=3, generations=3, population=20)
    assert random.random() == expected
    assert genetic_cuts(devices, work, seed=3, generations=3, population=20) == one


def test_the_genetic_algorithm_stops_when_asked_and_keeps_to_the_memory():
    work = block_flops("lab14", 16)
    devices, _ = random_devices(6, 2, work, limited=True)
    heard = []
    cuts, seconds = genetic_cuts(
        devices,
        work,
        generations=50,
        population=30,
        on_generation=lambda *now: heard.append(now),
        should_stop=lambda: len(heard) == 2,
    )
    assert len(heard) == 2
    assert fits(np.array(cuts), devices, work) and np.isfinite(seconds)
    with pytest.raises(ValueError, match="population must be at least 2"):
        genetic_cuts(devices, work, population=1)
    with pytest.raises(ValueError, match="tile must be at least 1"):
        genetic_cuts(devices, work, tile=0)


def test_in_a_tile_the_clients_most_alike_share_a_cut():
    devices = deal_devices(14)  # two of each kind
    cuts, _ = genetic_cuts(
        devices, block_flops("lab14", 16), seed=5, generations=1, population=10, tile=2
    )
    assert cuts[:7] == cuts[7:] and len(set(cuts)) > 2


def test_cuts_are_read_from_text():
    assert parse_cuts("0110", 3, "lab14", 16) == [(0, 1, 1, 0)] * 3
    assert parse_cuts("0110, 1111", 2, "lab14", 16) == [(0, 1, 1, 0), (1, 1, 1, 1)]
    best, _ = exact_cuts(deal_devices(8), block_flops("lab14", 16))
    assert parse_cuts("optimum", 8, "lab14", 16) == best
    for text in ("011", "0112", "0110,1111", "", "best"):
        with pytest.raises(ValueError, match='cuts must be "optimum", or four bits'):
            parse_cuts(text, 3, "lab14", 16)


@pytest.mark.parametrize(
    "number", [1, 2, 3], ids=["one device", "two of a kind", "three of a kind"]
)
@pytest.mark.parametrize("short", [1, 60], ids=["a byte too few", "60 bytes too few"])
def test_no_cut_takes_even_a_byte_more_than_a_device_has(number, short):
    work = block_flops("reference", 64)
    every = ALL[
        np.stack(np.meshgrid(*[np.arange(16)] * number), -1).reshape(-1, number)
    ]  # (16^N, N, 4)
    for cut in [(1, 1, 1, 1), (0, 1, 1, 0), (0, 1, 0, 0), (1, 0, 0, 0)]:
        devices = [Device("same", 1e11, 1e9, float(memory_bytes(cut, work) - short))] * number
        found, seconds = exact_cuts(devices, work)
        assert fits(np.array(found), devices, work)
        best = iteration_seconds(every[fits(every, devices, work)], devices, work).min()
        assert seconds == pytest.approx(best, rel=1e-6)


def test_among_kinds_of_several_devices_with_limits_the_optimum_is_that_of_brute_force():
    work = block_flops("lab14", 16)
    every = ALL[np.stack(np.meshgrid(*[np.arange(16)] * 4), -1).reshape(-1, 4)]  # (16^4, 4, 4)
    for seed in range(3):
        (one, other, *_), server = random_devices(4, seed, work, limited=True)
        devices = [one, other, one, other] if seed else [one, one, other, one]
        found, seconds = exact_cuts(devices, work, server=server)
        best = iteration_seconds(
            every[fits(every, devices, work)], devices, work, server=server
        ).min()
        assert fits(np.array(found), devices, work) and seconds == pytest.approx(best, rel=1e-6)
