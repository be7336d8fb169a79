"""Declare the settings of the recordings: their source, their splits and the length that is read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from peft_audio.config.fields import (
    NOT_STREAMED,
    ON_HUB,
    WITH_COLUMNS,
    changed_fields,
    check_ranges,
    setting,
    settings_of,
)
from peft_audio.errors import UserError, require


@dataclass(frozen=True)
class DataConfig:
    r"""Select recordings, their splits and the length that is read of each.

    Args:
        source: "bundled" (spoken digits, six speakers); a folder with one subfolder per class, optionally under train/,
            validation/ and test/; a manifest (.csv, .tsv, .jsonl, .parquet) with the columns path and label, and
            perhaps split, group, start_seconds, end_seconds; or the id of a dataset on the Hub, such as org/name.
        revision: Branch, tag or commit of a Hub dataset; the commit that was used is recorded either way.
        config_name: Name of the configuration of a Hub dataset that has several.
        split_names: Meaning of the split names of a Hub dataset, where the names do not say it, as in
            "{clean.100: train, clean.dev: validation, clean.test: test}"; others are not used.
        streaming: Read the training split of a Hub dataset over the network while training, instead of downloading it.
            Needs train.max_steps; train.epochs then says into how many parts those are divided, each validated. The
            other splits are downloaded, so that every clip of them counts once.
        shuffle_buffer: Clips among which a streamed one is drawn; 1000 as in datasets.
        audio_column: Column with the recordings, of a manifest (path when not given) or a Hub dataset (its only audio
            column when not given).
        label_column: Column with the labels, of a manifest (label when not given) or a Hub dataset (its only class
            label column when not given).
        group_column: Column of a manifest or a Hub dataset with groups that a split must not divide: speakers,
            artists, source recordings. The column group of a manifest is used by default.
        group_pattern: Regular expression for the group in a clip's file name; its first parenthesis is the group, or
            all that it matches. In esc10/rain/1-17367-A.ogg, "^(\d)-" finds fold 1.
        splits_file: Divide as an earlier run did: its splits.parquet, or a table (.csv, .tsv, .jsonl, .parquet) with
            the columns id and split. Clips that it does not name are left out.
        fold: Hold out this fold, from 0, for the test and the next one for validation. Folds keep groups whole; with
            as many groups as folds they are the groups, in the order of their names.
        num_folds: Number of folds that clips are divided into where data.fold is given; 5 as in ESC-50 (Piczak, 2015).
        split_seed: Decides the splits that are made. Never changes with train.seed.
        validation_share: Share of each class's clips held out for validation where the source has no such split; our
            choice.
        test_share: Share of each class's clips held out for the test where the source has no such split; our choice.
        validate_on_test: Choose the best epoch on the test clips themselves, as some tutorials do. It flatters, and the
            report says so; for reproducing published figures only.
        max_train_clips: Train on this many clips only, balanced over the classes as far as possible and drawn by
            split_seed, to see how fewer recordings would do. All of them when not given.
        window_seconds: Cut recordings into windows of this length, each a clip of its own. Predictions of a
            recording's windows are averaged, and metrics count recordings. Not cut when not given.
        hop_seconds: From one window's start to the next one's; window_seconds when not given. The last window ends
            where the recording does.
        max_seconds: A longer clip gives a random crop of this length in training, another one each epoch. The default
            is a choice for memory: attention grows with the square of the length.
        max_eval_seconds: Validation, test and prediction read a clip whole, up to this length from its start. The
            default is the length of a clip in GTZAN, the common music genre dataset.
        on_bad_clip: Every clip is decoded once before training. "error" stops and lists those that are unreadable,
            empty, silent or hold NaN; "skip" leaves them out and lists them in the run's folder.
        max_bad_share: Stop if more than this share of the clips is bad, even with skip; a choice.
        num_workers: Processes that decode ahead of training; 0 decodes in the training process. By default 4 beside a
            GPU, and 0 on a CPU, where they would take the cores that training needs.
    """

    source: str = setting("bundled", "splits")
    revision: str | None = setting(None, "splits", sources=ON_HUB)
    config_name: str | None = setting(None, "splits", sources=ON_HUB)
    split_names: dict[str, Literal["train", "validation", "test"]] | None = setting(None, "splits", sources=ON_HUB)
    streaming: bool = setting(False, "training", sources=ON_HUB)
    shuffle_buffer: int = setting(1000, "training", sources=ON_HUB, takes="count")
    audio_column: str | None = setting(None, "splits", sources=WITH_COLUMNS)
    label_column: str | None = setting(None, "splits", sources=WITH_COLUMNS)
    group_column: str | None = setting(None, "splits", sources=("manifest", "hub"))
    group_pattern: str | None = setting(None, "splits", sources=NOT_STREAMED)
    splits_file: str | None = setting(None, "splits", sources=NOT_STREAMED)
    fold: int | None = setting(None, "splits", "per_run", "decided_by_comparison", "show_on_card", sources=NOT_STREAMED)
    num_folds: int = setting(5, "splits")
    split_seed: int = setting(0, "splits", takes="seed")
    validation_share: float = setting(0.15, "splits", takes="part")
    test_share: float = setting(0.2, "splits", takes="part")
    validate_on_test: bool = setting(False, "training", sources=NOT_STREAMED)
    max_train_clips: int | None = setting(None, "training", "equal_between_arms", sources=NOT_STREAMED, takes="count")
    window_seconds: float | None = setting(
        None, "input", "equal_between_arms", "show_on_card", sources=NOT_STREAMED, takes="seconds"
    )
    hop_seconds: float | None = setting(None, "input", "equal_between_arms", sources=NOT_STREAMED, takes="seconds")
    max_seconds: float = setting(10.0, "input", "equal_between_arms", "show_on_card", takes="seconds")
    max_eval_seconds: float = setting(30.0, "input", "equal_between_arms", takes="seconds")
    on_bad_clip: Literal["error", "skip"] = setting("error", "splits")
    max_bad_share: float = setting(0.1, "splits", takes="share")
    num_workers: int | None = setting(None, "cost", takes="not_negative")

    def __post_init__(self) -> None:
        require(
            bool(self.source),
            "data.source",
            "''",
            '"bundled", a folder, a manifest or a Hub id',
            "Give the folder of your recordings.",
        )
        check_ranges("data", self)
        total = self.validation_share + self.test_share
        require(
            total < 1,
            "data.test_share",
            self.test_share,
            f"below {1 - self.validation_share:g}, because data.validation_share is {self.validation_share:g}",
            "Lower one of the two so that clips remain to train on.",
        )
        self._check_windows()
        self._check_division()
        self._check_streaming()

    def _check_windows(self) -> None:
        window, hop = self.window_seconds, self.hop_seconds
        require(
            window is None or window <= self.max_eval_seconds,
            "data.window_seconds",
            window,
            f"data.max_eval_seconds ({self.max_eval_seconds:g}) or less",
            "Lower it: windows are for recordings too long to be read at once.",
        )
        require(
            hop is None or (window is not None and hop <= window),
            "data.hop_seconds",
            hop,
            "data.window_seconds or less" if window else "left out without data.window_seconds",
            "A longer hop would leave gaps that no window covers.",
        )

    def _check_division(self) -> None:
        folds = self.num_folds
        require(folds >= 3, "data.num_folds", folds, "3 or more: one to test, one to validate", "Try 5.")
        require(
            self.fold is not None or folds == 5,
            "data.num_folds",
            folds,
            "left out without data.fold",
            "Give --data.fold as well, such as 0.",
        )
        usable = self.fold is None or 0 <= self.fold < folds
        require(usable, "data.fold", self.fold, f"0 to {folds - 1} with {folds} folds", "Try 0.")
        for name in ("fold", "group_column"):
            other = {"fold": "splits_file", "group_column": "group_pattern"}[name]
            both = getattr(self, name) is not None and getattr(self, other) is not None
            require(not both, f"data.{name}", getattr(self, name), f"left out beside data.{other}", "Keep one of them.")
        if self.group_pattern is not None:
            try:
                re.compile(self.group_pattern)
            except re.error as error:
                raise UserError(
                    f"--data.group_pattern: got {self.group_pattern!r}, must be a regular expression ({error}). "
                    "Try '^([^-_]+)' for what stands before the first - or _."
                ) from error

    def _check_streaming(self) -> None:
        for name, value in changed_fields(self).items() if self.streaming else ():
            usable = "stream" in settings_of(self)[name].source_kinds
            allowed = "left out with data.streaming, which takes the dataset's own splits and clips as they come"
            require(usable, f"data.{name}", value, allowed, "Download the dataset, or leave it out.")
