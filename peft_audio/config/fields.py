"""Every setting of a run, with its unit, its default and where the default comes from.

A field's docstring is its `--help` text. `__post_init__` refuses what no run can use, so that nothing after the
configuration has to check it again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal


class UserError(ValueError):
    """Something the user can mend. The message says what, which value, what is allowed and how to fix it."""

    def __init__(self, message: str):
        # A DataLoader's worker process wraps its traceback around the message; the user needs the message.
        super().__init__(message.rpartition("UserError: ")[2].strip())


def _require(holds: bool, flag: str, value: Any, allowed: str, fix: str) -> None:
    if not holds:
        raise UserError(f"--{flag}: got {value}, must be {allowed}. {fix}")


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _share(value: float) -> bool:
    return 0 <= value < 1


@dataclass(frozen=True)
class DataConfig:
    """Which recordings, and how much of each.

    Args:
        source: "bundled" (spoken digits, six speakers) or a folder with one subfolder a class, optionally under
            train/, validation/ and test/.
        max_seconds: A longer clip gives a random crop of this length in training, another one each epoch. The default
            is a choice for memory: attention grows with the square of the length.
        max_eval_seconds: Validation, test and prediction read a clip whole, up to this length from its start. The
            default is the length of a clip in GTZAN, the common music genre dataset.
        split_seed: Decides the splits that a folder without its own gets. Never changes with train.seed.
        validation_share: Share of each class's clips held out for validation where the folder has no validation/; our
            choice.
        test_share: Share of each class's clips held out for the test where the folder has no test/; our choice.
        num_workers: Processes that decode ahead of training; 0 decodes in the training process. By default 4 beside a
            GPU, and 0 on a CPU, where they would take the cores that training needs.
    """

    source: str = "bundled"
    max_seconds: float = 10.0
    max_eval_seconds: float = 30.0
    split_seed: int = 0
    validation_share: float = 0.15
    test_share: float = 0.2
    num_workers: int | None = None

    def __post_init__(self) -> None:
        _require(bool(self.source), "data.source", "''", '"bundled" or a folder', "Give the folder of your recordings.")
        for name in ("max_seconds", "max_eval_seconds"):
            value = getattr(self, name)
            _require(_positive(value), f"data.{name}", value, "a number of seconds above 0", "Try 10.")
        for name in ("validation_share", "test_share"):
            value = getattr(self, name)
            _require(0 < value < 1, f"data.{name}", value, "between 0 and 1", "Try 0.2.")
        total = self.validation_share + self.test_share
        _require(
            total < 1,
            "data.test_share",
            self.test_share,
            f"below {1 - self.validation_share:g}, because data.validation_share is {self.validation_share:g}",
            "Lower one of the two so that clips remain to train on.",
        )
        _require(0 <= self.split_seed < 2**32, "data.split_seed", self.split_seed, "0 to 4294967295", "Try 0.")
        workers = self.num_workers
        _require(workers is None or workers >= 0, "data.num_workers", workers, "0 or more", "Leave it out, or try 2.")


@dataclass(frozen=True)
class ModelConfig:
    """Which pretrained encoder.

    Args:
        name: "wav2vec2-nano" (bundled, English synthetic speech), a Hub id such as facebook/wav2vec2-base, or a folder
            made by save_pretrained.
        revision: Branch, tag or commit of a Hub id; the commit that was used is recorded either way.
    """

    name: str = "wav2vec2-nano"
    revision: str | None = None

    def __post_init__(self) -> None:
        _require(bool(self.name), "model.name", "''", "an encoder", "Try wav2vec2-nano or facebook/wav2vec2-base.")


@dataclass(frozen=True)
class AugmentConfig:
    """What happens to training clips, never to others.

    Args:
        preset: "none", or "light": gain of -6 to 6 dB on half of the clips and Gaussian noise at 10 to 40 dB SNR on
            half of them, drawn anew each epoch.
    """

    preset: Literal["none", "light"] = "none"


@dataclass(frozen=True)
class TrainConfig:
    """How the training goes.

    Args:
        output_dir: Folder of the run. It must not exist yet, unless train.overwrite is true.
        overwrite: Replace output_dir if an earlier run made it.
        epochs: Passes over the training split. The best one on validation is kept, often an early one; the default
            leaves the bundled digits room to show it.
        max_steps: Stop after this many optimizer steps even if epochs remain; the schedule ends there too.
        batch_size: Clips per optimizer step, over all processes and micro-batches. LoRA's RoBERTa runs used 16 and 32
            (Hu et al., 2021).
        gradient_accumulation_steps: Micro-batches that one optimizer step is split into, to save memory.
        learning_rate: Peak rate of AdamW for the adapter. The default is the middle of 5e-4 to 2e-3, which hardly
            differ on the bundled validation split (`benchmarks/repeat.py --flag train.learning_rate
            --validation-only`).
        head_learning_rate: Peak rate for the fresh head; learning_rate when not given.
        weight_decay: Decoupled weight decay on matrices (not on biases and norms). 0.01 is AdamW's default in torch.
        schedule: "linear" or "cosine" decay to zero after the warm-up.
        warmup_share: Share of the steps over which the rate rises to its peak; 0.1 as in wav2vec 2.0's fine-tuning
            (Baevski et al., 2020).
        max_grad_norm: Gradients are scaled down to this norm; 1.0 as in transformers.
        seed: Decides the head, the order, the crops, augmentation and dropout.
        best_metric: The epoch that is best on validation by this metric is kept, the earlier one in a tie.
        evaluate_test: Read the test split once, at the end. Turn it off while choosing settings.
    """

    output_dir: str = "runs/lora"
    overwrite: bool = False
    epochs: int = 8
    max_steps: int | None = None
    batch_size: int = 16
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-3
    head_learning_rate: float | None = None
    weight_decay: float = 0.01
    schedule: Literal["linear", "cosine"] = "linear"
    warmup_share: float = 0.1
    max_grad_norm: float = 1.0
    seed: int = 0
    best_metric: Literal["macro_f1", "accuracy", "loss"] = "macro_f1"
    evaluate_test: bool = True

    def __post_init__(self) -> None:
        _require(bool(self.output_dir), "train.output_dir", "''", "a folder", "Try runs/lora.")
        for name in ("epochs", "batch_size", "gradient_accumulation_steps"):
            value = getattr(self, name)
            _require(value >= 1, f"train.{name}", value, "1 or more", "Try 8.")
        if self.max_steps is not None:
            _require(self.max_steps >= 1, "train.max_steps", self.max_steps, "1 or more", "Leave it out for no limit.")
        rates = {"learning_rate": self.learning_rate, "head_learning_rate": self.head_learning_rate}
        for name, rate in rates.items():
            if rate is not None:
                _require(_positive(rate), f"train.{name}", rate, "a finite number above 0", "Try 1e-3.")
        decays = math.isfinite(self.weight_decay) and self.weight_decay >= 0
        _require(decays, "train.weight_decay", self.weight_decay, "a finite number, 0 or more", "Try 0.01.")
        _require(_share(self.warmup_share), "train.warmup_share", self.warmup_share, "0 or more, below 1", "Try 0.1.")
        _require(_positive(self.max_grad_norm), "train.max_grad_norm", self.max_grad_norm, "above 0", "Try 1.")
        _require(0 <= self.seed < 2**32, "train.seed", self.seed, "0 to 4294967295", "Try 0.")


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
        _require(self.r >= 1, "lora.r", self.r, "a rank of 1 or more", "Try 8.")
        _require(self.alpha >= 1, "lora.alpha", self.alpha, "1 or more", "Try twice lora.r.")
        _require(_share(self.dropout), "lora.dropout", self.dropout, "0 or more, below 1", "Try 0.1.")
        _require(bool(self.targets), "lora.targets", "[]", "at least one layer name", "Try all-linear.")
        if self.layers is not None:
            usable = bool(self.layers) and min(self.layers) >= 0
            _require(usable, "lora.layers", self.layers, "layer numbers from 0", "Leave it out for all layers.")


@dataclass(frozen=True)
class LoraRecipe:
    """Fine-tune an audio classifier with LoRA adapters.

    Args:
        data: Which recordings, and how much of each.
        model: Which pretrained encoder.
        augment: What happens to training clips.
        train: How the training goes.
        lora: What LoRA changes.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
