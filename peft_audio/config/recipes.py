"""What each strategy is told, and each recipe's settings as a whole, with its own defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from peft_audio.config.augment import AugmentConfig
from peft_audio.config.data import DataConfig
from peft_audio.config.feature_cache import PrefixCacheConfig
from peft_audio.config.fields import changed_fields, settings_of, share
from peft_audio.config.model import ModelConfig
from peft_audio.config.train import TrainConfig
from peft_audio.errors import UserError, require

# Which recipe a section that is not everybody's belongs to.
OWN_SECTIONS = {
    "lora": "recipes/lora.py",
    "last_n_layers": "recipes/last_n_layers.py",
    "full": "recipes/full.py",
    "baseline": "recipes/baseline.py",
    "attention_heads": "recipes/attention_heads.py",
}


@dataclass(frozen=True)
class LoraConfig:
    """LoRA: low-rank changes of linear layers (Hu et al., 2021, arXiv 2106.09685).

    Args:
        r: Rank of the change. 8 is PEFT's default.
        alpha: The change is scaled by alpha / r (by alpha / sqrt(r) with rsLoRA). Twice the rank, as is common.
        dropout: Dropout on the input of each change, in training only. 0 as PEFT's default.
        targets: Which linear layers of the encoder's transformer: "all-linear", "attention", "feed-forward", or a list
            of their names, such as [q_proj, v_proj]. All of them, as in QLoRA (Dettmers et al., 2023).
        layers: Numbers of the transformer layers to change, such as [4, 5]; all of them when not given.
        use_dora: Learn magnitudes apart from directions (Liu et al., 2024, arXiv 2402.09353).
        use_rslora: Scale by alpha / sqrt(r) (Kalajdzievski, 2023, arXiv 2312.03732).
    """

    r: int = 8
    alpha: int = 16
    dropout: float = 0.0
    targets: Literal["all-linear", "attention", "feed-forward"] | list[str] = "all-linear"
    layers: list[int] | None = None
    use_dora: bool = False
    use_rslora: bool = False

    def __post_init__(self) -> None:
        require(self.r >= 1, "lora.r", self.r, "a rank of 1 or more", "Try 8.")
        require(self.alpha >= 1, "lora.alpha", self.alpha, "1 or more", "Try twice lora.r.")
        require(share(self.dropout), "lora.dropout", self.dropout, "0 or more, below 1", "Try 0.1.")
        require(bool(self.targets), "lora.targets", "[]", "at least one layer name", "Try all-linear.")
        if self.layers is not None:
            usable = bool(self.layers) and min(self.layers) >= 0
            require(usable, "lora.layers", self.layers, "layer numbers from 0", "Leave it out for all layers.")


@dataclass(frozen=True)
class LastNLayersConfig:
    """Unfreezing the last layers of the encoder's transformer.

    Args:
        n: How many layers train, counted from the last. A choice: a third of the bundled encoder, a sixth of
            wav2vec2-base.
        part: "layer" trains the whole of each, "attention" its attention only.
    """

    n: int = 2
    part: Literal["layer", "attention"] = "layer"

    def __post_init__(self) -> None:
        require(self.n >= 1, "last_n_layers.n", self.n, "1 or more", "Try 2, or recipes/head_only.py for none.")


@dataclass(frozen=True)
class FullConfig:
    """Full fine-tuning.

    Args:
        train_cnn: Train the convolutional feature encoder too, as the tutorial that this project grew from did. Off by
            default, as wav2vec 2.0 was fine-tuned (Baevski et al., 2020); comparisons take the default as the
            reference.
    """

    train_cnn: bool = False


@dataclass(frozen=True)
class AttentionHeadsConfig:
    """A few attention heads of the encoder's transformer train.

    Args:
        count: How many heads, of all layers together. 4 of the bundled encoder's 24 have about as many weights as LoRA
            trains there by default; in wav2vec2-base, which has 144, 7 do.
        choose: "gradient": the heads that the loss depends on most once a fresh head was fitted (Michel et al., 2019,
            arXiv 1905.10650); "random": drawn by train.seed, the control for it.
        scoring_batches: Batches of training clips that the heads are scored on, at most an epoch of them; with
            data.streaming, training goes on behind them. A choice: 16 hold 256 clips by default.
        head_steps: Steps, each over all of those clips, for which the fresh head is fitted before the scores are taken.
            It starts anew afterwards, so that training is as long as in other recipes. A choice.
    """

    count: int = 4
    choose: Literal["gradient", "random"] = "gradient"
    scoring_batches: int = 16
    head_steps: int = 200

    def __post_init__(self) -> None:
        for name in ("count", "scoring_batches", "head_steps"):
            value = getattr(self, name)
            require(value >= 1, f"attention_heads.{name}", value, "1 or more", "Leave it out for the default.")


@dataclass(frozen=True)
class Recipe:
    """What all recipes share.

    Args:
        data: Which recordings, and how much of each.
        model: Which pretrained encoder.
        augment: What happens to training clips.
        prefix_cache: What is done about parts that are frozen.
        train: How the training goes.
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
                "--model.pretrained: got False, must be true: there would be no base to load this recipe's adapter "
                "onto. Use recipes/full.py, head_only.py, last_n_layers.py or bias_only.py, which save a whole model."
            )
        if self.model.quantization != "none" and not self.quantizes:
            raise UserError(
                f"--model.quantization: got {self.model.quantization}, must be none: only recipes/lora.py trains "
                "on a quantised encoder. Use that recipe, or leave it out."
            )
        if self.data.streaming:
            steps = self.train.max_steps
            require(steps is not None, "train.max_steps", steps, "given with data.streaming", "Try 1000.")
            for section in ("prefix_cache", "train"):
                given = getattr(self, section)
                for name, value in changed_fields(given).items():
                    usable = "stream" in settings_of(given)[name].source_kinds
                    words = "left out with data.streaming, which reads each clip once and knows none of them before"
                    require(usable, f"{section}.{name}", value, words, "Leave it out.")


