"""Recipes as processes that are forked from one that has imported everything, so that a start takes a second."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

RECIPES = Path(__file__).parents[2] / "recipes"
IMPORTED = [
    "peft_audio.training.loop",
    "peft_audio.runs.report",
    "peft_audio.data.splits",
    "peft_audio.feature_cache.cache",
    "bitsandbytes",
]
# A run that takes longer hangs.
PATIENCE_SECONDS = 300.0


@dataclass(frozen=True)
class Command:
    """A way of running a recipe.

    Attributes:
        recipe: Its name.
        flags: Of all its runs, without the folder.
        processes: How many at once.
        device: "cpu", or "cuda" for the GPUs that are there.
    """

    recipe: str
    flags: list[str]
    processes: int = 1
    device: str = "cpu"


def open_server(assets: Path, device: str = "cpu") -> Any:
    """The context that processes are started in, once its server has imported what recipes import.

    Args:
        assets: Where frozen prefixes are kept.
        device: On "cuda" each process imports by itself: what the server imports starts CUDA, which no fork survives.
    """
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_ASSETS_CACHE": str(assets)}
    if device == "cuda":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    first = context.Process(target=time.monotonic)  # waits for the imports
    first.start()
    first.join()
    if shown is None:
        del os.environ["CUDA_VISIBLE_DEVICES"]
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = shown
    return context


def run(context: Any, command: Command, folder: Path) -> int:
    """Run without a disturbance; gives the exit code."""
    children = start(context, command, folder)
    wait(children, PATIENCE_SECONDS)
    return max(child.exitcode or 0 for child in children)


def start(context: Any, command: Command, folder: Path, before: Callable[[], None] | None = None) -> list[BaseProcess]:
    """The processes of a run, started.

    Args:
        context: See `open_server`.
        command: Which run.
        folder: Of it.
        before: Called in each process before the recipe, to break something there; at the top of a module.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    children = []
    for rank in range(command.processes):
        where = {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""} if command.device == "cpu" else {}
        if command.processes > 1:
            where |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(command.processes)}
            where |= {"LOCAL_WORLD_SIZE": str(command.processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        arguments = (str(RECIPES / f"{command.recipe}.py"), [*command.flags, "--train.output_dir", str(folder)], where)
        child = context.Process(target=_recipe, args=(*arguments, str(log_of(folder)), before))
        child.start()
        children.append(child)
    return children


def wait(children: Sequence[BaseProcess], seconds: float) -> bool:
    """Whether all of them ended by themselves within so many seconds."""
    until = time.monotonic() + seconds
    for child in children:
        child.join(max(0.0, until - time.monotonic()))
    return all(child.exitcode is not None for child in children)


def log_of(folder: Path) -> Path:
    """What a run's processes print, beside its folder."""
    return folder.with_name(folder.name + ".log")


def _recipe(
    script: str, arguments: list[str], where: dict[str, str], log: str, before: Callable[[], None] | None
) -> None:
    """In the child: what `python recipes/x.py ...` does."""
    os.environ.update(where)
    # Its own children, such as the readers of a DataLoader, are started as `python recipes/x.py` starts them.
    multiprocessing.set_start_method(None, force=True)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(handle, stream)
    sys.argv = [script, *arguments]
    if before:
        before()
    runpy.run_path(script, run_name="__main__")


def make_data(folder: Path, seconds: float = 0.6) -> Path:
    """Tones of two classes, with noise, up to so many seconds long."""
    rng = np.random.default_rng(0)
    for label, hertz in (("low", 300), ("high", 900)):
        (folder / label).mkdir(parents=True)
        for i in range(16):
            times = np.arange(int(16_000 * rng.uniform(seconds / 2, seconds))) / 16_000
            waveform = 0.3 * np.sin(2 * np.pi * (hertz + 20 * i) * times) + 0.05 * rng.standard_normal(times.size)
            soundfile.write(folder / label / f"{i}.wav", waveform.astype(np.float32), 16_000)
    return folder


def make_base(folder: Path, published_size: bool = False) -> Path:
    """A wav2vec2 from random weights, its dropouts on as in published configs; small, or of wav2vec2-base's sizes."""
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    convolutions: dict[str, Any] = {
        "conv_dim": (16,) * 7,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
    }
    small = sizes | convolutions | {"classifier_proj_size": 16, "vocab_size": 12}
    config = Wav2Vec2Config(**({} if published_size else small))
    Wav2Vec2Model(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False).save_pretrained(folder)
    return folder
