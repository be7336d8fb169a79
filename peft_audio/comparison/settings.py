"""What a comparison is told: which arms, how much each is given, and what they share."""

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

# By the names of their files.
RECIPES: dict[str, type[Any]] = {name: strategy.recipe for name, strategy in STRATEGIES.items()}
RECIPES |= {"baseline": BaselineRecipe}
# Why a method that a reader may look for is not an arm.
REFUSED = {
    "adalora": "AdaLoRA moves rank between layers in a training loop of its own (update_and_allocate after each step), "
    "and so would not train under the same conditions",
}


@dataclass(frozen=True)
class ArmConfig:
    """One way of training.

    Args:
        recipe: The recipe that makes its runs: that of a strategy, such as lora, or baseline, which has no learning
            rate.
        learning_rates: The rates that are tried first, all on validation; the recipe's default and its neighbours half
            a decade below and above when not given.
        flags: More settings of that recipe, by name, such as {lora.r: 4}.
        control: It shows what the task is worth instead of competing: it is not ranked, and may have settings that
            break the rules for the others.
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
            not decided, "own_arms", ", ".join(decided), "left to the comparison", "Take it out of the arm's flags."
        )


# Arms that can be named without being described; recipes/configs/compare_remedies.yaml describes others.
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
        output_dir: Folder of the comparison. What is in it already is not run again, as long as its settings are the
            same.
        overwrite: Make runs again that are finished in output_dir with other settings; without it they are kept, and
            nothing runs.
        arms: What is compared. One per strategy, by the name of its recipe, such as head_only, lora or full; dora,
            rslora, random_heads, head_only_mixture; controls (majority, log_mel, random_head_only, random_full); and
            the names in own_arms.
        own_arms: Arms of your own, in a YAML file, as in "own_arms: {lora_r2: {recipe: lora, flags: {lora.r: 2}}}".
            recipes/configs/compare_remedies.yaml describes remedies against overfitting; `peft-audio recipe
            compare_remedies` prints it.
        reference: The arm that the others are held against.
        metric: Test metric that ranks the arms and that claims are about. The best epoch and the best learning rate are
            chosen on validation by train.best_metric. `peft-audio report --metric` ranks finished runs by another one.
        margin: The difference in the metric that matters to you; claims are made against it. 0.02, two points, is a
            choice.
        trials: Learning rates that each arm is tried with on validation before any is extended. 1 takes the default
            rates as they are; nothing is ranked then, because what suits one arm may not suit another.
        extra_trials: While an arm's best rate is the lowest or highest that was tried, every arm gets one more trial,
            at most this many times; that arm looks further out, the others between their best rates.
        tuning_seeds: Seeds that a learning rate is tried with; never those of the final runs.
        seeds: Final runs of each arm, with fresh seeds, the only ones that read the test split. Below 5 nothing is
            ranked. A baseline, which draws nothing, is run once.
        folds: Divide the clips into so many folds and hold each out once, as data.fold does; rates are chosen in each
            anew, and the test clips of all are pooled.
        train_seconds: Give every arm this many seconds of training instead of as many epochs: a few steps of each are
            timed first, and train.epochs and the schedule are stretched over as many steps as fit.
        minutes: Cut the comparison so that it takes at most this many minutes, as far as a few timed steps of each arm
            tell. Cuts are made in this order: extra trials, training clips (10 per class remain), epochs (2 remain),
            the dearest arms; 2 learning rates and 5 seeds, which a ranking needs, last. The same command makes the
            same cuts again.
        jobs: Runs at once. By default one for each GPU; on a CPU, as many as it has cores (at most 4), except for the
            first seed of each arm, which is alone while its costs are measured. Given, it holds for all; above 1 on a
            CPU, no times are reported.
        data: Which recordings, and how much of each.
        model: Which pretrained encoder.
        augment: What happens to training clips.
        prefix_cache: What is done about parts that are frozen; all arms and seeds share what is kept.
        train: How the training goes.
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
            require(usable, "own_arms", name, "a name of letters, digits, - _ and .", "It names a folder.")
        require(len(set(self.arms)) == len(self.arms), "arms", self.arms, "different arms", "Name each once.")
        usable = self.reference in self.arms
        require(usable, "reference", self.reference, f"one of the arms: {', '.join(self.arms)}", "Add it, or name one.")
        require(0 < self.margin < 1, "margin", self.margin, "between 0 and 1", "Try 0.02, two points.")
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
        """Tell whether all arms start from `model.name`."""
        return not any("model.name" in self.all_arms()[arm].flags for arm in self.arms)

    def all_arms(self) -> dict[str, ArmConfig]:
        """Every arm that can be named, the user's own included."""
        return {**ARMS, **self.own_arms}

    def shared_settings(self, arm: ArmConfig) -> dict[str, Any]:
        """What every run of an arm is told, by flag: settings that differ from a recipe's own, then the arm's."""
        shared: dict[str, Any] = {"train.evaluate_train": self.train.evaluate_train}
        recipe = RECIPES[arm.recipe]()
        for section in SECTIONS:
            for name, value in changed_fields(getattr(self, section)).items():
                if hasattr(getattr(recipe, section, None), name):
                    shared[f"{section}.{name}"] = value
        if arm.flags.get("model.name", self.model.name) != self.model.name:
            shared.pop("model.revision", None)  # it is a revision of another repository
        return shared | arm.flags
