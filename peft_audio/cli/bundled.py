"""Run `peft-audio recipe` and `peft-audio base`: copy out what comes with the package."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from peft_audio.files import PACKAGE, RECIPES

ENCODER = PACKAGE / "assets" / "wav2vec2-nano"


def add_commands(commands: Any) -> None:
    """Add `recipe` and `base`."""
    recipe = commands.add_parser(
        "recipe", help="print a recipe, or a launch config, to copy: peft-audio recipe lora > lora.py"
    )
    names = sorted(recipe_files())
    recipe.add_argument("name", choices=names, help=f"one of: {', '.join(names)}")
    recipe.set_defaults(run=run_recipe)

    base = commands.add_parser("base", help="copy the bundled encoder out as an ordinary transformers directory")
    base.add_argument("folder", type=Path, metavar="DIR", help="a folder that does not exist yet")
    base.set_defaults(run=run_base)


def recipe_files() -> dict[str, Path]:
    """The recipes, accelerate's launch configs for them, and settings of published experiments, by name."""
    return {path.stem: path for form in ("*.py", "accelerate/*.yaml", "configs/*.yaml") for path in RECIPES.glob(form)}


def run_recipe(options: argparse.Namespace) -> int:
    """Print a recipe or a launch config."""
    print(recipe_files()[options.name].read_text(encoding="utf-8"), end="")
    return 0


def run_base(options: argparse.Namespace) -> int:
    """Copy the bundled encoder, its card included."""
    from peft_audio.errors import UserError

    if options.folder.exists():
        raise UserError(f"{options.folder} exists already; give a folder that does not.")
    shutil.copytree(ENCODER, options.folder)
    print(f"{options.folder}: load it with transformers' AutoModel.from_pretrained")
    return 0
