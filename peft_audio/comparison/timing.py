"""Time a few steps of every arm of a comparison in one process, which imports its libraries once.

The cost of a run has a fixed part (start, data, encoder, saved adapter), a part per clip and a part per step. They are
measured separately on a sample of the clips, so that `plan` can add them for any number of clips, epochs and runs.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from peft_audio.adapters.record import describe_adapter
from peft_audio.adapters.save import write_adapter
from peft_audio.comparison.plan import ArmTiming, Measured, Request
from peft_audio.comparison.settings import RECIPES
from peft_audio.config import BaselineRecipe, Recipe, read_config
from peft_audio.data.loaders import make_loaders
from peft_audio.data.splits import Splits, load_splits
from peft_audio.encoders.family import family_of
from peft_audio.encoders.loading import identify_base, load_classifier, load_extractor
from peft_audio.errors import UserError
from peft_audio.evaluation.run_split import evaluate
from peft_audio.feature_cache.cache import cache_frozen_prefix
from peft_audio.processes import run_python
from peft_audio.runs.baseline import evaluate_baseline, fit_baseline
from peft_audio.runs.process_state import restored_process_state
from peft_audio.runs.report import count_parameters
from peft_audio.strategies import Setup, strategy_of
from peft_audio.training.checkpointing import Checkpoints
from peft_audio.training.frozen_weights import on_float32_encoder, store_frozen
from peft_audio.training.hardware import make_accelerator, peak_memory_bytes, resolve_auto
from peft_audio.training.loop import train
from peft_audio.training.tracking import Log

# Smallest and largest number of timed steps and of evaluated clips per arm, depending on the time.
STEPS = (2, 8)
EVALUATED_CLIPS = (16, 64)
BASELINE_CLIPS = 128
# Timeout of the process that verifies an adapter.
VERIFY_SECONDS = 120


def time_arms(request: Request, folder: Path) -> Measured:
    """Time every arm.

    Args:
        request: arms and limits.
        folder: folder for what the timed runs write.

    Raises:
        UserError: The settings, the data or the encoder of an arm cannot be used.
    """
    start_seconds = time.time() - request.spawned
    recipes: dict[str, Any] = {}
    splits: dict[str, Splits] = {}
    scan_seconds = 0.0
    for name, (recipe, arguments) in request.arms.items():
        with arm_in_errors(name):
            cfg = read_config(RECIPES[recipe], arguments)
            recipes[name] = resolve_auto(cfg) if isinstance(cfg, Recipe) else cfg
            began = time.perf_counter()
            if repr(cfg.data) not in splits:
                splits[repr(cfg.data)] = load_splits(cfg.data)
                scan_seconds = time.perf_counter() - began
    found: dict[str, ArmTiming] = {}
    first_seconds = verify_seconds = 0.0
    networks = sorted(
        (name for name in recipes if isinstance(recipes[name], Recipe)), key=lambda name: name != request.first
    )
    steps, evaluated = STEPS[0], EVALUATED_CLIPS[0]
    for number, name in enumerate(networks):
        cfg = recipes[name]
        whole = splits[repr(cfg.data)]
        with arm_in_errors(name):
            if not number:
                cold = time_network(cfg, whole, (1, evaluated), request.shared_threads, folder / "first")
                verify_seconds = _verify(folder / "first")
                left = request.limit_seconds - (time.time() - request.spawned)
                steps, evaluated = affordable(cold, left / len(networks), cfg.train.batch_size)
            timed = time_network(cfg, whole, (steps, evaluated), request.shared_threads, folder / name)
        if not number:
            first_seconds = max(0.0, cold.fixed_seconds - timed.fixed_seconds)
        found[name] = timed
    for name, cfg in recipes.items():
        if isinstance(cfg, BaselineRecipe):
            with arm_in_errors(name):
                found[name] = time_baseline(cfg, splits[repr(cfg.data)])
    one = next(iter(splits.values()))
    return Measured(
        clips={split: len(one[split]) for split in ("train", "validation", "test")},
        recordings=len(one.recordings("train")),
        classes=len(one.labels),
        start_seconds=start_seconds,
        first_seconds=first_seconds,
        scan_seconds=scan_seconds,
        verify_seconds=verify_seconds,
        arms={name: found[name] for name in request.arms},
    )


@contextmanager
def arm_in_errors(arm: str) -> Iterator[None]:
    """Add the name of an arm to the message of a `UserError`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"arm {arm}: {error}") from error


