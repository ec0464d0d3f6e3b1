"""The exercises of lab 10: verify a chain of hashes, find a leak that one voter sees, a vote rule that bears liars.

Chains of hashes: Haber & Stornetta, Journal of Cryptology 3 (1991). Peers who vote on each other's models: PDFed,
arXiv 2409.18245, which leaves open how votes are combined; the other two exercises are ours.
"""

from fedgen_lab.exercises.checks import Exercise, failed, passed


# -- 10.1 -------------------------------------------------------------------------------------------------------------
def _ledger(seed):
    """The blocks of a small ledger: two peers, a model each, two votes, some empty blocks."""
    import numpy as np

    from fedgen_lab.peers.ledger import Ledger

    draw, ledger = np.random.default_rng(seed), Ledger(3)
    _, a, b = ledger.accounts
    one, two, salt = (bytes(draw.bytes(32)) for _ in range(3))
    ledger.register(a), ledger.register(b)
    ledger.submit(a, one, two), ledger.submit(b, two, one, [one])
    (
        ledger.commit(b, one, round(draw.uniform(1, 2), 3), salt),
        ledger.commit(a, two, round(draw.uniform(1, 2), 3), salt),
    )
    ledger.wait_blocks(int(draw.integers(2, 5)))
    return ledger.blocks


def _rehashed(blocks, since=0):
    """The same blocks with all links and hashes computed anew from block `since` on."""
    from fedgen_lab.peers.ledger import hash_of

    blocks = [dict(block) for block in blocks]
    for number in range(since, len(blocks)):
        if number:
            blocks[number]["previous"] = blocks[number - 1]["hash"]
        blocks[number]["hash"] = hash_of(blocks[number])
    return blocks


def _check_ledger(first_broken):
    from copy import deepcopy

    from fedgen_lab.peers.ledger import hash_of

    for seed in (1, 2):
        good = _ledger(seed)
        known, at = good[-1]["hash"], 3 + seed
        changed = deepcopy(good)
        changed[at]["account"] = "0x" + 40 * "7"  # somebody else is to be paid
        own_hash = deepcopy(changed)
        own_hash[at]["hash"] = hash_of(own_hash[at])
        twice = deepcopy(changed)
        twice[at + 2]["kind"] = "Empty"
        renumbered = [
            block | {"number": block["number"] + (number >= at)}
            for number, block in enumerate(good)
        ]
        cases = (
            (
                good,
                "sound",
                "Nothing was changed.",
                "Which word means that all blocks fit together?",
            ),
            (
                changed,
                at,
                "A block was changed and its hash was not.",
                "Which hash would the block have if it were computed now?",
            ),
            (
                own_hash,
                at + 1,
                "A block was changed, and its own hash was computed anew, so the block itself fits.",
                "Where else does the old hash stand?",
            ),
            (twice, at, "Two blocks were changed.", "Which of them was asked for?"),
            (
                good[1:],
                0,
                "The first block was cut off, so block 1 stands at the beginning.",
                "What must `previous` be in the very first block?",
            ),
            (
                _rehashed(renumbered, at),
                at,
                "All hashes fit, but a number is skipped: a block is missing.",
                "What must `number` be in the block at place 5?",
            ),
            (
                _rehashed(changed, at),
                "rewritten",
                "A block was changed and all later hashes were computed anew. Nothing inside the chain shows it.",
                "What do you know that did not come with these blocks?",
            ),
            (
                good[:-1],
                "rewritten",
                "The last block was cut off. What is left fits together.",
                "Which hash should the chain end with?",
            ),
        )
        for blocks, right, message, question in cases:
            got = first_broken(deepcopy(blocks), known)
            if isinstance(got, bool):
                return failed(
                    'The answer is the number of a block, "rewritten" or "sound", not True or False.',
                    "What does somebody need to know who wants to look at the damage?",
                )
            if got != right:
                return failed(
                    f"{message} The answer should be {right!r}; yours is {got!r}.", question
                )
    return passed(
        "A chain protects what is in it as long as somebody else remembers one hash: the last."
    )


