"""Read a table that lists recordings and their labels."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from peft_audio.config import DataConfig
from peft_audio.data.clip_table import (
    ClipTable,
    format_seconds,
    make_clips,
    map_split_names,
    normalise_label,
    similar_labels,
)
from peft_audio.data.recording_files import find_files
from peft_audio.data.segments import read_segments
from peft_audio.data.tables import as_name, as_text, guess_columns, read_table, row_numbers
from peft_audio.errors import UserError
from peft_audio.files import expanded
from peft_audio.tasks import task_of
from peft_audio.text import listed


def from_manifest(file: Path, cfg: DataConfig) -> ClipTable:
    """List the recordings of a table, or the parts of recordings given by its rows.

    Raises:
        UserError: A column is missing, no recording exists, or rows are invalid; the message lists all of them.
    """
    table, notes = read_table(file, "data.source")
    columns = _columns(table, file, cfg)
    if not len(table):
        raise UserError(f"--data.source: {file} lists no recordings; it needs one row per clip.")
    table, repeated = _without_views(table)
    notes += repeated
    text = {name: table[column].map(as_text if name == "path" else as_name) for name, column in columns.items()}
    given = table["split"].map(as_text) if "split" in table else pd.Series("", index=table.index)
    splits = map_split_names(sorted(set(given) - {""}), "data.source")
    unknown = sorted(set(given) - {"", *splits})
    problems = {
        "no path": text["path"] == "",
        "a path that is not text": (text["path"] != "") & ~table[columns["path"]].map(_is_name),
        "no label": text["label"] == "",
        "no group": text["group"] == "" if "group" in text else pd.Series(False, index=table.index),
        f"a split ({listed(unknown)}) that is not one of train, validation, test": given.isin(unknown),
    }
    if (given != "").any():
        problems["no split, which others have"] = given == ""
    folder = file.parent if cfg.audio_folder is None else expanded(cfg.audio_folder)
    if not folder.is_dir():
        raise UserError(f"--data.audio_folder: got {folder}, must be a folder. Correct the path.")
    files, moved = find_files(list(text["path"]), folder, cfg.audio_folder is not None, file)
    segments = read_segments(table, files)
    start, end = segments.start, segments.end
    # Normalised, because one path can be written in several ways.
    recordings = pd.Series([os.path.normpath(path) for path in files], index=table.index)
    problems |= {
        "a start before 0": start < 0,
        "an end that is not after the start": end <= start,
        "the same clip as another row": pd.DataFrame({"path": recordings, "start": start, "end": end}).duplicated()
        & (text["path"] != ""),
    }
    _refuse_rows(file, problems, segments.notes)
    notes += [*moved, *segments.notes]
    text["label"] = text["label"].map(normalise_label)
    parts = recordings.duplicated(keep=False)
    ids = [
        path if not part else f"{path}@{format_seconds(low)}" + ("" if np.isnan(high) else f"-{format_seconds(high)}")
        for path, low, high, part in zip(text["path"], start, end, parts, strict=True)
    ]
    task = task_of()
    labels = task.label_names(list(text["label"]))
    clips: dict[str, Any] = {"id": ids, "path": files, "label": list(text["label"])}
    clips |= {"split": [splits.get(split, "") for split in given]}
    notes += similar_labels(labels)
    groups_are_recordings = False
    if "group" in text:
        clips["group"] = list(text["group"])
    elif parts.any() and cfg.group_pattern is None:
        clips["group"] = list(text["path"].groupby(recordings).transform("first"))
        groups_are_recordings = True
        notes.append("parts of one recording stay in one split")
    clips |= {"start_seconds": start.to_numpy(), "end_seconds": end.to_numpy()}
    others = table.drop(columns=list(columns.values())).map(as_text).set_axis(ids)
    return ClipTable(
        make_clips(clips),
        labels,
        notes=tuple(notes),
        task=task,
        others=others,
        groups_are_recordings=groups_are_recordings,
    )


def _columns(table: pd.DataFrame, file: Path, cfg: DataConfig) -> dict[str, str]:
    """Return the columns of path, label and, if used, group.

    Raises:
        UserError: The table lacks one of them.
    """
    group = cfg.group_column or ("group" if "group" in table and cfg.group_pattern is None else None)
    columns = {"audio_column": cfg.audio_column or "path", "label_column": cfg.label_column or "label"}
    columns |= {"group_column": group} if group else {}
    missing = {name: column for name, column in columns.items() if column not in table}
    if missing:
        names = list(map(str, table))
        if {"audio_column", "label_column"} <= set(missing) and any(map(_is_number, names)):
            raise UserError(
                f"--data.source: the first line of {file} holds numbers ({listed(names, 5)}), not columns. "
                "Insert a line of column names above it, such as path,label or path,start_seconds,end_seconds,label."
            )
        guesses = guess_columns(table)
        known = [f"--data.{name} {shlex.quote(guesses[name])}" for name in missing if name in guesses]
        other = [f"--data.{name}" for name in missing if name not in guesses]
        fixes = [f"Add {' '.join(known)}."] if known else []
        fixes += [f"Name {'it' if len(other) == 1 else 'them'} with {' and '.join(other)}."]
        raise UserError(
            f"{' and '.join(f'--data.{name}' for name in missing)}: {file} has no column "
            f"{' and no column '.join(map(repr, missing.values()))}, only {listed(names, 20)}. "
            + " ".join(fixes if other else fixes[:1])
        )
    return {name.removesuffix("_column").replace("audio", "path"): column for name, column in columns.items()}


def _without_views(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Drop rows that differ only in the column View, because Raven lists a selection once per view.

    The remaining rows keep their row numbers.
    """
    if "View" not in table:
        return table, []
    kept = table[~table.drop(columns="View").map(as_text).duplicated()]
    left = len(table) - len(kept)
    return kept, [f"{left} rows that differ only in View are left out"] if left else []


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?\d+(\.\d*)?", text) is not None


def _is_name(value: object) -> bool:
    """Return whether a cell can name a recording: text, or an integer id."""
    return isinstance(value, str) or (not isinstance(value, bool) and as_text(value).isdigit())


def _refuse_rows(file: Path, problems: dict[str, pd.Series], notes: Sequence[str]) -> None:
    faults = [f"{problem} in {row_numbers(rows[rows].index)}" for problem, rows in problems.items() if rows.any()]
    if faults:
        raise UserError(f"--data.source: {file} has {'; '.join(faults)}. Correct these rows. {' '.join(notes)}")
