"""Train and validate a model with Accelerate, epoch by epoch."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device

from peft_audio.config import TrainConfig
from peft_audio.data.loaders import Loaders, Prefix
from peft_audio.data.sampler import TrainingBatches
from peft_audio.data.streaming import StreamLoader
from peft_audio.encoders.spec_augment import masked
from peft_audio.evaluation.run_split import clip_losses, evaluate
from peft_audio.progress import progress_bar
from peft_audio.strategies.base import Trainable, set_modes
from peft_audio.tasks.task import Task
from peft_audio.training.checkpointing import Checkpoints, Saver, restore_state
from peft_audio.training.hardware import compile_layers, peak_memory_bytes, seed_dropout
from peft_audio.training.micro_batches import fit_micro_batches
from peft_audio.training.nonfinite import NonFiniteGuard
from peft_audio.training.optimizer import apply_l1, current_rates, make_optimizer, make_schedule
from peft_audio.training.signals import Stop, stop_on_signals
from peft_audio.training.state import Learner, TrainState
from peft_audio.training.tracking import Log

# Steps between two checks of the losses on a GPU or with several processes, where each check waits for the device.
READ_EVERY = 16


@dataclass(frozen=True)
class Result:
    """Result of a finished training.

    Attributes:
        model: Unwrapped model with the weights of the best epoch.
        best_epoch: Number of the best epoch, from 1.
        steps: Number of optimizer steps done.
        train_seconds: Time of the training steps, with decoding, without validation and checkpoints.
        validation_seconds: Time of the validations after each epoch.
        checkpoint_seconds: Time of writing checkpoints.
        data_wait_share: Share of `train_seconds` in which this process waited for batches. It includes decoding if
            there are no workers. On a GPU it is an upper bound of the share in which the device was idle.
        samples_per_second: Clips trained on per second of `train_seconds`, over all processes.
        peak_memory_bytes: Peak memory until the end of the training: of the device of the first process on CUDA, of
            the first process with its libraries on a CPU.
        prefix: Use of the feature cache; filling it is not part of `train_seconds`.
        micro_batches: Number of micro-batches per step and process.
        resumes: Number of times that the run was resumed.
    """

    model: Any
    best_epoch: int
    steps: int
    train_seconds: float
    validation_seconds: float
    checkpoint_seconds: float
    data_wait_share: float
    samples_per_second: float
    peak_memory_bytes: int
    prefix: Prefix
    micro_batches: int
    resumes: int


def train(
    model: Any,
    trained: Trainable,
    loaders: Loaders,
    cfg: TrainConfig,
    accelerator: Accelerator,
    log: Log,
    checkpoints: Checkpoints | None = None,
) -> Result:
    """Train a model, validate it after each epoch, and restore the weights of the best epoch.

    The gradient of a step is the mean over exactly its `cfg.batch_size` clips, weighted if class weights are used.
    It does not depend on how processes and micro-batches split them.

    Args:
        model: Model that a strategy returned.
        trained: Parameters and modules that train.
        loaders: Batches of the splits; the test split is not read.
        cfg: Rates, epochs, schedule.
        accelerator: Processes and device.
        log: Log that gets one line per step and one line per epoch.
        checkpoints: Checkpoints of the run. Without them, signals keep their usual effect.

    Raises:
        DivergedError: The loss or the gradient is not a finite number.
        UserError: One clip does not fit into memory.
        Stopped: A signal was received; a checkpoint was written.
    """
    order = loaders.train_order
    total = order.total_steps(cfg.epochs, cfg.max_steps)
    optimizer = make_optimizer(model, trained, cfg)
    schedule = make_schedule(optimizer, cfg, total)
    compile_layers(model, cfg.compile)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    seed_dropout(cfg, accelerator)
    learner = Learner(model, wrapped, trained, optimizer, schedule, accelerator)
    state = _start(learner, loaders, cfg, checkpoints)
    stopping = stop_on_signals(accelerator) if checkpoints else nullcontext(Stop())
    with progress_bar("training", total, accelerator.is_main_process, state.step) as bar, stopping as stop:
        saver = Saver(learner, cfg, log, checkpoints, stop)
        while not state.ended:
            for _ in _epoch(learner, loaders, state, total, cfg, log):
                bar.update()
                saver.save_if_due(state)
            _validate(learner, loaders, state, total, cfg, log, bar)
            saver.save_if_due(state)
    peak = peak_memory_bytes(accelerator)
    # Under mixed precision Accelerate patches `forward` in place; the model is saved and probed in float32.
    model = state.best.restore(accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False))
    # Accelerate would return a model with this mark unchanged: a second training would run without autocast.
    model._is_accelerate_prepared = False
    seconds = state.train_seconds
    return Result(
        model=model,
        best_epoch=state.best.epoch,
        steps=state.step,
        train_seconds=seconds,
        validation_seconds=state.validation_seconds,
        checkpoint_seconds=state.checkpoint_seconds,
        data_wait_share=state.wait_seconds / seconds,
        samples_per_second=state.clips / seconds,
        peak_memory_bytes=peak,
        prefix=loaders.prefix,
        micro_batches=state.micro_batches,
        resumes=state.resumes,
    )


def _start(learner: Learner, loaders: Loaders, cfg: TrainConfig, checkpoints: Checkpoints | None) -> TrainState:
    """Return the first state of a new training, or restore the state of the checkpoint to resume from."""
    if checkpoints is None or checkpoints.newest is None:
        count = cfg.gradient_accumulation_steps
        return TrainState(fit_micro_batches(learner, loaders, cfg) if cfg.auto_micro_batch else count)
    state = restore_state(learner, checkpoints.newest)
    if isinstance(loaders.train_order, TrainingBatches):
        loaders.train_order.micro_batches = state.micro_batches
    elif isinstance(loaders.train, StreamLoader):
        loaders.train.skip(state.step * state.micro_batches)
    return state


def _epoch(
    learner: Learner, loaders: Loaders, state: TrainState, total: int, cfg: TrainConfig, log: Log
) -> Iterator[None]:
    """Train the rest of an epoch; yield after each optimizer step, when `state` is up to date."""
    order, accelerator = loaders.train_order, learner.accelerator
    order.go_to(state.epoch, state.step_in_epoch)
    set_modes(learner.model, learner.trained, cfg.frozen_dropout)
    waits: list[float] = []
    guard = NonFiniteGuard(loaders)
    began = time.perf_counter()
    steps = _steps(learner, _timed(loaders.train, waits), state.micro_batches, cfg, guard, loaders.task)
    remaining = min(order.steps - state.step_in_epoch, total - state.step)
    for loss in islice(steps, remaining):
        state.step, state.step_in_epoch, remaining = state.step + 1, state.step_in_epoch + 1, remaining - 1
        state.unlogged.append({"step": state.step, "loss": loss} | current_rates(learner.optimizer))
        # fp16 skips steps until the loss scale fits.
        if not accelerator.optimizer_step_was_skipped:
            learner.schedule.step()
        if not remaining or len(state.unlogged) >= _read_every(accelerator):
            _read_losses(state, accelerator, log, guard)
        state.train_seconds += time.perf_counter() - began
        state.wait_seconds += sum(waits)
        waits.clear()
        yield
        began = time.perf_counter()
    state.clips += order.clips_in(state.step_in_epoch)


def _validate(
    learner: Learner, loaders: Loaders, state: TrainState, total: int, cfg: TrainConfig, log: Log, bar: Any
) -> None:
    """Validate an epoch, update the best epoch, and advance the state to the next epoch or the end of the training."""
    validation = evaluate(learner.model, loaders.validation, learner.accelerator, loaders.task, mixed_precision=True)
    state.validation_seconds += validation.seconds
    summary = _summary(state, validation.metrics)
    log.write([summary])
    score = loaders.task.selection_score(validation.metrics, cfg.best_metric)
    state.best = state.best.better_of(validation.metrics, score, state.epoch, learner.model, learner.trained)
    reason = _reason_to_stop(cfg, state.epoch, state.best.epoch, last_step=state.step >= total)
    if learner.accelerator.is_main_process:
        with bar.external_write_mode():
            print(_epoch_line(summary, cfg.epochs, reason), flush=True)
    state.ended = bool(reason) or state.epoch == cfg.epochs
    state.losses, state.step_in_epoch, state.epoch = [], 0, state.epoch + 1


def _steps(
    learner: Learner, loader: Iterable[Any], micro_batches: int, cfg: TrainConfig, guard: NonFiniteGuard, task: Task
) -> Iterator[torch.Tensor]:
    """Do the optimizer steps of an epoch; yield this process's part of the mean loss of each step."""
    accelerator, optimizer = learner.accelerator, learner.optimizer
    weights = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    # Reading one iterator several times groups its items, here the micro-batches of a step.
    for batches in zip(*[iter(loader)] * micro_batches, strict=True):
        parts = []
        for i, cpu_batch in enumerate(batches, 1):
            batch = send_to_device(cpu_batch, accelerator.device)
            sync = nullcontext() if i == len(batches) else accelerator.no_sync(learner.wrapped)
            with sync, masked(learner.model, batch):
                losses = clip_losses(learner.wrapped, batch, task, cfg.label_smoothing)
                loss = (losses * batch["weight"]).sum()
                # DDP averages over processes, but the weights already make the sum over processes the mean over clips.
                accelerator.backward(loss * accelerator.num_processes)
            guard.add(batch["index"], losses.detach())
            parts.append(loss.detach())
        guard.end_step(accelerator.clip_grad_norm_(weights, cfg.max_grad_norm))
        optimizer.step()
        if cfg.l1 and not accelerator.optimizer_step_was_skipped:
            apply_l1(optimizer, cfg.l1)
        optimizer.zero_grad()
        yield torch.stack(parts).sum()


