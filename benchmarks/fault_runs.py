"""What breaks in a run at work and on its disk, signals, and what must be said of it; faults.py runs it."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.process import BaseProcess

import fault_hooks as hooks
import numpy as np
import pandas as pd
from fault_cases import CLIP, Case, once
from fault_stage import RESUME, SAVING, Stage

KEPT = "the last checkpoint stays as it is"
AGAIN = "--train.resume true goes on"
TRAINED = "peft_audio.training:clip_losses"


def small_memory(stage: Stage) -> int:
    """The largest micro-batch that fits is found, and the run comes to the same but for rounding."""
    code = stage.run("--train.auto_micro_batch", "true", hook=partial(hooks.small_memory, 2))
    found, plain = (pd.read_parquet(run / "predictions.parquet") for run in (stage.root / "run", stage.whole()))
    columns = [name for name in found if name.startswith("probability_")]
    if not np.allclose(found[columns], plain[columns], atol=1e-4):
        stage.wrong.append("predictions are not those of a run with more memory")
    return code


def kill_another(children: Sequence[BaseProcess], stage: Stage) -> None:
    """Of two processes, the second one is killed."""
    stage.await_steps(1)
    children[1].kill()


def one_of_two(stage: Stage) -> int:
    """Two processes train, and one of them dies."""
    kill = partial(kill_another, stage=stage)
    flags = [*SAVING, "--train.epochs", "40"]
    return stage.run(*flags, processes=2, hook=partial(hooks.slow_steps, 0.1), act=kill)


TRAINING = [
    Case(*row)
    for row in [
        (
            "training",
            "one clip gives a loss that is NaN",
            ["the loss became nan at step", "these clips give it: low/3.wav", KEPT],
            once(*SAVING, hook=partial(hooks.nan_from, "low/3.wav")),
        ),
        (
            "training",
            "a gradient overflows",
            ["the gradient became", "Lower --train.learning_rate", KEPT],
            once(hook=partial(hooks.infinite_gradient, 2)),
        ),
        (
            "training",
            "a learning rate of 1e30",
            ["became", "Lower --train.learning_rate", KEPT],
            once("--train.learning_rate", "1e30", "--train.warmup_share", "0"),
        ),
        (
            "training",
            "a process that reads recordings is killed",
            ["a process that reads recordings died", "Lower --data.num_workers", AGAIN],
            once("--data.num_workers", "1", hook=partial(hooks.kill_worker, 5)),
        ),
        ("training", "one of two training processes is killed", ["another process", AGAIN], one_of_two),
        (
            "training",
            "memory is too small in step 3",
            ["memory is too small (CUDA out of memory", "--train.auto_micro_batch true"],
            once(hook=partial(hooks.out_of_memory, TRAINED, 3)),
        ),
        (
            "training",
            "memory is too small in an evaluation",
            ["memory is too small", "lower --train.batch_size"],
            once(hook=hooks.out_of_memory_in_evaluation),
        ),
        (
            "training",
            "memory for two clips, with train.auto_micro_batch",
            ["auto_micro_batch: each process splits its part of a step into 4"],
            small_memory,
            0,
        ),
        (
            "training",
            "memory for no clip, with train.auto_micro_batch",
            ["a clip at a time does not fit into memory", "Lower --data.max_seconds"],
            once("--train.auto_micro_batch", "true", hook=partial(hooks.small_memory, 0)),
        ),
        (
            "training",
            "the run's folder is removed",
            ["run/metrics.jsonl", "removed"],
            once(hook=partial(hooks.remove_folder, "run", 2)),
        ),
        (
            "tracker",
            "TensorBoard cannot start",
            ["note: the tracker tensorboard failed", "metrics.jsonl goes on"],
            once("--train.log_with", "[tensorboard]", hook=partial(hooks.failing_tracker, "start")),
            0,
        ),
        (
            "tracker",
            "TensorBoard's disk is away",
            ["note: the tracker tensorboard failed", "metrics.jsonl goes on"],
            once("--train.log_with", "[tensorboard]", hook=partial(hooks.failing_tracker, "log")),
            0,
        ),
        (
            "adapter",
            "what was written has other weights",
            ["did not reproduce its logits", "run/adapter.partial"],
            once("--train.verify_adapter", "true", hook=hooks.other_weights),
        ),
        (
            "adapter",
            "the process that loads a copy is killed",
            ["SIGKILL", "run/adapter.partial", "--train.verify_adapter false"],
            once(
                "--train.verify_adapter",
                "true",
                hook=partial(hooks.verifying_process, "import os; os.kill(os.getpid(), 9)"),
            ),
        ),
        (
            "adapter",
            "the process that loads a copy cannot start",
            ["No module named", "run/adapter.partial"],
            once("--train.verify_adapter", "true", hook=partial(hooks.verifying_process, "import absent_package")),
        ),
        (
            "adapter",
            "the process that loads a copy hangs",
            ["took more than 2 s", "Check it with"],
            once(
                "--train.verify_adapter", "true", hook=partial(hooks.verifying_process, "import time; time.sleep(60)")
            ),
        ),
    ]
]


def full(where: str, empty_again: bool = False, *flags: str) -> Callable[[Stage], int]:
    """The disk of the run is full when a function is called."""

    def play(stage: Stage) -> int:
        stage.mount("disk", "size=8m")
        stage.out = "disk/run"
        code = stage.run(*flags, hook=partial(hooks.fill_disk, "disk", where, empty_again))
        shutil.copytree(stage.root / "disk", stage.root / "copy")
        stage.unmount("disk")
        shutil.copytree(stage.root / "copy", stage.root / "disk", dirs_exist_ok=True)
        return code

    return play


FULL = ["the disk is full", "disk/run", "Make room", AGAIN]
DISK = [
    Case(*row)
    for row in [
        ("disk", "full when the run's folder is made", FULL, full("peft_audio.run:start_run")),
        ("disk", "full at metrics.jsonl", FULL, full("peft_audio.training:_read_losses")),
        (
            "disk",
            "full while a checkpoint is written",
            ["note: no checkpoint of step", "No space left on device", "training goes on without"],
            full("peft_audio.saver:save_position", True, *SAVING),
            0,
        ),
        ("disk", "full at predictions.parquet", FULL, full("peft_audio.run:save_predictions")),
        ("disk", "full while the adapter is saved", FULL, full("peft_audio.saving:write_adapter")),
        ("disk", "full at report.json", FULL, full("peft_audio.report:write_report")),
        (
            "disk",
            "full while the frozen prefix is kept",
            ["prefix cache: not used", "No space left on device"],
            full(
                "peft_audio.prefix_cache:write_features",
                True,
                "--prefix_cache.use",
                "always",
                "--prefix_cache.folder",
                "disk/prefixes",
            ),
            0,
        ),
        (
            "disk",
            "a file in the place of the prefix cache",
            ["prefix cache: not used", "file"],
            once("--prefix_cache.use", "always", "--prefix_cache.folder", CLIP),
            0,
        ),
    ]
]


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
        send(signal.SIGINT, children, stage)
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
SIGNALS = [
    Case(*row)
    for row in [
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
            ["going on from run/checkpoints/step-"],
            killed,
            0,
        ),
    ]
]
CASES = [*TRAINING, *DISK, *SIGNALS]
