"""Fixed clips by whose answers a loaded adapter is compared with the saved one."""

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
    """The fixed clips by which a loaded adapter is compared with the saved one: swept tones, swelling and fading.

    Args:
        sampling_rate: Sampling rate in hertz.
        probe_seconds: Length of each clip, as the encoder's family gives it.

    Returns:
        One waveform per clip, float32 of shape (samples,).
    """
    waveforms = []
    for seconds in probe_seconds:
        time = np.arange(round(seconds * sampling_rate)) / sampling_rate
        # What scipy.signal.chirp gives, which takes half a second to import.
        up, down = (f * time + 0.5 * (last - f) / seconds * time**2 for f, last in ((150.0, 3500.0), (2000.0, 300.0)))
        tone = np.cos(2 * np.pi * up) + 0.5 * np.cos(2 * np.pi * down)
        waveforms.append((0.4 * tone * np.cos(4 * np.pi * time)).astype(np.float32))
    return waveforms


def measure_probes(adapter: Adapter, count: int | None = None) -> tuple[dict[str, Any], ...]:
    """Logits and top label of the first probe clips, clip by clip; to be recorded, in float32 on the CPU."""
    found = []
    probe_seconds = adapter.record.family.probes(adapter.record.input)[:count]
    waveforms = probe_waveforms(adapter.record.sampling_rate, probe_seconds)
    for seconds, waveform in zip(probe_seconds, waveforms, strict=True):
        logits = adapter.logits([waveform])[0]
        by_name = dict(zip(adapter.labels, logits.tolist(), strict=True))
        (label,) = adapter.task.decode(adapter.task.decide(logits[None]), adapter.labels)
        found.append({"seconds": seconds, "label": label, "logits": by_name})
    return tuple(found)


def check_answers(adapter: Adapter, tolerance: float, count: int | None = None) -> list[str]:
    """As `compare_probes`, of what is measured now; settings that load may still be none that run."""
    try:
        measured = measure_probes(adapter, count)
    except (RuntimeError, ValueError, TypeError, IndexError, ArithmeticError) as error:
        return [f"gives no answer: {library_problem(error)}"]
    return compare_probes(adapter.record, measured, tolerance)


def compare_probes(record: AdapterRecord, measured: Sequence[dict[str, Any]], tolerance: float) -> list[str]:
    """List the differences between recorded and measured logits of the probe clips.

    Args:
        record: Of the adapter.
        measured: What `measure_probes` gives; the first of the clips may be all.
        tolerance: Of a logit, relative to the clip's largest where that is above 1.

    Returns:
        One sentence a difference.
    """
    if not record.probes:
        return ["the record holds no probe clips"]
    recorded = record.probes[: len(measured)]
    if [probe["seconds"] for probe in recorded] != [probe["seconds"] for probe in measured]:
        return ["the record holds answers to other probe clips"]
    problems = []
    for was, now in zip(recorded, measured, strict=True):
        clip = f"probe of {was['seconds']:g} s"
        found, unit = relative_difference(was["logits"], now["logits"]), largest_logit(was["logits"])
        if found > tolerance:
            problems.append(f"{clip}: logits differ by {found * unit:.1e}, more than {tolerance * unit:.0e}")
        if was["label"] != now["label"]:
            problems.append(f"{clip}: says {now['label']}, recorded {was['label']}")
    return problems


def relative_difference(was: Mapping[str, float], now: Mapping[str, float]) -> float:
    """The largest difference between a clip's logits, by label, in units of `largest_logit`.

    By label, so that an order of labels that changed is noticed even where the top one is the same. Infinite where the
    labels are others, or a logit is not a number.
    """
    if was.keys() != now.keys():
        return math.inf
    differences = [abs(value - now[label]) for label, value in was.items()]
    # NaN is not larger than anything, but the largest difference there is.
    return max(differences) / largest_logit(was) if all(map(math.isfinite, differences)) else math.inf


def largest_logit(logits: Mapping[str, float]) -> float:
    """The largest absolute logit, but 1 at least: what differences are held against."""
    return max(1.0, *map(abs, logits.values()))
