"""Encode waveforms to the bytes of a sound file, as recordings of the same clip differ in the wild."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import soundfile
import soxr


def written(waveform: np.ndarray, rate: int, kind: str, subtype: str, **options: Any) -> bytes:
    """A file's bytes, by libsndfile."""
    file = io.BytesIO()
    channels = 1 if waveform.ndim == 1 else waveform.shape[1]
    with soundfile.SoundFile(file, "w", rate, channels, subtype, format=kind, **options) as sound:
        # In blocks: libsndfile's Vorbis encoder crashes when it is given minutes at once.
        for start in range(0, len(waveform), 65_536):
            sound.write(waveform[start : start + 65_536])
    return file.getvalue()


def at_rate(rate: int) -> Callable[[np.ndarray, int], bytes]:
    """A 16-bit WAV at another rate."""
    return lambda waveform, own: written(soxr.resample(waveform, own, rate), rate, "WAV", "PCM_16")


def wav(subtype: str) -> Callable[[np.ndarray, int], bytes]:
    """A WAV with another coding of its samples."""
    return lambda waveform, rate: written(waveform, rate, "WAV", subtype)


def opus(waveform: np.ndarray, rate: int) -> bytes:
    """Opus in OGG; it knows five rates."""
    allowed = min((one for one in (8_000, 12_000, 16_000, 24_000) if one >= rate), default=48_000)
    return written(soxr.resample(waveform, rate, allowed), allowed, "OGG", "OPUS")


def clipped(waveform: np.ndarray, rate: int) -> bytes:
    """The peak 6 dB over full scale, and cut there."""
    return written(np.clip(2 * waveform / max(np.abs(waveform).max(), 1e-9), -1, 1), rate, "WAV", "PCM_16")


def by_pyav(kind: str, codec: str, rate: int | None, bits_per_second: int) -> Callable[[np.ndarray, int], bytes]:
    """A file's bytes, by FFmpeg's encoders; at the clip's own rate when none is given."""

    def encoded(waveform: np.ndarray, own: int) -> bytes:
        import av

        wanted = rate or own
        samples = (np.clip(soxr.resample(waveform, own, wanted), -1, 1) * 32_767).astype(np.int16)
        whole = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        whole.sample_rate = wanted
        file = io.BytesIO()
        with av.open(file, "w", format=kind) as container:
            stream: Any = container.add_stream(codec, rate=wanted, layout="mono")
            stream.bit_rate = bits_per_second
            cut = av.AudioResampler(
                format=stream.codec_context.format,
                layout="mono",
                rate=wanted,
                frame_size=stream.codec_context.frame_size or None,
            )
            for frame in [*cut.resample(whole), *cut.resample(None), None]:
                container.mux(stream.encode(frame))
        return file.getvalue()

    return encoded
