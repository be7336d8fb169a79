"""What happens in a run, line by line: metrics.jsonl always, and trackers beside it."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from peft_audio.errors import in_one_line
from peft_audio.text import as_told

PROJECT = "peft-audio"


@dataclass
class Log:
    """Where a run's lines go. Processes other than the first write nothing.

    Attributes:
        file: Gets a JSON object a line.
        writes: Whether this process is the one that writes.
        trackers: Get the same numbers by step; one that fails is dropped.
    """

    file: Path
    writes: bool = True
    trackers: list[GeneralTracker] = field(default_factory=list)

    def write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Append lines of numbers, each with its `step`."""
        if not self.writes:
            return
        with self.file.open("a", encoding="utf-8") as log:
            for line in lines:
                # JSON has no NaN.
                known = {name: value if math.isfinite(value) else None for name, value in line.items()}
                log.write(json.dumps(known) + "\n")
                values = {name: value for name, value in known.items() if name != "step" and value is not None}
                self._tell("log", values, step=line["step"])

    def sync(self) -> int:
        """Let what was written reach the disk; gives the file's size in bytes."""
        if not self.writes or not self.file.exists():
            return 0
        with self.file.open("rb") as log:
            os.fsync(log.fileno())
        return self.file.stat().st_size

    def close(self) -> None:
        """Let the trackers finish; a second call does nothing."""
        self._tell("finish")
        self.trackers.clear()

    def _tell(self, method: str, *args: Any, **kwargs: Any) -> None:
        for tracker in list(self.trackers):
            try:
                getattr(tracker, method)(*args, **kwargs)
            except Exception as error:  # whatever a tracker does, the run goes on
                self.trackers.remove(tracker)
                _report(tracker.name, error)


def start_log(folder: Path, names: Iterable[str], settings: Mapping[str, Any], writes: bool, step: int = 0) -> Log:
    """Open a run's log and its trackers.

    Args:
        folder: Of the run; files of trackers go there too.
        names: Of the trackers, as accelerate knows them.
        settings: Of the run by dotted name, for the trackers.
        writes: Whether this process is the one that writes.
        step: Behind which one a run goes on that was stopped; what TensorBoard has of later ones, it hides.
    """
    log = Log(folder / "metrics.jsonl", writes)
    places: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
        "tensorboard": (("tensorboard", str(folder)), {"purge_step": step + 1} if step else {}),
        "wandb": ((PROJECT,), {"name": folder.name, "dir": str(folder)}),
        "trackio": ((PROJECT,), {"name": folder.name}),
    }
    for name in names if writes else ():
        try:
            tracker = LOGGER_TYPE_TO_CLASS[name](*places[name][0], **places[name][1])
            tracker.start()
            tracker.store_init_configuration(
                {key: value if isinstance(value, (int, float)) else str(value) for key, value in settings.items()}
            )
            log.trackers.append(tracker)
        except Exception as error:  # whatever a tracker does, the run goes on
            _report(name, error)
    return log


def _report(name: str, error: Exception) -> None:
    what = in_one_line(error, 200)
    print(
        f"note: the tracker {name} failed and gets no more ({as_told(what)}); metrics.jsonl goes on.", file=sys.stderr
    )


def progress_bar(shown: bool, console: Console | None = None) -> Progress:
    """A bar that goes away when it is done.

    Args:
        shown: Whether it is.
        console: Where; standard output when not given. Elsewhere, what is printed meanwhile does not pass through it.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not shown, redirect_stdout=console is None)
