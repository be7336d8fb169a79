"""What the controls without a network are told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from peft_audio.config.data import DataConfig
from peft_audio.config.fields import NOT_STREAMED, check_ranges, setting
from peft_audio.errors import require


@dataclass(frozen=True)
class BaselineConfig:
    """A control without a network.

    Args:
        kind: "majority" says the most frequent class of the training clips, with the classes' shares as probabilities;
            "log_mel" is logistic regression on mean and standard deviation over time of 64 log-mel bands. What an
            encoder is worth is what it adds to these.
    """

    kind: Literal["majority", "log_mel"] = setting("log_mel", "training")


@dataclass(frozen=True)
class BaselineTrainConfig:
    """What a run without a network needs of the other recipes' settings, under the same names.

    Args:
        output_dir: Folder of the run. It must not exist yet, unless train.overwrite is true.
        overwrite: Replace output_dir if an earlier run made it.
        resume: Leave a finished run as it is; one that was stopped starts afresh, because fitting takes seconds.
        seed: For the report, beside runs of other recipes; no baseline draws anything.
        evaluate_train: Judge the training clips as well, for the gap to validation.
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
        data: Which recordings. Every clip is heard as in evaluation: from its start, up to data.max_eval_seconds.
        train: Where the run goes, and what it reads.
        baseline: Which control.
    """

    data: DataConfig = field(default_factory=DataConfig)
    train: BaselineTrainConfig = field(default_factory=BaselineTrainConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)

    def __post_init__(self) -> None:
        stays = not self.data.streaming
        require(stays, "data.streaming", "true", "false: a baseline is fitted to all clips at once", "Leave it out.")
