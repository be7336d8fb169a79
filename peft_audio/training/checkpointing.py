"""Write checkpoints of a training, and resume a training from them.

A checkpoint is written to a temporary folder, synced and renamed. Damaged ones are skipped, and nothing is unpickled.
"""

from __future__ import annotations

import json
import random
import re
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from peft_audio.config import TrainConfig
from peft_audio.errors import ResumeError, SaveError, Stopped, in_one_line
from peft_audio.files import atomic_folder, file_sha256, remove_folder
from peft_audio.strategies.base import Trainable
from peft_audio.training.signals import Stop, agree
from peft_audio.training.state import Best, Learner, TrainState
from peft_audio.training.tracking import Log

MANIFEST = "manifest.json"
STATE = "state.json"
STEP, BEST = "step-", "best-"
# Advice for a checkpoint that is intact but does not fit.
MISMATCH_ADVICE = (
    "Remove it to resume from the one before; --train.overwrite true, without --train.resume, starts from scratch."
)
_OURS = re.compile(rf"({STEP}|{BEST})\d{{8}}")

Tensors = Mapping[str, Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class Checkpoint:
    """Contents of a checkpoint.

    Attributes:
        folder: Folder of the checkpoint.
        state: Values of its JSON file.
        tensors: Tensors by file name without suffix, then by tensor name.
    """

    folder: Path
    state: dict[str, Any]
    tensors: dict[str, dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Checkpoints:
    """Checkpoints of a run.

    Attributes:
        folder: Folder of the checkpoints.
        about: Facts that identify the run; a run resumes only from checkpoints with the same facts.
        began: `time.perf_counter()` at the start of the run, minus the seconds that it ran before it was resumed.
        newest: Checkpoint to resume from, if there is one.
    """

    folder: Path
    about: dict[str, Any]
    began: float
    newest: Checkpoint | None = None


def write_checkpoint(folder: Path, state: Mapping[str, Any], tensors: Tensors) -> None:
    """Write a checkpoint atomically, even if the machine stops while it is written.

    Args:
        folder: Folder of the checkpoint; its name starts with `STEP` or `BEST`.
        state: Values that JSON can hold.
        tensors: Tensors by file name without suffix, then by tensor name.

    Raises:
        OSError: The checkpoint cannot be written; no partial folder remains.
    """
    try:
        with atomic_folder(folder) as partial:
            (partial / STATE).write_text(json.dumps(state) + "\n", encoding="utf-8")
            for name, of_file in tensors.items():
                values = {key: value.detach().cpu().contiguous() for key, value in of_file.items()}
                save_file(values, partial / f"{name}.safetensors", metadata={"format": "pt"})
            manifest = {path.name: _facts(path) for path in sorted(partial.iterdir())}
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    except SafetensorError as error:
        raise OSError(str(error)) from error


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint, with the weights of the best epoch as its file `best`.

    Raises:
        ResumeError: It or its best weights are damaged or cannot be read.
    """
    checkpoint = _read_folder(folder)
    best = checkpoint.state.get("best_folder")
    if best is not None:
        if not isinstance(best, str) or not _OURS.fullmatch(best):
            raise ResumeError(
                f"the checkpoint {folder} is damaged (it names {best!r} as the folder of its best weights)"
            )
        checkpoint.tensors["best"] = _read_folder(folder.parent / best).tensors.get("trained", {})
    return checkpoint


def _read_folder(folder: Path) -> Checkpoint:
    """Read a checkpoint folder, and check its files against its manifest."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, facts in manifest.items():
            if Path(name).name != name or _facts(folder / name) != facts:
                raise ValueError(f"{name} was changed after it was written")
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        files = {Path(name).stem: load_file(folder / name) for name in manifest if name.endswith(".safetensors")}
        if not isinstance(state, dict) or STATE not in manifest:
            raise ValueError(f"{STATE} is not a JSON object listed in the manifest")
    except (OSError, ValueError, AttributeError, RecursionError, SafetensorError) as error:
        raise ResumeError(f"the checkpoint {folder} is damaged ({in_one_line(error)})") from error
    return Checkpoint(folder, state, files)


def newest_checkpoint(root: Path, notify: Callable[[str], None]) -> Checkpoint | None:
    """Read the newest intact checkpoint.

    Args:
        root: Folder with the checkpoints of a run.
        notify: Function that gets a note for each damaged checkpoint.

    Returns:
        The checkpoint; None if the folder holds none.

    Raises:
        ResumeError: The folder holds checkpoints and all are damaged.
    """
    folders = sorted((path for path in root.glob(f"{STEP}*") if _OURS.fullmatch(path.name)), reverse=True)
    for folder in folders:
        try:
            return read_checkpoint(folder)
        except ResumeError as error:
            notify(f"note: {error}; using the one before it")
    if folders:
        raise ResumeError(
            f"--train.resume: all checkpoints in {root} are damaged; --train.overwrite true starts from scratch."
        )
    return None


def keep_newest(root: Path, count: int) -> None:
    """Remove all but the `count` newest checkpoints and the best weights that they name."""
    steps = sorted(path for path in root.glob(f"{STEP}*") if _OURS.fullmatch(path.name))
    kept = {path.name for path in steps[-count:]}
    for path in steps[-count:]:
        # The state of a damaged checkpoint cannot be read.
        with suppress(ValueError, AttributeError):
            kept.add(json.loads((path / STATE).read_text(encoding="utf-8")).get("best_folder"))
    for path in root.iterdir():
        if path.name not in kept:
            remove_folder(path)


def discard_newer(checkpoint: Checkpoint) -> None:
    """Remove checkpoints and best weights newer than the checkpoint that a run resumes from."""
    best = checkpoint.state.get("best_folder") or BEST
    for path in checkpoint.folder.parent.iterdir():
        last = best if path.name.startswith(BEST) else checkpoint.folder.name
        if _OURS.fullmatch(path.name) and path.name > last:
            remove_folder(path)


def _facts(path: Path) -> dict[str, Any]:
    """Return the size and hash of a file."""
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


FORMAT = 1


def save_state(learner: Learner, training: TrainState, checkpoints: Checkpoints, keep: int) -> None:
    """Write a checkpoint after a step. All processes must call this.

    Args:
        learner: Model, optimizer and schedule.
        training: State of the training.
        checkpoints: Checkpoints of the run.
        keep: Number of checkpoints to keep.

    Raises:
        SaveError: The checkpoint was not written. If the disk is the cause, only the first process raises.
    """
    weights = _weights(learner)
    finite = all(bool(value.isfinite().all()) for value in weights.values())
    finite &= all(bool(line["loss"].isfinite()) for line in training.unlogged)
    mine = {"random": _random_state(learner.accelerator), "losses": [line["loss"].cpu() for line in training.unlogged]}
    of_all: list[Any] = gather_object([mine | {"finite": finite}])
    if not all(each["finite"] for each in of_all):
        raise SaveError("weights or losses are not finite; the last finite state is kept")
    if not learner.accelerator.is_main_process:
        return
    root, best_folder = checkpoints.folder, f"{BEST}{training.best.epoch:08d}" if training.best.weights else None
    state = {
        "format": FORMAT,
        "about": checkpoints.about,
        "run_seconds": time.perf_counter() - checkpoints.began,
        "best_folder": best_folder,
        "best": [training.best.score, training.best.epoch] if best_folder else None,
        "position": {name: value for name, value in vars(training).items() if name not in ("best", "unlogged")},
        "unlogged": [{name: value for name, value in line.items() if name != "loss"} for line in training.unlogged],
        "schedule": {name: value for name, value in learner.schedule.state_dict().items() if name != "lr_lambdas"},
        "rates": [{name: group[name] for name in ("lr", "initial_lr")} for group in learner.optimizer.param_groups],
        "scaler": learner.accelerator.scaler.state_dict() if learner.accelerator.scaler else None,
    }
    numbers, optimizer = _optimizer_state(learner)
    processes = {f"process-{i}": _process_tensors(each) for i, each in enumerate(of_all)}
    state |= {"optimizer": numbers, "random": [each["random"][1] for each in of_all]}
    try:
        if best_folder and not (root / best_folder).exists():
            write_checkpoint(
                root / best_folder, {"epoch": training.best.epoch}, {"trained": training.best.weights or {}}
            )
        name = f"{STEP}{training.step:08d}"
        write_checkpoint(root / name, state, {"trained": weights, "optimizer": optimizer} | processes)
        keep_newest(root, keep)
    except OSError as error:
        raise SaveError(error.strerror or str(error)) from error


def restore_state(learner: Learner, checkpoint: Checkpoint) -> TrainState:
    """Restore a training from a checkpoint. All processes must call this.

    Raises:
        ResumeError: The checkpoint does not fit this training.
    """
    state, tensors = checkpoint.state, checkpoint.tensors
    try:
        if state["format"] != FORMAT:
            raise ValueError(f"its format is {state['format']}, this version reads {FORMAT}")
        _load_weights(learner.model, tensors["trained"], learner.trained)
        _load_optimizer(learner, state["optimizer"], tensors["optimizer"], state["rates"])
        # A checkpoint holds no functions; the schedule keeps those of this process.
        functions = {"lr_lambdas": [None] * len(state["rates"])}
        learner.schedule.load_state_dict(state["schedule"] | functions)
        if learner.accelerator.scaler:
            learner.accelerator.scaler.load_state_dict(state["scaler"])
        index = learner.accelerator.process_index
        mine = tensors[f"process-{index}"]
        losses = mine.pop("losses").to(learner.accelerator.device).unbind()
        unlogged = [
            {"step": line["step"], "loss": loss} | line for line, loss in zip(state["unlogged"], losses, strict=True)
        ]
        training = TrainState(**_with_checked_types(state["position"]), unlogged=unlogged)
        if state["best"]:
            _check_weights(tensors["best"], learner.model, learner.trained)
            score, epoch = state["best"]
            training.best = Best(float(score), int(epoch), tensors["best"])
        _set_random_state(mine, state["random"][index], learner.accelerator)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        problem = f"does not fit this run ({in_one_line(error, 300)})"
        raise ResumeError(f"--train.resume: the checkpoint {checkpoint.folder} {problem}. {MISMATCH_ADVICE}") from error
    training.resumes += 1
    return training


def _with_checked_types(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the values of a training state, if the type of each is right."""
    for name, default in vars(TrainState(micro_batches=1)).items():
        if name in values and type(values[name]) is not type(default):
            raise TypeError(f"{name} is {values[name]!r}")
    return values


def _weights(learner: Learner) -> dict[str, torch.Tensor]:
    """Return the trained weights by name."""
    known = dict(learner.model.named_parameters())
    return {name: known[name].detach() for name in learner.trained.parameters}


def _check_weights(weights: Mapping[str, torch.Tensor], model: Any, trained: Trainable) -> None:
    """Check that saved weights have the names, shapes and types of the trained parameters."""
    known = dict(model.named_parameters())
    for name in weights.keys() ^ set(trained.parameters):
        raise ValueError(f"{name} is {'unknown' if name in weights else 'missing'}")
    for name, value in weights.items():
        if value.shape != known[name].shape or value.dtype != known[name].dtype:
            raise ValueError(f"{name} has another shape or type")


def _load_weights(model: Any, weights: dict[str, torch.Tensor], trained: Trainable) -> None:
    """Load saved weights into the trained parameters."""
    _check_weights(weights, model, trained)
    model.load_state_dict(weights, strict=False)


def _optimizer_state(learner: Learner) -> tuple[dict[str, dict[str, Any]], dict[str, torch.Tensor]]:
    """Return the optimizer state as numbers by weight and key, and tensors by the joined name `weight/key`."""
    numbers: dict[str, dict[str, Any]] = {}
    tensors: dict[str, torch.Tensor] = {}
    kept = learner.optimizer.optimizer.state
    known = dict(learner.model.named_parameters())
    for name in learner.trained.parameters:
        for key, value in kept.get(known[name], {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"{name}/{key}"] = value
            else:
                numbers.setdefault(name, {})[key] = value
    return numbers, tensors


def _load_optimizer(
    learner: Learner,
    numbers: dict[str, dict[str, Any]],
    tensors: dict[str, torch.Tensor],
    rates: list[dict[str, float]],
) -> None:
    """Load a saved optimizer state, with the learning rates of its parameter groups."""
    optimizer = learner.optimizer.optimizer
    names = {id(weight): name for name, weight in learner.model.named_parameters()}
    kept: dict[str, dict[str, Any]] = {name: dict(values) for name, values in numbers.items()}
    for path, value in tensors.items():
        name, _, key = path.rpartition("/")
        kept.setdefault(name, {})[key] = value
    order = [names[id(weight)] for group in optimizer.param_groups for weight in group["params"]]
    for name in kept.keys() - set(order):
        raise ValueError(f"the optimizer's {name} is unknown")
    groups = optimizer.state_dict()["param_groups"]
    for group, saved in zip(groups, rates, strict=True):
        group |= {name: float(saved[name]) for name in ("lr", "initial_lr")}
    states = {i: kept[name] for i, name in enumerate(order) if name in kept}
    optimizer.load_state_dict({"state": states, "param_groups": groups})


def _random_state(accelerator: Accelerator) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the state of all random generators that a step can use, as tensors and as numbers."""
    version, words, gauss = random.getstate()
    _, keys, place, has_gauss, cached = np.random.get_state()
    tensors = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "python": torch.tensor(words),
    }
    if accelerator.device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(accelerator.device)
    return tensors, {"python": [version, gauss], "numpy": [int(place), int(has_gauss), float(cached)]}


def _set_random_state(
    tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, Any], accelerator: Accelerator
) -> None:
    """Restore the random generators from a state of `_random_state`."""
    torch.set_rng_state(tensors["torch"])
    if accelerator.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["cuda"], accelerator.device)
    version, gauss = numbers["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    np.random.set_state(("MT19937", tensors["numpy"].numpy().astype(np.uint32), *numbers["numpy"]))


def _process_tensors(each: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Collect the random state and the unlogged losses of a process."""
    losses = torch.stack(each["losses"]) if each["losses"] else torch.zeros(0)
    return {**each["random"][0], "losses": losses}


# Largest share of the time for saving checkpoints by the clock.
MAX_SAVE_SHARE = 0.01


@dataclass
class Saver:
    """Save checkpoints when they are due.

    Attributes:
        learner: Model, optimizer and schedule.
        cfg: Intervals between checkpoints, and the number to keep.
        log: Log of the run.
        checkpoints: Checkpoints of the run; None saves nothing.
        stop: Signals received so far.
        last: `time.monotonic()` after the last save.
        save_seconds: Seconds of the last save.
    """

    learner: Learner
    cfg: TrainConfig
    log: Log
    checkpoints: Checkpoints | None
    stop: Stop
    last: float = field(default_factory=time.monotonic)
    save_seconds: float = 0.0

    def save_if_due(self, state: TrainState) -> None:
        """Save after a step or an epoch: every few steps, by the clock, on a signal and at the end of the training.

        Raises:
            Stopped: A signal was received.
        """
        if self.checkpoints is None:
            return
        every, accelerator = self.cfg.checkpoint_every_steps, self.learner.accelerator
        number, due = agree(self.stop, self._by_the_clock(), accelerator)
        by_steps = every is not None and state.step_in_epoch > 0 and state.step % every == 0
        if not (number or due or by_steps or state.ended):
            return
        failed = self._save(state, self.checkpoints)
        if failed and accelerator.is_main_process:
            print(f"note: no checkpoint of step {state.step}: {failed}; training continues without it", flush=True)
        if number:
            accelerator.wait_for_everyone()
            saved = "without a new checkpoint" if failed else f"with a checkpoint in {self.checkpoints.folder}"
            name = signal.Signals(number).name
            raise Stopped(
                f"stopped by {name} after step {state.step}, {saved}. "
                "Repeat the command with --train.resume true to resume.",
                number,
            )

    def _by_the_clock(self) -> bool:
        """Return whether a checkpoint is due by the clock."""
        minutes = self.cfg.checkpoint_every_minutes
        if minutes is None:
            return False
        return time.monotonic() - self.last >= max(60 * minutes, self.save_seconds / MAX_SAVE_SHARE)

    def _save(self, state: TrainState, checkpoints: Checkpoints) -> SaveError | None:
        """Save a checkpoint and measure its time; return the error if it was not written."""
        began = time.monotonic()
        state.log_bytes = self.log.sync()
        failed: SaveError | None = None
        try:
            save_state(self.learner, state, checkpoints, self.cfg.keep_checkpoints)
        except SaveError as error:
            failed = error
        self.last = time.monotonic()
        self.save_seconds = self.last - began
        state.checkpoint_seconds += self.save_seconds
        return failed
