"""Run `peft-audio predict`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_audio.errors import INTERRUPTED

if TYPE_CHECKING:
    from peft_audio.inference.predict import Prediction
    from peft_audio.inference.writers import OutputFormat

ADAPTER_HELP = "a folder such as runs/lora/adapter or runs/full/model, or org/name on the Hub"
REVISION_HELP = "branch, tag or commit of an adapter on the Hub"
BASE_HELP = "the base encoder (folder or Hub id), if it was moved since training"
DEVICE_HELP = "device to run on, such as cpu or cuda (default: %(default)s)"


def add_commands(commands: Any) -> None:
    """Add the command `predict`."""
    predict = commands.add_parser(
        "predict",
        help="label recordings with an adapter",
        description="Prints one line per recording: path, label and probability, separated by tabs. Recordings that "
        "cannot be used are listed on stderr; the exit code is then 1.",
        epilog="With --out an interrupted prediction resumes: repeat the same command. Its answers are kept in "
        "FILE.partial until FILE is complete. Recordings that changed meanwhile are labelled again. Example: "
        "peft-audio predict clips/ --adapter runs/lora/adapter --out labels.csv",
    )
    predict.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="recordings, folders (searched to any depth), patterns in quotes ('clips/**/*.wav'), or - to read paths "
        "from stdin, one per line or separated by NUL; a recording that is named twice is labelled once",
    )
    predict.add_argument("--adapter", required=True, metavar="ADAPTER", help=ADAPTER_HELP)
    predict.add_argument("--revision", help=REVISION_HELP)
    predict.add_argument("--base", help=BASE_HELP)
    predict.add_argument("--device", default="cpu", help=DEVICE_HELP)
    predict.add_argument(
        "--batch-size", type=int, default=16, help="largest number of clips per batch (default: %(default)s)"
    )
    predict.add_argument(
        "--workers", type=int, default=2, help="threads that decode ahead of the model (default: %(default)s)"
    )
    windows = predict.add_argument_group("long recordings (default: as the adapter was trained)")
    windows.add_argument(
        "--window-seconds",
        type=float,
        metavar="S",
        help="read each recording in windows of S seconds and average their probabilities",
    )
    windows.add_argument(
        "--hop-seconds",
        type=float,
        metavar="S",
        help="distance between the starts of two windows (default: no overlap)",
    )
    windows.add_argument(
        "--each-window", action="store_true", help="write one row per window, with its start and end in seconds"
    )
    output = predict.add_argument_group("output")
    form = output.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print a JSON list with the probability of every label")
    form.add_argument("--csv", action="store_true", help="print a CSV table with the probability of every label")
    form.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write to a file; its suffix sets the format: .json, .jsonl, .csv or .parquet",
    )
    output.add_argument(
        "--top-k", type=int, metavar="K", help="write only the K most probable labels, the most probable first"
    )
    output.add_argument(
        "--threshold",
        type=float,
        default=0.0,
        metavar="P",
        help="leave out labels with a probability below P: empty in text and CSV, null in JSON and Parquet; the "
        "probability is still written (default: %(default)s)",
    )
    predict.set_defaults(run=run_predict)


def run_predict(options: argparse.Namespace) -> int:
    """Label recordings.

    Returns:
        Exit code: 1 if a recording cannot be used, otherwise 0.
    """
    with options.quick():
        from peft_audio.adapters.load import load_adapter
        from peft_audio.data.training_audio import usual_seconds
        from peft_audio.inference.into_file import check_output, label_into_file
        from peft_audio.inference.predict import check_counts, label_recordings, make_windowing
        from peft_audio.inference.recordings import find_recordings
        from peft_audio.inference.writers import OutputFormat, write_csv, write_json, write_text

        check_output(options.top_k, options.threshold, options.out)
        check_counts(options.batch_size, options.workers)
        stdin = sys.stdin.buffer if "-" in options.sources else None
        paths = find_recordings(options.sources, stdin)
        adapter = load_adapter(options.adapter, options.base, options.device, revision=options.revision)
    windowing = make_windowing(
        adapter, options.batch_size, options.window_seconds, options.hop_seconds, options.each_window
    )
    output = OutputFormat(adapter.labels, options.top_k, options.threshold, options.each_window)
    tally = _Tally(usual_seconds(adapter.record.training_audio, adapter.record.crop["training_seconds"]))
    if options.out:
        counting = partial(tally.counting, output=output)
        try:
            label_into_file(options.out, adapter, paths, windowing, output, options.workers, counting)
        except KeyboardInterrupt:
            print("stopped; repeat the command to resume.", file=sys.stderr)
            return INTERRUPTED
        print(f"{options.out}: {len(paths) - len(tally.failed)} of {len(paths)} recordings", file=sys.stderr)
        return tally.report()
    write = write_json if options.json else write_csv if options.csv else write_text
    # On a terminal the printed lines show the progress.
    predictions = label_recordings(adapter, paths, windowing, options.workers, show_bar=not sys.stdout.isatty())
    write(tally.counting(predictions, output), sys.stdout, output)
    return tally.report()


@dataclass
class _Tally:
    """Counts of recordings for the messages at the end.

    Attributes:
        usual_seconds: Length of a typical training clip of the adapter; None if not recorded.
        failed: Path and error of each recording that cannot be used.
        rows: Number of predictions.
        cut: Number of recordings of which only the start was read.
        unnamed: Number of predictions without a label.
        seconds: Seconds that were read of recordings that were cut.
        long: Whether a recording is longer than the training clips.
        unusual: By property that is far from the training clips, the number of recordings, the path of the first one
            and its explanation.
    """

    usual_seconds: float | None = None
    failed: list[tuple[str, str]] = field(default_factory=list)
    rows: int = 0
    cut: int = 0
    unnamed: int = 0
    seconds: float = 0.0
    unusual: dict[str, tuple[int, str, str]] = field(default_factory=dict)
    long: bool = False

    def counting(self, predictions: Iterable[Prediction], output: OutputFormat) -> Iterator[Prediction]:
        """Yield predictions unchanged and count them."""
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
                self.unnamed += output.label_of(prediction) is None
                if (prediction.seconds_used or 0) < (prediction.seconds or 0):
                    self.cut, self.seconds = self.cut + 1, prediction.seconds_used or 0
            yield prediction

    def report(self) -> int:
        """Print the notes and warnings on stderr.

        Returns:
            Exit code: 1 if a recording cannot be used, otherwise 0.
        """
        from peft_audio.text import printable, several

        sys.stdout.flush()
        if self.cut:
            usual = self.usual_seconds
            windows = "--window-seconds S reads whole recordings in windows; give S as long as the training clips"
            if usual is not None:
                windows = (
                    f"--window-seconds {usual:.3g} reads whole recordings in windows as long as the training clips"
                )
            limit = f"{self.seconds:g} s"
            cut = f"{several(self.cut, 'recording')} longer than {limit}: only the first {limit} were read"
            print(f"note: {cut}. {windows}.", file=sys.stderr)
        for what, (count, path, text) in self.unusual.items():
            fix = ""
            if what == "seconds" and self.long and not self.cut:
                fix = f" For windows as long as the training clips, use --window-seconds {self.usual_seconds:.3g}."
            print(
                f"warning: far from the training clips of the adapter: {several(count, 'recording')}, such as "
                f"{printable(path)} ({text}).{fix}",
                file=sys.stderr,
            )
        if self.unnamed:
            print(f"note: {self.unnamed} of {self.rows} have no label that reaches the threshold.", file=sys.stderr)
        for path, error in self.failed:
            print(f"skipped: {printable(path)} {error}", file=sys.stderr)
        return int(bool(self.failed))
