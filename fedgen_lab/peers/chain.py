"""The chain that peers meet on: the contract of this room on an Ethereum Virtual Machine, by default one inside Python.

Lab 10; PDFed, arXiv 2409.18245, section 4.1, where a public Ethereum chain takes the server's place. `Chain()` starts
an embedded machine (eth-tester with py-evm): offline, nothing to start, a new block for every transaction, and one
miner, so it proves nothing to anybody. `Chain("http://127.0.0.1:8545")` speaks to any node instead. The rules stand in
contract.vy; `fedgen_lab.peers.ledger` has the same methods in plain Python, without money.
"""

import json
import math
import sys
import time
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

from fedgen_lab.peers.node import provider_of

GAS = 600_000  # for every transaction alike; asking the machine for an estimate would run each one twice
PAGE_BLOCKS, NODE_PAGE_BLOCKS = (
    8,
    500,
)  # events are read so many at a time: the embedded machine gets slow over more
BLOCK_SECONDS = 120.0  # for so long a node may make no block
MOST_SCORE = 1e6
STATE_HELP = (
    "A node that was started anew needs the state it had: start anvil with --state FILE, each time."
)
TERMS_BYTES = (
    128  # at the end of a deployed contract's code, where Vyper puts what the constructor was told
)


class Refused(Exception):
    """The chain did not do what was asked; the message is the contract's reason."""


@dataclass(frozen=True)
class Terms:
    """What everybody who takes part agrees to; fixed when the contract is deployed. ValueError for what can't be."""

    deposit_wei: int = 1_000
    reward_wei: int = 100  # for a model that is the best a voter has seen
    commit_blocks: int = 12  # for so many blocks after its submission a model takes votes
    budget: float = 100.0  # epsilon that a voter may spend in all

    def __post_init__(self):
        millionths(self.budget, "budget")
        for name, least in (("deposit_wei", 0), ("reward_wei", 0), ("commit_blocks", 1)):
            value = getattr(self, name)
            if (
                isinstance(value, bool)
                or not isinstance(value, Integral)
                or not least <= value < 2**128
            ):
                raise ValueError(
                    f"{name} must be a whole number from {least} to 2**128 - 1; got {value!r}."
                )


@dataclass(frozen=True)
class Event:
    """One entry of the chain's log: what happened in which block, and who did it (an address)."""

    block: int
    kind: str  # Registered, Left, Submitted, Committed, Revealed, Rewarded, Settled, Funded or Withdrawn
    account: str
    values: dict  # the rest: content (32 bytes), parents, score, amounts in wei


@dataclass(frozen=True)
class Submission:
    """What the chain knows of a model."""

    content: bytes  # SHA-256 of the weights, 32 bytes
    author: str
    manifest: bytes  # SHA-256 of the manifest, 32 bytes
    block: int
    parents: tuple  # of contents


def millionths(value, name, most=MOST_SCORE):
    """A score or an epsilon as the chain keeps it. Raises ValueError for what is not a number from 0 to `most`."""
    if not math.isfinite(value) or not 0 <= value <= most:
        raise ValueError(
            f"{name} must be a number from 0 to {most:,.0f}; got {value}. Don't vote on a broken model."
        )
    return round(value * 1e6)


def check_digests(content, manifest, parents):
    """Raises ValueError for what can't be a submission: each is 32 bytes, and parents are four at most."""
    for name, digest in (
        ("content", content),
        ("manifest", manifest),
        *(("parent", parent) for parent in parents),
    ):
        if not isinstance(digest, bytes) or len(digest) != 32:
            raise ValueError(
                f"{name} must be a SHA-256 digest, 32 bytes; got {digest!r}. See store.digest_of."
            )
    if len(parents) > 4:
        raise ValueError(
            f"A model names at most 4 parents; got {len(parents)}. Leave out the least of them."
        )


