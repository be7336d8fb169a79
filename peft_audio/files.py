"""Read and write small files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def expanded(path: str | Path) -> Path:
    """A path with ~ as the user's home, where that is what it means."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # a file whose name begins with ~
        return Path(path)


def is_folder(path: str | Path) -> bool:
    """Whether a folder is there; also asked of names that no disk takes."""
    try:
        return expanded(path).is_dir()
    except (OSError, ValueError):
        return False


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where it is missing, cut off or no object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_aside(path: Path, text: str) -> None:
    """Write a file so that nobody ever sees a part of it."""
    aside = path.with_name(path.name + ".partial")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


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
