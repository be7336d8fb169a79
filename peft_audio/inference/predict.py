"""Clips and folders to labels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from peft_audio.adapters.adapter import Adapter
from peft_audio.inference.answering import WORKERS, Answer, answer, check_amounts, how_heard, in_order
from peft_audio.inference.recordings import find_recordings
from peft_audio.tasks.task import Task


@dataclass(frozen=True)
class Prediction:
    """What an adapter says of one recording, or of one window of it.

    Attributes:
        path: The recording, as given or as found in a given folder.
        label: The most probable label; None if the recording cannot be used.
        probability: Of that label, 0 to 1.
        probabilities: Of every label.
        seconds: Length of the recording.
        seconds_used: How much of it, from its start, the prediction rests on; all of it where it is heard in windows.
        error: Why the recording cannot be used; None if it was.
        start_seconds: Where the window begins, if each window was asked for; None otherwise.
        end_seconds: Where it ends.
    """

    path: str
    label: str | None
    probability: float | None
    probabilities: dict[str, float]
    seconds: float | None
    seconds_used: float | None
    error: str | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None


def predict(
    adapter: Adapter,
    sources: str | Path | Iterable[str | Path],
    batch_size: int = 16,
    workers: int = WORKERS,
    window_seconds: float | None = None,
    hop_seconds: float | None = None,
    each_window: bool = False,
) -> list[Prediction]:
    """Label recordings.

    A recording's answer does not depend on the others, nor on `workers`. As in evaluation, an adapter that was trained
    on windows hears the whole recording in such windows, and the probabilities are averaged; any other hears the first
    `adapter.record.crop["evaluation_seconds"]` seconds, and `seconds_used` says so for each.

    Args:
        adapter: What `load_adapter` gives.
        sources: A recording, a folder or a pattern such as `clips/**/*.wav`, or several; folders are searched to any
            depth.
        batch_size: Clips or windows that run through the model at once, or fewer where they are long (`BATCH_SECONDS`).
        workers: Threads that decode ahead of the model.
        window_seconds: Hear recordings in windows of this length instead of what the adapter was trained with.
        hop_seconds: From one window's start to the next one's; `window_seconds` when not given.
        each_window: One prediction for each window, instead of one for each recording.

    Returns:
        One prediction a recording, in the order of `sources`, by name within a folder. A recording that cannot be
        decoded, or is silent, is among them, with `label` None and the reason in `error`.

    Raises:
        UserError: A source does not exist, or a folder holds no recordings; a setting has no sense.
    """
    check_amounts(batch_size, workers)
    hearing = how_heard(adapter, batch_size, window_seconds, hop_seconds, each_window)
    paths = find_recordings([sources] if isinstance(sources, (str, Path)) else sources)
    found = in_order(answer(adapter, paths, hearing, workers))
    return [one for told in found for one in predictions(told, adapter.labels, adapter.task, each_window)]


def predictions(told: Answer, labels: Sequence[str], task: Task, each_window: bool = False) -> list[Prediction]:
    """An answer by names: one prediction, or one for each window.

    Args:
        told: The answer.
        labels: In the order of the logits.
        task: decides on the labels.
        each_window: Whether windows are told one by one.
    """
    # A name that is not text could be written nowhere.
    path = os.fsencode(told.path).decode("utf-8", "backslashreplace")
    if told.error is not None:
        return [Prediction(path, None, None, {}, None, None, told.error)]
    used, found = max(end for _, end, _ in told.windows), []
    for start, end, row in told.windows:
        values = np.array([row])
        (label,), probability = task.decode(task.decide(values), labels), float(task.confidence(values)[0])
        span = (start, end) if each_window else (None, None)
        by_name = dict(zip(labels, row, strict=True))
        found.append(Prediction(path, label, probability, by_name, told.seconds, used, None, *span))
    return found
