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
            perhaps split, group, start_seconds, end_seconds; or the id of a dataset on the Hub, such as org/name.
        revision: Branch, tag or commit of a Hub dataset; the commit that was used is recorded either way.
        config_name: Name of the configuration of a Hub dataset that has several.
        split_names: Meaning of the split names of a Hub dataset, where the names do not say it, as in
            "{clean.100: train, clean.dev: validation, clean.test: test}"; others are not used.
        streaming: Read the training split of a Hub dataset over the network while training, instead of downloading it.
            Needs train.max_steps; train.epochs then says into how many parts those are divided, each validated. The
            other splits are downloaded, so that every clip of them counts once.
        shuffle_buffer: Clips among which a streamed one is drawn; 1000 as in datasets.
        audio_column: Column with the recordings, of a manifest (path when not given) or a Hub dataset (its only audio
            column when not given).
        audio_folder: Folder with the recordings of a manifest, whose paths are then relative to it; the manifest's
            own folder when not given. A path that is not there is looked for by its name in all folders below.
        label_column: Column with the labels, of a manifest (label when not given) or a Hub dataset (its only class
            label column when not given).
        group_column: Column of a manifest or a Hub dataset with groups that a split must not divide: speakers,
            artists, source recordings. The column group of a manifest is used by default.
        group_pattern: Regular expression for the group in a clip's file name; its first parenthesis is the group, or
            all that it matches. In esc10/rain/1-17367-A.ogg, "^(\d)-" finds fold 1. A pattern with "/" is searched in
            the path below the source: in rain/anna/3.wav, "([^/]+)/[^/]+$" finds the folder anna.
        splits_file: Divide as an earlier run did: its splits.parquet, or a table (.csv, .tsv, .jsonl, .parquet) with
            the columns id and split. Clips that it does not name are left out.
        fold: Hold out this fold, from 0, for the test and the next one for validation. Folds keep groups whole; with
            as many groups as folds they are the groups, in the order of their names.
        num_folds: Number of folds that clips are divided into where data.fold is given; 5 as in ESC-50 (Piczak, 2015).
        split_seed: Decides the splits that are made. Never changes with train.seed.
        validation_share: Share of each class's clips held out for validation where the source has no such split; our
            choice.
        test_share: Share of each class's clips held out for the test where the source has no such split; our choice.
        validate_on_test: Choose the best epoch on the test clips themselves, as some tutorials do. It flatters, and the
            report says so; for reproducing published figures only.
        max_train_clips: Train on this many clips only, balanced over the classes as far as possible and drawn by
            split_seed, to see how fewer recordings would do. All of them when not given.
        window_seconds: Cut recordings into windows of this length, each a clip of its own. Predictions of a
            recording's windows are averaged, and metrics count recordings. Not cut when not given.
        hop_seconds: From one window's start to the next one's; window_seconds when not given. The last window ends
            where the recording does.
        max_seconds: A longer clip gives a random crop of this length in training, another one each epoch. The default
            is a choice for memory: attention grows with the square of the length.
        max_eval_seconds: Validation, test and prediction read a clip whole, up to this length from its start. The
            default is the length of a clip in GTZAN, the common music genre dataset.
        on_bad_clip: Every clip is decoded once before training. "error" stops and lists those that are unreadable,
            empty, silent or hold NaN; "skip" leaves them out and lists them in the run's folder.
        max_bad_share: Stop if more than this share of the clips is bad, even with skip; a choice.
        num_workers: Processes that decode ahead of training; 0 decodes in the training process. By default 4 beside a
            GPU, and 0 on a CPU, where they would take the cores that training needs.
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
    validate_on_test: bool = setting(False, "splits", "divides", sources=NOT_STREAMED)
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
            "Lower one of the two so that clips remain to train on.",
        )
        self._check_windows()
        self._check_division()
        self._check_streaming()

    def _check_windows(self) -> None:
        window, hop = self.window_seconds, self.hop_seconds
        require(
            window is None or window <= self.max_eval_seconds,
            "data.window_seconds",
            window,
            f"data.max_eval_seconds ({self.max_eval_seconds:g}) or less",
            "Lower it: windows are for recordings too long to be read at once.",
        )
        require(
            hop is None or (window is not None and hop <= window),
            "data.hop_seconds",
            hop,
            "data.window_seconds or less" if window else "left out without data.window_seconds",
            "A longer hop would leave gaps that no window covers.",
        )

    def _check_division(self) -> None:
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
                    "Try '^([^-_]+)' for what stands before the first - or _."
                ) from error

    def _check_streaming(self) -> None:
        for name, value in changed_fields(self).items() if self.streaming else ():
            usable = "stream" in settings_of(self)[name].source_kinds
            allowed = "left out with data.streaming, which takes the dataset's own splits and clips as they come"
            require(usable, f"data.{name}", value, allowed, "Download the dataset, or leave it out.")


