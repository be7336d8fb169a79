"""Declare the sections of settings that recipes share, and find settings by what they affect."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from peft_audio.config.fields import (
    NOT_STREAMED,
    ON_HUB,
    WITH_COLUMNS,
    Setting,
    changed_fields,
    check_ranges,
    setting,
    settings_of,
)
from peft_audio.errors import UserError, require, require_package
from peft_audio.files import is_folder


@dataclass(frozen=True)
class DataConfig:
    r"""Select recordings, their splits and the length that is read of each.

    Args:
        source: "bundled" (spoken digits, six speakers); a folder with one subfolder per class, optionally under train/,
            validation/ and test/; a manifest (.csv, .tsv, .jsonl, .parquet) with the columns path and label, and
            optionally split, group, start_seconds, end_seconds; or the id of a dataset on the Hub, such as org/name.
        revision: Branch, tag or commit of a Hub dataset. The report records the commit.
        config_name: Name of the configuration of a Hub dataset that has several.
        split_names: Split names of a Hub dataset that have other names than train, validation and test, as in
            "{clean.100: train, clean.dev: validation, clean.test: test}". Splits that are not listed are not used.
        streaming: Read the training split of a Hub dataset over the network while training, instead of downloading it.
            Needs train.max_steps; train.epochs is then the number of parts of these steps, with a validation after
            each. The other splits are downloaded.
        shuffle_buffer: Number of streamed clips from which the next is drawn; 1000 as in datasets.
        audio_column: Column with the recordings of a manifest or a Hub dataset. By default path in a manifest, and the
            only audio column of a Hub dataset.
        audio_folder: Folder to which the paths of a manifest are relative; the manifest's own folder by default. A path
            that does not exist is searched by its file name in all subfolders.
        label_column: Column with the labels of a manifest or a Hub dataset. By default label in a manifest, and the
            only class label column of a Hub dataset.
        group_column: Column of a manifest or a Hub dataset with groups that a split must not divide: speakers,
            artists, source recordings. The column group of a manifest is used by default.
        group_pattern: Regular expression for the group in a clip's file name: its first parenthesis, or the whole match
            without one. In esc10/rain/1-17367-A.ogg, "^(\d)-" finds fold 1. A pattern with "/" is searched in
            the path below the source: in rain/anna/3.wav, "([^/]+)/[^/]+$" finds the folder anna.
        splits_file: Use the splits of an earlier run: its splits.parquet, or a table (.csv, .tsv, .jsonl, .parquet)
            with the columns id and split. Clips that it does not list are left out.
        fold: Number of the fold for the test, from 0; the next fold is for validation. Folds never divide groups. If
            there are as many groups as folds, each group is a fold, in the order of the names.
        num_folds: Number of folds, if data.fold is given; 5 as in ESC-50 (Piczak, 2015).
        split_seed: Seed of the splits, independent of train.seed.
        validation_share: Share of each class's clips held out for validation if the source has no such split; our
            choice.
        test_share: Share of each class's clips held out for the test if the source has no such split; our choice.
        validate_on_test: Choose the best epoch on the test clips, as some tutorials do, to reproduce published figures.
            The figures are then too good, and the report marks them.
        max_train_clips: Number of clips to train on, drawn by split_seed and balanced over the classes as far as
            possible, to show the effect of fewer recordings; all clips by default.
        window_seconds: Length of windows into which recordings are cut; each window is a clip. Predictions of the
            windows of a recording are averaged, and metrics count recordings. Not cut by default.
        hop_seconds: Time between the starts of two windows; window_seconds by default. The last window ends with the
            recording.
        max_seconds: Length of the random crop of longer clips in training, which differs in each epoch. The default is
            a choice for memory, because attention grows with the square of the length. With encoders of a fixed
            window, the default means a window, because shorter crops are filled up and cost as much.
        max_eval_seconds: Longest part of a clip, from its start, that validation, test and prediction read; a clip is
            a window with data.window_seconds. Encoders of a fixed window average over windows of this part. The
            default is the length of a clip in GTZAN, the common music genre dataset.
        on_bad_clip: Treatment of clips that are unreadable, empty, silent or hold NaN. Every clip is decoded once
            before training. "error" stops and lists them; "skip" leaves them out and lists them in the run's folder.
        max_bad_share: Largest share of bad clips; a run with more of them stops, even with "skip". A choice.
        num_workers: Number of processes that decode clips in advance; 0 decodes in the training process. By default 4
            with a GPU, and 0 on a CPU, because they would compete with the training.
    """

    source: str = setting("bundled", "splits")
    revision: str | None = setting(None, "splits", sources=ON_HUB)
    config_name: str | None = setting(None, "splits", sources=ON_HUB)
    split_names: dict[str, Literal["train", "validation", "test"]] | None = setting(None, "splits", sources=ON_HUB)
    streaming: bool = setting(False, "training", sources=ON_HUB)
    shuffle_buffer: int = setting(1000, "training", sources=ON_HUB, takes="count")
    audio_column: str | None = setting(None, "splits", sources=WITH_COLUMNS)
    audio_folder: str | None = setting(None, "splits", sources=("manifest",))
    label_column: str | None = setting(None, "splits", sources=WITH_COLUMNS)
    group_column: str | None = setting(None, "splits", "divides", sources=("manifest", "hub"))
    group_pattern: str | None = setting(None, "splits", "divides", sources=NOT_STREAMED)
    splits_file: str | None = setting(None, "splits", "divides", sources=NOT_STREAMED)
    fold: int | None = setting(
        None, "splits", "divides", "per_run", "decided_by_comparison", "show_on_card", sources=NOT_STREAMED
    )
    num_folds: int = setting(5, "splits", "divides")
    split_seed: int = setting(0, "splits", "divides", takes="seed")
    validation_share: float = setting(0.15, "splits", "divides", takes="part")
    test_share: float = setting(0.2, "splits", "divides", takes="part")
    validate_on_test: bool = setting(False, "splits", "divides", "show_on_card", sources=NOT_STREAMED)
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
            "Lower one of them to keep clips for training.",
        )
        self._check_windows()
        self._check_division()
        self._check_streaming()

    def _check_windows(self) -> None:
        """Check the settings of windows."""
        window, hop = self.window_seconds, self.hop_seconds
        require(
            window is None or window <= self.max_eval_seconds,
            "data.window_seconds",
            window,
            f"data.max_eval_seconds ({self.max_eval_seconds:g}) or less",
            "Lower it, or raise data.max_eval_seconds.",
        )
        require(
            hop is None or (window is not None and hop <= window),
            "data.hop_seconds",
            hop,
            "data.window_seconds or less" if window else "left out without data.window_seconds",
            "A longer hop would leave gaps between windows.",
        )

    def _check_division(self) -> None:
        """Check the settings of folds and groups."""
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
                    "Try '^([^-_]+)' for the part before the first - or _."
                ) from error

    def _check_streaming(self) -> None:
        """Check that no setting is given that streaming cannot use."""
        for name, value in changed_fields(self).items() if self.streaming else ():
            usable = "stream" in settings_of(self)[name].source_kinds
            allowed = "left out with data.streaming, which uses the splits and the order of the dataset"
            require(usable, f"data.{name}", value, allowed, "Download the dataset, or leave it out.")


@dataclass(frozen=True)
class ModelConfig:
    """Select a pretrained encoder and its options.

    Args:
        name: "wav2vec2-nano" (bundled, English synthetic speech), a Hub id such as facebook/wav2vec2-base or
            ntu-spml/distilhubert (a smaller one), or a folder made by save_pretrained.
        revision: Branch, tag or commit of a Hub id. The run records the commit.
        pretrained: Start from pretrained weights. False draws random weights by train.seed, as transformers does: a
            control for the architecture alone. The run then saves a whole model, because no base can be loaded again.
        input_seconds: Length in seconds of the window of encoders that take log-mel features of a fixed window:
            whole seconds for Whisper, steps of 10 ms for AST; by default that of the encoder. Shorter windows
            cost less. Training uses random crops of this length; evaluation and prediction average over
            consecutive windows, up to data.max_eval_seconds.
        layer_weighted_sum: Give the head a learned mixture of the outputs of all layers instead of the last layer (Yang
            et al., 2021, SUPERB, arXiv 2105.01051). The mixture trains with the head and is saved with it.
        dropout: Dropout in the transformer of the encoder, in the parts that train, or in all parts with
            train.frozen_dropout. By default that of the checkpoint (0.1 in wav2vec2-base, 0 in wav2vec2-nano).
        head_dropout: Dropout before each linear layer of the head, in training only; 0 as in transformers.
        quantization: Precision of the frozen transformer while LoRA trains: "int8", 8 bits (Dettmers et al., 2022,
            arXiv 2208.07339), or "nf4", 4 bits (Dettmers et al., 2023, arXiv 2305.14314). Needs the extra
            `bitsandbytes`. The adapter is evaluated and saved with the float32 encoder.
        attention: Implementation of attention in transformers: "eager", or "sdpa", that of torch, which uses a flash
            kernel if possible. "auto" uses the one that was fastest in measurements for this device and family.
    """

    name: str = setting("wav2vec2-nano", "encoder")
    revision: str | None = setting(None, "encoder")
    pretrained: bool = setting(True, "encoder")
    input_seconds: float | None = setting(None, "encoder", "show_on_card", takes="seconds")
    layer_weighted_sum: bool = setting(False, "encoder", "show_on_card")
    dropout: float | None = setting(None, "training", takes="share")
    head_dropout: float = setting(0.0, "training", takes="share")
    quantization: Literal["none", "int8", "nf4"] = setting("none", "encoder", "show_on_card")
    attention: Literal["auto", "eager", "sdpa"] = setting("auto", "encoder")

    def __post_init__(self) -> None:
        require(bool(self.name), "model.name", "''", "an encoder", "Try wav2vec2-nano or facebook/wav2vec2-base.")
        check_ranges("model", self)
        if self.quantization != "none":
            require_package("model.quantization", self.quantization, "bitsandbytes")


@dataclass(frozen=True)
class AugmentConfig:
    """Augment training clips. Random draws depend only on train.seed, the epoch and the clip.

    Args:
        preset: "none"; "light", gain and faint noise; "speech", also small changes of pitch, tempo and band;
            "environment", also time shifts, gaps and larger changes. The numbers are in `peft_audio/data/augment.py`.
        mask_time_share: Share of a clip's frames that training replaces by the encoder's mask vector, in spans:
            SpecAugment over time (Park et al., 2019, arXiv 1904.08779). In the log-mel features of AST and Whisper,
            frames become zeros. 0, our default, turns it off; transformers uses 0.05.
        mask_time_ms: Length of a span in milliseconds, rounded to whole frames; 200 as in transformers. At most half of
            the clip. A frame is 20 ms long; in the features of AST and Whisper, 10 ms.
        mask_feature_share: Share of the input channels of the transformer that training sets to zero for a whole clip,
            in spans: SpecAugment over features. With AST and Whisper, mel bands of the features become zeros. 0 turns
            it off, as in transformers.
        mask_feature_channels: Length of a span in channels, or in mel bands of AST and Whisper; 10 as in transformers.
        noise_folder: Folder with background sounds. After the preset, half of the clips get a part of one, 3 to 30 dB
            below the clip (defaults of audiomentations).
        impulse_response_folder: Folder with impulse responses of rooms or microphones. Half of the clips are convolved
            with one.
    """

    preset: Literal["none", "light", "speech", "environment"] = setting("none", "input", "show_on_card")
    mask_time_share: float = setting(0.0, "training", takes="share")
    mask_time_ms: float = setting(200.0, "training", takes="positive")
    mask_feature_share: float = setting(0.0, "training", takes="share")
    mask_feature_channels: int = setting(10, "training", takes="count")
    noise_folder: str | None = setting(None, "input")
    impulse_response_folder: str | None = setting(None, "input")

    def __post_init__(self) -> None:
        check_ranges("augment", self)
        for name in ("noise_folder", "impulse_response_folder"):
            value = getattr(self, name)
            usable = value is None or (bool(value) and is_folder(value))
            require(usable, f"augment.{name}", value or "''", "a folder of recordings", "Leave it out, or give one.")


@dataclass(frozen=True)
class PrefixCacheConfig:
    """Cache the output of the frozen layers on the disk, so each clip passes through them once.

    Args:
        use: "auto" caches if the numbers stay the same and clips are trained on more than once, and prints the reason
            if not. "always" caches even for a single pass, for later runs. "never" runs all layers in every step. The
            figures of the report are computed from the recordings in any case.
        views: Number of augmented or cropped versions of each clip that training uses in turn, with and without a
            cache. By default, versions differ in every epoch, so augmented and cropped clips cannot be cached. Fewer
            versions regularise less.
        folder: Folder of the cache; in the Hugging Face cache by default. Runs can share it at the same time.
            `peft-audio cache` shows and clears it.
        max_gigabytes: Largest size of the folder in 10^9 bytes. The files that were not used for longest are removed
            first. Features that need more are not cached. A choice.
        dtype: Type of the cached numbers: "float32"; "bfloat16", half the size with 8 bits of precision; "auto", the
            precision of the training (train.mixed_precision).
    """

    use: Literal["auto", "always", "never"] = setting("auto", "training", "per_run")
    views: int | None = setting(None, "training", sources=NOT_STREAMED, takes="count")
    folder: str | None = setting(None, "cost")
    max_gigabytes: float = setting(20.0, "cost", takes="positive")
    dtype: Literal["auto", "float32", "bfloat16"] = setting("auto", "encoder")

    def __post_init__(self) -> None:
        check_ranges("prefix_cache", self)
        usable = self.folder is None or bool(self.folder)
        require(usable, "prefix_cache.folder", "''", "a folder", "Leave it out.")


@dataclass(frozen=True)
class TrainConfig:
    """Control the training. The learning rates and epochs shown are the defaults of this recipe.

    Args:
        output_dir: Folder of the run. It must not exist yet, unless train.overwrite is true.
        overwrite: Replace output_dir if an earlier run made it.
        resume: Resume from the newest intact checkpoint in output_dir, with results equal to the bit to an
            uninterrupted run. Settings, recordings, encoder and number of processes must be the same. Without a
            checkpoint the run starts from scratch. A finished run is not changed. With train.overwrite, a run with
            other settings is replaced.
        checkpoint_every_steps: Number of optimizer steps between checkpoints; none by the number of steps by default.
        checkpoint_every_minutes: Minutes between checkpoints; longer if saving would take more than 1% of the time.
            A checkpoint is always saved at the end of the training and on SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 (sent by
            SLURM on request). A finished run removes all checkpoints.
        keep_checkpoints: Number of newest checkpoints to keep, in addition to the weights of the best epoch.
        epochs: Number of passes over the training split. All recipes have the same default, so that they use clips
            equally often; 8 are enough to show the best epoch on the bundled digits. The best epoch is kept.
        max_steps: Number of optimizer steps after which training stops, even if epochs remain. The schedule ends there.
        early_stopping_patience: Number of epochs without a new best after which training stops; off by default.
        batch_size: Clips per optimizer step, over all processes and micro-batches. The RoBERTa runs of LoRA used 16 and
            32 (Hu et al., 2021).
        batch_seconds: Seconds of audio per optimizer step, instead of a number of clips. A step has clips of similar
            length, padded to the longest, and each clip has the same weight. For collections with varied lengths.
        gradient_accumulation_steps: Number of micro-batches per optimizer step, to save memory.
        auto_micro_batch: Double the number of micro-batches, starting at gradient_accumulation_steps, until the
            largest step fits into memory on all processes. The clips of a step stay the same.
        mixed_precision: Precision of the training. "bf16" and "fp16" (GPU only) compute in 16 bits, store frozen
            weights in 16 bits and trained weights in 32. "no" is float32. "auto" is bf16 on devices with bf16 units:
            GPUs since Ampere, CPUs with AMX or AVX512-BF16. Reported and saved results are always computed in float32.
        compile: Compile the transformer layers with torch.compile, which takes a minute and needs a compiler. "auto"
            compiles if it was faster in measurements for this device and family.
        optimizer: "adamw", or "adamw_8bit" (Dettmers et al., 2022, arXiv 2110.02861), whose state needs a quarter of
            the memory; useful for full fine-tuning. It needs the extra `bitsandbytes`.
        learning_rate: Peak learning rate of the weights that the strategy trains. The defaults of the recipes were
            chosen on the bundled validation split (docs/results.md). For full fine-tuning of wav2vec2-base, use a lower
            one: published rates are 3e-5 (audio classification example of transformers) to 1e-4.
        head_learning_rate: Peak learning rate of the new head; learning_rate by default. Recipes that train pretrained
            weights with a lower rate have the default of head-only tuning, 1e-3.
        weight_decay: Decoupled L2: in each step, trained matrices shrink by this times the learning rate. Biases and
            norms do not. 0.01 as in AdamW of torch.
        l1: Decoupled L1: in each step, entries of trained matrices move towards zero by this times the learning rate
            and stop at zero (soft thresholding; Tibshirani, 1996, as a proximal step). 0 turns it off.
        label_smoothing: Share of each target that is spread over all labels (Szegedy et al., 2016). 0 turns it off.
        class_weights: "balanced" weights a clip by the inverse frequency of its class in training, as in scikit-learn.
            The gradient is then the weighted mean over the clips of the step.
        schedule: Decay to zero after the warm-up, "linear" or "cosine".
        warmup_share: Share of the steps in which the learning rate rises to its peak; 0.1 as in the fine-tuning of
            wav2vec 2.0 (Baevski et al., 2020).
        max_grad_norm: Largest norm of a gradient; larger gradients are scaled down. 1.0 as in transformers.
        frozen_dropout: Run frozen parts in train mode, with their dropout, as the Trainer of transformers does. Off by
            default, because it costs time and memory. Its noise can regularise, see docs/results.md.
        seed: Seed of the head, the order of clips, crops, augmentation and dropout.
        deterministic: Use only kernels that give the same bits in every run on the same GPU
            (torch.use_deterministic_algorithms). On a CPU, all kernels used here do.
        best_metric: Validation metric that selects the best epoch; the earlier epoch if two are equal.
        evaluate_train: Evaluate the training clips at the end, without augmentation, to show the gap to validation.
        evaluate_test: Read the test split once, at the end. Turn it off while choosing settings.
        verify_adapter: Keep the saved adapter (or model) only if a fresh process loads a copy and computes the same
            logits. It takes seconds; turn it off for runs that only choose settings.
        record_clips: Write hashes of the training and validation clips to trained_clips.bin in the adapter, so that
            peft-audio evaluate can report the scores of new clips separately. Not written for streamed clips.
        log_with: Trackers that get every step and epoch in addition to metrics.jsonl: tensorboard, wandb, trackio. Each
            is an extra of this package. A tracker that fails is disabled and does not stop the run.
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
    record_clips: bool = setting(True, "output", "per_run")
    log_with: list[Literal["tensorboard", "wandb", "trackio"]] = setting([], "output", "decided_by_comparison")

    def __post_init__(self) -> None:
        require(bool(self.output_dir), "train.output_dir", "''", "a folder", "Try runs/mine.")
        check_ranges("train", self)
        if self.optimizer == "adamw_8bit":
            require_package("train.optimizer", self.optimizer, "bitsandbytes")
        for tracker in self.log_with:
            require_package("train.log_with", tracker, tracker)


