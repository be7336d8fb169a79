"""Clips and folders to labels."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from peft_audio.adapters.load import Adapter
from peft_audio.adapters.record import AdapterRecord
from peft_audio.audio.decoding import SILENT_PEAK, AudioError, load_audio, read_info
from peft_audio.data.folder import is_text
from peft_audio.data.sampler import cut
from peft_audio.data.training_audio import far_outside, level_dbfs
from peft_audio.data.windows import window_starts
from peft_audio.errors import UserError, require
from peft_audio.inference.recordings import Waveform, as_waveforms, find_recordings
from peft_audio.tasks.task import Task
from peft_audio.text import listed

# Padded seconds of sound that run through the model at once, whatever their number, so that memory does not grow with
# the recordings. A CPU gains from batches of short clips alone: longer ones follow each other, without padding or mask.
BATCH_SECONDS = {"cpu": 4.0, "cuda": 120.0}
# Recordings whose headers are read, and which are put into batches by their length, at a time.
CHUNK_RECORDINGS = 512
# Decoding is quick beside the encoder, and leaves Python's lock: these keep ahead of it.
WORKERS = 2
SHORTEST_HOP_SECONDS = 0.01
# Gives the length of a recording whose answer is known, None of any other, by path and stamp (see `Answer`).
Known = Callable[[str, tuple[int, int] | None], float | None]


class Span(NamedTuple):
    """What is heard at once of a recording, in seconds: where it begins and ends, and the length that is decoded."""

    start: float
    end: float
    seconds: float


@dataclass(frozen=True)
class Hearing:
    """How recordings are heard: all that an answer depends on beside adapter and recording.

    Attributes:
        seconds: How much of a recording that is not cut into windows, from its start.
        window_seconds: Length of the windows; None for the start alone.
        hop_seconds: From one window's start to the next one's.
        each_window: Answer for every window instead of their mean.
        batch_size: Clips or windows that run through the model at once, at most.
    """

    seconds: float
    window_seconds: float | None
    hop_seconds: float | None
    each_window: bool
    batch_size: int

    def spans(self, seconds: float) -> list[Span]:
        """What is heard of a recording that lasts so long."""
        window = self.window_seconds
        if window is None or seconds <= window:
            heard = seconds if window else min(seconds, self.seconds)
            return [Span(0.0, heard, heard)]
        starts = window_starts(seconds, window, self.hop_seconds)
        return [Span(start, start + window, window) for start in starts[:-1]] + [Span(starts[-1], seconds, window)]


@dataclass(frozen=True)
class Answer:
    """What is known of one recording, small enough to be kept for many.

    Attributes:
        path: As given or found, whether it is text or not.
        stamp: Size in bytes and time of the last change in nanoseconds, before it was read; None where it is not there.
        seconds: Length of the recording.
        error: Why it cannot be used; None if it was.
        windows: Start, end, and a probability for each label, of each window, or of all that was heard together.
        sampling_rate: Of the file, in hertz.
        level_dbfs: Of what was read; None where it is not known.
    """

    path: str
    stamp: tuple[int, int] | None
    seconds: float | None = None
    error: str | None = None
    windows: tuple[tuple[float, float, tuple[float, ...]], ...] = ()
    sampling_rate: int | None = None
    level_dbfs: float | None = None


def check_amounts(batch_size: int, workers: int) -> None:
    """Refuse what nothing could be done with, before anything is loaded.

    Raises:
        UserError: One of them is below 1.
    """
    require(batch_size >= 1, "batch-size", batch_size, "1 or more", "Try 16.")
    require(workers >= 1, "workers", workers, "1 or more", "Try 2.")


def how_heard(
    adapter: Adapter, batch_size: int, window_seconds: float | None, hop_seconds: float | None, each_window: bool
) -> Hearing:
    """As the adapter was trained, where nothing else is asked for.

    Raises:
        UserError: A setting has no sense.
    """
    crop, record = adapter.record.crop, adapter.record
    window = window_seconds or crop.get("window_seconds")
    # The hop of other windows is not that of these.
    hop = hop_seconds or (crop.get("hop_seconds") if window_seconds is None else window)
    shortest = record.minimum_samples / record.sampling_rate
    usable = window_seconds is None or shortest <= window_seconds < np.inf
    allowed = f"{shortest:g} (what the encoder takes at least) or more"
    require(usable, "window-seconds", window_seconds, allowed, "Try 5.")
    longest = record.input_seconds or np.inf
    usable = window_seconds is None or window_seconds <= longest
    allowed = f"{longest:g} (the encoder's fixed window) or less"
    require(usable, "window-seconds", window_seconds, allowed, "Leave it out.")
    usable = hop_seconds is None or (window is not None and SHORTEST_HOP_SECONDS <= hop_seconds <= window)
    allowed = f"{SHORTEST_HOP_SECONDS:g} to --window-seconds" if window else "left out without --window-seconds"
    require(usable, "hop-seconds", hop_seconds, allowed, "Gaps would be heard by nothing: give windows as long.")
    return Hearing(crop["evaluation_seconds"], window, hop, each_window, batch_size)


def in_order(answers: Iterable[dict[int, Answer]]) -> Iterator[Answer]:
    """The answers by number, from 0, each as soon as those before it are there."""
    waiting: dict[int, Answer] = {}
    number = 0
    for found in answers:
        waiting |= found
        while number in waiting:
            yield waiting.pop(number)
            number += 1


def answer(
    adapter: Adapter,
    recordings: Sequence[str | Waveform],
    hearing: Hearing,
    workers: int = WORKERS,
    known: Known = lambda path, stamp: None,
) -> Iterator[dict[int, Answer]]:
    """Label recordings, those that are computed together at a time.

    What is computed together depends on the recordings alone, so that neither threads nor being stopped and started
    between two of these changes a bit of an answer.

    Args:
        adapter: What `load_adapter` gives.
        recordings: Paths, or waveforms.
        hearing: How they are heard.
        workers: Threads that decode ahead of the model, which holds so many batches in memory.
        known: Says which recordings need not be done; they are all the same where others need to be that are computed
            together with them.

    Yields:
        Answers by the number of their path.
    """
    limit = BATCH_SECONDS.get(next(adapter.model.parameters()).device.type, BATCH_SECONDS["cuda"])
    task = adapter.task
    with ThreadPoolExecutor(workers) as pool:
        work = _work(pool, recordings, hearing, limit, known, adapter.record.input_seconds or 0.0)
        sums: dict[int, _Sum] = {}
        for batch, waveforms in _ahead(pool, lambda batch: _decode(recordings, batch, adapter), work, workers):
            heard = [waveform for waveform in waveforms if not isinstance(waveform, str)]
            rows = iter(task.probabilities(adapter.logits(heard)).astype(np.float64) if heard else ())
            for (i, span), waveform in zip(batch.parts, waveforms, strict=True):
                sums.setdefault(i, _Sum(task)).add(span, waveform, rows, hearing.each_window)
            if batch.done:
                yield {i: sums.pop(i).answer(told) if told.error is None else told for i, told in batch.done.items()}


@dataclass(frozen=True)
class _Batch:
    """Parts of recordings, by number, that run through the model at once; and which recordings they complete."""

    parts: list[tuple[int, Span]]
    done: dict[int, Answer] = field(default_factory=dict)


@dataclass
class _Sum:
    """What was said of a recording so far: the sum over its windows, or each one's."""

    task: Task
    total: np.ndarray | float = 0.0
    count: int = 0
    end: float = 0.0
    windows: list[tuple[float, float, tuple[float, ...]]] = field(default_factory=list)
    sound: bool = False
    error: str | None = None
    samples: int = 0
    squares: float = 0.0

    def add(self, span: Span, waveform: np.ndarray | str, rows: Iterator[np.ndarray], each_window: bool) -> None:
        """Take in what was said of one window: the next of `rows`, unless its `waveform` is why there is none."""
        if isinstance(waveform, str):
            self.error = self.error or waveform
            return
        row = next(rows)
        self.sound |= bool(np.ptp(waveform) > 2 * SILENT_PEAK)
        self.samples += len(waveform)
        self.squares += len(waveform) * float(np.var(waveform, dtype=np.float64))
        self.total, self.count, self.end = self.total + row, self.count + 1, max(self.end, span.end)
        if each_window:
            self.windows.append((span.start, span.end, tuple(self.task.mean_probabilities(row, 1).tolist())))

    def answer(self, told: Answer) -> Answer:
        """The mean over the windows, as an answer for the recording that `told` knows the length of."""
        error = self.error or (None if self.sound else "is silent")
        if error is not None:
            return Answer(told.path, told.stamp, error=error)
        mean = self.task.mean_probabilities(np.asarray(self.total), self.count)
        windows = tuple(self.windows) or ((0.0, self.end, tuple(mean.tolist())),)
        level = float(level_dbfs(np.sqrt(self.squares / self.samples)))
        return replace(told, windows=windows, level_dbfs=round(level, 1))


