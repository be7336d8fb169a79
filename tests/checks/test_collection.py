"""What `peft-audio check` says: GTZAN's known faults, and everything else that it names, rebuilt."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import soundfile
from helpers.tones import write_tone

from peft_audio.checks.collection import Check, check
from peft_audio.cli import main
from peft_audio.config import DataConfig
from peft_audio.data import splits as data

DIGITS = pq.read_table(Path(data.__file__).parents[1] / "assets" / "digits" / "train.parquet").to_pylist()


def write_digit(file: Path, number: int) -> Path:
    """One of the bundled recordings, all different, as FLAC."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(DIGITS[number]["audio"]["bytes"])
    return file


def findings(found: Check) -> dict[str, tuple[str, ...]]:
    return {finding.what: finding.files for finding in found.findings}


@pytest.fixture
def music(tmp_path: Path) -> Path:
    """GTZAN's faults: a corrupt file, a repeat in another split, and one artist on both sides, in a table of tracks."""
    rows = []
    for i in range(24):
        genre, split = ("jazz", "rock")[i % 2], ("train", "train", "validation", "test")[i // 2 % 4]
        file = write_digit(tmp_path / genre / f"{genre}.{i:05}.flac", i)
        rows.append(
            {"path": file.relative_to(tmp_path), "label": genre, "split": split, "artist": f"{split} band {i % 3}"}
        )
    # A repeat is never a copy of the file: it was ripped again, at another level.
    samples, rate = soundfile.read(tmp_path / rows[0]["path"])
    rows[6]["path"] = rows[6]["path"].with_suffix(".mp3")
    soundfile.write(tmp_path / rows[6]["path"], 0.5 * samples, rate)
    content = (tmp_path / rows[2]["path"]).read_bytes()
    (tmp_path / rows[2]["path"]).write_bytes(b"\0" * 100 + content[100:])
    rows[1]["artist"] = rows[7]["artist"] = "The Leaks"
    pd.DataFrame(rows).to_csv(tmp_path / "tracks.csv", index=False)
    return tmp_path / "tracks.csv"


def test_groups_that_cannot_be_divided_are_told(tmp_path: Path) -> None:
    rows = [{"path": write_digit(tmp_path / f"{i}.flac", i), "label": "ab"[i % 2], "group": "one"} for i in range(4)]
    pd.DataFrame(rows).to_csv(tmp_path / "clips.csv", index=False)
    found = findings(check(DataConfig(source=str(tmp_path / "clips.csv"))))
    assert "too few to hold out" in found["the clips cannot be divided"][0]


def test_gtzans_faults_are_found(music: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = findings(check(DataConfig(source=str(music))))
    (unreadable,) = found.pop("unreadable")
    assert Path(unreadable.split(" ")[0]).name == "jazz.00002.flac"
    (copies,) = found.pop("near copies (rate, level or format differ) in different splits")
    assert "jazz.00000.flac (jazz, train)" in copies and "jazz.00006.mp3 (jazz, test)" in copies
    ((suspected, groups),) = found.items()
    assert "--data.group_column artist" in suspected and groups == ("The Leaks: 2 clips (train, test)",)

    assert main(["check", str(music), "--json", "--data.group_column", "artist"]) == 1
    said = json.loads(capsys.readouterr().out)
    leaking = [finding for finding in said["findings"] if "groups" in finding["what"]]
    assert said["groups"]["on_several_sides"] == 1
    assert leaking == [{"what": "groups in several splits", "spoils": True, "files": ["The Leaks: train, test"]}]


def test_a_clean_collection_has_no_finding_and_exit_code_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(20):
        write_digit(tmp_path / "data" / ("a", "b")[i % 2] / f"{i}.flac", i)
    found = check(DataConfig(source=str(tmp_path / "data")))
    assert found.findings == () and not found.spoiled
    assert found.clips == 20 and found.classes["a"] == {"all": 10, "train": 6, "validation": 2, "test": 2}
    assert found.hours == pytest.approx(sum(row["num_frames"] for row in DIGITS[:20]) / 8000 / 3600)
    assert found.sampling_rates == {8000: 20} and found.channels == {1: 20} and found.largest_class_accuracy == 0.5
    # Wilson's interval in closed form, at 3 of 4.
    n, p, z = 4, 0.75, 1.959964
    assert found.interval == pytest.approx(
        2 * z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n), abs=1e-5
    )
    assert main(["check", str(tmp_path / "data")]) == 0
    printed = capsys.readouterr().out
    assert "20 clips" in printed and "no fault found" in printed


def broken(folder: Path) -> dict[str, str]:
    """Files that no run can use, and the kind of each."""
    noise = np.random.default_rng(0).normal(0, 0.1, 4000).astype(np.float32)
    hole = noise.copy()
    hole[7] = np.nan
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("not sound\n" * 50)
    soundfile.write(folder / "nan.wav", hole, 8000, subtype="FLOAT")
    soundfile.write(folder / "silent.wav", np.zeros(4000), 8000)
    soundfile.write(folder / "constant.wav", np.full(4000, 0.3), 8000)
    soundfile.write(folder / "cancels.wav", np.stack([noise, -noise], 1), 8000)
    soundfile.write(folder / "header.wav", np.zeros(0), 8000)
    kinds = {
        "empty.wav": "empty",
        "header.wav": "empty",
        "text.wav": "unreadable",
        "nan.wav": "NaN or infinite samples",
    }
    return kinds | dict.fromkeys(("silent.wav", "constant.wav", "cancels.wav"), "silent")


def test_every_bad_clip_is_named_once_with_its_kind(tmp_path: Path) -> None:
    for i in range(20):
        write_digit(tmp_path / ("a", "b")[i % 2] / f"{i}.flac", i)
    kinds = broken(tmp_path / "a")
    found = check(DataConfig(source=str(tmp_path)))
    said = {Path(file.split(" ")[0]).name: finding.what for finding in found.findings for file in finding.files}
    assert said == kinds and all(finding.spoils for finding in found.findings)


def test_what_is_odd_only_warns(tmp_path: Path) -> None:
    for i in range(20):
        write_digit(tmp_path / ("a", "b")[i % 2] / f"{i}.flac", i)
    loud = np.clip(3 * np.random.default_rng(1).normal(size=8000), -1, 1)
    soundfile.write(tmp_path / "a" / "loud.wav", loud, 8000)
    write_tone(tmp_path / "a" / "blip.wav", 900, 0.01)
    write_tone(tmp_path / "b" / "long.wav", 700, 32.0)
    shutil.copy(tmp_path / "a" / "0.flac", tmp_path / "b" / "copy.flac")
    whole = (write_tone(tmp_path / "b" / "cut.wav", 500, 1.0)).read_bytes()
    (tmp_path / "b" / "cut.wav").write_bytes(whole[: len(whole) // 2])
    table = pd.DataFrame({"id": [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*.*"))]})
    # All in one split but for one clean clip of each class in the others.
    table["split"] = ["train"] * len(table)
    for name, split in (
        ("a/2.flac", "test"),
        ("b/3.flac", "test"),
        ("a/4.flac", "validation"),
        ("b/5.flac", "validation"),
    ):
        table.loc[table["id"] == name, "split"] = split
    table.to_csv(tmp_path.parent / f"{tmp_path.name}.csv", index=False)
    found = check(DataConfig(source=str(tmp_path), splits_file=str(tmp_path.parent / f"{tmp_path.name}.csv")))
    assert not found.spoiled
    said = {finding.what.split(":")[0].split(",")[0].split(" of ")[0]: finding.files for finding in found.findings}
    assert {kind: [Path(file.split(":")[0].split(" (")[0]).name for file in files] for kind, files in said.items()} == {
        "cut off": ["cut.wav"],
        "clipped": ["loud.wav"],
        "shorter than 0.025 s": ["blip.wav"],
        "longer than 30 s": ["long.wav"],
        "exact copies": ["0.flac"],
        "classes with one test clip": ["a", "b"],
    }
    (copies,) = said["exact copies"]
    assert "0.flac (a, train) = " in copies and "copy.flac (b, train)" in copies


def test_sides_are_compared(tmp_path: Path) -> None:
    for i in range(24):
        split, label = ("train", "train", "valid", "test")[i // 2 % 4], ("a", "b")[i % 2]
        write_digit(tmp_path / split / label / f"s{i % 5}_{i}.flac", i)
    shutil.copy(tmp_path / "train" / "a" / "s0_0.flac", tmp_path / "test" / "a" / "s9_99.flac")
    for clip in (tmp_path / "valid" / "b").iterdir():
        clip.rename(tmp_path / "train" / "b" / clip.name)
    (tmp_path / "valid" / "b").rmdir()
    found: dict[str, Any] = findings(check(DataConfig(source=str(tmp_path), group_pattern=r"^(s\d)_")))
    assert found["classes missing from the validation split"] == ("b",)
    assert "exact copies in different splits" in found
    assert "s0: train, validation, test" in found["groups in several splits"]


def test_flags_of_check_are_those_of_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["check", "bundled", "--data.fold", "9"])
    assert "--data.fold: got 9, must be 0 to 4 with 5 folds" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["predict", "x.wav", "--adapter", "y", "--data.fold", "9"])
    assert "unrecognized arguments" in capsys.readouterr().err
    assert main(["check", "no/such/folder/here"]) == 2


def test_check_names_the_recipe_of_a_setting_in_a_fresh_process() -> None:
    command = [sys.executable, "-m", "peft_audio.cli", "check", "bundled", "--lora.r", "4"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "--lora.r: no such setting here; it belongs to recipes/lora.py" in ended.stderr


def test_a_collection_without_a_single_usable_clip_is_a_finding(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "x.wav").write_text("no sound")
    found = findings(check(DataConfig(source=str(tmp_path))))
    assert len(found["unreadable"]) == 2 and "the clips cannot be divided" in found


def test_two_hundred_different_clips_have_no_copies(tmp_path: Path) -> None:
    for i in range(200):
        write_digit(tmp_path / DIGITS[i]["label"] / f"{i}.flac", i)
    assert not [what for what in findings(check(DataConfig(source=str(tmp_path)))) if "copies" in what]


def test_undeclared_groups_are_suspected_and_the_flag_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(40):
        speaker = ("ann", "bob", "cleo", "dan", "eve")[i // 2 % 5]
        write_digit(tmp_path / "names" / "ab"[i % 2] / f"{speaker}-{i}.flac", i)
        write_digit(tmp_path / "folders" / "ab"[i % 2] / speaker / f"{i}.flac", i)
    for source, places in (("names", "file names"), ("folders", "folders")):
        assert main(["check", str(tmp_path / source), "--json"]) == 0
        (finding,) = json.loads(capsys.readouterr().out)["findings"]
        words = f"{places}: clips share 5 values, such as ann, bob, which may be speakers or recordings. 5 of them are"
        assert finding["what"].startswith(words) and not finding["spoils"]
        assert finding["files"][0] == "ann: 8 clips (train, validation, test)"
        flags = shlex.split(finding["what"].rpartition(" with ")[2])
        assert main(["check", str(tmp_path / source), *flags]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "groups: 5 (train 3, validation 1, test 1), 5 of each class; no group is in two splits" in said
    assert main(["check", str(tmp_path / "names"), "--json", "--data.group_pattern", "^([^-]+)"]) == 0
    groups = json.loads(capsys.readouterr().out)["groups"]
    assert groups == {
        "groups": 5,
        "by_split": {"train": 3, "validation": 1, "test": 1},
        "by_class": {"a": 5, "b": 5},
        "on_several_sides": 0,
        "statement": "no group is in two splits",
    }


def test_balance_is_checked_with_flags_that_help(tmp_path: Path) -> None:
    for i in range(42):
        label = "hungry" if i < 36 else "tired" if i < 41 else "burping"
        write_digit(tmp_path / label / f"{i}.flac", i)
    found = findings(check(DataConfig(source=str(tmp_path))))
    (few,) = [what for what in found if "fewer clips than can be tested" in what]
    assert "each needs 3" in few and "--data.splits_file" in few and found[few] == ("burping: 1 clip",)
    (largest,) = [what for what in found if "unbalanced" in what]
    assert "'hungry' has 86% of the clips" in largest and "--train.class_weights balanced" in largest
    assert found[largest] == ("hungry: 36 clips", "burping: 1 clip")

    # The advice as given: a table of the other clips.
    clips = [path.relative_to(tmp_path) for path in tmp_path.rglob("*.flac") if path.parent.name != "burping"]
    splits = [
        {"id": str(clip), "split": ("train", "train", "val", "test")[i % 4]} for i, clip in enumerate(sorted(clips))
    ]
    pd.DataFrame(splits).to_csv(tmp_path / "kept.csv", index=False)
    found = findings(check(DataConfig(source=str(tmp_path), splits_file=str(tmp_path / "kept.csv"))))
    (single,) = [what for what in found if "one test clip" in what]
    assert found[single] == ("tired: 1 of 5 clips",) and single.endswith(
        "the split test in " + str(tmp_path / "kept.csv")
    )
    assert not [what for what in found if "fewer clips than can be tested" in what]


def test_a_long_tail_is_unbalanced_and_sixty_to_forty_is_not(tmp_path: Path) -> None:
    for folder, counts in (("tail", (30, 12, 10, 3)), ("even", (15, 10))):
        digits = iter(range(60))
        for label, count in zip("abcd", counts, strict=False):
            for _ in range(count):
                write_digit(tmp_path / folder / label / f"{(number := next(digits))}.flac", number)
    whats = {name: list(findings(check(DataConfig(source=str(tmp_path / name))))) for name in ("tail", "even")}
    assert [what for what in whats["tail"] if "'a' has 55% of the clips" in what] and whats["even"] == []


def test_speakers_are_suspected_where_recordings_have_parts(tmp_path: Path) -> None:
    rows = []
    for i in range(48):
        file = write_digit(tmp_path / f"{i}.flac", i)
        rows.append({"path": file.name, "label": "ab"[i % 2], "speaker": f"person {i // 8}", "start": 0.0, "end": 0.1})
    rows.append(rows[0] | {"start": 0.1, "end": 0.2})
    pd.DataFrame(rows).to_csv(tmp_path / "parts.csv", index=False)
    found = check(DataConfig(source=str(tmp_path / "parts.csv")))
    assert found.groups is not None and found.groups.statement == "no recording is in two splits"
    (suspected,) = [what for what in findings(found) if "--data.group_column speaker" in what]
    assert "49 of 49 clips" in suspected
    declared = check(DataConfig(source=str(tmp_path / "parts.csv"), group_column="speaker"))
    assert declared.groups is not None and declared.groups.statement == "no group is in two splits"


@pytest.mark.parametrize("folders", [r"my_data", r"my_data\{speaker}"])
def test_the_pattern_for_a_table_with_backslashes_works(tmp_path: Path, folders: str) -> None:
    rows = []
    for i in range(48):
        speaker = ("ann", "bob", "cleo", "dan", "eve", "finn")[i // 2 % 6]
        place = folders.format(speaker=speaker)
        name = f"{i:04}.flac" if "speaker" in folders else f"{speaker}_{i:04}.flac"
        write_digit(tmp_path / place.replace("\\", "/") / name, i)
        rows.append({"path": f"{place}\\{name}", "label": "ab"[i % 2]})
    pd.DataFrame(rows).to_csv(tmp_path / "clips.csv", index=False)
    (what,) = [
        what for what in findings(check(DataConfig(source=str(tmp_path / "clips.csv")))) if "clips share" in what
    ]
    _, pattern = shlex.split(what.rpartition(" with ")[2])
    declared = check(DataConfig(source=str(tmp_path / "clips.csv"), group_pattern=pattern))
    assert declared.groups is not None and declared.groups.groups == 6 and declared.groups.on_several_sides == 0


def advice(cfg: DataConfig) -> str:
    (what,) = [what for what in findings(check(cfg)) if "one test clip" in what]
    return what.partition("Test more of them: ")[2]


def test_the_advice_on_few_test_clips_fits_the_splits_of_the_source(tmp_path: Path) -> None:
    for i in range(16):
        split, label = ("train", "train", "train", "test")[i // 2 % 4] if i < 8 else "train", "ab"[i % 2]
        write_digit(tmp_path / "own" / split / label / f"{i}.flac", i)
        write_digit(tmp_path / "half" / ("train", "valid")[i // 2 == 7] / label / f"{i}.flac", i)
        if i < 10:
            write_digit(tmp_path / "none" / label / f"{i}.flac", i)
        if i < 6:
            write_digit(tmp_path / "few" / label / f"{i}.flac", i)
    own = advice(DataConfig(source=str(tmp_path / "own")))
    assert "--data.splits_file" in own and "test_share" not in own and "--data.fold" not in own
    half = advice(DataConfig(source=str(tmp_path / "half")))
    assert half == "add clips, or raise --data.test_share"
    none = str(tmp_path / "none")
    assert advice(DataConfig(source=none)) == (
        "add clips, raise --data.test_share, or test every clip once with --data.fold 0 to 4"
    )
    folded = advice(DataConfig(source=none, num_folds=4, fold=1))
    assert "--data.num_folds" in folded and "--data.fold 0 to 3" in folded
    assert advice(DataConfig(source=str(tmp_path / "few"))) == "add clips"  # 3 clips, 3 splits, 5 folds


def test_a_column_with_some_empty_cells_is_suspected(tmp_path: Path) -> None:
    rows = []
    for i in range(48):
        file = write_digit(tmp_path / f"{i}.flac", i)
        rows.append({"path": file.name, "label": "ab"[i % 2], "speaker": f"person {i // 8}" if i else ""})
    pd.DataFrame(rows).to_csv(tmp_path / "clips.csv", index=False)
    (what,) = [
        what for what in findings(check(DataConfig(source=str(tmp_path / "clips.csv")))) if "clips share" in what
    ]
    assert "clips share 6 values" in what and "47 of 48 clips" in what and "cannot be divided" not in what
    assert "--data.group_column speaker. First fill 1 empty cell of that column, as each row needs a group" in what
