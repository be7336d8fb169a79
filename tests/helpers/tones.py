"""Sound files with noisy tones, and their division into splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile


def write_tone(path: Path, hertz: float, seconds: float = 0.4, rate: int = 16_000, seed: int = 0) -> Path:
    """A noisy tone as a 16-bit file; the format follows the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).normal(size=len(time))
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * hertz * time) + 0.02 * noise, rate)
    return path


def divide(tones: Path, folder: Path, counts: dict[str, tuple[int, int]]) -> Path:
    """The same clips under train/, validation/ and test/, with so many clips of "high" and "low" in each."""
    for i, label in enumerate(("high", "low")):
        clips = sorted((tones / label).glob("*.wav"))
        np.random.default_rng(0).shuffle(clips)
        for split, count in counts.items():
            (folder / split / label).mkdir(parents=True)
            for _ in range(count[i]):
                clip = clips.pop()
                (folder / split / label / clip.name).write_bytes(clip.read_bytes())
    return folder
