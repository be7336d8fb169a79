"""`peft-audio evaluate`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from peft_audio.cli.predict import ADAPTER_HELP


def add_commands(commands: Any) -> None:
    """Add `evaluate`."""
    evaluate = commands.add_parser(
        "evaluate",
        help="say how good an adapter is on recordings with labels",
        description="Accuracy with its interval, each class, what is confused with what, and whether the probabilities "
        "can be believed. Recordings are heard as the evaluation of the adapter's own run hears them. Exit code 1 if "
        "some cannot be used; they are listed and left out.",
        epilog="An adapter in the folder of its run brings the splits of that run, used where SOURCE holds the same "
        "clips; --data.splits_file divides in another way. Clips that the adapter was trained or validated on are "
        "scored apart from the others. Behind SOURCE it takes the recipes' --data.* settings as well. "
        "--data.window_seconds, hop_seconds and max_eval_seconds must be those of the run, and need not be given. "
        "--data.max_seconds, on_bad_clip and max_bad_share are ignored: clips that cannot be used never stop it. "
        "Settings that affect only what a run trains on, such as --data.max_train_clips, must be left out.",
    )
    evaluate.add_argument("adapter", metavar="ADAPTER", help=ADAPTER_HELP)
    evaluate.add_argument("source", metavar="SOURCE", help="a folder, a manifest, a Hub dataset, or bundled")
    evaluate.add_argument(
        "--split",
        choices=("train", "validation", "test", "all"),
        help="which clips (default: the test split of the source or of the adapter's run, else all of it)",
    )
    evaluate.add_argument("--revision", help="of an adapter on the Hub: branch, tag or commit")
    evaluate.add_argument("--base", help="the base encoder (folder or Hub id), if it is no longer where it was")
    evaluate.add_argument("--device", default="cpu", help="where to run, such as cuda (default: %(default)s)")
    evaluate.add_argument("--batch-size", type=int, default=16, help="clips at once (default: %(default)s)")
    evaluate.add_argument("--json", action="store_true", help="all figures, as JSON")
    evaluate.add_argument("--out", type=Path, metavar="DIR", help="write metrics.json and predictions.parquet there")
    evaluate.set_defaults(run=run_evaluate)


def run_evaluate(options: argparse.Namespace) -> int:
    """Judge an adapter; exit code 1 if clips could not be used."""
    from rich.console import Console

    from peft_audio.adapters.load import load_adapter
    from peft_audio.config import CheckSettings, parse_config
    from peft_audio.errors import UserError, require
    from peft_audio.evaluation.scores import print_scores
    from peft_audio.inference.evaluate import evaluate_adapter

    require(options.batch_size >= 1, "batch-size", options.batch_size, "1 or more", "Try 16.")
    if options.out is not None and options.out.exists():
        raise UserError(f"--out: {options.out} exists already; give a folder that does not.")
    cfg = parse_config(CheckSettings, ["--data.source", options.source, *options.settings])
    adapter = load_adapter(options.adapter, options.base, options.device, revision=options.revision)
    found = evaluate_adapter(adapter, cfg.data, options.split, options.batch_size)
    about = {"adapter": str(options.adapter), "source": options.source}
    if options.out is not None:
        _write(found, about, options.out)
    if options.json:
        print(json.dumps(about | found.as_json(), indent=2, ensure_ascii=False))
    else:
        print_scores(found.scores, found.notes, found.unseen, found.skipped, Console(), found.parts)
    return int(bool(found.skipped))


def _write(found: Any, about: dict[str, str], folder: Path) -> None:
    import pyarrow.parquet as pq

    from peft_audio.errors import UserError
    from peft_audio.runs.predictions import predictions_table

    table = predictions_table(found.recordings, found.split, found.evaluation.logits, found.labels, found.task)
    try:
        folder.mkdir(parents=True)
        pq.write_table(table, folder / "predictions.parquet")
        written = json.dumps(about | found.as_json(), indent=2, ensure_ascii=False)
        (folder / "metrics.json").write_text(written + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out: cannot write in {folder} ({error.strerror}); give another folder.") from error