@dataclass(frozen=True)
class ModelConfig:
    """Select a pretrained encoder, and change it before a strategy decides which weights train.

    Args:
        name: "wav2vec2-nano" (bundled, English synthetic speech), a Hub id such as facebook/wav2vec2-base or
            ntu-spml/distilhubert (a smaller one), or a folder made by save_pretrained.
        revision: Branch, tag or commit of a Hub id; the commit that was used is recorded either way.
        pretrained: False draws the encoder's weights at random by train.seed, as transformers does: a control, for what
            the architecture can do alone. The product is then a whole model, because no base exists that others have.
        input_seconds: Length in seconds of what the encoder takes at once, for encoders that take log-mel features of a
            fixed window, such as Whisper (whole seconds); the directory's own window when not given. A shorter one
            costs less. Training takes random crops of it; evaluation and prediction average over consecutive windows.
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
    """Augment training clips, never others. Every draw depends on train.seed, the epoch and the clip alone.

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
        impulse_response_folder: Folder with impulse responses of rooms or microphones: half of the clips are convolved
            with one.
    """

    preset: Literal["none", "light", "speech", "environment"] = setting("none", "input", "show_on_card")
    mask_time_share: float = setting(0.0, "training", takes="share")
    mask_time_frames: int = setting(10, "training", takes="count")
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
        use: "auto" caches where that gives the same numbers and a clip is trained on more than once, and prints the
            reason where it does not; "always" caches even for a single pass, for later runs; "never" runs all layers
            in every step. Figures in the report are measured from the recordings either way.
        views: Number of augmented or cropped versions of each clip that training uses in turn, cached or not. Without
            it, augmentation and crops of longer clips differ in every epoch, and nothing can be cached. Fewer versions
            regularise less.
        folder: Folder of the cache; in the Hugging Face cache when not given. Runs share it, also at the same time:
            `peft-audio cache` shows and clears it.
        max_gigabytes: Largest size of the folder, in 10^9 bytes; files that were not used for longest are removed
            first. Features that alone need more are not cached. A choice.
        dtype: Type of the cached numbers: "float32"; "bfloat16", at half the size and with 8 bits of precision; "auto"
            takes the one that training computes in (train.mixed_precision).
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
        record_clips: Write hashes of the training and validation clips into trained_clips.bin of the adapter, so that
            peft-audio evaluate can report the scores of new clips apart. Not written where training clips are streamed.
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
    """Return the dotted names of the shared settings whose metadata fits, in their order."""
    return tuple(
        f"{section}.{name}"
        for section, kind in SECTIONS.items()
        for name, about in settings_of(kind).items()
        if fits(about)
    )


def free_settings() -> tuple[str, ...]:
    """Return the names of settings that no figure depends on, which can change when a run is resumed."""
    return settings_where(lambda about: not about.changes_figures)


def settings_per_run() -> tuple[str, ...]:
    """Return the names of settings that do not tell one arm of a comparison from another."""
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
