"""A table that lists recordings and their labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from peft_audio.collection import SPLIT_NAMES, Collection, check_labels, listed, make_clips, similar_labels
from peft_audio.config import DataConfig, UserError

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
        if suffix == ".jsonl":
            # pandas would take a label such as 2024-01-01 for a date.
            lines = file.read_text(encoding="utf-8-sig").splitlines()
            return pd.DataFrame([json.loads(line) for line in lines if line.strip()], dtype=object)
        separator = "\t" if suffix == ".tsv" else ","
        return pd.read_csv(file, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, OSError, UnicodeDecodeError) as error:  # pandas' and pyarrow's own are ValueErrors too
        reason = " ".join(str(error).split())
        raise UserError(f"--{flag}: {file} cannot be read as a table ({reason}); mend it.") from error


def from_manifest(file: Path, cfg: DataConfig) -> Collection:
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
            raise UserError(
                f"--{flags[name]}: {file} has no column {column!r}, only {listed(list(map(str, table)), 20)}. "
                f"Name the one that holds it with --{flags[name]}."
            )
    if not len(table):
        raise UserError(f"--data.source: {file} lists no recordings; it needs a row a clip.")
    text = {name: table[column].map(_text) for name, column in columns.items()}
    given = table["split"].map(_text).str.lower() if "split" in table else pd.Series("", index=table.index)
    times = {name: _seconds(table, name) for name in ("start_seconds", "end_seconds")}
    start = times["start_seconds"].fillna(0.0)
    problems = {
        "no path": text["path"] == "",
        "no label": text["label"] == "",
        "no group": text["group"] == "" if "group" in text else pd.Series(False, index=table.index),
        "a split that is not one of train, validation, test": ~given.isin(["", *SPLIT_NAMES]),
        "a start before 0": start < 0,
        "an end that is not after the start": times["end_seconds"] <= start,
        "the same clip as another row": pd.DataFrame({"path": text["path"], "start": start}).duplicated(),
    }
    if (given != "").any():
        problems["no split, which others have"] = given == ""
    _refuse_rows(file, problems)
    paths = [str(file.parent / Path(path).expanduser()) for path in text["path"]]
    # A recording may be listed for several parts of it.
    parts = text["path"].duplicated(keep=False)
    names = [f"{path}@{at:g}" if part else path for path, at, part in zip(text["path"], start, parts, strict=True)]
    labels = tuple(sorted(set(text["label"])))
    check_labels(labels, str(file))
    found = {"id": names, "path": paths, "label": list(text["label"])}
    found |= {"split": [SPLIT_NAMES.get(split, "") for split in given]}
    notes = similar_labels(labels)
    if "group" in text:
        found["group"] = list(text["group"])
    elif parts.any() and cfg.group_pattern is None:
        found["group"] = list(text["path"])
        notes.append("parts of one recording stay on one side of the splits")
    found |= {"start_seconds": start.to_numpy(), "end_seconds": times["end_seconds"].to_numpy()}
    return Collection(make_clips(found), labels, notes=tuple(notes))


def _text(value: object) -> str:
    """A cell as text: 3.0 in a column of whole numbers with gaps is 3."""
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def _seconds(table: pd.DataFrame, name: str) -> pd.Series:
    if name not in table:
        return pd.Series(np.nan, index=table.index)
    cells = table[name].map(_text)
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
    return f"{'row' if len(index) == 1 else 'rows'} {listed([str(i + 1) for i in index], 5)}"
