"""A run of the U as its server sees it: whose heads does it know, and what may it do with them?

Lab 06. The server of HuSCF-GAN (arXiv 2507.12979) averages the clients' heads and deals them out again, so at the start
of every round it knows every client's blocks. `attack_run` hands these to the attacks of `fedgen_lab.privacy.smashed`.
"""

from typing import NamedTuple

from torch import nn

from fedgen_lab.federation.run import run_app
from fedgen_lab.pictures.domains import load_domain
from fedgen_lab.privacy.smashed import attack
from fedgen_lab.split.batch import start_nets
from fedgen_lab.split.deal import Dealt, deal
from fedgen_lab.split.u_client import stacked_clients, u_client_app
from fedgen_lab.split.u_server import u_server_app

AUXILIARY = 1000  # pictures of another domain that the attacker has
_ATTACK = 1101  # purpose of a seed spawned from the scenario's


class Watched(NamedTuple):
    """A run that has ended. client: which one `generator` and `discriminator` (five blocks) belong to,
    as the server knows them. generators: every client's, as state dicts."""

    generator: nn.ModuleList
    discriminator: nn.ModuleList
    generators: list
    dealt: Dealt
    client: int


def watched_run(scenario, client=0, fresh=False, should_stop=None, on_step=None):
    """Train the U with the scenario's protection, and keep what its server knows of `client`. Returns a `Watched`.

    fresh: train nothing, as before the first iteration. on_step(round, iteration) hears of progress; when
    `should_stop()` becomes true the run ends and None is returned. Raises ValueError for a method without smashed data,
    and when the client was left out of the run.
    """
    if scenario.method != "huscf":
        raise ValueError(
            f'Only the method "huscf" sends smashed data; got method {scenario.method!r}.'
        )
    dealt, (generator, discriminator) = deal(scenario), start_nets(scenario)
    if fresh:
        generators = [generator.state_dict()] * scenario.num_clients
        return Watched(generator, discriminator, generators, dealt, client)
    servers = []
    run = run_app(
        u_server_app(on_step=on_step, keep=servers.append),
        u_client_app(dealt, keep=True),
        scenario.num_clients,
        scenario.to_run_config(),
        should_stop,
        stacked=stacked_clients(dealt),
    )
    if run.stopped:
        return None
    (server,) = servers
    if client not in server.clients:
        raise ValueError(
            f"Client {client} is not in the run: {[refusal.reason for refusal in server.refused]}."
        )
    # What the server knows: its own blocks, and the client's as it averaged them last.
    nets = nn.ModuleDict({"g": generator, "d": discriminator})
    nets.load_state_dict({**server.state(), **server.clients[client].state})
    return Watched(generator, discriminator, server.generators, dealt, client)


def attack_run(
    watched, scenario, auxiliary="runes", depth=None, number=128, steps=250, on_step=None
):
    """Attack the watched client under the scenario's protection; returns a `fedgen_lab.privacy.smashed.Leak`.

    auxiliary: the name of a domain whose pictures the attacker has. depth: blocks before the cut, as the scenario's
    cut of this client has them unless given. number: secret pictures at most. Raises ValueError when the attacker's
    domain is the client's own, or the cut is neither one of bits nor `depth` is given.
    """
    dealt, client = watched.dealt, watched.client
    secret = dealt.domains[int(dealt.domain_of[client])]
    if auxiliary == secret:
        raise ValueError(
            f"The attacker must not know the client's own domain {secret!r}; give it another one's pictures."
        )
    if depth is None:
        cuts = scenario.cuts.split(",")
        cut = cuts[client % len(cuts)]
        if cut not in ("0000", "1010", "0101", "1111"):
            raise ValueError(
                f"Say which depth to attack: the cuts {scenario.cuts!r} don't name one for both nets."
            )
        depth = 1 + int(cut[0])
    pictures = dealt.pictures[client][:number]
    domain = load_domain(auxiliary, AUXILIARY, pictures.shape[-1], scenario.seed)
    return attack(
        watched.generator,
        watched.discriminator,
        pictures,
        dealt.labels[client][:number],
        domain.as_tensor(),
        depth,
        scenario.batch_size,
        steps,
        scenario.seed_of(_ATTACK),
        on_step,
        noise=scenario.noise,
        bits=scenario.bits,
    )