def _timed(loader: Iterable[Any], waits: list[float]) -> Iterator[Any]:
    """Yield batches, and append to `waits` the seconds that each took to arrive."""
    batches = iter(loader)
    while True:
        began = time.perf_counter()
        batch = next(batches, None)
        waits.append(time.perf_counter() - began)
        if batch is None:
            return
        yield batch


def _read_every(accelerator: Accelerator) -> int:
    """Return the number of steps between two readings of losses, which wait for the device and for other processes."""
    alone = accelerator.num_processes == 1 and accelerator.device.type == "cpu"
    return 1 if alone else READ_EVERY


def _read_losses(state: TrainState, accelerator: Accelerator, log: Log, guard: NonFiniteGuard) -> None:
    """Sum the losses over processes, log them, and stop the run if one is not finite."""
    parts = torch.stack([line["loss"] for line in state.unlogged])
    losses = accelerator.reduce(parts, reduction="sum").tolist()
    lines = [line | {"loss": loss} for line, loss in zip(state.unlogged, losses, strict=True)]
    log.write(lines)
    state.losses += losses
    state.unlogged = []
    guard.check(lines, state.epoch, accelerator)


def _summary(state: TrainState, metrics: dict[str, float]) -> dict[str, Any]:
    """Return the log line of an epoch."""
    validation = {f"validation_{name}": value for name, value in metrics.items()}
    return {"epoch": state.epoch, "step": state.step, "train_loss": float(np.mean(state.losses))} | validation


def _reason_to_stop(cfg: TrainConfig, epoch: int, best_epoch: int, last_step: bool) -> str:
    """Return the setting that ends the training before its last epoch; empty if none does."""
    if epoch == cfg.epochs:
        return ""
    if epoch - best_epoch >= (cfg.early_stopping_patience or sys.maxsize):
        return "patience"
    return "max_steps" if last_step else ""


def _epoch_line(summary: dict[str, Any], epochs: int, reason: str) -> str:
    """Format the losses and metrics of an epoch in at most 80 columns; a second line names the reason to stop."""
    line = (
        f"epoch {summary['epoch']:>{len(str(epochs))}}/{epochs}  loss {summary['train_loss']:.3f}  "
        f"val. loss {summary['validation_loss']:.3f}  accuracy {summary['validation_accuracy']:.3f}  "
        f"macro-F1 {summary['validation_macro_f1']:.3f}"
    )
    return f"{line}\ntraining ends here: {reason}" if reason else line
