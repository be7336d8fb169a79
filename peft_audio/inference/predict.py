"""Label recordings with an adapter."""

from __future__ import annotations

import os
from base64 import b64encode
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
from peft_audio.data.sampler import cut_batches
from peft_audio.data.training_audio import far_outside, level_dbfs
from peft_audio.data.windows import window_starts
from peft_audio.errors import UserError, require
from peft_audio.inference.recordings import Waveform, as_waveforms, find_recordings
from peft_audio.pages.sections import Section, render_notebook
from peft_audio.progress import progress_bar
from peft_audio.tasks.task import Task
from peft_audio.text import listed

# Padded seconds of audio per batch; a limit keeps memory independent of the lengths of recordings. On a CPU only short
# clips gain from batches, so longer ones run one at a time, without padding or mask.
BATCH_SECONDS = {"cpu": 4.0, "cuda": 120.0}
# Recordings whose headers are read together and which are sorted into batches by length.
CHUNK_RECORDINGS = 512
# Decoding is faster than the encoder and releases the GIL, so two threads suffice.
WORKERS = 2
SHORTEST_HOP_SECONDS = 0.01
# A bar for fewer would take longer to load than they do.
BAR_RECORDINGS = 17
# A notebook shows this many predictions, and holds recordings of this many bytes to play.
MOST_SHOWN = 50
MOST_PLAYED_BYTES = 4_000_000
PLAYED = {
    ".wav": "audio/wav",
    ".flac": "audio/flac",
    ".mp3": "audio/mpeg",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".m4a": "audio/mp4",
    ".webm": "audio/webm",
}
# Function of path and stamp (see `Answer`): length in seconds of a recording whose answer is known, otherwise None.
Known = Callable[[str, tuple[int, int] | None], float | None]


class Span(NamedTuple):
    """One window of a recording: its start, its end and the length that is decoded, in seconds."""

    start: float
    end: float
    seconds: float


@dataclass(frozen=True)
class Windowing:
    """Settings that an answer depends on, besides the adapter and the recording.

    Attributes:
        seconds: Seconds that are used from the start of a recording; infinity for all of it.
        window_seconds: Length of the windows; None if recordings are not cut.
        hop_seconds: Distance between the starts of two windows.
        each_window: One answer per window instead of their mean.
        batch_size: Largest number of clips or windows per batch.
    """

    seconds: float
    window_seconds: float | None
    hop_seconds: float | None
    each_window: bool
    batch_size: int

    def spans(self, seconds: float) -> list[Span]:
        """Return the windows of a recording.

        Args:
            seconds: Length of the recording.
        """
        window, used = self.window_seconds, min(seconds, self.seconds)
        if window is None or used <= window:
            return [Span(0.0, used, used)]
        starts = window_starts(used, window, self.hop_seconds)
        return [Span(start, start + window, window) for start in starts[:-1]] + [Span(starts[-1], used, window)]


@dataclass(frozen=True)
class Answer:
    """Result for one recording, small enough to keep many in memory.

    Attributes:
        path: Path as given or found; it need not be valid text.
        stamp: Size in bytes and modification time in nanoseconds, taken before reading; None if the file is missing.
        seconds: Length of the recording.
        error: Reason why the recording cannot be used; None if there is no error.
        windows: Start and end in seconds and the probability of each label, per window, or once for their mean.
        sampling_rate: Sampling rate of the file in hertz.
        level_dbfs: Level of the part that was read; None if not known.
    """

    path: str
    stamp: tuple[int, int] | None
    seconds: float | None = None
    error: str | None = None
    windows: tuple[tuple[float, float, tuple[float, ...]], ...] = ()
    sampling_rate: int | None = None
    level_dbfs: float | None = None


def check_counts(batch_size: int, workers: int) -> None:
    """Refuse a batch size or a number of workers below 1.

    Raises:
        UserError: One of them is below 1.
    """
    require(batch_size >= 1, "batch-size", batch_size, "1 or more", "Try 16.")
    require(workers >= 1, "workers", workers, "1 or more", "Try 2.")


