"""Decode every clip once, to know what is wrong with it before anything is trained on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import cpu_count
from rich.console import Console
from rich.progress import Progress

from peft_audio.audio.decoding import SILENT_PEAK, AudioError, read_blocks, read_info
from peft_audio.data.clip_table import ClipTable, clip_hash, recording_of
from peft_audio.files import file_sha256, sha256

FULL_SCALE = 0.999
# Floats are sometimes written at the scale of 16 or 32 bits; beyond that they are no samples.
ABSURD_PEAK = 1e10
SLACK_SECONDS = 0.1
# One step of 16 bits, with slack for rounding: digital silence with and without dither.
DIGITAL_SILENCE = 1.01 / 32_768
# Samples pass zero one by one; a shorter run is no pause.
SHORTEST_SILENCE_SECONDS = 0.02
CHUNK_CLIPS = 512
SILENCES = ("leading_silence_seconds", "trailing_silence_seconds", "silence_seconds")
# Decoding leaves Python's lock, so threads are enough and share the memory.
JOBS = cpu_count()

# Is told the number of a clip, the first 30 s of it as a mono waveform, and the rate.
Listen = Callable[[int, np.ndarray, int], None]


def scan(collection: ClipTable, listen: Listen | None = None, jobs: int = JOBS, quiet: bool = True) -> pd.DataFrame:
    """Read all clips of a collection, several at a time, holding no more than a few in memory.

    Args:
        collection: The clips.
        listen: Called for each clip, from several threads; its number is that of the row that it gets here.
        jobs: Clips read at once.
        quiet: Show no progress bar.

    Returns:
        The clips with these columns more: `fault` (a `Fault` for a clip that cannot be used, else ""), `error` (the
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
        told = partial(listen, row["number"]) if listen else None
        return scan_clip(recording_of(row, collection.stored), row["start_seconds"], row["end_seconds"], told)

    parts = []
    with ThreadPoolExecutor(jobs) as pool, _bar(quiet) as progress:
        bar = progress.add_task("reading every clip", total=len(clips))
        for at in range(0, len(clips), CHUNK_CLIPS):
            rows = clips.iloc[at : at + CHUNK_CLIPS].reset_index(names="number").to_dict("records")
            parts.append(pd.DataFrame(list(pool.map(facts, rows))))
            progress.advance(bar, len(rows))
    return pd.concat([clips, pd.concat(parts, ignore_index=True)], axis=1)


def _bar(quiet: bool) -> Progress:
    return Progress(console=Console(stderr=True), transient=True, disable=quiet, redirect_stdout=False)


def scan_clip(
    source: Path | bytes,
    start: float = 0.0,
    end: float = float("nan"),
    listen: Callable[[np.ndarray, int], None] | None = None,
) -> dict[str, Any]:
    """What one clip is, and what is wrong with it.

    Args:
        source: A file, or the bytes of one.
        start: Where the clip begins, in seconds.
        end: Where it ends; NaN for the end of the recording.
        listen: Called with the first 30 s of it as a mono waveform, and the rate.

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
        blocks = _checked(read_blocks(source, start, seconds), facts)
        first = next(blocks, None)
        if first is None:
            raise AudioError("holds no samples" + (f" after {start:g} s" if start else ""), "empty")
        if listen:
            listen(first.mean(axis=1), info.sampling_rate)
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


def _checked(blocks: Iterator[np.ndarray], facts: dict[str, Any]) -> Iterator[np.ndarray]:
    """Count what is in each block on its way."""
    run, previous = 0, None
    for block in blocks:
        if not np.isfinite(block).all():
            raise AudioError("holds samples that are NaN or infinite", "NaN or infinite samples")
        if (largest := np.abs(block).max()) > ABSURD_PEAK:
            raise AudioError(f"holds samples up to {largest:.0e}, which is no sound (full scale is 1)")
        run, previous = _count_silence(block, previous, run, facts), block[-1].copy()
        facts["num_frames"] += len(block)
        facts["clipped"] += int((np.abs(block) >= FULL_SCALE).sum())
        # What is trained on is the mix: channels may cancel each other, and a constant is as silent as zero.
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
    """Add the runs of digital silence that end in a block: samples of zero, or repeated to the bit, in all channels.

    Args:
        block: Samples, which begin at `num_frames`.
        previous: Last sample of the block before.
        run: Silent samples that the block before ends with; the run may go on.
        facts: Where the seconds are added.

    Returns:
        Silent samples that this block ends with, those of earlier blocks included.
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
    # The parts of one recording come one after another.
    return file_sha256(file)
