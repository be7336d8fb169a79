"""A file, or a slice of it, as blocks at its own rate or as a mono float32 waveform at the wanted rate."""

from __future__ import annotations

import io
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
import soxr

PYAV_SUFFIXES = {".m4a", ".aac", ".wma", ".webm", ".mp4"}  # what libsndfile cannot read
AUDIO_SUFFIXES = PYAV_SUFFIXES | {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au"}
LOWEST_RATE, HIGHEST_RATE, ALLOWED_RATES = 4_000, 192_000, "4,000 to 192,000 Hz"
SLACK_SECONDS = 0.1  # headers round a length, WebM's and WMA's most; what is missing beyond this was cut off
RUN_IN_SECONDS = 0.5  # codecs overlap their frames: FFmpeg decodes this much before a slice, and it is dropped
ONE_READ_SECONDS = 3600.0  # soundfile seeks between reads, where MP3 and Opus then decode to slightly other values
# Who writes to a pipe cannot know the size, and leaves about the largest that fits (sox: 0x7FFFF000 bytes).
UNKNOWN_BYTES, UNKNOWN_FRAMES = 0x7FFF0000, 2**62
NEEDS_PYAV = "M4A, AAC, MP4, WebM and WMA need PyAV: pip install 'peft-audio[formats]'"


class AudioError(ValueError):
    """A recording that cannot be used, and why."""


@dataclass(frozen=True)
class AudioInfo:
    """What a recording's header says: frames (samples a channel), sampling rate in hertz, channels.

    WebM and WMA round their lengths: by up to 50 ms. `cut_off` is told of WAV, AIFF, AU and OGG: the file ends before
    its sound does, and `num_frames` counts what is there. In other formats decoding a missing end is an error.
    """

    num_frames: int
    sampling_rate: int
    channels: int
    cut_off: bool = False


def read_info(source: Path | bytes) -> AudioInfo:
    """Read a header without decoding the recording.

    Args:
        source: A file, or the bytes of one, in any format of libsndfile or, with PyAV, FFmpeg.

    Raises:
        AudioError: It is empty, no audio that can be read, or of a rate outside 4 to 192 kHz.
    """
    with _opened(source) as (sound, info):
        if info.num_frames < 1:
            raise AudioError("holds no samples")
        return replace(info, cut_off=sound is not None and _is_cut_off(sound))


def read_blocks(
    source: Path | bytes, start_seconds: float = 0.0, seconds: float | None = None, block_seconds: float = 30.0
) -> Iterator[np.ndarray]:
    """Decode a slice of a recording block by block, so that hours of it fit in memory.

    Args:
        source: A file, or the bytes of one.
        start_seconds: Where the slice begins; it is sought, not read over.
        seconds: Its length; to the end when not given. Shorter at the end of the recording.
        block_seconds: The length of a block; the last is shorter.

    Yields:
        float32 of shape (samples, channels) at the recording's own rate (see `read_info`); may hold NaN.

    Raises:
        AudioError: Nothing can be decoded there, or (after the blocks that it holds) the recording is cut off.
    """
    for _, block in _rates_and_blocks(source, start_seconds, seconds, block_seconds):
        yield block


def load_audio(
    source: Path | bytes, sampling_rate: int, start_seconds: float = 0.0, seconds: float | None = None
) -> np.ndarray:
    """Decode a slice of a recording, mix it to mono and resample it.

    Args:
        source: A file, or the bytes of one.
        sampling_rate: The wanted rate, in hertz.
        start_seconds: Where the slice begins, as for `read_blocks`.
        seconds: Its length, likewise.

    Returns:
        float32 of shape (samples,). Mono is the mean of the channels.

    Raises:
        AudioError: Nothing can be decoded there, it is cut off, or what was decoded is not finite.
    """
    parts, rate = [], sampling_rate
    for rate, block in _rates_and_blocks(source, start_seconds, seconds, ONE_READ_SECONDS):  # noqa: B007
        parts.append(block.mean(axis=1))
    waveform = np.concatenate(parts)
    if not np.isfinite(waveform).all():
        raise AudioError("holds samples that are NaN or infinite")
    if rate == sampling_rate:
        return waveform
    resampled = soxr.resample(waveform, rate, sampling_rate)
    return resampled if resampled.size else waveform[:1]  # a few samples can be shortened to none


def _rates_and_blocks(
    source: Path | bytes, start_seconds: float, seconds: float | None, block_seconds: float
) -> Iterator[tuple[int, np.ndarray]]:
    with _opened(source) as (sound, info):
        rate, whole_seconds = info.sampling_rate, info.num_frames / info.sampling_rate
        first = at = min(round(start_seconds * rate), info.num_frames)
        end = info.num_frames if seconds is None else min(first + max(1, round(seconds * rate)), info.num_frames)
        size = max(1, round(block_seconds * rate))
        decoded = _soundfile_blocks(sound, first, end, size) if sound else _pyav_blocks(source, info, first, end, size)
        try:
            for block in decoded:
                at += len(block)
                yield rate, block
        except AudioError as error:
            span = f"{at / rate:.1f} and {min(at + size, end) / rate:.1f} of {whole_seconds:.1f} s"
            raise AudioError(f"is cut off or damaged between {span}: {error}") from error
        if end - at > SLACK_SECONDS * rate and not (sound and _is_length_guessed(source, sound.format)):
            held = f"{at / rate:.1f}" if at > first else f"less than {first / rate:.1f}"
            raise AudioError(f"is cut off: holds {held} of {whole_seconds:.1f} s")
        if at == first:
            raise AudioError(f"holds no samples after {start_seconds:g} s")


@contextmanager
def _opened(source: Path | bytes) -> Iterator[tuple[soundfile.SoundFile | None, AudioInfo]]:
    """The recording as libsndfile opens it, or None where PyAV must; and what it says of itself."""
    if not isinstance(source, bytes):
        _check_there(source)
    elif not source:
        raise AudioError("is empty (0 bytes)")
    try:
        sound = soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source)
    except soundfile.LibsndfileError as error:
        sound, reason = None, error.error_string.rstrip(".")
    with sound or nullcontext():
        if sound and sound.frames < UNKNOWN_FRAMES:
            info = AudioInfo(sound.frames, sound.samplerate, sound.channels)
        else:
            # FLAC written to a pipe has no length, and libsndfile fails at its end.
            info, sound = _pyav_info(source, "it does not say how long it is" if sound else reason), None
        if not LOWEST_RATE <= info.sampling_rate <= HIGHEST_RATE:
            raise AudioError(f"has a sampling rate of {info.sampling_rate:,} Hz; {ALLOWED_RATES} can be read")
        yield sound, info


