"""Read the start and end of each clip of a table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from peft_audio.audio.decoding import AudioError, read_info
from peft_audio.data.tables import as_text, row_numbers
from peft_audio.errors import UserError
from peft_audio.text import listed

# Column names of Raven, Audacity, DCASE, NeMo, BirdNET and others, without units, spaces and punctuation.
STARTS = (
    *("start", "begin", "onset", "starttime", "begintime", "tstart", "mint"),
    *("segmentstart", "eventonset", "clipstart"),
)
ENDS = ["end", "stop", "endtime", "stoptime", "tend", "maxt", "segmentend", "eventoffset", "clipend"]
DURATIONS = ("duration", "dur", "length")
OURS = ("start_seconds", "end_seconds")
SAMPLES = ("sample", "samples", "frame", "frames")
SECONDS = dict.fromkeys(("", "s", "sec", "secs", "second", "seconds"), 1.0)
SECONDS |= dict.fromkeys(("ms", "msec", "millisecond", "milliseconds"), 1e-3)
# Excludes 1,500, which may mean 1500.
DECIMAL_COMMA = re.compile(r"^([+-]?(?:0(?=,)|\d+(?!,\d{3}$))),(\d+)$")
MOST_OPENED = 200  # number of files whose lengths are compared with the times of their rows
SLACK_SECONDS = 0.1


@dataclass(frozen=True)
class Segments:
    """Start and end of each row's part of its recording.

    Attributes:
        start: Start in seconds; 0 if not given.
        end: End in seconds; NaN for the end of the recording.
        notes: Columns that were used, or not used and why.
    """

    start: pd.Series
    end: pd.Series
    notes: tuple[str, ...] = ()


def read_segments(table: pd.DataFrame, paths: Sequence[str]) -> Segments:
    """Read the start and end of each row from `start_seconds` and `end_seconds`, or from columns of other tools.

    Columns of other tools are used if they hold seconds within the lengths of the files.

    Args:
        table: Table with one row per clip.
        paths: File of each row.

    Raises:
        UserError: `start_seconds` or `end_seconds` holds values that are not numbers.
    """
    columns = _time_columns(table)
    if "start_seconds" in table or "end_seconds" in table:
        start, end = (_seconds(table, name) for name in OURS)
        notes = [f"{_listed(columns)}: not used beside start_seconds and end_seconds"] if columns else []
        return Segments(start.fillna(0.0), end, tuple(notes))
    whole_files = Segments(pd.Series(0.0, index=table.index), pd.Series(np.nan, index=table.index))
    if set(columns) <= {"duration"}:  # usually the duration of the whole recording
        return whole_files
    used, reason = _choose_columns(columns)
    if not reason:
        words = [
            repr(as_text(table[column.name][odd].iloc[0]))
            for column in used.values()
            if (odd := _is_no_number(table[column.name])).any()
        ]
        numbers = {kind: _numbers(table[column.name]) * (column.seconds or 0) for kind, column in used.items()}
        times = _combine(numbers, whole_files)
        reason = f"{words[0]} is not a number of seconds" if words else _explain_outside(times, paths)
        if not reason:
            note = f"{_listed(used)}: read as start and end of each row's part of its recording"
            return Segments(times.start, times.end, (note,))
    fix = "write seconds in columns start_seconds and end_seconds to use them"
    return Segments(whole_files.start, whole_files.end, (f"{_listed(used)}: not used, because {reason}; {fix}",))


@dataclass(frozen=True)
class _Column:
    """Column of times.

    Attributes:
        name: Name in the table.
        seconds: Seconds per unit; None for samples and frames.
    """

    name: str
    seconds: float | None


def _time_columns(table: pd.DataFrame) -> dict[str, _Column]:
    """Return the first column of each kind: start, end, offset, duration or Raven's start in the file."""
    kinds = dict.fromkeys(STARTS, "start") | dict.fromkeys(ENDS, "end")
    kinds |= {"offset": "offset", "fileoffset": "file start"} | dict.fromkeys(DURATIONS, "duration")
    columns: dict[str, _Column] = {}
    for name in map(str, table):
        words = re.sub(r"[\W_]+", " ", name).casefold().split()
        for unit, rest in (("", words), (words[-1] if words else "", words[:-1])):
            kind = kinds.get("".join(rest))
            if name not in OURS and kind and (unit in SECONDS or unit in SAMPLES):
                columns.setdefault(kind, _Column(name, SECONDS.get(unit)))
    return columns


