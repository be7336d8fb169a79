"""Write predictions as text, JSON, CSV and Parquet, one at a time."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from textwrap import indent
from typing import IO, Any

from peft_audio.inference.predict import Prediction
from peft_audio.text import printable

# Rows of a Parquet file that are compressed together.
ROW_GROUP = 10_000
SPAN = ("start_seconds", "end_seconds")


@dataclass(frozen=True)
class OutputFormat:
    """Parts of a prediction to write.

    Attributes:
        labels: Labels of the adapter, in the order of the logits.
        top_k: Number of labels to write, the most probable first; None for the probability of every label.
        threshold: Labels with a lower probability are left out. The highest probability is always written.
        each_window: Predictions are for windows; rows hold the start and end of their window.
    """

    labels: tuple[str, ...]
    top_k: int | None = None
    threshold: float = 0.0
    each_window: bool = False

    def label_of(self, prediction: Prediction) -> str | None:
        """Return the label of a prediction; None if its probability is below the threshold."""
        sure = prediction.probability is not None and prediction.probability >= self.threshold
        return prediction.label if sure else None

    def top_labels(self, prediction: Prediction) -> list[tuple[str, float]]:
        """Return the `top_k` most probable labels that reach the threshold, with their probabilities."""
        ranked = sorted(prediction.probabilities.items(), key=lambda item: -item[1])
        return [item for item in ranked[: self.top_k] if item[1] >= self.threshold]

    def cut(self, prediction: Prediction) -> Prediction:
        """Return a prediction without the labels that are not named."""
        some = prediction.probabilities if self.top_k is None else dict(self.top_labels(prediction))
        return replace(prediction, label=self.label_of(prediction), probabilities=some)


def write_text(predictions: Iterable[Prediction], file: IO[str], output: OutputFormat) -> None:
    """Write one line per prediction with path, label and probability, separated by tabs.

    With `top_k`, further labels and probabilities follow. Windows have their start and end behind the path. Recordings
    that cannot be used have no line. A label below the threshold is empty. Paths and labels are made `printable`.
    """
    for prediction in predictions:
        if prediction.error is not None:
            continue
        span = [f"{getattr(prediction, name):.3f}" for name in SPAN] if output.each_window else []
        named = [] if output.top_k is None else output.top_labels(prediction)
        named = named or [(output.label_of(prediction) or "", prediction.probability or 0.0)]
        cells = [cell for label, value in named for cell in (printable(label), f"{value:.3f}")]
        print(printable(prediction.path), *span, *cells, sep="\t", file=file)


def write_json(predictions: Iterable[Prediction], file: IO[str], output: OutputFormat) -> None:
    """Write a JSON list of objects, see `as_object`."""
    before = "[\n"
    for prediction in predictions:
        file.write(before + indent(json.dumps(as_object(prediction, output), indent=2, ensure_ascii=False), "  "))
        before = ",\n"
    file.write("[]\n" if before == "[\n" else "\n]\n")


def write_json_lines(predictions: Iterable[Prediction], file: IO[str], output: OutputFormat) -> None:
    """Write one JSON object per line, see `as_object`."""
    for prediction in predictions:
        file.write(json.dumps(as_object(prediction, output), ensure_ascii=False) + "\n")


def as_object(prediction: Prediction, output: OutputFormat) -> dict[str, Any]:
    """Convert a prediction to a JSON object.

    With `top_k`, `top` replaces `probabilities`. A label below the threshold is null.
    """
    values = asdict(prediction) | {"label": output.label_of(prediction)}
    if not output.each_window:
        values = {name: value for name, value in values.items() if name not in SPAN}
    if output.top_k is None:
        return values
    top = [{"label": label, "probability": value} for label, value in output.top_labels(prediction)]
    return {
        "top" if name == "probabilities" else name: value for name, value in (values | {"probabilities": top}).items()
    }


def write_csv(predictions: Iterable[Prediction], file: IO[str], output: OutputFormat) -> None:
    """Write a CSV table with the columns of `columns`; missing values are empty."""
    table = csv.writer(file, lineterminator="\n")
    table.writerow(columns(output))
    for prediction in predictions:
        table.writerow(as_row(prediction, output))


def write_parquet(predictions: Iterable[Prediction], file: IO[bytes], output: OutputFormat) -> None:
    """Write a Parquet table with the columns of `columns`; missing values are null."""
    import pyarrow as pa  # the other formats do not need it
    import pyarrow.parquet as pq

    names = columns(output)
    text = {"path", "label", "error"} | {f"label_{rank}" for rank in _further_ranks(output)}
    kinds = [pa.string() if name in text else pa.float64() for name in names]
    schema = pa.schema(list(zip(names, kinds, strict=True)))
    with pq.ParquetWriter(file, schema) as writer:
        for rows in _groups(as_row(prediction, output) for prediction in predictions):
            arrays = [pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), kinds, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def columns(output: OutputFormat) -> list[str]:
    """Return the column names of a table.

    They are the path, the label, its probability, the probability of each label, and the error. With `top_k`, the
    further labels and their probabilities replace the probability of each label.
    """
    span = SPAN if output.each_window else ()
    if output.top_k is None:
        more = [f"probability_{label}" for label in output.labels]
    else:
        more = [f"{what}_{rank}" for rank in _further_ranks(output) for what in ("label", "probability")]
    return ["path", *span, "label", "probability", *more, "error"]


def as_row(prediction: Prediction, output: OutputFormat) -> list[Any]:
    """Convert a prediction to a table row with the columns of `columns`."""
    span = [getattr(prediction, name) for name in SPAN] if output.each_window else []
    more: Sequence[Any]
    if output.top_k is None:
        more = [prediction.probabilities.get(label) for label in output.labels]
    else:
        named = [value for item in output.top_labels(prediction)[1:] for value in item]
        more = named + [None] * (2 * len(_further_ranks(output)) - len(named))
    return [prediction.path, *span, output.label_of(prediction), prediction.probability, *more, prediction.error]


def _further_ranks(output: OutputFormat) -> range:
    return range(2, min(output.top_k or 0, len(output.labels)) + 1)


def _groups(rows: Iterator[list[Any]]) -> Iterator[list[list[Any]]]:
    while group := list(islice(rows, ROW_GROUP)):
        yield group


WRITERS: dict[str, Callable[[Iterable[Prediction], IO[Any], OutputFormat], None]] = {
    ".json": write_json,
    ".jsonl": write_json_lines,
    ".csv": write_csv,
    ".parquet": write_parquet,
}
