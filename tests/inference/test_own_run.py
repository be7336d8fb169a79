"""Adapters that know their own run: its splits are used, and clips that they were trained on are scored apart."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
from helpers.tones import write_tone

from peft_audio import DataConfig, HeadOnlyRecipe, ModelConfig, TrainConfig, fine_tune
from peft_audio.adapters.trained_clips import (
    TrainedClipsError,
    encode_trained_clips,
    read_trained_clips,
    write_trained_clips,
)
from peft_audio.cli import main
from peft_audio.config.fields import changed_fields
from peft_audio.data.clip_table import ClipTable, make_clips
from peft_audio.errors import UserError
from peft_audio.inference.evaluate import match_labels
from peft_audio.inference.own_run import OwnRun, seen_clips, with_run_settings

PATTERN = r"^(s\d+)_"


@pytest.fixture(scope="module")
def run(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 8 speakers with 6 clips each, divided by speaker; `clips` beside it is its source."""
    root = tmp_path_factory.mktemp("grouped")
    for i in range(48):
        label = ("low", "high")[i % 2]
        write_tone(root / "clips" / label / f"s{i // 6}_{i}.wav", 300 + 900 * (i % 2), 0.3 + 0.01 * i, seed=i)
    data = DataConfig(source=str(root / "clips"), group_pattern=PATTERN, test_share=0.3)
    train = TrainConfig(
        output_dir=str(root / "run"), epochs=1, batch_size=8, mixed_precision="no", verify_adapter=False
    )
    fine_tune(HeadOnlyRecipe(data=data, model=ModelConfig(name=str(tiny_base)), train=train))
    return root / "run"


