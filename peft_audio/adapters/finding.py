"""What a check of an adapter found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from peft_audio.text import readable

AGAIN = "get the adapter again from where it came"


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Attributes:
        check: What was looked at: files, record, weights, settings, preprocessor, base, keys, head, labels or answers.
        severity: "broken" makes answers wrong or impossible; "warning" may; "skipped" could not be checked.
        what: What was found, and what it means.
        mend: What to do about it; empty where nothing is to be done.
    """

    check: str
    severity: Literal["ok", "skipped", "warning", "broken"]
    what: str
    mend: str = ""

    def __post_init__(self) -> None:
        for name in ("what", "mend"):
            object.__setattr__(self, name, readable(getattr(self, name)))
