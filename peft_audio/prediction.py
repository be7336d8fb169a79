"""Clips and folders to labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import softmax

from peft_audio.adapters import Adapter
from peft_audio.audio import AUDIO_SUFFIXES, SILENT_PEAK, AudioError, load_audio, read_info
from peft_audio.config import UserError
from peft_audio.folder import files_below
from peft_audio.sampler import cut
from peft_audio.windows import window_starts

# Padded seconds of sound that run through the model at once, whatever their number, so that memory does not grow with
# the recordings. A CPU gains from batches of short clips alone: longer ones follow each other, without padding or mask.
BATCH_SECONDS = {"cpu": 4.0, "cuda": 120.0}


@dataclass(frozen=True)
class Prediction:
    """What an adapter says of one recording.

    Attributes:
        path: The recording, as given or as found in a given folder.
        label: The most probable label; None if the recording cannot be used.
        probability: Of that label, 0 to 1.
        probabilities: Of every label.
        seconds: Length of the recording.
        seconds_used: How much of it, from its start, the prediction rests on; all of it with an adapter of windows.
        error: Why the recording cannot be used; None if it was.
    """

    path: str
    label: str | None
    probability: float | None
    probabilities: dict[str, float]
    seconds: float | None
    seconds_used: float | None
    error: str | None = None


def predict(adapter: Adapter, sources: str | Path | Iterable[str | Path], batch_size: int = 16) -> list[Prediction]:
    """Label recordings.

    A recording's answer does not depend on the others. As in evaluation, an adapter that was trained on windows hears
    the whole recording in such windows, and the probabilities are averaged; any other hears the first
    `adapter.record.crop["evaluation_seconds"]` seconds, and `seconds_used` says so for each.

    Args:
        adapter: What `load_adapter` gives.
        sources: A recording or a folder, or several; folders are searched to any depth.
        batch_size: Recordings that run through the model at once, or fewer where they are long (`BATCH_SECONDS`).

    Returns:
        One prediction a recording, in the order of `sources`, by name within a folder. A recording that cannot be
        decoded, or is silent, is among them, with `label` None and the reason in `error`.

    Raises:
        UserError: A source does not exist, or a folder holds no recordings.
    """
    paths = find_recordings([sources] if isinstance(sources, (str, Path)) else sources)
    found: dict[int, Prediction] = {}
    lengths: dict[int, float] = {}
    for i, path in enumerate(paths):
        try:
            info = read_info(path)
            lengths[i] = info.num_frames / info.sampling_rate
        except AudioError as error:
            found[i] = _failed(path, str(error))
    parts = [(i, start, seconds) for i in lengths for start, seconds in _parts(adapter, lengths[i])]
    sums: dict[int, np.ndarray] = {}
    heard: dict[int, bool] = {}
    for batch in _batches([min(seconds, lengths[i]) for i, _, seconds in parts], batch_size, adapter):
        waveforms, owners = [], []
        for i, start, seconds in [parts[number] for number in batch]:
            try:
                waveforms.append(load_audio(paths[i], adapter.record.sampling_rate, start, seconds))
                owners.append(i)
                heard[i] = heard.get(i, False) or bool(np.ptp(waveforms[-1]) > 2 * SILENT_PEAK)
            except AudioError as error:
                found[i] = _failed(paths[i], str(error))
        rows = softmax(adapter.logits(waveforms), axis=1) if waveforms else []
        for i, row in zip(owners, rows, strict=True):
            sums[i] = sums.get(i, 0) + row.astype(np.float64)
    limit = np.inf if "window_seconds" in adapter.record.crop else adapter.record.crop["evaluation_seconds"]
    found |= {i: _failed(paths[i], "is silent") for i, sound in heard.items() if not sound and i not in found}
    for i in sums.keys() - found.keys():
        found[i] = _prediction(paths[i], sums[i] / sums[i].sum(), adapter.labels, lengths[i], min(lengths[i], limit))
    return [found[i] for i in range(len(paths))]


def _parts(adapter: Adapter, seconds: float) -> list[tuple[float, float]]:
    """Start and length, in seconds, of what is heard of a recording."""
    crop = adapter.record.crop
    window = crop.get("window_seconds")
    if window is None or seconds <= window:
        return [(0.0, crop["evaluation_seconds"])]
    return [(start, window) for start in window_starts(seconds, window, crop.get("hop_seconds"))]


def _batches(seconds: Sequence[float], batch_size: int, adapter: Adapter) -> list[list[int]]:
    """Which parts run at once: neighbours in length, which saves padding and changes no answer."""
    known = np.asarray(seconds)
    device = next(adapter.model.parameters()).device.type
    together = cut(known.argsort(kind="stable"), known, batch_size, BATCH_SECONDS.get(device, BATCH_SECONDS["cuda"]))
    return [rows[at : at + batch_size] for rows in together for at in range(0, len(rows), batch_size)]


def find_recordings(sources: Iterable[str | Path]) -> list[Path]:
    """Files as given, and every recording below the folders given, sorted.

    Raises:
        UserError: One does not exist, or a folder holds no recordings.
    """
    paths: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            # What looks like audio but cannot be decoded is reported, not passed over.
            inside = [path for path in files_below(source) if path.suffix.lower() in AUDIO_SUFFIXES]
            if not inside:
                raise UserError(f"{source}: no recordings ({', '.join(sorted(AUDIO_SUFFIXES))}) in this folder.")
            paths += inside
        elif source.exists():
            paths.append(source)
        else:
            raise UserError(f"{source}: no such file or folder; give recordings or folders of recordings.")
    return paths


def _prediction(path: Path, row: np.ndarray, labels: Sequence[str], seconds: float, used: float) -> Prediction:
    best = int(row.argmax())
    probabilities = {label: float(value) for label, value in zip(labels, row, strict=True)}
    return Prediction(str(path), labels[best], float(row[best]), probabilities, seconds, used)


def _failed(path: Path, reason: str) -> Prediction:
    return Prediction(str(path), None, None, {}, None, None, reason)
