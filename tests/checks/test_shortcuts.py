from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile

from peft_audio.checks.shortcuts import MOST_CLIPS, Shortcut, find_shortcuts
from peft_audio.cli import main
from peft_audio.config import DataConfig
from peft_audio.data.scan import scan, scan_clip
from peft_audio.data.sources import find_clips


def facts(clips: int, classes: int = 2, **columns: Any) -> pd.DataFrame:
    """Facts of clips whose class number is their number modulo `classes`; content varies at random."""
    rng = np.random.default_rng(0)
    table = {
        "id": [f"{i:04}" for i in range(clips)],
        "label": [f"class {i % classes}" for i in range(clips)],
        "group": "",
        "num_frames": rng.integers(16_000, 64_000, clips),
        "sampling_rate": 16_000,
        "channels": 1,
        "codec": "WAV PCM_16",
        "clipped": 0.0,
        "rms": rng.uniform(0.01, 0.1, clips),
        "peak": rng.uniform(0.1, 1.0, clips),
    }
    silences = dict.fromkeys(("leading_silence_seconds", "trailing_silence_seconds", "silence_seconds"), 0.0)
    return pd.DataFrame(table | silences | columns)


def warned(clips: pd.DataFrame) -> dict[str, Shortcut]:
    return {cue.name: cue for cue in find_shortcuts(clips) if cue.warns}


FIRST = np.arange(60) % 2 == 0


@pytest.mark.parametrize(
    ("columns", "name", "sentence"),
    [
        (
            {"trailing_silence_seconds": 0.7 * FIRST, "silence_seconds": 0.7 * FIRST},
            "digital silence",
            "30 of 30 clips of 'class 0' end in 0.7 s of digital silence, none of 'class 1'",
        ),
        (
            {"leading_silence_seconds": 0.2 + 0.3 * FIRST, "silence_seconds": 0.2 + 0.3 * FIRST},
            "digital silence",
            "clips of 'class 0' begin with 0.5 s of digital silence, clips of 'class 1' begin with 0.2 s of digital "
            "silence (medians)",
        ),
        (
            {"codec": np.where(FIRST, "MP3", "WAV PCM_16")},
            "file format",
            "30 of 30 clips of 'class 0' are MP3, none of 'class 1'",
        ),
        (
            {"sampling_rate": np.where(FIRST | (np.arange(60) == 1), 8_000, 44_100)},
            "sampling rate",
            "30 of 30 clips of 'class 0' have a sampling rate of 8,000 Hz, 1 of 30 clips of 'class 1'",
        ),
        (
            {"channels": np.where(FIRST, 1, 2)},
            "number of channels",
            "30 of 30 clips of 'class 1' have 2 channel(s), none of 'class 0'",
        ),
        (
            {"clipped": 0.02 * FIRST},
            "clipping",
            "30 of 30 clips of 'class 0' have 2% of samples at full scale, none of 'class 1'",
        ),
    ],
)
def test_each_artefact_is_named_with_counts(columns: dict[str, Any], name: str, sentence: str) -> None:
    cues = {name: cue for name, cue in warned(facts(60, **columns)).items() if cue.kind == "artefact"}
    assert set(cues) == {name}
    assert cues[name].accuracy > 0.9 and cues[name].chance == 0.5 and cues[name].p_value < 0.01
    assert sentence in cues[name].examples


@pytest.mark.parametrize(("column", "name"), [("num_frames", "duration"), ("rms", "level")])
def test_duration_and_level_are_content(column: str, name: str) -> None:
    clips = facts(60)
    clips[column] = np.where(FIRST, 1.0, 3.0) * clips[column]
    assert {cue.name: cue.kind for cue in warned(clips).values()} == {name: "content"}


def test_a_rare_class_with_an_artefact_is_found() -> None:
    rare = np.arange(200) % 20 == 0
    clips = facts(200, label=np.where(rare, "rare", "common"), codec=np.where(rare, "MP3", "FLAC PCM_16"))
    assert "10 of 10 clips of 'rare' are MP3, none of 'common'" in warned(clips)["file format"].examples


def test_properties_that_do_not_depend_on_the_class_give_no_warning() -> None:
    false_alarms = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        codec = np.where(rng.random(60) < 0.3, "MP3", "WAV PCM_16")
        silence = rng.uniform(0, 1, 60) * (rng.random(60) < 0.5)
        false_alarms += list(
            warned(facts(60, codec=codec, trailing_silence_seconds=silence, num_frames=8_000, rms=0.1, peak=0.5))
        )
    assert len(false_alarms) <= 1, "of 20 tests with a false alarm in at most one of 100"
    assert not find_shortcuts(facts(8, codec=["MP3", "FLAC"] * 4))  # too few clips of a class to hold any out