def affordable(one: ArmTiming, seconds: float, batch_size: int) -> tuple[int, int]:
    """Choose the number of steps and evaluated clips to time per arm.

    Args:
        one: timing of the first arm, from one step.
        seconds: time for one arm.
        batch_size: clips per step.
    """
    choices = zip(range(STEPS[1], STEPS[0], -1), np.linspace(EVALUATED_CLIPS[1], EVALUATED_CLIPS[0], 6), strict=True)
    for steps, evaluated in choices:
        cost = one.fixed_seconds + (1 + steps * (1 + one.slowdown)) * one.step_seconds
        cost += evaluated * (3 * one.validation_seconds + one.evaluation_seconds)
        cost += (steps * batch_size + evaluated) * one.fill_seconds
        if cost <= seconds:
            return steps, round(evaluated)
    return STEPS[0], EVALUATED_CLIPS[0]


def sample(splits: Splits, trained: int, evaluated: int) -> Splits:
    """Draw a sample of training and validation clips, with at least one training clip per class."""
    rng = np.random.default_rng(0)
    labels = np.asarray(splits.train["label"])
    order = rng.permutation(len(labels))
    firsts = order[np.unique(labels[order], return_index=True, axis=0)[1]]
    kept = [*firsts, *(row for row in order if row not in set(firsts))][: max(trained, len(firsts))]
    shown = rng.permutation(len(splits.validation))[:evaluated]
    return replace(splits, train=splits.train.select(sorted(kept)), validation=splits.validation.select(sorted(shown)))


