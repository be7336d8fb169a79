"""A collection of recordings before it is divided: one row a clip, wherever it came from."""

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

# What may divide the words of a label; before a word it may be a sign, and between digits it makes another number.
BETWEEN_WORDS = re.compile(r"(?<=[^\W_])[\s_-]+(?=[^\W\d_])|(?<=[^\W\d_])[\s_-]+(?=[^\W_])")
SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {split: split for split in SPLITS} | {"training": "train", "valid": "validation", "val": "validation"}
SPLIT_NAMES |= {"dev": "validation", "eval": "validation", "testing": "test"}


@dataclass(frozen=True)
class ClipTable:
    """Clips and what is known of them without opening one.

    Attributes:
        clips: A row a clip: `id` (unique), `path` (a file) or `stored` (a row of `stored`), `label` (text), `group`
            (speaker, artist, source recording; "" if not known), `split` ("" where the source gives none),
            `start_seconds` and `end_seconds` (a part of the recording; NaN for its end).
        labels: The label names, in the order of the label numbers.
        stored: Recordings that are bytes in a table, in its column `audio`; read from disk as they are asked for.
        notes: What was decided about the source, to be told.
        ignored: Files that are not recordings by their names.
        revision: The commit of a Hub dataset.
        names: Each clip's file name, where it is not that of `path`; "" if it has none.
        task: what the label text of a clip means.
        doubts: Warnings that the labels may not be those that are meant.
        groups_are_recordings: Whether the groups are the recordings that clips are parts of, and nobody declared them.
        others: Columns of a manifest that are not used, as text; its index has the ids of the clips.
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
    """Columns as a table of clips, with "" and whole recordings for what is not given."""
    # A table costs a fifth of a second to import, and not all that imports this module makes one.
    import pandas as pd

    clips = pd.DataFrame(columns)
    defaults = {"path": "", "stored": -1, "group": "", "split": "", "start_seconds": 0.0, "end_seconds": float("nan")}
    for name, value in defaults.items():
        if name not in clips:
            clips[name] = value
    return clips


def recording_of(row: Any, stored: Dataset | None) -> Path | bytes:
    """The file of a clip, or its bytes."""
    if row["stored"] < 0:
        return Path(row["path"])
    assert stored is not None
    audio = stored[int(row["stored"])]["audio"]
    return Path(audio["path"]) if audio["bytes"] is None else audio["bytes"]


def pattern_names(collection: ClipTable) -> list[str]:
    """Return the name of each clip that `data.group_pattern` is searched in."""
    if collection.names is None:
        return [Path(path).name for path in collection.clips["path"]]
    # Clips that a table of splits leaves out still have a name.
    return [collection.names[number] for number in collection.clips.index]


def grouped(collection: ClipTable, cfg: DataConfig) -> ClipTable:
    """Take each clip's group from its name, where `data.group_pattern` is given.

    The pattern is searched in the file name. A pattern with "/" that no file name matches is searched in the id, which
    has the folders below the source.

    Raises:
        UserError: The pattern does not match some names.
    """
    if cfg.group_pattern is None:
        return collection
    pattern = re.compile(cfg.group_pattern)
    names = pattern_names(collection)
    found = [pattern.search(name) for name in names]
    if "/" in cfg.group_pattern and not any(found):
        names = list(collection.clips["id"])
        found = [pattern.search(name) for name in names]
    groups = [(match[1 if match.re.groups else 0] or "") if match else "" for match in found]
    missed = [name for name, group in zip(names, groups, strict=True) if not group]
    if missed:
        raise UserError(
            f"--data.group_pattern: {cfg.group_pattern!r} finds no group in {len(missed)} of {len(names)} file names: "
            f"{listed(missed)}. Mend the pattern, or give a manifest with a group column."
        )
    return replace(collection, clips=collection.clips.assign(group=groups), names=None)


def check_labels(labels: Sequence[str], source: str, least: int = 2) -> None:
    """Refuse a source with too few labels.

    Args:
        labels: Label names of the source.
        source: Name of the source, for the message.
        least: Number of labels without which it is refused.

    Raises:
        UserError: There are fewer.
    """
    if len(labels) < least:
        what = f"one class, {labels[0]!r}" if labels else "no clips"
        raise UserError(f"--data.source: {source} has {what}; a classifier needs two or more. Add another class.")


def tidy(label: str) -> str:
    """A label with the same letters written in one way only, and without spaces around it."""
    return unicodedata.normalize("NFC", label).strip()


def name_splits(names: Iterable[str], flag: str, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """Which of our splits each name means; those that mean none are left out.

    Args:
        names: As the source has them; case and spaces around them do not count.
        flag: The setting that they came by, for messages.
        given: What they mean, where the user says so.

    Raises:
        UserError: Two of them mean the same split.
    """
    names = list(names)
    table: Mapping[str, str] = SPLIT_NAMES if given is None else given
    found = {name: table[key] for name in names if (key := name if given else name.strip().lower()) in table}
    if given is None and "test" not in found.values() and len([s for s in found.values() if s == "validation"]) == 2:
        # Beside a dev split, what is called eval is the test.
        found |= {name: "test" for name in found if name.strip().lower() == "eval"}
    for split in SPLITS:
        same = [name for name in found if found[name] == split]
        if len(same) > 1:
            raise UserError(f"--{flag}: {' and '.join(same)} both mean the {split} split; leave one, or rename it.")
    return found


def clip_hash(sha256: str, start_seconds: float, end_seconds: float | None) -> str:
    """Hash the file and the part of it that a clip is: equal for equal clips, whatever their names.

    Args:
        sha256: hash of the file, in hex.
        start_seconds: start of the clip.
        end_seconds: end of the clip; None or NaN for the end of the recording.

    Returns:
        The first 8 bytes of a SHA-256, as 16 hexadecimal digits.
    """
    end = "" if end_seconds is None or math.isnan(end_seconds) else written_seconds(end_seconds)
    part = (sha256, written_seconds(start_seconds), end)
    return hash_of(["\t".join(part).encode()])[:16]


def written_seconds(seconds: float) -> str:
    """A time for an id: to the microsecond, as short as it can be."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".")


def similar_labels(labels: Sequence[str]) -> list[str]:
    """Return a note on labels that differ in case, spaces, hyphens and underscores alone."""
    by_letters: dict[str, list[str]] = {}
    for label in labels:
        by_letters.setdefault(BETWEEN_WORDS.sub("", label).casefold(), []).append(label)
    alike = [" and ".join(map(repr, names)) for names in by_letters.values() if len(names) > 1]
    what = "labels that differ in case, spaces, hyphens or underscores alone are classes of their own"
    return [f"{what}: {listed(alike)}"] if alike else []