def evaluated(capsys: pytest.CaptureFixture[str], adapter: Path, source: Path, *flags: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["evaluate", str(adapter), str(source), *flags, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_splits_of_the_run_are_used_without_its_flags(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads((run / "report.json").read_text())
    for flags in ([], ["--split", "test"], ["--split", "test", "--data.group_pattern", "_(.)"]):
        found = evaluated(capsys, run / "adapter", run.parent / "clips", *flags)
        assert (found["split"], found["recordings"]) == ("test", report["test_clips"])
        assert found["accuracy"] == pytest.approx(report["test_accuracy"])
        assert found["seen_clips"] is None and found["unseen_clips"]["recordings"] == report["test_clips"]
        told = "\n".join(found["notes"])
        assert f"as divided by the run in {run}" in told and "trained or validated on none of these clips" in told
        contradicted = f"--data.group_pattern: got '_(.)', but the run used {PATTERN!r}; the splits of the run are used"
        assert (contradicted in told) == ("--data.group_pattern" in flags)
        assert found["groups"] > 1


def test_the_record_holds_quantiles_of_the_training_clips(run: Path) -> None:
    made = pd.read_parquet(run / "splits.parquet")
    files = [soundfile.info(run.parent / "clips" / name) for name in made["id"][made["split"] == "train"]]
    found = json.loads((run / "adapter" / "peft_audio.json").read_text())["training_audio"]
    assert found["seconds"]["q50"] == pytest.approx(np.median([file.duration for file in files]), rel=1e-3)
    assert found["sampling_rate"]["q01"] == 16_000 and -12 < found["level_dbfs"]["q50"] < -8


def test_an_adapter_elsewhere_scores_its_training_clips_apart(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The split that is made without groups holds clips that were trained on; renamed copies count as well."""
    adapter = Path(shutil.copytree(run / "adapter", tmp_path / "adapter"))
    source = Path(shutil.copytree(run.parent / "clips", tmp_path / "renamed"))
    for path in sorted(source.rglob("*.wav")):
        path.rename(path.with_name(f"x{path.name}"))
    found = evaluated(
        capsys, adapter, source, "--split", "test", "--data.test_share", "0.4", "--out", str(tmp_path / "o")
    )
    chosen = pd.read_parquet(tmp_path / "o" / "predictions.parquet")["id"]
    made = pd.read_parquet(run / "splits.parquet").set_index("id")["split"]
    learned = sum(made[name.replace("/x", "/")] != "test" for name in chosen)
    assert 0 < learned < len(chosen)
    assert found["seen_known_from"] == "trained_clips.bin" and found["seen_false_alarms"] == 0
    assert found["seen_clips"]["recordings"] == learned
    assert found["unseen_clips"]["recordings"] == len(chosen) - learned == found["recordings"] - learned
    both = (found[name]["accuracy"] * found[name]["recordings"] for name in ("seen_clips", "unseen_clips"))
    assert sum(both) == pytest.approx(found["accuracy"] * found["recordings"])
    told = f"warning: the adapter was trained or validated on {learned} of these {len(chosen)} clips"
    assert any(note.startswith(told) for note in found["notes"])
    assert main(["evaluate", str(adapter), str(source), "--split", "test"]) == 0
    assert "trained or validated on" in capsys.readouterr().out
    # A damaged record costs that division, not the scores.
    (adapter / "trained_clips.bin").write_bytes(b"PACLIPS")
    unknown = evaluated(capsys, adapter, source, "--split", "test", "--data.test_share", "0.4")
    assert unknown["accuracy"] == found["accuracy"] and unknown["seen_clips"] is None
    (note,) = [note for note in unknown["notes"] if "trained_clips.bin" in note]
    assert note.startswith(f"warning: {adapter / 'trained_clips.bin'} is damaged; remove it or get the adapter again.")


def test_other_and_mixed_collections_are_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(8):
        write_tone(tmp_path / "new" / ("low", "high")[i % 2] / f"n{i}.wav", 300 + 900 * (i % 2), 0.4, seed=500 + i)
    found = evaluated(capsys, run / "adapter", tmp_path / "new")
    assert found["recordings"] == 8 and found["seen_clips"] is None
    assert any("new is not the collection of the run in" in note for note in found["notes"])
    made = pd.read_parquet(run / "splits.parquet")
    some = made[made["split"] != "test"]["id"].iloc[::8]
    for name in some:
        shutil.copy(run.parent / "clips" / name, tmp_path / "new" / name)
    found = evaluated(capsys, run / "adapter", tmp_path / "new")
    assert (found["split"], found["recordings"]) == ("all", 8 + len(some))
    assert (found["seen_clips"]["recordings"], found["unseen_clips"]["recordings"]) == (len(some), 8)
    assert any(note.startswith(f"{len(some)} of {8 + len(some)} clips of") for note in found["notes"])


def test_names_alone_do_not_make_a_collection_that_of_an_earlier_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Earlier versions saved no hashes of single clips."""
    old = Path(shutil.copytree(run, tmp_path / "old"))
    made = pd.read_parquet(old / "splits.parquet")
    made.drop(columns="clip_hash").to_parquet(old / "splits.parquet")
    (old / "adapter" / "trained_clips.bin").unlink()
    found = evaluated(capsys, old / "adapter", run.parent / "clips", "--split", "all")
    assert found["seen_known_from"] == "the names in splits.parquet"
    assert found["seen_clips"]["recordings"] == (made["split"] != "test").sum()
    for i, name in enumerate(made["id"]):
        write_tone(tmp_path / "new" / name, 300 + 900 * name.startswith("high"), 0.3, seed=900 + i)
    found = evaluated(capsys, old / "adapter", tmp_path / "new")
    assert (found["split"], found["recordings"]) == ("all", len(made))
    assert found["seen_clips"] is None and found["seen_known_from"] is None
    assert any(note.startswith(f"{tmp_path / 'new'} is not the collection of the run") for note in found["notes"])


def test_other_names_do_not_show_that_clips_are_new_to_an_earlier_run(tmp_path: Path) -> None:
    made = pd.DataFrame({"id": ["a.wav", "b.wav"], "group": "", "split": ["train", "test"], "clip_hash": ""})
    run = OwnRun(tmp_path, made, {})
    clips = pd.DataFrame({"id": ["x/a.wav", "x/b.wav"], "sha256": "0", "clip_hash": "0"})
    assert seen_clips(clips, None, run) is None
    seen = seen_clips(clips.assign(id=["a.wav", "b.wav"]), None, run)
    assert seen is not None and list(seen.clips) == [True, False]


def test_a_table_is_read_as_in_the_run_only_where_that_fits(tmp_path: Path) -> None:
    for folder, header in (("a", "name,emotion"), ("b", "name,label"), ("c", "name,emotion")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "meta.csv").write_text(f"{header}\n0.wav,low\n")
    (tmp_path / "audio").mkdir()
    for folder in ("a", "c"):
        (tmp_path / folder / "0.wav").touch()
    made = {"source": str(tmp_path / "a" / "meta.csv"), "audio_column": "name", "label_column": "emotion"}
    made |= {"audio_folder": str(tmp_path / "audio")}
    run = OwnRun(tmp_path / "run", pd.DataFrame(), {f"data.{name}": value for name, value in made.items()})

    def read(folder: str) -> dict[str, Any]:
        cfg, notes = with_run_settings(DataConfig(source=str(tmp_path / folder / "meta.csv")), run)
        changed = {name: value for name, value in changed_fields(cfg).items() if name != "source"}
        assert len(notes) == 1 and all(f"--data.{name} {value}" in notes[0] for name, value in changed.items())
        return changed

    del made["source"]
    assert read("a") == made
    assert read("b") == {name: made[name] for name in ("audio_column", "audio_folder")}
    assert read("c") == {name: made[name] for name in ("audio_column", "label_column")}
    (tmp_path / "audio").rmdir()
    assert read("b") == {"audio_column": "name"}
    assert with_run_settings(DataConfig(source=str(tmp_path / "b" / "other.csv")), run)[1] == []


def test_segments_of_a_trained_recording_are_known(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A part of a recording that was trained on as a whole; the adapter has no run beside it."""
    adapter = Path(shutil.copytree(run / "adapter", tmp_path / "adapter"))
    made = pd.read_parquet(run / "splits.parquet")
    rows = pd.concat([made[made["split"] == "train"].head(3), made[made["split"] == "test"].head(3)])
    paths = [str(run.parent / "clips" / name) for name in rows["id"]]
    table = pd.DataFrame({"path": paths, "label": rows["label"], "start_seconds": 0.0, "end_seconds": 0.2})
    table.to_csv(tmp_path / "parts.csv", index=False)
    found = evaluated(capsys, adapter, tmp_path / "parts.csv")
    assert (found["seen_clips"]["recordings"], found["unseen_clips"]["recordings"]) == (3, 3)


def test_one_label_and_unknown_labels(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run.parent / "clips" / "low", tmp_path / "only" / "low")
    found = evaluated(capsys, run / "adapter", tmp_path / "only", "--split", "all")
    assert found["unseen"] == ["high"] and found["recordings"] == 24
    (tmp_path / "only" / "low").rename(tmp_path / "only" / "Lows")
    assert main(["evaluate", str(run / "adapter"), str(tmp_path / "only")]) == 2
    assert "Lows (did you mean low?)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("known", "given", "labels"),
    [
        (("false", "true"), ["True", "False", "True"], ["true", "false", "true"]),
        (("False", "True"), ["true", "false"], ["True", "False"]),
        (("1.0", "2.0"), ["2", "1"], ["2.0", "1.0"]),
        (("1", "2"), ["1", "2"], ["1", "2"]),
    ],
    ids=str,
)
def test_labels_that_formats_write_differently_are_known(
    known: tuple[str, ...], given: list[str], labels: list[str]
) -> None:
    collection = ClipTable(
        make_clips({"id": [str(i) for i in range(len(given))], "label": given}), tuple(sorted(set(given)))
    )
    found = match_labels(known, collection, "clips.csv")
    assert list(found.clips["label"]) == labels and found.labels == known


def test_labels_that_two_of_the_adapter_could_mean_are_refused() -> None:
    collection = ClipTable(make_clips({"id": ["0"], "label": ["True"]}), ("True",))
    with pytest.raises(UserError, match=r"does not know: True \(did you mean"):
        match_labels(("TRUE", "true"), collection, "clips.csv")


def test_an_adapter_no_better_than_guessing_is_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Labels that have nothing to do with the sound."""
    for i in range(16):
        write_tone(
            tmp_path / "swapped" / ("low", "high")[i % 2] / f"{i}.wav", 300 + 900 * (i // 2 % 2), 0.4, seed=700 + i
        )
    found = evaluated(capsys, run / "adapter", tmp_path / "swapped")
    assert found["chance"]["learned_nothing"] and found["chance"]["balanced_accuracy"] == 0.5
    line = "warning: The classifier is not shown to be better than guessing on 16 clips"
    assert any(note.startswith(line) for note in found["notes"])
    found = evaluated(capsys, run / "adapter", run.parent / "clips")
    assert not found["chance"]["learned_nothing"]


def clip_hashes(first: int, count: int) -> list[str]:
    return [hashlib.sha256(str(i).encode()).hexdigest()[:16] for i in range(first, first + count)]


def test_lists_are_exact_and_filters_take_one_clip_in_a_hundred_for_another(tmp_path: Path) -> None:
    known, others = clip_hashes(0, 20_000), clip_hashes(1_000_000, 50_000)
    write_trained_clips(tmp_path, known)
    exact = read_trained_clips(tmp_path)
    assert exact is not None and exact.clips == 20_000 and exact.false_alarms == 0
    assert exact.holds(known).all() and not exact.holds(others).any()
    packed = encode_trained_clips(known, largest_list=1000)
    assert len(packed) < 25_000 < (tmp_path / "trained_clips.bin").stat().st_size
    (tmp_path / "trained_clips.bin").write_bytes(packed)
    bloom = read_trained_clips(tmp_path)
    assert bloom is not None and bloom.clips == 20_000 and bloom.holds(known).all()
    assert 0.008 < bloom.holds(others).mean() < 0.012 and bloom.false_alarms == 0.01
    # 64,000 clips are the most that a list of 512 kB holds.
    assert len(encode_trained_clips(clip_hashes(0, 64_100))) < 100_000
    for damaged in (packed[:-1], b"other" + packed, packed[:10]):
        (tmp_path / "trained_clips.bin").write_bytes(damaged)
        with pytest.raises(TrainedClipsError, match="is damaged"):
            read_trained_clips(tmp_path)
    newer = packed[:8] + np.uint32(2).tobytes() + packed[12:]
    (tmp_path / "trained_clips.bin").write_bytes(newer)
    with pytest.raises(TrainedClipsError, match="format version 2, expected 1 or less"):
        read_trained_clips(tmp_path)