def _work(
    pool: ThreadPoolExecutor,
    recordings: Sequence[str | Waveform],
    hearing: Hearing,
    limit: float,
    known: Known,
    shortest: float,
) -> Iterator[_Batch]:
    """The batches, like in length: of a few hundred recordings at a time, and no recording in two groups of them.

    In batches, a part counts as long as the model's input: at least `shortest` seconds.
    """
    for at in range(0, len(recordings), CHUNK_RECORDINGS):
        numbers = range(at, min(at + CHUNK_RECORDINGS, len(recordings)))
        found = dict(zip(numbers, pool.map(lambda i: _look(recordings[i], known), numbers), strict=True))
        failed = {i: told for i, told in found.items() if told.error is not None}
        if failed:
            yield _Batch([], failed)
        spans = {i: hearing.spans(told.seconds or 0.0) for i, told in found.items() if told.error is None}
        for group in _groups(spans, hearing.batch_size, limit, shortest):
            if all(known(found[i].path, found[i].stamp) is not None for i in group):
                continue
            # Those that are known already have been looked up by their length alone.
            found |= {
                i: _look(recordings[i], lambda path, stamp: None) for i in group if found[i].sampling_rate is None
            }
            parts = [(i, span) for i in group for span in spans[i]]
            lengths = [max(span.seconds, shortest) for _, span in parts]
            batches = _batches(lengths, hearing.batch_size, limit)
            for number, rows in enumerate(batches, start=1):
                whole = {i: found[i] for i in group} if number == len(batches) else {}
                yield _Batch([parts[row] for row in rows], whole)


