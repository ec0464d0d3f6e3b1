"""One iteration hop by hop: the cut changes where a step is computed and what it sends, never what comes out."""

import copy

import pytest
import torch

from fedgen_lab.split.hops import iteration, segments
from fedgen_lab.split.latency import block_flops, iteration_bytes
from fedgen_lab.split.local import gan_step, new_adam
from fedgen_lab.split.nets import SIZES, new_discriminator, new_generator
from fedgen_lab.split.scenario import CUTS

SIZE = SIZES["lab14"]


@pytest.fixture(scope="module")
def batch():
    draw = torch.Generator().manual_seed(3)
    pictures = torch.rand(4, *SIZE.picture, generator=draw, dtype=torch.float64) * 2 - 1
    return (
        pictures,
        torch.tensor([0, 3, 3, 9]),
        torch.randn(4, SIZE.z_dim, generator=draw, dtype=torch.float64),
    )


@pytest.fixture(scope="module")
def nets():
    return new_generator(SIZE, 0).double(), new_discriminator(SIZE, 1).double()


def one_iteration(nets, batch, cut):
    """The nets after one step at this cut, and its hops."""
    g, d = copy.deepcopy(nets)
    return g, d, list(iteration(g, d, new_adam(g, 1e-3), new_adam(d, 1e-3), *batch, cut))


@pytest.mark.parametrize("cut", CUTS)
def test_a_step_at_any_cut_is_the_unsplit_step(nets, batch, cut):
    whole_g, whole_d = copy.deepcopy(nets)
    gan_step(whole_g, whole_d, new_adam(whole_g, 1e-3), new_adam(whole_d, 1e-3), *batch)
    g, d, hops = one_iteration(nets, batch, cut)
    for cut_net, whole in ((g, whole_g), (d, whole_d)):
        for (
            name,
            wanted,
        ) in whole.state_dict().items():  # weights and BatchNorm's running statistics
            assert torch.allclose(
                cut_net.state_dict()[name].double(), wanted.double(), rtol=0, atol=1e-9
            ), name
    assert len(hops) == 16 and [hop.up for hop in hops] == [True, False] * 8


@pytest.mark.parametrize("cut", CUTS)
def test_as_many_bytes_go_up_as_come_down_and_the_latency_model_counts_the_same(nets, batch, cut):
    _, _, hops = one_iteration(nets, batch, cut)
    up, down = (sum(hop.bytes for hop in hops if hop.up is way) for way in (True, False))
    counted = iteration_bytes([int(bit) for bit in cut], block_flops(SIZE, 4))
    assert up == down == 2 * counted  # float64 here, float32 there


def test_no_hop_is_a_picture_a_label_noise_or_a_loss(nets, batch):
    pictures, _, z = batch
    for cut in ("0000", "1111"):
        for hop in one_iteration(nets, batch, cut)[2]:
            assert (
                hop.tensor.dim() == 4 and hop.tensor.shape[1] > 3 and not hop.tensor.requires_grad
            )
            for secret in (pictures, hop.shown, z):
                assert secret is None or hop.tensor.shape != secret.shape


def test_the_segments_of_a_net_are_its_five_blocks_and_share_its_weights(nets):
    for first in (0, 1):
        for third in (0, 1):
            head, body, tail = segments(nets[0], first, third)
            assert [*head, *body, *tail] == list(nets[0])
            assert (len(head), len(tail)) == (1 + first, 1 + third)
    with pytest.raises(ValueError, match="zeros and ones; got 2"):
        segments(nets[0], 2, 0)
