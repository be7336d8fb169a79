"""Every setting of a run, with its unit, its default and where the default comes from.

A field's docstring is its `--help` text. `__post_init__` refuses what no run can use, so that nothing after the
configuration has to check it again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from peft_audio.errors import require, require_package
from peft_audio.files import is_folder


def positive(value: float) -> bool:
    """Whether it is a number above 0."""
    return math.isfinite(value) and value > 0


def share(value: float) -> bool:
    """Whether it is 0 or more and below 1."""
    return 0 <= value < 1


@dataclass(frozen=True)
class ModelConfig:
    """Which pretrained encoder, and what is done to it before a strategy decides what trains.

    Args:
        name: "wav2vec2-nano" (bundled, English synthetic speech), a Hub id such as facebook/wav2vec2-base or
            ntu-spml/distilhubert (a smaller one), or a folder made by save_pretrained.
        revision: Branch, tag or commit of a Hub id; the commit that was used is recorded either way.
        pretrained: False draws the encoder's weights at random by train.seed, as transformers does: a control, for what
            the architecture can do alone. The product is then a whole model, because no base exists that others have.
        layer_weighted_sum: Feed the head a learned mixture of all layers' outputs instead of the last layer's (Yang et
            al., 2021, SUPERB, arXiv 2105.01051). The mixture trains with the head and is saved with it.
        dropout: Dropout inside the encoder's transformer, in the parts that train (in all with train.frozen_dropout);
            the checkpoint's own when not given (0.1 in wav2vec2-base, 0 in wav2vec2-nano).
        head_dropout: Dropout before each linear layer of the head, in training only. 0 as in transformers' head.
        quantization: "int8" (Dettmers et al., 2022, arXiv 2208.07339) or "nf4" (Dettmers et al., 2023, arXiv
            2305.14314) holds the frozen transformer in 8 or 4 bits while LoRA trains; needs the extra `bitsandbytes`.
            The adapter is measured and saved on the float32 encoder.
        attention: How transformers computes attention: "eager", or "sdpa", which is torch's own and takes a flash
            kernel where it can; "auto" takes what was measured to be fastest for this device and family.
    """

    name: str = "wav2vec2-nano"
    revision: str | None = None
    pretrained: bool = True
    layer_weighted_sum: bool = False
    dropout: float | None = None
    head_dropout: float = 0.0
    quantization: Literal["none", "int8", "nf4"] = "none"
    attention: Literal["auto", "eager", "sdpa"] = "auto"

    def __post_init__(self) -> None:
        require(bool(self.name), "model.name", "''", "an encoder", "Try wav2vec2-nano or facebook/wav2vec2-base.")
        for name in ("dropout", "head_dropout"):
            value = getattr(self, name)
            require(value is None or share(value), f"model.{name}", value, "0 or more, below 1", "Try 0.1.")
        if self.quantization != "none":
            require_package("model.quantization", self.quantization, "bitsandbytes")


@dataclass(frozen=True)
class AugmentConfig:
    """What happens to training clips, never to others. Every draw depends on train.seed, the epoch and the clip alone.

    Args:
        preset: "none"; "light": gain and faint noise; "speech": those, and small changes of pitch, pace and band;
            "environment": those, and shifts in time, gaps and wider changes. The numbers are in
            `peft_audio/data/augment.py`.
        mask_time_share: SpecAugment over time (Park et al., 2019, arXiv 1904.08779): this share of a clip's frames is
            replaced in training by the encoder's mask vector, in spans. 0, our default, turns it off; transformers has
            0.05.
        mask_time_frames: Length of a span, in frames of 20 ms; 10 as in transformers. At most half of the clip.
        mask_feature_share: SpecAugment over features: this share of the channels that the transformer is fed is set to
            zero for a whole clip, in spans. 0 turns it off, as in transformers.
        mask_feature_channels: Length of a span, in channels; 10 as in transformers.
        noise_folder: Folder with your own background sounds: half of the clips get a piece of one, 3 to 30 dB below
            them (audiomentations' defaults), after what the preset does.
        impulse_response_folder: Folder with impulse responses of rooms or microphones: half of the clips are heard
            through one.
    """

    preset: Literal["none", "light", "speech", "environment"] = "none"
    mask_time_share: float = 0.0
    mask_time_frames: int = 10
    mask_feature_share: float = 0.0
    mask_feature_channels: int = 10
    noise_folder: str | None = None
    impulse_response_folder: str | None = None

    def __post_init__(self) -> None:
        for name in ("mask_time_share", "mask_feature_share"):
            value = getattr(self, name)
            require(share(value), f"augment.{name}", value, "0 or more, below 1", "Try 0.05.")
        for name in ("mask_time_frames", "mask_feature_channels"):
            value = getattr(self, name)
            require(value >= 1, f"augment.{name}", value, "1 or more", "Try 10.")
        for name in ("noise_folder", "impulse_response_folder"):
            value = getattr(self, name)
            usable = value is None or (bool(value) and is_folder(value))
            require(usable, f"augment.{name}", value or "''", "a folder of recordings", "Leave it out, or give one.")


@dataclass(frozen=True)
class TrainConfig:
    """How the training goes. Rates and epochs shown are this recipe's own.

    Args:
        output_dir: Folder of the run. It must not exist yet, unless train.overwrite is true.
        overwrite: Replace output_dir if an earlier run made it.
        resume: Go on from the newest whole checkpoint in output_dir, to the same bits as a run that nobody stopped.
            Settings, recordings, encoder and number of processes must be the same. Where there is no checkpoint the run
            starts afresh, where the run is finished it stays as it is. With train.overwrite, a run that does not fit is
            replaced.
        checkpoint_every_steps: Save a checkpoint after so many optimizer steps; only by the clock when not given.
        checkpoint_every_minutes: Save a checkpoint after so many minutes; more seldom where saving would take more than
            1% of the time. One is saved at the end of the training and on SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 (which
            SLURM sends when told to) in any case, and all go when the run is finished.
        keep_checkpoints: How many of the newest stay, beside the weights of the best epoch.
        epochs: Passes over the training split; the same default in every recipe, so that all see the clips equally
            often. The best one on validation is kept; 8 leave the bundled digits room to show which.
        max_steps: Stop after this many optimizer steps even if epochs remain; the schedule ends there too.
        early_stopping_patience: Stop after this many epochs without a new best; never when not given.
        batch_size: Clips per optimizer step, over all processes and micro-batches. LoRA's RoBERTa runs used 16 and 32
            (Hu et al., 2021).
        batch_seconds: Instead of so many clips, fill each optimizer step with clips of like length until, padded to the
            longest, they last so many seconds. For collections whose lengths differ much; clips count the same.
        gradient_accumulation_steps: Micro-batches that one optimizer step is split into, to save memory.
        auto_micro_batch: Try the largest step first, and split steps into twice as many micro-batches until they fit
            into memory, the same on all processes; gradient_accumulation_steps is where that begins. The clips of a
            step stay the same.
        mixed_precision: "bf16" or "fp16" (GPU only) computes in 16 bits, holds frozen weights in them and keeps what
            trains in 32; "no" is float32. "auto" takes bf16 where the device has units for it: GPUs since Ampere, CPUs
            with AMX or AVX512-BF16. What is reported and saved is computed in float32 either way.
        compile: "yes" compiles the transformer layers with torch.compile, which takes a minute and needs a compiler;
            "auto" does so where that was measured to pay.
        optimizer: "adamw", or "adamw_8bit" (Dettmers et al., 2022, arXiv 2110.02861), which keeps its state in a
            quarter of the memory; it pays for full fine-tuning and needs the extra `bitsandbytes`.
        learning_rate: Peak rate for what the strategy trains. The recipes' defaults were chosen on the bundled
            validation split (docs/results.md). Full fine-tuning of wav2vec2-base is published with 3e-5 (transformers'
            audio classification example) to 1e-4: lower it there.
        head_learning_rate: Peak rate for the fresh head; learning_rate when not given. Where pretrained weights train
            at a lower one, the default is head-only tuning's 1e-3.
        weight_decay: Decoupled L2: matrices that train shrink by this times the rate in each step (not biases and
            norms). 0.01 is AdamW's default in torch.
        l1: Decoupled L1: entries of matrices that train move towards zero by this times the rate in each step, and
            stay there (soft thresholding; Tibshirani, 1996, as a proximal step). 0 turns it off.
        label_smoothing: This share of each target is spread over all labels (Szegedy et al., 2016). 0 turns it off.
        class_weights: "balanced" weighs a clip by the inverse frequency of its class in training, as scikit-learn
            does; the gradient is then the weighted mean over the step's clips.
        schedule: "linear" or "cosine" decay to zero after the warm-up.
        warmup_share: Share of the steps over which the rate rises to its peak; 0.1 as in wav2vec 2.0's fine-tuning
            (Baevski et al., 2020).
        max_grad_norm: Gradients are scaled down to this norm; 1.0 as in transformers.
        frozen_dropout: Run frozen parts in train mode, with their dropout, as transformers' Trainer does. Off by
            default, because it costs time and memory; it is noise that can regularise, see docs/results.md.
        seed: Decides the head, the order, the crops, augmentation and dropout.
        deterministic: Use only kernels that give the same bits in every run on the same GPU
            (torch.use_deterministic_algorithms); on a CPU all of ours do.
        best_metric: The epoch that is best on validation by this metric is kept, the earlier one in a tie.
        evaluate_train: Read the training clips once more at the end, unaugmented, for the gap to validation.
        evaluate_test: Read the test split once, at the end. Turn it off while choosing settings.
        verify_adapter: Let the saved adapter (or model) stand only once a fresh process has loaded a copy and answers
            the same. Turn it off for runs that only choose settings: it takes seconds, and nobody will load those.
        log_with: Trackers that get every step and epoch beside metrics.jsonl: tensorboard, wandb, trackio. Each is an
            extra of this package. One that fails is reported once and never stops a run.
    """

    output_dir: str = "runs/run"
    overwrite: bool = False
    resume: bool = False
    checkpoint_every_steps: int | None = None
    checkpoint_every_minutes: float | None = 5.0
    keep_checkpoints: int = 2
    epochs: int = 8
    max_steps: int | None = None
    early_stopping_patience: int | None = None
    batch_size: int = 16
    batch_seconds: float | None = None
    gradient_accumulation_steps: int = 1
    auto_micro_batch: bool = False
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    compile: Literal["auto", "yes", "no"] = "auto"
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    learning_rate: float = 1e-3
    head_learning_rate: float | None = None
    weight_decay: float = 0.01
    l1: float = 0.0
    label_smoothing: float = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    schedule: Literal["linear", "cosine"] = "linear"
    warmup_share: float = 0.1
    max_grad_norm: float = 1.0
    frozen_dropout: bool = False
    seed: int = 0
    deterministic: bool = False
    best_metric: Literal["macro_f1", "accuracy", "loss"] = "macro_f1"
    evaluate_train: bool = False
    evaluate_test: bool = True
    verify_adapter: bool = True
    log_with: list[Literal["tensorboard", "wandb", "trackio"]] = field(default_factory=list)

    def __post_init__(self) -> None:
        require(bool(self.output_dir), "train.output_dir", "''", "a folder", "Try runs/mine.")
        for name in ("epochs", "batch_size", "gradient_accumulation_steps", "keep_checkpoints"):
            value = getattr(self, name)
            require(value >= 1, f"train.{name}", value, "1 or more", "Try 8.")
        for name in ("max_steps", "early_stopping_patience", "checkpoint_every_steps"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"train.{name}", value, "1 or more", "Leave it out for no limit.")
        for name in ("learning_rate", "head_learning_rate"):
            value = getattr(self, name)
            require(value is None or positive(value), f"train.{name}", value, "a finite number above 0", "Try 1e-3.")
        for name in ("weight_decay", "l1"):
            value = getattr(self, name)
            usable = math.isfinite(value) and value >= 0
            require(usable, f"train.{name}", value, "a finite number, 0 or more", "Try 0.01.")
        for name in ("warmup_share", "label_smoothing"):
            value = getattr(self, name)
            require(share(value), f"train.{name}", value, "0 or more, below 1", "Try 0.1.")
        minutes = self.checkpoint_every_minutes
        usable = minutes is None or positive(minutes)
        require(usable, "train.checkpoint_every_minutes", minutes, "a number above 0", "Try 5, or null for none.")
        seconds = self.batch_seconds
        usable = seconds is None or positive(seconds)
        require(usable, "train.batch_seconds", seconds, "a number of seconds above 0", "Leave it out, or try 160.")
        require(positive(self.max_grad_norm), "train.max_grad_norm", self.max_grad_norm, "above 0", "Try 1.")
        if self.optimizer == "adamw_8bit":
            require_package("train.optimizer", self.optimizer, "bitsandbytes")
        for tracker in self.log_with:
            require_package("train.log_with", tracker, tracker)
        require(0 <= self.seed < 2**32, "train.seed", self.seed, "0 to 4294967295", "Try 0.")
