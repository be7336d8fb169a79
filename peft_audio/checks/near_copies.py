"""Which clips are the same audio at another rate, level or format: a small fingerprint of each, and groups of alike.

The idea is that of J. Haitsma and T. Kalker, "A Highly Robust Audio Fingerprinting System" (ISMIR 2002): keep how the
energies of neighbouring bands differ, which a codec leaves alone, and drop the level. Theirs finds excerpts and so
hashes every 12 ms; a copy here is a whole clip, so the bands can span all of it and be as narrow as 2 Hz. In bands that
narrow even two takes of the same rain differ by chance, and a codec's delay changes nothing. They keep the signs of
differences; the values, limited in size, found a little more. benchmarks/validity/fingerprint.py measures it.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import soxr
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

RATE = 4_000  # hertz; what remains of a clip at any rate from 4 kHz up
LOWEST_HERTZ, HIGHEST_HERTZ = 100, 1_800  # over mains hum, below where resampling to RATE begins to cut
LINES = 768  # differences between neighbouring bands of 2.2 Hz over the whole clip
FLOOR = 0.01  # of the mean energy is added to each band: what lies deeper than 20 dB is the codec's, not the clip's
PICTURE_FLOOR = 0.1
LINE_SCALE_DB = 2.0  # larger differences count the same, so that a few loud lines do not decide alone
TIMES, BANDS = 8, 16  # of the coarse picture
EDGE_ENERGY = 0.005  # of a clip's energy lies before the picture, as much behind it: no silence that a codec added
SHORTEST_SECONDS = 0.2  # too little to tell clips apart below this
SHORTEST_PICTURE_SECONDS = 0.1
SIZE = LINES + TIMES * BANDS  # 896 bytes a clip

# Cosines, of which benchmarks/validity/fingerprint.py says how they were chosen.
SIMILARITY = 0.55
PICTURE_SIMILARITY = 0.85  # two instruments on one note share their lines, but not this
SECONDS_APART = 0.3  # at 8 kHz, AAC and MP3 without a header for gapless playback add up to 0.26 s
TILE = 1_024  # clips compared with as many others at once


def fingerprint(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Describe a clip so that its copies are described alike, whatever their level, rate or codec.

    Args:
        waveform: Mono, of shape (samples,).
        sampling_rate: Of the waveform, in hertz; 4,000 or more.

    Returns:
        int8 of shape (896,): differences of energy between narrow neighbouring bands, then a coarse picture of energy
        over time and frequency. All zero, which is like nothing, for a clip that is silent or shorter than 50 ms.
    """
    if len(waveform) < SHORTEST_SECONDS * sampling_rate or np.ptp(waveform) == 0:
        return np.zeros(SIZE, dtype=np.int8)
    low = waveform if sampling_rate == RATE else soxr.resample(waveform, sampling_rate, RATE)
    low = low.astype(np.float64) / np.abs(low).max(initial=1e-30)
    lines, picture = _lines(low), _picture(low)
    if lines is None or picture is None:
        return np.zeros(SIZE, dtype=np.int8)
    return np.round(127 * np.concatenate([lines, picture])).astype(np.int8)


def near_duplicates(fingerprints: np.ndarray, seconds: np.ndarray, similarity: float = SIMILARITY) -> list[list[int]]:
    """Group the clips that are copies of each other, directly or through others.

    Memory grows with the number of clips, not of pairs: clips with the same fingerprint and length are compared as one,
    and the others tile by tile.

    Args:
        fingerprints: int8 of shape (clips, 896).
        seconds: The clips' durations, of shape (clips,). Clips further apart than `SECONDS_APART` are not compared.
        similarity: Cosine from which two clips are copies.

    Returns:
        Groups of two clips or more, each in ascending order, ordered by their first clips.
    """
    alike: dict[tuple[bytes, float], list[int]] = {}
    for clip in np.flatnonzero(fingerprints.any(axis=1)).tolist():
        short = blake2b(fingerprints[clip].tobytes(), digest_size=16).digest()
        alike.setdefault((short, float(seconds[clip])), []).append(clip)
    members = sorted(alike.values(), key=lambda clips: float(seconds[clips[0]]))
    firsts = np.array([clips[0] for clips in members], dtype=np.intp)
    groups: dict[int, list[int]] = {}
    for group, clips in zip(_joined(fingerprints, seconds, firsts, similarity).tolist(), members, strict=True):
        groups.setdefault(group, []).extend(clips)
    return sorted(sorted(clips) for clips in groups.values() if len(clips) > 1)


