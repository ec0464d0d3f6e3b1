"""Peers who don't play fair: seven ways, each a few lines, to try against rules for votes and scores.

Lab 10. PDFed (arXiv 2409.18245) trusts that bad models "will not be picked up" and shows no attack; these are ours,
after what the literature on decentralised learning fears. An attacker follows the protocol but for what stands here.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

ATTACKED_PICTURES = 4  # so few pictures an evader trains on that its model copies them
NOISE = 1e-4  # what a free-rider adds: invisible, and enough for another content id


@dataclass(frozen=True)
class Attack:
    """What an attacker does differently; None where it does what everybody does.

    train: (peer, base, turn) -> weights; vote: (peer, content, its honest score) -> the score it gives.
    """

    name: str
    what: str
    train: Callable | None = None
    vote: Callable | None = None
    withholds: bool = False  # submits digests of weights that it shows nobody
    hides_parents: bool = False  # submits as if it had begun from nothing
    waits: bool = False  # where votes are open, votes only once there is one to read


def attack_of(scenario, number):
    """The `Attack` of peer `number`, or None if it is honest: the last `scenario.attackers` trainers attack.

    Raises ValueError for an attack that nobody knows.
    """
    if scenario.attackers and scenario.attack not in ATTACKS:
        raise ValueError(f"attack must be one of {', '.join(ATTACKS)}; got {scenario.attack!r}.")
    attacks = scenario.num_peers - scenario.attackers <= number < scenario.num_peers
    return ATTACKS[scenario.attack] if attacks else None


def _add_noise(peer, base, turn):
    generator = torch.Generator().manual_seed(peer.scenario.seed_of(3, peer.number, turn))
    return {
        name: tensor + NOISE * torch.randn(tensor.shape, generator=generator)
        for name, tensor in base.items()
    }


def _train_on(peer, base, turn, change):
    """The weights after training on pictures and labels that `change` made of the peer's own."""
    honest = peer.holding
    peer.holding = replace(honest, train=change(honest.train))
    try:
        return peer.train(base, turn)
    finally:
        peer.holding = honest


def _mirrored_few(train):
    few = train.take(range(ATTACKED_PICTURES))
    return replace(few, images=few.images.flip(-1))


def _flipped(train):
    return replace(train, images=255 - train.images, labels=train.labels.flip(0))


def _for_our_own(peer, content, score):
    """The best score for attackers' models, a bad one for all others."""
    author = peer.chain.accounts.index(peer.models[content].author) - 1
    first = peer.scenario.num_peers - peer.scenario.attackers
    return 0.0 if first <= author < peer.scenario.num_peers else 100.0 * (1.0 + score)


def _as_others(peer, content, score):
    """The mean of what others posted about this model, where votes are open; else of all they ever revealed of any.

    What it once committed it also reveals: it must not change when more becomes known.
    """
    posted = peer.board.get(content, {})
    revealed = [
        vote
        for votes in peer.votes.values()
        for voter, vote in votes.items()
        if voter != peer.account
    ]
    seen = list(posted.values()) or revealed
    return peer.judged[content].setdefault("said", sum(seen) / len(seen) if seen else 0.0)


ATTACKS = {
    attack.name: attack
    for attack in (
        Attack("free-rider", "submits what it went on from, with a little noise", train=_add_noise),
        Attack("copycat", "the same, and names no parents", train=_add_noise, hides_parents=True),
        Attack(
            "evader",
            "trains on mirrored copies of four pictures until it copies them",
            train=lambda peer, base, turn: _train_on(peer, base, turn, _mirrored_few),
        ),
        Attack(
            "poisoner",
            "trains on negatives with wrong labels",
            train=lambda peer, base, turn: _train_on(peer, base, turn, _flipped),
        ),
        Attack("sybils", "vote for each other and against everybody else", vote=_for_our_own),
        Attack(
            "vote-copier",
            "votes as others did, whatever it thinks itself",
            vote=_as_others,
            waits=True,
        ),
        Attack("withholder", "submits digests and keeps the weights to itself", withholds=True),
    )
}
