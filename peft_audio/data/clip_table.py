"""Hold the clips of a source in one table, before they are divided into splits."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_audio.config import DataConfig
from peft_audio.errors import UserError
from peft_audio.files import sha256 as hash_of
from peft_audio.tasks import task_of
from peft_audio.tasks.task import Task
from peft_audio.text import listed

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

# Separators between words of a label. Before a word, "-" may be a sign; between digits, a separator changes the number.
BETWEEN_WORDS = re.compile(r"(?<=[^\W_])[\s_-]+(?=[^\W\d_])|(?<=[^\W\d_])[\s_-]+(?=[^\W_])")
SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {split: split for split in SPLITS} | {"training": "train", "valid": "validation", "val": "validation"}
SPLIT_NAMES |= {"dev": "validation", "eval": "validation", "testing": "test"}


@dataclass(frozen=True)
class ClipTable:
    """Clips of a source, with everything that is known without opening a recording.

    Attributes:
        clips: One row per clip: `id` (unique), `path` (a file) or `stored` (a row of `stored`), `label` (text), `group`
            (speaker, artist, source recording; "" if not known), `split` ("" if the source gives none),
            `start_seconds` and `end_seconds` (NaN for the end of the recording).
        labels: Label names, in the order of the label numbers.
        stored: Recordings stored as bytes in the column `audio`, read from disk on access.
        notes: Messages for the user about how the source was read.
        ignored: Files whose names are not those of recordings.
        revision: Commit of a Hub dataset.
        names: File name of each clip if `path` does not have it; "" if a clip has none.
        task: Task that the labels are targets of.
        doubts: Warnings that the labels may not be the intended ones.
        groups_are_recordings: Whether the groups were derived from the recordings that clips are parts of.
        others: Unused columns of a manifest, as text; the index holds the ids of the clips.
    """

    clips: pd.DataFrame
    labels: tuple[str, ...]
    stored: Dataset | None = None
    notes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    revision: str | None = None
    names: tuple[str, ...] | None = None
    task: Task = field(default_factory=task_of)
    others: pd.DataFrame | None = None
    doubts: tuple[str, ...] = ()
    groups_are_recordings: bool = False


def make_clips(columns: dict[str, Any]) -> pd.DataFrame:
    """Make the table of `ClipTable.clips` from columns; missing columns get their defaults."""
    # Importing pandas takes a fifth of a second, which not every importer of this module needs.
    import pandas as pd

    clips = pd.DataFrame(columns)
    defaults = {"path": "", "stored": -1, "group": "", "split": "", "start_seconds": 0.0, "end_seconds": float("nan")}
    for name, value in defaults.items():
        if name not in clips:
            clips[name] = value
    return clips


def recording_of(row: Any, stored: Dataset | None) -> Path | bytes:
    """Return the path of a clip's recording, or its bytes.

    Args:
        row: Row of a clip with `path` and `stored`.
        stored: Recordings stored as bytes.
    """
    if row["stored"] < 0:
        return Path(row["path"])
    assert stored is not None
    audio = stored[int(row["stored"])]["audio"]
    return Path(audio["path"]) if audio["bytes"] is None else audio["bytes"]


def pattern_names(collection: ClipTable) -> list[str]:
    """Return the name of each clip that `data.group_pattern` is searched in."""
    if collection.names is None:
        return [Path(path).name for path in collection.clips["path"]]
    # Clips may have been left out since; the index has their original numbers.
    return [collection.names[number] for number in collection.clips.index]


def with_groups(collection: ClipTable, cfg: DataConfig) -> ClipTable:
    """Set the group of each clip from its name, if `data.group_pattern` is given.

    The pattern is searched in the file name. A pattern with "/" that matches no file name is searched in the id, which
    has the folders below the source.

    Raises:
        UserError: The pattern does not match some names.
    """
    if cfg.group_pattern is None:
        return collection
    pattern = re.compile(cfg.group_pattern)
    names = pattern_names(collection)
    matches = [pattern.search(name) for name in names]
    if "/" in cfg.group_pattern and not any(matches):
        names = list(collection.clips["id"])
        matches = [pattern.search(name) for name in names]
    groups = [(match[1 if match.re.groups else 0] or "") if match else "" for match in matches]
    missed = [name for name, group in zip(names, groups, strict=True) if not group]
    if missed:
        raise UserError(
            f"--data.group_pattern: {cfg.group_pattern!r} finds no group in {len(missed)} of {len(names)} file names: "
            f"{listed(missed)}. Correct the pattern, or give a manifest with a group column."
        )
    return replace(collection, clips=collection.clips.assign(group=groups), names=None)


def check_labels(labels: Sequence[str], source: str, least: int = 2) -> None:
    """Refuse a source with too few labels.

    Args:
        labels: Label names of the source.
        source: Name of the source, for the message.
        least: Smallest number of labels.

    Raises:
        UserError: There are fewer.
    """
    if len(labels) < least:
        contents = f"one class, {labels[0]!r}" if labels else "no clips"
        raise UserError(f"--data.source: {source} has {contents}; a classifier needs two or more. Add another class.")


def normalise_label(label: str) -> str:
    """Convert a label to Unicode form NFC and strip surrounding spaces."""
    return unicodedata.normalize("NFC", label).strip()


def map_split_names(names: Iterable[str], flag: str, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """Map the split names of a source to train, validation and test; unknown names are left out.

    Args:
        names: Names in the source; case and surrounding spaces are ignored.
        flag: Setting that the names belong to, for messages.
        given: Mapping from the user; None for the usual names.

    Raises:
        UserError: Two names mean the same split.
    """
    names = list(names)
    table: Mapping[str, str] = SPLIT_NAMES if given is None else given
    splits = {name: table[key] for name in names if (key := name if given else name.strip().lower()) in table}
    if given is None and "test" not in splits.values() and len([s for s in splits.values() if s == "validation"]) == 2:
        # Beside a split "dev", the split "eval" is the test split.
        splits |= {name: "test" for name in splits if name.strip().lower() == "eval"}
    for split in SPLITS:
        same = [name for name in splits if splits[name] == split]
        if len(same) > 1:
            raise UserError(f"--{flag}: {' and '.join(same)} both mean the {split} split; keep one, or rename it.")
    return splits


def clip_hash(sha256: str, start_seconds: float, end_seconds: float | None) -> str:
    """Hash the content of a clip: its file and its times. Equal clips have equal hashes, whatever their names.

    Args:
        sha256: hash of the file, in hex.
        start_seconds: start of the clip.
        end_seconds: end of the clip; None or NaN for the end of the recording.

    Returns:
        The first 8 bytes of a SHA-256, as 16 hexadecimal digits.
    """
    end = "" if end_seconds is None or math.isnan(end_seconds) else format_seconds(end_seconds)
    part = (sha256, format_seconds(start_seconds), end)
    return hash_of(["\t".join(part).encode()])[:16]


def format_seconds(seconds: float) -> str:
    """Format a time for an id, to the microsecond and without trailing zeros."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".")


def similar_labels(labels: Sequence[str]) -> list[str]:
    """Return a note on labels that differ only in case, spaces, hyphens and underscores."""
    by_letters: dict[str, list[str]] = {}
    for label in labels:
        by_letters.setdefault(BETWEEN_WORDS.sub("", label).casefold(), []).append(label)
    alike = [" and ".join(map(repr, names)) for names in by_letters.values() if len(names) > 1]
    note = "labels that differ only in case, spaces, hyphens or underscores are separate classes"
    return [f"{note}: {listed(alike)}"] if alike else []
