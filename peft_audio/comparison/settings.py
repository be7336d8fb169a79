"""Define the settings of a comparison: arms, their budgets and their shared settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

from peft_audio.config.fields import changed_fields, positive
from peft_audio.config.recipes import BaselineRecipe
from peft_audio.config.settings import (
    SECTIONS,
    AugmentConfig,
    DataConfig,
    ModelConfig,
    PrefixCacheConfig,
    TrainConfig,
    settings_decided_by_comparison,
)
from peft_audio.errors import UserError, require
from peft_audio.strategies import STRATEGIES

# Recipes by the names of their files.
RECIPES: dict[str, type[Any]] = {name: strategy.recipe for name, strategy in STRATEGIES.items()}
RECIPES |= {"baseline": BaselineRecipe}
# Reasons why a known method is not offered as an arm.
REFUSED = {
    "adalora": "AdaLoRA needs its own training loop (update_and_allocate after each step) to move rank between layers, "
    "so it would not train under the same conditions",
}


@dataclass(frozen=True)
class ArmConfig:
    """Settings of one arm.

    Args:
        recipe: Recipe of its runs: that of a strategy, such as lora, or baseline, which has no learning rate.
        learning_rates: Rates that are tried first, all on validation. Default: that of the recipe and its neighbours
            half a decade below and above.
        flags: Further settings of the recipe by name, such as {lora.r: 4}.
        control: Show a baseline for the task instead of competing. Controls are not ranked, and need not keep the rules
            for the other arms.
    """

    recipe: str
    learning_rates: list[float] = field(default_factory=list)
    flags: dict[str, Any] = field(default_factory=dict)
    control: bool = False

    def __post_init__(self) -> None:
        why = REFUSED.get(self.recipe.lower())
        require(why is None, "own_arms", self.recipe, f"one of {', '.join(RECIPES)}: {why}", "Try lora.")
        require(self.recipe in RECIPES, "own_arms", self.recipe, f"one of {', '.join(RECIPES)}", "Try lora.")
        rates = self.learning_rates
        usable = all(map(positive, rates)) and len(set(rates)) == len(rates)
        require(usable, "own_arms", rates, "different learning rates above 0", "Leave them out, or try [1e-3].")
        decided = [name for name in self.flags if name in settings_decided_by_comparison()]
        require(
            not decided, "own_arms", ", ".join(decided), "left to the comparison", "Remove it from the arm's flags."
        )


# Predefined arms; recipes/configs/compare_remedies.yaml defines others.
ARMS = {name: ArmConfig(name) for name in STRATEGIES} | {
    "dora": ArmConfig("lora", flags={"lora.use_dora": True}),
    "rslora": ArmConfig("lora", flags={"lora.use_rslora": True}),
    "random_heads": ArmConfig("attention_heads", flags={"attention_heads.choose": "random"}),
    "head_only_mixture": ArmConfig("head_only", flags={"model.layer_weighted_sum": True}),
    "majority": ArmConfig("baseline", flags={"baseline.kind": "majority"}, control=True),
    "log_mel": ArmConfig("baseline", flags={"baseline.kind": "log_mel"}, control=True),
    "random_head_only": ArmConfig("head_only", flags={"model.pretrained": False}, control=True),
    "random_full": ArmConfig(
        "full", [3e-4, 1e-3, 3e-3], flags={"model.pretrained": False, "full.train_cnn": True}, control=True
    ),
}


@dataclass(frozen=True)
class CompareRecipe:
    """Compare ways of fine-tuning under equal conditions.

    Args:
        output_dir: Folder of the comparison. Finished runs in it with the same settings are not repeated.
        overwrite: Repeat finished runs in output_dir that have other settings. Otherwise they are kept, and the
            comparison stops.
        arms: Arms to compare: the name of a strategy's recipe, such as head_only, lora or full; dora, rslora,
            random_heads, head_only_mixture; a control (majority, log_mel, random_head_only, random_full); or a name in
            own_arms.
        own_arms: Your own arms, in a YAML file, such as "own_arms: {lora_r2: {recipe: lora, flags: {lora.r: 2}}}".
            recipes/configs/compare_remedies.yaml defines remedies against overfitting; `peft-audio recipe
            compare_remedies` prints it.
        reference: Arm that the others are compared with.
        metric: Test metric that ranks the arms and that claims refer to. The best epoch and the best learning rate are
            chosen on validation by train.best_metric. `peft-audio report --metric` ranks finished runs by another one.
        margin: Smallest difference in the metric that matters to you; claims refer to it. The default, 0.02, is our
            choice.
        trials: Number of learning rates that each arm first tries on validation. With 1, each arm uses its default
            rate, and nothing is ranked, because one arm's rate may suit it less than another's.
        extra_trials: Largest number of additional trials of every arm. One is added while the best rate of an arm is
            the lowest or highest that was tried: beyond it for that arm, near the best rate for the others.
        tuning_seeds: Number of seeds per tried learning rate; they differ from those of the final runs.
        seeds: Number of final runs of each arm, with fresh seeds; only these read the test split. With fewer than 5,
            nothing is ranked. A baseline uses no random numbers and is run once.
        folds: Divide the clips into this number of folds and hold out each once, see data.fold. Rates are chosen in
            each fold, and the test clips of all folds are pooled.
        train_seconds: Seconds of training of every arm, instead of epochs. A few steps of each arm are timed first;
            then train.epochs and the schedule are extended over the steps that fit.
        minutes: Largest duration of the comparison in minutes, estimated from a few timed steps of each arm. It
            is cut in this order: extra trials, training clips (to 10 per class), epochs (to 2), rates and seeds
            that a ranking does not need, the most expensive arms. The 2 rates and 5 seeds that a ranking needs
            are cut last. The same command makes the same cuts again.
        jobs: Number of runs side by side. Default: one per GPU; on a CPU one per core, at most 4, but the first seed of
            each arm runs alone to measure its costs. A given number holds for all runs; with more than 1 on a CPU, no
            times are reported.
        data: Recordings and their splits.
        model: Pretrained encoder.
        augment: Augmentation of training clips.
        prefix_cache: Feature cache of frozen layers, which all arms and seeds share.
        train: Training.
    """

    output_dir: str = "runs/compare"
    overwrite: bool = False
    arms: list[str] = field(
        default_factory=lambda: ["head_only", "last_n_layers", "attention_heads", "lora", "full", "majority", "log_mel"]
    )
    own_arms: dict[str, ArmConfig] = field(default_factory=dict)
    reference: str = "full"
    metric: Literal["macro_f1", "accuracy", "balanced_accuracy"] = "macro_f1"
    margin: float = 0.02
    trials: int = 3
    extra_trials: int = 1
    tuning_seeds: int = 1
    seeds: int = 5
    folds: int | None = None
    train_seconds: float | None = None
    minutes: float | None = None
    jobs: int | None = None
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    prefix_cache: PrefixCacheConfig = field(default_factory=PrefixCacheConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(evaluate_train=True))

    def __post_init__(self) -> None:
        require(bool(self.output_dir), "output_dir", "''", "a folder", "Try runs/compare.")
        require(bool(self.arms), "arms", "[]", "at least one arm", "Try [lora, full].")
        for name in self.arms:
            close = get_close_matches(name, self.all_arms(), n=1)
            hint = f"Did you mean {close[0]}? Otherwise describe" if close else "Correct it, or describe"
            hint += " it in own_arms, as recipes/configs/compare_remedies.yaml does for remedies against overfitting."
            require(name in self.all_arms(), "arms", name, f"among {', '.join(self.all_arms())}", hint)
            usable = name.replace("_", "").replace("-", "").replace(".", "").isalnum() and not name.startswith(".")
            require(usable, "own_arms", name, "a name of letters, digits, - _ and .", "Folders are named after it.")
        require(len(set(self.arms)) == len(self.arms), "arms", self.arms, "different arms", "Name each once.")
        usable = self.reference in self.arms
        require(usable, "reference", self.reference, f"one of the arms: {', '.join(self.arms)}", "Add it, or name one.")
        require(0 < self.margin < 1, "margin", self.margin, "between 0 and 1", "Try 0.02.")
        for name, least in (("trials", 1), ("extra_trials", 0), ("tuning_seeds", 1), ("seeds", 1)):
            value = getattr(self, name)
            require(value >= least, name, value, f"{least} or more", "Leave it out for the default.")
        usable = self.folds is None or self.folds >= 3
        require(usable, "folds", self.folds, "3 or more: test, validation and the rest", "Try 5.")
        usable = self.train_seconds is None or positive(self.train_seconds)
        require(usable, "train_seconds", self.train_seconds, "a number of seconds above 0", "Leave it out.")
        usable = self.minutes is None or positive(self.minutes)
        require(usable, "minutes", self.minutes, "a number of minutes above 0", "Try 10.")
        require(self.jobs is None or self.jobs >= 1, "jobs", self.jobs, "1 or more", "Leave it out.")
        self._check_shared()

    def _check_shared(self) -> None:
        for section in SECTIONS:
            for name, value in changed_fields(getattr(self, section)).items():
                flag, allowed = f"{section}.{name}", "left to the comparison, which decides it for every run"
                fix = "Try --folds 5, which holds out each once." if flag == "data.fold" else "Leave it out."
                require(flag not in settings_decided_by_comparison(), flag, value, allowed, fix)
        steps = self.train.max_steps
        clash = self.train_seconds is not None and steps is not None
        require(not clash, "train.max_steps", steps, "left out with train_seconds", "Give one budget.")
        if self.data.streaming:
            raise UserError("--data.streaming: got True, must be false: a comparison reads the same clips many times.")

    def has_one_encoder(self) -> bool:
        """Return whether all arms start from `model.name`."""
        return not any("model.name" in self.all_arms()[arm].flags for arm in self.arms)

    def all_arms(self) -> dict[str, ArmConfig]:
        """Return the predefined arms and those of `own_arms`, by name."""
        return {**ARMS, **self.own_arms}

    def shared_settings(self, arm: ArmConfig) -> dict[str, Any]:
        """Return the settings of every run of an arm by dotted name: changed shared settings, and those of the arm."""
        shared: dict[str, Any] = {"train.evaluate_train": self.train.evaluate_train}
        recipe = RECIPES[arm.recipe]()
        for section in SECTIONS:
            for name, value in changed_fields(getattr(self, section)).items():
                if hasattr(getattr(recipe, section, None), name):
                    shared[f"{section}.{name}"] = value
        if arm.flags.get("model.name", self.model.name) != self.model.name:
            shared.pop("model.revision", None)  # the revision belongs to another repository
        return shared | arm.flags
