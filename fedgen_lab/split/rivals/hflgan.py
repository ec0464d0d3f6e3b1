"""HFL-GAN: clients, edge servers and a cloud, with a generator for each edge and discriminators that all share.

Lab 07. Petch, Moustafa, Ma and Yasser 2024, Applied Intelligence, doi 10.1007/s10489-024-05924-x. We read its abstract:
clients are dynamically clustered to edge servers, the GAN has several generators, and the stages of aggregation differ.
How is ours: an edge averages both nets of its clients after every round, weighted by their pictures; the cloud averages
the edges' discriminators after every third round, evenly, and leaves each edge its generator; clients choose their edge
anew whenever all started a round from one discriminator, by the direction in which theirs went (k-means on
directions, so on cosines; as many edges as `num_clusters`, or as separate well). Edges and cloud live in the
`ServerApp`: their wires are not wireless and not in the trace.
"""

import numpy as np
import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from fedgen_lab.federation.arrays import tensors_of
from fedgen_lab.split.clusters import aggregate, cluster
from fedgen_lab.split.rivals import core
from fedgen_lab.split.rivals.fedgan import client_app, generator_of
from fedgen_lab.split.scenario import GanRound, GanScenario

CLOUD_EVERY = 3  # rounds
WHAT = {
    "train": "down: the edge's two nets; up: both nets after a round on the client's own pictures"
}


def server_app(on_round=None, on_step=None, refused=None):
    """The server's half: the edges and the cloud."""
    app = ServerApp()

    @app.main()
    def train(grid: Grid, context: Context) -> None:
        scenario = GanScenario.from_run_config(context.run_config)
        clients = core.Clients(grid, scenario.num_clients, [] if refused is None else refused)
        start = core.start_gan(scenario)
        nets = dict.fromkeys(clients.nodes, start.state())  # client -> the nets its edge gives it
        groups = np.zeros(scenario.num_clients, int)

        def show(server_round):
            if on_round is not None:
                everyone = range(scenario.num_clients)
                generators = [
                    generator_of(nets[c]) if c in clients.nodes else None for c in everyone
                ]
                trace = getattr(grid, "trace", None)
                on_round(
                    GanRound(server_round, scenario.rounds, generators, groups.copy(), trace=trace)
                )

        show(0)
        for server_round in range(1, scenario.rounds + 1):
            records = {client: {"arrays": ArrayRecord(state)} for client, state in nets.items()}
            sent = clients.ask(None, server_round, records.get, {"arrays": start.state()})
            states = {client: tensors_of(content["arrays"]) for client, content in sent.items()}
            counts = np.array([content["metrics"]["num-examples"] for content in sent.values()])
            present = list(states)
            if server_round % CLOUD_EVERY == 1:  # all have just started from one discriminator
                went = directions([states[c] for c in present], nets[present[0]])
                groups[present] = cluster(
                    went, min(scenario.num_clusters, len(present)), scenario.seed
                )
            nets = dict(
                zip(
                    present,
                    at_the_edges(list(states.values()), counts, groups[present]),
                    strict=True,
                )
            )
            if server_round % CLOUD_EVERY == 0:
                in_the_cloud(nets, groups)
            show(server_round)

    return app


def directions(states, before):
    """The direction each client's discriminator went in: (N, F), rows of length 1."""
    names = [
        n
        for n in before
        if n.startswith("d.") and before[n].is_floating_point() and "running" not in n
    ]
    went = torch.stack(
        [torch.cat([(state[n] - before[n]).flatten() for n in names]) for state in states]
    )
    return (went / went.norm(dim=1, keepdim=True).clamp_min(1e-12)).numpy()


def at_the_edges(states, counts, groups):
    """Every client's new nets: the mean of its edge's clients, weighted by their numbers of pictures."""
    numbers, edge = np.unique(groups, return_inverse=True)
    totals = np.bincount(edge, counts, minlength=len(numbers))
    means = aggregate(states, counts / totals[edge], edge)
    return [means[k] for k in edge]


def in_the_cloud(nets, groups):
    """Give every client's nets {client: state} the plain mean of the edges' discriminators."""
    first = {
        int(groups[client]): state for client, state in nets.items()
    }  # one client for each edge
    (mean,) = aggregate(list(first.values()), [1 / len(first)] * len(first))
    shared = {name: tensor for name, tensor in mean.items() if name.startswith("d.")}
    for client, state in nets.items():
        nets[client] = state | shared


def run(scenario, should_stop=None, on_event=None, dealt=None):
    """Train HFL-GAN on a `LabGrid`; see `core.play`."""
    return core.play(scenario, server_app, client_app, WHAT, should_stop, on_event, dealt)
