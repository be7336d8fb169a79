"""Find clips that are the same audio at another rate, level or format, by fingerprints.

The method follows J. Haitsma and T. Kalker, "A Highly Robust Audio Fingerprinting System" (ISMIR 2002). It keeps the
differences of energy between neighbouring bands, which codecs preserve, and drops the level. Their fingerprint finds
excerpts and hashes every 12 ms. Here a copy is a whole clip, so bands span the whole clip and can be 2 Hz narrow. In
such bands even two takes of the same rain differ by chance, and the delay of a codec changes nothing. They keep the
signs of differences; clipped values found slightly more copies. benchmarks/validity/fingerprint.py measures both.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import soxr
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

RATE = 4_000  # hertz; copies at any rate from 4 kHz on have this band in common
LOWEST_HERTZ, HIGHEST_HERTZ = 100, 1_800  # above mains hum, and below the edge of the resampling filter
LINES = 768  # number of differences between neighbouring bands of 2.2 Hz over the whole clip
FLOOR = 0.01  # share of the mean energy added to each band; more than 20 dB below it, codecs decide the energy
PICTURE_FLOOR = 0.1
LINE_SCALE_DB = 2.0  # larger differences saturate, so that a few loud lines do not dominate
TIMES, BANDS = 8, 16  # size of the coarse picture
EDGE_ENERGY = 0.005  # share of the energy cut from each end of the picture, because codecs add silence
SHORTEST_SECONDS = 0.2  # shorter clips cannot be distinguished
SHORTEST_PICTURE_SECONDS = 0.1
SIZE = LINES + TIMES * BANDS  # 896 bytes per clip

# Cosine similarities; benchmarks/validity/fingerprint.py shows how they were chosen.
SIMILARITY = 0.55
PICTURE_SIMILARITY = 0.85  # separates two instruments on one note, whose lines are similar
SECONDS_APART = 0.3  # at 8 kHz, AAC and MP3 without a header for gapless playback add up to 0.26 s
TILE = 1_024  # number of clips that are compared with as many others at once


def fingerprint(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Compute a fingerprint that is similar for copies at another level, rate or codec.

    Args:
        waveform: Mono waveform of shape (samples,).
        sampling_rate: Sampling rate in hertz; 4,000 or more.

    Returns:
        int8 of shape (896,): differences of energy between narrow neighbouring bands, then a coarse picture of energy
        over time and frequency. All zero, which matches nothing, for a clip that is silent or too short.
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
    """Group clips that are copies of each other, directly or through others.

    Memory grows with the number of clips instead of pairs: clips with equal fingerprint and length are compared as one,
    and the others in tiles.

    Args:
        fingerprints: int8 of shape (clips, 896).
        seconds: Lengths of shape (clips,). Clips whose lengths differ by more than `SECONDS_APART` are not compared.
        similarity: Cosine similarity from which two clips are copies.

    Returns:
        Groups of at least two clips, each in ascending order, sorted by their first clips.
    """
    alike: dict[tuple[bytes, float], list[int]] = {}
    for clip in np.flatnonzero(fingerprints.any(axis=1)).tolist():
        digest = blake2b(fingerprints[clip].tobytes(), digest_size=16).digest()
        alike.setdefault((digest, float(seconds[clip])), []).append(clip)
    members = sorted(alike.values(), key=lambda clips: float(seconds[clips[0]]))
    firsts = np.array([clips[0] for clips in members], dtype=np.intp)
    groups: dict[int, list[int]] = {}
    for group, clips in zip(_group_numbers(fingerprints, seconds, firsts, similarity).tolist(), members, strict=True):
        groups.setdefault(group, []).extend(clips)
    return sorted(sorted(clips) for clips in groups.values() if len(clips) > 1)


def _group_numbers(fingerprints: np.ndarray, seconds: np.ndarray, clips: np.ndarray, similarity: float) -> np.ndarray:
    """Return the group number of each clip, of shape (clips,).

    Args:
        fingerprints: See `near_duplicates`.
        seconds: See `near_duplicates`.
        clips: Row numbers of the clips to compare, sorted by length.
        similarity: See `near_duplicates`.
    """
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
            # Links within a group are redundant, and many copies in one tile would make them expensive.
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
    tiny = np.float32(1e-6)  # keeps the similarity of a constant part at 0
    return (
        lines / np.maximum(np.linalg.norm(lines, axis=1, keepdims=True), tiny),
        picture / np.maximum(np.linalg.norm(picture, axis=1, keepdims=True), tiny),
    )


def _lines(low: np.ndarray) -> np.ndarray | None:
    """Return differences of energy between neighbouring bands, from -1 to 1, of shape (LINES,); None if silent."""
    # Twice the length and at most 1 Hz per bin, so that both edges of a band never fall on one bin.
    size = 1 << (max(2 * len(low), RATE) - 1).bit_length()
    power = np.abs(np.fft.rfft(low, size)) ** 2
    edges = np.linspace(LOWEST_HERTZ, HIGHEST_HERTZ, LINES + 2) * size / RATE + 0.5
    total = np.concatenate([[0.0], np.cumsum(power)])
    energy = np.diff(np.interp(edges, np.arange(len(total)), total))
    if not energy.mean() > 0:
        return None
    return np.tanh(np.diff(10 * np.log10(np.maximum(energy / energy.mean(), 0) + FLOOR)) / LINE_SCALE_DB)


def _picture(low: np.ndarray) -> np.ndarray | None:
    """Return decibels relative to their mean, scaled to a largest value of 1, of shape (TIMES * BANDS,)."""
    frame, hop, size = 128, 16, 256  # 32 ms every 4 ms, bins of 15.6 Hz
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(low, frame), frame)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(frame), size)) ** 2
    edges = np.linspace(LOWEST_HERTZ, HIGHEST_HERTZ, BANDS + 1) * size / RATE
    bands = np.add.reduceat(power, np.round(edges).astype(int), axis=1)[:, :BANDS]

    reached = np.cumsum(low**2) / np.sum(low**2)
    first, last = np.interp([EDGE_ENERGY, 1 - EDGE_ENERGY], reached, np.arange(len(low)))
    missing = max(0.0, SHORTEST_PICTURE_SECONDS * RATE - (last - first)) / 2
    # In frames; the first frame is centred half a frame before the clip.
    times = np.linspace(first - missing + frame / 2, last + missing + frame / 2, TIMES + 1) / hop
    total = np.vstack([np.zeros(BANDS), np.cumsum(bands, axis=0)])
    energy = np.diff([np.interp(times, np.arange(len(total)), column) for column in total.T], axis=1)
    if not energy.mean() > 0:
        return None
    decibels = 10 * np.log10(energy / energy.mean() + PICTURE_FLOOR)
    decibels = (decibels - decibels.mean()).ravel()
    return decibels / max(np.abs(decibels).max(), 1e-9)