SECTIONS = {
    "data": DataConfig,
    "model": ModelConfig,
    "augment": AugmentConfig,
    "prefix_cache": PrefixCacheConfig,
    "train": TrainConfig,
}


def settings_where(fits: Callable[[Setting], bool]) -> tuple[str, ...]:
    """Return the dotted names of the shared settings whose metadata fits, in the order of declaration."""
    return tuple(
        f"{section}.{name}"
        for section, kind in SECTIONS.items()
        for name, about in settings_of(kind).items()
        if fits(about)
    )


def free_settings() -> tuple[str, ...]:
    """Return the names of settings on which no figure depends, so that they can change when a run is resumed."""
    return settings_where(lambda about: not about.changes_figures)


def settings_per_run() -> tuple[str, ...]:
    """Return the names of settings that can differ between the runs of one arm of a comparison."""
    return settings_where(lambda about: "per_run" in about.marks or not about.changes_figures)


def settings_decided_by_comparison() -> tuple[str, ...]:
    """Return the names of settings that a comparison sets for each run."""
    return settings_where(lambda about: "decided_by_comparison" in about.marks)


def settings_equal_between_arms() -> tuple[str, ...]:
    """Return the names of settings that the arms of a ranking have in common."""
    return settings_where(lambda about: "equal_between_arms" in about.marks)


def settings_on_card() -> tuple[str, ...]:
    """Return the names of settings that model cards list."""
    return settings_where(lambda about: "show_on_card" in about.marks)
