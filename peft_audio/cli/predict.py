"""`peft-audio predict`."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft_audio.prediction import Prediction

ADAPTER_HELP = "a folder such as runs/lora/adapter or runs/full/model, or org/name on the Hub"


def add_commands(commands: Any) -> None:
    """Add `predict`."""
    predict = commands.add_parser("predict", help="label recordings with an adapter")
    predict.add_argument("sources", nargs="+", metavar="CLIP_OR_FOLDER", help="a recording, or a folder of them")
    predict.add_argument("--adapter", required=True, metavar="ADAPTER", help=ADAPTER_HELP)
    predict.add_argument("--revision", help="of an adapter on the Hub: branch, tag or commit")
    predict.add_argument("--base", help="the base encoder (folder or Hub id), if it is no longer where it was")
    predict.add_argument("--device", default="cpu", help="where to run, such as cuda (default: %(default)s)")
    predict.add_argument(
        "--batch-size", type=int, default=16, help="recordings at once, at most (default: %(default)s)"
    )
    form = predict.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a JSON list with the probability of every label")
    form.add_argument("--csv", action="store_true", help="a CSV table with the probability of every label")
    predict.set_defaults(run=run_predict)


def run_predict(options: argparse.Namespace) -> int:
    """Label recordings; exit code 1 if one could not be used."""
    from peft_audio.config import UserError

    if options.batch_size < 1:
        raise UserError(f"--batch-size: got {options.batch_size}, must be 1 or more. Try 16.")
    with options.quick():
        from peft_audio.adapters import load_adapter
        from peft_audio.prediction import find_recordings, predict

        paths = find_recordings(options.sources)
        adapter = load_adapter(options.adapter, options.base, options.device, revision=options.revision)
    found = predict(adapter, paths, options.batch_size)
    if options.json:
        print(json.dumps([asdict(prediction) for prediction in found], indent=2, ensure_ascii=False))
    elif options.csv:
        _print_csv(found, adapter.labels)
    else:
        for prediction in found:
            if prediction.error is None:
                print(f"{prediction.path}\t{prediction.label}\t{prediction.probability:.3f}")
    return _report_on_stderr(found)


def _print_csv(found: Sequence[Prediction], labels: Sequence[str]) -> None:
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["path", "label", "probability", *(f"probability_{label}" for label in labels), "error"])
    for prediction in found:
        row = [prediction.probabilities.get(label, "") for label in labels]
        table.writerow([prediction.path, prediction.label, prediction.probability, *row, prediction.error])


def _report_on_stderr(found: Sequence[Prediction]) -> int:
    failed = [prediction for prediction in found if prediction.error is not None]
    cut = [prediction for prediction in found if (prediction.seconds_used or 0) < (prediction.seconds or 0)]
    if cut:
        used = cut[0].seconds_used
        print(f"note: {len(cut)} recordings are longer than {used:g} s; only that much was heard.", file=sys.stderr)
    for prediction in failed:
        print(f"skipped: {prediction.path} {prediction.error}", file=sys.stderr)
    return int(bool(failed))
