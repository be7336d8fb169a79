"""Long recordings as windows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from peft_audio.data.clip_table import written_seconds

if TYPE_CHECKING:
    import pandas as pd


def window_starts(seconds: float, window: float, hop: float | None = None) -> list[float]:
    """Where the windows of a recording begin; the last one ends where the recording does.

    Args:
        seconds: Of the recording.
        window: Length of a window, in seconds; one window stands for a recording that is not longer.
        hop: From start to start, in seconds; `window` when not given.
    """
    spare = max(0.0, seconds - window)
    # A hair more than a whole number of hops is rounding, not another window.
    count = math.ceil(spare / (hop or window) - 1e-6) + 1
    return [min(number * (hop or window), spare) for number in range(count)]


def cut_windows(clips: pd.DataFrame, window: float | None, hop: float | None) -> pd.DataFrame:
    """Each recording as windows.

    Args:
        clips: With `id`, `num_frames`, `sampling_rate`, `start_seconds`, `end_seconds`.
        window: See `window_starts`; recordings stay whole when not given.
        hop: See `window_starts`.

    Returns:
        The rows, with `recording`, the id of what they were cut from.
    """
    clips = clips.assign(recording=clips["id"])
    if window is None:
        return clips
    seconds = clips["num_frames"] / clips["sampling_rate"]
    starts = [window_starts(length, window, hop) for length in seconds]
    counts = np.array([len(found) for found in starts])
    rows = clips.loc[clips.index.repeat(counts)].reset_index(drop=True)
    cut = np.repeat(counts > 1, counts)
    start = rows["start_seconds"].to_numpy(float) + np.concatenate(starts)
    frames = np.round(window * rows["sampling_rate"].to_numpy()).astype(int)
    return rows.assign(
        id=[
            f"{name}@{written_seconds(at)}" if part else name
            for name, at, part in zip(rows["id"], start, cut, strict=True)
        ],
        start_seconds=start,
        end_seconds=np.where(cut, start + window, rows["end_seconds"].to_numpy(float)),
        num_frames=np.where(cut, frames, rows["num_frames"]),
    )
