"""Text as Markdown that stays text, and tables."""

from __future__ import annotations

import re
from collections.abc import Sequence

from peft_audio.terminal import printable

# What Markdown, or GitHub's, would take for more than text; an underscore only at the edge of a word.
SPECIAL = re.compile(r"[\\`*|<&~$]|\](?=\()|(?<!\w)_|_(?!\w)")


def marked(text: str) -> str:
    """Text on one line, `printable`, with what Markdown would act upon escaped."""
    return SPECIAL.sub(lambda found: "\\" + found[0], printable(" ".join(text.split())))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int | None = None) -> str:
    """A table of plain text.

    Args:
        header: What the columns are called.
        rows: Their cells, all escaped here.
        numbers_from: The first of the columns that are set to the right; none when not given.
    """
    right = len(header) if numbers_from is None else numbers_from
    sides = ["---" if i < right else "---:" for i in range(len(header))]
    lines = [list(map(marked, header)), sides, *(list(map(marked, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