def _groups(spans: dict[int, list[Span]], batch_size: int, limit: float, shortest: float) -> list[list[int]]:
    """Recordings that fit into a batch together with all their windows, neighbours in length; longer ones alone."""
    groups: list[list[int]] = []
    held = 0
    for i in sorted(spans, key=lambda i: spans[i][0].seconds):
        held += len(spans[i])
        if groups and held <= batch_size and held * max(spans[i][0].seconds, shortest) <= limit:
            groups[-1].append(i)
        else:
            groups.append([i])
            held = len(spans[i])
    return groups


def _batches(seconds: Sequence[float], batch_size: int, limit: float) -> list[list[int]]:
    """Which parts run at once: neighbours in length, which saves padding and changes no answer."""
    known = np.asarray(seconds)
    together = cut(known.argsort(kind="stable"), known, batch_size, limit)
    return [rows[at : at + batch_size] for rows in together for at in range(0, len(rows), batch_size)]


def _look(path: str | Waveform, known: Known) -> Answer:
    """How long a recording is, as is known or as its header says, or why it cannot be used."""
    if isinstance(path, Waveform):
        try:
            info = read_info(path.content)
        except AudioError as error:
            return Answer(path.name, None, error=_reason(error))
        return Answer(path.name, None, info.num_frames / info.sampling_rate, sampling_rate=info.sampling_rate)
    try:
        status = Path(path).stat()
        stamp = (status.st_size, status.st_mtime_ns)
    except (OSError, ValueError):
        stamp = None  # what is wrong is said by read_info
    seconds = known(path, stamp)
    if seconds is not None:
        return Answer(path, stamp, seconds)
    try:
        if not is_text(path):
            raise AudioError("has a name that is not valid UTF-8; rename it")
        info = read_info(Path(path))
        return Answer(path, stamp, info.num_frames / info.sampling_rate, sampling_rate=info.sampling_rate)
    except (AudioError, OSError) as error:
        return Answer(path, stamp, error=_reason(error))


def _decode(recordings: Sequence[str | Waveform], batch: _Batch, adapter: Adapter) -> list[np.ndarray | str]:
    """Each part's waveform, or why there is none."""
    found: list[np.ndarray | str] = []
    for i, span in batch.parts:
        try:
            recording = recordings[i]
            source = recording.content if isinstance(recording, Waveform) else Path(recording)
            found.append(load_audio(source, adapter.record.sampling_rate, span.start, span.seconds))
        except (AudioError, OSError) as error:
            found.append(_reason(error))
    return found


def _reason(error: Exception) -> str:
    # Between two looks at it, a file may be gone.
    return f"cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)


def _ahead(
    pool: ThreadPoolExecutor, decode: Callable[[_Batch], list[np.ndarray | str]], work: Iterable[_Batch], count: int
) -> Iterator[tuple[_Batch, list[np.ndarray | str]]]:
    """Each batch with its waveforms, in order; so many are begun ahead."""
    begun: deque[tuple[_Batch, Future[list[np.ndarray | str]]]] = deque()
    for batch in work:
        begun.append((batch, pool.submit(decode, batch)))
        if len(begun) > count:
            first, future = begun.popleft()
            yield first, future.result()
    while begun:
        first, future = begun.popleft()
        yield first, future.result()


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
        warnings: In what the recording is far from the training clips, such as `seconds`, and a text on it; empty for
            adapters that do not record this.
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
    warnings: dict[str, str] = field(default_factory=dict)


