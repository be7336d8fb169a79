"""Signals that ask a run to stop: it saves a checkpoint after the step under way, on all processes alike."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator

from peft_audio.errors import STOPPING

SIGNALS = [*STOPPING, signal.SIGINT]
# A launcher passes on the Ctrl-C that its processes have got from the terminal already.
SAME_KEY_SECONDS = 1.0


@dataclass
class Stop:
    """Whether this process was asked to stop.

    Attributes:
        signal: By which signal; 0 for none.
        since: `time.monotonic()` of the first.
        group: Over which processes agree on the CPU; None for the default one.
    """

    signal: int = 0
    since: float = 0.0
    group: Any = None


@contextmanager
def stop_on_signals(accelerator: Accelerator) -> Iterator[Stop]:
    """While this lasts, signals only set what is yielded; a second Ctrl-C interrupts at once.

    Outside of the main thread, where Python allows no handlers, signals do what they did.
    """
    several = accelerator.num_processes > 1
    # NCCL's group would let the CPU wait for the GPU in every step.
    group = torch.distributed.new_group(backend="gloo") if several and accelerator.device.type != "cpu" else None
    stop = Stop(group=group)

    def note(number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if stop.signal and number == signal.SIGINT and now - stop.since > SAME_KEY_SECONDS:
            raise KeyboardInterrupt
        if not stop.signal:
            stop.signal, stop.since = number, now
            if accelerator.is_main_process:
                # A handler may come in the middle of another print.
                os.write(2, b"stopping after this step, with a checkpoint; Ctrl-C stops at once\n")

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def agree(stop: Stop, due: bool, accelerator: Accelerator) -> tuple[int, bool]:
    """The signal that any process got, and whether the first process finds that a checkpoint is due; on all alike."""
    if accelerator.num_processes == 1:
        return stop.signal, due
    said = torch.tensor([stop.signal, int(due and accelerator.is_main_process)])
    torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MAX, group=stop.group)
    return int(said[0]), bool(said[1])
