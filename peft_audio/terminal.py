"""Text from elsewhere, made fit to be shown: names that give a terminal no orders, messages that give nothing away."""

from __future__ import annotations

import re
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
