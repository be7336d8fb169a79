"""Run `peft-audio compare`, and `plan` and `report`, for use before and after a comparison."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from peft_audio.cli.source import settings_with_source
from peft_audio.comparison.settings import CompareRecipe
from peft_audio.config import SECTIONS, parse_config

# Settings of a comparison that are in no section.
PLAIN_SETTINGS = {setting.name for setting in fields(CompareRecipe)} - SECTIONS.keys()


def add_commands(commands: Any) -> None:
    """Add the commands `compare`, `plan` and `report`."""
    compare = commands.add_parser(
        "compare",
        help="compare ways of fine-tuning under equal conditions",
        description="Try learning rates on validation, run fresh seeds of each arm, and write comparison.md, .json, "
        ".html, .png and .svg with intervals, tests and costs. The same command resumes a comparison that was stopped. "
        "Exit code 1 if a rule of fair comparisons is broken; then nothing is ranked.",
        epilog="The settings of recipes/compare.py are accepted, such as --output_dir runs/mine, --minutes 60 or "
        '--arms "[head_only, lora, full]"; peft-audio compare --all-settings explains them.',
    )
    compare.add_argument("source", nargs="?", metavar="SOURCE", help="recordings, as for train (default: bundled)")
    compare.add_argument("--all-settings", action="store_true", help="explain all settings")
    compare.set_defaults(run=run_compare)

    plan = commands.add_parser(
        "plan",
        help="estimate the cost of a comparison before running it",
        description="Time a few steps of every arm, in about a minute, and estimate the parameters, bytes, memory and "
        "time of all runs. With --minutes 10, propose settings that fit into ten minutes. The timing is saved in the "
        "folder of the comparison, so that recipes/compare.py does not repeat it.",
        epilog="The settings of recipes/compare.py are accepted, such as --config FILE or --data.source FOLDER; "
        "python recipes/compare.py --help explains them. Example: peft-audio plan --data.source clips/ --minutes 10",
    )
    plan.add_argument("--json", action="store_true", help="print the figures as JSON")
    plan.set_defaults(run=run_plan)

    report = commands.add_parser(
        "report",
        help="compare finished runs with tables, plots and a page",
        description="Read finished comparisons and runs of the recipes, and write comparison.md, .json, .html, .png "
        "and .svg. Exit code 1 if a rule of fair comparisons is broken; then nothing is ranked.",
    )
    report.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a comparison, or a folder of runs")
    report.add_argument("--out", type=Path, metavar="DIR", help="folder to write to (default: the first DIR)")
    report.add_argument("--reference", help="the arm that the others are compared with (default: full)")
    report.add_argument(
        "--metric",
        choices=("macro_f1", "accuracy", "balanced_accuracy"),
        help="test metric that ranks the arms (default: that of the comparison, or macro_f1)",
    )
    report.add_argument(
        "--margin", type=float, help="largest difference in the metric that counts as equivalent (default: 0.02)"
    )
    report.set_defaults(run=run_report)


def run_compare(options: argparse.Namespace) -> int:
    """Compare ways of fine-tuning.

    Returns:
        Exit code: 1 if nothing is ranked, otherwise 0.
    """
    from peft_audio.config.parse import make_parser

    if options.all_settings:
        make_parser(CompareRecipe).print_help()
        return 0
    cfg = parse_config(CompareRecipe, settings_with_source(options))
    from peft_audio.comparison.run import run_comparison

    return run_comparison(cfg)


def run_plan(options: argparse.Namespace) -> int:
    """Estimate and print the cost of a comparison.

    Returns:
        Exit code: 130 if stopped with Ctrl-C, otherwise 0.
    """
    cfg = parse_config(CompareRecipe, options.settings)
    from rich.console import Console

    from peft_audio.comparison.budget import fit
    from peft_audio.comparison.collect import with_commits
    from peft_audio.comparison.jobs import locked
    from peft_audio.comparison.plan import measure, plan, print_plan
    from peft_audio.files import expanded
    from peft_audio.training.hardware import resolve_auto

    try:
        with locked(expanded(cfg.output_dir)):
            print(f"timing a few steps of {len(cfg.arms)} arms", file=sys.stderr)
            # Other messages go to stderr, so that the output starts with whether the result can be ranked.
            with redirect_stdout(sys.stderr):
                cfg = with_commits(cfg)
                cfg = resolve_auto(cfg, cfg.has_one_encoder())
            timing = measure(cfg)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    cfg, settings = fit(cfg, timing)
    planned = plan(cfg, timing, settings)
    if options.json:
        print(json.dumps(asdict(planned), indent=2))
    else:
        print_plan(planned, cfg.minutes, Console())
    return 0


def run_report(options: argparse.Namespace) -> int:
    """Compare finished runs, and print and write the result.

    Returns:
        Exit code: 1 if a rule is broken, otherwise 0.
    """
    from rich.console import Console

    from peft_audio.comparison.collect import read_comparison
    from peft_audio.comparison.page import print_comparison, write_comparison
    from peft_audio.errors import UserError

    if options.margin is not None and not 0 < options.margin < 1:
        raise UserError(f"--margin: got {options.margin}, must be between 0 and 1. Try 0.02 (2 percentage points).")
    comparison = read_comparison(options.folders, options.reference, options.margin, options.metric)
    written = write_comparison(comparison, options.out or options.folders[0])
    print_comparison(comparison, written, Console())
    return int(bool(comparison.broken_rules))
