"""Run `peft-audio recipe` and `peft-audio base`, which copy files of the package."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from peft_audio.files import PACKAGE, RECIPES

ENCODER = PACKAGE / "assets" / "wav2vec2-nano"


def add_commands(commands: Any) -> None:
    """Add the commands `recipe` and `base`."""
    recipe = commands.add_parser(
        "recipe",
        help="print a recipe or a launch config",
        description="Print a recipe, a launch config of accelerate, or the settings of a published experiment. Save it "
        "to a file to change it: peft-audio recipe lora > lora.py",
    )
    names = sorted(recipe_files())
    recipe.add_argument("name", choices=names, help=f"one of: {', '.join(names)}")
    recipe.set_defaults(run=run_recipe)

    base = commands.add_parser(
        "base",
        help="copy the bundled encoder to a transformers directory",
        description="Copy the bundled encoder wav2vec2-nano to a folder that transformers can load with "
        "AutoModel.from_pretrained, such as: peft-audio base nano",
    )
    base.add_argument("folder", type=Path, metavar="DIR", help="a folder that does not exist yet")
    base.set_defaults(run=run_base)


def recipe_files() -> dict[str, Path]:
    """Return the recipes, the launch configs of accelerate, and the settings of published experiments, by name."""
    return {path.stem: path for form in ("*.py", "accelerate/*.yaml", "configs/*.yaml") for path in RECIPES.glob(form)}


def run_recipe(options: argparse.Namespace) -> int:
    """Print a recipe, a launch config or settings.

    Returns:
        Exit code 0.
    """
    print(recipe_files()[options.name].read_text(encoding="utf-8"), end="")
    return 0


def run_base(options: argparse.Namespace) -> int:
    """Copy the bundled encoder and its model card.

    Returns:
        Exit code 0.
    """
    from peft_audio.errors import UserError

    if options.folder.exists():
        raise UserError(f"{options.folder} already exists; give a new folder.")
    shutil.copytree(ENCODER, options.folder)
    print(f"{options.folder}: load it with transformers' AutoModel.from_pretrained")
    return 0
