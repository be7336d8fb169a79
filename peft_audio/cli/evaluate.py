"""Run `peft-audio evaluate`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_audio.cli.check import SOURCE_HELP
from peft_audio.cli.predict import ADAPTER_HELP, BASE_HELP, DEVICE_HELP, REVISION_HELP

if TYPE_CHECKING:
    from peft_audio.inference.evaluate import AdapterEvaluation


def add_commands(commands: Any) -> None:
    """Add the command `evaluate`."""
    evaluate = commands.add_parser(
        "evaluate",
        help="score an adapter on labelled recordings",
        description="Print the accuracy with its confidence interval, the scores of each class, the confusion matrix "
        "and the calibration of the probabilities. Recordings are read as in the evaluation of the adapter's own run. "
        "Recordings that cannot be used are listed and left out; the exit code is then 1.",
        epilog="If the adapter is in the folder of its run, the splits of that run are used for the clips that SOURCE "
        "shares with it; --data.splits_file gives other splits. Clips that the adapter was trained or validated on are "
        "scored separately. The --data.* settings of the recipes are accepted too. --data.window_seconds, hop_seconds "
        "and max_eval_seconds need not be given and must be those of the run. --data.max_seconds, on_bad_clip and "
        "max_bad_share are ignored. Settings that only affect training, such as --data.max_train_clips, must be left "
        "out. Example: peft-audio evaluate runs/lora/adapter clips/ --split test",
    )
    evaluate.add_argument("adapter", metavar="ADAPTER", help=ADAPTER_HELP)
    evaluate.add_argument("source", metavar="SOURCE", help=SOURCE_HELP)
    evaluate.add_argument(
        "--split",
        choices=("train", "validation", "test", "all"),
        help="split to evaluate (default: test, as divided by SOURCE or the adapter's run; all clips without splits)",
    )
    evaluate.add_argument("--revision", help=REVISION_HELP)
    evaluate.add_argument("--base", help=BASE_HELP)
    evaluate.add_argument("--device", default="cpu", help=DEVICE_HELP)
    evaluate.add_argument(
        "--batch-size", type=int, default=16, help="largest number of clips per batch (default: %(default)s)"
    )
    evaluate.add_argument("--json", action="store_true", help="print all figures as JSON")
    evaluate.add_argument("--out", type=Path, metavar="DIR", help="new folder for metrics.json and predictions.parquet")
    evaluate.set_defaults(run=run_evaluate)


def run_evaluate(options: argparse.Namespace) -> int:
    """Evaluate an adapter, and print or write its scores.

    Returns:
        Exit code: 1 if clips cannot be used, otherwise 0.
    """
    from rich.console import Console

    from peft_audio.adapters.load import load_adapter
    from peft_audio.config import CheckSettings, parse_config
    from peft_audio.errors import UserError, require
    from peft_audio.evaluation.scores import print_scores
    from peft_audio.inference.evaluate import evaluate_adapter

    require(options.batch_size >= 1, "batch-size", options.batch_size, "1 or more", "Try 16.")
    if options.out is not None and options.out.exists():
        raise UserError(f"--out: {options.out} already exists; give a new folder.")
    cfg = parse_config(CheckSettings, ["--data.source", options.source, *options.settings])
    adapter = load_adapter(options.adapter, options.base, options.device, revision=options.revision)
    result = evaluate_adapter(adapter, cfg.data, options.split, options.batch_size)
    about = {"adapter": str(options.adapter), "source": options.source}
    if options.out is not None:
        _write(result, about, options.out)
    if options.json:
        print(json.dumps(about | result.as_json(), indent=2, ensure_ascii=False))
    else:
        print_scores(result.scores, result.notes, result.unseen, result.skipped, Console(), result.parts)
    return int(bool(result.skipped))


def _write(result: AdapterEvaluation, about: dict[str, str], folder: Path) -> None:
    """Write the figures and predictions to a new folder."""
    import pyarrow.parquet as pq

    from peft_audio.errors import UserError
    from peft_audio.runs.predictions import predictions_table

    table = predictions_table(result.recordings, result.split, result.evaluation.logits, result.labels, result.task)
    try:
        folder.mkdir(parents=True)
        pq.write_table(table, folder / "predictions.parquet")
        text = json.dumps(about | result.as_json(), indent=2, ensure_ascii=False)
        (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out: cannot write in {folder} ({error.strerror}); give another folder.") from error
