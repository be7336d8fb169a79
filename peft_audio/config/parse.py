"""YAML files, then flags, into one frozen dataclass."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import Any, NoReturn, TypeVar, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from peft_audio.config.fields import UserError

Recipe = TypeVar("Recipe")


def make_parser(recipe: type[Any]) -> ArgumentParser:
    """The parser of one recipe: `--config FILE.yaml`, then a dotted flag for each field."""
    parser = ArgumentParser(
        description=recipe.__doc__.splitlines()[0] if recipe.__doc__ else None,
        epilog="A YAML file holds the same names, nested: 'train: {epochs: 5}'. Flags given after --config win.",
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with settings; flags after it override it.")
    parser.add_class_arguments(recipe, as_group=False)
    return parser


def parse_config(recipe: type[Recipe], arguments: Sequence[str] | None = None) -> Recipe:
    """Read the settings of a run.

    Args:
        recipe: The recipe's config dataclass.
        arguments: The command line without the program; that of the process when not given.

    Returns:
        The checked settings. A wrong one ends the process with exit code 2, after a message that names flag, value,
        what is allowed and the fix.
    """
    parser = make_parser(recipe)
    try:
        parsed = parser.parse_args(sys.argv[1:] if arguments is None else list(arguments))
        parsed.pop("config", None)
        return recipe(**vars(parser.instantiate(parsed)))
    except UserError as error:
        _fail(str(error))
    except ArgumentError as error:
        _fail(_explain(str(error), recipe))


def run_recipe(main: Callable[[Recipe], Any], recipe: type[Recipe]) -> None:
    """Parse the command line, run `main` with it, and turn what the user can mend into one line and exit code 2."""
    cfg = parse_config(recipe)
    try:
        main(cfg)
    except UserError as error:
        _fail(str(error))


def to_yaml(cfg: Any) -> str:
    """The resolved settings, every field, in a form that `--config` reads back."""
    return yaml.safe_dump(asdict(cfg), sort_keys=False)


def flags_of(recipe: type[Any]) -> dict[str, str]:
    """Every dotted name of a recipe with what it takes, as in `{"lora.r": "int, such as 8"}`."""
    flags = {}
    for group, kind in get_type_hints(recipe).items():
        hints = get_type_hints(kind)
        for field in fields(kind):
            hint = hints[field.name]
            name = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "").replace(" | None", "")
            flags[f"{group}.{field.name}"] = name if field.default is None else f"{name}, such as {field.default}"
    return flags


def _explain(message: str, recipe: type[Any]) -> str:
    """Say jsonargparse's complaint in our form: flag, value, what is allowed, the fix."""
    flags = flags_of(recipe)
    wrong_value = re.search(r'Parser key "([\w.]+)":.*Got value: (.*)', message, re.DOTALL)
    if wrong_value and wrong_value[1] in flags:
        name, value = wrong_value[1], wrong_value[2].strip().splitlines()[0]
        return f"--{name}: got {value}, must be {flags[name]}. See --help."
    unknown = re.search(r"[Uu]nrecognized arguments: --?([\w.]+)|[Kk]ey '?\"?([\w.]+)'?\"? is not expected", message)
    if unknown:
        name = unknown[1] or unknown[2]
        close = difflib.get_close_matches(name, flags, n=1, cutoff=0.5)
        hint = f"Did you mean --{close[0]}? " if close else ""
        return f"--{name}: no such setting. {hint}--help lists all of them."
    return " ".join(message.split()) + " See --help."


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
