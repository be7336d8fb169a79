"""Fine-tune an audio classifier, from files to a report and an adapter."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace

from peft_audio.adapters.record import describe_adapter
from peft_audio.adapters.save import write_adapter
from peft_audio.adapters.trained_clips import write_trained_clips
from peft_audio.config import Recipe
from peft_audio.data.loaders import make_loaders
from peft_audio.data.splits import load_splits
from peft_audio.encoders.family import family_of
from peft_audio.encoders.loading import (
    identify_base,
    input_window,
    load_classifier,
    load_extractor,
    with_commit,
    with_recorded_commit,
)
from peft_audio.evaluation.run_split import evaluate
from peft_audio.feature_cache.cache import cache_frozen_prefix
from peft_audio.runs.folder import on_first, open_folder
from peft_audio.runs.process_state import restored_process_state
from peft_audio.runs.report import RunReport, finish_run, read_report, split_metrics
from peft_audio.runs.run import save_predictions, start_run
from peft_audio.strategies import Apply, Setup, strategy_of
from peft_audio.training.frozen_weights import on_float32_encoder, store_frozen
from peft_audio.training.hardware import make_accelerator, resolve_auto
from peft_audio.training.loop import train


def fine_tune(cfg: Recipe, strategy: Apply | None = None) -> RunReport:
    """Train, evaluate and save an audio classifier.

    At the end, the state of the process (random generators, signal handlers, environment and so on) is restored.

    Args:
        cfg: Settings of the run, such as `LoraRecipe()`. Their class decides which weights train.
        strategy: Function `(model, setup) -> (model, Trainable)` that replaces the strategy of that class.

    Returns:
        The report, on every process. A finished run (`train.resume`) returns the report that it wrote.

    Raises:
        UserError: A setting, the data, the encoder or the folder cannot be used.
        Stopped: A signal ended the run; it resumes from a checkpoint with `train.resume`.
    """
    began = time.perf_counter()
    apply = strategy or strategy_of(cfg)
    with ExitStack() as at_end:
        at_end.enter_context(restored_process_state())
        accelerator = make_accelerator(cfg.train)
        folder = at_end.enter_context(open_folder(cfg, accelerator))
        if folder.finished:
            return on_first(accelerator, lambda: read_report(folder.path))
        # All loads of a run use one commit of a Hub base; a resumed run uses the commit that it recorded.
        given = cfg.model
        pinned = on_first(accelerator, lambda: with_commit(with_recorded_commit(given, folder.recorded)))
        cfg = replace(cfg, model=pinned)
        cfg = resolve_auto(cfg)
        splits = load_splits(cfg.data, accelerator, input_window(cfg.model))
        extractor = load_extractor(cfg.model)
        model = load_classifier(cfg.model, splits.labels)
        base = identify_base(cfg.model, model)
        loaders = make_loaders(splits, extractor, model.config, cfg, accelerator)
        model, trained = apply(model, Setup(family_of(model.config), cfg, loaders.task, loaders, accelerator))
        run = start_run(folder, cfg, splits, base, accelerator, began)
        at_end.callback(run.log.close)
        model, kept = cache_frozen_prefix(model, trained, loaders, cfg, accelerator)
        store_frozen(model, cfg.model, accelerator.mixed_precision)
        result = train(model, trained, kept, cfg.train, accelerator, run.log, run.checkpoints)
        model = on_float32_encoder(result.model, trained, cfg.model, splits.labels)
        evaluations = {"validation": evaluate(model, loaders.validation, accelerator, loaders.task)}
        if cfg.train.evaluate_train:
            evaluations["train"] = evaluate(model, loaders.train_whole, accelerator, loaders.task)
        if cfg.train.evaluate_test:
            evaluations["test"] = evaluate(model, loaders.test, accelerator, loaders.task)
        save_predictions(run, evaluations)
        metrics = split_metrics(evaluations)
        record = describe_adapter(cfg, base, splits.labels, extractor, trained.strategy, metrics, splits.train_audio)
        if accelerator.is_main_process:
            written = write_adapter(run.folder, model, trained, extractor, record, cfg.train.verify_adapter)
            if cfg.train.record_clips and not splits.stream:
                write_trained_clips(written, [*splits.clip_hashes("train"), *splits.clip_hashes("validation")])
        accelerator.wait_for_everyone()
        return finish_run(run, model, trained, result, evaluations)
