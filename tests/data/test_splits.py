from __future__ import annotations

import random
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.sound_files import chirps, encoded
from helpers.tones import write_tone

from peft_audio.audio.decoding import load_audio
from peft_audio.config import DataConfig
from peft_audio.data import splits as data
from peft_audio.data.clip_table import SPLITS, recording_of
from peft_audio.data.folder import ignored_note
from peft_audio.data.sources import BUNDLED
from peft_audio.data.splits import Splits, load_splits
from peft_audio.errors import UserError


def make_clips(root: Path, counts: dict[str, int], shuffle: int | None = None) -> Path:
    """Short WAV files, `counts["folder"]` in each folder, written in another order for each `shuffle`."""
    files = [root / folder / f"{i:03}.wav" for folder, count in counts.items() for i in range(count)]
    if shuffle is not None:
        random.Random(shuffle).shuffle(files)
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(list(str(file.relative_to(root)).encode())).normal(0, 0.1, 50)
        soundfile.write(file, noise, 16_000)
    return root


def load(root: Path, **settings: object) -> Splits:
    return load_splits(DataConfig(source=str(root), **settings))


def ids(splits: Splits) -> dict[str, set[str]]:
    return {split: set(splits[split]["id"]) for split in SPLITS}


def label_counts(splits: Splits, split: str) -> Counter[str]:
    return Counter(splits.labels[number] for number in splits[split]["label"])


def refusal(root: Path, **settings: object) -> str:
    with pytest.raises(UserError) as error:
        load(root, **settings)
    assert str(error.value).startswith("--data.source: ")
    return str(error.value)


def test_a_window_above_the_encoders_is_refused_before_clips_are_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--data.window_seconds: got 2.*, must be 1 or less"):
        load_splits(DataConfig(source=str(tmp_path / "absent"), window_seconds=2), window=1)


def test_clips_are_noted_as_longer_only_where_the_encoders_window_cuts_them(tmp_path: Path) -> None:
    make_clips(tmp_path, {"a": 10, "b": 10})
    settings = [DataConfig(source=str(tmp_path), window_seconds=seconds) for seconds in (None, 0.001)]
    notes = [load_splits(cfg, window=0.002).notes for cfg in settings]
    assert [any("longer than the encoder's window" in note for note in each) for each in notes] == [True, False]


@pytest.fixture(scope="module")
def bundled() -> Splits:
    return load_splits(DataConfig())


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clips(tmp_path_factory.mktemp("uneven"), {"cat": 40, "dog": 20, "emu": 10})


def test_bundled_speakers_stand_in_one_split_each(bundled: Splits) -> None:
    speakers = [set(bundled[split]["group"]) for split in SPLITS]
    assert all(speakers) and "" not in set.union(*speakers)
    assert len(set.union(*speakers)) == sum(len(part) for part in speakers)


def test_bundled_splits_have_all_labels_and_unique_ids(bundled: Splits) -> None:
    assert all(set(label_counts(bundled, split)) == set(bundled.labels) for split in SPLITS)
    every = [name for split in SPLITS for name in bundled[split]["id"]]
    assert len(every) == len(set(every)) == bundled.table().num_rows


def test_bundled_header_columns_are_those_of_the_audio(bundled: Splits) -> None:
    for split in SPLITS:
        for row in bundled[split].select(range(5)):
            clip = load_audio(recording_of(row, bundled.stored), row["sampling_rate"])
            assert len(clip) == row["num_frames"] and np.abs(clip).max() > 0.01


def test_bundled_data_is_small() -> None:
    assert sum(file.stat().st_size for file in BUNDLED.rglob("*") if file.is_file()) <= 5_000_000


def test_hashes_are_stable_and_see_a_changed_label(bundled: Splits, tmp_path: Path) -> None:
    again = load_splits(DataConfig(split_seed=5))
    assert (again.dataset_sha256(), again.split_sha256()) == (bundled.dataset_sha256(), bundled.split_sha256())

    labels = list(bundled.train["label"])
    labels[0] = (labels[0] + 1) % len(bundled.labels)
    changed = replace(bundled, train=bundled.train.remove_columns("label").add_column("label", labels))
    assert changed.dataset_sha256() != bundled.dataset_sha256()
    assert replace(bundled, train=bundled.test, test=bundled.train).split_sha256() != bundled.split_sha256()


