"""The contract: what it does, what it refuses and why, and that no sequence of calls breaks it.

The ledger of fedgen_lab/peers/ledger.py was written after the same rules in another language; random sequences of calls
go to both, and both must do and refuse the same.
"""

import json
import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from fedgen_lab.peers.chain import Chain, Refused, Terms, commitment, compiled
from fedgen_lab.peers.ledger import Ledger

TERMS = Terms(deposit_wei=1_000, reward_wei=100, commit_blocks=3, budget=2.5)
SALT = b"s" * 32


def digest(number):
    return bytes([number]) * 32


@pytest.fixture(scope="module")
def deployed():
    """A contract on which account 1 and 2 are trainers, 3 is a validator, and account 1 has submitted digest(1)."""
    chain = Chain(terms=TERMS)
    one, two, validator = chain.accounts[1:4]
    chain.register(one)
    chain.register(two)
    chain.register(validator, validator=True)
    chain.submit(one, digest(1), digest(101))
    return chain


@pytest.fixture
def chain(deployed):
    """That contract; afterwards it is again as it was."""
    tester = deployed.w3.provider.ethereum_tester
    before = tester.take_snapshot()
    yield deployed
    tester.revert_to_snapshot(before)


def pass_blocks(chain, number):
    chain.w3.provider.ethereum_tester.mine_blocks(number)


def test_the_artifact_is_what_the_source_compiles_to():
    vyper = pytest.importorskip("vyper", reason="Vyper is in the extra [test]")
    from fedgen_lab.peers import chain as beside

    source = os.path.join(os.path.dirname(beside.__file__), "contract.vy")
    with open(source, encoding="utf-8") as file:
        made = vyper.compile_code(
            file.read(), output_formats=["abi", "bytecode", "bytecode_runtime"]
        )
    artifact = compiled()
    assert artifact["vyper"] == vyper.__version__
    assert (
        json.loads(json.dumps(made["abi"])) == artifact["abi"]
        and made["bytecode"] == artifact["bytecode"]
    )
    assert made["bytecode_runtime"] == artifact["runtime"]


def refusals():
    """(what it is, reason, call); accounts: 0 is not registered, 1 and 2 train, 3 validates."""
    yield "registering twice", "already registered", lambda c, a: c.register(a[1])
    yield "leaving unregistered", "not registered", lambda c, a: c.leave(a[0])
    yield (
        "submitting unregistered",
        "not registered",
        lambda c, a: c.submit(a[0], digest(2), digest(102)),
    )
    yield (
        "a validator submits",
        "validators do not submit",
        lambda c, a: c.submit(a[3], digest(2), digest(102)),
    )
    yield "empty content", "empty content", lambda c, a: c.submit(a[1], digest(0), digest(102))
    yield "empty manifest", "empty manifest", lambda c, a: c.submit(a[1], digest(2), digest(0))
    yield (
        "duplicate",
        "this content was submitted before",
        lambda c, a: c.submit(a[2], digest(1), digest(102)),
    )
    yield (
        "manifest twice",
        "this manifest was submitted before",
        lambda c, a: c.submit(a[2], digest(2), digest(101)),
    )
    yield (
        "unknown parent",
        "unknown parent",
        lambda c, a: c.submit(a[1], digest(2), digest(102), [digest(9)]),
    )
    yield (
        "parent twice",
        "a parent is named twice",
        (lambda c, a: c.submit(a[1], digest(2), digest(102), 2 * [digest(1)])),
    )
    yield (
        "itself as parent",
        "unknown parent",
        lambda c, a: c.submit(a[1], digest(2), digest(102), [digest(2)]),
    )
    yield "voting unregistered", "not registered", lambda c, a: c.commit(a[0], digest(1), 1.0, SALT)
    yield (
        "voting for oneself",
        "no votes for oneself",
        lambda c, a: c.commit(a[1], digest(1), 1.0, SALT),
    )
    yield "voting on nothing", "unknown model", lambda c, a: c.commit(a[2], digest(9), 1.0, SALT)
    yield (
        "no epsilon",
        "a vote tells something: its epsilon is above 0",
        (lambda c, a: c.commit(a[2], digest(1), 1.0, SALT, epsilon=0.0)),
    )
    yield (
        "too much epsilon",
        "the privacy budget is spent",
        (lambda c, a: c.commit(a[2], digest(1), 1.0, SALT, epsilon=2.6)),
    )
    yield (
        "revealing nothing",
        "nothing was committed",
        lambda c, a: c.reveal(a[2], digest(1), 1.0, SALT),
    )


