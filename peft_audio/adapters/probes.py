"""Compare a loaded adapter with the saved one by its logits on fixed clips."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from peft_audio.adapters.record import AdapterRecord
from peft_audio.errors import library_problem

if TYPE_CHECKING:
    from peft_audio.adapters.load import Adapter


def probe_waveforms(sampling_rate: int, probe_seconds: Sequence[float]) -> list[np.ndarray]:
    """Make the probe clips, which are swept tones with a varying level.

    Args:
        sampling_rate: Sampling rate in hertz.
        probe_seconds: Length of each clip, from the encoder's family.

    Returns:
        One waveform per clip, float32 of shape (samples,).
    """
    waveforms = []
    for seconds in probe_seconds:
        time = np.arange(round(seconds * sampling_rate)) / sampling_rate
        # The same as scipy.signal.chirp, which takes half a second to import.
        up, down = (f * time + 0.5 * (last - f) / seconds * time**2 for f, last in ((150.0, 3500.0), (2000.0, 300.0)))
        tone = np.cos(2 * np.pi * up) + 0.5 * np.cos(2 * np.pi * down)
        waveforms.append((0.4 * tone * np.cos(4 * np.pi * time)).astype(np.float32))
    return waveforms


def measure_probes(adapter: Adapter, count: int | None = None) -> tuple[dict[str, Any], ...]:
    """Compute the top label and the logits of the first probe clips, one clip at a time, for the record."""
    probes = []
    probe_seconds = adapter.record.family.probes(adapter.record.input)[:count]
    waveforms = probe_waveforms(adapter.record.sampling_rate, probe_seconds)
    for seconds, waveform in zip(probe_seconds, waveforms, strict=True):
        logits = adapter.logits([waveform])[0]
        by_name = dict(zip(adapter.labels, logits.tolist(), strict=True))
        (label,) = adapter.task.decode(adapter.task.decide(logits[None]), adapter.labels)
        probes.append({"seconds": seconds, "label": label, "logits": by_name})
    return tuple(probes)


def check_answers(adapter: Adapter, tolerance: float, count: int | None = None) -> list[str]:
    """Compute the logits of the first probe clips, and list their differences from the record, see `compare_probes`."""
    try:
        measured = measure_probes(adapter, count)
    except (RuntimeError, ValueError, TypeError, IndexError, ArithmeticError) as error:
        return [f"gives no answer: {library_problem(error)}"]
    return compare_probes(adapter.record, measured, tolerance)


def compare_probes(record: AdapterRecord, measured: Sequence[dict[str, Any]], tolerance: float) -> list[str]:
    """List the differences between recorded and measured logits of the probe clips.

    Args:
        record: Record of the adapter.
        measured: Result of `measure_probes`, for all probe clips or the first ones.
        tolerance: Largest allowed difference of a logit, relative to `logit_scale`.

    Returns:
        One phrase per difference.
    """
    if not record.probes:
        return ["the record holds no probe clips"]
    recorded = record.probes[: len(measured)]
    if [probe["seconds"] for probe in recorded] != [probe["seconds"] for probe in measured]:
        return ["the record holds answers to other probe clips"]
    problems = []
    for expected, actual in zip(recorded, measured, strict=True):
        clip = f"probe of {expected['seconds']:g} s"
        difference = relative_difference(expected["logits"], actual["logits"])
        unit = logit_scale(expected["logits"])
        if difference > tolerance:
            problems.append(f"{clip}: logits differ by {difference * unit:.1e}, more than {tolerance * unit:.0e}")
        if expected["label"] != actual["label"]:
            problems.append(f"{clip}: predicts {actual['label']}, recorded {expected['label']}")
    return problems


def relative_difference(expected: Mapping[str, float], actual: Mapping[str, float]) -> float:
    """Return the largest difference between logits of a clip, relative to `logit_scale` of the expected logits.

    Logits are compared by label, which also finds a changed order of labels. The result is infinite if the labels
    differ or a logit is not finite.
    """
    if expected.keys() != actual.keys():
        return math.inf
    differences = [abs(value - actual[label]) for label, value in expected.items()]
    # max ignores NaN, so all differences must be finite.
    return max(differences) / logit_scale(expected) if all(map(math.isfinite, differences)) else math.inf


def logit_scale(logits: Mapping[str, float]) -> float:
    """Return the largest absolute logit, at least 1, as the unit of differences."""
    return max(1.0, *map(abs, logits.values()))
