"""Text that is safe to show: terminal output, messages and Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from unicodedata import category

# Control characters, halves of a character, and separators that some programs take for a line's end.
NOT_SHOWN = ("Cc", "Cs", "Zl", "Zp")
# What turns the text behind it round, so that a name reads as another one.
TURNS = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))
LONGEST_LINE = 1_500
# A password in an address, a token of the Hub, and what an address is signed with.
SECRETS = (
    (re.compile(r"\b((?:https?|ftp|git|gs|hf|s3|ssh):/{1,2})[^/\s@]+@", re.IGNORECASE), r"\1***@"),
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), "hf_***"),
    (re.compile(r"(https?:/{1,2}[^\s?'\"]+\?)[^\s'\")]+"), r"\1***"),
)


def printable(text: str) -> str:
    """Text that breaks no line and gives a terminal no orders.

    Control characters, and others that change how a line is read, are written as in Python: a line break as two
    characters, backslash, n.
    """
    shown = (c.encode("unicode_escape").decode() if category(c) in NOT_SHOWN or c in TURNS else c for c in text)
    return "".join(shown)


def without_secrets(text: str) -> str:
    """Text in which stars stand for passwords in addresses, for tokens of the Hub and for signatures of addresses."""
    for secret, stars in SECRETS:
        text = secret.sub(stars, text)
    return text


def readable(message: str) -> str:
    """A message of one line or several: each of them `printable`, none empty, none without end."""
    lines = re.sub(r"\n\s*\n", "\n", message).split("\n")
    return "\n".join(_shortened(printable(line)) for line in lines)


def as_told(message: str) -> str:
    """A message that is `readable`, and `without_secrets`."""
    return readable(without_secrets(message))


def _shortened(line: str) -> str:
    """A line without the middle of a value that has no end."""
    left_out = len(line) - LONGEST_LINE
    return line if left_out <= 0 else f"{line[:1_000]} ... ({left_out:,} characters) ... {line[1_000 + left_out :]}"


NEGATIVE = re.compile(r"(?<![^\s(\[])-(?=\.?\d)")
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


def with_minus(text: str) -> str:
    """Write the sign of negative numbers as a minus, for screens and pages; files and JSON keep the hyphen.

    Hyphens in names, ranges, dates and exponents are not changed.
    """
    return NEGATIVE.sub("\u2212", text)


def several(count: int, noun: str) -> str:
    """A count with its noun: 1 clip, 2 clips."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first few names, `printable`, and how many more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(printable, names[:most])) + more
