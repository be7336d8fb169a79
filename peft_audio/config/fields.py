"""Declare settings with a default and with metadata on what they affect."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

from peft_audio.errors import require

# In the order of a run; a setting affects only its stage and later ones.
Stage = Literal["splits", "input", "encoder", "training", "evaluation", "cost", "output"]
Mark = Literal["per_run", "decided_by_comparison", "equal_between_arms", "show_on_card", "divides"]
SourceKind = Literal["bundled", "folder", "manifest", "hub", "stream"]
# "stream" is a Hub dataset with `data.streaming`.
ALL_SOURCES: tuple[SourceKind, ...] = ("bundled", "folder", "manifest", "hub", "stream")
NOT_STREAMED: tuple[SourceKind, ...] = ("bundled", "folder", "manifest", "hub")
ON_HUB: tuple[SourceKind, ...] = ("hub", "stream")
WITH_COLUMNS: tuple[SourceKind, ...] = ("manifest", "hub", "stream")


def positive(value: float) -> bool:
    """Return whether a number is finite and above 0."""
    return math.isfinite(value) and value > 0


Range = Literal["count", "not_negative", "positive", "seconds", "share", "part", "seed"]
# Description of each range, and a test.
RANGES: dict[Range, tuple[str, Callable[[float], bool]]] = {
    "count": ("1 or more", lambda value: value >= 1),
    "not_negative": ("a finite number, 0 or more", lambda value: math.isfinite(value) and value >= 0),
    "positive": ("a finite number above 0", positive),
    "seconds": ("a number of seconds above 0", positive),
    "share": ("0 or more, below 1", lambda value: 0 <= value < 1),
    "part": ("between 0 and 1", lambda value: 0 < value < 1),
    "seed": ("0 to 4294967295", lambda value: 0 <= value < 2**32),
}

T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """Metadata of a settings field.

    Attributes:
        stage: First stage that the setting affects. "cost" means time, memory and disk space only; "output" means files
            and messages only. No figure depends on settings of these two.
        marks: Properties of the setting.
            "per_run": it can differ between the runs of one arm of a comparison.
            "decided_by_comparison": a comparison sets it for each run, so users of comparisons cannot.
            "equal_between_arms": arms that differ in it are not ranked.
            "show_on_card": model cards list its value.
            "divides": the split of a clip can depend on it.
        source_kinds: Kinds of source that the setting applies to.
        takes: Range of its values, a key of `RANGES`; None if the type is the only restriction.
    """

    stage: Stage
    marks: frozenset[Mark]
    source_kinds: tuple[SourceKind, ...]
    takes: Range | None

    @property
    def changes_figures(self) -> bool:
        """Return whether a figure of the report, apart from costs, can depend on the setting."""
        return self.stage not in ("cost", "output")

    @property
    def divides(self) -> bool:
        """Return whether the split of a clip can depend on the setting."""
        return "divides" in self.marks

    @property
    def names_parts(self) -> bool:
        """Return whether the setting names parts of a source, such as columns."""
        return self.stage == "splits" and not self.divides and self.source_kinds != ALL_SOURCES


def setting(
    default: T, stage: Stage, *marks: Mark, sources: tuple[SourceKind, ...] = ALL_SOURCES, takes: Range | None = None
) -> T:
    """Declare a settings field with its default and the metadata of `Setting`."""
    about = {"setting": Setting(stage, frozenset(marks), sources, takes)}
    if isinstance(default, list):
        copied: Any = field(default_factory=default.copy, metadata=about)
        return copied
    return field(default=default, metadata=about)


def settings_of(section: Any) -> dict[str, Setting]:
    """Return the metadata of each field of a settings dataclass, or of an instance of one, by field name."""
    return {declared.name: declared.metadata["setting"] for declared in fields(section)}


def changed_fields(section: Any) -> dict[str, Any]:
    """Return the values of an instance that differ from the defaults of its class, by field name."""
    default = type(section)()
    values = {declared.name: getattr(section, declared.name) for declared in fields(section)}
    return {name: value for name, value in values.items() if value != getattr(default, name)}


def check_ranges(section: str, given: Any) -> None:
    """Check that values are in the ranges of their fields; None is always allowed.

    Raises:
        UserError: A value is out of range.
    """
    for declared in fields(given):
        takes, value = declared.metadata["setting"].takes, getattr(given, declared.name)
        if takes is not None and value is not None:
            allowed, fits = RANGES[takes]
            fix = "Leave it out." if declared.default is None else f"Try {declared.default}."
            require(fits(value), f"{section}.{declared.name}", value, allowed, fix)
