"""What a training is made of, and how far it has come."""

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
    """The best epoch so far: its score (higher is better), number and trained weights."""

    score: float = -math.inf
    epoch: int = 0
    weights: dict[str, torch.Tensor] | None = None

    def better_of(self, metrics: dict[str, float], score: float, epoch: int, model: Any, trained: Trainable) -> Best:
        """Return itself, or the given epoch where its score is higher; the earlier one wins a tie."""
        # NaN logits have a label on top too, and so an accuracy.
        if not math.isfinite(metrics["loss"]) or not score > self.score:
            return self
        weights = dict(model.named_parameters())
        return Best(score, epoch, {name: weights[name].detach().cpu().clone() for name in trained.parameters})

    def restore(self, model: Any) -> Any:
        """The model with these weights."""
        if self.weights is None:
            raise DivergedError("the validation loss was never a finite number; lower --train.learning_rate.")
        model.load_state_dict(self.weights, strict=False)
        return model


@dataclass
class TrainState:
    """How far a training has come.

    Attributes:
        micro_batches: That one process makes of a step.
        epoch: Under way, from 1.
        step: Optimizer steps made.
        step_in_epoch: Of those, in this epoch.
        losses: Of this epoch's steps that were logged.
        unlogged: Steps whose losses no process has read yet: what the log gets, with this process's part of the loss.
        best: The best epoch.
        ended: The training is over.
        clips: Trainable on, over all processes.
        train_seconds: In steps, decoding included.
        validation_seconds: In the validations after each epoch.
        wait_seconds: For batches.
        checkpoint_seconds: For writing checkpoints.
        log_bytes: Of the run's log.
        resumes: How often the run was taken up again.
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
    """What learns, and what steps it.

    Attributes:
        model: Unwrapped.
        wrapped: What the loss is computed with.
        trained: What trains in it.
        optimizer: As Accelerate prepared it.
        schedule: Of its rates.
        accelerator: Where it runs.
    """

    model: Any
    wrapped: Any
    trained: Trainable
    optimizer: Any
    schedule: Any
    accelerator: Accelerator
