"""Find clips that share a part of one recording: trimmed or shifted copies.

The method follows A. Wang, "An Industrial-Strength Audio Search Algorithm" (ISMIR 2003). A landmark is a pair of
spectral peaks, described by two frequencies and the time between them. Two clips with many equal landmarks at one time
offset are cut from one recording. `near_copies` compares whole clips; this module compares parts of clips.
benchmarks/validity/trimmed.py measures its precision and recall.
"""

from __future__ import annotations

import numpy as np
import soxr
from scipy.ndimage import maximum_filter

RATE = 4_000  # hertz
FRAME, HOP = 256, 32  # samples: 64 ms every 8 ms, bins of 15.6 Hz
LOWEST_BIN, HIGHEST_BIN = 6, 120  # 94 to 1,875 Hz
NEIGHBOURS = (17, 7)  # frames and bins around a peak in which it is the highest
DYNAMIC_RANGE = 1e-5  # share of the highest power of a clip; lower peaks are dropped
PEAKS_PER_SECOND = 40
FANOUT = 8  # pairs per peak
NEAREST, FARTHEST = 4, 96  # frames between the peaks of a pair
MOST_HERTZ_APART = 40  # bins
TIME_STEP = 2  # frames; the time between two peaks is rounded to it
SIZE = 256  # landmarks kept per clip, 1.5 kB
EMPTY = np.uint32(0xFFFFFFFF)

SHORTEST_SECONDS = 1.0  # two takes of a short word share landmarks
# Different clips had at most 11 matches when this was chosen, see benchmarks/validity/trimmed.py.
FEWEST_MATCHES = 16
SHARE = 0.1  # smallest share of the matches of two clips at one offset; steady sounds match at many offsets
OFFSET_WIDTH = 3  # frames; matches at neighbouring offsets count together
# Landmarks in more clips are ignored, because they come from hum and tones.
MOST_CLIPS = 30
MOST_PAIRS = 10_000_000
OFFSETS = 1 << 18  # more than twice the largest time


