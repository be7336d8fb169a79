"""Declare the settings of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from peft_audio.config.fields import NOT_STREAMED, check_ranges, setting
from peft_audio.errors import require, require_package


@dataclass(frozen=True)
class TrainConfig:
    """Control the training. Rates and epochs shown are this recipe's own.

    Args:
        output_dir: Folder of the run. It must not exist yet, unless train.overwrite is true.
        overwrite: Replace output_dir if an earlier run made it.
        resume: Continue from the newest complete checkpoint in output_dir, to the same bits as a run without a stop.
            Settings, recordings, encoder and number of processes must be the same. Without a checkpoint the run starts
            from scratch; a finished run stays as it is. With train.overwrite, a run that does not fit is replaced.
        checkpoint_every_steps: Number of optimizer steps between checkpoints; only by the clock when not given.
        checkpoint_every_minutes: Minutes between checkpoints; more where saving would take more than
            1% of the time. One is saved at the end of the training and on SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 (which
            SLURM sends when told to) in any case, and all go when the run is finished.
        keep_checkpoints: How many of the newest stay, beside the weights of the best epoch.
        epochs: Passes over the training split; the same default in every recipe, so that all see the clips equally
            often. The best one on validation is kept; 8 leave the bundled digits room to show which.
        max_steps: Stop after this many optimizer steps even if epochs remain; the schedule ends there too.
        early_stopping_patience: Stop after this many epochs without a new best; never when not given.
        batch_size: Clips per optimizer step, over all processes and micro-batches. LoRA's RoBERTa runs used 16 and 32
            (Hu et al., 2021).
        batch_seconds: Seconds of audio per optimizer step, instead of a number of clips: clips of similar length,
            padded to the longest. For collections whose lengths differ much; clips count the same.
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
        verify_adapter: Keep the saved adapter (or model) only if a fresh process loads a copy and computes the same
            logits. Turn it off for runs that only choose settings: it takes seconds, and nobody will load those.
        log_with: Trackers that get every step and epoch beside metrics.jsonl: tensorboard, wandb, trackio. Each is an
            extra of this package. One that fails is reported once and never stops a run.
    """

    output_dir: str = setting("runs/run", "output", "decided_by_comparison")
    overwrite: bool = setting(False, "output", "decided_by_comparison")
    resume: bool = setting(False, "output")
    checkpoint_every_steps: int | None = setting(None, "output", takes="count")
    checkpoint_every_minutes: float | None = setting(5.0, "output", takes="positive")
    keep_checkpoints: int = setting(2, "output", takes="count")
    epochs: int = setting(8, "training", "equal_between_arms", "show_on_card", takes="count")
    max_steps: int | None = setting(None, "training", "equal_between_arms", "show_on_card", takes="count")
    early_stopping_patience: int | None = setting(None, "training", takes="count")
    batch_size: int = setting(16, "training", "equal_between_arms", "show_on_card", takes="count")
    batch_seconds: float | None = setting(None, "training", "equal_between_arms", sources=NOT_STREAMED, takes="seconds")
    gradient_accumulation_steps: int = setting(1, "training", takes="count")
    auto_micro_batch: bool = setting(False, "training", sources=NOT_STREAMED)
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = setting("auto", "encoder")
    compile: Literal["auto", "yes", "no"] = setting("auto", "training")
    optimizer: Literal["adamw", "adamw_8bit"] = setting("adamw", "training", "show_on_card")
    learning_rate: float = setting(
        1e-3, "training", "per_run", "decided_by_comparison", "show_on_card", takes="positive"
    )
    head_learning_rate: float | None = setting(None, "training", "show_on_card", takes="positive")
    weight_decay: float = setting(0.01, "training", "show_on_card", takes="not_negative")
    l1: float = setting(0.0, "training", takes="not_negative")
    label_smoothing: float = setting(0.0, "training", "show_on_card", takes="share")
    class_weights: Literal["none", "balanced"] = setting("none", "training", sources=NOT_STREAMED)
    schedule: Literal["linear", "cosine"] = setting("linear", "training")
    warmup_share: float = setting(0.1, "training", takes="share")
    max_grad_norm: float = setting(1.0, "training", takes="positive")
    frozen_dropout: bool = setting(False, "training")
    seed: int = setting(0, "input", "per_run", "decided_by_comparison", "show_on_card", takes="seed")
    deterministic: bool = setting(False, "training")
    best_metric: Literal["macro_f1", "accuracy", "loss"] = setting("macro_f1", "training", "equal_between_arms")
    evaluate_train: bool = setting(False, "evaluation", "per_run", sources=NOT_STREAMED)
    evaluate_test: bool = setting(True, "evaluation", "per_run", "decided_by_comparison")
    verify_adapter: bool = setting(True, "output", "decided_by_comparison")
    log_with: list[Literal["tensorboard", "wandb", "trackio"]] = setting([], "output", "decided_by_comparison")

    def __post_init__(self) -> None:
        require(bool(self.output_dir), "train.output_dir", "''", "a folder", "Try runs/mine.")
        check_ranges("train", self)
        if self.optimizer == "adamw_8bit":
            require_package("train.optimizer", self.optimizer, "bitsandbytes")
        for tracker in self.log_with:
            require_package("train.log_with", tracker, tracker)
