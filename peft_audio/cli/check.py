"""`peft-audio check`."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_commands(commands: Any) -> None:
    """Add `check`."""
    check = commands.add_parser(
        "check",
        help="say what is wrong with a collection before it costs a training run",
        description="Decodes every clip once. Exit code 1 if something would spoil a comparison: clips that are "
        "unreadable, empty, silent or hold NaN, copies or groups on two sides of a split, a class missing from one or "
        "too small for it. Warns of unbalanced classes, undeclared groups, and silence or formats that give the class "
        "away.",
        epilog="Behind SOURCE it takes the recipes' --data.* settings as well, such as --data.group_pattern, "
        "--data.group_column, --data.splits_file or --data.fold; python recipes/lora.py --help explains them. Settings "
        "that affect only what a run trains on, such as --data.max_train_clips, must be left out.",
    )
    check.add_argument("source", metavar="SOURCE", help="a folder, a manifest, a Hub dataset, or bundled")
    check.add_argument("--json", action="store_true", help="everything that was found, as JSON")
    check.add_argument("--jobs", type=int, help="clips read at once (default: one for each core)")
    check.set_defaults(run=run_check)


def run_check(options: argparse.Namespace) -> int:
    """Check a collection; exit code 1 if something would spoil a comparison."""
    from rich.console import Console

    # Messages about unknown settings name the recipe of a section, which the strategies declare.
    import peft_audio.strategies  # noqa: F401
    from peft_audio.checks.collection import check, print_check, to_json
    from peft_audio.config import CheckSettings, parse_config
    from peft_audio.data.scan import JOBS
    from peft_audio.errors import UserError

    if options.jobs is not None and options.jobs < 1:
        raise UserError(f"--jobs: got {options.jobs}, must be 1 or more. Leave it out.")
    cfg = parse_config(CheckSettings, ["--data.source", options.source, *options.settings])
    found = check(cfg.data, options.jobs or JOBS)
    if options.json:
        print(json.dumps(to_json(found), indent=2, ensure_ascii=False))
    else:
        print_check(found, Console())
    return int(found.spoiled)
