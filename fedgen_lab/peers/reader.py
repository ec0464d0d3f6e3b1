"""What a peer may go by: the models on the chain, fetched and verified, and why some of them are refused.

Lab 10; PDFed, arXiv 2409.18245, section 4.1, keeps weights off the chain. So a model may be damaged, or offered by
nobody: the first is refused for good; the second is asked for again, less and less often.
"""

from fedgen_lab.peers.manifest import MOST_BYTES as MANIFEST_BYTES
from fedgen_lab.peers.manifest import read_manifest
from fedgen_lab.peers.store import Unusable, Withheld, cid_of, unpack_weights

RECENT = 16  # so many of the newest usable models are looked at; who comes late need not judge all that ever was


class Reader:
    """The models on a chain, as one who reads it knows them. chain, store: where all meet; start: weights like ours."""

    def __init__(self, chain, store, start):
        self.chain, self.store, self.start = chain, store, start
        self.models = {}  # content -> `Submission`, in the order of the chain
        self.refused = {}  # content -> why it can't be used
        self.again = {}  # content that was withheld -> (block to ask for it again, blocks waited for that)
        self.largest = {}  # content -> its largest weight, without the sign

    def fetch(self, content):
        """A model's weights and their size in bytes, once its manifest and its bytes are verified.

        Raises `Unusable`, naming the model and what is wrong with it.
        """
        submission = self.models[content]
        read_manifest(self.store.get(cid_of(submission.manifest), MANIFEST_BYTES), submission)
        data = self.store.get(cid_of(content))
        return unpack_weights(cid_of(content), data, like=self.start), len(data)

    def is_open(self, content):
        """May a model still be voted on?"""
        return self.chain.block() < self.models[content].block + self.chain.terms.commit_blocks

    def recent(self):
        """The newest models, in the chain's order: so many that `RECENT` of them are not refused."""
        found, usable = [], 0
        for content in reversed(self.models):
            if usable == RECENT:
                break
            usable += content not in self.refused
            found.append(content)
        return found[::-1]

    def may_fetch(self, content):
        """Is a model not refused, or only withheld, and long enough ago?"""
        again, _ = self.again.get(content, (float("inf"), 0))
        return content not in self.refused or again <= self.chain.block()

    def fetch_or_refuse(self, content):
        """What `fetch` returns; None for a model that is refused, for good or, if it is withheld, for some blocks."""
        if not self.may_fetch(content):
            return None
        _, waited = self.again.pop(content, (0, 0))
        try:
            state, size = self.fetch(content)
        except Unusable as reason:  # costs this model and nothing else
            self.refused[content] = str(reason)
            if isinstance(reason, Withheld):
                waits = max(
                    1, 2 * waited
                )  # a slow store may get it yet; asking may take a timeout, so ask less often
                self.again[content] = self.chain.block() + waits, waits
            return None
        self.refused.pop(content, None)
        self.largest[content] = max(float(tensor.abs().max()) for tensor in state.values())
        return state, size
