"""Decode recordings, or slices of them, as blocks of samples or as mono waveforms at a given sampling rate."""

from __future__ import annotations

import ctypes
import io
import os
import platform
import re
import stat
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from peft_audio.audio import pyav
from peft_audio.audio.pyav import PYAV_SUFFIXES, AudioError, AudioInfo, Recording, open_recording

AUDIO_SUFFIXES = PYAV_SUFFIXES | {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au"}
LOWEST_RATE, HIGHEST_RATE, ALLOWED_RATES = 4_000, 192_000, "4,000 to 192,000 Hz"
# A clip whose peak is below this, after its mean is subtracted, holds only rounding: three steps of 16 bits, -80 dB.
SILENT_PEAK = 1e-4
SLACK_SECONDS = 0.1  # headers round lengths, most in WebM and WMA; a file that lacks more than this was cut off
# soundfile seeks between reads, and MP3 and Opus decode to slightly different values after a seek.
ONE_READ_SECONDS = 3600.0
# The last bytes of an OGG file, as many as this, hold the start of a page.
LARGEST_OGG_PAGE = 65_307
# A program that writes to a pipe does not know the size, and writes about the largest (sox: 0x7FFFF000 bytes).
UNKNOWN_BYTES, UNKNOWN_FRAMES = 0x7FFF0000, 2**62
WAV_FORMATS = ("WAV", "WAVEX")


def is_recording(name: str) -> bool:
    """Return whether a file name has the suffix of a recording."""
    return Path(name).suffix.lower() in AUDIO_SUFFIXES


class _QuietStderr:
    """Discard what C code prints to `stderr` while MP3 is decoded.

    libmpg123 prints notes on damaged frames without naming the file, and libsndfile has no setting for it. This
    exchanges only the variable `stderr` of the C library. Python writes to file descriptor 2, which does not change.
    """

    def __init__(self) -> None:
        self.lock, self.users = threading.Lock(), 0
        self.variable: Any = None
        name = {"Linux": "stderr", "Darwin": "__stderrp"}.get(platform.system())
        # In other C libraries the variable is constant.
        if name and (name != "stderr" or platform.libc_ver()[0] == "glibc"):
            library = ctypes.CDLL(None)
            library.fopen.restype = ctypes.c_void_p
            self.discard = library.fopen(os.devnull.encode(), b"w")
            self.variable = ctypes.c_void_p.in_dll(library, name)
            self.usual = self.variable.value
            # Another thread can hold the lock when the process forks.
            os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self.lock, self.users = threading.Lock(), 0
        self.variable.value = self.usual

    @contextmanager
    def __call__(self) -> Iterator[None]:
        if self.variable is None:
            yield
            return
        with self.lock:
            self.users += 1
            self.variable.value = self.discard
        try:
            yield
        finally:
            with self.lock:
                self.users -= 1
                if not self.users:
                    self.variable.value = self.usual


quiet_mpg123 = _QuietStderr()


def read_info(source: Path | bytes) -> AudioInfo:
    """Read the header of a recording.

    Args:
        source: File or its bytes, in a format of libsndfile or, with PyAV, of FFmpeg.

    Raises:
        AudioError: The recording is empty, is not audio that can be read, or has a rate outside 4 to 192 kHz.
    """
    with _opened(source) as (sound, info):
        if info.num_frames < 1:
            raise AudioError("holds no samples", "empty")
        if sound is None:
            return info
        return replace(info, cut_off=_is_cut_off(sound, source), unfinished=_is_unfinished(sound))


def read_blocks(
    source: Path | bytes, start_seconds: float = 0.0, seconds: float | None = None, block_seconds: float = 30.0
) -> Iterator[np.ndarray]:
    """Decode a slice of a recording block by block, so that long recordings fit in memory.

    Args:
        source: File or its bytes.
        start_seconds: Start of the slice; samples before it are skipped by seeking.
        seconds: Length of the slice, which ends with the recording at the latest; None for the rest of the recording.
        block_seconds: Length of a block; the last block can be shorter.

    Yields:
        float32 of shape (samples, channels) at the recording's own rate (see `read_info`); can hold NaN.

    Raises:
        AudioError: The slice holds no samples or cannot be decoded, or the recording is cut off; in that case after
            the blocks that it holds.
    """
    for _, block in _rates_and_blocks(source, start_seconds, seconds, block_seconds):
        yield block


def load_audio(
    source: Path | bytes, sampling_rate: int, start_seconds: float = 0.0, seconds: float | None = None
) -> np.ndarray:
    """Decode a slice of a recording, mix it to mono and resample it.

    Args:
        source: File or its bytes.
        sampling_rate: Rate of the returned waveform in hertz.
        start_seconds: Start of the slice.
        seconds: Length of the slice, which ends with the recording at the latest; None for the rest of the recording.

    Returns:
        Mean of the channels, float32 of shape (samples,).

    Raises:
        AudioError: The slice holds no samples, is cut off, cannot be decoded, or holds samples that are not finite.
    """
    parts, rate = [], sampling_rate
    for rate, block in _rates_and_blocks(source, start_seconds, seconds, ONE_READ_SECONDS):  # noqa: B007
        with np.errstate(over="ignore", invalid="ignore"):  # reported below
            parts.append(block.mean(axis=1))
    waveform = np.concatenate(parts)
    if not np.isfinite(waveform).all():
        raise AudioError("holds samples that are NaN or infinite", "NaN or infinite samples")
    if rate == sampling_rate:
        return waveform
    resampled = soxr.resample(waveform, rate, sampling_rate)
    if not np.isfinite(resampled).all():  # samples of a damaged file whose sums exceed float32
        raise AudioError("holds samples that are NaN or infinite once resampled", "NaN or infinite samples")
    return resampled if resampled.size else waveform[:1]  # resampling a few samples can give none


def _rates_and_blocks(
    source: Path | bytes, start_seconds: float, seconds: float | None, block_seconds: float
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the sampling rate with each block."""
    with _opened(source) as (sound, info):
        rate, whole_seconds = info.sampling_rate, info.num_frames / info.sampling_rate
        # Limit values before rounding: a table can hold 1e308 s, and infinity cannot be rounded.
        first = position = round(min(start_seconds * rate, info.num_frames))
        length = info.num_frames if seconds is None else max(1, round(min(seconds * rate, info.num_frames)))
        end = min(first + length, info.num_frames)
        size = max(1, round(block_seconds * rate))
        span = (first, end, size)
        decoded = _soundfile_blocks(sound, *span) if sound else pyav.read_blocks(source, info, *span)
        try:
            for block in decoded:
                position += len(block)
                yield rate, block
        except AudioError as error:
            last = min(position + size, end)
            between = f" between {position / rate:.1f} and {last / rate:.1f} of {whole_seconds:.1f} s"
            where = "" if position == 0 and size >= info.num_frames else between
            raise AudioError(f"is cut off or damaged{where}: {error}") from error
        if end - position > SLACK_SECONDS * rate and not (sound and _is_length_guessed(source, sound.format)):
            held = f"{position / rate:.1f}" if position > first else f"less than {first / rate:.1f}"
            raise AudioError(f"is cut off: holds {held} of {whole_seconds:.1f} s")
        if position == first:
            raise AudioError(f"holds no samples after {start_seconds:g} s", "empty")


@contextmanager
def _opened(source: Path | bytes) -> Iterator[tuple[soundfile.SoundFile | None, AudioInfo]]:
    """Open a recording with libsndfile and read its header; the first value is None if PyAV must decode it."""
    if not isinstance(source, bytes):
        _check_readable(source)
    elif not source:
        raise AudioError("is empty (0 bytes)", "empty")
    file = open_recording(source) if isinstance(source, bytes) else None
    try:
        with quiet_mpg123():
            sound = soundfile.SoundFile(file or source)
            if sound.frames == 0 and sound.format in WAV_FORMATS and (patched := _with_length(source)):
                sound.close()
                sound, file = soundfile.SoundFile(patched), patched
    except soundfile.LibsndfileError as error:
        sound, reason = None, error.error_string.rstrip(".")
        if "possibly a pipe" in reason:  # libsndfile's message for some files without sound
            reason = "Format not recognised"
    if sound and sound.format == "RAW":
        # libsndfile reads any file named .au as samples without a header.
        sound.close()
        sound, reason = None, "Format not recognised"
    with file or nullcontext(), sound or nullcontext():
        if sound and sound.frames < UNKNOWN_FRAMES:
            codec = sound.format if sound.format == "MP3" else f"{sound.format} {sound.subtype}"
            info = AudioInfo(sound.frames, sound.samplerate, sound.channels, codec=codec)
        else:
            # FLAC written to a pipe has no length, and libsndfile fails at its end.
            info, sound = pyav.read_info(source, "its header has no length" if sound else reason), None
        if not LOWEST_RATE <= info.sampling_rate <= HIGHEST_RATE:
            raise AudioError(f"has a sampling rate of {info.sampling_rate:,} Hz; {ALLOWED_RATES} can be read")
        yield sound, info


def _check_readable(source: Path) -> None:
    """Check that a file exists, is a regular file, is not empty and can be accessed."""
    try:
        status = source.stat()
    except FileNotFoundError as error:
        raise AudioError("is a broken link" if source.is_symlink() else "does not exist") from error
    except (OSError, ValueError) as error:  # such as a name with a null character
        raise AudioError(f"cannot be opened ({getattr(error, 'strerror', error)})") from error
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait forever
        raise AudioError("is not a file")
    if status.st_size == 0:
        raise AudioError("is empty (0 bytes)", "empty")


def _soundfile_blocks(sound: soundfile.SoundFile, first: int, end: int, size: int) -> Iterator[np.ndarray]:
    """Yield frames `first` to `end`, `size` at a time."""
    quiet = quiet_mpg123 if sound.format == "MP3" else nullcontext
    try:
        with quiet():
            sound.seek(first)
        while first < end:
            count = min(size, end - first)
            with quiet():
                block = sound.read(count, dtype="float32", always_2d=True)
            if len(block):
                yield block
            if len(block) < count:
                return  # damaged: another read would repeat the samples around the hole
            first += count
    except soundfile.LibsndfileError as error:
        raise AudioError(f"cannot be decoded ({error.error_string})") from error
    except ValueError as error:  # a seek in a damaged file ended behind its last frame
        raise AudioError("cannot be decoded (its frames do not add up to its length)") from error


def _with_length(source: Path | bytes) -> Recording | None:
    """Open a WAV file whose header has length 0 as if it had the largest length; None if no samples follow."""
    file = open_recording(source)
    last = file.seek(0, io.SEEK_END)
    chunk = 12
    while chunk + 8 < last:
        file.seek(chunk)
        name, size = struct.unpack("<4sI", file.read(8))
        if name == b"data":
            if size == 0 and not _are_chunks(file, chunk + 8, last):
                file.patch = chunk + 4, b"\xff" * 4
                file.seek(0)
                return file
            break
        chunk += 8 + size + size % 2
    file.close()
    return None


def _are_chunks(file: Recording, start: int, last: int) -> bool:
    """Return whether the rest of a WAV file is complete chunks, such as a title, and so holds no samples."""
    while start + 8 <= last:
        file.seek(start)
        name, size = struct.unpack("<4sI", file.read(8))
        if not all(32 <= byte < 127 for byte in name):
            return False
        start += 8 + size + size % 2
    return start in (last, last + 1)


def _is_unfinished(sound: soundfile.SoundFile) -> bool:
    """Return whether the length in a WAV header is a placeholder, because its writer did not know the length."""
    promised = _promised_bytes(sound)
    return sound.format in WAV_FORMATS and promised is not None and promised >= UNKNOWN_BYTES


def _promised_bytes(sound: soundfile.SoundFile) -> int | None:
    """Return the bytes of sound in the header if the file has fewer, read from libsndfile's notes; otherwise None."""
    match = re.search(r"^ *(?:data|SSND|Data Size) *: (\d+) \(should be \d+\)", sound.extra_info, re.MULTILINE)
    return int(match[1]) if match else None


def _is_cut_off(sound: soundfile.SoundFile, source: Path | bytes) -> bool:
    """Return whether a file ends early: by its header for WAV, AIFF and AU, by its last page for OGG."""
    if sound.format == "OGG":
        with open_recording(source) as file:
            file.seek(max(0, file.seek(0, io.SEEK_END) - LARGEST_OGG_PAGE))
            tail = file.read()
        last = tail.rfind(b"OggS")
        # The flag of a stream's last page (RFC 3533, section 6).
        return last >= 0 and len(tail) > last + 5 and not tail[last + 5] & 4
    promised = _promised_bytes(sound)
    return promised is not None and promised < UNKNOWN_BYTES


def _is_length_guessed(source: Path | bytes, kind: str) -> bool:
    """Return whether an MP3 has no count of its frames, so that libsndfile estimates its length from the bit rate."""
    with open_recording(source) as file:
        tag = file.read(10)
        if tag[:3] == b"ID3":  # its size has 7 bits per byte
            file.seek(10 + sum(byte << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0), strict=True)))
        frame = tag + file.read(500)
        return kind == "MP3" and not any(name in frame for name in (b"Xing", b"Info", b"VBRI"))
