"""The idea of a chain in plain Python: a list of blocks, each of which holds the hash of the one before it.

Lab 10, before the real thing: `Ledger` has the methods of `fedgen_lab.peers.chain.Chain` and keeps the same rules, but
there is no money in it, and nothing is signed. Whoever changes an old block must compute all later hashes anew; what
stops him from doing so is only that others hold copies of the last hash. Hash chains: Haber & Stornetta, Journal of
Cryptology 3 (1991).
"""

import hashlib
import json

from fedgen_lab.peers.chain import (
    Event,
    Refused,
    Submission,
    Terms,
    check_digests,
    commitment,
    millionths,
)

NOBODY = "0x" + 40 * "0"


def hash_of(block):
    """The hash of a block: SHA-256 of everything in it but the hash itself, as canonical JSON."""
    told = {name: value for name, value in block.items() if name != "hash"}
    return hashlib.sha256(
        json.dumps(told, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


class Ledger:
    """A chain without a network. `blocks` is a list of dicts: number, previous, kind, account, values, hash."""

    def __init__(self, num_accounts=10, terms=None):
        self.terms, self.address = terms or Terms(), NOBODY
        self.accounts = [
            "0x" + hashlib.sha256(bytes([i])).hexdigest()[:40] for i in range(num_accounts)
        ]
        self.blocks = []
        self._members, self._models, self._votes = {}, {}, {}
        self._append("Deployed", NOBODY, {})

    def broken(self):
        """Number of the first block that was tampered with, or whose predecessor was; None if all fit together."""
        previous = ""
        for number, block in enumerate(self.blocks):
            if (
                block["number"] != number
                or block["previous"] != previous
                or block["hash"] != hash_of(block)
            ):
                return number
            previous = block["hash"]
        return None

    def register(self, account, validator=False):
        if self.participant(account)["registered"]:
            raise Refused("already registered")
        left = self._members.get(account, {"budget": self.terms.budget})["budget"]
        self._members[account] = {
            "registered": True,
            "validator": validator,
            "open_votes": 0,
            "budget": left,
        }
        self._append("Registered", account, {"validator": validator})

    def leave(self, account):
        if self._member(account)["open_votes"]:
            raise Refused("reveal your votes first")
        self._members[account]["registered"] = False
        self._append("Left", account, {})

    def submit(self, account, content, manifest, parents=()):
        check_digests(content, manifest, parents)
        if self._member(account)["validator"]:
            raise Refused("validators do not submit")
        for name, digest in (("content", content), ("manifest", manifest)):
            if not any(digest):
                raise Refused(f"empty {name}")
        if content in self._models:
            raise Refused("this content was submitted before")
        if any(manifest == other.manifest for other in self._models.values()):
            raise Refused("this manifest was submitted before")
        if any(parent not in self._models for parent in parents):
            raise Refused("unknown parent")
        if len(set(parents)) < len(parents):
            raise Refused("a parent is named twice")
        values = {
            "content": content.hex(),
            "manifest": manifest.hex(),
            "parents": [one.hex() for one in parents],
        }
        self._append("Submitted", account, values)
        self._models[content] = Submission(content, account, manifest, self.block(), tuple(parents))

    def commit(self, account, content, score, salt, epsilon=1.0):
        promise = commitment(content, account, millionths(score, "score"), salt)
        member, spent = self._member(account), millionths(epsilon, "epsilon") / 1e6
        if content not in self._models:
            raise Refused("unknown model")
        if self._models[content].author == account:
            raise Refused("no votes for oneself")
        if (content, account) in self._votes:
            raise Refused("voted before")
        if self.block() + 1 > self._models[content].block + self.terms.commit_blocks:
            raise Refused("the vote on this model is closed")
        if not spent:
            raise Refused("a vote tells something: its epsilon is above 0")
        if spent > member["budget"]:
            raise Refused("the privacy budget is spent")
        member["budget"] = round(member["budget"] - spent, 6)
        member["open_votes"] += 1
        self._votes[content, account] = [promise, None]
        self._append("Committed", account, {"content": content.hex(), "epsilon": spent})

    def reveal(self, account, content, score, salt):
        if (content, account) not in self._votes:
            raise Refused("nothing was committed")
        promise, revealed = self._votes[content, account]
        if revealed is not None:
            raise Refused("revealed before")
        if self.block() + 1 <= self._models[content].block + self.terms.commit_blocks:
            raise Refused("others may still vote")
        if commitment(content, account, millionths(score, "score"), salt) != promise:
            raise Refused("not what was committed")
        self._votes[content, account][1] = millionths(score, "score") / 1e6
        self._members[account]["open_votes"] -= 1
        self._append(
            "Revealed",
            account,
            {"content": content.hex(), "score": millionths(score, "score") / 1e6},
        )

    def wait_blocks(self, number):
        """Let so many blocks pass, with nothing in them."""
        for _ in range(number):
            self._append("Empty", NOBODY, {})

    def block(self):
        return len(self.blocks) - 1

    def models(self):
        return list(self._models)

    def model(self, content):
        if content not in self._models:
            raise KeyError(f"No model {content.hex()} was submitted to this ledger.")
        return self._models[content]

    def participant(self, account):
        nobody = {"registered": False, "validator": False, "open_votes": 0, "budget": 0.0}
        return dict(self._members.get(account, nobody))

    def vote(self, content, account):
        promise, score = self._votes.get((content, account), (None, None))
        return score if promise is None or score is not None else "committed"

    def events(self, since=0):
        """What happened from block `since` on, and the cursor to ask with next time; digests as bytes again."""
        found = []
        for block in self.blocks[max(since, 1) :]:
            if block["kind"] == "Empty":
                continue
            values = dict(block["values"])
            for name in {"content", "manifest"} & set(values):
                values[name] = bytes.fromhex(values[name])
            if "parents" in values:
                values["parents"] = [bytes.fromhex(one) for one in values["parents"]]
            found.append(Event(block["number"], block["kind"], block["account"], values))
        return found, len(self.blocks)

    def _member(self, account):
        if not self._members.get(account, {}).get("registered"):
            raise Refused("not registered")
        return self._members[account]

    def _append(self, kind, account, values):
        previous = self.blocks[-1]["hash"] if self.blocks else ""
        block = {
            "number": len(self.blocks),
            "previous": previous,
            "kind": kind,
            "account": account,
            "values": values,
        }
        self.blocks.append(block | {"hash": hash_of(block)})
