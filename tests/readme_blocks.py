"""The fenced blocks of README.md, for the tests that run them as they stand there."""

from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[1]
NOT_TRIED = "not tried here"


@dataclass(frozen=True)
class Block:
    """One block: its language, its text, and the paragraph that leads to it."""

    language: str
    text: str
    lead: str

    @property
    def is_tried(self):
        """Whether a test has to run it: README says of the others, before the block, that nobody did here."""
        return NOT_TRIED not in " ".join(self.lead.lower().split())


def read_blocks(text=None):
    """All fenced blocks of README.md, or of the Markdown `text`, in their order."""
    if text is None:
        text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks, lead = [], ""
    for token in MarkdownIt().parse(text):
        if token.type == "inline":
            lead = token.content
        elif token.type == "fence":
            blocks.append(Block(token.info, token.content, lead))
    return blocks


def block_with(words):
    """The one block of README.md that contains `words`."""
    (block,) = [block for block in read_blocks() if words in block.text]
    return block
