"""`peft-audio predict`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

    from peft_audio.adapters.load import Adapter
    from peft_audio.inference.predict import Answer, Hearing, Prediction
    from peft_audio.inference.writers import Shown

ADAPTER_HELP = "a folder such as runs/lora/adapter or runs/full/model, or org/name on the Hub"
# Answers of two versions of these are not mixed.
DECIDE_ANSWERS = ("peft-audio", "torch", "transformers", "peft")
# A bar for fewer would take longer to load than they do.
BAR_RECORDINGS = 17


def add_commands(commands: Any) -> None:
    """Add `predict`."""
    predict = commands.add_parser(
        "predict",
        help="label recordings with an adapter",
        description="Prints a line a recording: path, label, probability, divided by tabs. Those that cannot be used "
        "are listed on stderr, and the exit code is then 1.",
        epilog="With --out a run that was stopped goes on where it was: give the same command again. What is known "
        "stands in FILE.partial until FILE is whole; recordings that changed meanwhile are heard anew.",
    )
    predict.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="recordings, folders (searched to any depth), patterns in quotes ('clips/**/*.wav'), or - for a list on "
        "stdin, a path a line or divided by NUL; what is named twice is labelled once",
    )
    predict.add_argument("--adapter", required=True, metavar="ADAPTER", help=ADAPTER_HELP)
    predict.add_argument("--revision", help="of an adapter on the Hub: branch, tag or commit")
    predict.add_argument("--base", help="the base encoder (folder or Hub id), if it is no longer where it was")
    predict.add_argument("--device", default="cpu", help="where to run, such as cuda (default: %(default)s)")
    predict.add_argument("--batch-size", type=int, default=16, help="clips at once, at most (default: %(default)s)")
    predict.add_argument(
        "--workers", type=int, default=2, help="threads that decode ahead of the model (default: %(default)s)"
    )
    heard = predict.add_argument_group("what is heard of long recordings (default: as the adapter was trained)")
    heard.add_argument(
        "--window-seconds", type=float, metavar="S", help="all of it, in windows of S seconds, and their mean"
    )
    heard.add_argument("--hop-seconds", type=float, metavar="S", help="from window to window (default: no overlap)")
    heard.add_argument("--each-window", action="store_true", help="a row for each window, with start and end")
    told = predict.add_argument_group("what is told, and how")
    form = told.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a JSON list with the probability of every label")
    form.add_argument("--csv", action="store_true", help="a CSV table with the probability of every label")
    form.add_argument(
        "--out", type=Path, metavar="FILE", help="into a file, by its name: .json, .jsonl, .csv or .parquet"
    )
    told.add_argument(
        "--top-k", type=int, metavar="K", help="the K most probable labels, in order, instead of all of them"
    )
    told.add_argument(
        "--threshold",
        type=float,
        default=0.0,
        metavar="P",
        help="name no label that is less probable: it is empty in text and CSV, null in JSON and Parquet, beside the "
        "probability that it had",
    )
    predict.set_defaults(run=run_predict)


def run_predict(options: argparse.Namespace) -> int:
    """Label recordings; exit code 1 if one could not be used."""
    _check(options)
    with options.quick():
        from peft_audio.adapters.hub import fetch_adapter
        from peft_audio.adapters.load import load_adapter
        from peft_audio.data.training_audio import usual_seconds
        from peft_audio.inference.predict import answer, check_amounts, how_heard, in_order, predictions
        from peft_audio.inference.recordings import find_recordings
        from peft_audio.inference.writers import Shown, write_csv, write_json, write_text

        check_amounts(options.batch_size, options.workers)
        stdin = sys.stdin.buffer if "-" in options.sources else None
        paths = list(dict.fromkeys(find_recordings(options.sources, stdin)))
        folder = fetch_adapter(options.adapter, options.revision)
        adapter = load_adapter(folder, options.base, options.device)
    hearing = how_heard(adapter, options.batch_size, options.window_seconds, options.hop_seconds, options.each_window)
    shown = Shown(adapter.labels, options.top_k, options.threshold, options.each_window)
    tally = _Tally(usual_seconds(adapter.record.training_audio, adapter.record.crop["training_seconds"]))
    if options.out:
        return _into_file(options, paths, folder, adapter, hearing, shown, tally)
    write = write_json if options.json else write_csv if options.csv else write_text
    # Where lines appear on the terminal, they show how far it is.
    with _bar(len(paths), not sys.stdout.isatty()) as bar:
        found = in_order(_advancing(answer(adapter, paths, hearing, options.workers), bar))
        told = (one for each in found for one in predictions(each, adapter.record, hearing))
        write(tally.counting(told, shown), sys.stdout, shown)
    return tally.report()


def _check(options: argparse.Namespace) -> None:
    """Refuse what has no sense before anything is loaded."""
    from peft_audio.errors import UserError, require

    require(options.top_k is None or options.top_k >= 1, "top-k", options.top_k, "1 or more", "Try 3.")
    require(0 <= options.threshold <= 1, "threshold", options.threshold, "0 to 1", "Try 0.5.")
    out = options.out
    if out is not None and out.suffix.lower() not in (".json", ".jsonl", ".csv", ".parquet"):
        raise UserError(f"--out: got {out}, must end in .json, .jsonl, .csv or .parquet. Try {out.stem}.csv.")


def _into_file(
    options: argparse.Namespace,
    paths: list[str],
    folder: Path,
    adapter: Adapter,
    hearing: Hearing,
    shown: Shown,
    tally: _Tally,
) -> int:
    from peft_audio.adapters.hub import hash_adapter
    from peft_audio.encoders.loading import versions
    from peft_audio.inference.predict import answer, predictions
    from peft_audio.inference.resume import unfinished_answers, whole_or_not
    from peft_audio.inference.writers import WRITERS

    about = {"adapter": hash_adapter(folder), "base": adapter.record.base.sha256, "device": options.device}
    about |= {package: version for package, version in versions().items() if package in DECIDE_ANSWERS}
    with unfinished_answers(options.out, about | asdict(hearing)) as kept:
        if kept.places:
            print(f"going on: {len(kept.places)} recordings were answered before.", file=sys.stderr)
        try:
            with _bar(len(paths)) as bar:
                for found in _advancing(answer(adapter, paths, hearing, options.workers, kept.known_seconds), bar):
                    kept.add(found.values())
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here.", file=sys.stderr)
            return 130
        told = (one for each in kept.read(paths) for one in predictions(each, adapter.record, hearing))
        suffix = options.out.suffix.lower()
        with whole_or_not(options.out, binary=suffix == ".parquet") as file:
            WRITERS[suffix](tally.counting(told, shown), file, shown)
    print(f"{options.out}: {len(paths) - len(tally.failed)} of {len(paths)} recordings", file=sys.stderr)
    return tally.report()


@dataclass
class _Tally:
    """Count recordings for the messages at the end: those that failed, were cut, got no label, or are unusual.

    Attributes:
        usual_seconds: Length of a typical training clip of the adapter; None where it is not recorded.
        failed: Path and error of recordings that could not be used.
        rows: Number of predictions.
        cut: Number of recordings of which only the start was read.
        unnamed: Number of predictions without a label.
        seconds: Length that was read of those that were cut.
        long: Whether one of them is longer than the training clips.
        unusual: By what is far from the training clips, the number of recordings, the path of one of them and the text.
    """

    usual_seconds: float | None = None
    failed: list[tuple[str, str]] = field(default_factory=list)
    rows: int = 0
    cut: int = 0
    unnamed: int = 0
    seconds: float = 0.0
    unusual: dict[str, tuple[int, str, str]] = field(default_factory=dict)
    long: bool = False

    def counting(self, predictions: Iterable[Prediction], shown: Shown) -> Iterator[Prediction]:
        """Hand predictions on, and count them on the way."""
        for prediction in predictions:
            if prediction.error is not None:
                self.failed.append((prediction.path, prediction.error))
            else:
                self.rows += 1
                for what, text in prediction.warnings.items():
                    count, path, first = self.unusual.get(what, (0, prediction.path, text))
                    # Windows of one recording count once.
                    again = count > 0 and prediction.start_seconds not in (None, 0.0)
                    self.unusual[what] = (count + (not again), path, first)
                usual = self.usual_seconds
                self.long |= (
                    usual is not None and "seconds" in prediction.warnings and (prediction.seconds or 0) > usual
                )
                self.unnamed += shown.claimed(prediction) is None
                if (prediction.seconds_used or 0) < (prediction.seconds or 0):
                    self.cut, self.seconds = self.cut + 1, prediction.seconds_used or 0
            yield prediction

    def report(self) -> int:
        """Say it on stderr, and give the exit code."""
        from peft_audio.text import printable, several

        sys.stdout.flush()
        if self.cut:
            usual = self.usual_seconds
            windows = "--window-seconds S reads all of it, in windows; give S as long as the training clips"
            if usual is not None:
                windows = f"--window-seconds {usual:.3g} reads all of it, in windows as long as the training clips"
            cut = f"{several(self.cut, 'recording')} longer than {self.seconds:g} s, of which only that much was read"
            print(f"note: {cut}. {windows}.", file=sys.stderr)
        for what, (count, path, text) in self.unusual.items():
            fix = ""
            if what == "seconds" and self.long and not self.cut:
                fix = f" Windows as long as the training clips: --window-seconds {self.usual_seconds:.3g}."
            print(
                f"warning: far from the training clips of the adapter: {several(count, 'recording')}, such as "
                f"{printable(path)} ({text}).{fix}",
                file=sys.stderr,
            )
        if self.unnamed:
            print(f"note: {self.unnamed} of {self.rows} reach the threshold with no label.", file=sys.stderr)
        for path, error in self.failed:
            print(f"skipped: {printable(path)} {error}", file=sys.stderr)
        return int(bool(self.failed))


def _bar(recordings: int, wanted: bool = True) -> Any:
    """A progress bar on stderr, if that is a terminal."""
    from contextlib import nullcontext

    if not wanted or recordings < BAR_RECORDINGS or not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    from peft_audio.training.tracking import progress_bar

    bar = progress_bar(True, Console(stderr=True))
    bar.add_task("labelling", total=recordings)
    return bar


def _advancing(answers: Iterable[dict[int, Answer]], bar: Progress | None) -> Iterator[dict[int, Answer]]:
    for found in answers:
        if bar is not None:
            bar.advance(bar.task_ids[0], len(found))
        yield found