def _choose_columns(columns: dict[str, _Column]) -> tuple[dict[str, _Column], str]:
    """Return the columns of start and end, and the reason why they cannot be used, or ""."""
    columns = dict(columns)
    if "offset" in columns and "start" in columns and "end" not in columns:
        columns["end"] = columns.pop("offset")
    elif "offset" in columns and "duration" in columns and "start" not in columns:
        columns["start"] = columns.pop("offset")
    kinds = ("start", "end", "file start") if "end" in columns else ("start", "duration")
    if "start" not in columns:
        return {kind: column for kind, column in columns.items() if kind != "duration"}, "no column holds the start"
    used = {kind: columns[kind] for kind in kinds if kind in columns}
    samples = {kind: column for kind, column in used.items() if column.seconds is None}
    return used, f"{_listed(samples)} must be in seconds" if samples else ""


def _combine(numbers: dict[str, pd.Series], whole_files: Segments) -> Segments:
    start = numbers["start"].fillna(0.0)
    end = numbers.get("end", start + numbers["duration"] if "duration" in numbers else whole_files.end)
    if "file start" in numbers and "end" in numbers:  # Raven counts begin and end over all open files
        length = end - start
        start = numbers["file start"].fillna(start)
        end = start + length
    return Segments(start, end)


def _explain_outside(times: Segments, paths: Sequence[str]) -> str:
    """Return a reason if most times are outside their files, as in tables of longer originals; otherwise ""."""
    start, end = times.start.to_numpy(), times.end.to_numpy()
    last = np.where(np.isnan(end), start, end)
    rows = np.flatnonzero(last > SLACK_SECONDS)
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), MOST_OPENED)).astype(int)] if len(rows) else rows
    outside, inside = [], 0
    for row in map(int, rows):
        try:
            info = read_info(Path(paths[row]))
        except AudioError:
            continue
        seconds = info.num_frames / info.sampling_rate
        if last[row] > seconds + SLACK_SECONDS:
            outside.append(
                f"{Path(paths[row]).name} has {seconds:.1f} s, but its row has {start[row]:g} to {last[row]:g} s"
            )
        elif start[row] > SLACK_SECONDS:  # times near 0 fit any file, so they prove nothing
            inside += 1
    return f"they are outside the files ({outside[0]})" if len(outside) > inside else ""


def _listed(columns: Mapping[str, _Column]) -> str:
    names = [column.name for column in columns.values()]
    return f"{'column' if len(names) == 1 else 'columns'} {listed(names, 5)}"


def _numbers(cells: pd.Series) -> pd.Series:
    # Tables separated by semicolons often have decimal commas.
    text = cells.map(as_text).str.replace(DECIMAL_COMMA, r"\1.\2", regex=True)
    return pd.to_numeric(text.where(text != ""), errors="coerce").astype(float)


def _is_no_number(cells: pd.Series) -> pd.Series:
    return (cells.map(as_text) != "") & ~np.isfinite(_numbers(cells))


def _seconds(table: pd.DataFrame, name: str) -> pd.Series:
    if name not in table:
        return pd.Series(np.nan, index=table.index)
    wrong = table[name][_is_no_number(table[name])].map(as_text)
    if len(wrong):
        raise UserError(
            f"--data.source: {name} must be a number of seconds or empty; got {listed(list(map(repr, wrong)))} "
            f"in {row_numbers(wrong.index)}."
        )
    return _numbers(table[name])