def make_windowing(
    adapter: Adapter, batch_size: int, window_seconds: float | None, hop_seconds: float | None, each_window: bool
) -> Windowing:
    """Combine the given settings with those that the adapter was trained with.

    Args:
        adapter: Adapter whose record holds the defaults.
        batch_size: Largest number of clips or windows per batch.
        window_seconds: Length of the windows; None for that of the training.
        hop_seconds: Distance between the starts of two windows; None for no overlap, or for that of the training if
            `window_seconds` is None as well.
        each_window: One answer per window instead of their mean.

    Raises:
        UserError: A window is shorter than the encoder's minimum, or a hop is longer than a window.
    """
    crop, record = adapter.record.crop, adapter.record
    window = window_seconds or crop.get("window_seconds")
    # The hop of the training belongs to the windows of the training.
    hop = hop_seconds or (crop.get("hop_seconds") if window_seconds is None else window)
    shortest = record.minimum_samples / record.sampling_rate
    usable = window_seconds is None or shortest <= window_seconds < np.inf
    allowed = f"{shortest:g} (the shortest input of the encoder) or more"
    require(usable, "window-seconds", window_seconds, allowed, "Try 5.")
    longest = record.input_seconds or np.inf
    usable = window_seconds is None or window_seconds <= longest
    allowed = f"{longest:g} (the encoder's fixed window) or less"
    require(usable, "window-seconds", window_seconds, allowed, "Leave it out.")
    usable = hop_seconds is None or (window is not None and SHORTEST_HOP_SECONDS <= hop_seconds <= window)
    allowed = f"{SHORTEST_HOP_SECONDS:g} to --window-seconds" if window else "left out without --window-seconds"
    require(usable, "hop-seconds", hop_seconds, allowed, "A longer hop would skip parts of the recording.")
    # Windows that are asked for cover the whole recording.
    used = record.recording_seconds if window_seconds is None else np.inf
    return Windowing(used, window, hop, each_window, batch_size)


def in_order(answers: Iterable[dict[int, Answer]]) -> Iterator[Answer]:
    """Yield answers in the order of their numbers, each as soon as possible.

    Args:
        answers: Answers by number, in any order; the numbers start at 0.
    """
    waiting: dict[int, Answer] = {}
    number = 0
    for some in answers:
        waiting |= some
        while number in waiting:
            yield waiting.pop(number)
            number += 1


def answer_recordings(
    adapter: Adapter,
    recordings: Sequence[str | Waveform],
    windowing: Windowing,
    workers: int = WORKERS,
    known: Known = lambda path, stamp: None,
) -> Iterator[dict[int, Answer]]:
    """Label recordings, one group at a time.

    Groups depend on the recordings only. Thus neither the number of threads nor an interruption between two groups
    changes a bit of an answer.

    Args:
        adapter: Adapter from `load_adapter`.
        recordings: Paths or waveforms.
        windowing: Parts of the recordings to use.
        workers: Number of threads that decode ahead of the model; each holds one batch in memory.
        known: Returns the length of recordings whose answers are known. A group is skipped if all of it is known.

    Yields:
        Answers by the index of their recording.
    """
    limit = BATCH_SECONDS.get(next(adapter.model.parameters()).device.type, BATCH_SECONDS["cuda"])
    task = adapter.task
    with ThreadPoolExecutor(workers) as pool:
        batches = _make_batches(pool, recordings, windowing, limit, known, adapter.record.input_seconds or 0.0)
        sums: dict[int, _WindowSum] = {}
        for batch, waveforms in _decode_ahead(
            pool, lambda batch: _decode(recordings, batch, adapter), batches, workers
        ):
            decoded = [waveform for waveform in waveforms if not isinstance(waveform, str)]
            rows = iter(task.probabilities(adapter.logits(decoded)).astype(np.float64) if decoded else ())
            for (i, span), waveform in zip(batch.parts, waveforms, strict=True):
                sums.setdefault(i, _WindowSum(task)).add(span, waveform, rows, windowing.each_window)
            if batch.done:
                yield {i: sums.pop(i).answer(it) if it.error is None else it for i, it in batch.done.items()}


@dataclass(frozen=True)
class _Batch:
    """Windows that run through the model together.

    Attributes:
        parts: Index of the recording and window.
        done: By index, the recordings whose last windows are in this batch, without their probabilities.
    """

    parts: list[tuple[int, Span]]
    done: dict[int, Answer] = field(default_factory=dict)


