"""Make text safe for terminals, messages and Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from unicodedata import category

# Control characters, surrogates, and separators that some programs treat as line ends.
NOT_SHOWN = ("Cc", "Cs", "Zl", "Zp")
# Characters that change the direction of text, so that a name can look like another one.
DIRECTIONS = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))
LONGEST_LINE = 1_500
# Passwords in addresses, tokens of the Hub, and signatures of addresses.
SECRETS = (
    (re.compile(r"\b((?:https?|ftp|git|gs|hf|s3|ssh):/{1,2})[^/\s@]+@", re.IGNORECASE), r"\1***@"),
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), "hf_***"),
    (re.compile(r"(https?:/{1,2}[^\s?'\"]+\?)[^\s'\")]+"), r"\1***"),
)


def printable(text: str) -> str:
    r"""Escape control characters, so that text stays on one line and cannot control a terminal.

    Characters that break a line or change its direction are escaped as in Python, such as a line break as \n.
    """
    shown = (c.encode("unicode_escape").decode() if category(c) in NOT_SHOWN or c in DIRECTIONS else c for c in text)
    return "".join(shown)


def without_secrets(text: str) -> str:
    """Replace passwords in addresses, tokens of the Hub and signatures of addresses by stars."""
    for secret, stars in SECRETS:
        text = secret.sub(stars, text)
    return text


def readable(message: str) -> str:
    """Make each line of a message `printable`; shorten long lines and remove empty ones."""
    lines = re.sub(r"\n\s*\n", "\n", message).split("\n")
    return "\n".join(_shortened(printable(line)) for line in lines)


def safe_to_print(message: str) -> str:
    """Make a message `readable` and remove its secrets."""
    return readable(without_secrets(message))


def _shortened(line: str) -> str:
    """Replace the middle of a line by the number of its characters if it is longer than `LONGEST_LINE`."""
    left_out = len(line) - LONGEST_LINE
    return line if left_out <= 0 else f"{line[:1_000]} ... ({left_out:,} characters) ... {line[1_000 + left_out :]}"


NEGATIVE = re.compile(r"(?<![^\s(\[])-(?=\.?\d)")
# Characters that Markdown or GitHub interpret; an underscore only at the edge of a word.
SPECIAL = re.compile(r"[\\`*|<&~$]|\](?=\()|(?<!\w)_|_(?!\w)")


def escape_markdown(text: str) -> str:
    """Put text on one line, make it `printable`, and escape the characters that Markdown interprets."""
    return SPECIAL.sub(lambda match: "\\" + match[0], printable(" ".join(text.split())))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int | None = None) -> str:
    """Make a Markdown table of plain text.

    Args:
        header: Names of the columns.
        rows: Cells of each row; this function escapes them.
        numbers_from: Index of the first column that is aligned right, as are all after it; None for no such column.
    """
    right = len(header) if numbers_from is None else numbers_from
    sides = ["---" if i < right else "---:" for i in range(len(header))]
    lines = [list(map(escape_markdown, header)), sides, *(list(map(escape_markdown, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_minus(text: str) -> str:
    """Write the sign of negative numbers as a minus, for screens and pages; files and JSON keep the hyphen.

    Hyphens in names, ranges, dates and exponents are not changed.
    """
    return NEGATIVE.sub("\u2212", text)


def several(count: int, noun: str) -> str:
    """Write a count with its noun, such as 1 clip or 2 clips."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def listed(names: Sequence[str], most: int = 3) -> str:
    """Join the first `most` names, made `printable`, and add the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(printable, names[:most])) + more