def landmarks(waveform: np.ndarray, sampling_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Describe a clip by pairs of spectral peaks.

    Args:
        waveform: Mono waveform of shape (samples,).
        sampling_rate: Sampling rate in hertz; 4,000 or more.

    Returns:
        uint32 hashes and uint16 times in frames, both of shape (256,). If a clip has fewer landmarks, the rest is
        `EMPTY`. If it has more, those with the lowest hashes are kept, so that copies keep the same ones.
    """
    hashes, times = np.full(SIZE, EMPTY), np.zeros(SIZE, dtype=np.uint16)
    low = waveform if sampling_rate == RATE else soxr.resample(waveform, sampling_rate, RATE)
    if len(low) < SHORTEST_SECONDS * RATE or np.ptp(waveform) == 0:
        return hashes, times
    frames = np.lib.stride_tricks.sliding_window_view(low.astype(np.float32), FRAME)[::HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(FRAME).astype(np.float32))[:, LOWEST_BIN:HIGHEST_BIN]) ** 2
    highest = power.max()
    if not highest > 0:
        return hashes, times
    peaks = (power == maximum_filter(power, size=NEIGHBOURS)) & (power > DYNAMIC_RANGE * highest)
    frame, band = np.nonzero(peaks)
    most = max(1, round(PEAKS_PER_SECOND * len(low) / RATE))
    if len(frame) > most:
        kept = np.sort(np.argsort(power[frame, band])[::-1][:most])
        frame, band = frame[kept], band[kept]
    first, second = _pairs(frame, band)
    apart = (frame[second] - frame[first]) // TIME_STEP
    codes = (band[first] << 13) + ((band[second] - band[first] + MOST_HERTZ_APART) << 6) + apart
    # The multiplication scatters the codes, so that the lowest hashes are a random sample.
    mixed = (codes.astype(np.uint64) * np.uint64(2_654_435_761) % np.uint64(2**32 - 1)).astype(np.uint32)
    order = np.argsort(mixed, kind="stable")[:SIZE]
    hashes[: len(order)], times[: len(order)] = mixed[order], np.minimum(frame[first][order], 65_535)
    return hashes, times


def _pairs(frame: np.ndarray, band: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pair each peak with the next few peaks near it.

    Returns:
        Index of the first and of the second peak of each pair, each of shape (pairs,).
    """
    firsts, seconds = [], []
    counts = np.zeros(len(frame), dtype=int)
    for lag in range(1, min(len(frame), 8 * FANOUT)):
        apart, hertz = frame[lag:] - frame[:-lag], np.abs(band[lag:] - band[:-lag])
        near = (apart >= NEAREST) & (apart <= FARTHEST) & (hertz < MOST_HERTZ_APART) & (counts[:-lag] < FANOUT)
        chosen = np.flatnonzero(near)
        counts[chosen] += 1
        firsts.append(chosen)
        seconds.append(chosen + lag)
    nothing = np.zeros(0, dtype=int)
    return np.concatenate([nothing, *firsts]), np.concatenate([nothing, *seconds])


def matching_pairs(hashes: np.ndarray, times: np.ndarray, recordings: np.ndarray) -> np.ndarray:
    """Find the pairs of clips with many equal landmarks at one time offset.

    Args:
        hashes: uint32 of shape (clips, 256); all `EMPTY` for a clip that is not compared.
        times: uint16 of shape (clips, 256), in frames.
        recordings: Number of the file of each clip, of shape (clips,); clips of one file are not compared.

    Returns:
        Row numbers of the clips of each pair, the lower one first, of shape (pairs, 2).
    """
    clip, column = np.nonzero(hashes != EMPTY)
    code = hashes[clip, column]
    order = np.argsort(code, kind="stable")
    clip, code, time = clip[order], code[order], times[clip[order], column[order]].astype(np.int64)
    starts = np.flatnonzero(np.concatenate([[True], code[1:] != code[:-1]])) if len(code) else np.zeros(0, dtype=int)
    sizes = np.diff(np.append(starts, len(code)))
    kept = sizes <= MOST_CLIPS
    total = int((sizes[kept] * (sizes[kept] - 1) // 2).sum())
    if total > MOST_PAIRS:
        # Keeps the lowest hashes of all clips, so that copies keep the same ones.
        limit = np.searchsorted(np.cumsum(np.where(kept, sizes * (sizes - 1) // 2, 0)), MOST_PAIRS)
        kept &= np.arange(len(sizes)) < limit
    member = np.repeat(kept, sizes)
    clip, code, time = clip[member], code[member], time[member]
    keys = []
    for lag in range(1, MOST_CLIPS):
        same = np.flatnonzero(code[lag:] == code[:-lag]) if lag < len(code) else np.zeros(0, dtype=int)
        one, other = clip[same], clip[same + lag]
        offset = time[same + lag] - time[same]
        swap = one > other
        one, other = np.where(swap, other, one), np.where(swap, one, other)
        offset = np.where(swap, -offset, offset)
        real = recordings[one] != recordings[other]
        keys.append(((one[real] * len(hashes) + other[real]) * OFFSETS) + offset[real] + OFFSETS // 2)
    return _select_pairs(np.concatenate([np.zeros(0, dtype=np.int64), *keys]), len(hashes))


def _select_pairs(keys: np.ndarray, clips: int) -> np.ndarray:
    """Return the pairs of clips with enough matches within a few frames of one offset.

    Args:
        keys: Pair and offset of each match as one number.
        clips: Number of clips.
    """
    values, matches = np.unique(keys, return_counts=True)
    if not len(values):
        return np.zeros((0, 2), dtype=np.int64)
    near = matches.copy()
    for step in range(1, OFFSET_WIDTH):
        index = np.minimum(np.searchsorted(values, values + step), len(values) - 1)
        near += np.where(values[index] == values + step, matches[index], 0)
    pairs, number = np.unique(values // OFFSETS, return_inverse=True)
    best, total = np.zeros(len(pairs), dtype=np.int64), np.bincount(number, weights=matches)
    np.maximum.at(best, number, near)
    pair = pairs[(best >= FEWEST_MATCHES) & (best >= SHARE * total)]
    return np.stack([pair // clips, pair % clips], axis=1)
