"""Measure precision and recall of `check --deep` for planted groups.

    python benchmarks/validity/clusters.py --data DATA

DATA holds `fsdd/` (the recordings of the Free Spoken Digit Dataset) and `esc10/` (a folder per class). Ten layouts have
planted groups: speakers, or recording devices, which are random filters and noise. Ten have none. A suspicion is right
if the adjusted Rand index of clusters and groups is at least 0.3. The thresholds of `checks/clusters.py` were chosen on
other draws of the same recordings.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import soundfile
from scipy.signal import butter, lfilter
from sklearn.metrics import adjusted_rand_score

from peft_audio.audio.decoding import load_audio
from peft_audio.checks.clusters import embed, find_clusters

BASE, RATE, SEED = "wav2vec2-nano", 16_000, 1
RIGHT = 0.3
# Waveform, label and group of each clip; the group is "" in layouts without any.
Layout = list[tuple[np.ndarray, str, str]]


def device(rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """Draw a recording device: a band, and a level of noise."""
    low, high = butter(2, rng.uniform(60, 400), "high", fs=RATE), butter(2, rng.uniform(1_800, 7_600), "low", fs=RATE)
    noise = rng.uniform(0.003, 0.03)

    def record(waveform: np.ndarray) -> np.ndarray:
        filtered = lfilter(*high, lfilter(*low, waveform))
        return (filtered + noise * np.abs(waveform).max() * rng.normal(size=len(waveform))).astype(np.float32)

    return record


def recorded(clips: Layout, devices: int, rng: np.random.Generator) -> Layout:
    """Filter each clip with a random device, whose number becomes its group."""
    made = [device(rng) for _ in range(devices)]
    picks = rng.integers(devices, size=len(clips)).tolist()
    return [(made[pick](wave), label, str(pick)) for (wave, label, _), pick in zip(clips, picks, strict=True)]


def layouts(data: Path, rng: np.random.Generator) -> dict[str, Callable[[], Layout]]:
    """Return functions that read the layouts, by name."""
    digits = {file: file.stem.split("_")[:2] for file in sorted((data / "fsdd").rglob("*.wav"))}
    people = sorted({speaker for _, speaker in digits.values()})
    sources: dict[tuple[str, ...], Path] = {}
    for file in sorted((data / "esc10").rglob("*.ogg")):
        sources.setdefault((file.parent.name, *file.stem.split("-")[:2]), file)

    def speech(speakers: list[str], count: int, labels: str = "0123456789", alone: bool = False) -> Layout:
        files = [file for file, (digit, speaker) in digits.items() if speaker in speakers and digit in labels]
        drawn = [files[i] for i in rng.permutation(len(files))[:count].tolist()]
        return [(load_audio(file, RATE), digits[file][0], "" if alone else digits[file][1]) for file in drawn]

    def sounds(labels: str = "") -> Layout:
        files = [file for (label, *_), file in sources.items() if not labels or label in labels.split()]
        return [(load_audio(file, RATE, 0.0, 5.0), file.parent.name, "") for file in files]

    def tones() -> Layout:
        time = np.arange(RATE) / RATE
        heights = [(label, 300 + 150 * label * (1 + 0.02 * rng.normal())) for label in range(5) for _ in range(50)]
        waves = [(0.3 * np.sin(2 * np.pi * hertz * time) + 0.05 * rng.normal(size=RATE)) for _, hertz in heights]
        return [(wave.astype(np.float32), str(label), "") for wave, (label, _) in zip(waves, heights, strict=True)]

    return {
        "planted: 2 speakers": lambda: speech(people[2:4], 500),
        "planted: 3 speakers": lambda: speech([people[0], people[2], people[4]], 500),
        "planted: 4 speakers": lambda: speech(people[1:5], 500),
        "planted: 5 speakers": lambda: speech(people[1:], 500),
        "planted: 6 speakers": lambda: speech(people, 600),
        "planted: 6 speakers, 4 digits": lambda: speech(people, 500, "2468"),
        "planted: 6 speakers, 150 clips": lambda: speech(people, 150),
        "planted: 4 devices, one speaker": lambda: recorded(speech(people[1:2], 300), 4, rng),
        "planted: 4 devices, sounds": lambda: recorded(sounds(), 4, rng),
        "planted: 8 devices, sounds": lambda: recorded(sounds(), 8, rng),
        **{f"clean: speaker {speaker}": partial(speech, [speaker], 300, alone=True) for speaker in people},
        "clean: sounds, a source each": sounds,
        "clean: 4 kinds of voices, a source each": lambda: sounds("dog_bark rooster baby_cry person_sneeze"),
        "clean: 5 kinds of noise, a source each": lambda: sounds("rain sea_waves helicopter chainsaw fire_crackling"),
        "clean: 5 tones": tones,
    }


def as_bytes(waveform: np.ndarray) -> bytes:
    """Return a waveform as the bytes of a WAV file."""
    import io

    file = io.BytesIO()
    soundfile.write(file, waveform, RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


def main() -> None:
    """Print one row per layout, then precision and recall."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with fsdd/ and esc10/")
    parser.add_argument("--base", default=BASE, help="encoder (default: the bundled one)")
    args = parser.parse_args()
    outcomes = []
    print("| layout | clips | clusters | adjusted Rand index with the groups | seconds |\n|---|---|---|---|---|")
    for name, read in layouts(args.data, np.random.default_rng(SEED)).items():
        clips = sorted(read(), key=lambda clip: len(clip[0]))
        begun = perf_counter()
        embeddings = embed([(as_bytes(waveform), 0.0, None) for waveform, _, _ in clips], args.base)
        found = find_clusters(embeddings, [label for _, label, _ in clips])
        groups = [group for _, _, group in clips]
        planted = len(set(groups)) > 1
        index = adjusted_rand_score(groups, found) if planted and found is not None else None
        outcomes.append((planted, found is not None, index is not None and index >= RIGHT))
        clusters = "none" if found is None else str(len(set(found.tolist())))
        rand = "–" if index is None else f"{index:.2f}"
        print(f"| {name} | {len(clips)} | {clusters} | {rand} | {perf_counter() - begun:.0f} |", flush=True)
    suspected = sum(suspicion for _, suspicion, _ in outcomes)
    right = sum(correct for *_, correct in outcomes)
    with_groups = sum(has for has, *_ in outcomes)
    print(f"\nsuspected in {suspected} layouts, right in {right}; found in {right} of {with_groups} with groups")


if __name__ == "__main__":
    main()
