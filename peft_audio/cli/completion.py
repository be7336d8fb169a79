"""Run `peft-audio completion`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from peft_audio.errors import UserError

SHELLS = ("bash", "zsh", "tcsh")
USE = """
Print a script that completes commands, flags, settings and their values. Needs: pip install "peft-audio[completion]"

  bash:  peft-audio completion bash > ~/.local/share/bash-completion/completions/peft-audio
  zsh:   peft-audio completion zsh > DIR/_peft-audio, where DIR is in fpath
  tcsh:  peft-audio completion tcsh > FILE, and source FILE in ~/.tcshrc
"""


def add_commands(commands: Any) -> None:
    """Add `completion`."""
    parser = commands.add_parser(
        "completion",
        help="print a script that completes the command in a shell",
        description=USE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS, help="shell that reads the script")
    parser.set_defaults(run=run_completion)


def run_completion(options: argparse.Namespace) -> int:
    """Print the completion script of a shell."""
    try:
        import shtab
    except ImportError as error:
        raise UserError('completion: needs shtab; install it with: pip install "peft-audio[completion]"') from error
    from peft_audio.cli import make_parser

    parser = make_parser()
    add_settings(parser)
    sys.stdout.write(shtab.complete(parser, options.shell) + "\n")
    return 0


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the settings to the commands that take them, with their choices."""
    from peft_audio.comparison.settings import CompareRecipe
    from peft_audio.config import CheckSettings
    from peft_audio.strategies import STRATEGIES

    recipes: dict[str, tuple[type[Any], ...]] = {
        "train": tuple(strategy.recipe for strategy in STRATEGIES.values()),
        "check": (CheckSettings,),
        "evaluate": (CheckSettings,),
        "plan": (CompareRecipe,),
        "compare": (CompareRecipe,),
    }
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for name, classes in recipes.items():
        settings = {flag: choices for recipe in classes for flag, choices in _settings(recipe)}
        for flag, choices in settings.items():
            commands.choices[name].add_argument(f"--{flag}", choices=choices)
        commands.choices[name].add_argument("--config")


def _settings(recipe: type[Any]) -> Iterator[tuple[str, list[str] | None]]:
    """Yield each setting of a recipe by its dotted name, with its choices; None where there are none to list."""
    for name, kind in get_type_hints(recipe).items():
        if is_dataclass(kind):
            yield from ((f"{name}.{field}", _choices(hint)) for field, hint in get_type_hints(kind).items())
        elif get_origin(kind) is not ClassVar:
            yield name, _choices(kind)


def _choices(hint: Any) -> list[str] | None:
    if hint is bool:
        return ["true", "false"]
    return list(map(str, get_args(hint))) if get_origin(hint) is Literal else None
