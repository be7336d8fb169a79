"""What breaks inside a run: each is called in its process before the recipe, and changes a function of the package."""

from __future__ import annotations

import errno
import fcntl
import functools
import importlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.79 GiB"
# The file that fills a disk.
FILLER = "filler"


def wrap(where: str, around: Callable[..., Any]) -> None:
    """Put `around(old, *args)` in the place of a function; `where` is "module:name" or "module:Class.name"."""
    module, _, name = where.partition(":")
    *owners, last = name.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    old = getattr(owner, last)

    @functools.wraps(old)
    def changed(*args: Any, **kwargs: Any) -> Any:
        return around(old, *args, **kwargs)

    setattr(owner, last, changed)


def before(where: str, act: Callable[[], Any], call: int = 1) -> None:
    """Do something right before a certain call of a function."""
    calls = iter(range(1, 10**9))

    def around(old: Any, *args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            act()
        return old(*args, **kwargs)

    wrap(where, around)


def signal_at(step: int, number: int) -> None:
    """A signal comes while a step is made."""
    before("peft_audio.training.loop:clip_losses", functools.partial(os.kill, os.getpid(), number), step)


def slow_steps(seconds: float, first: int = 1) -> None:
    """Each step takes so long, from one of them on."""
    calls = iter(range(1, 10**9))

    def around(old: Any, *args: Any) -> Any:
        if next(calls) >= first:
            time.sleep(seconds)
        return old(*args)

    wrap("peft_audio.training.loop:clip_losses", around)


def slow_reading(seconds: float) -> None:
    """Reading the recordings takes so long."""
    before("peft_audio.data.splits:scan", functools.partial(time.sleep, seconds))


def remove_before_reading(name: str) -> None:
    """A file goes between scan and training."""
    before("peft_audio.runs.run:start_run", functools.partial(os.unlink, name))


def spoil_before_reading(name: str) -> None:
    """A file turns to garbage between scan and training."""
    before("peft_audio.runs.run:start_run", functools.partial(Path(name).write_bytes, b"no sound" * 100))


def nan_from(name: str) -> None:
    """What training hears of a clip is no number."""

    def around(old: Any, view: Any, source: Any, *args: Any, **kwargs: Any) -> Any:
        item = old(view, source, *args, **kwargs)
        if str(source).endswith(name):
            item["inputs"] = {key: values * float("nan") for key, values in item["inputs"].items()}
        return item

    wrap("peft_audio.data.dataset:View.training_clip", around)


def infinite_gradient(step: int) -> None:
    """The gradient of a weight overflows in a step, and the loss does not."""
    calls = iter(range(1, 10**9))

    def around(old: Any, model: Any, trained: Any, *args: Any) -> None:
        old(model, trained, *args)
        weight = dict(model.named_parameters())[trained.parameters[0]]
        if not weight._backward_hooks:
            weight.register_hook(lambda gradient: gradient * (float("inf") if next(calls) == step else 1))

    wrap("peft_audio.training.loop:set_modes", around)


def out_of_memory(where: str, call: int = 1, most_clips: int = 10**9) -> None:
    """Memory is too small in a certain call that computes losses, or wherever it is given more than so many clips."""
    import torch

    calls = iter(range(1, 10**9))

    def around(old: Any, model: Any, batch: Any, *args: Any) -> Any:
        if next(calls) == call or len(batch["label"]) > most_clips:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return old(model, batch, *args)

    wrap(where, around)


def out_of_memory_in_evaluation() -> None:
    """Memory is too small for a batch of whole clips."""
    import torch

    def refuse(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError(OUT_OF_MEMORY)

    wrap("peft_audio.training.loop:evaluate", refuse)


def small_memory(most_clips: int) -> None:
    """Memory holds so many clips at a time."""
    for module in ("micro_batches", "loop"):
        out_of_memory(f"peft_audio.training.{module}:clip_losses", 0, most_clips)


def kill_worker(item: int) -> None:
    """The kernel ends a process that reads recordings."""
    import torch

    calls = iter(range(1, 10**9))

    def around(old: Any, clips: Any, draw: Any) -> Any:
        if torch.utils.data.get_worker_info() and next(calls) == item:
            os.kill(os.getpid(), signal.SIGKILL)
        return old(clips, draw)

    wrap("peft_audio.data.dataset:Clips.__getitem__", around)


def fill_disk(disk: str, where: str, empty_again: bool = False) -> None:
    """A disk is full when a function is called, and from then on or until it has returned."""
    filler = Path(disk, FILLER)

    def around(old: Any, *args: Any, **kwargs: Any) -> Any:
        with filler.open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError as error:
                assert error.errno == errno.ENOSPC
        try:
            return old(*args, **kwargs)
        finally:
            if empty_again:
                filler.unlink()

    wrap(where, around)


def no_locks() -> None:
    """The disk knows no locks."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    fcntl.flock = refuse


def failing_tracker(method: str) -> None:
    """A tracker's server is away."""

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("the tracker's server is away")

    wrap(f"accelerate.tracking:TensorBoardTracker.{method}", refuse)


def other_weights() -> None:
    """What reaches the disk is not what was meant to."""
    wrap(
        "peft_audio.adapters.save:save_file",
        lambda old, weights, *args, **kwargs: old({k: v + 0.1 for k, v in weights.items()}, *args, **kwargs),
    )


def verifying_process(code: str) -> None:
    """The fresh process that loads a copy does something else."""
    import sys

    def around(old: Any, command: list[str], **kwargs: Any) -> Any:
        return old([sys.executable, "-c", code], **kwargs)

    wrap("subprocess:run", around)
    setattr(importlib.import_module("peft_audio.adapters.save"), "VERIFY_SECONDS", 2)  # noqa: B010 - mypy knows no module here


def remove_folder(name: str, step: int) -> None:
    """Somebody removes the run's folder while it is at work."""
    import shutil

    before("peft_audio.training.loop:clip_losses", functools.partial(shutil.rmtree, name), step)


def ask_hub(cache: str, **environment: str) -> None:
    """What huggingface_hub takes from the environment when it is imported, taken again."""
    from huggingface_hub import constants

    hub = {"HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": cache, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    os.environ.update(hub | {"HF_HUB_ETAG_TIMEOUT": "1"} | environment)
    importlib.reload(constants)