CASES = list(refusals())


@pytest.mark.parametrize(
    ("reason", "call"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
@pytest.mark.parametrize("kind", ["contract", "ledger"])
def test_refuses_with_a_reason(chain, kind, reason, call):
    if kind == "ledger":
        chain = Ledger(terms=TERMS)
        for account, validator in zip(chain.accounts[1:4], (False, False, True), strict=True):
            chain.register(account, validator)
        chain.submit(chain.accounts[1], digest(1), digest(101))
    before = chain.events()[0]
    with pytest.raises(Refused, match=f"^{reason}$"):
        call(chain, chain.accounts)
    assert chain.events()[0] == before


def test_votes_once_in_time_and_as_promised(chain):
    _, one, two, validator = chain.accounts[:4]
    chain.commit(two, digest(1), 1.5, SALT)
    with pytest.raises(Refused, match="voted before"):
        chain.commit(two, digest(1), 1.0, SALT)
    with pytest.raises(Refused, match="others may still vote"):
        chain.reveal(two, digest(1), 1.5, SALT)
    with pytest.raises(
        Refused, match="the vote on this model is closed"
    ):  # the first block after it closed
        chain.commit(validator, digest(1), 1.5, SALT)
    for score, salt in ((1.4, SALT), (1.5, b"t" * 32)):
        with pytest.raises(Refused, match="not what was committed"):
            chain.reveal(two, digest(1), score, salt)
    chain.reveal(two, digest(1), 1.5, SALT)
    with pytest.raises(Refused, match="revealed before"):
        chain.reveal(two, digest(1), 1.5, SALT)
    assert chain.vote(digest(1), two) == 1.5 and chain.vote(digest(1), validator) is None
    assert chain.participant(two)["budget"] == TERMS.budget - 1


def test_a_promise_can_not_be_copied_by_another_voter(chain):
    _, _, two, validator = chain.accounts[:4]
    promise = commitment(digest(1), two, 1_500_000, SALT)
    assert promise == chain.contract.functions.commitment_of(digest(1), two, 1_500_000, SALT).call()
    chain._send(two, chain.contract.functions.commit(digest(1), promise, 1))
    chain._send(
        validator, chain.contract.functions.commit(digest(1), promise, 1)
    )  # the same hash, seen in a block
    pass_blocks(chain, 3)
    with pytest.raises(Refused, match="not what was committed"):
        chain.reveal(validator, digest(1), 1.5, SALT)


NO_SCORES = {"nan": float("nan"), "infinite": float("inf"), "negative": -0.1, "large": 1e6 + 1}


@pytest.mark.parametrize("score", NO_SCORES.values(), ids=NO_SCORES)
def test_a_score_that_is_no_score_does_not_reach_the_chain(chain, score):
    with pytest.raises(ValueError, match="score must be a number from 0 to 1,000,000"):
        chain.commit(chain.accounts[2], digest(1), score, SALT)


def test_a_score_out_of_range_that_was_promised_by_hand_is_refused_at_the_reveal(chain):
    two, big = chain.accounts[2], 10**12 + 1
    chain._send(
        two, chain.contract.functions.commit(digest(1), commitment(digest(1), two, big, SALT), 1)
    )
    pass_blocks(chain, 3)
    with pytest.raises(Refused, match="the score is out of range"):
        chain._send(two, chain.contract.functions.reveal(digest(1), big, SALT))


def test_rewards_go_up_the_lineage_by_halves_and_only_their_owner_takes_them(chain):
    sponsor, one, two, validator = chain.accounts[:4]
    chain.fund(sponsor, 150)
    chain.submit(two, digest(2), digest(102), [digest(1)])
    chain.commit(validator, digest(2), 7.0, SALT)
    pass_blocks(chain, 3)
    chain.reveal(validator, digest(2), 7.0, SALT)  # its best so far: 100 wei to model 2
    chain.settle(sponsor, digest(2))
    chain.settle(sponsor, digest(1))
    assert (chain.balance(two), chain.balance(one)) == (50, 50)
    with pytest.raises(Refused, match="nothing to share"):
        chain.settle(sponsor, digest(1))
    with pytest.raises(Refused, match="only the owner may withdraw"):
        chain._send(two, chain.contract.functions.withdraw(one))
    before = chain.w3.eth.get_balance(one)
    chain.withdraw(one)
    spent_on_gas = before + 50 - chain.w3.eth.get_balance(one)
    assert 0 <= spent_on_gas < 10**16 and chain.balance(one) == 0
    with pytest.raises(Refused, match="nothing to withdraw"):
        chain.withdraw(one)


def test_a_deposit_comes_back_to_who_leaves_and_the_budget_does_not(chain):
    _, _, two, _ = chain.accounts[:4]
    with pytest.raises(Refused, match="the deposit must be sent"):
        chain._send(chain.accounts[5], chain.contract.functions.register(False), 999)
    chain.commit(two, digest(1), 1.0, SALT, epsilon=2.0)
    with pytest.raises(Refused, match="reveal your votes first"):
        chain.leave(two)
    pass_blocks(chain, 3)
    chain.reveal(two, digest(1), 1.0, SALT)
    chain.leave(two)
    assert chain.balance(two) == 1_000
    chain.register(two)
    assert chain.participant(two)["budget"] == 0.5


def test_a_plain_payment_is_turned_away(chain):
    with pytest.raises(Exception, match="reverted|fallback|disallowed"):
        chain.w3.eth.send_transaction({"from": chain.accounts[1], "to": chain.address, "value": 5})


RECEIVER = """
# pragma version 0.4.3
interface Peers:
    def register(validator: bool): payable
    def leave(): nonpayable
    def withdraw(account: address): nonpayable

peers: Peers

@deploy
@payable
def __init__(at: address):
    self.peers = Peers(at)

@external
def join_and_leave():
    extcall self.peers.register(True, value=1000)
    extcall self.peers.leave()

@external
def take():
    extcall self.peers.withdraw(self)

@external
@payable
def __default__():
    again: Bytes[36] = abi_encode(self, method_id=method_id("withdraw(address)"))
    done: bool = raw_call(self.peers.address, again, revert_on_failure=False)
    assert not done
"""


def test_a_contract_that_asks_again_while_it_is_paid_is_paid_once(chain):
    vyper = pytest.importorskip("vyper", reason="Vyper is in the extra [test]")
    made, eth, one = (
        vyper.compile_code(RECEIVER, output_formats=["abi", "bytecode"]),
        chain.w3.eth,
        chain.accounts[0],
    )
    thief = eth.contract(abi=made["abi"], bytecode=made["bytecode"]).constructor(chain.address)
    sent = thief.transact({"from": one, "value": 5_000, "gas": 2_000_000})
    thief = eth.contract(address=eth.get_transaction_receipt(sent).contractAddress, abi=made["abi"])
    held = eth.get_balance(chain.address)
    chain._send(one, thief.functions.join_and_leave())
    assert chain.balance(thief.address) == 1_000 and eth.get_balance(chain.address) == held + 1_000
    chain._send(one, thief.functions.take())
    assert chain.balance(thief.address) == 0 and eth.get_balance(chain.address) == held
    assert eth.get_balance(thief.address) == 5_000


class AnyCalls(RuleBasedStateMachine):
    """Any calls in any order, on the contract and on the ledger beside it."""

    who = st.integers(0, 4)
    what = st.integers(0, 4)
    score = st.sampled_from([0.0, 0.5, 1.0, 2.0, 1e6])

    chain = None

    @initialize()
    def begin(self):
        """Accounts 0 to 2 train, 3 validates, 4 is a stranger."""
        if AnyCalls.chain is None:
            AnyCalls.chain = Chain(terms=TERMS)
            for who in range(4):
                self.chain.register(self.chain.accounts[who], who == 3)
            AnyCalls.snapshot = self.chain.w3.provider.ethereum_tester.take_snapshot()
        self.chain.w3.provider.ethereum_tester.revert_to_snapshot(AnyCalls.snapshot)
        self.ledger = Ledger(terms=TERMS)
        self.ledger.accounts = self.chain.accounts  # the commitments name the voter
        for who in range(4):
            self.ledger.register(self.ledger.accounts[who], who == 3)

    def both(self, method, *arguments, **more):
        """Call a method on both; the ledger also counts the refused call as a block, as the contract's chain does."""
        told = []
        for here in (self.chain, self.ledger):
            try:
                getattr(here, method)(*arguments, **more)
                told.append("done")
            except Refused as reason:
                told.append(str(reason))
        assert told[0] == told[1], (method, arguments, told)
        if told[0] != "done":
            self.ledger._append("Refused", self.ledger.accounts[0], {})

    @rule(who=who, validator=st.booleans())
    def register(self, who, validator):
        self.both("register", self.chain.accounts[who], validator)

    @rule(who=who)
    def leave(self, who):
        self.both("leave", self.chain.accounts[who])

    @rule(who=who, what=what, about=what, parents=st.lists(what, max_size=3))
    def submit(self, who, what, about, parents):
        parents = [digest(one) for one in parents]
        self.both("submit", self.chain.accounts[who], digest(what), digest(100 + about), parents)

    @rule(who=who, what=what, score=score, epsilon=st.sampled_from([0.5, 1.0]))
    def commit(self, who, what, score, epsilon):
        self.both("commit", self.chain.accounts[who], digest(what), score, SALT, epsilon=epsilon)

    @rule(who=who, what=what, score=score)
    def reveal(self, who, what, score):
        self.both("reveal", self.chain.accounts[who], digest(what), score, SALT)

    @rule(who=who, wei=st.integers(0, 300))
    def fund(self, who, wei):
        self.only_the_contract("fund", self.chain.accounts[who], wei)

    @rule(who=who, what=what)
    def settle(self, who, what):
        self.only_the_contract("settle", self.chain.accounts[who], digest(what))

    @rule(who=who)
    def withdraw(self, who):
        self.only_the_contract("withdraw", self.chain.accounts[who])

    def only_the_contract(self, method, *arguments):
        """The ledger has no money: it counts the block."""
        try:
            getattr(self.chain, method)(*arguments)
        except Refused:
            pass
        self.ledger._append("Money", self.ledger.accounts[0], {})

    @invariant()
    def as_long_as_the_ledger(self):
        if self.chain is not None and hasattr(self, "ledger"):
            assert (
                self.chain.block() == self.ledger.block() + 1
            )  # the chain's first block holds nothing

    def teardown(self):
        ask, accounts = self.chain.contract.functions, self.chain.accounts[:5]
        models = self.chain.models()
        assert models == self.ledger.models() and self.ledger.broken() is None
        owed = ask.pot().call() + ask.locked().call()
        owed += sum(ask.credits(one).call() for one in models) + sum(
            map(self.chain.balance, accounts)
        )
        assert owed == self.chain.w3.eth.get_balance(self.chain.address)
        for account in accounts:
            assert self.chain.participant(account) == self.ledger.participant(account)
        known = set()
        for content in models:
            submission = self.chain.model(content)
            assert set(submission.parents) <= known and submission.author in accounts
            known.add(content)
            for account in accounts:
                vote = self.chain.vote(content, account)
                assert vote == self.ledger.vote(content, account)
                assert vote is None or account != submission.author


def test_no_sequence_of_calls_breaks_the_contract():
    run_state_machine_as_test(
        AnyCalls,
        settings=settings(
            max_examples=5,
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
