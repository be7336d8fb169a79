"""Read tables of clips: CSV, TSV, JSON lines and Parquet."""

from __future__ import annotations

import csv
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import pandas as pd

from peft_audio.audio.decoding import is_recording
from peft_audio.errors import UserError, in_one_line
from peft_audio.files import parse_json
from peft_audio.text import listed

MANIFEST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
# Names of label columns, the most likely first, in lower case and without spaces, hyphens and underscores.
LABEL_NAMES = (
    *("label", "labels", "class", "classname", "category", "species", "primarylabel", "eventlabel"),
    *("emotion", "intent", "genre", "target", "annotation", "tag"),
)
PATH_NAMES = (
    *("path", "file", "filename", "filepath", "audio", "audiofile", "audiopath", "audiofilepath"),
    *("wav", "fname", "recording", "clip", "id"),
)


def read_table(file: Path, flag: str) -> tuple[pd.DataFrame, list[str]]:
    """Read a table; cells of text files stay text, including numbers and "NA".

    Args:
        file: `.csv`, `.tsv`, `.jsonl` or `.parquet`. The separator may be a comma, tab, semicolon or bar.
        flag: Setting that named the file, for messages.

    Returns:
        The table, and notes on how it was read.

    Raises:
        UserError: The file does not exist, or is not a table of these types.
    """
    suffix = file.suffix.lower()
    if suffix not in MANIFEST_SUFFIXES:
        raise UserError(f"--{flag}: got {file}, must be a table of type {', '.join(MANIFEST_SUFFIXES)}.")
    if not file.is_file():
        raise UserError(f"--{flag}: {file} does not exist; give a table of type {', '.join(MANIFEST_SUFFIXES)}.")
    try:
        if suffix == ".parquet":
            return pd.read_parquet(file).reset_index(drop=True), []
        with file.open("rb") as content:
            # Excel saves "Unicode text" as UTF-16.
            encoding = "utf-16" if content.read(2) in (BOM_UTF16_LE, BOM_UTF16_BE) else "utf-8-sig"
        with file.open(newline="", encoding=encoding) as text:
            if suffix == ".jsonl":
                return pd.DataFrame([parse_json(line) for line in text if line.strip()], dtype=object), []
            usual = "\t" if suffix == ".tsv" else ","
            first = next((line for line in text if line.strip()), "")
            separator = _separator(first, usual)
            table = _read_lines(csv.reader(chain([first], text), delimiter=separator), file, flag)
    except UnicodeDecodeError as error:
        raise UserError(f"--{flag}: {file} is not text in UTF-8; save it as UTF-8.") from error
    # Errors of pyarrow are ValueErrors too. Damaged pandas metadata in a Parquet file raises the lookup errors.
    except (ValueError, OSError, LookupError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        if isinstance(error, UserError):
            raise
        reason = in_one_line(error)
        raise UserError(f"--{flag}: {file} cannot be read as a table ({reason}); correct it.") from error
    return table, [] if separator == usual else [f"{file.name} is separated by {SEPARATORS[separator]}; read as such"]


def _separator(header: str, usual: str) -> str:
    """Return the usual separator, or the most frequent one if the header lacks it."""
    if usual in header:
        return usual
    return max((usual, *SEPARATORS), key=header.count)


def _read_lines(lines: Iterator[list[str]], file: Path, flag: str) -> pd.DataFrame:
    """Read a header and lines of fields as text.

    Unnamed empty columns, which spreadsheets write, are left out.

    Raises:
        UserError: The header is missing or repeats a name, or a line has too many fields.
    """
    names = [name.strip() for name in next(lines, [])]
    rows = [row for row in lines if row]
    kept = [i for i, name in enumerate(names) if name or any(row[i].strip() for row in rows if i < len(row))]
    header = [names[i] for i in kept]
    if not header or len(set(header)) < len(header):
        problem = "has no header" if not header else f"names a column twice: {listed(header, 20)}"
        raise UserError(f"--{flag}: {file} {problem}; give a line of unique column names.")
    recording = next((name for name in header if is_recording(name)), None)
    if recording is not None:
        raise UserError(
            f"--{flag}: the first line of {file} names a recording ({recording}), not columns. "
            "Insert a line of column names above it, such as path,label."
        )
    long = [i for i, row in enumerate(rows) if any(row[len(names) :])]
    if long:
        raise UserError(
            f"--{flag}: {file} has more fields than columns in {row_numbers(long)}; quote fields that hold the "
            "separator."
        )
    cells = [[row[i] if i < len(row) else "" for i in kept] for row in rows]
    return pd.DataFrame(cells, columns=header, dtype=object)


def as_text(value: object) -> str:
    """Return a cell as text: "" for a missing value, and "3" for 3.0, as pandas has integers in columns with gaps."""
    if value is None or (pd.api.types.is_scalar(value) and pd.isna(value)):
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def as_name(value: object) -> str:
    """Return the cell of a label or a group as text that is the same in every file format.

    Whole numbers lose their decimals, such as 1.0, and booleans are written as in Python. Signs and leading zeros stay.
    """
    text = as_text(value)
    if re.fullmatch(r"[+-]?\d+\.0*", text):
        return text.partition(".")[0]
    return text.capitalize() if text.casefold() in ("true", "false") else text


def guess_columns(table: pd.DataFrame) -> dict[str, str]:
    """Guess the columns of recordings and labels, by setting: `audio_column`, `label_column`."""
    names = [name for name in map(str, table) if name in table]
    plain = {re.sub(r"[\W_]+", "", name).casefold(): name for name in reversed(names)}
    text = [name for name in names if table[name].head(20).map(as_text).map(is_recording).any()]
    text += [plain[name] for name in PATH_NAMES if name in plain]
    labels = [plain[name] for name in LABEL_NAMES if name in plain and plain[name] not in text[:1]]
    guesses = {"audio_column": text[:1], "label_column": labels[:1]}
    return {setting: columns[0] for setting, columns in guesses.items() if columns}


def row_numbers(rows: Iterable[int]) -> str:
    """Name rows of a table as "rows 1, 2 (below the header)".

    Args:
        rows: Row numbers, from 0.
    """
    numbers = [str(row + 1) for row in rows]
    return f"{'row' if len(numbers) == 1 else 'rows'} {listed(numbers, 5)} (below the header)"
