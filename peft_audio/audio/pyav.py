"""Read what libsndfile does not, such as M4A, WebM and WMA, with FFmpeg through PyAV, which is an extra."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np

# What libsndfile cannot read, or not always.
PYAV_SUFFIXES = {".m4a", ".m4b", ".aac", ".mp4", ".mov", ".3gp", ".3g2", ".webm", ".mka", ".wma", ".amr", ".caf"}
PYAV_SUFFIXES |= {".tta", ".wv"}
RUN_IN_SECONDS = 0.5  # codecs overlap their frames: FFmpeg decodes this much before a slice, and it is dropped
# FFmpeg ends its list of eight channels without a null, which PyAV counts to: it would read memory that is not there.
MOST_CHANNELS = 7
NEEDS_PYAV = "M4A, AAC, MP4, 3GP, AMR, WebM, WMA and others need PyAV: pip install 'peft-audio[formats]'"


Fault = Literal["empty", "silent", "NaN or infinite samples", "unreadable"]


class AudioError(ValueError):
    """Report a recording that cannot be used.

    Args:
        message: Reason, such as "is silent".
        fault: Kind of the fault; `check` counts clips by it.
    """

    def __init__(self, message: str, fault: Fault = "unreadable"):
        super().__init__(message)
        self.fault = fault


@dataclass(frozen=True)
class AudioInfo:
    """What a recording's header says: frames (samples a channel), sampling rate in hertz, channels.

    WebM and WMA round their lengths: by up to 50 ms. `cut_off` is told of WAV, AIFF, AU and OGG: the file ends before
    its sound does, and `num_frames` counts what is there. In other formats decoding a missing end is an error. `codec`
    names the format and the coding of the samples, such as "WAV PCM_16"; it does not count in comparisons.
    `unfinished`: a WAV header without the length of its sound, as programs leave it that write to a pipe or crash; the
    file is read to its end.
    """

    num_frames: int
    sampling_rate: int
    channels: int
    cut_off: bool = False
    unfinished: bool = False
    codec: str = field(default="", compare=False)


def read_blocks(source: Path | bytes, info: AudioInfo, first: int, end: int, size: int) -> Iterator[np.ndarray]:
    """Samples `first` to `end` as float32 of shape (samples, channels), `size` of them at a time."""
    size = min(size, end - first)
    block, filled = np.empty((size, info.channels), np.float32), 0
    for samples in _samples(source, info, first):
        rest = samples[: end - first]
        first += len(rest)
        while len(rest):
            taken = rest[: size - filled]
            block[filled : filled + len(taken)] = taken
            rest, filled = rest[len(taken) :], filled + len(taken)
            if filled == size:
                yield block
                block, filled = np.empty_like(block), 0
        if first == end:
            break
    if filled:
        yield block[:filled]


def _samples(source: Path | bytes, info: AudioInfo, first: int) -> Iterator[np.ndarray]:
    """What FFmpeg decodes from sample `first` on, frame by frame: float32 of shape (samples, channels)."""
    rate = info.sampling_rate
    with _opened(source) as (container, stream):
        frames = container.decode(stream)
        head = next(frames)
        origin, at = head.pts or 0, 0  # what is decoded first is sample 0, whatever the container calls its time
        # AMR predicts from seconds of what it decoded before: it is decoded from the start.
        if first > RUN_IN_SECONDS * rate and not stream.codec_context.name.startswith("amr"):
            container.seek(origin + int((first / rate - RUN_IN_SECONDS) / stream.time_base), stream=stream)
            frames = container.decode(stream)
            if (head := next(frames, None)) is None:
                return
            at = round(((head.pts or 0) - origin) * stream.time_base * rate)
            if at > first:
                raise AudioError(f"cannot be sought to {first / rate:.1f} s")
        for frame in chain([head], frames):
            if frame.sample_rate != rate or frame.layout.nb_channels != info.channels:
                raise AudioError("changes its rate or channels midway")
            samples = _as_float(frame)
            yield samples[max(0, first - at) :]
            at += len(samples)


def read_info(source: Path | bytes, reason: str) -> AudioInfo:
    """What the container says of its sound; `reason` is why libsndfile does not read it."""
    with _opened(source, reason) as (container, stream):
        head = next(container.decode(stream), None)
        if head is None:
            raise AudioError("holds no samples", "empty")
        if head.layout.nb_channels > MOST_CHANNELS:
            raise AudioError(f"has {head.layout.nb_channels} channels; up to {MOST_CHANNELS} can be read of its format")
        kind, seconds = container.format.name, Fraction(0)
        if kind.startswith("mov") and stream.duration:
            seconds = stream.duration * stream.time_base
        # WebM and WMA state the length of their longest track: a film's says little of its sound.
        elif kind in {"matroska,webm", "asf"} and len(container.streams) == 1 and container.duration:
            seconds = Fraction(container.duration, 1_000_000)
        else:  # it states none, and FFmpeg would guess by the bit rate
            ends = [packet.pts + (packet.duration or 0) for packet in container.demux(stream) if packet.pts is not None]
            seconds = (max(ends, default=0) - (head.pts or 0)) * stream.time_base
        frames = max(head.samples, round(seconds * head.sample_rate))
        codec = stream.codec_context.name.upper()
        return AudioInfo(frames, head.sample_rate, head.layout.nb_channels, codec=codec)


@contextmanager
def _opened(source: Path | bytes, reason: str = "") -> Iterator[tuple[Any, Any]]:
    """PyAV's container and its first sound track; `reason` is why libsndfile does not read it."""
    with open_bytes(source) as file:
        try:
            import av
        except ImportError as error:
            raise AudioError(f"is not audio that can be read ({reason}; {NEEDS_PYAV})") from error
        try:
            # A playlist in disguise must not make FFmpeg open other files or addresses.
            # A title in some old code page is no reason to leave the sound out.
            container = av.open(file, options={"protocol_whitelist": "none"}, metadata_errors="replace")
        except av.error.FFmpegError as error:
            raise AudioError(f"is not audio that can be read, or is cut off ({reason}; {error.strerror})") from error
        with container:
            if not container.streams.audio:
                raise AudioError("has no sound track")
            try:
                yield container, container.streams.audio[0]
            except av.error.FFmpegError as error:
                raise AudioError(f"cannot be decoded ({error.strerror})") from error


