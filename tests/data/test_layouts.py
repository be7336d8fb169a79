from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from helpers.tones import write_tone

from peft_audio.cli import main
from peft_audio.config import DataConfig
from peft_audio.data.layouts import divisions
from peft_audio.data.sources import find_clips
from peft_audio.errors import UserError


def write_table(file: Path, header: str, rows: list[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def urbansound(root: Path) -> None:
    for i in range(12):
        write_tone(root / "audio" / f"fold{i % 3 + 1}" / f"{i}.wav", 200 + 70 * i, 0.3)
    rows = [f"{i}.wav,{i % 3 + 1},{('siren', 'drilling')[i // 3 % 2]}" for i in range(12)]
    write_table(root / "metadata" / "UrbanSound8K.csv", "slice_file_name,fold,class", rows)


def esc50(root: Path) -> None:
    names = [f"{i % 5 + 1}-{1000 + i}-A.wav" for i in range(15)]
    for i, name in enumerate(names):
        write_tone(root / "audio" / name, 200 + 70 * i, 0.3)
    rows = [f"{name},{i % 5 + 1},{i // 5 % 2},{('dog', 'rain')[i // 5 % 2]}" for i, name in enumerate(names)]
    write_table(root / "meta" / "esc50.csv", "filename,fold,target,category", rows)


def audiofolder(root: Path) -> None:
    for i in range(12):
        write_tone(root / "data" / f"{i}.wav", 200 + 70 * i, 0.3)
    write_table(root / "metadata.csv", "file_name,label", [f"data/{i}.wav,{'ab'[i % 2]}" for i in range(12)])


def said_of(root: Path) -> str:
    """What is said of a folder, as an error or as a warning."""
    try:
        return " ".join(find_clips(DataConfig(source=str(root))).doubts)
    except UserError as error:
        return str(error)


def command_in(said: str) -> list[str]:
    (command,) = re.findall(r"peft-audio (check .*) \(recipes take", said)
    return shlex.split(command)


@pytest.mark.parametrize(
    ("make", "given", "words", "labels"),
    [
        (
            urbansound,
            "audio",
            "fold1, fold2, fold3 look like folds or parts, not like classes. The table",
            "drilling, siren",
        ),
        (urbansound, ".", "no recordings in", "drilling, siren"),
        (esc50, "audio", "has recordings outside any class folder", "dog, rain"),
        (esc50, ".", "no recordings in", "dog, rain"),
        (audiofolder, ".", "has one class, 'data'", "a, b"),
        (audiofolder, "data", "has recordings outside any class folder", "a, b"),
    ],
)
def test_the_table_beside_a_folder_is_named_with_a_command_that_works(
    make: object, given: str, words: str, labels: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(make)
    make(tmp_path / "my data")
    said = said_of(tmp_path / "my data" / given)
    assert words in said and f"labels such as {labels}" in said
    command = command_in(said)
    assert main([*command, "--json"]) == 0, command
    first = labels.partition(",")[0]
    assert f'"{first}": {{' in capsys.readouterr().out
    assert ("--data.group_column" in command) == (make is not audiofolder)


def test_relative_paths_are_those_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    urbansound(tmp_path)
    monkeypatch.chdir(tmp_path / "audio")
    columns = "--data.audio_column slice_file_name --data.label_column class"
    flags = f"{columns} --data.audio_folder . --data.group_column fold"
    assert shlex.join(command_in(said_of(Path()))) == f"check ../metadata/UrbanSound8K.csv {flags}"


def test_a_table_of_other_recordings_is_not_named(tmp_path: Path) -> None:
    for i in range(8):
        write_tone(tmp_path / "mine" / "low" / f"{i}.wav", 200 + 70 * i, 0.2)
        write_tone(tmp_path / "theirs" / f"{i}.wav", 200 + 70 * i, 0.2)
    write_table(tmp_path / "theirs.csv", "path,label", [f"theirs/{i}.wav,{'ab'[i % 2]}" for i in range(8)])
    assert said_of(tmp_path / "mine").endswith("a classifier needs two or more. Add another class.")


def test_one_table_per_split_is_to_be_joined(tmp_path: Path) -> None:
    for split, numbers in (("train", range(12)), ("test", range(12, 20))):
        for i in numbers:
            write_tone(tmp_path / split / f"{i}.wav", 200 + 70 * i, 0.2)
        rows = [f"{i}.wav,{'ab'[i % 2]}" for i in numbers]
        write_table(tmp_path / split / "metadata.csv", "file_name,label", rows)
    assert "each name some of these recordings: write one table" in said_of(tmp_path)


def test_a_table_with_other_labels_than_the_folders_is_named(tmp_path: Path) -> None:
    for i in range(8):
        write_tone(tmp_path / ("cat", "dog")[i % 2] / f"{i}.wav", 200 + 70 * i, 0.2)
    rows = [f"{('cat', 'dog')[i % 2]}/{i}.wav" for i in range(8)]
    write_table(tmp_path / "metadata.csv", "file_name,label", [f"{row},{row[:3]}" for row in rows])
    assert said_of(tmp_path) == ""
    write_table(tmp_path / "metadata.csv", "file_name,label", [f"{row},{'xyz'[i % 3]}" for i, row in enumerate(rows)])
    assert "has other labels (x, y, z) than the folders, which are used" in said_of(tmp_path)


def test_truth_values_of_a_table_are_those_of_the_folders(tmp_path: Path) -> None:
    for i in range(8):
        write_tone(tmp_path / ("true", "false")[i % 2] / f"{i}.wav", 200 + 70 * i, 0.2)
    rows = [f"{label}/{i}.wav,{label}" for i in range(8) for label in [("true", "false")[i % 2]]]
    write_table(tmp_path / "metadata.csv", "file_name,label", rows)
    assert said_of(tmp_path) == ""


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (("fold1", "fold2", "fold10"), "folds or parts"),
        (("train_0", "train_1", "test_0"), "splits"),
        (("Actor_01", "Actor_02"), "speakers"),
        (("session 1", "session 2"), "sessions"),
        (("class1", "class2"), ""),
        (("digit0", "digit1"), ""),
        (("fold1", "cat"), ""),
        (("speaker", "singer"), ""),
        (("1", "2"), ""),
    ],
)
def test_folders_that_divide_are_told_from_classes(labels: tuple[str, ...], kind: str) -> None:
    assert divisions(labels) == kind


def test_class_folders_inside_folders_of_speakers_are_named(tmp_path: Path) -> None:
    for i in range(8):
        write_tone(tmp_path / f"Actor_0{i // 4}" / ("sad", "calm")[i % 2] / f"{i}.wav", 200 + 70 * i, 0.2)
    said = said_of(tmp_path)
    assert "Actor_00, Actor_01 look like speakers" in said and "The folders inside them (calm, sad)" in said
    assert "the columns path, label and group" in said


def test_hints_point_to_the_level_of_the_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(20):
        write_tone(tmp_path / "data" / "inner" / ("cat", "dog")[i % 2] / f"{i}.wav", 200 + 70 * i, 0.2)
    level = ["check", str(tmp_path / "data" / "inner")]
    # From above, from further above and from a class.
    for given in ("data", ".", "data/inner/cat"):
        assert command_in(said_of(tmp_path / given)) == level
    assert main(level) == 0
    capsys.readouterr()