def _joined(fingerprints: np.ndarray, seconds: np.ndarray, clips: np.ndarray, similarity: float) -> np.ndarray:
    """The number of each clip's group; `clips`, of shape (clips,), are in the order of their seconds."""
    groups = np.arange(len(clips))
    for row in range(0, len(clips), TILE):
        rows = slice(row, row + TILE)
        longest = seconds[clips[rows]].max() + SECONDS_APART
        row_lines, row_pictures = _unit_parts(fingerprints[clips[rows]])
        for column in range(row, len(clips), TILE):
            columns = slice(column, column + TILE)
            if seconds[clips[column]] > longest:
                break
            lines, pictures = _unit_parts(fingerprints[clips[columns]])
            copies = row_lines @ lines.T >= similarity
            # Links within a group say nothing new; without them a tile of copies costs no more than any other.
            copies &= groups[rows, None] != groups[None, columns]
            if not copies.any():
                continue
            copies &= row_pictures @ pictures.T >= PICTURE_SIMILARITY
            copies &= np.abs(seconds[clips[rows], None] - seconds[None, clips[columns]]) <= SECONDS_APART
            one, other = np.nonzero(copies)
            ends = groups[rows][one], groups[columns][other]
            links = coo_array((np.ones(len(one), dtype=bool), ends), shape=(len(clips), len(clips)))
            groups = connected_components(links, directed=False)[1][groups]
    return groups


def _unit_parts(fingerprints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    lines, picture = np.split(fingerprints.astype(np.float32), [LINES], axis=1)
    tiny = np.float32(1e-6)  # a part without any difference is like nothing
    return (
        lines / np.maximum(np.linalg.norm(lines, axis=1, keepdims=True), tiny),
        picture / np.maximum(np.linalg.norm(picture, axis=1, keepdims=True), tiny),
    )


def _lines(low: np.ndarray) -> np.ndarray | None:
    """Differences of energy between neighbouring bands of the whole clip, from -1 to 1, of shape (LINES,)."""
    # Twice the length, and never below 1 Hz a bin: a band's edges may fall between bins, but not on the same one.
    size = 1 << (max(2 * len(low), RATE) - 1).bit_length()
    power = np.abs(np.fft.rfft(low, size)) ** 2
    edges = np.linspace(LOWEST_HERTZ, HIGHEST_HERTZ, LINES + 2) * size / RATE + 0.5
    total = np.concatenate([[0.0], np.cumsum(power)])
    energy = np.diff(np.interp(edges, np.arange(len(total)), total))
    if not energy.mean() > 0:
        return None
    return np.tanh(np.diff(10 * np.log10(np.maximum(energy / energy.mean(), 0) + FLOOR)) / LINE_SCALE_DB)


def _picture(low: np.ndarray) -> np.ndarray | None:
    """Decibels over time and frequency against their mean, the largest 1 or -1, of shape (TIMES * BANDS,)."""
    frame, hop, size = 128, 16, 256  # 32 ms every 4 ms, bins of 15.6 Hz
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(low, frame), frame)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(frame), size)) ** 2
    edges = np.linspace(LOWEST_HERTZ, HIGHEST_HERTZ, BANDS + 1) * size / RATE
    bands = np.add.reduceat(power, np.round(edges).astype(int), axis=1)[:, :BANDS]

    reached = np.cumsum(low**2) / np.sum(low**2)
    first, last = np.interp([EDGE_ENERGY, 1 - EDGE_ENERGY], reached, np.arange(len(low)))
    missing = max(0.0, SHORTEST_PICTURE_SECONDS * RATE - (last - first)) / 2
    # In frames: the first one is centred half a frame before the clip.
    times = np.linspace(first - missing + frame / 2, last + missing + frame / 2, TIMES + 1) / hop
    total = np.vstack([np.zeros(BANDS), np.cumsum(bands, axis=0)])
    energy = np.diff([np.interp(times, np.arange(len(total)), column) for column in total.T], axis=1)
    if not energy.mean() > 0:
        return None
    decibels = 10 * np.log10(energy / energy.mean() + PICTURE_FLOOR)
    decibels = (decibels - decibels.mean()).ravel()
    return decibels / max(np.abs(decibels).max(), 1e-9)
