"""Declare settings: a default, and metadata that says what a setting affects."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

# In the order of a run: a stage can change only what comes after it.
Stage = Literal["splits", "input", "encoder", "training", "evaluation", "cost", "output"]
Mark = Literal["per_run", "decided_by_comparison", "equal_between_arms", "show_on_card"]
SourceKind = Literal["bundled", "folder", "manifest", "hub", "stream"]
# "stream" is a Hub dataset with `data.streaming`.
ALL_SOURCES: tuple[SourceKind, ...] = ("bundled", "folder", "manifest", "hub", "stream")
NOT_STREAMED: tuple[SourceKind, ...] = ("bundled", "folder", "manifest", "hub")
ON_HUB: tuple[SourceKind, ...] = ("hub", "stream")
WITH_COLUMNS: tuple[SourceKind, ...] = ("manifest", "hub", "stream")

T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """Metadata of a settings field.

    Attributes:
        stage: The first stage that it affects. "cost" stands for time, memory and disk space alone, "output" for files
            and messages alone: no figure depends on settings of these two.
        marks: "per_run": it can differ between the runs of one arm of a comparison. "decided_by_comparison": a
            comparison sets it for each run, so its shared settings and its arms leave it out. "equal_between_arms":
            arms that differ in it are not ranked. "show_on_card": model cards list its value.
        source_kinds: The kinds of source that it applies to.
    """

    stage: Stage
    marks: frozenset[Mark]
    source_kinds: tuple[SourceKind, ...]

    @property
    def changes_figures(self) -> bool:
        """Whether a figure of the report can depend on it, apart from costs."""
        return self.stage not in ("cost", "output")


def setting(default: T, stage: Stage, *marks: Mark, sources: tuple[SourceKind, ...] = ALL_SOURCES) -> T:
    """Declare a settings field with its default and the metadata of `Setting`."""
    about = {"setting": Setting(stage, frozenset(marks), sources)}
    if isinstance(default, list):
        copied: Any = field(default_factory=default.copy, metadata=about)
        return copied
    return field(default=default, metadata=about)


def settings_of(section: Any) -> dict[str, Setting]:
    """Return the metadata of each field of a settings dataclass, or of an instance of one, by field name."""
    return {declared.name: declared.metadata["setting"] for declared in fields(section)}


def changed_fields(section: Any) -> dict[str, Any]:
    """Return the values of an instance that differ from the defaults of its class, by field name."""
    usual = type(section)()
    values = {declared.name: getattr(section, declared.name) for declared in fields(section)}
    return {name: value for name, value in values.items() if value != getattr(usual, name)}


def positive(value: float) -> bool:
    """Return whether a number is finite and above 0."""
    return math.isfinite(value) and value > 0


def share(value: float) -> bool:
    """Return whether a number is 0 or more and below 1."""
    return 0 <= value < 1
