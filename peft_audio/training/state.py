"""Define the parts and the state of a training."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator

from peft_audio.errors import DivergedError
from peft_audio.strategies.base import Trainable


@dataclass(frozen=True)
class Best:
    """Best epoch so far: its score (higher is better), number and trained weights."""

    score: float = -math.inf
    epoch: int = 0
    weights: dict[str, torch.Tensor] | None = None

    def better_of(self, metrics: dict[str, float], score: float, epoch: int, model: Any, trained: Trainable) -> Best:
        """Return the better of this epoch and the given one, or this one if the scores are equal."""
        # The accuracy of NaN logits is a number, so the loss is checked.
        if not math.isfinite(metrics["loss"]) or not score > self.score:
            return self
        weights = dict(model.named_parameters())
        return Best(score, epoch, {name: weights[name].detach().cpu().clone() for name in trained.parameters})

    def restore(self, model: Any) -> Any:
        """Load these weights into the model and return it."""
        if self.weights is None:
            raise DivergedError("the validation loss was never a finite number; lower --train.learning_rate.")
        model.load_state_dict(self.weights, strict=False)
        return model


@dataclass
class TrainState:
    """State of a training.

    Attributes:
        micro_batches: Number of micro-batches per step and process.
        epoch: Current epoch, from 1.
        step: Number of optimizer steps done.
        step_in_epoch: Number of steps done in this epoch.
        losses: Logged losses of this epoch.
        unlogged: Log lines of steps whose loss is not summed over processes yet, each with this process's part.
        best: Best epoch so far.
        ended: Whether the training is finished.
        clips: Number of clips trained on, over all processes.
        train_seconds: Seconds of all steps, decoding included.
        validation_seconds: Seconds of the validations after each epoch.
        wait_seconds: Seconds that steps waited for batches.
        checkpoint_seconds: Seconds that checkpoints took.
        log_bytes: Size of the log of the run.
        resumes: Number of times that the run was resumed.
    """

    micro_batches: int
    epoch: int = 1
    step: int = 0
    step_in_epoch: int = 0
    losses: list[float] = field(default_factory=list)
    unlogged: list[dict[str, Any]] = field(default_factory=list)
    best: Best = Best()
    ended: bool = False
    clips: int = 0
    train_seconds: float = 0.0
    validation_seconds: float = 0.0
    wait_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    log_bytes: int = 0
    resumes: int = 0


@dataclass(frozen=True)
class Learner:
    """Model, optimizer and schedule of a training.

    Attributes:
        model: Model without wrappers.
        wrapped: Model that computes the loss, wrapped for several processes if there are any.
        trained: Parameters and modules that train.
        optimizer: Optimizer prepared by Accelerate.
        schedule: Schedule of the learning rates.
        accelerator: Processes and device.
    """

    model: Any
    wrapped: Any
    trained: Trainable
    optimizer: Any
    schedule: Any
    accelerator: Accelerator
