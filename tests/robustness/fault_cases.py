"""What a fault is, and the means to make one in the folder of a run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
from robustness.fault_stage import Stage

CLIP = "data/low/3.wav"


class Case(NamedTuple):
    """One fault.

    Attributes:
        group: What it is in.
        fault: What it is.
        says: What must stand in what the user sees: the thing, and the way out. The first of them is in the line that
            the table quotes.
        play: Makes it, runs, and gives the exit code of the last run.
        code: What that must be.
        finished: Whether a finished run stands in the folder then; where not given, with exit code 0.
    """

    group: str
    fault: str
    says: Sequence[str]
    play: Callable[[Stage], int]
    code: int = 2
    finished: bool | None = None


def cases(rows: Sequence[tuple[Any, ...]]) -> list[Case]:
    """Rows with the fields of `Case`."""
    return [Case(*row) for row in rows]


def once(*flags: str, make: Callable[[Path], Any] | None = None, **run: Any) -> Callable[[Stage], int]:
    """Change something in the folder of the case, then run once."""

    def play(stage: Stage) -> int:
        if make:
            make(stage.root)
        return stage.run(*flags, **run)

    return play


def write(name: str, content: str | bytes) -> Callable[[Path], Any]:
    """Make a file, and its folder."""

    def make(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def remove(*names: str) -> Callable[[Path], Any]:
    """Files or folders that are not there."""

    def make(root: Path) -> None:
        for name in names:
            shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()

    return make


def cut(name: str, kept: float) -> Callable[[Path], Any]:
    """A file of which only the first part is there."""
    return lambda root: os.truncate(root / name, int((root / name).stat().st_size * kept))


def samples(name: str, values: np.ndarray, **form: Any) -> Callable[[Path], Any]:
    """A recording of certain samples."""
    return lambda root: soundfile.write(root / name, values, 16_000, **form)


def manifest(header: str, *names: str) -> Callable[[Path], Any]:
    """A table of recordings, some of both classes, and others by name."""
    rows = [f"data/{label}/{i}.wav,{label}" for label in ("low", "high") for i in range(8)]
    return write("clips.csv", "\n".join([header, *rows, *(f"{name},low" for name in names)]) + "\n")


def one_clip_of_a_class(root: Path) -> None:
    """A class of one recording."""
    for i in range(1, 16):
        (root / f"data/low/{i}.wav").unlink()


def cut_flac(root: Path) -> None:
    """A FLAC file without its second half."""
    samples("data/low/cut.flac", np.random.default_rng(0).uniform(-0.5, 0.5, 16_000))(root)
    cut("data/low/cut.flac", 0.5)(root)


def both(*makes: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """One after the other."""
    return lambda root: [make(root) for make in makes]
