"""Stop a run after the current step when it receives a signal, with a checkpoint, on all processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator

from peft_audio.errors import STOPPING
from peft_audio.processes import signal_handlers

SIGNALS = [*STOPPING, signal.SIGINT]
# Within this time, SIGINT is the same Ctrl-C: a launcher forwards what its processes got from the terminal too.
SAME_KEY_SECONDS = 1.0


@dataclass
class Stop:
    """Request to stop that this process received.

    Attributes:
        signal: Number of the first signal; 0 for none.
        since: `time.monotonic()` of the first.
        group: Process group for agreeing on the CPU; None for the default group.
    """

    signal: int = 0
    since: float = 0.0
    group: Any = None


@contextmanager
def stop_on_signals(accelerator: Accelerator) -> Iterator[Stop]:
    """Record signals in the yielded `Stop` instead of ending the process; a second Ctrl-C interrupts at once."""
    several = accelerator.num_processes > 1
    # With the group of NCCL, the CPU would wait for the GPU in every step.
    group = torch.distributed.new_group(backend="gloo") if several and accelerator.device.type != "cpu" else None
    stop = Stop(group=group)

    def record(number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if stop.signal and number == signal.SIGINT and now - stop.since > SAME_KEY_SECONDS:
            raise KeyboardInterrupt
        if not stop.signal:
            stop.signal, stop.since = number, now
            if accelerator.is_main_process:
                # A handler can interrupt a print, and print is not reentrant.
                os.write(2, b"stopping after this step, with a checkpoint; Ctrl-C stops at once\n")

    with signal_handlers(dict.fromkeys(SIGNALS, record)):
        yield stop


def agree(stop: Stop, due: bool, accelerator: Accelerator) -> tuple[int, bool]:
    """Return the signal that any process received, and whether a checkpoint is due on the first process."""
    if accelerator.num_processes == 1:
        return stop.signal, due
    request = torch.tensor([stop.signal, int(due and accelerator.is_main_process)])
    torch.distributed.all_reduce(request, torch.distributed.ReduceOp.MAX, group=stop.group)
    return int(request[0]), bool(request[1])
