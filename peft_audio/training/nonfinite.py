"""Whether losses and gradients are numbers; where they are not, the run stops and names the clips."""

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


class Watch:
    """What each clip's loss was, in steps whose losses nobody has read yet: reading waits for the device.

    Args:
        loaders: Know the clips by their numbers.
    """

    def __init__(self, loaders: Loaders):
        self.loaders = loaders
        self.under_way: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.steps: list[list[tuple[torch.Tensor, torch.Tensor]]] = []
        self.norms: list[torch.Tensor] = []

    def see(self, indices: torch.Tensor, losses: torch.Tensor) -> None:
        """Remember the clips of a micro-batch."""
        self.under_way.append((indices, losses))

    def end_step(self, norm: torch.Tensor) -> None:
        """The step is made, with so large a gradient."""
        self.steps.append(self.under_way)
        self.norms.append(torch.as_tensor(norm))
        self.under_way = []

    def check(self, lines: Sequence[dict[str, Any]], epoch: int, accelerator: Accelerator) -> None:
        """Look at the steps that were remembered, the same on all processes, and forget them.

        Args:
            lines: Of the log: these steps, perhaps after others.
            epoch: Of them.
            accelerator: Where they were made.

        Raises:
            DivergedError: A loss or gradient is not a finite number.
        """
        # A run that was taken up again logs steps that another process made, and found to be finite.
        own = lines[len(lines) - len(self.steps) :]
        norms = accelerator.reduce(torch.stack(self.norms), reduction="sum").tolist()
        # With fp16, too large a gradient is how the loss scale is found, and the step is left out.
        scaled = accelerator.mixed_precision == "fp16"
        for line, clips, norm in zip(own, self.steps, norms, strict=True):
            if not math.isfinite(line["loss"]):
                self._stop("loss", line["loss"], line["step"], epoch, clips)
            if not math.isfinite(norm) and not scaled:
                self._stop("gradient", norm, line["step"], epoch, clips)
        self.steps, self.norms = [], []

    def _stop(
        self, what: str, value: float, step: int, epoch: int, clips: list[tuple[torch.Tensor, torch.Tensor]]
    ) -> NoReturn:
        mine = [name for indices, losses in clips for name in self._named(indices, losses)]
        count = sum(len(losses) for _, losses in clips)
        named = sorted({name for each in gather_object([mine]) for name in each})
        where = ""
        if named:
            all_of_them = len(named) >= count
            where = f"; all its clips: {listed(named)}" if all_of_them else f"; these clips give it: {listed(named)}"
        raise DivergedError(
            f"the {what} became {value} at step {step} (epoch {epoch}){where}. Lower --train.learning_rate, or raise "
            f"--train.warmup_share; {'listen to those clips; ' if named else ''}the last checkpoint stays as it is."
        )

    def _named(self, indices: torch.Tensor, losses: torch.Tensor) -> list[str]:
        """The ids of clips whose loss is not finite; of all, where that is none."""
        dataset = getattr(self.loaders.train, "dataset", None)
        rows = getattr(getattr(getattr(dataset, "wanted", None), "clips", dataset), "rows", None)
        bad = indices[~losses.isfinite()] if not bool(losses.isfinite().all()) else indices
        return [str(rows[int(i)]["id"]) for i in bad] if rows is not None else []
