"""Declare the settings of baselines, which need no network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from peft_audio.config.data import DataConfig
from peft_audio.config.fields import NOT_STREAMED, check_ranges, setting
from peft_audio.errors import require


@dataclass(frozen=True)
class BaselineConfig:
    """Select a baseline. An encoder is worth what it adds to these.

    Args:
        kind: "majority" predicts the most frequent class of the training clips, with the classes' shares as
            probabilities; "log_mel" is logistic regression on the mean and standard deviation over time of 64 log-mel
            bands.
    """

    kind: Literal["majority", "log_mel"] = setting("log_mel", "training")


@dataclass(frozen=True)
class BaselineTrainConfig:
    """Hold those settings of other recipes that a run without a network needs, under the same names.

    Args:
        output_dir: Folder of the run. It must not exist yet, unless train.overwrite is true.
        overwrite: Replace output_dir if an earlier run made it.
        resume: Leave a finished run as it is. A run that was stopped starts from scratch, because fitting takes
            seconds.
        seed: Seed that the report names beside runs of other recipes; no baseline draws anything.
        evaluate_train: Evaluate the training clips as well, for the gap to validation.
        evaluate_test: Read the test split. Turn it off while choosing settings.
    """

    output_dir: str = setting("runs/baseline", "output", "decided_by_comparison")
    overwrite: bool = setting(False, "output", "decided_by_comparison")
    resume: bool = setting(False, "output")
    seed: int = setting(0, "input", "per_run", "decided_by_comparison", "show_on_card", takes="seed")
    evaluate_train: bool = setting(False, "evaluation", "per_run", sources=NOT_STREAMED)
    evaluate_test: bool = setting(True, "evaluation", "per_run", "decided_by_comparison")

    def __post_init__(self) -> None:
        require(bool(self.output_dir), "train.output_dir", "''", "a folder", "Try runs/mine.")
        check_ranges("train", self)


@dataclass(frozen=True)
class BaselineRecipe:
    """Fit a control without a network.

    Args:
        data: Recordings. Every clip is read as in evaluation: from its start, up to data.max_eval_seconds.
        train: Folder of the run, and the splits that it reads.
        baseline: Kind of baseline.
    """

    data: DataConfig = field(default_factory=DataConfig)
    train: BaselineTrainConfig = field(default_factory=BaselineTrainConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)

    def __post_init__(self) -> None:
        stays = not self.data.streaming
        require(stays, "data.streaming", "true", "false: a baseline is fitted to all clips at once", "Leave it out.")
