"""Define the settings of recipes and baselines, and refuse combinations that cannot run."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal

from peft_audio.config.fields import NOT_STREAMED, changed_fields, check_ranges, setting, settings_of
from peft_audio.config.settings import AugmentConfig, DataConfig, ModelConfig, PrefixCacheConfig, TrainConfig
from peft_audio.errors import UserError, require


@dataclass(frozen=True)
class BaselineConfig:
    """Select a baseline, against which the worth of an encoder is measured.

    Args:
        kind: "majority" predicts the most frequent class of the training clips, with the classes' shares as
            probabilities; "log_mel" is logistic regression on the mean and standard deviation over time of 64 log-mel
            bands.
    """

    kind: Literal["majority", "log_mel"] = setting("log_mel", "training")


@dataclass(frozen=True)
class BaselineTrainConfig:
    """Settings of a run without a network, with the names of the other recipes.

    Args:
        output_dir: Folder of the run. It must not exist yet, unless train.overwrite is true.
        overwrite: Replace output_dir if an earlier run made it.
        resume: Leave a finished run as it is. A run that was stopped starts from scratch, because fitting takes
            seconds.
        seed: Seed in the report, for comparisons with other recipes. Baselines use no random numbers.
        evaluate_train: Evaluate the training clips too, to show the gap to validation.
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
        downloaded = not self.data.streaming
        allowed = "false, because a baseline is fitted to all clips at once"
        require(downloaded, "data.streaming", "true", allowed, "Leave it out.")


@dataclass(frozen=True)
class Recipe:
    """Settings that recipes of all strategies share.

    Args:
        data: Recordings, and the length of each that is used.
        model: Pretrained encoder.
        augment: Changes of training clips.
        prefix_cache: Cache of the output of frozen layers.
        train: Training.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    prefix_cache: PrefixCacheConfig = field(default_factory=PrefixCacheConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    quantizes: ClassVar[bool] = False
    takes_random_encoder: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.model.pretrained and not self.takes_random_encoder:
            raise UserError(
                "--model.pretrained: got False, must be true, because the adapter of this recipe needs a base that can "
                "be loaded again. Use recipes/full.py, head_only.py, last_n_layers.py or bias_only.py, which save a "
                "whole model."
            )
        if self.model.quantization != "none" and not self.quantizes:
            raise UserError(
                f"--model.quantization: got {self.model.quantization}, must be none, because only "
                "recipes/lora.py trains on a quantised encoder. Use that recipe, or leave it out."
            )
        if self.data.streaming:
            steps = self.train.max_steps
            require(steps is not None, "train.max_steps", steps, "given with data.streaming", "Try 1000.")
            for section in ("prefix_cache", "train"):
                given = getattr(self, section)
                for name, value in changed_fields(given).items():
                    usable = "stream" in settings_of(given)[name].source_kinds
                    allowed = "left out with data.streaming, which does not know the clips in advance"
                    require(usable, f"{section}.{name}", value, allowed, "Leave it out.")


@dataclass(frozen=True)
class CheckSettings:
    """Settings of `peft-audio check` and `evaluate`.

    Args:
        data: Recordings and their splits.
    """

    data: DataConfig = field(default_factory=DataConfig)


def own_sections() -> set[str]:
    """Return the sections that belong to a single recipe; each has the name of its recipe."""
    shared = {section.name for section in fields(Recipe)}
    recipes = (*Recipe.__subclasses__(), BaselineRecipe)
    return {section.name for recipe in recipes for section in fields(recipe)} - shared
