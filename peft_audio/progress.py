"""Show progress bars on terminals and in notebooks."""

from __future__ import annotations

import sys
from typing import Any


def is_watched() -> bool:
    """Return whether somebody sees a bar: stderr is a terminal, or this process serves a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def progress_bar(description: str, total: int, shown: bool = True, done: int = 0, delay_seconds: float = 0.0) -> Any:
    """Make a bar on stderr that disappears at its end; `update(n)` advances it by n.

    Args:
        description: Text before the bar.
        total: Number of steps.
        shown: Whether this process may show it. It stays hidden where nobody sees it.
        done: Number of steps that an earlier process made.
        delay_seconds: Time after which the bar appears.
    """
    from tqdm.auto import tqdm  # a widget in a notebook

    hidden = not (shown and is_watched())
    return tqdm(desc=description, total=total, initial=done, leave=False, disable=hidden, delay=delay_seconds)
