"""Run `peft-audio check`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from peft_audio.api import check
from peft_audio.cli.source import SOURCE_HELP, settings_with_source


def add_commands(commands: Any) -> None:
    """Add the command `check`."""
    parser = commands.add_parser(
        "check",
        help="find problems of a collection before training on it",
        description="Decode every clip once and list the problems of a collection. Exit code 1 if one of them would "
        "invalidate scores: clips that are unreadable, empty, silent or hold NaN; copies or groups in two splits; a "
        "class that a split lacks, or with too few clips. Warnings: unbalanced classes, undeclared groups, and silence "
        "or file formats that reveal the class.",
        epilog="The --data.* settings of the recipes are accepted too, such as --data.group_pattern, "
        "--data.group_column, --data.splits_file or --data.fold; python recipes/lora.py --help explains them. Settings "
        "that only affect training, such as --data.max_train_clips, must be left out. Example: peft-audio check clips/ "
        "--data.group_pattern '^(\\w+?)_'",
    )
    parser.add_argument("source", metavar="SOURCE", help=SOURCE_HELP)
    parser.add_argument("--json", action="store_true", help="print all results as JSON")
    parser.add_argument("--jobs", type=int, help="number of clips decoded in parallel (default: one per core)")
    parser.add_argument(
        "--deep",
        action="store_true",
        help="if no groups are declared, also search for groups in the sound, by clusters of encoder embeddings",
    )
    parser.add_argument("--base", help="folder or Hub id of the encoder of --deep (default: the bundled one)")
    parser.set_defaults(run=run_check)


def run_check(options: argparse.Namespace) -> int:
    """Check a collection and print its problems.

    Returns:
        Exit code: 1 if a problem would invalidate scores, otherwise 0.
    """
    # Importing the strategies registers their settings, so that messages on unknown settings can name their recipe.
    import peft_audio.strategies  # noqa: F401
    from peft_audio.config import CheckSettings, parse_config

    cfg = parse_config(CheckSettings, settings_with_source(options))
    result = check(cfg.data, jobs=options.jobs, deep=options.deep, base=options.base)
    from rich.console import Console

    from peft_audio.checks.collection import print_check, to_json

    if options.json:
        print(json.dumps(to_json(result), indent=2, ensure_ascii=False))
    else:
        print_check(result, Console())
    return int(result.spoiled)