def predict(
    adapter: Adapter,
    sources: str | Path | np.ndarray | Iterable[str | Path | np.ndarray],
    batch_size: int = 16,
    workers: int = WORKERS,
    window_seconds: float | None = None,
    hop_seconds: float | None = None,
    each_window: bool = False,
    sampling_rate: int | None = None,
) -> list[Prediction]:
    """Label recordings.

    A recording's answer does not depend on the others, nor on `workers`. As in evaluation, an adapter that was trained
    on windows hears the whole recording in such windows, and the probabilities are averaged; any other hears the first
    `adapter.record.crop["evaluation_seconds"]` seconds, and `seconds_used` says so for each.

    Args:
        adapter: What `load_adapter` gives.
        sources: A recording, a folder or a pattern such as `clips/**/*.wav`, or several; folders are searched to any
            depth. Or waveforms, each a mono array of shape (samples,): floats with full scale at 1, or int16.
        batch_size: Clips or windows that run through the model at once, or fewer where they are long (`BATCH_SECONDS`).
        workers: Threads that decode ahead of the model.
        window_seconds: Hear recordings in windows of this length instead of what the adapter was trained with.
        hop_seconds: From one window's start to the next one's; `window_seconds` when not given.
        each_window: One prediction for each window, instead of one for each recording.
        sampling_rate: Of the waveforms, in hertz; files bring their own.

    Returns:
        One prediction a recording, in the order of `sources`, by name within a folder. A recording that cannot be
        decoded, or is silent, is among them, with `label` None and the reason in `error`.

    Raises:
        UserError: A source does not exist, or a folder holds no recordings; a setting has no sense.
    """
    check_amounts(batch_size, workers)
    hearing = how_heard(adapter, batch_size, window_seconds, hop_seconds, each_window)
    several = _as_list(sources)
    paths = [source for source in several if isinstance(source, (str, Path))]
    # Text of NumPy has __array__ as well.
    arrays = [np.asarray(one) for one in several if not isinstance(one, (str, Path)) and hasattr(one, "__array__")]
    if len(arrays) < len(several) and len(paths) < len(several):
        kinds = listed(sorted({type(source).__name__ for source in several}))
        raise UserError(f"sources: got {kinds}, expected paths alone or arrays alone. Call predict for each kind.")
    recordings: Sequence[str | Waveform]
    if arrays:
        recordings = as_waveforms(arrays, sampling_rate)
    elif sampling_rate is not None:
        raise UserError(f"sampling_rate: got {sampling_rate}, but files have their own. Leave it out.")
    else:
        recordings = find_recordings(paths)
    found = in_order(answer(adapter, recordings, hearing, workers))
    return [one for told in found for one in predictions(told, adapter.record, hearing)]


def _as_list(sources: str | Path | np.ndarray | Iterable[str | Path | np.ndarray]) -> list[str | Path | np.ndarray]:
    """List sources: an array of text or of objects holds several, an array of numbers is one waveform."""
    if isinstance(sources, np.ndarray) and sources.dtype.kind in "UO":
        return list(sources.ravel())
    return [sources] if isinstance(sources, (str, Path, np.ndarray)) else list(sources)


def predictions(told: Answer, record: AdapterRecord, hearing: Hearing) -> list[Prediction]:
    """Convert an answer to one prediction, or to one for each window.

    Args:
        told: The answer.
        record: Record of the adapter, with its labels.
        hearing: How the recording was read.
    """
    labels, task = record.labels, record.task
    # A name that is not text could be written nowhere.
    path = os.fsencode(told.path).decode("utf-8", "backslashreplace")
    if told.error is not None:
        return [Prediction(path, None, None, {}, None, None, told.error)]
    used, found = max(end for _, end, _ in told.windows), []
    at_once = max(span.seconds for span in hearing.spans(told.seconds or used))
    unusual = far_outside(record.training_audio, at_once, told.level_dbfs, told.sampling_rate, record.sampling_rate)
    for start, end, row in told.windows:
        values = np.array([row])
        (label,), probability = (
            task.decode(task.decide_by_probabilities(values), labels),
            float(task.confidence(values)[0]),
        )
        span = (start, end) if hearing.each_window else (None, None)
        by_name = dict(zip(labels, row, strict=True))
        found.append(Prediction(path, label, probability, by_name, told.seconds, used, None, span[0], span[1], unusual))
    return found