def compiled():
    """The contract's interface and bytecode, as Vyper compiled them (contract.json beside contract.vy)."""
    return json.loads(Path(__file__).with_name("contract.json").read_text(encoding="utf-8"))


class Chain:
    """The contract, deployed or joined, with its methods as Python's.

    endpoint: address of a node's JSON-RPC interface; None starts a machine in this process. contract: address of a
    contract that is already there; None deploys a new one under `terms`. keys: private keys of further accounts, which
    sign here and not on the node. Every method that changes something sends one transaction from `account`, waits until
    it is in a block, and raises `Refused` with the contract's reason if it did nothing.
    """

    def __init__(self, endpoint=None, contract=None, terms=None, keys=()):
        limit = sys.getrecursionlimit()
        from web3 import EthereumTesterProvider, Web3
        from web3.middleware import SignAndSendRawMiddlewareBuilder

        self.embedded, self.endpoint, self._read_to = endpoint is None, endpoint, None
        self.w3 = Web3(EthereumTesterProvider() if self.embedded else provider_of(endpoint))
        self.accounts = self._accounts()
        for key in keys:
            try:
                owner = self.w3.eth.account.from_key(key)
            except ValueError as error:
                raise ValueError(
                    f"A key must be 0x and 64 hexadecimal digits; one is not ({error})."
                ) from None
            self.w3.middleware_onion.inject(SignAndSendRawMiddlewareBuilder.build(owner), layer=0)
            self.accounts.append(owner.address)
        artifact = compiled()
        if contract is None:
            terms = terms or Terms()
            budget = millionths(terms.budget, "budget")
            if not self.accounts:
                raise ValueError(
                    f"The node at {endpoint} has no accounts. Give keys, of accounts with some money."
                )
            code = self.w3.eth.contract(abi=artifact["abi"], bytecode=artifact["bytecode"])
            make = code.constructor(
                terms.deposit_wei, terms.reward_wei, terms.commit_blocks, budget
            )
            sent = self._taken(make, {"from": self.accounts[0], "gas": 4_000_000})
            contract = self._receipt(sent).contractAddress
        elif not Web3.is_address(contract):
            raise ValueError(
                f"{contract!r} is no address: 0x and 40 hexadecimal digits. Ask who deployed it."
            )
        self.address = contract = Web3.to_checksum_address(contract)
        code = self._code(contract)
        if not code or code[:-TERMS_BYTES] != bytes.fromhex(artifact["runtime"].removeprefix("0x")):
            what = "another contract than ours" if code else "no contract"
            where = "this chain" if self.embedded else f"the chain of {endpoint}"
            told = f"There is {what} at {contract} on {where}. Ask who deployed it for its address."
            raise ValueError(told if self.embedded else f"{told} {STATE_HELP}")
        self.contract = self.w3.eth.contract(address=contract, abi=artifact["abi"])
        self._kinds = {event.topic: event for event in self.contract.events}
        ask = self.contract.functions
        self.terms = Terms(
            ask.deposit().call(),
            ask.reward().call(),
            ask.commit_blocks().call(),
            ask.budget_e6().call() / 1e6,
        )
        # py-evm lifted it to 100,000, for contracts that call each other as deeply: deep JSON would end the process
        sys.setrecursionlimit(limit)

    # What an account can do

    def register(self, account, validator=False):
        """Take part, as a trainer or as a validator who only votes; the deposit goes along."""
        self._send(account, self.contract.functions.register(validator), self.terms.deposit_wei)

    def leave(self, account):
        """Stop taking part; the deposit goes to the account's balance."""
        self._send(account, self.contract.functions.leave())

    def submit(self, account, content, manifest, parents=()):
        """Submit a model by the digests of its weights and manifest, 32 bytes each; parents: up to four contents."""
        check_digests(content, manifest, parents)
        self._send(account, self.contract.functions.submit(content, manifest, list(parents)))

    def commit(self, account, content, score, salt, epsilon=1.0):
        """Promise a vote on a model. score: 0 to a million, lower is better; salt: 32 random bytes, to be kept."""
        promise = commitment(content, account, millionths(score, "score"), salt)
        self._send(
            account,
            self.contract.functions.commit(content, promise, millionths(epsilon, "epsilon")),
        )

    def reveal(self, account, content, score, salt):
        """Show the vote that was promised."""
        self._send(
            account, self.contract.functions.reveal(content, millionths(score, "score"), salt)
        )

    def fund(self, account, wei):
        """Put money into the pot that models are paid from."""
        self._send(account, self.contract.functions.fund(), wei)

    def settle(self, account, content):
        """Share what a model has earned between its author and its parents. Anybody may ask."""
        self._send(account, self.contract.functions.settle(content))

    def withdraw(self, account):
        """Take one's balance out."""
        self._send(account, self.contract.functions.withdraw(account))

    def wait_blocks(self, number):
        """Wait until so many blocks have passed. The embedded machine makes them; on a node others do.

        Raises TimeoutError if none comes for two minutes.
        """
        if self.embedded:
            self.w3.provider.ethereum_tester.mine_blocks(number)
            return
        newest = self.block()
        last, end = newest + number, time.monotonic() + BLOCK_SECONDS
        while newest < last:
            time.sleep(0.2)
            if self.block() > newest:
                newest, end = self.block(), time.monotonic() + BLOCK_SECONDS
            if time.monotonic() > end:
                raise TimeoutError(
                    f"No new block for {BLOCK_SECONDS:.0f} s. Let the node make some: --block-time 1."
                )

    def wait_for_own(self, account):
        """Wait until every transaction that this account has sent is in a block: one who crashed may have sent some.

        Raises TimeoutError if none of them gets there in two minutes.
        """
        count, end = self.w3.eth.get_transaction_count, time.monotonic() + BLOCK_SECONDS
        while count(account, "pending") > count(account, "latest"):
            time.sleep(0.2)
            if time.monotonic() > end:
                raise TimeoutError(
                    f"Transactions of {account} wait for a block for {BLOCK_SECONDS:.0f} s. Make some."
                )

    # What everybody can see

    def block(self):
        """Number of the newest block."""
        return self.w3.eth.block_number

    def models(self):
        """The contents of all models, in the order of submission."""
        ask = self.contract.functions
        return [ask.contents(number).call() for number in range(ask.num_models().call())]

    def model(self, content):
        """The `Submission` with this content. Raises KeyError if there is none."""
        author, manifest, block, parents = self.contract.functions.model(content).call()
        if int(author, 16) == 0:
            raise KeyError(f"No model {content.hex()} was submitted to this contract.")
        return Submission(content, author, manifest, block, tuple(parents))

    def participant(self, account):
        """{"registered", "validator", "open_votes", "budget"} of an account."""
        registered, validator, open_votes, budget, *_ = self.contract.functions.participants(
            account
        ).call()
        return {
            "registered": registered,
            "validator": validator,
            "open_votes": open_votes,
            "budget": budget / 1e6,
        }

    def vote(self, content, account):
        """An account's vote on a model: None, "committed", or the revealed score."""
        promise, revealed, score = self.contract.functions.votes(content, account).call()
        return score / 1e6 if revealed else "committed" if any(promise) else None

    def balance(self, account):
        """Wei that an account may withdraw."""
        return self.contract.functions.balances(account).call()

    def events(self, since=0):
        """What happened from block `since` on: a list of `Event`s, and the cursor to ask with next time.

        Raises ConnectionError if the node no longer has a block that was read: what it had told is no longer so.
        """
        last, found, page = self.block(), [], PAGE_BLOCKS if self.embedded else NODE_PAGE_BLOCKS
        if self._read_to and self._hash(self._read_to[0]) != self._read_to[1]:
            told = f"The chain of {self.endpoint} lost blocks that were read: its node forgot its last state."
            raise ConnectionError(f"{told} Start anew from what it has now. {STATE_HELP}")
        for start in range(since, last + 1, page):
            logs = self.w3.eth.get_logs(
                {
                    "address": self.address,
                    "fromBlock": start,
                    "toBlock": min(start + page - 1, last),
                }
            )
            found.extend(self._read(log) for log in logs)
        if not self.embedded:
            self._read_to = last, self._hash(last)
        return found, last + 1

    def _hash(self, number):
        """The hash of a block; None if there is none."""
        from web3.exceptions import BlockNotFound

        try:
            return self.w3.eth.get_block(number).hash
        except BlockNotFound:
            return None

    def _read(self, log):
        event = self._kinds["0x" + bytes(log["topics"][0]).hex()]().process_log(log)
        values = {
            name.removesuffix("_e6"): v / 1e6 if name.endswith("_e6") else v
            for name, v in event["args"].items()
        }
        account = next(
            values.pop(name) for name in ("author", "voter", "account") if name in values
        )
        return Event(log["blockNumber"], event["event"], account, values)

    def _accounts(self):
        """The accounts that the node signs for; hosted nodes have none, and many don't know the question."""
        from web3.exceptions import Web3RPCError

        try:
            return list(self.w3.eth.accounts)
        except Web3RPCError:
            return []

    def _code(self, contract):
        """The code at an address, bytes. Raises ConnectionError for a node that doesn't tell."""
        from web3.exceptions import Web3RPCError

        try:
            return bytes(self.w3.eth.get_code(contract))
        except Web3RPCError as error:
            told = f"The node at {self.endpoint} tells no contract's code: {_reason_in(error)}."
            raise ConnectionError(f"{told} Use the address of an Ethereum node.") from error

    def _taken(self, call, how):
        """Send a transaction; returns its hash. Raises ValueError if the node does not take it."""
        from web3.exceptions import Web3RPCError

        try:
            return call.transact(how)
        except (
            Web3RPCError
        ) as error:  # no money, a wrong nonce, an account that the node has no key for
            told = f"The node at {self.endpoint} takes no transaction of {how['from']}: {_reason_in(error)}."
            raise ValueError(f"{told} See to its money and key.") from error

    def _send(self, account, call, wei=0):
        receipt = self._receipt(self._taken(call, {"from": account, "gas": GAS, "value": wei}))
        if receipt.status == 0:  # it is in the block, it cost gas, and it changed nothing
            raise Refused(self._reason(call, account, wei, receipt.blockNumber - 1))

    def _receipt(self, sent):
        from web3.exceptions import TimeExhausted

        try:
            return self.w3.eth.wait_for_transaction_receipt(sent, BLOCK_SECONDS, poll_latency=0.02)
        except TimeExhausted as error:
            told = f"A transaction is in no block after {BLOCK_SECONDS:.0f} s. Let the node make some: --block-time 1."
            raise TimeoutError(told) from error

    def _reason(self, call, account, wei, block):
        """Run the call again without sending it, on the state before it, to hear why it was refused.

        A reason that hangs on the number of the block is heard only on the state after it.
        """
        for state in (block, block + 1):
            try:
                call.call({"from": account, "gas": GAS, "value": wei}, block_identifier=state)
            except Exception as error:  # each kind of node raises its own
                return str(error.args[0]).split("execution reverted: ")[-1]
        return "the node gives no reason"


def _reason_in(error):
    return (error.rpc_response or {}).get("error", {}).get("message", error)


def commitment(content, voter, score_e6, salt):
    """The hash that promises a vote, as `commitment_of` of the contract computes it; 32 bytes."""
    from eth_abi import encode
    from eth_utils import keccak

    return keccak(
        encode(["bytes32", "address", "uint256", "bytes32"], [content, voter, score_e6, salt])
    )