# -- 10.2 -------------------------------------------------------------------------------------------------------------
def _ballots(seed):
    """Votes (8, 5) with a leak, a liar, a harsh voter and a bad model; who went into what; and where these four are."""
    import numpy as np

    draw = np.random.default_rng([seed, 102])
    models, voters = draw.permutation(8), draw.permutation(5)
    votes = 1.5 + 0.3 * draw.random((8, 1)) + 0.05 * draw.random((8, 5))
    leak, lie, harsh, bad = (models[0], voters[0]), (models[1], voters[1]), voters[2], models[2]
    if leak[0] < 5:
        return _ballots(
            seed + 1000
        )  # row 5 or later: in the wrong order the answer is no cell at all
    votes[:, harsh] += 4.0
    votes[bad] += 5.0
    votes[leak] += 1.5
    votes[lie] += 3.0
    seen = draw.random((8, 5)) < 0.6
    seen[leak] = seen[models[3], harsh] = seen[bad, voters[3]] = True
    seen[lie] = seen[bad, harsh] = False
    votes[models[4], voters[3]] = votes[models[5], voters[4]] = np.nan  # no votes for oneself
    seen[models[4], voters[3]] = seen[models[5], voters[4]] = True
    return votes, seen, leak, lie, harsh, bad


def _check_leak(find_leak):
    import numpy as np

    for seed in range(4):
        votes, seen, leak, lie, harsh, bad = _ballots(seed)
        try:
            model, voter = (int(number) for number in find_leak(votes.copy(), seen.copy()))
        except (TypeError, ValueError):
            return failed(
                "The answer must be two whole numbers: model and voter.",
                "Which row is it, which column?",
            )
        got = (model, voter)
        if got == tuple(map(int, leak)):
            continue
        if got == tuple(map(int, leak))[::-1]:
            return failed(
                "These are the right two numbers, the wrong way round.",
                "What stands in the rows of `votes`?",
            )
        if not (0 <= model < 8 and 0 <= voter < 5):
            return failed(
                "There is no such model or no such voter.", "How many rows and columns has `votes`?"
            )
        if np.isnan(votes[got]):
            return failed(
                f"Voter {voter} gave no vote on model {model}; it made that model itself.",
                "What does argmax make of NaN?",
            )
        if got == tuple(map(int, lie)):
            return failed(
                f"Voter {voter} stands out on model {model}, but its pictures never went into that model or its "
                "ancestors. It may be lying, and a leak it can't be.",
                "Which argument says whose pictures a model was trained on?",
            )
        if got == (bad, harsh):
            return failed(
                "You took the highest vote of all. This model is bad in everybody's eyes, and this voter harsh on all.",
                "Higher than what must a vote be, to be an alarm?",
            )
        if voter == harsh:
            return failed(
                f"Voter {voter} gives high scores to every model: its pictures are hard to draw.",
                "What is left of its votes when you take away what it gives on average?",
            )
        if model == bad:
            return failed(
                f"Model {model} gets high scores from everybody: it draws badly. A leak is seen by one voter alone.",
                "What is left of a row when you take away its median?",
            )
        if votes[got] <= np.nanmedian(votes):
            return failed(
                "A low vote is praise.",
                "Does a voter who finds its own pictures score higher or lower?",
            )
        return failed(
            f"On model {model} voter {voter} votes about as one would expect of this model and this voter.",
            "What do you expect of each cell, from its row and its column, and where is the vote furthest above it?",
        )
    return passed(
        "One voter alone sees it, and the mean of five votes would have hidden four fifths of it."
    )


# -- 10.3 -------------------------------------------------------------------------------------------------------------
def _check_rule(one_number):
    import numpy as np

    draw = np.random.default_rng(103)
    for liars, num_voters in ((0, 5), (1, 6), (2, 9), (3, 12)):
        votes = draw.uniform(1.0, 2.0, num_voters)
        alarms = draw.permutation(num_voters)[: liars + 1]
        votes[alarms] = draw.uniform(5.0, 6.0, liars + 1)  # so many voters find their own pictures
        ordered = np.sort(votes)[::-1]
        try:
            got = float(one_number(votes.copy(), liars))
        except (TypeError, ValueError):
            return failed(
                "The answer must be one number.", "Which one number should peers compare models by?"
            )
        if abs(got - ordered[liars]) < 1e-9:
            continue
        cut = max(1, liars)
        told = (
            (
                votes.mean(),
                "This is the mean. An alarm is divided by the number of voters, and a lie of a million is not.",
                "How large may one vote be, and how far does it then move your number?",
            ),
            (
                np.median(votes),
                "This is the median. It bears many liars, and it hears a victim only when half of all are victims.",
                "How many liars are there at most, and how many must cry so that one of them is honest?",
            ),
            (
                np.sort(votes)[cut:-cut].mean(),
                "This is the trimmed mean. It cuts the victims off together with the liars and dilutes the rest.",
                "Which one of the sorted votes is certainly no higher than an honest one?",
            ),
            (
                ordered[max(0, liars - 1)],
                f"With {liars} liars you take the vote that {liars} of them can still set as high as they like.",
                "Which vote is the highest that they can't push up alone?",
            ),
            (
                ordered[0],
                "This is the highest vote. One liar can veto any model.",
                "How many of the highest votes may be lies?",
            ),
            (
                ordered[-1],
                "This is the lowest vote: one flatterer is enough.",
                "Which end of the votes is an alarm?",
            ),
            (
                np.sort(votes)[liars],
                "You count from the lower end, where models are praised.",
                "Which end of the votes is an alarm?",
            ),
        )
        for wrong, message, question in told:
            if abs(got - wrong) < 1e-9:
                return failed(message, question)
        return failed(
            f"With at most {liars} liars, {liars + 1} of {num_voters} voters cry {ordered[liars]:.3f} or more, and "
            f"one at least is honest. Your number is {got:.3f}.",
            "Sort the votes downwards. How many may you have to skip, and may you skip more?",
        )
    return passed(
        "No higher than some honest vote, and not lower than it must be: votes alone allow nothing better."
    )