def _check_there(source: Path) -> None:
    try:
        status = source.stat()
    except FileNotFoundError as error:
        raise AudioError("is a broken link" if source.is_symlink() else "does not exist") from error
    except OSError as error:
        raise AudioError(f"cannot be opened ({error.strerror})") from error
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
        raise AudioError("is not a file")
    if status.st_size == 0:
        raise AudioError("is empty (0 bytes)")


def _soundfile_blocks(sound: soundfile.SoundFile, first: int, end: int, size: int) -> Iterator[np.ndarray]:
    try:
        sound.seek(first)
        while first < end:
            block = sound.read(min(size, end - first), dtype="float32", always_2d=True)
            if not len(block):
                return
            first += len(block)
            yield block
    except soundfile.LibsndfileError as error:
        raise AudioError(f"cannot be decoded ({error.error_string})") from error


def _pyav_blocks(source: Path | bytes, info: AudioInfo, first: int, end: int, size: int) -> Iterator[np.ndarray]:
    size = min(size, end - first)
    block, filled = np.empty((size, info.channels), np.float32), 0
    for samples in _pyav_samples(source, info, first):
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


def _pyav_samples(source: Path | bytes, info: AudioInfo, first: int) -> Iterator[np.ndarray]:
    """What FFmpeg decodes from sample `first` on, frame by frame: float32 of shape (samples, channels)."""
    rate = info.sampling_rate
    with _pyav_opened(source) as (container, stream):
        frames = container.decode(stream)
        head = next(frames)
        origin, at = head.pts or 0, 0  # what is decoded first is sample 0, whatever the container calls its time
        if first > RUN_IN_SECONDS * rate:
            container.seek(origin + int((first / rate - RUN_IN_SECONDS) / stream.time_base), stream=stream)
            frames = container.decode(stream)
            if (head := next(frames, None)) is None:
                return
            at = round(((head.pts or 0) - origin) * stream.time_base * rate)
            if at > first:
                raise AudioError(f"cannot be sought to {first / rate:.1f} s")
        for frame in chain([head], frames):
            samples = _as_float(frame)
            if frame.sample_rate != rate or samples.shape[1] != info.channels:
                raise AudioError("changes its rate or channels midway")
            yield samples[max(0, first - at) :]
            at += len(samples)


def _pyav_info(source: Path | bytes, reason: str) -> AudioInfo:
    with _pyav_opened(source, reason) as (container, stream):
        head = next(container.decode(stream), None)
        if head is None:
            raise AudioError("holds no samples")
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
        return AudioInfo(frames, head.sample_rate, head.layout.nb_channels)


@contextmanager
def _pyav_opened(source: Path | bytes, reason: str = "") -> Iterator[tuple[Any, Any]]:
    """PyAV's container and its first sound track; `reason` is why libsndfile does not read it."""
    with _bytes_of(source) as file:
        try:
            import av
        except ImportError as error:
            raise AudioError(f"is not audio that can be read ({reason}; {NEEDS_PYAV})") from error
        try:
            # A playlist in disguise must not make FFmpeg open other files or addresses.
            container = av.open(file, options={"protocol_whitelist": "none"})
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
        return samples.astype(np.float32, copy=False)
    middle = 128 if samples.dtype == np.uint8 else 0
    return (samples.astype(np.float32) - middle) / 2.0 ** (8 * samples.dtype.itemsize - 1)


def _bytes_of(source: Path | bytes) -> BinaryIO:
    try:
        return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
    except OSError as error:
        raise AudioError(f"cannot be opened ({error.strerror})") from error


def _is_cut_off(sound: soundfile.SoundFile) -> bool:
    """Whether libsndfile noted, as it opened WAV, AIFF, AU or OGG, that less is there than the header says."""
    if "lacks an end-of-stream bit" in sound.extra_info:
        return True
    promised = re.search(r"^ *(?:data|SSND|Data Size) *: (\d+) \(should be \d+\)", sound.extra_info, re.MULTILINE)
    return promised is not None and int(promised[1]) < UNKNOWN_BYTES


def _is_length_guessed(source: Path | bytes, kind: str) -> bool:
    """Whether an MP3 has no count of its frames, so that libsndfile guesses by the bit rate of the first."""
    with _bytes_of(source) as file:
        tag = file.read(10)
        if tag[:3] == b"ID3":  # its size is in bytes of 7 bits
            file.seek(10 + sum(byte << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0), strict=True)))
        frame = tag + file.read(500)
        return kind == "MP3" and not any(name in frame for name in (b"Xing", b"Info", b"VBRI"))
