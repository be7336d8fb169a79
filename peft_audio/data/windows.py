"""Cut long recordings into windows."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from peft_audio.config import DataConfig
from peft_audio.data.clip_table import format_seconds
from peft_audio.errors import require

if TYPE_CHECKING:
    import pandas as pd


def window_starts(seconds: float, window: float, hop: float | None = None) -> list[float]:
    """Return the start of each window in seconds; the last window ends at the end of the recording.

    Args:
        seconds: Length of the recording; if it is at most `window`, there is one window.
        window: Length of a window in seconds.
        hop: Distance between the starts of two windows in seconds; `window` when not given.
    """
    spare = max(0.0, seconds - window)
    # The tolerance keeps rounding errors from adding a window.
    count = math.ceil(spare / (hop or window) - 1e-6) + 1
    return [min(number * (hop or window), spare) for number in range(count)]


def cut_windows(clips: pd.DataFrame, window: float | None, hop: float | None, limit: float = math.inf) -> pd.DataFrame:
    """Cut each recording into windows.

    Args:
        clips: One row per recording with `id`, `num_frames`, `sampling_rate`, `start_seconds` and `end_seconds`.
        window: Length of a window in seconds; None to keep recordings whole.
        hop: Distance between the starts of two windows in seconds; `window` when not given.
        limit: Seconds from the start of a recording that the windows cover.

    Returns:
        One row per window, with `recording`, the id of its recording.
    """
    clips = clips.assign(recording=clips["id"])
    return clips if window is None else cut_rows(clips, window, hop, limit)


def cut_rows(clips: pd.DataFrame, window: float, hop: float | None = None, limit: float = math.inf) -> pd.DataFrame:
    """Cut each row into windows and keep its `recording` and other columns; see `cut_windows`."""
    seconds = np.minimum(clips["num_frames"] / clips["sampling_rate"], limit)
    starts = [window_starts(length, window, hop) for length in seconds]
    counts = np.array([len(each) for each in starts])
    rows = clips.loc[clips.index.repeat(counts)].reset_index(drop=True)
    cut = np.repeat(counts > 1, counts)
    start = rows["start_seconds"].to_numpy(float) + np.concatenate(starts)
    frames = np.round(window * rows["sampling_rate"].to_numpy()).astype(int)
    return rows.assign(
        id=[
            f"{name}@{format_seconds(first)}" if part else name
            for name, first, part in zip(rows["id"], start, cut, strict=True)
        ],
        start_seconds=start,
        end_seconds=np.where(cut, start + window, rows["end_seconds"].to_numpy(float)),
        num_frames=np.where(cut, frames, rows["num_frames"]),
    )


def fit_lengths(cfg: DataConfig, window: float | None) -> DataConfig:
    """Limit the lengths that are read of a clip to the fixed window of an encoder.

    Evaluation cuts the first `max_eval_seconds` of recordings into consecutive windows. Training reads random crops of
    a window, because a shorter crop would cost as much and be filled up with silence; a `max_seconds` other than the
    default still shortens them.

    Args:
        cfg: Settings with the lengths.
        window: Window in seconds; None if the encoder accepts clips of any length.

    Raises:
        UserError: `data.window_seconds` is longer than the window.
    """
    if window is None:
        return cfg
    require(
        cfg.window_seconds is None or cfg.window_seconds <= window,
        "data.window_seconds",
        cfg.window_seconds,
        f"{window:g} or less: the encoder takes a fixed window (model.input_seconds)",
        "Leave it out: evaluation cuts longer recordings into such windows.",
    )
    longest = min(cfg.max_eval_seconds, window)
    cut = cfg.window_seconds or longest
    crop = cut if cfg.max_seconds == DataConfig.max_seconds else min(cfg.max_seconds, window)
    return replace(cfg, max_seconds=crop, max_eval_seconds=longest, window_seconds=cut)
