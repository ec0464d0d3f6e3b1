"""The exercises of lab 10: the solution passes, each typical mistake hears its own message, the stub is not tried."""

import numpy as np
from exercise_claims import claims_on

from fedgen_lab.exercises.checks import find
from fedgen_lab.exercises.lab10 import EXERCISES, _ballots, _ledger
from fedgen_lab.peers.ledger import Ledger, hash_of


def verifier(number=True, link=True, own=True, since=0, last=True, newest=False, fine="sound"):
    """A verifier that checks only what it is told to."""

    def first_broken(blocks, last_hash):
        found = []
        for place in range(since, len(blocks)):
            block, before = blocks[place], blocks[place - 1]["hash"] if place else ""
            wrong = number and block["number"] != place or link and block["previous"] != before
            if wrong or own and block["hash"] != hash_of(block):
                found.append(place)
        if found:
            return found[-1 if newest else 0]
        return "rewritten" if last and blocks[-1]["hash"] != last_hash else fine

    return first_broken


def cell(votes):
    return np.unravel_index(np.nanargmax(votes), votes.shape)


def odd(votes):
    rest = votes - np.nanmedian(votes, axis=1, keepdims=True)
    return rest - np.nanmedian(rest, axis=0)


def known(votes, seen):
    return np.where(seen & ~np.isnan(votes), odd(votes), -np.inf)


def only_last(blocks, last_hash):
    return "sound" if blocks[-1]["hash"] == last_hash else "rewritten"


def trimmed(votes, liars):
    cut = max(1, liars)
    return np.sort(votes)[cut:-cut].mean()


WRONG = {
    "10.1": {
        "its hash was not": only_last,
        "so the block itself fits": verifier(link=False),
        "Two blocks were changed": verifier(newest=True),
        "The first block was cut off": verifier(since=1),
        "a number is skipped": verifier(number=False),
        "all later hashes were computed anew": verifier(last=False),
        "Nothing was changed": verifier(fine=0),
        "not True or False": lambda blocks, last_hash: verifier()(blocks, last_hash) == "sound",
    },
    "10.2": {
        "the wrong way round": lambda v, s: cell(known(v, s))[::-1],
        "gave no vote": lambda v, s: np.unravel_index(v.argmax(), v.shape),
        "It may be lying": lambda v, s: cell(odd(v)),
        "the highest vote of all": lambda v, s: cell(v),
        "hard to draw": lambda v, s: cell(
            np.where(s, v - np.nanmedian(v, axis=1, keepdims=True), -np.inf)
        ),
        "it draws badly": lambda v, s: cell(np.where(s, v - np.nanmedian(v, axis=0), -np.inf)),
        "A low vote is praise": lambda v, s: np.unravel_index(np.nanargmin(v), v.shape),
        "two whole numbers": lambda v, s: int(np.nanargmax(known(v, s))),
        "no such model": lambda v, s: (99, 0),
    },
    "10.3": {
        "This is the mean": lambda votes, liars: votes.mean(),
        "This is the median": lambda votes, liars: np.median(votes),
        "This is the trimmed mean": trimmed,
        "can still set": lambda votes, liars: np.sort(votes)[::-1][max(0, liars - 1)],
        "the lowest vote": lambda votes, liars: votes.min(),
        "must be one number": lambda votes, liars: np.sort(votes),
        "one at least is honest": lambda votes, liars: np.quantile(votes, 0.9),
        "from the lower end": lambda votes, liars: np.sort(votes)[liars] if liars else votes.max(),
    },
}

TestExercises = claims_on(EXERCISES, WRONG)


def test_the_mended_verification_agrees_with_the_ledger_where_no_hash_was_remembered():
    for seed in range(5):
        ledger = Ledger(3)
        ledger.blocks = _ledger(seed)
        assert ledger.broken() is None
        ledger.blocks[seed + 1]["kind"] = "Forged"
        mended = find("10.1").run_solution()(ledger.blocks, ledger.blocks[-1]["hash"])
        assert mended == ledger.broken() == seed + 1


def test_the_leak_is_hidden_from_the_mean_and_found_by_its_row_and_column():
    for seed in range(30):
        votes, seen, leak, lie, harsh, bad = _ballots(seed)
        assert tuple(find("10.2").run_solution()(votes, seen)) == tuple(leak)
        assert np.nanmean(votes, axis=1).argmax() == bad and not seen[lie] and seen[leak]


def test_no_liar_lifts_the_rule_above_the_honest_and_one_crier_more_is_always_heard():
    rule, draw = find("10.3").run_solution(), np.random.default_rng(0)
    for liars in (0, 1, 2):
        honest = draw.uniform(1, 2, 7)
        assert rule(np.append(honest, [1e6] * liars), liars) <= honest.max()
        honest[: liars + 1] = 5.0
        assert rule(np.append(honest, [0.0] * liars), liars) == 5.0
