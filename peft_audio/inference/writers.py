"""Predictions as text, JSON, CSV and Parquet, one at a time as they come."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from textwrap import indent
from typing import IO, Any

from peft_audio.inference.predict import Prediction
from peft_audio.text import printable

# Rows of a Parquet file that are held and compressed together.
ROW_GROUP = 10_000
SPAN = ("start_seconds", "end_seconds")


@dataclass(frozen=True)
class Shown:
    """What of a prediction is written.

    Attributes:
        labels: Of the adapter, in the order of the logits.
        top_k: So many labels, the most probable first, instead of the probability of each; None for each.
        threshold: A label that is less probable than this is not named. Its probability stays where it is the highest.
        each_window: Predictions are of windows, and rows say where those begin and end.
    """

    labels: tuple[str, ...]
    top_k: int | None = None
    threshold: float = 0.0
    each_window: bool = False

    def claimed(self, prediction: Prediction) -> str | None:
        """The label that a prediction names; None if it names none."""
        sure = prediction.probability is not None and prediction.probability >= self.threshold
        return prediction.label if sure else None

    def top(self, prediction: Prediction) -> list[tuple[str, float]]:
        """The most probable labels that are named, with their probabilities."""
        ranked = sorted(prediction.probabilities.items(), key=lambda item: -item[1])
        return [item for item in ranked[: self.top_k] if item[1] >= self.threshold]


def write_text(predictions: Iterable[Prediction], file: IO[str], shown: Shown) -> None:
    """A line each, divided by tabs: path, label, probability; more of both with top-k; windows with start and end.

    Recordings that cannot be used have no line. A label that is not named is empty. Paths and labels are `printable`.
    """
    for prediction in predictions:
        if prediction.error is not None:
            continue
        span = [f"{getattr(prediction, name):.3f}" for name in SPAN] if shown.each_window else []
        named = [] if shown.top_k is None else shown.top(prediction)
        named = named or [(shown.claimed(prediction) or "", prediction.probability or 0.0)]
        cells = [cell for label, value in named for cell in (printable(label), f"{value:.3f}")]
        print(printable(prediction.path), *span, *cells, sep="\t", file=file)


def write_json(predictions: Iterable[Prediction], file: IO[str], shown: Shown) -> None:
    """A list of objects. With top-k, `top` stands in place of `probabilities`; a label that is not named is null."""
    before = "[\n"
    for prediction in predictions:
        file.write(before + indent(json.dumps(as_object(prediction, shown), indent=2, ensure_ascii=False), "  "))
        before = ",\n"
    file.write("[]\n" if before == "[\n" else "\n]\n")


def write_json_lines(predictions: Iterable[Prediction], file: IO[str], shown: Shown) -> None:
    """The objects of `write_json`, one a line."""
    for prediction in predictions:
        file.write(json.dumps(as_object(prediction, shown), ensure_ascii=False) + "\n")


def as_object(prediction: Prediction, shown: Shown) -> dict[str, Any]:
    """A prediction as JSON has it."""
    found = asdict(prediction) | {"label": shown.claimed(prediction)}
    if not shown.each_window:
        found = {name: value for name, value in found.items() if name not in SPAN}
    if shown.top_k is None:
        return found
    top = [{"label": label, "probability": value} for label, value in shown.top(prediction)]
    # In the place of all probabilities.
    return {
        "top" if name == "probabilities" else name: value for name, value in (found | {"probabilities": top}).items()
    }


def write_csv(predictions: Iterable[Prediction], file: IO[str], shown: Shown) -> None:
    """A table with the columns of `columns`; what there is not is empty."""
    table = csv.writer(file, lineterminator="\n")
    table.writerow(columns(shown))
    for prediction in predictions:
        table.writerow(as_row(prediction, shown))


def write_parquet(predictions: Iterable[Prediction], file: IO[bytes], shown: Shown) -> None:
    """The same table; what there is not is null."""
    import pyarrow as pa  # of all forms, this one alone needs it
    import pyarrow.parquet as pq

    names = columns(shown)
    text = {"path", "label", "error"} | {f"label_{rank}" for rank in _further_ranks(shown)}
    kinds = [pa.string() if name in text else pa.float64() for name in names]
    schema = pa.schema(list(zip(names, kinds, strict=True)))
    with pq.ParquetWriter(file, schema) as writer:
        for rows in _groups(as_row(prediction, shown) for prediction in predictions):
            arrays = [pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), kinds, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def columns(shown: Shown) -> list[str]:
    """Of a table: path, label, its probability, that of each label (with top-k, further labels and theirs), error."""
    span = SPAN if shown.each_window else ()
    if shown.top_k is None:
        more = [f"probability_{label}" for label in shown.labels]
    else:
        more = [f"{what}_{rank}" for rank in _further_ranks(shown) for what in ("label", "probability")]
    return ["path", *span, "label", "probability", *more, "error"]


def as_row(prediction: Prediction, shown: Shown) -> list[Any]:
    """A prediction as a row of that table."""
    span = [getattr(prediction, name) for name in SPAN] if shown.each_window else []
    more: Sequence[Any]
    if shown.top_k is None:
        more = [prediction.probabilities.get(label) for label in shown.labels]
    else:
        named = [value for item in shown.top(prediction)[1:] for value in item]
        more = named + [None] * (2 * len(_further_ranks(shown)) - len(named))
    return [prediction.path, *span, shown.claimed(prediction), prediction.probability, *more, prediction.error]


def _further_ranks(shown: Shown) -> range:
    return range(2, min(shown.top_k or 0, len(shown.labels)) + 1)


def _groups(rows: Iterator[list[Any]]) -> Iterator[list[list[Any]]]:
    while group := list(islice(rows, ROW_GROUP)):
        yield group


WRITERS: dict[str, Callable[[Iterable[Prediction], IO[Any], Shown], None]] = {
    ".json": write_json,
    ".jsonl": write_json_lines,
    ".csv": write_csv,
    ".parquet": write_parquet,
}
