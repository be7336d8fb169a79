"""A table that lists recordings and their labels."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from peft_audio.config import DataConfig
from peft_audio.data.clip_table import (
    ClipTable,
    check_labels,
    make_clips,
    name_splits,
    similar_labels,
    tidy,
    written_seconds,
)
from peft_audio.errors import UserError, in_one_line
from peft_audio.files import expanded, parse_json
from peft_audio.tasks import task_of
from peft_audio.text import listed

MANIFEST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


def read_table(file: Path, flag: str) -> pd.DataFrame:
    """A table as it stands, numbers and "NA" as the text that was written (as the file's types in Parquet).

    Args:
        file: `.csv`, `.tsv`, `.jsonl` or `.parquet`.
        flag: The setting that named it, for messages.

    Raises:
        UserError: It is not there, or not such a table.
    """
    suffix = file.suffix.lower()
    if suffix not in MANIFEST_SUFFIXES:
        raise UserError(f"--{flag}: got {file}, must be a table of type {', '.join(MANIFEST_SUFFIXES)}.")
    if not file.is_file():
        raise UserError(f"--{flag}: {file} does not exist; give a table of type {', '.join(MANIFEST_SUFFIXES)}.")
    try:
        if suffix == ".parquet":
            return pd.read_parquet(file)
        with file.open(newline="", encoding="utf-8-sig") as text:
            if suffix == ".jsonl":
                return pd.DataFrame([parse_json(line) for line in text if line.strip()], dtype=object)
            return _read_lines(csv.reader(text, delimiter="\t" if suffix == ".tsv" else ","), file, flag)
    except UnicodeDecodeError as error:
        raise UserError(f"--{flag}: {file} is not text in UTF-8; save it as UTF-8.") from error
    # pyarrow's own are ValueErrors too; pandas believes what it once wrote about a table's columns, and looks them up.
    except (ValueError, OSError, LookupError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        if isinstance(error, UserError):
            raise
        reason = in_one_line(error)
        raise UserError(f"--{flag}: {file} cannot be read as a table ({reason}); mend it.") from error


def _read_lines(lines: Iterator[list[str]], file: Path, flag: str) -> pd.DataFrame:
    """Lines of fields below a header, all of them text; a field too many would shift the columns."""
    header = next(lines, [])
    if not header or len(set(header)) < len(header):
        what = "has no header" if not header else f"names a column twice: {listed(header, 20)}"
        raise UserError(f"--{flag}: {file} {what}; give a line of column names, each of its own.")
    rows = [row for row in lines if row]
    long = [i for i, row in enumerate(rows) if any(row[len(header) :])]
    if long:
        raise UserError(
            f"--{flag}: {file} has more fields than columns in {_rows(pd.Index(long))}; quote what holds the separator."
        )
    cells = [row[: len(header)] + [""] * (len(header) - len(row)) for row in rows]
    return pd.DataFrame(cells, columns=header, dtype=object)


def from_manifest(file: Path, cfg: DataConfig) -> ClipTable:
    """The recordings that a table lists; paths are relative to the table's folder.

    Raises:
        UserError: A column is missing, or rows hold what cannot be used; all such rows are named at once.
    """
    table = read_table(file, "data.source")
    columns = {"path": cfg.audio_column or "path", "label": cfg.label_column or "label"}
    flags = {"path": "data.audio_column", "label": "data.label_column", "group": "data.group_column"}
    group = cfg.group_column or ("group" if "group" in table and cfg.group_pattern is None else None)
    columns |= {"group": group} if group else {}
    for name, column in columns.items():
        if column not in table:
            only = listed(list(map(str, table)), 20)
            fix = f"Name the one that holds it with --{flags[name]}."
            if len(table.columns) == 1 and ";" in only:
                fix = "It looks divided by semicolons: save it with commas."
            raise UserError(f"--{flags[name]}: {file} has no column {column!r}, only {only}. {fix}")
    if not len(table):
        raise UserError(f"--data.source: {file} lists no recordings; it needs a row a clip.")
    text = {name: table[column].map(as_text) for name, column in columns.items()}
    given = table["split"].map(as_text) if "split" in table else pd.Series("", index=table.index)
    splits = name_splits(sorted(set(given) - {""}), "data.source")
    odd = sorted(set(given) - {"", *splits})
    times = {name: _seconds(table, name) for name in ("start_seconds", "end_seconds")}
    start, end = times["start_seconds"].fillna(0.0), times["end_seconds"]
    problems = {
        "no path": text["path"] == "",
        "a path that is not text": table[columns["path"]].map(_is_other_than_text),
        "no label": text["label"] == "",
        "no group": text["group"] == "" if "group" in text else pd.Series(False, index=table.index),
        f"a split ({listed(odd)}) that is not one of train, validation, test": given.isin(odd),
        "a start before 0": start < 0,
        "an end that is not after the start": end <= start,
        "the same clip as another row": pd.DataFrame({"path": text["path"], "start": start, "end": end}).duplicated(),
    }
    if (given != "").any():
        problems["no split, which others have"] = given == ""
    _refuse_rows(file, problems)
    text["label"] = text["label"].map(tidy)
    paths = [str(file.parent / expanded(path)) for path in text["path"]]
    # A recording may be listed for several parts of it.
    parts = text["path"].duplicated(keep=False)
    names = [
        path if not part else f"{path}@{written_seconds(at)}" + ("" if np.isnan(to) else f"-{written_seconds(to)}")
        for path, at, to, part in zip(text["path"], start, end, parts, strict=True)
    ]
    task = task_of()
    labels = task.label_names(list(text["label"]))
    check_labels(labels, str(file))
    found = {"id": names, "path": paths, "label": list(text["label"])}
    found |= {"split": [splits.get(split, "") for split in given]}
    notes = similar_labels(labels)
    if "group" in text:
        found["group"] = list(text["group"])
    elif parts.any() and cfg.group_pattern is None:
        found["group"] = list(text["path"])
        notes.append("parts of one recording stay on one side of the splits")
    found |= {"start_seconds": start.to_numpy(), "end_seconds": end.to_numpy()}
    return ClipTable(make_clips(found), labels, notes=tuple(notes), task=task)


def _is_other_than_text(value: object) -> bool:
    return not isinstance(value, str) and as_text(value) != ""


def as_text(value: object) -> str:
    """A cell as text: 3.0 in a column of whole numbers with gaps is 3."""
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def _seconds(table: pd.DataFrame, name: str) -> pd.Series:
    if name not in table:
        return pd.Series(np.nan, index=table.index)
    cells = table[name].map(as_text)
    numbers = pd.to_numeric(cells.where(cells != ""), errors="coerce").astype(float)
    wrong = cells[(cells != "") & ~np.isfinite(numbers)]
    if len(wrong):
        raise UserError(
            f"--data.source: {name} must be a number of seconds or empty; got {listed(list(map(repr, wrong)))} "
            f"in {_rows(wrong.index)}."
        )
    return numbers


def _refuse_rows(file: Path, problems: dict[str, pd.Series]) -> None:
    found = [f"{problem} in {_rows(rows[rows].index)}" for problem, rows in problems.items() if rows.any()]
    if found:
        raise UserError(f"--data.source: {file} has {'; '.join(found)}. Mend these rows.")


def _rows(index: pd.Index) -> str:
    return f"{'row' if len(index) == 1 else 'rows'} {listed([str(i + 1) for i in index], 5)} (below the header)"
