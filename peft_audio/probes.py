"""Fixed clips by whose answers a loaded adapter is compared with the saved one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from peft_audio.adapter import Adapter
from peft_audio.adapter_record import AdapterRecord

PROBE_SECONDS = (0.01, 0.5, 1.0, 2.3)


def probe_waveforms(sampling_rate: int) -> list[np.ndarray]:
    """The fixed clips by which a loaded adapter is compared with the saved one: swept tones, swelling and fading.

    Args:
        sampling_rate: In hertz.

    Returns:
        Float32 of shape (samples,), 0.01 to 2.3 s; the first is shorter than what the encoder takes.
    """
    waveforms = []
    for seconds in PROBE_SECONDS:
        time = np.arange(round(seconds * sampling_rate)) / sampling_rate
        # What scipy.signal.chirp gives, which takes half a second to import.
        up, down = (f * time + 0.5 * (last - f) / seconds * time**2 for f, last in ((150.0, 3500.0), (2000.0, 300.0)))
        tone = np.cos(2 * np.pi * up) + 0.5 * np.cos(2 * np.pi * down)
        waveforms.append((0.4 * tone * np.cos(4 * np.pi * time)).astype(np.float32))
    return waveforms


def measure_probes(adapter: Adapter, count: int = len(PROBE_SECONDS)) -> tuple[dict[str, Any], ...]:
    """Logits and top label of the first probe clips, clip by clip; to be recorded, in float32 on the CPU."""
    found = []
    waveforms = probe_waveforms(adapter.record.sampling_rate)
    for seconds, waveform in list(zip(PROBE_SECONDS, waveforms, strict=True))[:count]:
        logits = adapter.logits([waveform])[0]
        by_name = dict(zip(adapter.labels, logits.tolist(), strict=True))
        found.append({"seconds": seconds, "label": adapter.labels[int(logits.argmax())], "logits": by_name})
    return tuple(found)


def compare_probes(record: AdapterRecord, measured: Sequence[dict[str, Any]], tolerance: float) -> list[str]:
    """What differs between recorded and measured answers to the probe clips.

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
        # By name, so that labels in another order are noticed even where the top one is the same.
        differences = [abs(was["logits"][label] - value) for label, value in now["logits"].items()]
        # Written so that NaN, which is not smaller than anything either, is a difference too.
        allowed = tolerance * max(1.0, *(abs(value) for value in was["logits"].values()))
        if not all(difference <= allowed for difference in differences):
            problems.append(f"{clip}: logits differ by {max(differences):.1e}, more than {allowed:.0e}")
        if was["label"] != now["label"]:
            problems.append(f"{clip}: says {now['label']}, recorded {was['label']}")
    return problems
