"""A peer as a process of its own, on any Ethereum node and any store that others can reach too.

Lab 10. The peer is the very object that the event queue plays (`fedgen_lab.peers.peer.Peer`); only the clock is real.
It may be killed at any moment and started again with the same command: what it had done stands on the chain.

    python -m fedgen_lab.peers.process 0 --endpoint http://127.0.0.1:8545 --contract 0x... --store models/ --turns 3

Deploy a contract with `Chain(endpoint, terms=...)`. Knobs of the scenario: --set num_peers=2 --set steps=20 ...
"""

import argparse
import time
from pathlib import Path

from fedgen_lab.peers.chain import Chain
from fedgen_lab.peers.peer import Peer
from fedgen_lab.peers.run import paces
from fedgen_lab.peers.scenario import PeersScenario
from fedgen_lab.peers.store import Folder, Ipfs

LOOK_SECONDS = 0.3  # between two looks at the chain, when there is nothing to do


def go_on(peer, turns, seconds=3600.0):
    """Let a peer live until it has submitted `turns` models and revealed all its votes on `turns` models of everybody.

    Raises TimeoutError after `seconds`, saying what it was waiting for.
    """
    end = time.monotonic() + seconds
    for what, _ in peer.life(until=turns):
        print(f"peer {peer.number}: {what}, {len(peer.models)} models on the chain", flush=True)
        if what != "wait":
            continue
        wanted = turns * peer.scenario.num_peers
        if len(peer.models) >= wanted and peer.promised <= peer.revealed:
            return
        if time.monotonic() > end:
            raise TimeoutError(
                f"After {seconds:.0f} s peer {peer.number} sees {len(peer.models)} of {wanted} models, and revealed "
                f"{len(peer.revealed)} of {len(peer.promised)} votes. Are all peers running, and are blocks made?"
            )
        time.sleep(LOOK_SECONDS)


def scenario_of(settings):
    """A `PeersScenario` from texts such as "steps=20". Raises ValueError for a knob that there is not."""
    known = {name: field.type for name, field in PeersScenario.__dataclass_fields__.items()}
    knobs = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in known:
            raise ValueError(f"{name!r} is no knob; there are {', '.join(known)}.")
        knobs[name] = known[name](value)
    return PeersScenario(**knobs)


def main():
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m fedgen_lab.peers.process", description=__doc__.split("\n")[0])
    parser.add_argument("number", type=int, help="which peer, from 0")
    parser.add_argument("--endpoint", required=True, help="the node's JSON-RPC address")
    parser.add_argument("--contract", required=True, help="the contract's address")
    parser.add_argument("--store", required=True, help="a folder, or the address of an IPFS node's HTTP interface")
    parser.add_argument("--key", action="append", default=[], help="private key of an account that the node lacks")
    parser.add_argument("--folder", type=Path, help="where the peer keeps its judgements")
    parser.add_argument("--turns", type=int, default=1, help="models to submit")
    parser.add_argument("--set", action="append", default=[], metavar="KNOB=VALUE", dest="settings")
    asked = parser.parse_args()
    scenario = scenario_of(asked.settings)
    store = Ipfs(asked.store) if asked.store.startswith("http") else Folder(asked.store)
    chain = Chain(asked.endpoint, asked.contract, keys=asked.key)
    if asked.folder:
        asked.folder.mkdir(parents=True, exist_ok=True)
    peer = Peer(asked.number, scenario, chain, store, paces(scenario)[asked.number], folder=asked.folder)
    go_on(peer, asked.turns)
    print("\n".join(peer.log), flush=True)


if __name__ == "__main__":
    main()
