from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import soundfile
import soxr

from peft_audio.audio.decoding import load_audio
from peft_audio.checks.collection import check
from peft_audio.checks.trimmed_copies import EMPTY, MOST_CLIPS, landmarks, matching_pairs
from peft_audio.config import DataConfig

RATE = 16_000
DIGITS = Path(__file__).parents[2] / "peft_audio" / "assets" / "digits" / "test.parquet"


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    """Speech of 3 s: bundled digits, joined in eights."""
    column = pyarrow.parquet.read_table(DIGITS)["audio"].to_pylist()[:160]
    digits = [load_audio(audio["bytes"], RATE) for audio in column]
    return [np.concatenate(digits[i : i + 8]) for i in range(0, len(digits), 8)]


def pairs(
    *waveforms: np.ndarray | tuple[np.ndarray, int], recordings: list[int] | None = None
) -> list[tuple[int, int]]:
    rated = [clip if isinstance(clip, tuple) else (clip, RATE) for clip in waveforms]
    both = [landmarks(*clip) for clip in rated]
    hashes, times = np.array([hashes for hashes, _ in both]), np.array([times for _, times in both])
    numbers = np.arange(len(rated)) if recordings is None else np.array(recordings)
    return [(one, other) for one, other in matching_pairs(hashes, times, numbers).tolist()]


def as_mp3_at_22_khz(clip: np.ndarray) -> tuple[np.ndarray, int]:
    file = io.BytesIO()
    soundfile.write(file, 0.2 * soxr.resample(clip, RATE, 22_050), 22_050, format="MP3")
    return load_audio(file.getvalue(), 22_050), 22_050


@pytest.mark.parametrize(
    "change",
    [
        lambda clip: clip[: 2 * len(clip) // 3],
        lambda clip: clip[len(clip) // 3 :],
        lambda clip: clip[len(clip) // 4 : 3 * len(clip) // 4],
        lambda clip: np.concatenate([np.zeros(5_003, np.float32), clip]),
        lambda clip: np.concatenate([clip[len(clip) // 2 :], np.zeros(len(clip) // 2, np.float32)]),
        lambda clip: as_mp3_at_22_khz(clip[len(clip) // 3 :]),
    ],
    ids=[
        "end",
        "start",
        "both ends",
        "silence before",
        "shifted in its window",
        "start, MP3 at another rate and level",
    ],
)
def test_a_trimmed_or_shifted_copy_is_found(
    clips: list[np.ndarray], change: Callable[[np.ndarray], np.ndarray]
) -> None:
    found = pairs(*clips, *map(change, clips))
    assert all(other == one + len(clips) for one, other in found), "nothing else"
    assert len(found) >= 0.9 * len(clips)


def test_clips_that_overlap_by_half_are_found(clips: list[np.ndarray]) -> None:
    long = np.concatenate(clips[:2])
    assert pairs(long[: 4 * RATE], long[2 * RATE : 6 * RATE]) == [(0, 1)]
    assert pairs(long[: 4 * RATE], long[2 * RATE : 6 * RATE], recordings=[0, 0]) == [], "segments of one file"


def test_different_clips_are_not_paired(clips: list[np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    noise = [0.1 * rng.standard_normal(3 * RATE).astype(np.float32) for _ in range(20)]
    time = np.arange(3 * RATE) / RATE
    tones = [(np.sin(2 * np.pi * 110 * 2 ** (i / 12) * time) + 0.01 * noise[i]).astype(np.float32) for i in range(20)]
    assert pairs(*clips, *noise, *tones) == []


@pytest.mark.filterwarnings("error")
def test_silence_and_scraps_have_no_landmarks() -> None:
    for clip in (np.zeros(2 * RATE, np.float32), np.full(2 * RATE, 0.5, np.float32), np.zeros(3, np.float32)):
        assert pairs(clip, clip) == []
    assert (landmarks(np.zeros(2 * RATE, np.float32), RATE)[0] == EMPTY).all()


def test_a_jingle_in_many_clips_costs_no_more_than_a_few(clips: list[np.ndarray]) -> None:
    """Landmarks of more than 30 clips say nothing, so pairs do not grow with the square of the clips."""
    hashes, times = landmarks(clips[0], RATE)
    many = np.tile(hashes, (MOST_CLIPS + 1, 1)), np.tile(times, (MOST_CLIPS + 1, 1))
    assert len(matching_pairs(*many, np.arange(MOST_CLIPS + 1))) == 0
    assert len(matching_pairs(many[0][1:], many[1][1:], np.arange(MOST_CLIPS))) == MOST_CLIPS * (MOST_CLIPS - 1) // 2


def test_check_names_trimmed_copies_once(tmp_path: Path, clips: list[np.ndarray]) -> None:
    for i, clip in enumerate(clips):
        folder = tmp_path / ("train", "train", "val", "test")[i // 2 % 4] / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"{i}.wav", clip, RATE)
    soundfile.write(tmp_path / "test" / "a" / "cut.wav", clips[0][RATE // 2 :], RATE)
    soundfile.write(tmp_path / "train" / "a" / "loud.wav", 0.5 * clips[2], RATE)
    found = {finding.what: finding for finding in check(DataConfig(source=str(tmp_path))).findings}
    copies = {what: finding.files for what, finding in found.items() if "copies" in what}
    assert set(copies) == {
        "near copies (rate, level or format differ)",
        "trimmed or shifted copies (they share a part) in different splits",
    }
    trimmed = found["trimmed or shifted copies (they share a part) in different splits"]
    assert trimmed.spoils and len(trimmed.files) == 1
    assert "/0.wav (a, train)" in trimmed.files[0] and "/cut.wav (a, test)" in trimmed.files[0]