def test_hash_does_not_depend_on_where_the_folder_lies(uneven: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(uneven, tmp_path / "elsewhere")
    first, second = load(uneven), load(moved)
    assert (first.dataset_sha256(), first.split_sha256()) == (second.dataset_sha256(), second.split_sha256())


def test_made_splits_lose_nothing_and_share_nothing(uneven: Path) -> None:
    splits = ids(load(uneven))
    every = {file.relative_to(uneven).as_posix() for file in uneven.rglob("*.wav")}
    assert set.union(*splits.values()) == every
    assert sum(len(part) for part in splits.values()) == len(every) == 70


def test_made_splits_are_stratified_and_of_the_wanted_size(uneven: Path) -> None:
    splits = load(uneven, test_share=0.2, validation_share=0.1)
    for split, share in (("train", 0.7), ("validation", 0.1), ("test", 0.2)):
        for label, whole in {"cat": 40, "dog": 20, "emu": 10}.items():
            assert label_counts(splits, split)[label] == pytest.approx(share * whole, abs=1)


def test_split_seed_decides_the_splits(uneven: Path) -> None:
    assert ids(load(uneven, split_seed=3)) == ids(load(uneven, split_seed=3))
    assert ids(load(uneven, split_seed=3))["test"] != ids(load(uneven, split_seed=4))["test"]


def test_splits_do_not_depend_on_the_order_in_which_files_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"a": 9, "b": 9}
    hashes = {load(make_clips(tmp_path / str(i), counts, shuffle=i)).split_sha256() for i in range(3)}
    # A file system lists a folder in any order that it likes.
    for name in ("iterdir", "glob", "rglob"):
        find = getattr(Path, name)
        monkeypatch.setattr(Path, name, lambda *given, find=find: iter(list(find(*given))[::-1]))
    hashes.add(load(tmp_path / "0").split_sha256())
    assert len(hashes) == 1


def test_rare_class_stands_in_every_split(tmp_path: Path) -> None:
    splits = load(make_clips(tmp_path, {"common": 60, "rare": 3}))
    assert all(label_counts(splits, split)["rare"] == 1 for split in SPLITS)


def test_deeper_folders_take_the_class_folders_label(tmp_path: Path) -> None:
    splits = load(make_clips(tmp_path, {"a/s1/x": 4, "a/s2": 4, "b": 8}))
    assert splits.labels == ("a", "b")
    assert sum((label_counts(splits, split) for split in SPLITS), Counter()) == {"a": 8, "b": 8}
    assert "a/s1/x/000.wav" in set.union(*ids(splits).values())


def test_given_splits_are_kept(tmp_path: Path) -> None:
    counts = {"train/a": 5, "train/b/deep": 4, "validation/a": 2, "validation/b": 2, "test/a": 1, "test/b": 3}
    splits = load(make_clips(tmp_path, counts))
    assert splits.labels == ("a", "b")
    assert {split: dict(label_counts(splits, split)) for split in SPLITS} == {
        "train": {"a": 5, "b": 4},
        "validation": {"a": 2, "b": 2},
        "test": {"a": 1, "b": 3},
    }
    assert all(name.startswith(split) for split, names in ids(splits).items() for name in names)


def test_missing_validation_is_made_from_train_alone(tmp_path: Path) -> None:
    counts = {"train/a": 20, "train/b": 20, "test/a": 6, "test/b": 6}
    splits = ids(load(make_clips(tmp_path, counts), validation_share=0.25))
    assert splits["test"] == {f"test/{label}/{i:03}.wav" for label in "ab" for i in range(6)}
    assert len(splits["validation"]) == 10 and len(splits["train"]) == 30
    assert all(name.startswith("train/") for name in splits["validation"] | splits["train"])


