"""The chain behind one interface: the embedded machine, a real node as a process, and the ledger in plain Python."""

import os
import shutil
import socket
import subprocess
import sys
import time

import pytest

from fedgen_lab.peers.chain import Chain, Refused, Terms
from fedgen_lab.peers.ledger import Ledger, hash_of

TERMS = Terms(commit_blocks=3)


@pytest.fixture(scope="session")
def anvil(tmp_path_factory):
    """Address of a node: anvil from the PATH, or fetched by npm into a folder of the test's own."""
    program = shutil.which("anvil")
    if program is None:
        if shutil.which("npm") is None:
            pytest.skip("no anvil and no npm to fetch it with")
        folder = tmp_path_factory.mktemp("anvil")
        command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder)]
        try:
            subprocess.run([*command, "@foundry-rs/anvil@1.7.1"], check=True, timeout=120, capture_output=True)
        except (subprocess.SubprocessError, OSError) as error:
            pytest.skip(f"npm could not fetch anvil: {error}")
        program = str(folder / "node_modules" / ".bin" / "anvil")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    node = subprocess.Popen([program, "--port", str(port), "--silent"], stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 30
        while time.monotonic() < end and node.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        node.terminate()
        node.wait(10)


@pytest.fixture(params=["embedded", "node", "ledger"])
def make(request):
    """A function that makes a chain of one kind."""
    if request.param == "ledger":
        return lambda: Ledger(terms=TERMS)
    endpoint = request.getfixturevalue("anvil") if request.param == "node" else None
    return lambda: Chain(endpoint, terms=TERMS)


def test_a_vote_from_promise_to_reveal_reads_the_same_everywhere(make):
    chain = make()
    one, two, three = chain.accounts[1:4]
    for account in (one, two):
        chain.register(account)
    chain.register(three, validator=True)
    model, child, salt = b"m" * 32, b"c" * 32, b"s" * 32
    chain.submit(one, model, b"f" * 32)
    chain.commit(two, model, 2.5, salt, epsilon=0.5)
    chain.commit(three, model, 1.5, salt)
    with pytest.raises(Refused, match="^voted before$"):
        chain.commit(two, model, 2.5, salt)
    chain.submit(two, child, b"g" * 32, [model])
    first, cursor = chain.events()
    chain.reveal(two, model, 2.5, salt)
    new, _ = chain.events(cursor)
    told = [(event.kind, event.account) for event in first]
    assert told == [
        ("Registered", one), ("Registered", two), ("Registered", three), ("Submitted", one), ("Committed", two),
        ("Committed", three), ("Submitted", two),
    ]  # fmt: skip
    assert first[2].values == {"validator": True}
    assert first[-1].values == {"content": child, "manifest": b"g" * 32, "parents": [model]}
    assert [(event.kind, event.values) for event in new] == [("Revealed", {"content": model, "score": 2.5})]
    assert chain.models() == [model, child] and chain.model(child).parents == (model,)
    assert chain.vote(model, two) == 2.5 and chain.vote(model, three) == "committed" and chain.vote(child, one) is None
    assert chain.participant(two) == {"registered": True, "validator": False, "open_votes": 0, "budget": 99.5}
    with pytest.raises(KeyError, match="No model"):
        chain.model(b"x" * 32)
    assert chain.events(chain.block() + 1) == ([], chain.block() + 1)


def test_another_process_joins_a_contract_by_its_address(anvil):
    chain = Chain(anvil, terms=TERMS)
    chain.register(chain.accounts[1])
    again = Chain(anvil, contract=chain.address)
    assert again.terms == TERMS and again.events()[0] == chain.events()[0]


def test_an_account_with_a_key_of_its_own_signs_here(anvil):
    from eth_account import Account

    key = Account.from_key("0x" + "11" * 32)
    rich = Chain(anvil, terms=TERMS)
    rich.w3.eth.send_transaction({"from": rich.accounts[0], "to": key.address, "value": 10**18})
    chain = Chain(anvil, contract=rich.address, keys=[key.key])
    chain.register(key.address)
    assert rich.participant(key.address)["registered"]
    with pytest.raises(Refused, match="already registered"):
        chain.register(key.address)


def test_the_embedded_machine_leaves_pythons_recursion_limit_as_it_was():
    limit = sys.getrecursionlimit()
    Chain(terms=TERMS)
    assert sys.getrecursionlimit() == limit < 50_000  # far above it, deeply nested JSON ends the process


def test_the_embedded_machine_also_takes_keys():
    from eth_account import Account

    key = Account.from_key("0x" + "22" * 32)
    chain = Chain(terms=TERMS, keys=[key.key])
    assert chain.accounts[-1] == key.address
    chain.w3.eth.send_transaction({"from": chain.accounts[0], "to": key.address, "value": 10**18})
    chain.register(key.address)
    assert chain.participant(key.address)["registered"]


def test_a_missing_node_or_contract_is_named():
    with pytest.raises(ConnectionError, match="No Ethereum node answers at http://127.0.0.1:9"):
        Chain("http://127.0.0.1:9")
    with pytest.raises(ValueError, match="There is no contract at 0x00"):
        Chain(contract="0x" + "00" * 20)


def test_a_ledger_shows_which_block_was_tampered_with():
    ledger = Ledger(terms=TERMS)
    one = ledger.accounts[1]
    ledger.register(one)
    for number in range(1, 5):
        ledger.submit(one, bytes([number]) * 32, os.urandom(32))
    assert ledger.broken() is None
    ledger.blocks[3]["account"] = ledger.accounts[2]
    assert ledger.broken() == 3
    ledger.blocks[3]["hash"] = hash_of(ledger.blocks[3])  # mended here, it no longer fits the next one
    assert ledger.broken() == 4