def test_a_property_of_the_group_is_no_property_of_the_class() -> None:
    """Each of six recorders writes at a rate of its own, and recorded one class."""
    recorder = np.arange(60) % 6
    clips = facts(60, sampling_rate=8_000 + recorder)
    assert "sampling rate" in warned(clips)
    assert "sampling rate" not in warned(clips.assign(group=[f"recorder {i}" for i in recorder]))


def test_a_large_collection_is_sampled_with_its_rare_classes() -> None:
    rare = np.arange(3 * MOST_CLIPS) < 6
    clips = facts(len(rare), label=np.where(rare, "rare", "common"), channels=np.where(rare, 2, 1))
    cue = warned(clips)["number of channels"]
    assert cue.clips == MOST_CLIPS and cue.accuracy == 1.0
    assert "6 of 6 clips of 'rare' have 2 channel(s), none of 'common'" in cue.examples


def test_the_bundled_digits_have_no_shortcut() -> None:
    assert not warned(scan(find_clips(DataConfig())))


@pytest.mark.parametrize("channels", [1, 2])
def test_digital_silence_is_measured(tmp_path: Path, channels: int) -> None:
    samples = 0.1 * np.random.default_rng(0).standard_normal((70 * 4_000, channels))
    samples[:400] = 0  # 0.1 s
    samples[8_000:8_800] = 0.25  # a constant of 0.2 s
    samples[9_000:9_040] = 0  # 10 ms are no pause
    samples[-35 * 4_000 :] = 0  # more than a block of 30 s
    soundfile.write(tmp_path / "x.wav", samples, 4_000)
    found = scan_clip(tmp_path / "x.wav")
    # The first sample of a constant differs from the one before it.
    expected = {"leading": 0.1, "trailing": 35.0}
    assert {name: found[f"{name}_silence_seconds"] for name in expected} == pytest.approx(expected)
    assert found["silence_seconds"] == pytest.approx(35.3, abs=0.001)
    assert found["rms"] == pytest.approx(samples.mean(axis=1).std(), rel=0.1) and found["codec"] == "WAV PCM_16"


def test_check_warns_of_noise_that_is_padded_in_one_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for label in ("bird", "no_bird"):
        (tmp_path / label).mkdir()
        for i in range(15):
            samples = 0.1 * rng.standard_normal(16_000)
            samples[4_800 if label == "bird" else 16_000 :] = 0
            soundfile.write(tmp_path / label / f"{i}.wav", samples, 16_000)
    assert main(["check", str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "warning 1 x digital silence reveals the class" in said
    assert "15 of 15 clips of 'bird' end in 0.7 s of digital silence, none of 'no_bird'" in said
    assert "no fault found" not in said and "1 warning above" in said
    assert main(["check", str(tmp_path), "--json"]) == 0
    cues = {cue["name"]: cue for cue in json.loads(capsys.readouterr().out)["shortcuts"]}
    assert cues["digital silence"]["accuracy"] == 1.0 and cues["digital silence"]["warns"]


@pytest.mark.parametrize("extra", [0, 4, 300])
def test_silence_goes_on_over_the_end_of_a_block(tmp_path: Path, extra: int) -> None:
    samples = 0.1 * np.random.default_rng(0).standard_normal(30 * 22_050 + extra)
    samples[-10 * 22_050 :] = 0
    soundfile.write(tmp_path / "zero.wav", samples, 22_050)
    samples[-10 * 22_050 :] = 0.25
    soundfile.write(tmp_path / "constant.wav", samples, 22_050)
    for name in ("zero.wav", "constant.wav"):
        found = scan_clip(tmp_path / name)
        assert found["trailing_silence_seconds"] == pytest.approx(10.0, abs=1e-4)
        assert found["silence_seconds"] == pytest.approx(10.0, abs=1e-4)


def test_short_runs_of_silence_are_joined_before_they_are_measured(tmp_path: Path) -> None:
    samples = 0.1 * np.random.default_rng(0).standard_normal(31 * 4_000)
    samples[120_000 - 60 : 120_000 + 60] = 0  # 15 ms on each side of the end of a block
    soundfile.write(tmp_path / "x.wav", samples, 4_000)
    assert scan_clip(tmp_path / "x.wav")["silence_seconds"] == pytest.approx(0.03)
