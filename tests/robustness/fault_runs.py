"""What breaks in a run at work and on its disk, and what must be said of it; faults.py runs it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.process import BaseProcess

import numpy as np
from robustness import fault_hooks as hooks
from robustness.fault_cases import CLIP, cases, once
from robustness.fault_stage import SAVING, Stage

from peft_audio.errors import DivergedError
from peft_audio.runs.predictions import read_predictions

KEPT = "The last checkpoint is kept"
AGAIN = "--train.resume true to resume"
TRAINED = "peft_audio.training.loop:clip_losses"


def small_memory(stage: Stage) -> int:
    """The largest micro-batch that fits is found, and the run comes to the same but for rounding."""
    code = stage.run("--train.auto_micro_batch", "true", hook=partial(hooks.small_memory, 2))
    found, plain = (read_predictions(run / "predictions.parquet") for run in (stage.root / "run", stage.whole()))
    if not np.allclose(found.probabilities, plain.probabilities, atol=1e-4):
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


TRAINING = cases(
    [
        (
            "training",
            "one clip gives a loss that is NaN",
            ["the loss became nan at step", "clips: low/3.wav", KEPT],
            once(*SAVING, hook=partial(hooks.nan_from, "low/3.wav")),
            DivergedError.exit_code,
        ),
        (
            "training",
            "a gradient overflows",
            ["the gradient became", "Lower --train.learning_rate", KEPT],
            once(hook=partial(hooks.infinite_gradient, 2)),
            DivergedError.exit_code,
        ),
        (
            "training",
            "a learning rate of 1e30",
            ["became", "Lower --train.learning_rate", KEPT],
            once("--train.learning_rate", "1e30", "--train.warmup_share", "0"),
            DivergedError.exit_code,
        ),
        (
            "training",
            "a process that reads recordings is killed",
            ["a process that reads recordings died", "Lower --data.num_workers", AGAIN],
            once("--data.num_workers", "1", hook=partial(hooks.kill_worker, 5)),
        ),
        (
            "training",
            "one of two training processes is killed",
            ["another process of this run", AGAIN],
            one_of_two,
        ),
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
            ["auto_micro_batch: 4 micro-batches per step and process"],
            small_memory,
            0,
        ),
        (
            "training",
            "memory for no clip, with train.auto_micro_batch",
            ["one clip does not fit into memory", "Lower --data.max_seconds"],
            once("--train.auto_micro_batch", "true", hook=partial(hooks.small_memory, 0)),
        ),
        (
            "training",
            "the run's folder is removed",
            ["run/metrics.jsonl does not exist", AGAIN],
            once(hook=partial(hooks.remove_folder, "run", 2)),
        ),
        (
            "tracker",
            "TensorBoard cannot start",
            ["note: disabled tracker tensorboard after an error", "still logging to metrics.jsonl"],
            once("--train.log_with", "[tensorboard]", hook=partial(hooks.failing_tracker, "start")),
            0,
        ),
        (
            "tracker",
            "TensorBoard's disk is away",
            ["note: disabled tracker tensorboard after an error", "still logging to metrics.jsonl"],
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
            ["took more than 2 s", "Check them with"],
            once(
                "--train.verify_adapter", "true", hook=partial(hooks.verifying_process, "import time; time.sleep(60)")
            ),
        ),
    ]
)


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
DISK = cases(
    [
        ("disk", "full when the run's folder is made", FULL, full("peft_audio.runs.run:start_run")),
        ("disk", "full at metrics.jsonl", FULL, full("peft_audio.training.loop:_read_losses")),
        (
            "disk",
            "full while a checkpoint is written",
            ["note: no checkpoint of step", "No space left on device", "training continues without it"],
            full("peft_audio.training.checkpointing:save_state", True, *SAVING),
            0,
        ),
        ("disk", "full at predictions.parquet", FULL, full("peft_audio.runs.run:save_predictions")),
        ("disk", "full while the adapter is saved", FULL, full("peft_audio.adapters.save:write_adapter")),
        ("disk", "full at report.json", FULL, full("peft_audio.runs.report:write_report")),
        (
            "disk",
            "no room for what the frozen prefix returns",
            ["prefix cache: not used: it needs", "has no room"],
            full(
                "peft_audio.feature_cache.cache:write_features",
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
            ["prefix cache: not used: data/low/3.wav", "File exists"],
            once("--prefix_cache.use", "always", "--prefix_cache.folder", CLIP),
            0,
        ),
    ]
)
CASES = [*TRAINING, *DISK]
