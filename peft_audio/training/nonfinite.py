"""Stop a run whose loss or gradient is not finite, and name the clips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from peft_audio.data.loaders import Loaders
from peft_audio.errors import DivergedError
from peft_audio.text import listed


class NonFiniteGuard:
    """Record of the losses of each clip, in steps whose losses were not read yet, because reading waits for the device.

    Args:
        loaders: Loaders that map the numbers of clips to their ids.
    """

    def __init__(self, loaders: Loaders):
        self.loaders = loaders
        self.current: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.steps: list[list[tuple[torch.Tensor, torch.Tensor]]] = []
        self.norms: list[torch.Tensor] = []

    def add(self, indices: torch.Tensor, losses: torch.Tensor) -> None:
        """Record the losses of the clips of a micro-batch."""
        self.current.append((indices, losses))

    def end_step(self, norm: torch.Tensor) -> None:
        """Record the gradient norm at the end of a step."""
        self.steps.append(self.current)
        self.norms.append(torch.as_tensor(norm))
        self.current = []

    def check(self, lines: Sequence[dict[str, Any]], epoch: int, accelerator: Accelerator) -> None:
        """Check the recorded steps and clear the record. All processes must call this.

        Args:
            lines: Lines of the log that end with these steps.
            epoch: Epoch of the steps.
            accelerator: Processes and device.

        Raises:
            DivergedError: A loss or gradient is not a finite number.
        """
        # A resumed run also logs steps of the process before it, which were checked there.
        own = lines[len(lines) - len(self.steps) :]
        norms = accelerator.reduce(torch.stack(self.norms), reduction="sum").tolist()
        # With fp16, an infinite gradient lowers the loss scale, and the step is skipped.
        scaled = accelerator.mixed_precision == "fp16"
        for line, clips, norm in zip(own, self.steps, norms, strict=True):
            if not math.isfinite(line["loss"]):
                self._stop("loss", line["loss"], line["step"], epoch, clips)
            if not math.isfinite(norm) and not scaled:
                self._stop("gradient", norm, line["step"], epoch, clips)
        self.steps, self.norms = [], []

    def _stop(
        self, quantity: str, value: float, step: int, epoch: int, clips: list[tuple[torch.Tensor, torch.Tensor]]
    ) -> NoReturn:
        """Stop the run with an error that names the clips of all processes."""
        mine = [name for indices, losses in clips for name in self._named(indices, losses)]
        count = sum(len(losses) for _, losses in clips)
        named = sorted({name for each in gather_object([mine]) for name in each})
        where = ""
        if named:
            all_of_them = len(named) >= count
            where = f"; {'all clips of the step' if all_of_them else 'clips'}: {listed(named)}"
        raise DivergedError(
            f"the {quantity} became {value} at step {step} (epoch {epoch}){where}. Lower --train.learning_rate or "
            f"raise --train.warmup_share{', or check these clips' if named else ''}. The last checkpoint is kept."
        )

    def _named(self, indices: torch.Tensor, losses: torch.Tensor) -> list[str]:
        """Return the ids of the clips whose loss is not finite, or of all clips if each loss is finite."""
        dataset = getattr(self.loaders.train, "dataset", None)
        rows = getattr(getattr(getattr(dataset, "split", None), "clips", dataset), "rows", None)
        bad = indices[~losses.isfinite()] if not bool(losses.isfinite().all()) else indices
        return [str(rows[int(i)]["id"]) for i in bad] if rows is not None else []