def test_class_may_have_the_name_of_a_split(tmp_path: Path) -> None:
    assert load(make_clips(tmp_path, {"bus": 6, "car": 6, "train": 6})).labels == ("bus", "car", "train")


def test_split_folders_beside_another_folder_are_not_taken_for_classes(tmp_path: Path) -> None:
    message = refusal(make_clips(tmp_path, {"train/a": 6, "train/b": 6, "test/a": 6, "test/b": 6, "extra/a": 6}))
    assert "extra" in message


def test_hidden_folders_and_files_are_not_data(tmp_path: Path) -> None:
    root = make_clips(tmp_path, {"a": 6, "b": 6, ".checkpoints": 6, "a/.cache": 2})
    shutil.copy(root / "a" / "000.wav", root / "a" / "._000.wav")
    splits = load(root)
    assert splits.labels == ("a", "b")
    assert splits.table().num_rows == 12


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "absent")
    file = tmp_path / "file.wav"
    file.touch()
    assert "is no table of these kinds" in refusal(file)


def test_folder_without_recordings_or_with_one_class_is_refused(tmp_path: Path) -> None:
    assert "found no recordings" in refusal(tmp_path)
    message = refusal(make_clips(tmp_path, {"only": 9}))
    assert "one class" in message and "'only'" in message


def test_all_bad_files_are_told_at_once(tmp_path: Path) -> None:
    root = make_clips(tmp_path, {"a": 6, "b": 6})
    (root / "a" / "empty.wav").touch()
    (root / "b" / "notes.wav").write_text("notes, not sound\n" * 99)
    (root / "b" / "cut.flac").write_bytes(b"fLaC")
    message = refusal(root)
    assert "3 of 15 clips" in message
    assert f"{root / 'a' / 'empty.wav'} is empty" in message
    assert f"{root / 'b' / 'notes.wav'} is not audio" in message
    assert str(root / "b" / "cut.flac") in message
    assert "000.wav" not in message


def test_class_missing_from_a_given_split_is_refused(tmp_path: Path) -> None:
    root = make_clips(tmp_path, {"train/a": 6, "train/b": 6, "test/a": 6, "validation/a": 2, "validation/b": 2})
    message = refusal(root)
    assert "test split" in message and "clips of b" in message


def test_class_that_only_the_test_has_is_refused(tmp_path: Path) -> None:
    message = refusal(make_clips(tmp_path, {"train/a": 6, "train/b": 6, "test/a": 6, "test/b": 6, "test/c": 6}))
    assert "train split" in message and "clips of c" in message


def test_class_too_small_to_divide_is_refused_by_name(tmp_path: Path) -> None:
    message = refusal(make_clips(tmp_path, {"common": 30, "rare": 2}))
    assert "'rare'" in message and "too few" in message


def test_loose_files_are_refused_by_name(tmp_path: Path) -> None:
    root = make_clips(tmp_path, {"a": 4, "b": 4, ".": 2})
    message = refusal(root)
    assert "000.wav" in message and "outside any class folder" in message


def test_linked_class_folders_count_and_a_loop_of_links_ends(tmp_path: Path) -> None:
    for i in range(4):
        write_tone(tmp_path / "elsewhere" / f"{i}.wav", 300, seconds=0.1)
        write_tone(tmp_path / "data" / "a" / f"{i}.wav", 600, seconds=0.1)
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "a" / "loop").symlink_to(tmp_path / "data" / "a")
    splits = load_splits(DataConfig(source=str(tmp_path / "data")))
    assert splits.labels == ("a", "linked")
    assert sum(len(splits[split]) for split in ("train", "validation", "test")) == 8


def test_class_folder_without_recordings_is_named(tone_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tone_folder, tmp_path / "data"))
    (folder / "forgotten").mkdir()
    (folder / "forgotten" / "notes.txt").write_text("to do")
    with pytest.raises(UserError, match=r"no recordings in .*forgotten"):
        load_splits(DataConfig(source=str(folder)))


def test_bundled_files_keep_to_their_sizes() -> None:
    assets = Path(data.__file__).parents[1] / "assets"
    for name, limit in (("digits", 5_000_000), ("wav2vec2-nano", 8_000_000)):
        assert 0 < sum(file.stat().st_size for file in (assets / name).iterdir()) <= limit


