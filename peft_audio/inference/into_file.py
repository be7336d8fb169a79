"""Label recordings into a file; a call that was stopped resumes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from peft_audio.adapters.hub import hash_adapter
from peft_audio.adapters.load import Adapter
from peft_audio.encoders.loading import versions
from peft_audio.errors import UserError, require
from peft_audio.inference.predict import Prediction, Windowing, answer_recordings, as_predictions, with_bar
from peft_audio.inference.resume import complete_file, partial_answers
from peft_audio.inference.writers import WRITERS, OutputFormat

# Answers made by two versions of these are not mixed in one file.
VERSIONED_PACKAGES = ("peft-audio", "torch", "transformers", "peft")


def check_output(top_k: int | None, threshold: float, out: Path | None) -> None:
    """Refuse options of the output that cannot be used, before anything is loaded.

    Raises:
        UserError: One of them is out of range, or the name of the file has another extension.
    """
    require(top_k is None or top_k >= 1, "top-k", top_k, "1 or more", "Try 3.")
    require(0 <= threshold <= 1, "threshold", threshold, "0 to 1", "Try 0.5.")
    if out is not None and out.suffix.lower() not in WRITERS:
        raise UserError(f"--out: got {out}, must end in .json, .jsonl, .csv or .parquet. Try {out.stem}.csv.")


def label_into_file(
    out: Path,
    adapter: Adapter,
    paths: Sequence[str],
    windowing: Windowing,
    output: OutputFormat,
    workers: int,
    passing: Callable[[Iterable[Prediction]], Iterator[Prediction]],
) -> None:
    """Write the predictions of recordings to a file; answers of an earlier call that was stopped are used.

    Args:
        out: File that does not exist yet; its extension is one of `WRITERS`.
        adapter: Adapter in its folder.
        paths: Recordings, each once.
        windowing: Windows to read.
        output: Parts of a prediction that are written.
        workers: Threads that decode ahead of the model.
        passing: Function that every prediction passes through before it is written.

    Raises:
        UserError: The file is there, cannot be written, or was begun with something else.
    """
    assert adapter.folder is not None
    device = next(adapter.model.parameters()).device
    about = {"adapter": hash_adapter(adapter.folder), "base": adapter.record.base.sha256, "device": str(device)}
    about |= {package: version for package, version in versions().items() if package in VERSIONED_PACKAGES}
    with partial_answers(out, about | asdict(windowing)) as saved:
        if saved.lines:
            print(f"resuming: {len(saved.lines)} recordings are already labelled.", file=sys.stderr)
        for group in with_bar(answer_recordings(adapter, paths, windowing, workers, saved.known_seconds), len(paths)):
            saved.add(group.values())
        answers = saved.read(paths)
        predictions = (one for answer in answers for one in as_predictions(answer, adapter.record, windowing))
        suffix = out.suffix.lower()
        with complete_file(out, binary=suffix == ".parquet") as file:
            WRITERS[suffix](passing(predictions), file, output)
