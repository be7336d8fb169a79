"""What breaks in a run at work, on its disk, by signals and where it goes on, and what must be said of it."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import fault_hooks as hooks
import numpy as np
import pandas as pd
from fault_inputs import CLIP, Case, Payload, once, remove, samples
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
        ("training", "one clip gives a loss that is NaN", ["the loss became nan at step", "these clips give it: low/3.wav", KEPT], once(*SAVING, hook=partial(hooks.nan_from, "low/3.wav"))),
        ("training", "a gradient overflows", ["the gradient became", "Lower --train.learning_rate", KEPT], once(hook=partial(hooks.infinite_gradient, 2))),
        ("training", "a learning rate of 1e30", ["became", "Lower --train.learning_rate", KEPT], once("--train.learning_rate", "1e30", "--train.warmup_share", "0")),
        ("training", "a process that reads recordings is killed", ["a process that reads recordings died", "Lower --data.num_workers", AGAIN], once("--data.num_workers", "1", hook=partial(hooks.kill_worker, 5))),
        ("training", "one of two training processes is killed", ["another process", AGAIN], one_of_two),
        ("training", "memory is too small in step 3", ["memory is too small (CUDA out of memory", "--train.auto_micro_batch true"], once(hook=partial(hooks.out_of_memory, TRAINED, 3))),
        ("training", "memory is too small in an evaluation", ["memory is too small", "lower --train.batch_size"], once(hook=hooks.out_of_memory_in_evaluation)),
        ("training", "memory for two clips, with train.auto_micro_batch", ["auto_micro_batch: each process splits its part of a step into 4"], small_memory, 0),
        ("training", "memory for no clip, with train.auto_micro_batch", ["a clip at a time does not fit into memory", "Lower --data.max_seconds"], once("--train.auto_micro_batch", "true", hook=partial(hooks.small_memory, 0))),
        ("training", "the run's folder is removed", ["run/metrics.jsonl", "removed"], once(hook=partial(hooks.remove_folder, "run", 2))),
        ("tracker", "TensorBoard cannot start", ["note: the tracker tensorboard failed", "metrics.jsonl goes on"], once("--train.log_with", "[tensorboard]", hook=partial(hooks.failing_tracker, "start")), 0),
        ("tracker", "TensorBoard's disk is away", ["note: the tracker tensorboard failed", "metrics.jsonl goes on"], once("--train.log_with", "[tensorboard]", hook=partial(hooks.failing_tracker, "log")), 0),
        ("adapter", "what was written has other weights", ["did not reproduce its logits", "run/adapter.partial"], once("--train.verify_adapter", "true", hook=hooks.other_weights)),
        ("adapter", "the process that loads a copy is killed", ["SIGKILL", "run/adapter.partial", "--train.verify_adapter false"], once("--train.verify_adapter", "true", hook=partial(hooks.verifying_process, "import os; os.kill(os.getpid(), 9)"))),
        ("adapter", "the process that loads a copy cannot start", ["No module named", "run/adapter.partial"], once("--train.verify_adapter", "true", hook=partial(hooks.verifying_process, "import absent_package"))),
        ("adapter", "the process that loads a copy hangs", ["took more than 2 s", "Check it with"], once("--train.verify_adapter", "true", hook=partial(hooks.verifying_process, "import time; time.sleep(60)"))),
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
        ("disk", "full while a checkpoint is written", ["note: no checkpoint of step", "No space left on device", "training goes on without"], full("peft_audio.saver:save_position", True, *SAVING), 0),
        ("disk", "full at predictions.parquet", FULL, full("peft_audio.run:save_predictions")),
        ("disk", "full while the adapter is saved", FULL, full("peft_audio.saving:write_adapter")),
        ("disk", "full at report.json", FULL, full("peft_audio.report:write_report")),
        ("disk", "full while the frozen prefix is kept", ["prefix cache: not used", "No space left on device"], full("peft_audio.prefix_cache:write_features", True, "--prefix_cache.use", "always", "--prefix_cache.folder", "disk/prefixes"), 0),
        ("disk", "a file in the place of the prefix cache", ["prefix cache: not used", "file"], once("--prefix_cache.use", "always", "--prefix_cache.folder", CLIP), 0),
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
        ("signals", "SIGTERM in training", ["stopped by SIGTERM after step", STOPPING, AGAIN], stopped_by(signal.SIGTERM), 143),
        ("signals", "Ctrl-C in training", ["stopped by SIGINT after step", STOPPING, AGAIN], stopped_by(signal.SIGINT), 130),
        ("signals", "SIGUSR1 in training, as SLURM sends it", ["stopped by SIGUSR1 after step", STOPPING, AGAIN], stopped_by(signal.SIGUSR1), 138),
        ("signals", "SIGTERM while recordings are read", ["stopped by SIGTERM", "--train.resume true"], while_reading(signal.SIGTERM), 143),
        ("signals", "SIGUSR1 while recordings are read", ["stopped by SIGUSR1", "--train.resume true"], while_reading(signal.SIGUSR1), 138),
        ("signals", "Ctrl-C while recordings are read", ["stopped before the end", "--train.resume true"], while_reading(signal.SIGINT), 130),
        ("signals", "Ctrl-C again in a step that takes long", ["stopped before the end", "Ctrl-C stops at once"], twice, 130),
        ("signals", "SIGKILL, and the same command with train.resume", ["going on from run/checkpoints/step-"], killed, 0),
    ]
]


def resume(
    *flags: str,
    make: Callable[[Path], Any] | None = None,
    run: str = "stopped",
    same: bool = False,
    processes: int = 1,
) -> Callable[[Stage], int]:
    """Something changed between a run and the command that is to go on with it."""

    def play(stage: Stage) -> int:
        stage.take(run)
        if make:
            make(stage.root)
        code = stage.run(*RESUME, *flags, processes=processes)
        if same:
            stage.same_as_finished()
        return code

    return play


def damage(*names: str, newest: bool = True) -> Callable[[Path], Any]:
    """Files of the newest checkpoint, or of all, are cut."""

    def make(root: Path) -> None:
        for folder in sorted((root / "run/checkpoints").glob("step-*"))[-1 if newest else 0 :]:
            for name in names:
                os.truncate(folder / name, (folder / name).stat().st_size // 2)

    return make


def state(**changes: Any) -> Callable[[Path], Any]:
    """The state in all checkpoints says something else, with a hash that fits."""

    def make(root: Path) -> None:
        for folder in (root / "run/checkpoints").glob("step-*"):
            stored = json.loads((folder / "state.json").read_text())
            for name, value in changes.items():
                stored[name] = stored[name] | value if isinstance(stored[name], dict) else value
            content = json.dumps(stored).encode()
            (folder / "state.json").write_bytes(content)
            manifest = json.loads((folder / "manifest.json").read_text())
            manifest["state.json"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            (folder / "manifest.json").write_text(json.dumps(manifest))

    return make


def pickles(root: Path) -> None:
    """Pickles with a payload, by the names that other trainers use."""
    for folder in (root / "run/checkpoints").glob("step-*"):
        for name in ("optimizer.pt", "random_states_0.pkl", "pytorch_model.bin"):
            (folder / name).write_bytes(pickle.dumps(Payload()))


def cut_log(root: Path) -> None:
    """The log lost its end."""
    os.truncate(root / "run/metrics.jsonl", 40)


def another_base(root: Path) -> None:
    """The encoder's weights are others."""
    from safetensors.torch import load_file, save_file

    stored = load_file(root / "base/model.safetensors")
    save_file({k: v + 0.01 for k, v in stored.items()}, root / "base/model.safetensors", metadata={"format": "pt"})


