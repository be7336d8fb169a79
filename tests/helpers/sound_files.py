"""Write sound files of every format that can be read."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import soundfile

RATE = 16_000


# File name, libsndfile subtype, and the largest relative error (RMS) that its coding may leave.
FORMATS = [
    ("clip.wav", "PCM_16", 1e-4),
    ("clip.WAV", "PCM_24", 1e-6),
    ("float.wav", "FLOAT", 0.0),
    ("double.wav", "DOUBLE", 0.0),
    ("ima.wav", "IMA_ADPCM", 0.05),
    ("ms.wav", "MS_ADPCM", 0.05),
    ("mu.wav", "ULAW", 0.02),
    ("a.wav", "ALAW", 0.02),
    ("clip.flac", "PCM_16", 1e-4),
    ("clip.ogg", "VORBIS", 0.2),
    ("clip.opus", "OPUS", 0.2),
    ("clip.mp3", "MPEG_LAYER_III", 0.2),
    ("clip.aiff", "PCM_16", 1e-4),
    ("clip.au", "PCM_24", 1e-6),
]


# File name, FFmpeg's encoder, rate, channels, and the samples by which a slice may be misplaced: 1 ms in containers
# that count in milliseconds.
FFMPEG_FORMATS = [
    ("clip.m4a", "aac", 44_100, 2, 0),
    ("clip.mp4", "aac", 8_000, 1, 0),
    ("six.m4a", "aac", 48_000, 6, 0),
    ("lossless.m4a", "alac", 44_100, 2, 0),
    ("clip.aac", "aac", 22_050, 1, 0),
    ("clip.webm", "libopus", 48_000, 1, 48),
    ("clip.wma", "wmav2", 44_100, 2, 45),
    ("clip.3gp", "aac", 16_000, 1, 0),
    ("clip.3g2", "aac", 16_000, 1, 0),
    ("clip.m4b", "aac", 44_100, 2, 0),
    ("clip.mov", "aac", 44_100, 2, 0),
    ("clip.mka", "flac", 16_000, 1, 16),
    ("clip.caf", "pcm_s16be", 16_000, 1, 0),
    ("clip.wv", "wavpack", 16_000, 1, 0),
    ("clip.tta", "tta", 16_000, 1, 0),
    ("clip.amr", "libopencore_amrnb", 8_000, 1, 0),
]


def speech_like(seconds: float = 1.0, rate: int = RATE, hertz: float = 440.0) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(0).normal(size=len(time))
    return (0.5 * np.sin(2 * np.pi * hertz * time) + 0.02 * noise).astype(np.float32)


def written(path: Path, samples: np.ndarray, rate: int = RATE, subtype: str | None = "FLOAT") -> Path:
    soundfile.write(path, samples, rate, subtype=subtype, format="OGG" if path.suffix == ".opus" else None)
    return path


def encoded(path: Path, samples: np.ndarray, rate: int, codec: str, bits: int = 128_000, **options: str) -> Path:
    """`samples` (frames, channels) as FFmpeg encodes them; `options` are the container's."""
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[samples.shape[1]]
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        stream.codec_context.bit_rate = bits * samples.shape[1]
        add_sound(container, stream, samples)
    return path


def add_sound(container: av.container.OutputContainer, stream: av.AudioStream, samples: np.ndarray) -> None:
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T, np.float32), "fltp", stream.layout.name)
    frame.sample_rate, frame.pts = stream.rate, 0
    for part in (frame, None):
        container.mux(stream.encode(part))


def chirps(seconds: float, rate: int, channels: int) -> np.ndarray:
    """Sines that glide, another in each channel, so that no part is like another: (frames, channels)."""
    time = np.arange(round(seconds * rate))[:, None] / rate
    return 0.3 * np.sin(2 * np.pi * (300 + 150 * np.arange(channels) + 50 * time) * time)
