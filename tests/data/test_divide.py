"""Splits that are made: no group on two sides, classes on every side, nothing lost, the same for the same seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from helpers.tones import write_tone

from peft_audio.config import DataConfig
from peft_audio.data.clip_table import SPLITS, make_clips
from peft_audio.data.divide import divide, leaking_groups, missing_classes
from peft_audio.data.splits import load_splits
from peft_audio.errors import UserError
from peft_audio.tasks import task_of


def clips_of(groups: int, per_group: int, label: Callable[[int, int], str]) -> pd.DataFrame:
    """`label(group, clip)` names each clip's class."""
    pairs = [(group, clip) for group in range(groups) for clip in range(per_group)]
    columns = {
        "id": [f"{group:02}-{clip:03}" for group, clip in pairs],
        "label": [label(*pair) for pair in pairs],
        "group": [f"speaker{group:02}" for group, _ in pairs],
    }
    return make_clips(columns)


SPOKEN = clips_of(20, 30, lambda group, clip: f"word{clip % 3}")


def sides(clips: pd.DataFrame) -> dict[str, set[str]]:
    return {split: set(clips["id"][clips["split"] == split]) for split in SPLITS}


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_whole_and_classes_even(seed: int) -> None:
    found = divide(SPOKEN, DataConfig(split_seed=seed))
    assert leaking_groups(found) == {} and missing_classes(found, ["word0", "word1", "word2"], task_of()) == {}
    assert set.union(*sides(found).values()) == set(SPOKEN["id"])
    for split, share in (("train", 0.65), ("validation", 0.15), ("test", 0.2)):
        part = found[found["split"] == split]
        assert len(part) / len(found) == pytest.approx(share, abs=0.06)
        assert part["label"].value_counts(normalize=True).to_numpy() == pytest.approx(1 / 3, abs=0.01)
    assert sides(divide(SPOKEN.sample(frac=1, random_state=1), DataConfig(split_seed=seed))) == sides(found)
    assert sides(divide(SPOKEN, DataConfig(split_seed=seed + 1))) != sides(found)


def test_a_class_in_few_groups_still_gets_to_every_side() -> None:
    # A third of the shuffles would leave "rare", which three of twenty speakers say, out of some split.
    rare = clips_of(20, 10, lambda group, clip: "rare" if group < 3 and clip == 0 else "common")
    for seed in range(10):
        found = divide(rare, DataConfig(split_seed=seed))
        assert missing_classes(found, ["rare", "common"], task_of()) == {} and leaking_groups(found) == {}


@pytest.mark.parametrize("seed", range(5))
def test_groups_of_unequal_size_come_near_the_wanted_shares(seed: int) -> None:
    sizes = [200, *[20] * 15]
    rows = [(group, clip) for group, size in enumerate(sizes) for clip in range(size)]
    uneven = make_clips(
        {
            "id": [f"{group:02}-{clip:03}" for group, clip in rows],
            "label": [f"word{clip % 2}" for _, clip in rows],
            "group": [f"s{group}" for group, _ in rows],
        }
    )
    for test, validation in ((0.2, 0.15), (0.4, 0.1), (0.1, 0.3)):
        found = divide(uneven, DataConfig(split_seed=seed, test_share=test, validation_share=validation))
        assert leaking_groups(found) == {}
        reached = found["split"].value_counts(normalize=True)
        assert reached["test"] == pytest.approx(test, abs=0.03)
        assert reached["validation"] == pytest.approx(validation, abs=0.03)


@pytest.mark.parametrize("settings", [{}, {"fold": 2}, {"validate_on_test": True}])
def test_groups_of_one_clip_each_divide_like_clips_without_groups(settings: dict[str, Any]) -> None:
    plain = clips_of(10, 3, lambda group, clip: f"word{clip}").assign(group="")
    for seed in range(10):
        cfg = DataConfig(split_seed=seed, **settings)
        found = divide(plain.assign(group=plain["id"]), cfg)
        assert found["split"].tolist() == divide(plain, cfg)["split"].tolist()
        assert (found.groupby("split")["label"].value_counts().groupby("split").nunique() == 1).all()


def test_groups_that_are_numbers_are_folds_in_their_order() -> None:
    numbered = clips_of(10, 4, lambda group, clip: f"word{clip % 2}")
    numbered["group"] = [str(int(name[:2]) + 1) for name in numbered["id"]]
    held = [divide(numbered, DataConfig(fold=fold, num_folds=10)) for fold in range(10)]
    assert [set(found["group"][found["split"] == "test"]) for found in held] == [{str(i + 1)} for i in range(10)]


def test_folds_hold_each_clip_out_once_and_follow_the_groups_names() -> None:
    official = clips_of(5, 8, lambda group, clip: f"word{clip % 2}")
    for fold in range(5):
        found = sides(divide(official, DataConfig(fold=fold, split_seed=fold)))
        assert found["test"] == {name for name in official["id"] if name.startswith(f"{fold:02}")}
        assert found["validation"] == {name for name in official["id"] if name.startswith(f"{(fold + 1) % 5:02}")}
    for clips in (SPOKEN, SPOKEN.assign(group="")):
        held = [sides(divide(clips, DataConfig(fold=fold, num_folds=4)))["test"] for fold in range(4)]
        assert sum(map(len, held)) == len(clips) and set.union(*held) == set(clips["id"])