OTHER = ["the run in run is another one", "Start the command that began it", "--train.overwrite true to start afresh"]
BEFORE = "the one before it is used"
NONE_WHOLE = ["no checkpoint in run/checkpoints is whole", "--train.overwrite true starts afresh"]
ADDED = samples("data/low/new.wav", np.random.default_rng(1).uniform(-0.5, 0.5, 8000))
RESUMING = [
    Case(*row)
    for row in [
        ("resume", "nothing to go on from", ["nothing to go on from in run: the run starts afresh"], lambda stage: stage.run(*RESUME), 0),
        ("resume", "another setting", [*OTHER, "train.seed 0 there, 1 here"], resume("--train.seed", "1")),
        ("resume", "another setting, with train.overwrite", ["note: --train.resume: the run in run is another one", "it starts afresh"], resume("--train.seed", "1", "--train.overwrite", "true"), 0),
        ("resume", "a recording was added", [*OTHER, "recordings"], resume(make=ADDED)),
        ("resume", "another encoder of the same name", [*OTHER, "encoder"], resume(make=another_base)),
        ("resume", "another number of processes", [*OTHER, "processes 1 there, 2 here"], resume(processes=2)),
        ("resume", "a finished run", ["the run in run is finished; nothing is left to do"], resume(run="finished", same=True), 0),
        ("resume", "a finished run, with another setting", ["the run in run is finished, with other settings (train.seed 0 there, 1 here)"], resume("--train.seed", "1", run="finished"), 2, True),
        ("resume", "a finished run whose config.yaml is damaged", ["run/config.yaml cannot be read"], resume(make=lambda root: (root / "run/config.yaml").write_text("train: {"), run="finished"), 2, True),
        ("resume", "the newest checkpoint's weights are damaged", [BEFORE, "step-00000004 is damaged"], resume(make=damage("trained.safetensors"), same=True), 0),
        ("resume", "the newest checkpoint's state is damaged", [BEFORE, "step-00000004 is damaged"], resume(make=damage("state.json"), same=True), 0),
        ("resume", "the newest checkpoint has no manifest", [BEFORE, "manifest.json"], resume(make=remove("run/checkpoints/step-00000004/manifest.json"), same=True), 0),
        ("resume", "all checkpoints are damaged", NONE_WHOLE, resume(make=damage("optimizer.safetensors", newest=False))),
        ("resume", "all are damaged, with train.overwrite", ["note: --train.resume: no checkpoint", "it starts afresh"], resume("--train.overwrite", "true", make=damage("state.json", newest=False)), 0),
        ("resume", "the log was cut", ["run/metrics.jsonl was removed or cut", "--train.overwrite true starts afresh"], resume(make=cut_log)),
        ("resume", "a step that is a text", ["does not fit this run", "--train.overwrite true starts afresh"], resume(make=state(position={"step": "4"}))),
        ("resume", "no position at all", ["does not fit this run", "--train.overwrite true starts afresh"], resume(make=state(position=[]))),
        ("resume", "best weights from a folder elsewhere", ["it has its best weights in '../../../base'", *NONE_WHOLE], resume(make=state(best_folder="../../../base"))),
        ("resume", "pickles with a payload beside the checkpoint", ["going on from run/checkpoints/step-00000004"], resume(make=pickles, same=True), 0),
    ]
]
CASES = [*TRAINING, *DISK, *SIGNALS, *RESUMING]