@dataclass
class _WindowSum:
    """Sum of the probabilities over the windows of a recording.

    Attributes:
        total: Sum of the probabilities, of shape (labels,).
        count: Number of windows.
        end: End of the last window in seconds.
        windows: Start, end and probabilities of each window, if each is asked for.
        sound: Whether a window is not silent.
        error: First error of a window.
        samples: Number of samples.
        squares: Sum of the squared deviations from each window's mean.
    """

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
        """Add one window.

        Args:
            span: Times of the window.
            waveform: Samples of the window, or the error that prevented decoding.
            rows: Probabilities of the decoded windows of the batch; the next one belongs to this window.
            each_window: Keep the probabilities of the window.
        """
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

    def answer(self, recording: Answer) -> Answer:
        """Return the mean over the windows.

        Args:
            recording: Path, stamp and length of the recording.
        """
        error = self.error or (None if self.sound else "is silent")
        if error is not None:
            return Answer(recording.path, recording.stamp, error=error)
        mean = self.task.mean_probabilities(np.asarray(self.total), self.count)
        windows = tuple(self.windows) or ((0.0, self.end, tuple(mean.tolist())),)
        level = float(level_dbfs(np.sqrt(self.squares / self.samples)))
        return replace(recording, windows=windows, level_dbfs=round(level, 1))


def _make_batches(
    pool: ThreadPoolExecutor,
    recordings: Sequence[str | Waveform],
    windowing: Windowing,
    limit: float,
    known: Known,
    shortest: float,
) -> Iterator[_Batch]:
    """Yield batches of windows of similar length.

    Each chunk of `CHUNK_RECORDINGS` recordings is divided into groups, and each group into batches.

    Args:
        pool: Threads that read headers.
        recordings: Paths or waveforms.
        windowing: Parts of the recordings to use.
        limit: Largest number of padded seconds per batch.
        known: Returns the length of recordings whose answers are known.
        shortest: Length of the model's shortest input in seconds; shorter windows count as this long.
    """
    for first in range(0, len(recordings), CHUNK_RECORDINGS):
        chunk = range(first, min(first + CHUNK_RECORDINGS, len(recordings)))
        headers = dict(zip(chunk, pool.map(lambda i: _read_header(recordings[i], known), chunk), strict=True))
        failed = {i: header for i, header in headers.items() if header.error is not None}
        if failed:
            yield _Batch([], failed)
        spans = {i: windowing.spans(it.seconds or 0.0) for i, it in headers.items() if it.error is None}
        for group in _group_recordings(spans, windowing.batch_size, limit, shortest):
            if all(known(headers[i].path, headers[i].stamp) is not None for i in group):
                continue
            # The headers of recordings with a known answer have not been read yet.
            headers |= {
                i: _read_header(recordings[i], lambda path, stamp: None)
                for i in group
                if headers[i].sampling_rate is None
            }
            parts = [(i, span) for i in group for span in spans[i]]
            lengths = [max(span.seconds, shortest) for _, span in parts]
            batches = _sort_into_batches(lengths, windowing.batch_size, limit)
            for number, rows in enumerate(batches, start=1):
                done = {i: headers[i] for i in group} if number == len(batches) else {}
                yield _Batch([parts[row] for row in rows], done)


def _group_recordings(spans: dict[int, list[Span]], batch_size: int, limit: float, shortest: float) -> list[list[int]]:
    """Group recordings of similar length whose windows fit into one batch; longer recordings form their own group."""
    groups: list[list[int]] = []
    windows = 0
    for i in sorted(spans, key=lambda i: spans[i][0].seconds):
        windows += len(spans[i])
        if groups and windows <= batch_size and windows * max(spans[i][0].seconds, shortest) <= limit:
            groups[-1].append(i)
        else:
            groups.append([i])
            windows = len(spans[i])
    return groups


def _sort_into_batches(seconds: Sequence[float], batch_size: int, limit: float) -> list[list[int]]:
    """Return the indices of each batch: sorted by length, which saves padding and changes no answer."""
    lengths = np.asarray(seconds)
    cuts = cut_batches(lengths.argsort(kind="stable"), lengths, batch_size, limit)
    return [rows[first : first + batch_size] for rows in cuts for first in range(0, len(rows), batch_size)]


def _read_header(path: str | Waveform, known: Known) -> Answer:
    """Return the length of a recording, from `known` or its header, or the error."""
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
        stamp = None  # read_info reports the error
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
    """Return the waveform of each part, or its error."""
    waveforms: list[np.ndarray | str] = []
    for i, span in batch.parts:
        try:
            recording = recordings[i]
            source = recording.content if isinstance(recording, Waveform) else Path(recording)
            waveforms.append(load_audio(source, adapter.record.sampling_rate, span.start, span.seconds))
        except (AudioError, OSError) as error:
            waveforms.append(_reason(error))
    return waveforms


def _reason(error: Exception) -> str:
    # A file can be deleted after its header was read.
    return f"cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)