@dataclass(frozen=True)
class CheckSettings:
    """What `peft-audio check` is told.

    Args:
        data: Which recordings, and how they are to be divided.
    """

    data: DataConfig = field(default_factory=DataConfig)


@dataclass(frozen=True)
class LoraRecipe(Recipe):
    """Fine-tune an audio classifier with LoRA adapters.

    Args:
        lora: What LoRA changes.
    """

    train: TrainConfig = field(default_factory=lambda: TrainConfig(output_dir="runs/lora", learning_rate=1e-3))
    lora: LoraConfig = field(default_factory=LoraConfig)
    # LoRA alone trains no weight of the encoder.
    quantizes: ClassVar[bool] = True


@dataclass(frozen=True)
class HeadOnlyRecipe(Recipe):
    """Train a classification head on a frozen encoder."""

    train: TrainConfig = field(default_factory=lambda: TrainConfig(output_dir="runs/head_only", learning_rate=1e-3))
    takes_random_encoder: ClassVar[bool] = True


@dataclass(frozen=True)
class BiasOnlyRecipe(Recipe):
    """Train the biases of an audio classifier and its head."""

    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(output_dir="runs/bias_only", learning_rate=1e-2, head_learning_rate=1e-3)
    )
    takes_random_encoder: ClassVar[bool] = True


@dataclass(frozen=True)
class IA3Recipe(Recipe):
    """Fine-tune an audio classifier with IA3's scaling vectors."""

    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(output_dir="runs/ia3", learning_rate=3e-2, head_learning_rate=1e-3)
    )


@dataclass(frozen=True)
class LastNLayersRecipe(Recipe):
    """Fine-tune the last layers of an audio classifier.

    Args:
        last_n_layers: How many layers, and what of them.
    """

    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            output_dir="runs/last_n_layers", learning_rate=1e-4, head_learning_rate=1e-3
        )
    )
    last_n_layers: LastNLayersConfig = field(default_factory=LastNLayersConfig)
    takes_random_encoder: ClassVar[bool] = True


@dataclass(frozen=True)
class FullRecipe(Recipe):
    """Fine-tune a whole audio classifier.

    Args:
        full: What is left frozen.
    """

    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(output_dir="runs/full", learning_rate=3e-4, head_learning_rate=1e-3)
    )
    full: FullConfig = field(default_factory=FullConfig)
    takes_random_encoder: ClassVar[bool] = True


@dataclass(frozen=True)
class AttentionHeadsRecipe(Recipe):
    """Fine-tune a few attention heads of an audio classifier.

    Args:
        attention_heads: How many heads, and how they are chosen.
    """

    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            output_dir="runs/attention_heads", learning_rate=1e-3, head_learning_rate=1e-3
        )
    )
    attention_heads: AttentionHeadsConfig = field(default_factory=AttentionHeadsConfig)
