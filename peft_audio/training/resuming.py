"""A training as a checkpoint holds it: what trains, optimizer, schedule, random numbers, position."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from peft_audio.errors import ResumeError, SaveError, in_one_line
from peft_audio.strategies.base import Trainable
from peft_audio.training.checkpoints import BEST, STEP, WAYS_OUT, Checkpoint, keep_newest, write_checkpoint
from peft_audio.training.state import Best, Checkpoints, Learner, TrainState

FORMAT = 1


def save_position(learner: Learner, at: TrainState, checkpoints: Checkpoints, keep: int) -> None:
    """Write a checkpoint of a step's end; all processes call this.

    Args:
        learner: What learns.
        at: How far it has come.
        checkpoints: Where they are kept.
        keep: How many of them.

    Raises:
        SaveError: The checkpoint was not written; on the first process only, if the disk refused it.
    """
    weights = _weights(learner)
    finite = all(bool(value.isfinite().all()) for value in weights.values())
    finite &= all(bool(line["loss"].isfinite()) for line in at.unlogged)
    mine = {"random": _random_state(learner.accelerator), "losses": [line["loss"].cpu() for line in at.unlogged]}
    of_all: list[Any] = gather_object([mine | {"finite": finite}])
    if not all(each["finite"] for each in of_all):
        raise SaveError("weights or losses are not finite, and the last good state stays")
    if not learner.accelerator.is_main_process:
        return
    root, best_folder = checkpoints.folder, f"{BEST}{at.best.epoch:08d}" if at.best.weights else None
    state = {
        "format": FORMAT,
        "about": checkpoints.about,
        "run_seconds": time.perf_counter() - checkpoints.began,
        "best_folder": best_folder,
        "best": [at.best.score, at.best.epoch] if best_folder else None,
        "position": {name: value for name, value in vars(at).items() if name not in ("best", "unlogged")},
        "unlogged": [{name: value for name, value in line.items() if name != "loss"} for line in at.unlogged],
        "schedule": {name: value for name, value in learner.schedule.state_dict().items() if name != "lr_lambdas"},
        "rates": [{name: group[name] for name in ("lr", "initial_lr")} for group in learner.optimizer.param_groups],
        "scaler": learner.accelerator.scaler.state_dict() if learner.accelerator.scaler else None,
    }
    numbers, optimizer = _optimizer_state(learner)
    processes = {f"process-{i}": _process_tensors(each) for i, each in enumerate(of_all)}
    state |= {"optimizer": numbers, "random": [each["random"][1] for each in of_all]}
    try:
        if best_folder and not (root / best_folder).exists():
            write_checkpoint(root / best_folder, {"epoch": at.best.epoch}, {"trained": at.best.weights or {}})
        name = f"{STEP}{at.step:08d}"
        write_checkpoint(root / name, state, {"trained": weights, "optimizer": optimizer} | processes)
        keep_newest(root, keep)
    except OSError as error:
        raise SaveError(error.strerror or str(error)) from error


def load_position(learner: Learner, checkpoint: Checkpoint) -> TrainState:
    """Put a training back to where a checkpoint was written, on every process.

    Raises:
        ResumeError: The checkpoint does not hold what this training needs.
    """
    state, tensors = checkpoint.state, checkpoint.tensors
    try:
        if state["format"] != FORMAT:
            raise ValueError(f"its format is {state['format']}, this version reads {FORMAT}")
        _load_weights(learner.model, tensors["trained"], learner.trained)
        _load_optimizer(learner, state["optimizer"], tensors["optimizer"], state["rates"])
        # Its functions are made anew; only numbers are kept.
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
        at = TrainState(**_known_kinds(state["position"]), unlogged=unlogged)
        if state["best"]:
            _check_names(tensors["best"], learner.model, learner.trained)
            score, epoch = state["best"]
            at.best = Best(float(score), int(epoch), tensors["best"])
        _set_random_state(mine, state["random"][index], learner.accelerator)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        what = f"does not fit this run ({in_one_line(error, 300)})"
        raise ResumeError(f"--train.resume: the checkpoint {checkpoint.folder} {what}. {WAYS_OUT}") from error
    at.resumes += 1
    return at


def _known_kinds(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """A position as it was read, if each value is of the kind that it should be."""
    for name, default in vars(TrainState(micro_batches=1)).items():
        if name in found and type(found[name]) is not type(default):
            raise TypeError(f"{name} is {found[name]!r}")
    return found


def _weights(learner: Learner) -> dict[str, torch.Tensor]:
    known = dict(learner.model.named_parameters())
    return {name: known[name].detach() for name in learner.trained.parameters}


def _check_names(found: Mapping[str, torch.Tensor], model: Any, trained: Trainable) -> None:
    known = dict(model.named_parameters())
    for name in found.keys() ^ set(trained.parameters):
        raise ValueError(f"{name} is {'unknown' if name in found else 'missing'}")
    for name, value in found.items():
        if value.shape != known[name].shape or value.dtype != known[name].dtype:
            raise ValueError(f"{name} has another shape or type")


def _load_weights(model: Any, found: dict[str, torch.Tensor], trained: Trainable) -> None:
    _check_names(found, model, trained)
    model.load_state_dict(found, strict=False)


def _optimizer_state(learner: Learner) -> tuple[dict[str, dict[str, Any]], dict[str, torch.Tensor]]:
    """What the optimizer keeps of each weight: numbers by weight and key, and tensors by both in one name."""
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
    for group, found in zip(groups, rates, strict=True):
        group |= {name: float(found[name]) for name in ("lr", "initial_lr")}
    states = {i: kept[name] for i, name in enumerate(order) if name in kept}
    optimizer.load_state_dict({"state": states, "param_groups": groups})


def _random_state(accelerator: Accelerator) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Every generator that something in a step might draw from."""
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
    torch.set_rng_state(tensors["torch"])
    if accelerator.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["cuda"], accelerator.device)
    version, gauss = numbers["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    np.random.set_state(("MT19937", tensors["numpy"].numpy().astype(np.uint32), *numbers["numpy"]))


def _process_tensors(each: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    losses = torch.stack(each["losses"]) if each["losses"] else torch.zeros(0)
    return {**each["random"][0], "losses": losses}
