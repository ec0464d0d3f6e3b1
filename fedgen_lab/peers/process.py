"""A peer as a process of its own, on any Ethereum node and any store that others can reach too.

Lab 10. The peer is the very object that the event queue plays (`fedgen_lab.peers.peer.Peer`); only the clock is real.
It may be killed at any moment and started again with the same command: what it had done stands on the chain. Its
folder keeps what it judged and the key that it signs with, which unlike the simulation's nobody can guess.

    python -m fedgen_lab.peers.process 0 --endpoint http://127.0.0.1:8545 --contract 0x... --store models --folder me

Deploy a contract with `Chain(endpoint, terms=...)`. Knobs of the scenario: --set num_peers=2 --set steps=20 ...
"""

import argparse
import os
import sys
import time
from pathlib import Path

from fedgen_lab.files import patiently
from fedgen_lab.peers.chain import STATE_HELP, Chain
from fedgen_lab.peers.peer import Peer
from fedgen_lab.peers.run import paces
from fedgen_lab.peers.scenario import PeersScenario
from fedgen_lab.peers.store import Folder, Ipfs, cid_of

KEY_HELP = "private key of the peer's account if the node lacks it; better in the environment variable PEER_KEY"
FOLDER_HELP = (
    "the peer's own folder, for its judgements and its signing key; made if it is not there"
)
LOOK_SECONDS = 0.3  # between two looks at the chain, when there is nothing to do
WITHHELD_SECONDS = (
    60.0  # how long a vote waits for a model that is needed again, after a crash, and not offered
)


def go_on(peer, turns, seconds=3600.0):
    """Let a peer live until it has submitted `turns` models and revealed all its votes on `turns` models of everybody.

    Votes that only wait for withheld models are given up after a minute. Raises TimeoutError after `seconds`, saying
    what it was waiting for.
    """
    end, told, offered = time.monotonic() + seconds, 0, time.monotonic()
    for what, _ in peer.life(until=turns):
        for line in peer.log[told:]:
            print(f"peer {peer.number}: {line}", flush=True)
        told = len(peer.log)
        print(f"peer {peer.number}: {what}, {len(peer.models)} models on the chain", flush=True)
        if what != "wait":
            continue
        wanted, due = turns * peer.scenario.num_peers, peer.promised - peer.revealed - peer.lost
        if len(peer.models) >= wanted and not due:
            return
        if len(peer.models) < wanted or due & peer.judged.keys():
            offered = time.monotonic()
        elif time.monotonic() > offered + WITHHELD_SECONDS:
            lacking = ", ".join(cid_of(content) for content in sorted(due))
            print(
                f"peer {peer.number}: gave up what it promised to vote on: nobody offers {lacking}",
                flush=True,
            )
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
        try:
            knobs[name] = known[name](value)
        except ValueError:
            raise ValueError(
                f"{name} must be of the kind {known[name].__name__}; got {value!r}."
            ) from None
    return PeersScenario(**knobs)


def own_key(folder):
    """The Ed25519 key in a peer's folder, made at its first start: its manifests, salts and noise hang on it."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    path = folder / "key"
    if not path.exists():
        half = folder / "key.part"
        half.unlink(missing_ok=True)
        with open(half, "xb", opener=lambda name, how: os.open(name, how, 0o600)) as file:
            file.write(os.urandom(32))
        patiently(lambda: half.replace(path))
    secret = path.read_bytes()
    if len(secret) != 32:
        raise ValueError(
            f"{path} holds {len(secret)} bytes, no key of 32. Put the peer's own back, or take it away."
        )
    return Ed25519PrivateKey.from_private_bytes(secret)


def main():
    """The command line; see the module's docstring. Ends with one sentence where something is missing."""
    limit = sys.getrecursionlimit()
    from web3.exceptions import Web3Exception

    sys.setrecursionlimit(limit)  # lifted by the import; see Chain
    asked = _asked()
    try:
        _start(asked)
    except Web3Exception as error:
        told = f"the node at {asked.endpoint} knows nothing of {asked.contract} any more ({type(error).__name__})."
        raise SystemExit(
            f"peer {asked.number}: {told} {STATE_HELP} Or deploy the contract again."
        ) from None
    except (
        OSError,
        ValueError,
    ) as error:  # a node or a store that is away or full, a knob that there is not
        again = (
            ""
            if isinstance(error, ValueError)
            else " What is on the chain stays: start this command again."
        )
        raise SystemExit(f"peer {asked.number}: {error}{again}") from None


def _asked():
    parser = argparse.ArgumentParser(
        prog="python -m fedgen_lab.peers.process", description=__doc__.split("\n")[0]
    )
    parser.add_argument("number", type=int, help="which peer, from 0")
    parser.add_argument("--endpoint", required=True, help="the node's JSON-RPC address")
    parser.add_argument("--contract", required=True, help="the contract's address")
    parser.add_argument(
        "--store", required=True, help="a folder, or the address of an IPFS node's HTTP interface"
    )
    parser.add_argument("--key", default=os.environ.get("PEER_KEY"), help=KEY_HELP)
    parser.add_argument("--folder", type=Path, required=True, help=FOLDER_HELP)
    parser.add_argument("--turns", type=int, default=1, help="models to submit")
    parser.add_argument("--set", action="append", default=[], metavar="KNOB=VALUE", dest="settings")
    return parser.parse_args()


def _start(asked):
    scenario = scenario_of(asked.settings)
    if not 0 <= asked.number < scenario.voters:
        raise ValueError(
            f"number must lie in 0 to {scenario.voters - 1}, the peers there are; got {asked.number}."
        )
    store = Ipfs(asked.store) if asked.store.startswith("http") else Folder(asked.store)
    chain = Chain(asked.endpoint, asked.contract, keys=[asked.key] if asked.key else [])
    if asked.key is None and len(chain.accounts) < asked.number + 2:
        raise ValueError(
            f"The node has {len(chain.accounts)} accounts, too few for peer {asked.number}. Use --key."
        )
    account = chain.accounts[-1] if asked.key else None
    asked.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    peer = Peer(
        asked.number,
        scenario,
        chain,
        store,
        paces(scenario)[asked.number],
        folder=asked.folder,
        account=account,
    )
    peer.key = own_key(asked.folder)
    chain.wait_for_own(
        peer.account
    )  # who was killed while a submission was on its way must not make it again
    go_on(peer, asked.turns)


if __name__ == "__main__":
    main()
