"""Run `peft-audio train`."""

from __future__ import annotations

import argparse
from typing import Any

from peft_audio.api import fine_tune
from peft_audio.cli.source import settings_with_source
from peft_audio.config import run_recipe
from peft_audio.config.parse import make_parser
from peft_audio.strategies import STRATEGIES

DESCRIPTION = """
Fine-tune an audio classifier on recordings and write a run folder: a verified adapter, report.json with the scores on
the test clips, and everything that is needed to resume or repeat the run.

Strategies, by the weights that train:
"""
EPILOG = """
settings that matter most (behind SOURCE, as --NAME VALUE):
  train.output_dir DIR            folder of the run; must not exist (default: runs/STRATEGY)
  train.epochs N                  passes over the training clips (default: 8)
  train.learning_rate RATE        peak rate; the default suits the strategy
  train.class_weights balanced    for unbalanced classes
  train.resume true               resume a run that was stopped
  model.name NAME                 encoder, such as facebook/wav2vec2-base (default: the bundled wav2vec2-nano)
  data.group_column COLUMN        speakers or sources that a split must not divide
  config FILE.yaml                settings from a file; flags override it

examples:
  peft-audio check recordings
  peft-audio train recordings --strategy lora --train.output_dir runs/mine
  peft-audio train recordings --strategy head_only --model.name facebook/wav2vec2-base
  accelerate launch -m peft_audio.cli train recordings --strategy full
  peft-audio train --strategy lora --all-settings
"""


def add_commands(commands: Any) -> None:
    """Add `train`."""
    rows = [f"  {name:<16}{_first_line(strategy.recipe)}" for name, strategy in STRATEGIES.items()]
    parser = commands.add_parser(
        "train",
        help="fine-tune an audio classifier on recordings",
        description=DESCRIPTION + "\n".join(rows),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="a folder with one subfolder per class, a manifest, a Hub dataset, or bundled (default: bundled)",
    )
    parser.add_argument("--strategy", choices=STRATEGIES, default="lora", help="weights that train (default: lora)")
    parser.add_argument("--all-settings", action="store_true", help="explain all settings of the strategy")
    parser.set_defaults(run=run_train)


def _first_line(recipe: type[Any]) -> str:
    return (recipe.__doc__ or "").splitlines()[0]


def run_train(options: argparse.Namespace) -> int:
    """Train as the recipe of a strategy does; an error ends the process with the recipe's message and exit code."""
    recipe = STRATEGIES[options.strategy].recipe
    if options.all_settings:
        make_parser(recipe).print_help()
        return 0
    run_recipe(fine_tune, recipe, settings_with_source(options))
    return 0
