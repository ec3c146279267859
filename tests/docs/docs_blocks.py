"""What the documentation's pages hold: code blocks to run, links, and what a program printed."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

FENCE = re.compile(r"<!-- run -->\n```(?P<language>\w+)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)|<(?P<url>[a-z]+:[^>\s]+)>")


class Block(msgspec.Struct, frozen=True):
    """A code block that is marked to be run."""

    page: Path
    line: int
    language: str
    text: str


class Command(msgspec.Struct, frozen=True):
    """One command of a console block, and what it prints: ``...`` stands for anything."""

    shell: str
    output: str

    def printed(self, output: str) -> bool:
        """Whether that is what the page shows."""
        pattern = ".*".join(re.escape(part) for part in self.output.strip().split("..."))
        return re.fullmatch(pattern, output.strip(), re.DOTALL) is not None


def marked_blocks(page: Path) -> list[Block]:
    """The blocks of a page that follow ``<!-- run -->``."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found["language"], found["text"])
        for found in FENCE.finditer(text)
    ]


def commands(console: str) -> list[Command]:
    """The commands of a console block: lines that begin with ``$``, each with the lines after it."""
    parts = re.split(r"^\$ ", console, flags=re.MULTILINE)[1:]
    return [Command(shell, output) for shell, _, output in (part.partition("\n") for part in parts)]


def links(page: Path) -> list[str]:
    """Targets of the links of a page, code left out."""
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    return [found["target"] or found["url"] for found in LINK.finditer(text)]


def anchors(page: Path) -> set[str]:
    """Anchors that GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
