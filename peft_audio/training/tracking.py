"""Log a run to `metrics.jsonl` and to trackers."""

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

from peft_audio.errors import in_one_line
from peft_audio.text import safe_to_print

PROJECT = "peft-audio"


@dataclass
class Log:
    """Log of a run. Processes other than the first write nothing.

    Attributes:
        file: File with one JSON object per line.
        writes: Whether this process writes.
        trackers: Trackers that get the same numbers by step; a tracker that fails is removed.
    """

    file: Path
    writes: bool = True
    trackers: list[GeneralTracker] = field(default_factory=list)

    def write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Append lines of numbers; each has a `step`."""
        if not self.writes:
            return
        with self.file.open("a", encoding="utf-8") as log:
            for line in lines:
                # JSON cannot hold NaN.
                known = {name: value if math.isfinite(value) else None for name, value in line.items()}
                log.write(json.dumps(known) + "\n")
                values = {name: value for name, value in known.items() if name != "step" and value is not None}
                self._call_trackers("log", values, step=line["step"])

    def sync(self) -> int:
        """Sync the file to disk and return its size in bytes."""
        if not self.writes or not self.file.exists():
            return 0
        with self.file.open("rb") as log:
            os.fsync(log.fileno())
        return self.file.stat().st_size

    def close(self) -> None:
        """Close the trackers; a second call does nothing."""
        self._call_trackers("finish")
        self.trackers.clear()

    def _call_trackers(self, method: str, *args: Any, **kwargs: Any) -> None:
        """Call a method of all trackers, and remove those that fail."""
        for tracker in list(self.trackers):
            try:
                getattr(tracker, method)(*args, **kwargs)
            except Exception as error:  # the run continues without the tracker
                self.trackers.remove(tracker)
                _report(tracker.name, error)


def start_log(folder: Path, names: Iterable[str], settings: Mapping[str, Any], writes: bool, step: int = 0) -> Log:
    """Open a run's log and its trackers.

    Args:
        folder: Folder of the run; files of trackers are written there too.
        names: Names of the trackers in Accelerate.
        settings: Settings of the run by dotted name, for the trackers.
        writes: Whether this process writes.
        step: Step after which the run resumes; TensorBoard then hides values of later steps.
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
        except Exception as error:  # the run continues without the tracker
            _report(name, error)
    return log


def _report(name: str, error: Exception) -> None:
    """Print a note that a tracker failed."""
    problem = safe_to_print(in_one_line(error, 200))
    print(f"note: disabled tracker {name} after an error ({problem}); still logging to metrics.jsonl.", file=sys.stderr)
