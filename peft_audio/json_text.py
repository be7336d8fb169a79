"""JSON from somebody else, as values that can be written again."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str) -> Any:
    r"""What JSON says.

    Raises:
        ValueError: It is no JSON, or holds half of a pair of \u escapes, which is no text and could be written nowhere.
        RecursionError: It is nested too deeply to be read.
    """
    found = json.loads(text)
    if "\\u" in text:
        json.dumps(found, ensure_ascii=False).encode()
    return found
