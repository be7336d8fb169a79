"""Decode every clip once to find unusable clips before training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import cpu_count

from peft_audio.audio.decoding import SILENT_PEAK, AudioError, read_blocks, read_info
from peft_audio.data.clip_table import ClipTable, clip_hash, recording_of
from peft_audio.files import file_sha256, sha256
from peft_audio.progress import progress_bar

FULL_SCALE = 0.999
# Float samples are sometimes at the scale of 16 or 32 bits; larger values are damage.
ABSURD_PEAK = 1e10
SLACK_SECONDS = 0.1
# One step of 16 bits, with slack for rounding: digital silence with and without dither.
DIGITAL_SILENCE = 1.01 / 32_768
# Audio has single zero samples at zero crossings; shorter runs are no silence.
SHORTEST_SILENCE_SECONDS = 0.02
CHUNK_CLIPS = 512
SILENCES = ("leading_silence_seconds", "trailing_silence_seconds", "silence_seconds")
# Decoding releases the GIL, so threads suffice and share memory.
JOBS = cpu_count()

# Function of the row number of a clip, its first 30 s as a mono waveform of shape (samples,), and the rate in hertz.
ScanCallback = Callable[[int, np.ndarray, int], None]


def scan(collection: ClipTable, callback: ScanCallback | None = None, jobs: int = JOBS) -> pd.DataFrame:
    """Decode all clips of a collection in parallel, with only a few in memory.

    Args:
        collection: The clips.
        callback: Called for each clip from several threads, with its row number in the result.
        jobs: Number of threads.

    Returns:
        The clips with additional columns: `fault` (a `Fault` for a clip that cannot be used, else ""), `error` (the
        reason in words, such as "is silent"; empty without a fault), `num_frames` and `sampling_rate` (of the clip, as
        the file has them), `channels`, `peak` (of the mix to mono, without its mean), `loud` (whether any channel is
        not silent), `clipped` (share of samples at full scale), `cut_off` (the header, or the end that was asked for,
        promises more than the file holds), `unfinished` (a WAV header without a length), `codec`,
        `leading_silence_seconds`, `trailing_silence_seconds` and
        `silence_seconds` (digital silence, runs of at least 20 ms), `rms` (of the mix to mono, without its mean) and
        `sha256` of the file and `clip_hash` of the clip. Rows count from 0.
    """
    clips = collection.clips.reset_index(drop=True)

    def facts(row: dict[str, Any]) -> dict[str, Any]:
        clip_callback = partial(callback, row["number"]) if callback else None
        return scan_clip(recording_of(row, collection.stored), row["start_seconds"], row["end_seconds"], clip_callback)

    parts = []
    with ThreadPoolExecutor(jobs) as pool, progress_bar("reading every clip", len(clips)) as bar:
        for first in range(0, len(clips), CHUNK_CLIPS):
            rows = clips.iloc[first : first + CHUNK_CLIPS].reset_index(names="number").to_dict("records")
            parts.append(pd.DataFrame(list(pool.map(facts, rows))))
            bar.update(len(rows))
    return pd.concat([clips, pd.concat(parts, ignore_index=True)], axis=1)


def scan_clip(
    source: Path | bytes,
    start: float = 0.0,
    end: float = float("nan"),
    callback: Callable[[np.ndarray, int], None] | None = None,
) -> dict[str, Any]:
    """Decode one clip, and measure its properties and faults.

    Args:
        source: Path or bytes of a file.
        start: Start of the clip in seconds.
        end: End of the clip in seconds; NaN for the end of the recording.
        callback: Called with the first 30 s as a mono waveform of shape (samples,), and the rate in hertz.

    Returns:
        The columns that `scan` adds.
    """
    facts: dict[str, Any] = {"fault": "", "error": "", "num_frames": 0, "sampling_rate": 0, "channels": 0}
    facts |= {"peak": 0.0, "clipped": 0.0, "loud": False, "cut_off": False, "sha256": "", "clip_hash": ""}
    facts |= {"codec": "", "rms": 0.0, "unfinished": False} | dict.fromkeys(SILENCES, 0.0)
    try:
        info = read_info(source)
        facts |= {"sampling_rate": info.sampling_rate, "channels": info.channels, "cut_off": info.cut_off}
        facts |= {"codec": info.codec, "unfinished": info.unfinished}
        facts["sha256"] = _sha256(source)
        facts["clip_hash"] = clip_hash(facts["sha256"], start, end)
        seconds = None if np.isnan(end) else end - start
        blocks = _measure(read_blocks(source, start, seconds), facts)
        first = next(blocks, None)
        if first is None:
            raise AudioError("holds no samples" + (f" after {start:g} s" if start else ""), "empty")
        if callback:
            callback(first.mean(axis=1), info.sampling_rate)
        for _ in blocks:
            pass
        facts["clipped"] /= facts["num_frames"] * info.channels
        facts["rms"] = float(np.sqrt(facts["rms"] / facts["num_frames"]))
        if facts["peak"] < SILENT_PEAK:
            reason = ", because its channels cancel each other in mono" if facts["loud"] else ""
            raise AudioError(f"is silent{reason}", "silent")
        if seconds is not None and facts["num_frames"] < (seconds - SLACK_SECONDS) * info.sampling_rate:
            facts["cut_off"] = True
    except AudioError as error:
        facts |= {"fault": error.fault, "error": str(error)}
    return facts


def _measure(blocks: Iterator[np.ndarray], facts: dict[str, Any]) -> Iterator[np.ndarray]:
    """Yield blocks unchanged, and add their properties to `facts`.

    Raises:
        AudioError: Samples are not finite or far above full scale.
    """
    run, previous = 0, None
    for block in blocks:
        if not np.isfinite(block).all():
            raise AudioError("holds samples that are NaN or infinite", "NaN or infinite samples")
        if (largest := np.abs(block).max()) > ABSURD_PEAK:
            raise AudioError(f"holds samples up to {largest:.0e}, far above full scale (1)")
        run, previous = _count_silence(block, previous, run, facts), block[-1].copy()
        facts["num_frames"] += len(block)
        facts["clipped"] += int((np.abs(block) >= FULL_SCALE).sum())
        # Models read the mono mix: channels can cancel each other, and a constant offset is silent.
        facts["loud"] |= bool((np.ptp(block, axis=0) > 2 * SILENT_PEAK).any())
        mono = block.mean(axis=1)
        mono = mono - mono.mean()
        facts["peak"] = max(facts["peak"], float(np.abs(mono).max()))
        facts["rms"] += float(np.square(mono, dtype=np.float64).sum())
        yield block
    if run and run >= SHORTEST_SILENCE_SECONDS * facts["sampling_rate"]:
        seconds = run / facts["sampling_rate"]
        facts["trailing_silence_seconds"] = seconds
        facts["silence_seconds"] += seconds
        if run == facts["num_frames"]:
            facts["leading_silence_seconds"] = seconds


def _count_silence(block: np.ndarray, previous: np.ndarray | None, run: int, facts: dict[str, Any]) -> int:
    """Add the runs of digital silence that end in a block to `facts`.

    Digital silence is zero, or exactly the previous sample, in all channels.

    Args:
        block: Samples of shape (samples, channels) that start at `num_frames`.
        previous: Last sample of the previous block.
        run: Number of silent samples at the end of the previous block.
        facts: Properties of the clip.

    Returns:
        Number of silent samples at the end of this block, including those of earlier blocks.
    """
    rate = facts["sampling_rate"]
    silent = (np.abs(block) <= DIGITAL_SILENCE).all(axis=1)
    silent[1:] |= (block[1:] == block[:-1]).all(axis=1)
    silent[0] |= previous is not None and bool((block[0] == previous).all())
    edges = np.flatnonzero(np.diff(silent, prepend=run > 0))
    if run:
        edges = np.concatenate([[-run], edges])
    ends = edges[1::2]
    starts = edges[::2][: len(ends)]
    long = ends - starts >= SHORTEST_SILENCE_SECONDS * rate
    starts, seconds = starts[long], (ends - starts)[long] / rate
    facts["silence_seconds"] += float(seconds.sum())
    if len(seconds) and facts["num_frames"] + starts[0] == 0:
        facts["leading_silence_seconds"] = float(seconds[0])
    return int(len(block) - edges[-1]) if len(edges) % 2 else 0


def _sha256(source: Path | bytes) -> str:
    if isinstance(source, bytes):
        return sha256([source])
    return _sha256_of_file(source, source.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256_of_file(file: Path, changed: int) -> str:
    # Cached, because parts of one recording follow each other.
    return file_sha256(file)
