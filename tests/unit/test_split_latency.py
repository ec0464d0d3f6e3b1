"""The clock of a split iteration: the published numbers in reference mode, and what each correction changes."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fedgen_lab.split.latency import (
    DEVICES,
    SERVER,
    SERVER_ROW,
    Device,
    block_flops,
    deal_devices,
    iteration_bytes,
    iteration_gantt,
    iteration_seconds,
    memory_bytes,
)
from fedgen_lab.split.nets import SIZES, new_discriminator, new_generator, run_blocks
from fedgen_lab.split.scenario import CUTS

MODES = {"corrected": False, "reference": True}
PUBLISHED_GFLOPS = {  # per batch of 64
    ("generator", "forward"): (0.185, 13.169, 3.715, 13.185, 0.058),
    ("generator", "backward"): (0.188, 26.329, 7.421, 26.352, 0.116),
    ("discriminator", "forward"): (0.060, 0.827, 0.929, 0.606, 0.0003),
    ("discriminator", "backward"): (0.063, 1.650, 1.856, 1.210, 0.0006),
}


def random_cuts(num_clients, seed=0, many=()):
    return np.random.default_rng(seed).integers(0, 2, (*many, num_clients, 4))


def total_flops(work):
    return sum(
        net.batches * (sum(net.forward) + sum(net.backward))
        for net in (work.generator, work.discriminator)
    )


@pytest.mark.parametrize(
    "net, direction", PUBLISHED_GFLOPS, ids=[" ".join(key) for key in PUBLISHED_GFLOPS]
)
def test_reference_mode_counts_the_published_flops(net, direction):
    counted = getattr(getattr(block_flops("reference", 64, reference=True), net), direction)
    published = PUBLISHED_GFLOPS[net, direction]
    assert np.array(counted) / 1e9 == pytest.approx(published, abs=0.0006)


def test_a_transposed_convolution_counted_by_its_input_halves_the_work():
    reference, corrected = (
        block_flops("reference", 64, reference=True),
        block_flops("reference", 64),
    )
    assert total_flops(reference) / 1e9 == pytest.approx(112.3, abs=0.05)
    assert total_flops(corrected) / 1e9 == pytest.approx(53.1, abs=0.05)
    assert reference.generator.forward[1] / corrected.generator.forward[1] == pytest.approx(
        4, rel=0.01
    )
    assert (
        reference.generator.forward[2] == corrected.generator.forward[2]
    )  # no stride, no difference
    assert reference.discriminator == corrected.discriminator


@pytest.mark.parametrize("size", SIZES)
def test_corrected_flops_are_those_that_torch_counts_itself(size):
    work, size = block_flops(size, 4), SIZES[size]
    labels = torch.zeros(4, dtype=torch.long)
    for net, blocks, given in (
        (work.generator, new_generator(size, 0), torch.zeros(4, size.z_dim)),
        (work.discriminator, new_discriminator(size, 0), torch.zeros(4, *size.picture)),
    ):
        with FlopCounterMode(display=False) as counter:
            run_blocks(blocks, given, labels)
        # Torch leaves out biases, BatchNorm and activations.
        assert counter.get_total_flops() < sum(net.forward) < 1.25 * counter.get_total_flops()


def test_flops_and_bytes_grow_with_the_batch_and_weights_do_not():
    one, two = block_flops("lab28", 16), block_flops("lab28", 32)
    assert total_flops(two) == 2 * total_flops(one)
    assert iteration_bytes((0, 1, 1, 0), two) == 2 * iteration_bytes((0, 1, 1, 0), one)
    weights = 2 * memory_bytes((1, 1, 1, 1), one) - memory_bytes((1, 1, 1, 1), two)
    counted = sum(
        p.numel()
        for blocks in (new_generator(SIZES["lab28"], 0), new_discriminator(SIZES["lab28"], 0))
        for number, block in enumerate(blocks)
        if number != 2
        for p in block.parameters()
    )
    assert weights == 16 * counted  # weights, gradients and two moments, four bytes each


def test_bytes_of_a_client_at_three_cuts_are_the_measured_ones():
    work = block_flops("reference", 64)
    for cut, megabytes in (((0, 0, 0, 0), 27.5), ((1, 1, 1, 0), 19.4), ((1, 1, 1, 1), 22.5)):
        assert iteration_bytes(cut, work) / 1e6 == pytest.approx(megabytes, abs=0.05)


def test_every_block_that_moves_to_the_client_takes_memory_there():
    work = block_flops("reference", 64)
    cuts = np.array([[int(bit) for bit in cut] for cut in CUTS])
    needed = dict(zip(CUTS, memory_bytes(cuts, work), strict=True))
    for cut in CUTS:
        for bit in range(4):
            if cut[bit] == "0":
                assert needed[cut[:bit] + "1" + cut[bit + 1 :]] > needed[cut]


@pytest.mark.parametrize(
    "num_clients, zeros, ones",
    [(80, 14.0209, 195.5314), (100, 16.9028, 195.9458), (20, 5.3752, 194.2884)],
)
def test_reference_mode_gives_the_published_models_seconds(num_clients, zeros, ones):
    work, devices = block_flops("reference", 64, reference=True), deal_devices(num_clients)
    for bit, seconds in ((0, zeros), (1, ones)):
        cuts = [(bit,) * 4] * num_clients
        assert iteration_seconds(cuts, devices, work, reference=True) == pytest.approx(
            seconds, abs=5e-5
        )


def test_with_instant_computing_only_links_are_left_and_bits_take_eight_times_as_long_as_bytes():
    instant = [Device(d.name, 1e30, d.bits_per_second) for d in DEVICES]
    server = Device("server", 1e30, SERVER.bits_per_second)
    work, cuts = block_flops("reference", 64), random_cuts(7)
    corrected = iteration_seconds(cuts, instant, work, server=server)
    assert corrected == pytest.approx(
        8 * iteration_seconds(cuts, instant, work, reference=True, server=server)
    )


def test_the_servers_discriminator_works_on_three_batches():
    far = [Device("fast", 1e30, 1e30)] * 3  # only the server's computing takes time
    server = Device("server", 1e9, 1e30)
    work = block_flops("reference", 64)
    zeros = [(0, 0, 0, 0)] * 3
    body = [
        sum(net.forward[1:4]) + sum(net.backward[1:4])
        for net in (work.generator, work.discriminator)
    ]
    assert iteration_seconds(zeros, far, work, server=server) == pytest.approx(
        3 * (body[0] + 3 * body[1]) / 1e9
    )
    slipped = [
        sum(net.forward[1:4]) + sum(net.backward[2:4]) + net.backward[3]
        for net in (work.generator, work.discriminator)
    ]
    reference = iteration_seconds(zeros, far, work, reference=True, server=server)
    assert reference == pytest.approx(3 * sum(slipped) / 1e9)


@pytest.mark.parametrize("reference", MODES.values(), ids=list(MODES))
@pytest.mark.parametrize("seed", range(3))
def test_the_critical_path_runs_through_the_iteration_without_a_gap(reference, seed):
    work, devices, cuts = block_flops("lab28", 16, reference), deal_devices(9), random_cuts(9, seed)
    chart = iteration_gantt(cuts, devices, work, reference)
    path = chart[chart["on_critical_path"]].sort_values("start_seconds", kind="stable")
    starts, ends = path["start_seconds"].to_numpy(), path["end_seconds"].to_numpy()
    assert starts[0] == 0
    assert starts[1:] == pytest.approx(ends[:-1])
    assert ends[-1] == pytest.approx(iteration_seconds(cuts, devices, work, reference))
    assert ends[-1] == pytest.approx(chart["end_seconds"].max())


def test_nobody_does_two_things_at_once_and_the_server_waits_for_what_it_needs():
    work, devices, cuts = block_flops("reference", 64), deal_devices(7), random_cuts(7, 5)
    chart = iteration_gantt(cuts, devices, work)
    for _, rows in chart.groupby("client"):
        rows = rows.sort_values("start_seconds")
        assert (
            rows["start_seconds"].to_numpy()[1:] >= rows["end_seconds"].to_numpy()[:-1] - 1e-12
        ).all()
    for _, stage in chart.groupby(["net", "direction"]):
        body = stage[(stage["client"] == SERVER_ROW) & (stage["phase"] == "block 2")].iloc[0]
        assert (
            body["start_seconds"] >= stage[stage["phase"] == "upload"]["end_seconds"].max() - 1e-12
        )
        assert (
            stage[stage["phase"] == "download"]["start_seconds"] >= body["end_seconds"] - 1e-12
        ).all()


def test_many_choices_of_cuts_are_timed_at_once():
    work, devices = block_flops("lab14", 16), deal_devices(6)
    cuts = random_cuts(6, many=(3, 5))
    seconds = iteration_seconds(cuts, devices, work)
    assert seconds.shape == (3, 5)
    assert seconds[2, 4] == iteration_seconds(cuts[2, 4], devices, work)


def test_what_makes_no_sense_is_refused_in_words():
    work = block_flops("lab14", 16)
    with pytest.raises(ValueError, match="size must be one of lab14, .*; got 'huge'"):
        block_flops("huge", 16)
    with pytest.raises(ValueError, match="four bits for each of the 2 devices"):
        iteration_seconds([(0, 0, 0, 0)], deal_devices(2), work)
    with pytest.raises(ValueError, match=r"must be 0 .* or 1"):
        iteration_seconds([(0, 2, 0, 0)], deal_devices(1), work)
    with pytest.raises(ValueError, match="broken: speed, link rate and memory must be positive"):
        Device("broken", 0, 1e6)
