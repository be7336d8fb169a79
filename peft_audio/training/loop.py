"""The loop on Accelerate."""

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
from rich.progress import Progress

from peft_audio.config import TrainConfig
from peft_audio.data.loaders import Loaders, Prefix
from peft_audio.data.sampler import TrainingBatches
from peft_audio.data.streaming import StreamLoader
from peft_audio.encoders.spec_augment import masked
from peft_audio.evaluation.run_split import clip_losses, evaluate
from peft_audio.strategies.base import Trainable, set_modes
from peft_audio.tasks.task import Task
from peft_audio.training.checkpointing import Checkpoints, Saver, load_position
from peft_audio.training.hardware import compile_layers, peak_memory_bytes, seed_dropout
from peft_audio.training.micro_batches import fit_micro_batches
from peft_audio.training.nonfinite import Watch
from peft_audio.training.optimizer import current_rates, make_optimizer, make_schedule, shrink
from peft_audio.training.signals import Stop, stop_on_signals
from peft_audio.training.state import Learner, TrainState
from peft_audio.training.tracking import Log, progress_bar

# On a GPU, or with several processes, so many steps pass before anybody learns that a loss is no number.
READ_EVERY = 16


@dataclass(frozen=True)
class Result:
    """A finished training.

    Attributes:
        model: The unwrapped model with the weights of the best epoch.
        best_epoch: Which one that was, from 1.
        steps: Optimizer steps made.
        train_seconds: Time in training steps, decoding included, validation and checkpoints not.
        validation_seconds: Time in the validations after each epoch.
        checkpoint_seconds: Time in writing checkpoints.
        data_wait_share: Share of that time that this process waited for the next batch: decoding itself where no
            workers do it; an upper bound for the device's idling on a GPU.
        samples_per_second: Clips trained on in each of those seconds, over all processes.
        peak_memory_bytes: The most that the first process held by the end of the training: on its device on CUDA, the
            whole process, libraries included, on a CPU.
        prefix: What became of the frozen prefix, which that time does not include.
        micro_batches: That each process made of a step.
        resumes: How often the run was taken up again after it was stopped.
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
    """Train, validate after each epoch, and keep the best epoch's weights.

    The gradient of a step is the mean over exactly its `cfg.batch_size` clips, weighted where class weights are on,
    however processes and micro-batches split them.

    Args:
        model: What a strategy returned.
        trained: What trains in it.
        loaders: The batches; the test split is not touched.
        cfg: Rates, epochs, schedule.
        accelerator: Where it runs.
        log: Gets a line a step and a line an epoch.
        checkpoints: Where the training's state is kept, and to go on from; signals that ask the process to stop are
            acted on only with them.

    Raises:
        DivergedError: The loss or the gradient is not a finite number.
        UserError: Not even one clip at a time fits into memory.
        Stopped: A signal came; a checkpoint was written.
    """
    order = loaders.train_order
    total = order.total_steps(cfg.epochs, cfg.max_steps)
    optimizer = make_optimizer(model, trained, cfg)
    schedule = make_schedule(optimizer, cfg, total)
    compile_layers(model, cfg.compile)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    seed_dropout(cfg, accelerator)
    learner = Learner(model, wrapped, trained, optimizer, schedule, accelerator)
    at = _begin(learner, loaders, cfg, checkpoints)
    stopping = stop_on_signals(accelerator) if checkpoints else nullcontext(Stop())
    with progress_bar(accelerator.is_main_process) as progress, stopping as stop:
        save = Saver(learner, cfg, log, checkpoints, stop)
        bar = progress.add_task("training", total=total, completed=at.step)
        while not at.ended:
            for _ in _epoch(learner, loaders, at, total, cfg, log):
                progress.advance(bar)
                save.if_due(at)
            _validate(learner, loaders, at, total, cfg, log, progress)
            save.if_due(at)
    peak = peak_memory_bytes(accelerator)
    # Under mixed precision Accelerate patches `forward` in place; what is saved and probed must be float32 again.
    model = at.best.restore(accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False))
    seconds = at.train_seconds
    shares = (at.wait_seconds / seconds, at.clips / seconds)
    spent = (at.train_seconds, at.validation_seconds, at.checkpoint_seconds)
    return Result(model, at.best.epoch, at.step, *spent, *shares, peak, loaders.prefix, at.micro_batches, at.resumes)


def _begin(learner: Learner, loaders: Loaders, cfg: TrainConfig, checkpoints: Checkpoints | None) -> TrainState:
    """Where the training starts: at its beginning, or where a checkpoint was written."""
    if checkpoints is None or checkpoints.found is None:
        count = cfg.gradient_accumulation_steps
        return TrainState(fit_micro_batches(learner, loaders, cfg) if cfg.auto_micro_batch else count)
    at = load_position(learner, checkpoints.found)
    if isinstance(loaders.train_order, TrainingBatches):
        loaders.train_order.micro_batches = at.micro_batches
    elif isinstance(loaders.train, StreamLoader):
        loaders.train.skip(at.step * at.micro_batches)
    return at


def _epoch(
    learner: Learner, loaders: Loaders, at: TrainState, total: int, cfg: TrainConfig, log: Log
) -> Iterator[None]:
    """Make what is left of an epoch; gives a turn after each optimizer step, with `at` up to date."""
    order, accelerator = loaders.train_order, learner.accelerator
    order.go_to(at.epoch, at.step_in_epoch)
    set_modes(learner.model, learner.trained, cfg.frozen_dropout)
    waits: list[float] = []
    watch = Watch(loaders)
    began = time.perf_counter()
    steps = _steps(learner, _timed(loaders.train, waits), at.micro_batches, cfg, watch, loaders.task)
    left = min(order.steps - at.step_in_epoch, total - at.step)
    for loss in islice(steps, left):
        at.step, at.step_in_epoch, left = at.step + 1, at.step_in_epoch + 1, left - 1
        at.unlogged.append({"step": at.step, "loss": loss} | current_rates(learner.optimizer))
        # fp16 skips steps until it has found its scale.
        if not accelerator.optimizer_step_was_skipped:
            learner.schedule.step()
        if not left or len(at.unlogged) >= _read_every(accelerator):
            _read_losses(at, accelerator, log, watch)
        at.train_seconds += time.perf_counter() - began
        at.wait_seconds += sum(waits)
        waits.clear()
        yield
        began = time.perf_counter()
    at.clips += order.clips_in(at.step_in_epoch)


def _validate(
    learner: Learner, loaders: Loaders, at: TrainState, total: int, cfg: TrainConfig, log: Log, progress: Progress
) -> None:
    """Judge the epoch that was made, and go to the next one unless training ends here."""
    found = evaluate(learner.model, loaders.validation, learner.accelerator, loaders.task, mixed_precision=True)
    at.validation_seconds += found.seconds
    summary = _summary(at, found.metrics)
    log.write([summary])
    score = loaders.task.selection_score(found.metrics, cfg.best_metric)
    at.best = at.best.better_of(found.metrics, score, at.epoch, learner.model, learner.trained)
    why = _ending(cfg, at.epoch, at.best.epoch, last_step=at.step >= total)
    _tell_epoch(progress, learner.accelerator, _epoch_line(summary, cfg.epochs, why))
    at.ended = bool(why) or at.epoch == cfg.epochs
    at.losses, at.step_in_epoch, at.epoch = [], 0, at.epoch + 1


def _steps(
    learner: Learner, loader: Iterable[Any], micro_batches: int, cfg: TrainConfig, watch: Watch, task: Task
) -> Iterator[torch.Tensor]:
    """Make the optimizer steps of an epoch; gives this process's part of each step's mean loss."""
    accelerator, optimizer = learner.accelerator, learner.optimizer
    weights = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    # As many micro-batches a step as the sampler makes: reading one iterator several times groups its items.
    for batches in zip(*[iter(loader)] * micro_batches, strict=True):
        parts = []
        for i, cpu_batch in enumerate(batches, 1):
            batch = send_to_device(cpu_batch, accelerator.device)
            waiting = nullcontext() if i == len(batches) else accelerator.no_sync(learner.wrapped)
            with waiting, masked(learner.model, batch):
                losses = clip_losses(learner.wrapped, batch, task, cfg.label_smoothing)
                loss = (losses * batch["weight"]).sum()
                # DDP takes the mean over processes; the weights already make the sum over them the mean over clips.
                accelerator.backward(loss * accelerator.num_processes)
            watch.see(batch["index"], losses.detach())
            parts.append(loss.detach())
        watch.end_step(accelerator.clip_grad_norm_(weights, cfg.max_grad_norm))
        optimizer.step()
        if cfg.l1 and not accelerator.optimizer_step_was_skipped:
            shrink(optimizer, cfg.l1)
        optimizer.zero_grad()
        yield torch.stack(parts).sum()


def _timed(loader: Iterable[Any], waits: list[float]) -> Iterator[Any]:
    """The batches; adds the seconds that each was waited for."""
    batches = iter(loader)
    while True:
        began = time.perf_counter()
        batch = next(batches, None)
        waits.append(time.perf_counter() - began)
        if batch is None:
            return
        yield batch


def _read_every(accelerator: Accelerator) -> int:
    """Steps between two readings of losses: where reading waits for a device or for other processes, not each one."""
    alone = accelerator.num_processes == 1 and accelerator.device.type == "cpu"
    return 1 if alone else READ_EVERY


def _read_losses(at: TrainState, accelerator: Accelerator, log: Log, watch: Watch) -> None:
    """Sum up what processes have of the losses, log them, and stop where one of them is no number."""
    parts = torch.stack([line["loss"] for line in at.unlogged])
    losses = accelerator.reduce(parts, reduction="sum").tolist()
    lines = [line | {"loss": loss} for line, loss in zip(at.unlogged, losses, strict=True)]
    log.write(lines)
    at.losses += losses
    at.unlogged = []
    watch.check(lines, at.epoch, accelerator)


def _summary(at: TrainState, metrics: dict[str, float]) -> dict[str, Any]:
    validation = {f"validation_{name}": value for name, value in metrics.items()}
    return {"epoch": at.epoch, "step": at.step, "train_loss": float(np.mean(at.losses))} | validation


def _ending(cfg: TrainConfig, epoch: int, best_epoch: int, last_step: bool) -> str:
    """Why training ends before its last epoch; empty where it does not."""
    if epoch == cfg.epochs:
        return ""
    if epoch - best_epoch >= (cfg.early_stopping_patience or sys.maxsize):
        return "patience"
    return "max_steps" if last_step else ""


def _tell_epoch(progress: Progress, accelerator: Accelerator, line: str) -> None:
    if accelerator.is_main_process:
        progress.console.print(line, highlight=False, soft_wrap=True)


def _epoch_line(summary: dict[str, Any], epochs: int, ended: str) -> str:
    """Return the losses and validation metrics of an epoch in at most 80 columns, and below them why training ends."""
    line = (
        f"epoch {summary['epoch']:>{len(str(epochs))}}/{epochs}  loss {summary['train_loss']:.3f}  "
        f"val. loss {summary['validation_loss']:.3f}  accuracy {summary['validation_accuracy']:.3f}  "
        f"macro-F1 {summary['validation_macro_f1']:.3f}"
    )
    return f"{line}\ntraining ends here: {ended}" if ended else line
