"""Where every method starts, and which pictures and noise it meets: equal for HuSCF-GAN and all its rivals.

So that methods differ in what they exchange and in nothing else. Labs 06 and 07; what the published code does instead
(a fresh shuffle for every batch, unseeded) is in the docstring of `draw_batch`.
"""

import torch

from fedgen_lab.split.nets import SIZES, new_discriminator, new_generator

GENERATOR_KEY, DISCRIMINATOR_KEY = (0, 0), (0, 1)  # of `seed_of`; keys of batches have three numbers


def start_nets(scenario):
    """The generator and the discriminator that every client and every method of this scenario starts from."""
    size = SIZES[scenario.size]
    generator = new_generator(size, scenario.seed_of(*GENERATOR_KEY))
    return generator, new_discriminator(size, scenario.seed_of(*DISCRIMINATOR_KEY))


def draw_batch(scenario, pictures, labels, client, server_round, iteration):
    """One client's batch: pictures (B, C, H, W), labels (B,), z (B, Z); rounds count from 1, iterations from 0.

    Drawn without replacement within a batch and afresh for every batch, as in the published code (arXiv 2507.12979). A
    client with fewer pictures than `batch_size` takes all it has. Raises ValueError when it has fewer than two, because
    BatchNorm can't take the spread of one.
    """
    if len(pictures) < 2:
        raise ValueError(f"Client {client} holds {len(pictures)} pictures; it needs 2 at least. Give it more.")
    draw = torch.Generator().manual_seed(scenario.seed_of(client, server_round, iteration))
    rows = torch.randperm(len(pictures), generator=draw)[: scenario.batch_size]
    z = torch.randn(len(rows), SIZES[scenario.size].z_dim, generator=draw, dtype=pictures.dtype)
    return pictures[rows], labels[rows], z
