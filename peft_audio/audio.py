"""A file, or a slice of it, as a mono float32 waveform at the wanted rate."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr


class AudioError(ValueError):
    """A recording that cannot be used, and why."""


@dataclass(frozen=True)
class AudioInfo:
    """What a recording's header says: frames (samples a channel), sampling rate in hertz, channels."""

    num_frames: int
    sampling_rate: int
    channels: int


def read_info(source: Path | bytes) -> AudioInfo:
    """Read a header without decoding.

    Args:
        source: A file, or the bytes of one (WAV, FLAC, OGG, Opus, MP3, AIFF, AU).

    Raises:
        AudioError: It is empty or no audio that libsndfile reads.
    """
    with _open(source) as sound:
        if sound.frames < 1:
            raise AudioError("holds no samples")
        return AudioInfo(sound.frames, sound.samplerate, sound.channels)


def load_audio(
    source: Path | bytes, sampling_rate: int, start_seconds: float = 0.0, seconds: float | None = None
) -> np.ndarray:
    """Decode a slice of a recording, mix it to mono and resample it.

    Args:
        source: A file, or the bytes of one.
        sampling_rate: The wanted rate, in hertz.
        start_seconds: Where the slice begins; it is sought, not read over.
        seconds: Its length; to the end when not given. Shorter at the end of the recording.

    Returns:
        float32 of shape (samples,). Mono is the mean of the channels.

    Raises:
        AudioError: Nothing can be decoded there, or what was decoded is not finite.
    """
    with _open(source) as sound:
        first = round(start_seconds * sound.samplerate)
        count = -1 if seconds is None else max(1, round(seconds * sound.samplerate))
        try:
            sound.seek(min(first, sound.frames))
            waveform = sound.read(count, dtype="float32", always_2d=True).mean(axis=1)
        except soundfile.LibsndfileError as error:
            raise AudioError(f"cannot be decoded ({error.error_string})") from error
        rate = sound.samplerate
    if not waveform.size:
        raise AudioError(f"holds no samples after {start_seconds:g} s")
    if not np.isfinite(waveform).all():
        raise AudioError("holds samples that are NaN or infinite")
    if rate == sampling_rate:
        return waveform
    resampled = soxr.resample(waveform, rate, sampling_rate)
    return resampled if resampled.size else waveform[:1]  # a few samples can be shortened to none


def _open(source: Path | bytes) -> soundfile.SoundFile:
    if isinstance(source, Path) and not source.is_file():
        raise AudioError("does not exist" if not source.exists() else "is not a file")
    if (len(source) if isinstance(source, bytes) else source.stat().st_size) == 0:
        raise AudioError("is empty (0 bytes)")
    try:
        return soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"is not audio that can be read ({error.error_string})") from error
    except OSError as error:
        raise AudioError(f"cannot be opened ({error.strerror})") from error
