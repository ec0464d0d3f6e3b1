"""The chain behind one interface: the embedded machine, a real node as a process, and the ledger in plain Python."""

import http.server
import json
import os
import sys
import threading
import time

import pytest

from fedgen_lab.peers.chain import Chain, Refused, Terms
from fedgen_lab.peers.ledger import Ledger, hash_of

TERMS = Terms(commit_blocks=3)


@pytest.fixture(scope="session")
def anvil(start_anvil):
    """Address of a node that makes a block for every transaction."""
    return start_anvil()


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
        ("Registered", one),
        ("Registered", two),
        ("Registered", three),
        ("Submitted", one),
        ("Committed", two),
        ("Committed", three),
        ("Submitted", two),
    ]
    assert first[2].values == {"validator": True}
    assert first[-1].values == {"content": child, "manifest": b"g" * 32, "parents": [model]}
    assert [(event.kind, event.values) for event in new] == [
        ("Revealed", {"content": model, "score": 2.5})
    ]
    assert chain.models() == [model, child] and chain.model(child).parents == (model,)
    assert (
        chain.vote(model, two) == 2.5
        and chain.vote(model, three) == "committed"
        and chain.vote(child, one) is None
    )
    assert chain.participant(two) == {
        "registered": True,
        "validator": False,
        "open_votes": 0,
        "budget": 99.5,
    }
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
    assert (
        sys.getrecursionlimit() == limit < 50_000
    )  # far above it, deeply nested JSON ends the process


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


NO_NODES = {
    "no JSON": b"<html>hi</html>",
    "a list": b"[]",
    "a number": b"7",
    "nothing": b"",
    "half": b'{"jsonrpc":"2.0","re',
    "no result": b'{"jsonrpc":"2.0","id":0}',
    "no text": b"\xff\xfe",
}


@pytest.mark.parametrize("answer", NO_NODES.values(), ids=NO_NODES)
def test_what_is_no_node_is_told_in_a_sentence(answer):
    class Other(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    with pytest.raises(
        ConnectionError, match=f"No Ethereum node answers at {address} .*Start one and try again"
    ):
        Chain(address)
    server.shutdown()


class Answers(http.server.ThreadingHTTPServer):
    """A node that says what `told(method, params)` says, JSON-RPC without its frame; pause: seconds between bytes."""

    def __init__(self, told, pause=0.0):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                answer = {
                    **told(asked["method"], asked["params"]),
                    "jsonrpc": "2.0",
                    "id": asked["id"],
                }
                answer = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                for byte in answer if pause else ():
                    time.sleep(pause)
                    self.wfile.write(bytes([byte]))
                self.wfile.write(b"" if pause else answer)

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_):  # who asked has gone
        pass


NO_ACCOUNTS = {
    "error": {"code": -32601, "message": "the method eth_accounts does not exist/is not available"}
}
KEYS = ["0x" + "11" * 32]


@pytest.mark.parametrize(
    "answer",
    [
        {"result": None},
        {"result": "x"},
        {"result": {}},
        {"result": ["x"]},
        {"error": "bad"},
        {"error": None, "result": None},
        {"error": {"code": "x"}},
    ],
    ids=str,
)
def test_an_answer_in_json_that_makes_no_sense_is_told_in_a_sentence(answer):
    with Answers(lambda *_: answer) as node:
        told = f"^No Ethereum node answers at {node.address} .*to eth_accounts it says .*Start one and try again"
        with pytest.raises(ConnectionError, match=told):
            Chain(node.address)
        node.shutdown()


def test_a_node_that_answers_everything_with_an_empty_list_is_told_when_it_matters():
    with Answers(lambda *_: {"result": []}) as node:
        with pytest.raises(
            ValueError, match=f"The node at {node.address} has no accounts. Give keys"
        ):
            Chain(node.address)
        with pytest.raises(
            ConnectionError, match=f"No Ethereum node answers at {node.address} .*it says"
        ):
            Chain(node.address, keys=KEYS)
        node.shutdown()


def test_an_answer_that_drips_has_a_deadline(monkeypatch):
    monkeypatch.setattr("fedgen_lab.peers.node.ANSWER_SECONDS", 0.5)
    with Answers(lambda *_: {"result": []}, pause=0.2) as node:
        with pytest.raises(
            ConnectionError, match=f"{node.address} .*not all of its answer came within 0.5 s"
        ):
            Chain(node.address)
        node.shutdown()


