"""What a model says of a split, and how often it is right."""

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
from torch.nn import functional as F
from torch.utils.data import DataLoader

from peft_audio.tasks.metrics import compute_metrics


@dataclass(frozen=True)
class Evaluation:
    """What a model said of a split, in the order of `Splits.recordings`.

    Attributes:
        logits: float32 of shape (recordings, labels).
        labels: The right ones, int64 of shape (recordings,).
        metrics: `loss` (mean cross-entropy), `accuracy`, `macro_f1`.
        seconds: From the first batch until every process's logits were there, decoding included.
    """

    logits: np.ndarray
    labels: np.ndarray
    metrics: dict[str, float]
    seconds: float


def evaluate(model: Any, loader: DataLoader, accelerator: Accelerator, mixed_precision: bool = False) -> Evaluation:
    """Run a split through the model once, all processes together, and gather by clip.

    Args:
        model: Gives `logits`; unwrapped.
        loader: This process's share of the split.
        accelerator: Where it runs.
        mixed_precision: Compute as training does, which is faster; in float32, as what is saved, when false.

    Returns:
        The logits of every recording, those cut into windows by the mean over their windows, the same on every process.
    """
    began = time.perf_counter()
    with accelerator.autocast() if mixed_precision else nullcontext():
        mine = run_through(model, loader, accelerator.device)
    # Shares differ by a clip, and some processes may have none: pad with index -1, gather once, sort by index.
    rows = accelerator.gather(accelerator.pad_across_processes(mine.to(accelerator.device), pad_index=-1)).cpu()
    seconds = time.perf_counter() - began
    return judge_rows(rows[rows[:, 0] >= 0], seconds)


def run_through(model: Any, batches: Iterable[dict[str, torch.Tensor]], device: torch.device) -> torch.Tensor:
    """What a model says of batches, in eval mode.

    Returns:
        On the CPU, a row a clip: its number, its recording's, its label, then the logits; shape (clips, 3 + labels).
    """
    model.eval()
    found = [torch.zeros(0, 3 + model.config.num_labels)]
    # transformers 5.17 draws for each layer that it may skip, in eval mode too; dropout must not depend on that.
    devices = [device] if device.type == "cuda" else []
    with torch.inference_mode(), torch.random.fork_rng(devices=devices):
        for batch in batches:
            logits = model_logits(model, send_to_device(batch, device)).float().cpu()
            whose = torch.stack([batch["index"], batch["recording"], batch["label"]], dim=1)
            found.append(torch.cat([whose, logits], dim=1))
    return torch.cat(found)


def judge_rows(rows: torch.Tensor, seconds: float) -> Evaluation:
    """The rows of `run_through`, in any order, as an evaluation of their recordings."""
    rows = rows[rows[:, 0].argsort()]
    return judge(rows[:, 3:], rows[:, 2].long(), rows[:, 1].long(), seconds)


def judge(logits: torch.Tensor, labels: torch.Tensor, recordings: torch.Tensor, seconds: float) -> Evaluation:
    """What was said of clips, as an evaluation of their recordings.

    Args:
        logits: Of shape (clips, labels).
        labels: The right ones, of shape (clips,).
        recordings: Which recording each clip is a part of, from 0, in ascending order, of shape (clips,).
        seconds: That it took.
    """
    firsts = np.unique(recordings, return_index=True)[1]
    if len(firsts) < len(recordings):
        labels, logits = labels[firsts], average_windows(logits, recordings)
    metrics = {"loss": float(F.cross_entropy(logits, labels))}
    metrics |= compute_metrics(logits.argmax(-1).numpy(), labels.numpy())
    return Evaluation(logits.numpy(), labels.numpy(), metrics, seconds)


def model_logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits of a batch, of shape (clips, labels)."""
    return model(input_values=batch["input_values"], attention_mask=batch["attention_mask"]).logits


def clip_losses(model: nn.Module, batch: dict[str, torch.Tensor], label_smoothing: float) -> torch.Tensor:
    """The cross-entropy of each clip of a batch, float32 of shape (clips,)."""
    logits = model_logits(model, batch).float()
    return F.cross_entropy(logits, batch["label"], reduction="none", label_smoothing=label_smoothing)


def average_windows(logits: torch.Tensor, recordings: torch.Tensor) -> torch.Tensor:
    """What is said of each recording: the mean of its windows' probabilities.

    Args:
        logits: Of shape (windows, labels).
        recordings: Which recording each window is of, from 0, of shape (windows,).

    Returns:
        Logarithms of those means, of shape (recordings, labels): their softmax is the mean.
    """
    total = torch.zeros(int(recordings.max()) + 1, logits.shape[1], dtype=torch.float64)
    total.index_add_(0, recordings, logits.double().softmax(-1))
    return (total / recordings.bincount()[:, None]).log().float()
