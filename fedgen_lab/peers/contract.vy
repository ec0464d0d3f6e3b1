# pragma version 0.4.3
# pragma evm-version prague
"""
@title Peers who train models together, without a server
@notice Keeps who takes part, which model came from which, and what voters think of it. Weights and manifests lie
        elsewhere, found by their digests. Lab 10; after PDFed, arXiv 2409.18245, section 4.1, whose contract was not
        published: deposits, commit and reveal, the privacy budget and the way of paying are this course's own.
@dev Scores and epsilons are whole numbers of millionths. A lower score is a better model. Nothing here stops one person
     with two accounts from emptying the pot: one submits whatever it likes, the other finds each a millionth better
     than the last, is paid for each, and spends a millionth of epsilon on each. Nor is one stopped who sees a
     submission before it is in a block and submits its digests first. Both take identities or secrets that this
     contract does not ask for.
"""

struct Participant:
    registered: bool
    validator: bool  # votes, but may not submit
    open_votes: uint256  # committed and not yet revealed
    budget_e6: uint256  # epsilon that is left to spend on votes
    has_voted: bool
    best_e6: uint256  # the best score it has given, once it has voted

struct Model:
    author: address  # empty where there is no such model
    manifest: bytes32
    block: uint256
    parents: DynArray[bytes32, 4]

struct Vote:
    commitment: bytes32  # empty where nothing was committed
    revealed: bool
    score_e6: uint256

event Registered:
    account: indexed(address)
    validator: bool

event Left:
    account: indexed(address)

event Submitted:
    content: indexed(bytes32)
    author: indexed(address)
    manifest: bytes32
    parents: DynArray[bytes32, 4]

event Committed:
    content: indexed(bytes32)
    voter: indexed(address)
    epsilon_e6: uint256

event Revealed:
    content: indexed(bytes32)
    voter: indexed(address)
    score_e6: uint256

event Rewarded:
    content: indexed(bytes32)
    voter: indexed(address)
    amount: uint256

event Settled:
    content: indexed(bytes32)
    author: indexed(address)
    kept: uint256
    passed_on: uint256

event Funded:
    account: indexed(address)
    amount: uint256

event Withdrawn:
    account: indexed(address)
    amount: uint256

MOST_SCORE_E6: public(constant(uint256)) = 10**12  # a score of one million

deposit: public(immutable(uint256))  # wei to take part, given back to who leaves
reward: public(immutable(uint256))  # wei for a model that is the best a voter has seen
commit_blocks: public(immutable(uint256))  # for so many blocks a new model takes votes; then they are revealed
budget_e6: public(immutable(uint256))  # epsilon that a voter may spend in all

participants: public(HashMap[address, Participant])
models: HashMap[bytes32, Model]
manifests: HashMap[bytes32, bool]  # which were submitted
contents: public(DynArray[bytes32, 1_000_000])  # in the order of submission
votes: public(HashMap[bytes32, HashMap[address, Vote]])
ever_registered: HashMap[address, bool]

pot: public(uint256)  # wei for rewards to come
locked: public(uint256)  # wei of all deposits
credits: public(HashMap[bytes32, uint256])  # wei that a model has earned, not yet shared with its parents
balances: public(HashMap[address, uint256])  # wei that an account may take


@deploy
def __init__(deposit_wei: uint256, reward_wei: uint256, blocks_to_commit: uint256, budget: uint256):
    assert blocks_to_commit > 0, "a model must take votes for one block at least"
    assert max(blocks_to_commit, max(deposit_wei, reward_wei)) < 2**128, "a term is too large"
    deposit = deposit_wei
    reward = reward_wei
    commit_blocks = blocks_to_commit
    budget_e6 = budget


@external
@payable
def fund():
    """Put wei into the pot from which models are paid."""
    assert msg.value > 0, "send some wei to fund the task"
    self.pot += msg.value
    log Funded(account=msg.sender, amount=msg.value)


@external
@payable
def register(validator: bool):
    """Take part, as a trainer who submits and votes, or as a validator who only votes. The deposit comes along."""
    assert not self.participants[msg.sender].registered, "already registered"
    assert msg.value == deposit, "the deposit must be sent, no more and no less"
    one: Participant = self.participants[msg.sender]
    if not self.ever_registered[msg.sender]:
        one.budget_e6 = budget_e6  # who leaves and comes back gets no new budget
    self.ever_registered[msg.sender] = True
    one.registered = True
    one.validator = validator
    self.participants[msg.sender] = one
    self.locked += msg.value
    log Registered(account=msg.sender, validator=validator)


@external
def leave():
    """Stop taking part; the deposit can then be withdrawn. Votes that were committed must be revealed first."""
    assert self.participants[msg.sender].registered, "not registered"
    assert self.participants[msg.sender].open_votes == 0, "reveal your votes first"
    self.participants[msg.sender].registered = False
    self.locked -= deposit
    self.balances[msg.sender] += deposit
    log Left(account=msg.sender)


