from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from scipy.signal import periodogram

from peft_audio.audio import AudioError, AudioInfo, load_audio, read_info

RATE = 16_000
# File name, libsndfile subtype, and the largest relative error (RMS) that its coding may leave.
FORMATS = [
    ("clip.wav", "PCM_16", 1e-4),
    ("clip.WAV", "PCM_24", 1e-6),
    ("float.wav", "FLOAT", 0.0),
    ("clip.flac", "PCM_16", 1e-4),
    ("clip.ogg", "VORBIS", 0.2),
    ("clip.mp3", "MPEG_LAYER_III", 0.2),
    ("clip.aiff", "PCM_16", 1e-4),
]


def speech_like(seconds: float = 1.0, rate: int = RATE, hertz: float = 440.0) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(0).normal(size=len(time))
    return (0.5 * np.sin(2 * np.pi * hertz * time) + 0.02 * noise).astype(np.float32)


def written(path: Path, samples: np.ndarray, rate: int = RATE, subtype: str | None = "FLOAT") -> Path:
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


@pytest.mark.parametrize(("name", "subtype", "error"), FORMATS, ids=str)
def test_format_is_decoded_sliced_and_read_from_bytes(tmp_path: Path, name: str, subtype: str, error: float) -> None:
    clip = speech_like()
    path = written(tmp_path / name, clip, subtype=subtype)
    whole = load_audio(path, RATE)
    assert whole.dtype == np.float32 and whole.shape == clip.shape
    assert rms(whole - clip) <= error * rms(clip)
    assert read_info(path) == AudioInfo(RATE, RATE, 1)

    part = load_audio(path, RATE, start_seconds=0.3, seconds=0.25)
    np.testing.assert_allclose(part, whole[4800:8800], atol=1e-6)
    np.testing.assert_array_equal(load_audio(path.read_bytes(), RATE, 0.3, 0.25), part)


def test_mono_is_the_mean_of_the_channels(tmp_path: Path) -> None:
    channels = np.random.default_rng(0).uniform(-1, 1, (800, 3)).astype(np.float32)
    path = written(tmp_path / "three.wav", channels)
    np.testing.assert_allclose(load_audio(path, RATE), channels.sum(axis=1) / 3, atol=1e-7)
    assert read_info(path).channels == 3


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100])
def test_resampling_is_soxr_and_keeps_the_pitch(tmp_path: Path, rate: int) -> None:
    clip = speech_like(rate=rate, hertz=1000.0)
    loaded = load_audio(written(tmp_path / "tone.wav", clip, rate), RATE)
    np.testing.assert_allclose(loaded, soxr.resample(clip, rate, RATE, quality="HQ"), atol=1e-6)
    frequencies, power = periodogram(loaded, RATE)
    assert len(loaded) == RATE and loaded.dtype == np.float32
    assert frequencies[power.argmax()] == pytest.approx(1000, abs=1)


def test_resampled_slice_equals_the_same_slice_of_the_whole(tmp_path: Path) -> None:
    path = written(tmp_path / "tone.wav", speech_like(2.0, 44_100), 44_100)
    whole, part = load_audio(path, RATE), load_audio(path, RATE, 0.5, 1.0)
    inside = slice(400, -400)  # a resampling filter does not know what lies beyond the slice's ends
    assert len(part) == RATE
    np.testing.assert_allclose(part[inside], whole[8000:24000][inside], atol=2e-3)


def test_slice_is_cut_at_the_end_of_the_recording(tmp_path: Path) -> None:
    clip = speech_like()
    path = written(tmp_path / "clip.wav", clip)
    np.testing.assert_array_equal(load_audio(path, RATE, 0.9, 5.0), clip[14400:])
    with pytest.raises(AudioError, match="no samples after 3 s"):
        load_audio(path, RATE, 3.0, 1.0)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_few_samples_are_not_resampled_to_none(tmp_path: Path, count: int) -> None:
    path = written(tmp_path / "short.wav", np.full(count, 0.5, np.float32), 48_000)
    assert load_audio(path, 4_000).size >= 1


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.wav", b"", "is empty"),
        ("text.wav", b"These are notes, not sound.\n" * 40, "is not audio that can be read"),
        ("header.wav", b"RIFF\x24\x00\x00\x00WAVE", "is not audio that can be read"),
    ],
)
def test_what_is_no_audio_says_why(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for source in (path, content):
        for read in (read_info, lambda given: load_audio(given, RATE)):
            with pytest.raises(AudioError, match=reason):
                read(source)


def test_missing_file_and_folder_say_so(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "absent.wav", "does not exist"), (tmp_path, "is not a file")):
        for read in (read_info, lambda given: load_audio(given, RATE)):
            with pytest.raises(AudioError, match=reason):
                read(path)


def test_file_without_samples_says_so(tmp_path: Path) -> None:
    path = written(tmp_path / "silent.wav", np.zeros(0, np.float32))
    with pytest.raises(AudioError, match="holds no samples"):
        read_info(path)
    with pytest.raises(AudioError, match="holds no samples"):
        load_audio(path, RATE)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_no_numbers_say_so(tmp_path: Path, bad: float) -> None:
    clip = speech_like()
    clip[700] = bad
    with pytest.raises(AudioError, match="NaN or infinite"):
        load_audio(written(tmp_path / "nan.wav", clip), RATE)


@pytest.mark.parametrize(("name", "subtype"), [("cut.flac", "PCM_16"), ("cut.ogg", "VORBIS")])
def test_truncated_file_says_why(tmp_path: Path, name: str, subtype: str) -> None:
    path = written(tmp_path / name, speech_like(), subtype=subtype)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioError, match=r"cannot be decoded \(.+\)|holds no samples|cannot be read"):
        load_audio(path, RATE)


def test_truncated_wav_gives_what_is_left_and_its_header_agrees(tmp_path: Path) -> None:
    clip = speech_like()
    path = written(tmp_path / "cut.wav", clip)
    path.write_bytes(path.read_bytes()[:-32_000])
    left = load_audio(path, RATE)
    assert 0 < len(left) == read_info(path).num_frames < len(clip)
    np.testing.assert_array_equal(left, clip[: len(left)])
