"""The loop on Accelerate."""

from __future__ import annotations

import math
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
from torch import nn
from torch.nn import functional as F

from peft_audio.accelerator import peak_memory_bytes, seed_dropout
from peft_audio.arithmetic import compile_layers
from peft_audio.batching import Loaders, Prefix
from peft_audio.config import TrainConfig, UserError
from peft_audio.evaluation import evaluate, model_logits
from peft_audio.optimizer import current_rates, make_optimizer, make_schedule, shrink
from peft_audio.spec_augment import masked
from peft_audio.strategies import Trained
from peft_audio.tracking import Log, progress_bar


@dataclass(frozen=True)
class Result:
    """A finished training.

    Attributes:
        model: The unwrapped model with the weights of the best epoch.
        best_epoch: Which one that was, from 1.
        steps: Optimizer steps made.
        train_seconds: Time in training steps, decoding included, validation not.
        validation_seconds: Time in the validations after each epoch.
        data_wait_share: Share of that time that this process waited for the next batch: decoding itself where no
            workers do it; an upper bound for the device's idling on a GPU.
        samples_per_second: Clips trained on in each of those seconds, over all processes.
        peak_memory_bytes: The most that the first process held by the end of the training: on its device on CUDA, the
            whole process, libraries included, on a CPU.
        prefix: What became of the frozen prefix, which that time does not include.
    """

    model: Any
    best_epoch: int
    steps: int
    train_seconds: float
    validation_seconds: float
    data_wait_share: float
    samples_per_second: float
    peak_memory_bytes: int
    prefix: Prefix


def set_modes(model: nn.Module, trained: Trained, frozen_dropout: bool = False) -> None:
    """Train mode for what trains, eval mode for what is frozen; the only place that decides.

    Dropout in a frozen part costs time, and what it disturbs cannot adapt to it.

    Args:
        model: What a strategy returned.
        trained: What trains in it.
        frozen_dropout: Train mode for all of it, as transformers' Trainer does.
    """
    model.train(frozen_dropout)
    for name in trained.modules:
        model.get_submodule(name).training = True


