"""How long a regular expression of a stranger may take, known before it is tried.

Python's `re` has no limit of time: `(a+)+b` on thirty letters takes minutes, on forty days (Davis, Coghlan, Servant and
Lee, "The Impact of Regular Expression Denial of Service (ReDoS) in Practice", ESEC/FSE 2018).
"""

from __future__ import annotations

import math
import re
from re import _constants as kinds  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

# The longest name of a module is shorter.
LENGTH = 100
# Three `.*` in a row, and two things that may be left out.
MOST_WAYS = 4 * (LENGTH + 1) ** 3
_REPEATS = (kinds.MAX_REPEAT, kinds.MIN_REPEAT, kinds.POSSESSIVE_REPEAT)


def may_hang(pattern: str) -> bool:
    """Whether a name exists on which a pattern may take too long; also true of what is no pattern."""
    try:
        return _ways(parser.parse(pattern)) > MOST_WAYS
    except (re.error, RecursionError, OverflowError):
        return True


def _ways(items: Any) -> float:
    """In how many ways, at most, a sequence can be laid along a name, and so be tried in vain."""
    return math.prod(_ways_of(kind, what) for kind, what in items)


def _ways_of(kind: Any, what: Any) -> float:
    ways: float = 1
    if kind in _REPEATS:
        least, most, inner = what
        repeats = min(int(most), LENGTH) - min(least, LENGTH) + 1
        ways = repeats * _ways(inner) if most <= 1 or _is_one_character(inner) else math.inf
    elif kind is kinds.BRANCH:
        tried = [_ways(branch) for branch in what[1]]
        # Where the first letters differ, only one is tried to its end.
        begins = {tuple(branch[0]) for branch in what[1] if len(branch) and branch[0][0] is kinds.LITERAL}
        ways = max(tried) if len(begins) == len(tried) else sum(tried)
    elif kind in (kinds.SUBPATTERN, kinds.ASSERT, kinds.ASSERT_NOT):
        ways = _ways(what[-1])
    elif kind is kinds.ATOMIC_GROUP:
        ways = _ways(what)
    elif kind in (kinds.GROUPREF, kinds.GROUPREF_EXISTS):
        ways = math.inf  # in no adapter that we know
    return ways


def _is_one_character(items: Any) -> bool:
    return len(items) == 1 and items[0][0] in (kinds.LITERAL, kinds.NOT_LITERAL, kinds.ANY, kinds.IN)
