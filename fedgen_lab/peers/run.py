"""Many peers on one clock: an event queue that lets whoever is next do one thing, until the time is over.

Lab 10. What PDFed calls asynchronous training (arXiv 2409.18245, section 4.1) is made deterministic here: each peer
says how long its next thing takes (`Peer.life`), and a heap of (time, peer) decides who goes on. Times are simulated:
devices and links are those of `fedgen_lab.wireless`.
"""

import heapq
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch

from fedgen_lab.federation.run import Stopped
from fedgen_lab.flops import flop_counter
from fedgen_lab.peers.attackers import attack_of
from fedgen_lab.peers.chain import Terms
from fedgen_lab.peers.ledger import Ledger
from fedgen_lab.peers.peer import DRAW_STEPS, Pace, Peer, start_model
from fedgen_lab.peers.store import Shelf, cid_of
from fedgen_lab.wireless.channel import Network, phase_seconds, place_clients

FLOPS_PER_SECOND = 5e9  # the median device: a small one, on which a training step takes the better part of a second
BLOCKS_A_VOTER = 10  # a model takes votes for so many blocks, times the voters


@dataclass(frozen=True)
class Moment:
    """Something that a peer just finished, at a simulated time, and what stood on the chain after it."""

    seconds: float
    peer: int
    what: str  # "join", "train", "upload", "fetch", "judge", "wait", "leave" or "close"
    events: tuple  # new `Event`s of the chain


@dataclass(frozen=True)
class PeersOutcome:
    """What a finished or stopped run leaves behind."""

    scenario: object
    chain: object
    store: object
    peers: tuple
    moments: tuple
    stopped: bool = False
    samples: dict = field(
        default_factory=dict, repr=False
    )  # content -> pictures that were drawn to judge it

    @property
    def names(self):
        """Peer numbers by account."""
        return {peer.account: peer.number for peer in self.peers}

    def models(self):
        """One row a model, in the order of the chain: seconds, author (peer number), content, cid, parents (rows), and
        crossed: does it go on from another peer's model?
        """
        rows, place = [], {}
        for moment in self.moments:
            for event in moment.events:
                if event.kind == "Submitted":
                    content = event.values["content"]
                    parents = tuple(place[parent] for parent in event.values["parents"])
                    place[content] = len(rows)
                    author = self.names.get(event.account, -1)  # a stranger's
                    crossed = any(rows[parent][1] != author for parent in parents)
                    rows.append(
                        (moment.seconds, author, content, cid_of(content), parents, crossed)
                    )
        return pd.DataFrame(
            rows, columns=["seconds", "author", "content", "cid", "parents", "crossed"]
        )

    def votes(self):
        """The peers' revealed votes: one row a model (in the order of the chain), one column a peer; NaN for none.

        Strangers' votes on the same chain are left out.
        """
        table = pd.DataFrame(
            np.nan, index=range(len(self.models())), columns=[peer.number for peer in self.peers]
        )
        row = {content: number for number, content in enumerate(self.models()["content"])}
        for moment in self.moments:
            for event in moment.events:
                if event.kind == "Revealed" and event.account in self.names:
                    table.loc[row[event.values["content"]], self.names[event.account]] = (
                        event.values["score"]
                    )
        return table


def run_peers(scenario, chain=None, store=None, on_moment=None, should_stop=None, known=None):
    """Play `scenario` and return its `PeersOutcome`.

    chain: where the peers meet, a `Chain` or a `Ledger` with an account for each; None makes a `Ledger`. store: a
    `Folder` or `Ipfs`; None keeps models in memory. on_moment(moment) is called after everything a peer does; when
    should_stop() turns true the run ends, and what is on the chain stays. The same scenario gives the same models.
    known: a dict, as of `Peer`, that spares runs what others computed.
    """
    chain = chain or Ledger(scenario.voters + 1, terms_of(scenario))
    store, samples, board, moments = store or Shelf(), {}, {}, []
    peers = tuple(
        Peer(
            number,
            scenario,
            chain,
            store,
            pace,
            attack_of(scenario, number),
            None,
            samples,
            board,
            known=known,
        )
        for number, pace in enumerate(paces(scenario))
    )

    def on_step(step, steps, loss):
        if should_stop and should_stop():
            raise Stopped

    queue, seen, half = [], 0, scenario.seconds / 2
    for peer in peers:
        is_late = scenario.num_peers - scenario.late <= peer.number < scenario.num_peers
        heapq.heappush(queue, (half if is_late else 0.0, peer.number, peer.life(on_step=on_step)))

    def note(seconds, number, what):
        nonlocal seen
        events, seen = chain.events(seen)
        moments.append(Moment(seconds, number, what, tuple(events)))
        if on_moment:
            on_moment(moments[-1])

    stopped, now = False, 0.0
    try:
        note(0.0, 0, "join")
        while queue and queue[0][0] <= scenario.seconds:
            now, number, life = heapq.heappop(queue)
            on_step(0, 0, 0.0)
            if number < scenario.leavers and now >= half:
                peers[number]._send(
                    "leave"
                )  # refused while votes are open: then it tries again at the close
                note(now, number, "leave")
                continue
            what, seconds = next(life)
            note(now, number, what)
            heapq.heappush(queue, (now + seconds, number, life))
    except Stopped:
        stopped = True
    if not stopped:
        chain.wait_blocks(
            chain.terms.commit_blocks + 1
        )  # the last votes are revealed when others may no longer vote
        for peer in peers:
            peer.reveal()
            if peer.number < scenario.leavers and chain.participant(peer.account)["registered"]:
                peer._send("leave")
        note(scenario.seconds, 0, "close")
    return PeersOutcome(scenario, chain, store, peers, tuple(moments), stopped, samples)


def terms_of(scenario):
    """The contract's `Terms` for a scenario."""
    blocks = scenario.commit_blocks or BLOCKS_A_VOTER * scenario.voters
    return Terms(commit_blocks=blocks, reward_wei=scenario.reward_wei, budget=1e6)


def paces(scenario):
    """How fast each peer is: a list of `Pace`s. Its device and its place in the cell follow from the seed."""
    network = Network(
        scenario.voters,
        scenario.bandwidth_hz,
        flops_per_second=FLOPS_PER_SECOND,
        fading=False,
        seed=scenario.seed,
    )
    flops = _picture_flops(
        start_model(scenario).unet
    )  # forward; backward costs twice as much again
    one = np.ones((1, scenario.voters))
    clients, first = place_clients(network), np.zeros(1, int)
    down, step, up = phase_seconds(
        network, clients, first, one, one * 3 * scenario.batch_size * flops, one
    )
    draw = phase_seconds(network, clients, first, one, one * DRAW_STEPS * flops, one)[1]
    return [Pace(*map(float, pace)) for pace in zip(down[0], up[0], step[0], draw[0], strict=True)]


@torch.no_grad()
def _picture_flops(unet):
    """Operations of one forward pass for one picture, counted by torch."""
    picture = torch.zeros(
        1, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size
    )
    with flop_counter() as counter:
        unet(
            picture, torch.zeros(1, dtype=torch.long), class_labels=torch.zeros(1, dtype=torch.long)
        )
    return counter.get_total_flops()