def test_files_that_are_no_recordings_are_told(tone_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tone_folder, tmp_path / "data"))
    (folder / "LICENCE.txt").write_text("free")
    (folder / "low" / "notes.md").write_text("deep")
    assert load(folder).ignored == ("LICENCE.txt", "low/notes.md")
    assert load(tone_folder).ignored == ()


def test_fewer_training_clips_are_spread_over_the_classes(uneven: Path, bundled: Splits) -> None:
    whole = load(uneven)
    some = load(uneven, max_train_clips=20)
    assert ids(some)["train"] < ids(whole)["train"]
    assert all(ids(some)[split] == ids(whole)[split] for split in ("validation", "test"))
    # emu has 6 or 7 clips to give; the others make up for what it lacks.
    counts = label_counts(some, "train")
    assert sum(counts.values()) == 20 and max(counts.values()) - min(counts.values()) <= 1
    assert ids(load(uneven, max_train_clips=20)) == ids(some)
    assert ids(load(uneven, max_train_clips=10))["train"] < ids(some)["train"]
    assert ids(load(uneven, max_train_clips=10_000)) == ids(whole)
    hundred = load_splits(DataConfig(max_train_clips=100))
    assert set(label_counts(hundred, "train").values()) == {10}
    assert hundred.split_sha256() != bundled.split_sha256()


def test_fewer_training_clips_than_classes_are_refused(uneven: Path) -> None:
    with pytest.raises(UserError, match=r"--data.max_train_clips: got 2, must be 3, one per class, or more"):
        load(uneven, max_train_clips=2)


def test_bad_clips_are_skipped_and_listed_only_when_asked(tmp_path: Path) -> None:
    root = make_clips(tmp_path, {"a": 12, "b": 12})
    (root / "a" / "empty.wav").touch()
    soundfile.write(root / "b" / "silent.wav", np.zeros(800), 16_000)
    message = refusal(root)
    assert "2 of 26 clips" in message and "--data.on_bad_clip skip" in message
    assert "empty.wav is empty" in message and "silent.wav is silent" in message
    splits = load(root, on_bad_clip="skip")
    assert dict(splits.skipped).keys() == {"a/empty.wav", "b/silent.wav"}
    assert splits.table().num_rows == 24
    with pytest.raises(UserError, match=r"--data.max_bad_share: 2 of 26 clips .* more than the share of 0.05"):
        load(root, on_bad_clip="skip", max_bad_share=0.05)


def test_a_class_that_is_lost_with_its_bad_clips_is_refused(tmp_path: Path) -> None:
    root = make_clips(tmp_path, {"a": 20, "b": 20})
    (root / "c").mkdir()
    soundfile.write(root / "c" / "silent.wav", np.zeros(800), 16_000)
    with pytest.raises(UserError, match="has no clips of c"):
        load(root, on_bad_clip="skip")


def test_what_is_decided_about_a_folder_is_said(tmp_path: Path) -> None:
    root = make_clips(tmp_path, {"test": 6, "Dog": 6, "dog": 6, "cat/deep/er": 6})
    shutil.copy(root / "dog" / "000.wav", root / "cat" / "copy.wav")
    shutil.copy(root / "dog" / "000.wav", root / "cat" / "again.wav")
    splits = load(root)
    notes = "\n".join(splits.notes)
    assert splits.labels == ("Dog", "cat", "dog", "test")
    for words in ("test: read as a class", "have the label of their class folder: cat", "'Dog' and 'dog'"):
        assert words in notes, notes
    sides = [split for split in SPLITS for row in splits[split] if row["id"].endswith(("y.wav", "n.wav"))]
    assert ("are exact copies in more than one split" in notes) == (len({*sides}) > 1)
    assert "3 of 26 clips are exact copies in more than one class" in notes