def time_network(cfg: Recipe, splits: Splits, amounts: tuple[int, int], shared_threads: int, folder: Path) -> ArmTiming:
    """Time the parts of a run of `fine_tune`, in its order.

    Args:
        cfg: resolved settings of a final run.
        splits: all clips.
        amounts: number of timed steps and of evaluated clips.
        shared_threads: threads of a run that shares the CPUs.
        folder: folder for the saved adapter and the feature cache.
    """
    steps, evaluated = amounts
    clock = time.perf_counter
    _reset_peak_memory()
    with restored_process_state():
        accelerator = make_accelerator(cfg.train)
        some = sample(splits, steps * cfg.train.batch_size, evaluated)
        began = clock()
        extractor = load_extractor(cfg.model)
        before = clock()
        model = load_classifier(cfg.model, splits.labels)
        loading = clock() - before
        base = identify_base(cfg.model, model)
        order = make_loaders(splits, extractor, model.config, cfg, accelerator).train_order
        loaders = make_loaders(some, extractor, model.config, cfg, accelerator)
        model, trained = strategy_of(cfg)(
            model, Setup(family_of(model.config), cfg, loaders.task, loaders, accelerator)
        )
        fixed = clock() - began + loading  # the report loads the encoder again, to compare it
        passes = order.total_steps(cfg.train.epochs, cfg.train.max_steps) / order.steps
        cached = replace(cfg, prefix_cache=replace(cfg.prefix_cache, use=_use(cfg, passes), folder=str(folder.parent)))
        began = clock()
        model, kept = cache_frozen_prefix(model, trained, loaders, cached, accelerator)
        prefix = kept.prefix
        fixed += clock() - began - (0.0 if prefix.reused else prefix.seconds)
        store_frozen(model, cfg.model, accelerator.mixed_precision)
        folder.mkdir(parents=True, exist_ok=True)
        log = Log(folder / "metrics.jsonl")
        short = replace(cfg.train, epochs=1, max_steps=1)
        began = clock()
        checkpoints = Checkpoints(folder / "checkpoints", {}, began)
        warm = train(model, trained, kept, short, accelerator, log, checkpoints)
        fixed += clock() - began - warm.validation_seconds
        timed = train(warm.model, trained, kept, replace(short, max_steps=steps), accelerator, log)
        step_seconds = timed.train_seconds / timed.steps
        fixed -= step_seconds
        peak = peak_memory_bytes(accelerator)
        model, slowdown = timed.model, 1.0
        if steps > 1 and accelerator.device.type == "cpu" and shared_threads != torch.get_num_threads():
            torch.set_num_threads(shared_threads)
            shared = train(model, trained, kept, replace(short, max_steps=steps), accelerator, log)
            model, slowdown = shared.model, shared.train_seconds / shared.steps / step_seconds
        began = clock()
        model = on_float32_encoder(model, trained, cfg.model, splits.labels)
        fixed += clock() - began
        found = evaluate(model, loaders.validation, accelerator, loaders.task)
        parameters, _ = count_parameters(model, trained.parameters)
        record = describe_adapter(cfg, base, splits.labels, extractor, trained.strategy, {})
        began = clock()
        saved = write_adapter(folder, model, trained, extractor, record, verify=False)
        fixed += clock() - began
    shown, rows = len(some.validation), len(some.validation) + (0 if prefix.reason else len(some.train))
    return ArmTiming(
        trainable_parameters=parameters,
        adapter_bytes=max(path.stat().st_size for path in saved.glob("*.safetensors")),
        peak_memory_bytes=peak,
        fixed_seconds=fixed,
        step_seconds=step_seconds,
        slowdown=slowdown,
        validation_seconds=timed.validation_seconds / shown,
        evaluation_seconds=found.seconds / shown,
        fill_seconds=prefix.seconds / rows if prefix.cached else 0.0,
        cached=prefix.cached,
        caches_training=bool(prefix.cached) and not prefix.reason,
        steps_per_epoch=order.steps,
    )


def _use(cfg: Recipe, passes: float) -> Any:
    """Return the setting of the feature cache that it would choose for all clips."""
    if cfg.prefix_cache.use != "auto":
        return cfg.prefix_cache.use
    return "always" if passes > (cfg.prefix_cache.views or 1) else "never"


def _reset_peak_memory() -> None:
    """Free the memory of an earlier arm, and reset the peak memory of this process if the system can."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux


def _verify(folder: Path) -> float:
    """Time a fresh process that verifies the adapter in a folder."""
    (saved,) = folder.glob("*.partial")
    began = time.perf_counter()
    run_python(["-m", "peft_audio.adapters.verify", str(saved)], VERIFY_SECONDS)
    return time.perf_counter() - began


def time_baseline(cfg: BaselineRecipe, splits: Splits) -> ArmTiming:
    """Time a baseline on a sample of the clips."""
    some = sample(splits, BASELINE_CLIPS, EVALUATED_CLIPS[1])
    _reset_peak_memory()
    fit_baseline(some, cfg)
    fitted = fit_baseline(some, cfg)
    found = evaluate_baseline(fitted, some, "validation")
    return ArmTiming(
        trainable_parameters=fitted.coefficients,
        adapter_bytes=0,
        peak_memory_bytes=peak_memory_bytes(Accelerator(cpu=True)),
        evaluation_seconds=found.seconds / len(some.validation),
        fit_seconds=fitted.seconds / len(some.train),
    )


def main() -> None:
    """Time the arms that a file names, and write the measured costs."""
    asked, written = map(Path, sys.argv[1:])
    request = Request(**json.loads(asked.read_text(encoding="utf-8")))
    try:
        with TemporaryDirectory() as folder:
            measured = time_arms(request, Path(folder))
    except UserError as error:
        sys.exit(str(error))
    written.write_text(json.dumps(asdict(measured)), encoding="utf-8")


if __name__ == "__main__":
    main()