def test_a_node_that_does_not_know_its_accounts_is_used_with_keys(anvil):
    from eth_account import Account

    rich, key = Chain(anvil, terms=TERMS), Account.from_key("0x" + "44" * 32)
    rich.w3.eth.send_transaction({"from": rich.accounts[0], "to": key.address, "value": 10**18})

    def hosted(method, params):
        if method == "eth_accounts":
            return NO_ACCOUNTS
        return rich.w3.provider.make_request(method, params)

    with Answers(hosted) as node:
        chain = Chain(node.address, contract=rich.address, keys=[key.key])
        assert chain.accounts == [key.address]
        chain.register(key.address)
        node.shutdown()
    assert rich.participant(key.address)["registered"]


def test_a_node_that_refuses_every_question_is_told():
    with Answers(lambda *_: NO_ACCOUNTS) as node:
        with pytest.raises(
            ConnectionError,
            match=f"The node at {node.address} tells no contract's code: the method",
        ):
            Chain(node.address, contract="0x" + "11" * 20, keys=KEYS)
        with pytest.raises(
            ValueError, match=f"The node at {node.address} takes no transaction of 0x.*: the method"
        ):
            Chain(node.address, keys=KEYS)
        node.shutdown()


def test_another_contract_is_not_taken_for_ours():
    chain = Chain(terms=TERMS)
    kept = bytes.fromhex("602a60005260206000f3")  # answers 42 to whatever it is asked
    code = bytes.fromhex("600a600c600039600a6000f3") + kept
    sent = chain.w3.eth.send_transaction({"from": chain.accounts[0], "data": code, "gas": 200_000})
    other = chain.w3.eth.get_transaction_receipt(sent).contractAddress
    assert bytes(chain.w3.eth.get_code(other)) == kept
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "web3.EthereumTesterProvider", lambda: chain.w3.provider
        )  # the same machine, joined again
        assert Chain(contract=chain.address.lower()).terms == TERMS
        with pytest.raises(ValueError, match=f"There is another contract than ours at {other}"):
            Chain(contract=other)
        with pytest.raises(ValueError, match="'0x12' is no address"):
            Chain(contract="0x12")


NO_TERMS = {
    "deposit_wei": -1,
    "reward_wei": 2**128,
    "commit_blocks": 0,
    "budget": float("nan"),
}


@pytest.mark.parametrize(("term", "value"), NO_TERMS.items(), ids=NO_TERMS)
def test_terms_that_can_not_be_are_named(term, value):
    with pytest.raises(ValueError, match=f"^{term} must be a"):
        Terms(**{term: value})


@pytest.mark.parametrize("kind", ["embedded", "ledger"])
def test_what_is_no_digest_does_not_reach_the_chain(kind):
    chain = Ledger(terms=TERMS) if kind == "ledger" else Chain(terms=TERMS)
    one, block = chain.accounts[1], chain.block()
    for content, manifest in ((b"c" * 31, b"m" * 32), (b"c" * 32, "m" * 32), (None, b"m" * 32)):
        with pytest.raises(ValueError, match="must be a SHA-256 digest, 32 bytes"):
            chain.submit(one, content, manifest)
    with pytest.raises(ValueError, match="at most 4 parents; got 5"):
        chain.submit(one, b"c" * 32, b"m" * 32, [bytes([number]) * 32 for number in range(5)])
    assert chain.block() == block


def test_who_has_no_money_is_told(anvil):
    from eth_account import Account

    poor = Account.from_key("0x" + "33" * 32)
    chain = Chain(anvil, contract=Chain(anvil, terms=TERMS).address, keys=[poor.key])
    with pytest.raises(
        ValueError, match=f"takes no transaction of {poor.address}: .*See to its money"
    ):
        chain.register(poor.address)


def test_a_node_without_blocks_is_told(start_anvil, monkeypatch):
    chain = Chain(start_anvil(), terms=TERMS)
    monkeypatch.setattr("fedgen_lab.peers.chain.BLOCK_SECONDS", 0.5)
    with pytest.raises(TimeoutError, match="No new block"):
        chain.wait_blocks(1)
    chain.w3.provider.make_request("evm_setAutomine", [False])
    with pytest.raises(TimeoutError, match="in no block"):
        chain.register(chain.accounts[1])
    with pytest.raises(TimeoutError, match="wait for a block"):
        chain.wait_for_own(chain.accounts[1])
    chain.w3.provider.make_request("evm_mine", [])
    chain.wait_for_own(chain.accounts[1])
    assert chain.participant(chain.accounts[1])["registered"]


def test_a_ledger_shows_which_block_was_tampered_with():
    ledger = Ledger(terms=TERMS)
    one = ledger.accounts[1]
    ledger.register(one)
    for number in range(1, 5):
        ledger.submit(one, bytes([number]) * 32, os.urandom(32))
    assert ledger.broken() is None
    ledger.blocks[3]["account"] = ledger.accounts[2]
    assert ledger.broken() == 3
    ledger.blocks[3]["hash"] = hash_of(
        ledger.blocks[3]
    )  # mended here, it no longer fits the next one
    assert ledger.broken() == 4
