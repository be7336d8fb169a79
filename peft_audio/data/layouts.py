"""Recognise folders whose subfolders are not the classes, and suggest the table or level that has the classes."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from peft_audio.audio.decoding import is_recording
from peft_audio.config import DataConfig
from peft_audio.data.clip_table import SPLIT_NAMES, ClipTable
from peft_audio.data.folder import names_below
from peft_audio.data.manifest import from_manifest
from peft_audio.data.tables import MANIFEST_SUFFIXES, as_name, as_text, guess_columns, read_table
from peft_audio.errors import UserError
from peft_audio.text import listed

LARGEST_TABLE_BYTES = 50_000_000
MOST_TABLES = 20
MOST_SIBLINGS = 200
# A table belongs to a folder if at least BELONGS of its first ROWS_TRIED rows name recordings of the folder.
ROWS_TRIED, BELONGS = 100, 0.5
NEARLY_ALL = 0.9  # share of the recordings; a table that lists fewer is one of several
TABLE_FOLDERS = ("meta", "metadata", "annotation", "annotations", "label", "labels", "csv", "info", "doc", "docs")
# Words of folder names that are followed by a number, by the kind of division.
DIVISIONS = {
    "folds or parts": ("fold", "cv", "part", "chunk", "batch", "shard", "split", "set", "group", "disc", "cd", "dir"),
    "splits": tuple(SPLIT_NAMES),
    "speakers": ("actor", "speaker", "spk", "subject", "subj", "patient", "participant", "person", "user", "singer"),
    "sessions": ("session", "ses", "sess", "day", "date", "recording", "rec", "take", "trial", "device", "mic"),
}


@dataclass(frozen=True)
class _Table:
    """Table that names recordings of a folder.

    Attributes:
        file: The table.
        flags: Settings to read it with.
        clips: Clips that it lists.
        has_folds: Whether it has a column `fold`.
    """

    file: Path
    flags: dict[str, str]
    clips: ClipTable
    has_folds: bool


def explain_folder(root: Path) -> str:
    """Suggest how to read a folder whose own layout was refused.

    Args:
        root: The folder.

    Returns:
        Advice that names the table of its recordings, or the folder with the class folders; "" if none is found.
    """
    names = [name for name in names_below(root) if is_recording(name)]
    table = _table_of(root, names)
    if table:
        return table
    level = _class_level(root, names)
    if level is not None and level != root:
        classes = sorted({name.partition("/")[0] for name in _below(level, root, names)})
        return (
            f"If the folders in {level} ({listed(classes)}) are the classes, give that folder: "
            f"{_command(str(level), {})}"
        )
    has_recordings = any("/" not in name for name in names)
    above = root.resolve().parent
    if has_recordings and sum(map(_holds_recordings, _subfolders(above)[:MOST_SIBLINGS])) > 1:
        shown = str(root.parent) if root.name not in ("", ".", "..") else str(above)
        return f"If {root.resolve().name} is one class of several, give the folder above: {_command(shown, {})}"
    return ""


def doubt_classes(root: Path, collection: ClipTable) -> list[str]:
    """Warn of class folders named like folds or speakers, or that contradict a table beside them.

    Args:
        root: The folder.
        collection: Clips of the folder, labelled by subfolder.

    Returns:
        Notes with the command that reads the labels.
    """
    names = list(collection.clips["id"])
    kind = divisions(collection.labels)
    if kind:
        doubt = f"{listed(collection.labels)} look like {kind}, not like classes."
        table = _table_of(root, names)
        inner = _inner_classes(names)
        if table:
            return [f"{doubt} {table}"]
        if inner:
            doubt += f" The folders inside them ({listed(inner)}) may be the classes."
        return [f"{doubt} If so, write a table with the columns path, label and group, and give it as the source."]
    # as_name gives equal labels to a table with True and a folder named true.
    folder_labels = collection.clips["label"].map(as_name)
    paths = list(collection.clips["path"].map(os.path.normpath))
    for beside in _tables(root, names, near=[root]):
        listed_paths = beside.clips.clips["path"].map(os.path.normpath)
        labels = dict(zip(listed_paths, beside.clips.clips["label"].map(as_name), strict=True))
        if any(labels.get(path, label) != label for path, label in zip(paths, folder_labels, strict=True)):
            return [
                f"{beside.file} has other labels ({listed(beside.clips.labels)}) than the folders, which are used. "
                f"To use those of the table: {_command(str(beside.file), beside.flags)}"
            ]
    return []


def divisions(labels: Sequence[str]) -> str:
    """Return the kind of division, such as "speakers", if each label is one of its words and a number; otherwise ""."""
    for kind, words in DIVISIONS.items():
        if all(re.fullmatch(rf"(?:{'|'.join(words)})[-_. ]?0*\d+", label, re.IGNORECASE) for label in labels):
            return kind
    return ""


def _inner_classes(names: Sequence[str]) -> list[str]:
    """Return the names of the second-level folders if the first-level folders share them."""
    parts = [name.split("/") for name in names]
    if min(map(len, parts), default=0) < 3:
        return []
    outer: dict[str, set[str]] = {}
    for path in parts:
        outer.setdefault(path[1], set()).add(path[0])
    return sorted(outer) if len(outer) > 1 and all(len(folders) > 1 for folders in outer.values()) else []


def _table_of(root: Path, names: Sequence[str]) -> str:
    """Suggest the table that names the recordings of a folder; "" if there is none."""
    above = root.resolve().parent
    near = [root, *_subfolders(root)[:MOST_SIBLINGS], above if root.is_absolute() else root / ".."]
    near += [folder for folder in _subfolders(near[-1]) if folder.name.lower() in TABLE_FOLDERS]
    near = [Path(os.path.normpath(folder)) for folder in near]
    tables = sorted(_tables(root, names, list(dict.fromkeys(near))), key=lambda table: -len(table.clips.clips))
    if not tables:
        return ""
    first = tables[0]
    if len(tables) > 1 and len(first.clips.clips) < NEARLY_ALL * len(names):
        return (
            f"The tables {listed([str(table.file) for table in tables])} each name some of these recordings: write one "
            "table with the columns path, label and split, and give it as the source."
        )
    flags = first.flags | ({"group_column": "fold"} if first.has_folds else {})
    return (
        f"The table {first.file} names these recordings and labels such as {listed(first.clips.labels, 2)}: "
        f"{_command(str(first.file), flags)}"
    )


def _tables(root: Path, names: Sequence[str], near: Sequence[Path]) -> Iterator[_Table]:
    """Yield the tables near a folder whose recordings are in the folder."""
    files = [file for folder in near for file in _files(folder) if file.suffix.lower() in MANIFEST_SUFFIXES]
    known = {part for name in names for part in (Path(name).name, Path(name).stem)}
    for file in files[:MOST_TABLES]:
        try:
            if file.stat().st_size > LARGEST_TABLE_BYTES:
                continue
            rows = read_table(file, "data.source")[0]
            columns = _columns(rows)
            if len(columns) < 2 or not _names_known(rows[columns["audio_column"]], known):
                continue
            flags = {name: column for name, column in columns.items() if column not in ("path", "label")}
            for extra in ({}, *({"audio_folder": folder} for folder in _starts(root, rows[columns["audio_column"]]))):
                clips = _read(file, flags | extra, root)
                if clips is not None:
                    has_folds = "fold" in rows and rows["fold"].nunique() > 2
                    yield _Table(file, flags | extra, clips, has_folds)
                    break
        except (UserError, OSError):
            continue  # not a table of recordings


def _columns(rows: pd.DataFrame) -> dict[str, str]:
    given = {"audio_column": "path", "label_column": "label"}
    return guess_columns(rows) | {name: column for name, column in given.items() if column in rows}


def _names_known(cells: pd.Series, known: set[str]) -> bool:
    names = [re.split(r"[/\\]", cell)[-1] for cell in cells.head(ROWS_TRIED).map(as_text)]
    return bool(names) and sum(name in known for name in names) >= BELONGS * len(names)


def _starts(root: Path, cells: pd.Series) -> list[str]:
    """Return the folders that the paths of a table can be relative to: the root for bare names, or where they exist."""
    paths = [cell.replace("\\", "/") for cell in cells.head(ROWS_TRIED).map(as_text)]
    if not any("/" in path for path in paths):
        return [str(root)]
    folders = [root, Path(os.path.normpath(root / ".."))]
    return [str(f) for f in folders if sum(os.path.lexists(f / path) for path in paths) >= BELONGS * len(paths)]


def _read(file: Path, flags: dict[str, str], root: Path) -> ClipTable | None:
    """Read a table with flags; None if that fails or its recordings are not below the root."""
    settings: dict[str, Any] = {**flags}
    try:
        clips = from_manifest(file, DataConfig(source=str(file), **settings))
    except UserError:
        return None
    inside = os.path.realpath(root) + os.sep
    exist = [os.path.lexists(path) and os.path.realpath(path).startswith(inside) for path in clips.clips["path"]]
    return clips if len(clips.labels) > 1 and sum(exist) >= BELONGS * len(exist) else None


def _command(source: str, flags: dict[str, str]) -> str:
    settings = "".join(f" --data.{name} {shlex.quote(value)}" for name, value in flags.items())
    return f"peft-audio check {shlex.quote(source)}{settings} (recipes take --data.source and the same flags)"


def _class_level(root: Path, names: Sequence[str]) -> Path | None:
    """Return the topmost folder with several subfolders of recordings; None if there is none."""
    level, rest = root, list(names)
    while rest:
        first = {name.partition("/")[0] for name in rest}
        if any("/" not in name for name in rest):
            return None
        if len(first) > 1:
            return level
        level, rest = level / first.pop(), [name.partition("/")[2] for name in rest]
    return None


def _below(folder: Path, root: Path, names: Sequence[str]) -> list[str]:
    prefix = folder.relative_to(root).as_posix() + "/"
    return [name[len(prefix) :] for name in names if name.startswith(prefix)]


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError:
        return []


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []


def _holds_recordings(folder: Path) -> bool:
    return any(is_recording(path.name) for path in _files(folder))
