"""When a training's checkpoint is due; and how a run ends that was asked to stop."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass, field

from peft_audio.config import TrainConfig
from peft_audio.errors import SaveError, Stopped
from peft_audio.training.resuming import save_position
from peft_audio.training.signals import Stop, agree
from peft_audio.training.state import Checkpoints, Learner, TrainState
from peft_audio.training.tracking import Log

# Saving takes at most this share of the time, whatever the clock says.
MOST = 0.01


@dataclass
class Saver:
    """Saves where one is due.

    Attributes:
        learner: What learns.
        cfg: How often.
        log: Of the run.
        checkpoints: Where to; nothing is saved where that is None.
        stop: Whether a signal came.
        last: `time.monotonic()` when the last one was written.
        took: Seconds that it took.
    """

    learner: Learner
    cfg: TrainConfig
    log: Log
    checkpoints: Checkpoints | None
    stop: Stop
    last: float = field(default_factory=time.monotonic)
    took: float = 0.0

    def if_due(self, at: TrainState) -> None:
        """Save, after a step or an epoch, if that is due by steps, by the clock, by a signal or by the training's end.

        Raises:
            Stopped: A signal came.
        """
        if self.checkpoints is None:
            return
        every, accelerator = self.cfg.checkpoint_every_steps, self.learner.accelerator
        number, due = agree(self.stop, self._by_the_clock(), accelerator)
        by_steps = every is not None and at.step_in_epoch > 0 and at.step % every == 0
        if not (number or due or by_steps or at.ended):
            return
        failed = self._save(at, self.checkpoints)
        if failed and accelerator.is_main_process:
            print(f"note: no checkpoint of step {at.step}: {failed}; training goes on without", flush=True)
        if number:
            accelerator.wait_for_everyone()
            kept = "without a new checkpoint" if failed else f"with a checkpoint in {self.checkpoints.folder}"
            name = signal.Signals(number).name
            raise Stopped(
                f"stopped by {name} after step {at.step}, {kept}. The same command with --train.resume true goes on.",
                number,
            )

    def _by_the_clock(self) -> bool:
        minutes = self.cfg.checkpoint_every_minutes
        return minutes is not None and time.monotonic() - self.last >= max(60 * minutes, self.took / MOST)

    def _save(self, at: TrainState, checkpoints: Checkpoints) -> SaveError | None:
        began = time.monotonic()
        at.log_bytes = self.log.sync()
        failed: SaveError | None = None
        try:
            save_position(self.learner, at, checkpoints, self.cfg.keep_checkpoints)
        except SaveError as error:
            failed = error
        self.last = time.monotonic()
        self.took = self.last - began
        at.checkpoint_seconds += self.took
        return failed