def _as_float(frame: Any) -> np.ndarray:
    samples = frame.to_ndarray()
    samples = samples.T if frame.format.is_planar else samples.reshape(-1, frame.layout.nb_channels)
    if samples.dtype.kind == "f":
        with np.errstate(all="ignore"):  # damaged doubles become infinite, which callers refuse
            return samples.astype(np.float32, copy=False)
    middle = 128 if samples.dtype == np.uint8 else 0
    return (samples.astype(np.float32) - middle) / 2.0 ** (8 * samples.dtype.itemsize - 1)


class Recording(io.BufferedReader):
    """A file in which seeking before the beginning returns -1, as decoders of damaged headers expect.

    Attributes:
        patch: Bytes that are read in place of the file's, and where they begin.
    """

    patch: tuple[int, bytes] = 0, b""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Return the new position; -1 if there is none."""
        try:
            return super().seek(offset, whence)
        except (OSError, ValueError):
            return -1

    def readinto(self, buffer: Any, /) -> int:
        """Read into a buffer, and return the number of bytes."""
        first = self.tell()
        count = super().readinto(buffer)
        at, content = self.patch
        begin, end = max(at, first), min(at + len(content), first + count)
        if begin < end:
            memoryview(buffer).cast("B")[begin - first : end - first] = content[begin - at : end - at]
        return count


def open_bytes(source: Path | bytes) -> Recording:
    """A file, or bytes as one."""
    try:
        return Recording(io.BytesIO(source) if isinstance(source, bytes) else io.FileIO(source))
    except OSError as error:
        raise AudioError(f"cannot be opened ({error.strerror})") from error
