from __future__ import annotations

import io
from itertools import islice
from pathlib import Path
from time import perf_counter

import numpy as np
import pyarrow.parquet
import pytest
import soundfile
import soxr

from peft_audio.audio.decoding import load_audio
from peft_audio.checks.near_copies import LINES, SECONDS_APART, SIMILARITY, SIZE, fingerprint, near_duplicates

RATE = 16_000
DIGITS = Path(__file__).parents[2] / "peft_audio" / "assets" / "digits" / "test.parquet"


def noise(seed: int, seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).normal(size=round(seconds * rate))).astype(np.float32)


def note(hertz: float, harmonics: tuple[float, ...] = (1.0, 0.5, 0.3), decay: float = 2.0) -> np.ndarray:
    time = np.arange(2 * RATE) / RATE
    tone = sum(level * np.sin(2 * np.pi * hertz * (i + 1) * time) for i, level in enumerate(harmonics))
    return (0.2 * tone * np.exp(-decay * time) + 1e-4 * noise(0, 2.0)).astype(np.float32)


def digits(count: int) -> list[np.ndarray]:
    """Recordings that are long enough to be told apart."""
    column = pyarrow.parquet.read_table(DIGITS)["audio"].to_pylist()
    clips = (load_audio(audio["bytes"], RATE) for audio in column)
    return list(islice((clip for clip in clips if len(clip) > 0.25 * RATE), count))


def coded(clip: np.ndarray, kind: str, subtype: str, rate: int = RATE) -> tuple[np.ndarray, int]:
    file = io.BytesIO()
    soundfile.write(file, soxr.resample(clip, RATE, rate), rate, format=kind, subtype=subtype)
    return load_audio(file.getvalue(), rate), rate


def grouped(*clips: np.ndarray | tuple[np.ndarray, int]) -> list[list[int]]:
    rated = [clip if isinstance(clip, tuple) else (clip, RATE) for clip in clips]
    prints = np.array([fingerprint(waveform, rate) for waveform, rate in rated])
    return near_duplicates(prints, np.array([len(waveform) / rate for waveform, rate in rated]))


def test_a_fingerprint_is_small_whatever_the_clip() -> None:
    for rate in (4_000, 16_000, 44_100, 192_000):
        for seconds in (0.25, 1.0, 30.0):
            print_ = fingerprint(noise(0, seconds, rate), rate)
            assert print_.dtype == np.int8 and print_.shape == (SIZE,) and print_.any()
    assert 100_000 * SIZE < 100e6


@pytest.mark.parametrize(
    ("kind", "subtype", "rate"),
    [
        ("WAV", "PCM_16", 8_000),
        ("WAV", "PCM_16", 44_100),
        ("WAV", "PCM_16", 4_000),
        ("WAV", "ULAW", 8_000),
        ("FLAC", "PCM_16", 48_000),
        ("MP3", "MPEG_LAYER_III", 44_100),
        ("OGG", "VORBIS", 16_000),
        ("OGG", "OPUS", 48_000),
    ],
)
def test_a_copy_at_another_rate_or_format_is_found(kind: str, subtype: str, rate: int) -> None:
    clips = [*digits(20), noise(1), noise(2), note(220), note(330)]
    copies = [coded(clip, kind, subtype, rate) for clip in clips]
    assert grouped(*clips, *copies) == [[i, i + len(clips)] for i in range(len(clips))]


def test_a_copy_is_found_at_another_level_delayed_clipped_or_upside_down() -> None:
    clip = digits(1)[0]
    changed = [
        0.01 * clip,
        -clip,
        np.clip(3 * clip, -np.abs(clip).max(), np.abs(clip).max()),
        np.concatenate([np.zeros(1_105, np.float32), clip, np.zeros(1_000, np.float32)]),  # an MP3 encoder's delay
        clip + np.float32(0.01),  # a recorder's offset
    ]
    assert grouped(clip, *changed) == [[0, 1, 2, 3, 4, 5]]


def test_different_sounds_are_not_copies() -> None:
    assert grouped(*(noise(seed, 5.0) for seed in range(60))) == []  # all of them the same rain, to an ear
    assert grouped(*(noise(seed, 0.2) for seed in range(60))) == []
    assert grouped(*(note(220 * 2 ** (step / 12)) for step in range(12))) == []
    assert grouped(*digits(60)) == []


def test_two_instruments_on_one_note_are_told_apart_by_the_picture() -> None:
    one, other = note(220, (1, 1, 0.5, 0.3, 0.3, 0.2), decay=1.0), note(220, (0.2, 0.3, 0.5, 1, 1, 0.5), decay=1.0)
    lines = [
        print_[:LINES] / np.linalg.norm(print_[:LINES].astype(float))
        for print_ in (fingerprint(one, RATE), fingerprint(other, RATE))
    ]
    assert lines[0] @ lines[1] > SIMILARITY  # else this would test nothing
    assert grouped(one, other) == []


@pytest.mark.filterwarnings("error")
def test_silence_and_scraps_are_like_nothing() -> None:
    nothing = [np.zeros(RATE, np.float32), np.full(RATE, 0.5, np.float32), *(noise(0, n / RATE) for n in (1, 3, 200))]
    for clip in nothing:
        assert not fingerprint(clip, RATE).any()
    assert grouped(*nothing, *nothing) == []
    click = np.zeros(RATE, np.float32)
    click[RATE // 2] = 1
    fingerprint(click, RATE)  # no energy at either edge of the picture


def test_clips_of_other_lengths_are_not_compared() -> None:
    prints = np.array([fingerprint(noise(0), RATE)] * 4)
    near, far = 1.0 + 0.9 * SECONDS_APART, 1.0 + 1.1 * SECONDS_APART
    assert near_duplicates(prints, np.array([far, 1.0, 9.0, near])) == [[0, 1, 3]]  # 0 and 1 through 3
    assert near_duplicates(prints[:2], np.array([far, 1.0])) == []


@pytest.mark.parametrize("exact", [True, False])
def test_many_copies_of_few_clips_are_few_groups_soon(exact: bool) -> None:
    rng = np.random.default_rng(0)
    ten = np.array([fingerprint(noise(seed), RATE) for seed in range(10)])
    origins = rng.integers(10, size=20_000 if exact else 6_000)
    prints = ten[origins]
    if not exact:
        prints = np.clip(prints + rng.integers(-9, 10, size=prints.shape), -127, 127).astype(np.int8)
    started = perf_counter()
    groups = near_duplicates(prints, np.ones(len(prints)))
    assert perf_counter() - started < 10
    assert len(groups) == 10 and sum(map(len, groups)) == len(prints)
    for group in groups:
        assert group == np.flatnonzero(origins == origins[group[0]]).tolist()
    assert [group[0] for group in groups] == sorted(group[0] for group in groups)