def test_given_splits_are_left_alone_and_their_leaks_found() -> None:
    given = SPOKEN.assign(split=np.where(np.arange(len(SPOKEN)) % 30 < 20, "train", "test"))
    found = divide(given, DataConfig())
    assert sides(found)["test"] == set(given["id"][given["split"] == "test"])
    assert set(leaking_groups(found)) == set(SPOKEN["group"])
    # Validation is made of whole groups even so.
    validation = set(found["group"][found["split"] == "validation"])
    assert validation and not validation & set(found["group"][found["split"] == "train"])


@pytest.mark.parametrize(
    ("clips", "settings", "words"),
    [
        (
            SPOKEN[SPOKEN["group"] < "speaker02"],
            {},
            "the clips of class 'word0' are in 2 groups, too few to hold out test",
        ),
        (SPOKEN[SPOKEN["group"] < "speaker03"], {"fold": 0}, "--data.num_folds: got 5, must be at most 3"),
        (SPOKEN.assign(split="train"), {"fold": 0}, "--data.fold: got 0, must be left out"),
        (SPOKEN.assign(split="test"), {}, "a test split but no train split"),
        (SPOKEN.assign(group=["", *SPOKEN["group"][1:]]), {}, "1 of 600 clips have no group: 00-000"),
        (SPOKEN[:8].assign(group=""), {"fold": 0}, "--data.num_folds: got 5, must be at most 2"),
    ],
)
def test_what_cannot_be_divided_is_refused_with_the_reason(
    clips: pd.DataFrame, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        divide(clips, DataConfig(**settings))


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two words of six speakers, five times each, as `word/speaker_take.wav`."""
    root = tmp_path_factory.mktemp("spoken")
    for i in range(60):
        word, speaker, take = ("no", "yes")[i % 2], i // 2 % 6, i // 12
        write_tone(root / word / f"s{speaker}_{take}.wav", 300 + 20 * i, 0.1, seed=i)
    return root


def test_groups_come_from_file_names_by_a_pattern(spoken: Path) -> None:
    splits = load_splits(DataConfig(source=str(spoken), group_pattern=r"^(s\d)_"))
    groups = [set(splits[split]["group"]) for split in SPLITS]
    assert set.union(*groups) == {f"s{i}" for i in range(6)} and sum(map(len, groups)) == 6
    with pytest.raises(UserError, match=r"--data.group_pattern: .* finds no group in 10 of 60 file names: s0_0.wav"):
        load_splits(DataConfig(source=str(spoken), group_pattern=r"^(s[1-9])_"))


def test_saved_splits_are_reused_and_leave_out_what_they_do_not_name(spoken: Path, tmp_path: Path) -> None:
    first = load_splits(DataConfig(source=str(spoken), split_seed=3))
    pq.write_table(first.table(), tmp_path / "splits.parquet")
    again = load_splits(DataConfig(source=str(spoken), split_seed=9, splits_file=str(tmp_path / "splits.parquet")))
    assert again.split_sha256() == first.split_sha256() and again.dataset_sha256() == first.dataset_sha256()

    table = first.table().to_pandas()
    table.drop(index=table.sample(10, random_state=0).index)[["id", "split"]].to_csv(tmp_path / "some.csv", index=False)
    some = load_splits(DataConfig(source=str(spoken), splits_file=str(tmp_path / "some.csv")))
    assert some.table().num_rows == 50
    assert any("10 of 60 clips are left out" in note for note in some.notes)

    both = pd.concat([table, table.assign(split="test")])
    both.to_csv(tmp_path / "both.csv", index=False)
    with pytest.raises(UserError, match=r"names clips for several splits"):
        load_splits(DataConfig(source=str(spoken), splits_file=str(tmp_path / "both.csv")))
    table[table["label"] == "yes"].to_csv(tmp_path / "one.csv", index=False)
    with pytest.raises(UserError, match=r"has one class, 'yes'"):
        load_splits(DataConfig(source=str(spoken), splits_file=str(tmp_path / "one.csv")))

    table.assign(id="gone/" + table["id"]).to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(UserError, match=r"--data.splits_file: 60 clips of .* are not in the source"):
        load_splits(DataConfig(source=str(spoken), splits_file=str(tmp_path / "other.csv")))


def test_validating_on_the_test_is_only_done_when_asked(spoken: Path) -> None:
    splits = load_splits(DataConfig(source=str(spoken), validate_on_test=True))
    assert list(splits.validation["id"]) == list(splits.test["id"]) and len(splits.train) == 48
    plain = load_splits(DataConfig(source=str(spoken)))
    assert not set(plain.validation["id"]) & set(plain.test["id"])


def test_a_given_validation_split_is_trained_on_where_the_test_validates(tmp_path: Path) -> None:
    for i in range(24):
        split, word = ("train", "validation", "test")[i // 2 % 3], ("no", "yes")[i % 2]
        write_tone(tmp_path / split / word / f"{i}.wav", 300 + 20 * i, 0.1, seed=i)
    splits = load_splits(DataConfig(source=str(tmp_path), validate_on_test=True))
    assert len(splits.train) == 16 and len(splits.test) == 8 and splits.validation is splits.test
