"""Run `peft-audio evaluate`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from peft_audio.api import evaluate
from peft_audio.cli.predict import ADAPTER_HELP, BASE_HELP, DEVICE_HELP, REVISION_HELP
from peft_audio.cli.source import SOURCE_HELP, settings_with_source


def add_commands(commands: Any) -> None:
    """Add the command `evaluate`."""
    parser = commands.add_parser(
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
    parser.add_argument("adapter", metavar="ADAPTER", help=ADAPTER_HELP)
    parser.add_argument("source", metavar="SOURCE", help=SOURCE_HELP)
    parser.add_argument(
        "--split",
        choices=("train", "validation", "test", "all"),
        help="split to evaluate (default: test, as divided by SOURCE or the adapter's run; all clips without splits)",
    )
    parser.add_argument("--revision", help=REVISION_HELP)
    parser.add_argument("--base", help=BASE_HELP)
    parser.add_argument("--device", default="cpu", help=DEVICE_HELP)
    parser.add_argument(
        "--batch-size", type=int, default=16, help="largest number of clips per batch (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    parser.add_argument("--out", type=Path, metavar="DIR", help="new folder for metrics.json and predictions.parquet")
    parser.set_defaults(run=run_evaluate)


def run_evaluate(options: argparse.Namespace) -> int:
    """Evaluate an adapter, and print or write its scores.

    Returns:
        Exit code: 1 if clips cannot be used, otherwise 0.
    """
    from peft_audio.config import CheckSettings, parse_config

    cfg = parse_config(CheckSettings, settings_with_source(options))
    result = evaluate(
        options.adapter,
        cfg.data,
        split=options.split,
        revision=options.revision,
        base=options.base,
        device=options.device,
        batch_size=options.batch_size,
        out=options.out,
    )
    if options.json:
        about = {"adapter": options.adapter, "source": options.source}
        print(json.dumps(about | result.as_json(), indent=2, ensure_ascii=False))
    else:
        from rich.console import Console

        from peft_audio.evaluation.scores import print_scores

        print_scores(result.scores, result.notes, result.unseen, result.skipped, Console(), result.parts)
    return int(bool(result.skipped))