@external
def submit(content: bytes32, manifest: bytes32, parents: DynArray[bytes32, 4]):
    """Submit a model: digest of its weights, digest of its manifest, and the models it was trained from."""
    assert self.participants[msg.sender].registered, "not registered"
    assert not self.participants[msg.sender].validator, "validators do not submit"
    assert content != empty(bytes32), "empty content"
    assert manifest != empty(bytes32), "empty manifest"
    assert self.models[content].author == empty(address), "this content was submitted before"
    assert not self.manifests[manifest], "this manifest was submitted before"
    for i: uint256 in range(len(parents), bound=4):
        assert self.models[parents[i]].author != empty(address), "unknown parent"
        for j: uint256 in range(i, bound=4):
            assert parents[j] != parents[i], "a parent is named twice"
    self.models[content] = Model(author=msg.sender, manifest=manifest, block=block.number, parents=parents)
    self.manifests[manifest] = True
    self.contents.append(content)
    log Submitted(content=content, author=msg.sender, manifest=manifest, parents=parents)


@external
def commit(content: bytes32, commitment: bytes32, epsilon_e6: uint256):
    """Promise a vote: the hash that `commitment_of` gives. Spends epsilon of the voter's privacy budget."""
    assert self.participants[msg.sender].registered, "not registered"
    model: Model = self.models[content]
    assert model.author != empty(address), "unknown model"
    assert model.author != msg.sender, "no votes for oneself"
    assert self.votes[content][msg.sender].commitment == empty(bytes32), "voted before"
    assert commitment != empty(bytes32), "empty commitment"
    assert block.number <= model.block + commit_blocks, "the vote on this model is closed"
    assert epsilon_e6 > 0, "a vote tells something: its epsilon is above 0"
    assert epsilon_e6 <= self.participants[msg.sender].budget_e6, "the privacy budget is spent"
    self.participants[msg.sender].budget_e6 -= epsilon_e6
    self.participants[msg.sender].open_votes += 1
    self.votes[content][msg.sender].commitment = commitment
    log Committed(content=content, voter=msg.sender, epsilon_e6=epsilon_e6)


@external
def reveal(content: bytes32, score_e6: uint256, salt: bytes32):
    """Show the vote that was promised. A model that is the best this voter has seen earns the reward from the pot."""
    vote: Vote = self.votes[content][msg.sender]
    assert vote.commitment != empty(bytes32), "nothing was committed"
    assert not vote.revealed, "revealed before"
    assert block.number > self.models[content].block + commit_blocks, "others may still vote"
    assert score_e6 <= MOST_SCORE_E6, "the score is out of range"
    assert self._commitment(content, msg.sender, score_e6, salt) == vote.commitment, "not what was committed"
    self.votes[content][msg.sender] = Vote(commitment=vote.commitment, revealed=True, score_e6=score_e6)
    one: Participant = self.participants[msg.sender]
    one.open_votes -= 1
    log Revealed(content=content, voter=msg.sender, score_e6=score_e6)
    if not one.has_voted or score_e6 < one.best_e6:
        one.has_voted = True
        one.best_e6 = score_e6
        if reward > 0 and self.pot >= reward:
            self.pot -= reward
            self.credits[content] += reward
            log Rewarded(content=content, voter=msg.sender, amount=reward)
    self.participants[msg.sender] = one


@external
def settle(content: bytes32):
    """Share what a model has earned: half to its author, half to its parents, who share theirs in turn when asked."""
    model: Model = self.models[content]
    assert model.author != empty(address), "unknown model"
    amount: uint256 = self.credits[content]
    assert amount > 0, "nothing to share"
    self.credits[content] = 0
    passed_on: uint256 = 0
    if len(model.parents) > 0:
        each: uint256 = amount // 2 // len(model.parents)
        for parent: bytes32 in model.parents:
            self.credits[parent] += each
            passed_on += each
    self.balances[model.author] += amount - passed_on  # a root keeps everything, an author the odd wei
    log Settled(content=content, author=model.author, kept=amount - passed_on, passed_on=passed_on)


@external
@nonreentrant
def withdraw(account: address):
    """Take one's own balance. The money goes to the account it belongs to, and nobody else may ask."""
    assert msg.sender == account, "only the owner may withdraw"
    amount: uint256 = self.balances[account]
    assert amount > 0, "nothing to withdraw"
    self.balances[account] = 0
    log Withdrawn(account=account, amount=amount)
    raw_call(account, b"", value=amount)


@external
@view
def model(content: bytes32) -> Model:
    """What was submitted under this digest; the author is empty where nothing was."""
    return self.models[content]


@external
@view
def num_models() -> uint256:
    return len(self.contents)


@external
@view
def commitment_of(content: bytes32, voter: address, score_e6: uint256, salt: bytes32) -> bytes32:
    """The hash that promises this vote. Peers compute it themselves: who asks a stranger's node shows the vote."""
    return self._commitment(content, voter, score_e6, salt)


@internal
@pure
def _commitment(content: bytes32, voter: address, score_e6: uint256, salt: bytes32) -> bytes32:
    return keccak256(abi_encode(content, voter, score_e6, salt))