def train(
    model: Any, trained: Trained, loaders: Loaders, cfg: TrainConfig, accelerator: Accelerator, log: Log
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

    Raises:
        UserError: The loss stopped being a finite number.
    """
    order = loaders.train_order
    total = min(order.total_steps(cfg.epochs), cfg.max_steps or sys.maxsize)
    optimizer = make_optimizer(model, trained, cfg)
    schedule = make_schedule(optimizer, cfg, total)
    compile_layers(model, cfg.compile)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    seed_dropout(cfg, accelerator)
    best, step, clips, seconds, validating, waits = Best(), 0, 0, 0.0, 0.0, list[float]()
    with progress_bar(accelerator.is_main_process) as progress:
        bar = progress.add_task("training", total=total)
        for epoch in range(1, cfg.epochs + 1):
            order.epoch, began = epoch, time.perf_counter()
            set_modes(model, trained, cfg.frozen_dropout)
            lines = []
            steps = _steps(model, wrapped, _timed(loaders.train, waits), optimizer, cfg, accelerator)
            for loss in islice(steps, min(order.steps, total - step)):
                step += 1
                lines.append({"step": step, "loss": loss} | current_rates(optimizer))
                # fp16 skips steps until it has found its scale.
                if not accelerator.optimizer_step_was_skipped:
                    schedule.step()
                progress.advance(bar)
            _gather_losses(lines, accelerator)
            seconds += time.perf_counter() - began
            clips += order.clips_in(len(lines))
            log.write(lines)
            _check_finite(lines, epoch)
            found = evaluate(model, loaders.validation, accelerator, mixed_precision=True)
            validating += found.seconds
            summary = _summary(epoch, lines, found.metrics)
            log.write([summary])
            best = best.better_of(found.metrics, cfg.best_metric, epoch, model, trained)
            ended = _ending(cfg, epoch, best.epoch, last_step=step >= total)
            _tell_epoch(progress, accelerator, _epoch_line(summary, cfg.epochs, ended))
            if ended:
                break
    peak = peak_memory_bytes(accelerator)
    # Under mixed precision Accelerate patches `forward` in place; what is saved and probed must be float32 again.
    model = best.restore(accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False))
    shares = (sum(waits) / seconds, clips / seconds)
    return Result(model, best.epoch, step, seconds, validating, *shares, peak, loaders.prefix)


@dataclass(frozen=True)
class Best:
    """The best epoch so far: its score (higher is better), number and trained weights."""

    score: float = -math.inf
    epoch: int = 0
    weights: dict[str, torch.Tensor] | None = None

    def better_of(self, metrics: dict[str, float], metric: str, epoch: int, model: Any, trained: Trained) -> Best:
        """Itself, or the given epoch where that is better by `metric`; the earlier one wins a tie."""
        score = -metrics["loss"] if metric == "loss" else metrics[metric]
        # NaN logits have a label on top too, and so an accuracy.
        if not math.isfinite(metrics["loss"]) or not score > self.score:
            return self
        weights = dict(model.named_parameters())
        return Best(score, epoch, {name: weights[name].detach().cpu().clone() for name in trained.parameters})

    def restore(self, model: Any) -> Any:
        """The model with these weights."""
        if self.weights is None:
            raise UserError("the validation loss was never a finite number; lower --train.learning_rate.")
        model.load_state_dict(self.weights, strict=False)
        return model


def _steps(
    model: Any, wrapped: nn.Module, loader: Iterable[Any], optimizer: Any, cfg: TrainConfig, accelerator: Accelerator
) -> Iterator[torch.Tensor]:
    """Make the optimizer steps of an epoch; gives this process's part of each step's mean loss."""
    weights = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    # As many micro-batches a step as the sampler makes: reading one iterator several times groups its items.
    for batches in zip(*[iter(loader)] * cfg.gradient_accumulation_steps, strict=True):
        parts = []
        for i, cpu_batch in enumerate(batches, 1):
            batch = send_to_device(cpu_batch, accelerator.device)
            with nullcontext() if i == len(batches) else accelerator.no_sync(wrapped), masked(model, batch):
                loss = _weighted_loss(wrapped, batch, cfg.label_smoothing)
                # DDP takes the mean over processes; the weights already make the sum over them the mean over clips.
                accelerator.backward(loss * accelerator.num_processes)
            parts.append(loss.detach())
        accelerator.clip_grad_norm_(weights, cfg.max_grad_norm)
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


def _weighted_loss(model: nn.Module, batch: dict[str, torch.Tensor], label_smoothing: float) -> torch.Tensor:
    logits = model_logits(model, batch).float()
    losses = F.cross_entropy(logits, batch["label"], reduction="none", label_smoothing=label_smoothing)
    return (losses * batch["weight"]).sum()


def _gather_losses(lines: list[dict[str, Any]], accelerator: Accelerator) -> None:
    """Replace each process's part of the losses by their sum; once an epoch, because reading waits for the device."""
    losses = accelerator.reduce(torch.stack([line["loss"] for line in lines]), reduction="sum").tolist()
    for line, loss in zip(lines, losses, strict=True):
        line["loss"] = loss


def _check_finite(lines: list[dict[str, Any]], epoch: int) -> None:
    for line in lines:
        if not math.isfinite(line["loss"]):
            raise UserError(
                f"the loss became {line['loss']} at step {line['step']} (epoch {epoch}); "
                "lower --train.learning_rate, or raise --train.warmup_share."
            )


def _summary(epoch: int, lines: list[dict[str, Any]], metrics: dict[str, float]) -> dict[str, Any]:
    loss = float(np.mean([line["loss"] for line in lines]))
    validation = {f"validation_{name}": value for name, value in metrics.items()}
    return {"epoch": epoch, "step": lines[-1]["step"], "train_loss": loss} | validation


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
    return (
        f"epoch {summary['epoch']:>{len(str(epochs))}}/{epochs}  train loss {summary['train_loss']:.3f}  "
        f"validation loss {summary['validation_loss']:.3f}  accuracy {summary['validation_accuracy']:.3f}  "
        f"macro-F1 {summary['validation_macro_f1']:.3f}" + (f"  (ends here: {ended})" if ended else "")
    )
