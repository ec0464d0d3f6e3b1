"""Where every method starts, and which pictures and noise it meets: equal for HuSCF-GAN and all its rivals.

So that methods differ in what they exchange and in nothing else. Labs 06 and 07; what the published code does instead
(a fresh shuffle for every batch, unseeded) is in the docstring of `draw_batch`.
"""

import torch

from fedgen_lab.split.nets import SIZES, new_discriminator, new_generator
from fedgen_lab.split.scenario import GanScenario

GENERATOR_KEY, DISCRIMINATOR_KEY = (
    (0, 0),
    (0, 1),
)  # of `seed_of`; keys of batches have three numbers


def start_nets(scenario):
    """The generator and the discriminator that every client and every method of this scenario starts from."""
    size = SIZES[scenario.size]
    generator = new_generator(size, scenario.seed_of(*GENERATOR_KEY))
    return generator, new_discriminator(size, scenario.seed_of(*DISCRIMINATOR_KEY))


def addressee(context):
    """Whose context this is: (scenario, client). Raises ValueError for a client too many."""
    scenario, client = (
        GanScenario.from_run_config(context.run_config),
        int(context.node_config["partition-id"]),
    )
    if client >= scenario.num_clients:
        raise ValueError(
            f"This node is client {client}, but the run has num-clients={scenario.num_clients}."
        )
    return scenario, client


def own_data(scenario, client, dealt=None):
    """The pictures (n, C, H, W) and labels (n,) of one client: those of `dealt`, else as the scenario deals them."""
    if dealt is not None:
        return dealt.pictures[client], dealt.labels[client]
    from fedgen_lab.split.deal import deal_to

    return deal_to(scenario, client)


def draw_batch(scenario, pictures, labels, client, server_round, iteration):
    """One client's batch: pictures (B, C, H, W), labels (B,), z (B, Z); rounds count from 1, iterations from 0.

    Drawn without replacement within a batch and afresh for every batch, as in the published code (arXiv 2507.12979). A
    client with fewer pictures than `batch_size` takes all it has. Raises ValueError when it has fewer than two, because
    BatchNorm can't take the spread of one.
    """
    if len(pictures) < 2:
        raise ValueError(
            f"Client {client} holds {len(pictures)} pictures; it needs 2 at least. Give it more."
        )
    draw = torch.Generator().manual_seed(scenario.seed_of(client, server_round, iteration))
    rows = torch.randperm(len(pictures), generator=draw)[: scenario.batch_size]
    z = torch.randn(len(rows), SIZES[scenario.size].z_dim, generator=draw, dtype=pictures.dtype)
    return pictures[rows], labels[rows], z