def test_copies_and_groups_on_two_sides_are_warned_of(tmp_path: Path) -> None:
    counts = {f"{split}/{label}": 4 for split in ("train", "validation", "test") for label in "ab"}
    root = make_clips(tmp_path, counts)
    shutil.copy(root / "train" / "a" / "000.wav", root / "test" / "a" / "900.wav")
    notes = "\n".join(load(root, group_pattern=r"\d+").notes)
    assert "warning: 2 of 25 clips are exact copies in more than one split" in notes
    assert "warning: groups in more than one split: 000, 001, 002 and 1 more" in notes


def test_names_in_other_letters_and_with_spaces_are_names_like_others(tmp_path: Path) -> None:
    # é as one letter in one folder and as two in the other.
    counts = {"train/caf\u00e9 au lait": 6, "train/naïve": 6, "test/cafe\u0301 au lait": 3, "test/naïve": 3}
    splits = load(make_clips(tmp_path, counts))
    assert splits.labels == ("caf\u00e9 au lait", "naïve")


def test_other_containers_need_their_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_clips(tmp_path, {"a": 6, "b": 6})
    (root / "b" / "voice.M4A").write_bytes(b"\x00\x00\x00\x20ftypM4A ")
    monkeypatch.setitem(sys.modules, "av", None)
    message = refusal(root)
    assert "voice.M4A" in message and "pip install 'peft-audio[formats]'" in message


def test_files_of_other_types_are_counted_and_named(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / f"{i}.dss").touch()
    (tmp_path / "a" / "notes.txt").touch()
    assert f"found no recordings in {tmp_path}: it has 3 .dss, 1 .txt, but expected" in refusal(tmp_path)
    make_clips(tmp_path, {"b": 6, "c": 6})
    assert f"no recordings in {tmp_path / 'a'} (only 3 .dss, 1 .txt); add recordings of another type" in refusal(
        tmp_path
    )
    make_clips(tmp_path, {"a": 6})
    note = "4 files ignored, not recordings by name: 3 .dss, 1 .txt (a/0.dss, a/1.dss, a/2.dss and 1 more)"
    assert ignored_note(load(tmp_path).ignored) == note


def test_recordings_of_telephones_are_read(tmp_path: Path) -> None:
    for i in range(6):
        for label in "ab":
            (tmp_path / label).mkdir(exist_ok=True)
            suffix, codec = [("3gp", "aac"), ("amr", "libopencore_amrnb"), ("caf", "alac")][i % 3]
            encoded(tmp_path / label / f"{i}.{suffix}", chirps(1.0 + i / 10, 8_000, 1), 8_000, codec)
    splits = load(tmp_path)
    assert sum(len(splits[split]) for split in SPLITS) == 12 and not splits.ignored and not splits.skipped


@pytest.mark.parametrize(
    ("flag", "value"),
    [("revision", "main"), ("streaming", True), ("label_column", "genre"), ("group_column", "artist")],
)
def test_a_setting_that_a_folder_has_no_use_for_is_refused(uneven: Path, flag: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"--data.{flag}: got {value}, must be left out with the source .*uneven"):
        load(uneven, **{flag: value})


def test_split_folders_may_be_capitalised(tmp_path: Path) -> None:
    counts = {f"{split}/{label}": 4 for split in ("Train", "Valid", "TEST") for label in "ab"}
    splits = load(make_clips(tmp_path, counts))
    assert splits.labels == ("a", "b") and len(splits.test) == len(splits.validation) == 8


def test_a_link_to_clips_of_another_class_does_not_take_them_over(tmp_path: Path) -> None:
    root = make_clips(tmp_path, {"a": 6, "b/sub": 6})
    (root / "a" / "more").symlink_to(root / "b" / "sub")
    assert label_counts(load(root), "train") + label_counts(load(root), "test") + label_counts(
        load(root), "validation"
    ) == {"a": 6, "b": 6}


@pytest.mark.parametrize("folders", [("train", "test"), ("Train", "Test")])
def test_a_recording_beside_split_folders_is_refused(tmp_path: Path, folders: tuple[str, str]) -> None:
    root = make_clips(tmp_path, {f"{split}/{label}": 6 for split in folders for label in "ab"} | {".": 1})
    assert "outside any class folder (000.wav)" in refusal(root)
