"""Describe the audio that an adapter was trained on, and find recordings that are far from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

QUANTILES = {"q01": 0.01, "q50": 0.5, "q99": 0.99}
# Recordings are far outside beyond these distances from the 1% and 99% quantiles; our choice.
FARTHEST_FACTOR = {"seconds": 2.0, "sampling_rate": 1.34}
FARTHEST_DECIBELS = 20.0
# Level of digital silence, whose decibels would be minus infinity.
SILENCE_DBFS = -120.0

# Values of seconds, level_dbfs and sampling_rate by the name of the quantile.
AudioQuantiles = Mapping[str, Mapping[str, float]]


def level_dbfs(rms: Any) -> Any:
    """Convert a root mean square to decibels below full scale, elementwise."""
    return 20 * np.log10(np.maximum(rms, 10 ** (SILENCE_DBFS / 20)))


def audio_quantiles(seconds: Any, rms: Any, sampling_rate: Any) -> dict[str, dict[str, float]]:
    """Compute quantiles of training clips, to four significant digits.

    Args:
        seconds: length of each clip, or of each window where recordings are cut into windows.
        rms: root mean square of each clip.
        sampling_rate: of each file, in hertz.

    Returns:
        Values of `seconds`, `level_dbfs` and `sampling_rate` by the names in `QUANTILES`; empty without clips.
    """
    if not len(seconds):
        return {}
    values = {"seconds": seconds, "level_dbfs": level_dbfs(np.asarray(rms)), "sampling_rate": sampling_rate}
    return {
        name: {key: float(f"{np.quantile(np.asarray(value), q):.4g}") for key, q in QUANTILES.items()}
        for name, value in values.items()
    }


def far_outside(
    trained: AudioQuantiles, seconds: float, level: float | None, sampling_rate: int | None, model_rate: int
) -> dict[str, str]:
    """Describe the properties in which a recording is far from the training clips.

    Args:
        trained: quantiles of the training clips; empty if the adapter does not record them.
        seconds: length of the longest window.
        level: level in dBFS; None if unknown.
        sampling_rate: sampling rate of the file in hertz; None if unknown.
        model_rate: sampling rate of the model's input in hertz; higher rates count as this one.

    Returns:
        A text for each of `seconds`, `level_dbfs` and `sampling_rate` that is far outside.
    """
    texts = {}
    if "seconds" in trained and _is_far(seconds, trained["seconds"], FARTHEST_FACTOR["seconds"]):
        texts["seconds"] = f"{seconds:.3g} s per window; training clips lasted {_span(trained['seconds'], '.3g')} s"
    if level is not None and "level_dbfs" in trained:
        low, high = trained["level_dbfs"]["q01"], trained["level_dbfs"]["q99"]
        if not low - FARTHEST_DECIBELS <= level <= high + FARTHEST_DECIBELS:
            span = _span(trained["level_dbfs"], ".0f")
            texts["level_dbfs"] = f"level {level:.0f} dBFS; training clips had {span} dBFS"
    if sampling_rate is not None and "sampling_rate" in trained:
        usable = {name: min(rate, model_rate) for name, rate in trained["sampling_rate"].items()}
        if _is_far(min(sampling_rate, model_rate), usable, FARTHEST_FACTOR["sampling_rate"]):
            span = _span(trained["sampling_rate"], ",.0f")
            texts["sampling_rate"] = f"sampled at {sampling_rate:,} Hz; training clips at {span} Hz"
    return texts


def usual_seconds(trained: AudioQuantiles, longest: float) -> float | None:
    """Return the length of a typical training clip in seconds, at most `longest`; None if not recorded."""
    return min(trained["seconds"]["q50"], longest) if "seconds" in trained else None


def _is_far(value: float, quantiles: Mapping[str, float], factor: float) -> bool:
    return not quantiles["q01"] / factor <= value <= quantiles["q99"] * factor


def _span(quantiles: Mapping[str, float], form: str) -> str:
    low, high = (format(quantiles[name], form) for name in ("q01", "q99"))
    return low if low == high else f"{low} to {high}"
