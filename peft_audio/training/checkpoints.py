"""Checkpoints on the disk: written aside, synced, then renamed; a damaged one is never used, and none is unpickled."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from peft_audio.errors import ResumeError, in_one_line
from peft_audio.files import atomic_folder, file_sha256, remove_folder

MANIFEST = "manifest.json"
STATE = "state.json"
STEP, BEST = "step-", "best-"
# Of one that is whole, and of no use.
WAYS_OUT = "Remove it to go on from the one before; --train.overwrite true, without --train.resume, starts afresh."
_OURS = re.compile(rf"({STEP}|{BEST})\d{{8}}")

Tensors = Mapping[str, Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class Checkpoint:
    """What was read of one.

    Attributes:
        folder: Where it stands.
        state: Numbers and words, as JSON holds them.
        tensors: By file, without its ending, then by name.
    """

    folder: Path
    state: dict[str, Any]
    tensors: dict[str, dict[str, torch.Tensor]]


def write_checkpoint(folder: Path, state: Mapping[str, Any], tensors: Tensors) -> None:
    """Write a checkpoint so that it is there whole or not at all, whenever the machine stops.

    Args:
        folder: Its name says what it is, see `STEP` and `BEST`.
        state: What JSON can hold.
        tensors: A file each, by name.

    Raises:
        OSError: It cannot be written; nothing of it stays.
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
            raise ResumeError(f"the checkpoint {folder} is damaged (it has its best weights in {best!r})")
        checkpoint.tensors["best"] = _read_folder(folder.parent / best).tensors.get("trained", {})
    return checkpoint


def _read_folder(folder: Path) -> Checkpoint:
    """Read a folder whose files match its manifest."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, facts in manifest.items():
            if Path(name).name != name or _facts(folder / name) != facts:
                raise ValueError(f"{name} is not as it was written")
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        files = {Path(name).stem: load_file(folder / name) for name in manifest if name.endswith(".safetensors")}
        if not isinstance(state, dict) or STATE not in manifest:
            raise ValueError(f"{STATE} does not hold what it should")
    except (OSError, ValueError, AttributeError, RecursionError, SafetensorError) as error:
        raise ResumeError(f"the checkpoint {folder} is damaged ({in_one_line(error)})") from error
    return Checkpoint(folder, state, files)


def newest_checkpoint(root: Path, tell: Callable[[str], None]) -> Checkpoint | None:
    """Read the newest checkpoint that is whole.

    Args:
        root: Where the run keeps them.
        tell: Hears which ones were passed over.

    Returns:
        None where there are none.

    Raises:
        ResumeError: There are some, and none is whole.
    """
    found = sorted((path for path in root.glob(f"{STEP}*") if _OURS.fullmatch(path.name)), reverse=True)
    for folder in found:
        try:
            return read_checkpoint(folder)
        except ResumeError as error:
            tell(f"note: {error}; the one before it is used")
    if found:
        raise ResumeError(f"--train.resume: no checkpoint in {root} is whole; --train.overwrite true starts afresh.")
    return None


def keep_newest(root: Path, count: int) -> None:
    """Remove all but so many of the newest checkpoints and the best weights that those name."""
    steps = sorted(path for path in root.glob(f"{STEP}*") if _OURS.fullmatch(path.name))
    kept = {path.name for path in steps[-count:]}
    for path in steps[-count:]:
        # A damaged one names none.
        with suppress(ValueError, AttributeError):
            kept.add(json.loads((path / STATE).read_text(encoding="utf-8")).get("best_folder"))
    for path in root.iterdir():
        if path.name not in kept:
            remove_folder(path)


def discard_newer(checkpoint: Checkpoint) -> None:
    """Remove what stands behind a checkpoint that a run goes on from: damaged, or the best weights of what was lost."""
    best = checkpoint.state.get("best_folder") or BEST
    for path in checkpoint.folder.parent.iterdir():
        last = best if path.name.startswith(BEST) else checkpoint.folder.name
        if _OURS.fullmatch(path.name) and path.name > last:
            remove_folder(path)


def _facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
