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

# Of each clip: its number in the split, the number of its recording, its target and its logits.
Rows = dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """Logits and metrics of a split, in the order of `Splits.recordings`.

    Attributes:
        logits: float32 of shape (recordings, labels).
        labels: targets, one per recording.
        metrics: the task's metrics by name; `loss`, `accuracy`, `macro_f1` with one label per clip.
        seconds: time from the first batch until every process had all logits, decoding included.
    """

    logits: np.ndarray
    labels: np.ndarray
    metrics: dict[str, float]
    seconds: float


def evaluate(
    model: Any, loader: DataLoader, accelerator: Accelerator, task: Task, mixed_precision: bool = False
) -> Evaluation:
    """Run a split through the model once, on all processes together, and gather the logits by clip.

    Args:
        model: unwrapped model that returns `logits`.
        loader: this process's share of the split.
        accelerator: the processes and their device.
        task: targets and metrics.
        mixed_precision: compute as in training, which is faster; in float32, as what is saved, when false.

    Returns:
        The logits of every recording, the same on every process. A recording that was cut into windows has the logits
        of their mean probabilities.
    """
    began = time.perf_counter()
    with accelerator.autocast() if mixed_precision else nullcontext():
        rows = run_through(model, loader, accelerator.device, task)
    # Shares differ by a clip, and some processes may have none: pad with index -1, gather once, sort by index.
    padded = accelerator.pad_across_processes(send_to_device(rows, accelerator.device), pad_index=-1)
    gathered = {name: values.cpu() for name, values in accelerator.gather(padded).items()}
    seconds = time.perf_counter() - began
    real = gathered["index"] >= 0
    return judge_rows({name: values[real] for name, values in gathered.items()}, task, seconds)


def run_through(model: Any, batches: Iterable[dict[str, Any]], device: torch.device, task: Task) -> Rows:
    """Compute the logits of batches in eval mode.

    Returns:
        On the CPU, one row per clip: `index` and `recording`, int64 of shape (clips,); `label`, the targets; `logits`,
        float32 of shape (clips, labels).
    """
    model.eval()
    labels = model.config.num_labels
    none = torch.zeros(0, dtype=torch.int64)
    parts: list[Rows] = [
        {"index": none, "recording": none, "label": task.no_targets(labels), "logits": torch.zeros(0, labels)}
    ]
    # transformers 5.17 draws for each layer that it may skip, in eval mode too; dropout must not depend on that.
    devices = [device] if device.type == "cuda" else []
    with torch.inference_mode(), torch.random.fork_rng(devices=devices):
        for batch in batches:
            logits = model_logits(model, send_to_device(batch, device)).float().cpu()
            parts.append({name: batch[name] for name in ("index", "recording", "label")} | {"logits": logits})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def judge_rows(rows: Rows, task: Task, seconds: float) -> Evaluation:
    """Compute the metrics of the recordings whose rows `run_through` returned, in any order."""
    order = rows["index"].argsort()
    logits, targets, recordings = (rows[name][order] for name in ("logits", "label", "recording"))
    return judge(logits, targets, recordings, task, seconds)


def judge(
    logits: torch.Tensor, targets: torch.Tensor, recordings: torch.Tensor, task: Task, seconds: float
) -> Evaluation:
    """Compute the metrics of recordings.

    Args:
        logits: of shape (clips, labels).
        targets: one per clip.
        recordings: number of the recording that a clip is a part of, from 0, in ascending order, of shape (clips,).
        task: targets and metrics.
        seconds: time that the logits took.
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
