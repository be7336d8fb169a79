"""Decode formats that libsndfile does not read, such as M4A, WebM and WMA, with FFmpeg through PyAV (an extra)."""

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

# libsndfile cannot read these formats, or not all of their files.
PYAV_SUFFIXES = {".m4a", ".m4b", ".aac", ".mp4", ".mov", ".3gp", ".3g2", ".webm", ".mka", ".wma", ".amr", ".caf"}
PYAV_SUFFIXES |= {".tta", ".wv"}
# Frames of codecs overlap, so decoding starts this long before a slice; these samples are discarded.
RUN_IN_SECONDS = 0.5
# PyAV counts channels up to a null, which FFmpeg omits for eight channels: PyAV would read beyond the list.
MOST_CHANNELS = 7
NEEDS_PYAV = "M4A, AAC, MP4, 3GP, AMR, WebM, WMA and others need PyAV: pip install 'peft-audio[formats]'"


Fault = Literal["empty", "silent", "NaN or infinite samples", "unreadable"]


class AudioError(ValueError):
    """Report a recording that cannot be used.

    Args:
        message: Reason, such as "is silent".
        fault: Kind of the fault, by which `check` counts clips.
    """

    def __init__(self, message: str, fault: Fault = "unreadable"):
        super().__init__(message)
        self.fault = fault


@dataclass(frozen=True)
class AudioInfo:
    """Facts from the header of a recording.

    Attributes:
        num_frames: Number of samples per channel. WebM and WMA round it by up to 50 ms.
        sampling_rate: Rate in hertz.
        channels: Number of channels.
        cut_off: Whether a WAV, AIFF, AU or OGG file ends before its sound does; `num_frames` counts the samples that
            the file holds. In other formats, decoding the missing end is an error.
        unfinished: Whether a WAV header lacks the length of its sound, because its program wrote to a pipe or crashed;
            the file is read to its end.
        codec: Format and coding of the samples, such as "WAV PCM_16"; ignored by `==`.
    """

    num_frames: int
    sampling_rate: int
    channels: int
    cut_off: bool = False
    unfinished: bool = False
    codec: str = field(default="", compare=False)


def read_blocks(source: Path | bytes, info: AudioInfo, first: int, end: int, size: int) -> Iterator[np.ndarray]:
    """Yield samples `first` to `end` as float32 of shape (samples, channels), `size` samples at a time."""
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
    """Decode a recording from sample `first`; yield each frame as float32 of shape (samples, channels)."""
    rate = info.sampling_rate
    with _opened(source) as (container, stream):
        frames = container.decode(stream)
        head = next(frames)
        origin, position = head.pts or 0, 0  # the first decoded frame is sample 0, whatever its time stamp is
        # AMR depends on seconds of earlier samples, so it is decoded from the start.
        if first > RUN_IN_SECONDS * rate and not stream.codec_context.name.startswith("amr"):
            container.seek(origin + int((first / rate - RUN_IN_SECONDS) / stream.time_base), stream=stream)
            frames = container.decode(stream)
            if (head := next(frames, None)) is None:
                return
            position = round(((head.pts or 0) - origin) * stream.time_base * rate)
            if position > first:
                raise AudioError(f"cannot be sought to {first / rate:.1f} s")
        for frame in chain([head], frames):
            if frame.sample_rate != rate or frame.layout.nb_channels != info.channels:
                raise AudioError("changes its rate or channels midway")
            samples = _as_float(frame)
            yield samples[max(0, first - position) :]
            position += len(samples)


def read_info(source: Path | bytes, reason: str) -> AudioInfo:
    """Read the header of a recording; `reason` is the error of libsndfile."""
    with _opened(source, reason) as (container, stream):
        head = next(container.decode(stream), None)
        if head is None:
            raise AudioError("holds no samples", "empty")
        if head.layout.nb_channels > MOST_CHANNELS:
            raise AudioError(f"has {head.layout.nb_channels} channels; up to {MOST_CHANNELS} can be read of its format")
        kind, seconds = container.format.name, Fraction(0)
        if kind.startswith("mov") and stream.duration:
            seconds = stream.duration * stream.time_base
        # WebM and WMA give the length of their longest track, which can differ from that of the sound in a film.
        elif kind in {"matroska,webm", "asf"} and len(container.streams) == 1 and container.duration:
            seconds = Fraction(container.duration, 1_000_000)
        else:  # the header has no length, and FFmpeg would estimate it from the bit rate
            ends = [packet.pts + (packet.duration or 0) for packet in container.demux(stream) if packet.pts is not None]
            seconds = (max(ends, default=0) - (head.pts or 0)) * stream.time_base
        frames = max(head.samples, round(seconds * head.sample_rate))
        codec = stream.codec_context.name.upper()
        return AudioInfo(frames, head.sample_rate, head.layout.nb_channels, codec=codec)


@contextmanager
def _opened(source: Path | bytes, reason: str = "") -> Iterator[tuple[Any, Any]]:
    """Open a container and its first sound track with PyAV; `reason` is the error of libsndfile."""
    with open_recording(source) as file:
        try:
            import av
        except ImportError as error:
            raise AudioError(f"is not audio that can be read ({reason}; {NEEDS_PYAV})") from error
        try:
            # A playlist named as audio must not make FFmpeg open other files or addresses.
            # Titles that are not UTF-8 are replaced, so that the sound can still be read.
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
    """Convert a frame to float32 of shape (samples, channels), integers to the range -1 to 1."""
    samples = frame.to_ndarray()
    samples = samples.T if frame.format.is_planar else samples.reshape(-1, frame.layout.nb_channels)
    if samples.dtype.kind == "f":
        with np.errstate(all="ignore"):  # doubles of a damaged file become infinite, which callers refuse
            return samples.astype(np.float32, copy=False)
    middle = 128 if samples.dtype == np.uint8 else 0
    return (samples.astype(np.float32) - middle) / 2.0 ** (8 * samples.dtype.itemsize - 1)


class Recording(io.BufferedReader):
    """A file in which seeking before the beginning returns -1, as decoders of damaged headers expect.

    Attributes:
        patch: Offset, and the bytes that are read there in place of the file's.
    """

    patch: tuple[int, bytes] = 0, b""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Return the new position, or -1 if the file has no such position."""
        try:
            return super().seek(offset, whence)
        except (OSError, ValueError):
            return -1

    def readinto(self, buffer: Any, /) -> int:
        """Read into a buffer and return the number of bytes."""
        first = self.tell()
        count = super().readinto(buffer)
        offset, content = self.patch
        begin, end = max(offset, first), min(offset + len(content), first + count)
        if begin < end:
            memoryview(buffer).cast("B")[begin - first : end - first] = content[begin - offset : end - offset]
        return count


def open_recording(source: Path | bytes) -> Recording:
    """Open a file, or bytes as a file."""
    try:
        return Recording(io.BytesIO(source) if isinstance(source, bytes) else io.FileIO(source))
    except OSError as error:
        raise AudioError(f"cannot be opened ({error.strerror})") from error
