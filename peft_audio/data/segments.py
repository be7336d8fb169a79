"""Find which part of its recording each row of a table means."""

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

# Words of column names, without units, spaces and punctuation: of Raven, Audacity, DCASE, NeMo, BirdNET and others.
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
# Not 1,500, which may be 1500.
DECIMAL_COMMA = re.compile(r"^([+-]?(?:0(?=,)|\d+(?!,\d{3}$))),(\d+)$")
MOST_OPENED = 200  # files whose length is compared with the times of their rows
SLACK_SECONDS = 0.1


@dataclass(frozen=True)
class Segments:
    """The part of its recording that each row means.

    Attributes:
        start: Seconds; 0 where not given.
        end: Seconds; NaN for the end of the recording.
        notes: Which columns were used, or were not and why.
    """

    start: pd.Series
    end: pd.Series
    notes: tuple[str, ...] = ()


def read_segments(table: pd.DataFrame, paths: Sequence[str]) -> Segments:
    """Read start and end of each row: from `start_seconds` and `end_seconds`, or from columns that other tools write.

    Columns of other tools are used if they hold seconds that lie inside the files.

    Args:
        table: Rows of clips.
        paths: File of each row.

    Raises:
        UserError: `start_seconds` or `end_seconds` holds what is not a number.
    """
    columns = _time_columns(table)
    if "start_seconds" in table or "end_seconds" in table:
        start, end = (_seconds(table, name) for name in OURS)
        notes = [f"{_listed(columns)}: not used beside start_seconds and end_seconds"] if columns else []
        return Segments(start.fillna(0.0), end, tuple(notes))
    whole = Segments(pd.Series(0.0, index=table.index), pd.Series(np.nan, index=table.index))
    if set(columns) <= {"duration"}:  # of the whole recording, as in many tables
        return whole
    used, reason = _choose(columns)
    if not reason:
        words = [
            repr(as_text(table[column.name][odd].iloc[0]))
            for column in used.values()
            if (odd := _is_no_number(table[column.name])).any()
        ]
        numbers = {kind: _numbers(table[column.name]) * (column.seconds or 0) for kind, column in used.items()}
        found = _combined(numbers, whole)
        reason = f"{words[0]} is not a number of seconds" if words else _outside(found, paths)
        if not reason:
            note = f"{_listed(used)}: read as the part of the recording that a row means"
            return Segments(found.start, found.end, (note,))
    fix = "write seconds in columns start_seconds and end_seconds to use them"
    return Segments(whole.start, whole.end, (f"{_listed(used)}: not used, because {reason}; {fix}",))


@dataclass(frozen=True)
class _Column:
    """A column of times.

    Attributes:
        name: As the table has it.
        seconds: Of one unit; None for samples and frames.
    """

    name: str
    seconds: float | None


def _time_columns(table: pd.DataFrame) -> dict[str, _Column]:
    """Return the first column of each kind: start, end, offset, duration or Raven's start in the file."""
    kinds = dict.fromkeys(STARTS, "start") | dict.fromkeys(ENDS, "end")
    kinds |= {"offset": "offset", "fileoffset": "file start"} | dict.fromkeys(DURATIONS, "duration")
    found: dict[str, _Column] = {}
    for name in map(str, table):
        words = re.sub(r"[\W_]+", " ", name).casefold().split()
        for unit, rest in (("", words), (words[-1] if words else "", words[:-1])):
            kind = kinds.get("".join(rest))
            if name not in OURS and kind and (unit in SECONDS or unit in SAMPLES):
                found.setdefault(kind, _Column(name, SECONDS.get(unit)))
    return found


def _choose(columns: dict[str, _Column]) -> tuple[dict[str, _Column], str]:
    """Choose the columns of start and end, and give the reason why they cannot be used, or ""."""
    columns = dict(columns)
    if "offset" in columns and "start" in columns and "end" not in columns:
        columns["end"] = columns.pop("offset")
    elif "offset" in columns and "duration" in columns and "start" not in columns:
        columns["start"] = columns.pop("offset")
    wanted = ("start", "end", "file start") if "end" in columns else ("start", "duration")
    if "start" not in columns:
        return {kind: column for kind, column in columns.items() if kind != "duration"}, "no column says the start"
    used = {kind: columns[kind] for kind in wanted if kind in columns}
    samples = {kind: column for kind, column in used.items() if column.seconds is None}
    return used, f"{_listed(samples)} must be in seconds" if samples else ""


def _combined(numbers: dict[str, pd.Series], whole: Segments) -> Segments:
    start = numbers["start"].fillna(0.0)
    end = numbers.get("end", start + numbers["duration"] if "duration" in numbers else whole.end)
    if "file start" in numbers and "end" in numbers:  # Raven counts begin and end over all files that were open
        length = end - start
        start = numbers["file start"].fillna(start)
        end = start + length
    return Segments(start, end)


def _outside(found: Segments, paths: Sequence[str]) -> str:
    """Say that most times lie outside of their files, as in tables about longer originals; "" if they lie inside."""
    start, end = found.start.to_numpy(), found.end.to_numpy()
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
                f"{Path(paths[row]).name} has {seconds:.1f} s, and its row means {start[row]:g} to {last[row]:g} s"
            )
        elif start[row] > SLACK_SECONDS:  # the start of a longer original lies inside of any file
            inside += 1
    return f"they lie outside of the files ({outside[0]})" if len(outside) > inside else ""


def _listed(columns: Mapping[str, _Column]) -> str:
    names = [column.name for column in columns.values()]
    return f"{'column' if len(names) == 1 else 'columns'} {listed(names, 5)}"


def _numbers(cells: pd.Series) -> pd.Series:
    # Tables that are divided by semicolons often have decimal commas.
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
