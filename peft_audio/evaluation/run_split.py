"""Run a split through a model and compute its metrics."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn
from torch.utils.data import DataLoader

from peft_audio.tasks.task import Task

# One row per clip: `index` in the split, number of its `recording`, target (`label`) and `logits`.
Rows = dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """Logits and metrics of a split, in the order of `Splits.recordings`.

    Attributes:
        logits: float32 of shape (recordings, labels).
        labels: targets, one per recording.
        metrics: the task's metrics by name; `loss`, `accuracy`, `macro_f1` with one label per clip.
        seconds: time from the first batch until every process had all logits, with decoding.
    """

    logits: np.ndarray
    labels: np.ndarray
    metrics: dict[str, float]
    seconds: float


def evaluate(
    model: Any, loader: DataLoader, accelerator: Accelerator, task: Task, mixed_precision: bool = False
) -> Evaluation:
    """Run a split through the model once, on all processes, and gather the logits of its clips.

    Args:
        model: unwrapped model that returns `logits`.
        loader: loader of this process's share of the split.
        accelerator: processes and device.
        task: targets and metrics.
        mixed_precision: compute in the precision of the training, which is faster; otherwise in float32.

    Returns:
        Logits and metrics of the recordings, the same on every process. The logits of a recording that was cut into
        windows are those of the mean probabilities.
    """
    began = time.perf_counter()
    with accelerator.autocast() if mixed_precision else nullcontext():
        rows = compute_logits(model, loader, accelerator.device, task)
    # Shares of processes differ by a clip and can be empty, so they are padded with index -1 and gathered once.
    padded = accelerator.pad_across_processes(send_to_device(rows, accelerator.device), pad_index=-1)
    gathered = {name: values.cpu() for name, values in accelerator.gather(padded).items()}
    seconds = time.perf_counter() - began
    real = gathered["index"] >= 0
    return evaluate_rows({name: values[real] for name, values in gathered.items()}, task, seconds)


def compute_logits(model: Any, batches: Iterable[dict[str, Any]], device: torch.device, task: Task) -> Rows:
    """Compute the logits of batches in eval mode.

    Returns:
        One row per clip on the CPU: `index` and `recording`, int64 of shape (clips,); `label`, the targets; `logits`,
        float32 of shape (clips, labels).
    """
    model.eval()
    labels = model.config.num_labels
    none = torch.zeros(0, dtype=torch.int64)
    parts: list[Rows] = [
        {"index": none, "recording": none, "label": task.no_targets(labels), "logits": torch.zeros(0, labels)}
    ]
    # transformers 5.17 draws a number for each layer that it can skip, even in eval mode. The fork keeps these draws
    # from changing the dropout of the training.
    devices = [device] if device.type == "cuda" else []
    with torch.inference_mode(), torch.random.fork_rng(devices=devices):
        for batch in batches:
            logits = model_logits(model, send_to_device(batch, device)).float().cpu()
            parts.append({name: batch[name] for name in ("index", "recording", "label")} | {"logits": logits})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def evaluate_rows(rows: Rows, task: Task, seconds: float) -> Evaluation:
    """Compute the metrics of the recordings whose rows `compute_logits` returned, in any order."""
    order = rows["index"].argsort()
    logits, targets, recordings = (rows[name][order] for name in ("logits", "label", "recording"))
    return evaluate_logits(logits, targets, recordings, task, seconds)


def evaluate_logits(
    logits: torch.Tensor, targets: torch.Tensor, recordings: torch.Tensor, task: Task, seconds: float
) -> Evaluation:
    """Compute the metrics of recordings.

    Args:
        logits: of shape (clips, labels).
        targets: one per clip.
        recordings: number of each clip's recording, from 0, in ascending order, of shape (clips,).
        task: targets and metrics.
        seconds: time to compute the logits.
    """
    firsts = np.unique(recordings, return_index=True)[1]
    if len(firsts) < len(recordings):
        targets, logits = targets[firsts], task.average_windows(logits, recordings)
    arrays = logits.numpy(), targets.numpy()
    return Evaluation(*arrays, task.measure(*arrays), seconds)


def model_logits(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Compute the logits of a batch, of shape (clips, labels), from its inputs or from cached features."""
    return model(**batch["inputs"]).logits


def clip_losses(model: nn.Module, batch: dict[str, Any], task: Task, label_smoothing: float) -> torch.Tensor:
    """Compute the loss of each clip of a batch, float32 of shape (clips,)."""
    return task.clip_losses(model_logits(model, batch).float(), batch["label"], label_smoothing)
