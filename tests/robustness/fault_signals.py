"""Signals that reach a run, and what must be said of them; faults.py runs it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.process import BaseProcess

from robustness import fault_hooks as hooks
from robustness.fault_cases import cases
from robustness.fault_stage import RESUME, SAVING, Stage

AGAIN = "--train.resume true"


def send(number: int, children: Sequence[BaseProcess], stage: Stage) -> None:
    """A signal, once a few steps were made."""
    stage.await_steps(2)
    os.kill(children[0].pid or 0, number)


def stopped_by(number: int) -> Callable[[Stage], int]:
    """A long run gets a signal."""

    def play(stage: Stage) -> int:
        act = partial(send, number, stage=stage)
        code = stage.run("--train.epochs", "40", hook=partial(hooks.slow_steps, 0.1), act=act)
        if not list(stage.root.glob("run/checkpoints/step-*/manifest.json")):
            stage.wrong.append("there is no checkpoint")
        return code

    return play


def while_reading(number: int) -> Callable[[Stage], int]:
    """A signal comes before there is anything to save."""

    def act(children: Sequence[BaseProcess], stage: Stage) -> None:
        stage.await_file(".run.lock")
        time.sleep(0.5)
        os.kill(children[0].pid or 0, number)

    return lambda stage: stage.run(hook=partial(hooks.slow_reading, 60), act=partial(act, stage=stage))


def twice(stage: Stage) -> int:
    """Ctrl-C, and again while the step under way takes its time."""

    def act(children: Sequence[BaseProcess]) -> None:
        stage.await_steps(3)
        for _ in range(2):
            time.sleep(1.5)
            os.kill(children[0].pid or 0, signal.SIGINT)

    return stage.run("--train.epochs", "40", hook=partial(hooks.slow_steps, 60, 4), act=act)


def killed(stage: Stage) -> int:
    """SIGKILL, and the same command again."""

    def act(children: Sequence[BaseProcess]) -> None:
        stage.await_steps(4)
        children[0].kill()

    code = stage.run(*SAVING, hook=partial(hooks.slow_steps, 0.3), act=act)
    if code != -signal.SIGKILL:
        stage.wrong.append(f"SIGKILL gave {code}")
    code = stage.run(*RESUME)
    stage.same_as_finished()
    return code


STOPPING = "with a checkpoint in run/checkpoints"
SIGNALS = cases(
    [
        (
            "signals",
            "SIGTERM in training",
            ["stopped by SIGTERM after step", STOPPING, AGAIN],
            stopped_by(signal.SIGTERM),
            143,
        ),
        (
            "signals",
            "Ctrl-C in training",
            ["stopped by SIGINT after step", STOPPING, AGAIN],
            stopped_by(signal.SIGINT),
            130,
        ),
        (
            "signals",
            "SIGUSR1 in training, as SLURM sends it",
            ["stopped by SIGUSR1 after step", STOPPING, AGAIN],
            stopped_by(signal.SIGUSR1),
            138,
        ),
        (
            "signals",
            "SIGTERM while recordings are read",
            ["stopped by SIGTERM", "--train.resume true"],
            while_reading(signal.SIGTERM),
            143,
        ),
        (
            "signals",
            "SIGUSR1 while recordings are read",
            ["stopped by SIGUSR1", "--train.resume true"],
            while_reading(signal.SIGUSR1),
            138,
        ),
        (
            "signals",
            "Ctrl-C while recordings are read",
            ["stopped before the end", "--train.resume true"],
            while_reading(signal.SIGINT),
            130,
        ),
        (
            "signals",
            "Ctrl-C again in a step that takes long",
            ["stopped before the end", "Ctrl-C stops at once"],
            twice,
            130,
        ),
        (
            "signals",
            "SIGKILL, and the same command with train.resume",
            ["resuming from run/checkpoints/step-"],
            killed,
            0,
        ),
    ]
)
CASES = SIGNALS