def _decode_ahead(
    pool: ThreadPoolExecutor, decode: Callable[[_Batch], list[np.ndarray | str]], batches: Iterable[_Batch], count: int
) -> Iterator[tuple[_Batch, list[np.ndarray | str]]]:
    """Yield each batch with its waveforms, in order, and decode up to `count` batches ahead."""
    begun: deque[tuple[_Batch, Future[list[np.ndarray | str]]]] = deque()
    for batch in batches:
        begun.append((batch, pool.submit(decode, batch)))
        if len(begun) > count:
            first, future = begun.popleft()
            yield first, future.result()
    while begun:
        first, future = begun.popleft()
        yield first, future.result()


@dataclass(frozen=True)
class Prediction:
    """Prediction for one recording, or for one of its windows.

    Attributes:
        path: Path of the recording, as given or as found in a given folder.
        label: Most probable label; None if the recording cannot be used.
        probability: Probability of that label, 0 to 1.
        probabilities: Probability of every label.
        seconds: Length of the recording.
        seconds_used: Seconds from the start of the recording that were used; its whole length with windows.
        error: Reason why the recording cannot be used; None if there is no error.
        warnings: Properties in which the recording is far from the training clips, such as `seconds`, each with an
            explanation. Empty for adapters that do not record the training clips' properties.
        start_seconds: Start of the window; None unless each window has its own prediction.
        end_seconds: End of the window; None unless each window has its own prediction.
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

    def _repr_html_(self) -> str:
        """Render the label, with a player, in a notebook."""
        return PredictionList([self])._repr_html_()


class PredictionList(list[Prediction]):
    """A list that a notebook shows as a table with players."""

    def _repr_html_(self) -> str:
        """Render labels, with players of the first recordings that are files of a type that browsers play."""
        shown, left = self[:MOST_SHOWN], len(self) - MOST_SHOWN
        windows = any(one.start_seconds is not None for one in shown)
        failed = any(one.error is not None for one in shown)
        rows = []
        for one in shown:
            span = [f"{one.start_seconds:.2f} to {one.end_seconds:.2f} s" if one.start_seconds is not None else ""]
            rows.append(
                (
                    one.path,
                    *(span if windows else []),
                    "" if one.label is None else one.label,
                    "" if one.probability is None else f"{one.probability:.3f}",
                    *([one.error or ""] if failed else []),
                )
            )
        header = ["recording", *(["window"] if windows else []), "label", "probability", *(["error"] if failed else [])]
        more = (f"and {left} more",) if left > 0 else ()
        players = tuple(_players([one.path for one in shown]))
        section = Section(
            "Labels", (), tuple(header), tuple(rows), numbers=False, lines=more, players=players if any(players) else ()
        )
        return render_notebook(f"{len(self)} predictions", [section])


def _players(paths: Sequence[str]) -> Iterator[str]:
    """Yield a data URI for each path; "" if it is no file to play, is played already, or the page is full."""
    left, played = MOST_PLAYED_BYTES, set()
    for path in paths:
        kind = PLAYED.get(Path(path).suffix.lower())
        try:
            size = Path(path).stat().st_size if kind and path not in played else left + 1
            content = Path(path).read_bytes() if size <= left else b""
        except (OSError, ValueError):
            content = b""
        played.add(path)
        left -= len(content)
        yield f"data:{kind};base64,{b64encode(content).decode()}" if content else ""


def predict(
    adapter: Adapter,
    sources: str | Path | np.ndarray | Iterable[str | Path | np.ndarray],
    batch_size: int = 16,
    workers: int = WORKERS,
    window_seconds: float | None = None,
    hop_seconds: float | None = None,
    each_window: bool = False,
    sampling_rate: int | None = None,
) -> PredictionList:
    """Label recordings.

    The prediction for a recording does not depend on the other recordings or on `workers`. Recordings are read as in
    evaluation: the first `adapter.record.recording_seconds`. An adapter that was trained on windows averages the
    probabilities of such windows. If they were set by `data.window_seconds`, they cover the whole recording.

    Args:
        adapter: Adapter from `load_adapter`.
        sources: One or several recordings, folders or patterns such as `clips/**/*.wav`; folders are searched to any
            depth. Or mono waveforms of shape (samples,): floats with full scale at 1, or int16.
        batch_size: Largest number of clips or windows per batch; long ones form smaller batches (`BATCH_SECONDS`).
        workers: Number of threads that decode ahead of the model.
        window_seconds: Length of the windows, instead of that of the training.
        hop_seconds: Distance between the starts of two windows; `window_seconds` when not given.
        each_window: Return one prediction per window instead of one per recording.
        sampling_rate: Sampling rate of the waveforms in hertz; files have their own.

    Returns:
        One prediction per recording, in the order of `sources`, and sorted by name within a folder. A recording that
        cannot be decoded or is silent has the `label` None and the reason in `error`.

    Raises:
        UserError: A source does not exist, a folder holds no recordings, or a setting is out of range.
    """
    check_counts(batch_size, workers)
    windowing = make_windowing(adapter, batch_size, window_seconds, hop_seconds, each_window)
    several = _as_list(sources)
    paths = [source for source in several if isinstance(source, (str, Path))]
    # NumPy strings have __array__ as well.
    arrays = [np.asarray(one) for one in several if not isinstance(one, (str, Path)) and hasattr(one, "__array__")]
    if len(arrays) < len(several) and len(paths) < len(several):
        kinds = listed(sorted({type(source).__name__ for source in several}))
        raise UserError(f"sources: got {kinds}, expected only paths or only arrays. Call predict for each kind.")
    recordings: Sequence[str | Waveform]
    if arrays:
        recordings = as_waveforms(arrays, sampling_rate)
    elif sampling_rate is not None:
        raise UserError(f"sampling_rate: got {sampling_rate}, but files have their own. Leave it out.")
    else:
        recordings = find_recordings(paths)
    return PredictionList(label_recordings(adapter, recordings, windowing, workers))


def label_recordings(
    adapter: Adapter, recordings: Sequence[str | Waveform], windowing: Windowing, workers: int, show_bar: bool = True
) -> Iterator[Prediction]:
    """Yield the predictions of recordings in their order, each as soon as those before it are known.

    Args:
        adapter: Adapter from `load_adapter`.
        recordings: Paths, or waveforms.
        windowing: Windows to read.
        workers: Number of threads that decode ahead of the model.
        show_bar: Whether to show a progress bar on a terminal or in a notebook.
    """
    groups = with_bar(answer_recordings(adapter, recordings, windowing, workers), len(recordings), show_bar)
    for answer in in_order(groups):
        yield from as_predictions(answer, adapter.record, windowing)


def with_bar(groups: Iterable[dict[int, Answer]], count: int, shown: bool = True) -> Iterator[dict[int, Answer]]:
    """Yield groups of answers unchanged, and show how many of `count` recordings are done."""
    with progress_bar("labelling", count, shown and count >= BAR_RECORDINGS) as bar:
        for group in groups:
            yield group
            bar.update(len(group))


def _as_list(sources: str | Path | np.ndarray | Iterable[str | Path | np.ndarray]) -> list[str | Path | np.ndarray]:
    """Return sources as a list; an array of strings or objects holds several, an array of numbers is one waveform."""
    if isinstance(sources, np.ndarray) and sources.dtype.kind in "UO":
        return list(sources.ravel())
    return [sources] if isinstance(sources, (str, Path, np.ndarray)) else list(sources)


def as_predictions(answer: Answer, record: AdapterRecord, windowing: Windowing) -> list[Prediction]:
    """Convert an answer to one prediction, or to one per window.

    Args:
        answer: Answer for a recording.
        record: Record of the adapter, with its labels.
        windowing: Parts of the recording that were used.
    """
    labels, task = record.labels, record.task
    # A path that is not valid UTF-8 cannot be printed or written.
    path = os.fsencode(answer.path).decode("utf-8", "backslashreplace")
    if answer.error is not None:
        return [Prediction(path, None, None, {}, None, None, answer.error)]
    used, predictions = max(end for _, end, _ in answer.windows), []
    longest = max(span.seconds for span in windowing.spans(answer.seconds or used))
    trained = dict(record.training_audio)
    if record.input_seconds is not None and "seconds" in trained:
        # Of longer training clips, the encoder read crops of a window.
        trained["seconds"] = {name: min(value, record.input_seconds) for name, value in trained["seconds"].items()}
    unusual = far_outside(trained, longest, answer.level_dbfs, answer.sampling_rate, record.sampling_rate)
    for start, end, row in answer.windows:
        values = np.array([row])
        (label,), probability = (
            task.decode(task.decide_by_probabilities(values), labels),
            float(task.confidence(values)[0]),
        )
        span = (start, end) if windowing.each_window else (None, None)
        by_name = dict(zip(labels, row, strict=True))
        predictions.append(
            Prediction(path, label, probability, by_name, answer.seconds, used, None, span[0], span[1], unusual)
        )
    return predictions