EXERCISES = (
    Exercise(
        key="10.1",
        title="Mend the verification",
        dots=2,
        minutes=10,
        check=_check_ledger,
        hints=(
            "Four things can be wrong: a block's number, its link, its hash. The fourth is in no single block.",
            "Go through the blocks in order and remember the hash of the one before; before the first it is empty.",
            "Compare `number`, `previous` and `hash_of(block)`. After the loop compare the last hash with `last_hash`.",
        ),
        solution="""
def first_broken(blocks, last_hash):
    from fedgen_lab.peers.ledger import hash_of

    previous = ""
    for number, block in enumerate(blocks):
        if block["number"] != number or block["previous"] != previous or block["hash"] != hash_of(block):
            return number
        previous = block["hash"]
    return "sound" if previous == last_hash else "rewritten"
""",
    ),
    Exercise(
        key="10.2",
        title="The leak that one voter sees",
        dots=3,
        minutes=12,
        check=_check_leak,
        hints=(
            "A bad model is bad for everybody, a harsh voter is harsh on everything. A leak is neither.",
            "Take the median of its row away from each vote, then that of its column; leave out what was not seen.",
            "`np.nanmedian(votes, axis=1, keepdims=True)`; cells with no vote or not `seen` become `-np.inf`; argmax.",
        ),
        solution="""
def find_leak(votes, seen):
    import numpy as np

    odd = votes - np.nanmedian(votes, axis=1, keepdims=True)  # a bad model is bad for all
    odd = odd - np.nanmedian(odd, axis=0)  # a harsh voter is harsh on all
    odd = np.where(seen & ~np.isnan(votes), odd, -np.inf)
    return np.unravel_index(odd.argmax(), odd.shape)
""",
    ),
    Exercise(
        key="10.3",
        title="Bear liars, hear victims",
        dots=2,
        minutes=8,
        check=_check_rule,
        hints=(
            "Liars can be the highest votes of all. How many of those may be theirs?",
            "If one voter more than there are liars cries out, one of them is honest. Which vote do they all reach?",
            "Sort the votes downwards, and skip as many as there may be liars.",
        ),
        solution="""
def one_number(votes, liars):
    import numpy as np

    downwards = np.sort(votes)[::-1]
    return downwards[liars]  # so many may be lies; the next one is no higher than an honest vote
""",
    ),
)

RECALL = [
    (
        "Copies stand among a model's pictures. What does FID say?",
        [
            "it gets much worse",
            "next to nothing; it may even improve",
            "which pictures were copied",
        ],
        1,
        "FID compares crowds. In this lab peers choose models, and what they choose by decides what they spread.",
    ),
    (
        "None of a model's pictures is a copy of a training picture. What follows about leaks?",
        [
            "nothing leaks",
            "only captions leak",
            "nothing; membership may still be seen in the weights",
        ],
        2,
        "Here the weights of every model are public. So novelty of the pictures alone promises little.",
    ),
    (
        "Which pictures does a novelty score need, to find a copy?",
        [
            "the training pictures that may have been copied",
            "any pictures of the same kind",
            "none",
        ],
        0,
        "So a peer can see the copies of its own pictures and of nobody else's.",
    ),
]
