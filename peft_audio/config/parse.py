"""YAML files, then flags, into one frozen dataclass."""

from __future__ import annotations

import difflib
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from peft_audio.config.recipes import own_sections
from peft_audio.errors import (
    INTERRUPTED,
    STOPPING,
    Stopped,
    UserError,
    failure,
    in_one_line,
    print_traceback_if_debugging,
    require,
)
from peft_audio.processes import quiet_hub_retries, signal_handlers
from peft_audio.text import printable, safe_to_print, without_secrets

NO_CODE = "settings are plain values and cannot name code"
# Settings need two levels; Python itself cannot read YAML that is nested too deeply.
DEEPEST = 20
# Integers from 308 digits, or 256 in base 16, do not fit a float and break jsonargparse.
_HUGE = re.compile(r"[-+]?[0-9][0-9a-fxob_:]{250,}", re.IGNORECASE)


# Settings of earlier versions: the name that replaced each, and what one of its units is in the new one.
RENAMED = {"augment.mask_time_frames": ("augment.mask_time_ms", 20.0)}


class NotPlain(yaml.MarkedYAMLError):
    """Report YAML that holds more than plain values."""


def plain_yaml(text: str) -> Any:
    """Read YAML that has no tags, aliases, deep nesting or class_path, which jsonargparse would import.

    Raises:
        yaml.YAMLError: The text holds more than values, or is not YAML.
    """
    check_plain(text)
    return yaml.safe_load(text)


def dotted(text: str) -> dict[str, Any]:
    """Read the settings of a run's config.yaml, or of a similar file, by dotted name.

    Raises:
        yaml.YAMLError: The text is not plain YAML, or does not hold sections of settings.
    """
    sections = plain_yaml(text)
    if not isinstance(sections, dict) or not all(isinstance(values, dict) for values in sections.values()):
        raise yaml.YAMLError("it does not hold settings by section")
    settings = {f"{part}.{name}": value for part, values in sections.items() for name, value in values.items()}
    return with_new_names(settings)


def with_new_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the settings that an earlier version wrote, and convert their values.

    Args:
        settings: Values by dotted name.
    """
    renamed = dict(settings)
    for old, (new, unit) in RENAMED.items():
        if type(renamed.get(old)) is int:
            renamed[new] = unit * renamed.pop(old)
    return renamed


def check_plain(text: str) -> None:
    """Check that YAML holds plain values, without building them.

    Raises:
        NotPlain: The text holds more than values.
        yaml.YAMLError: The text is not YAML.
    """
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        mark: Any = event.start_mark
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.ScalarEvent) and event.value == "class_path":
            raise NotPlain(problem=f"a class_path; {NO_CODE}", problem_mark=mark)
        if isinstance(event, yaml.ScalarEvent) and event.style is None and _HUGE.fullmatch(event.value):
            problem = f"a number of {len(event.value)} digits, which no setting accepts"
            raise NotPlain(problem=problem, problem_mark=mark)
        if isinstance(event, yaml.AliasEvent):
            # A few lines of nested aliases can expand to gigabytes.
            problem = f"the alias *{event.anchor}; write out its value"
            raise NotPlain(problem=problem, problem_mark=mark)
        if depth > DEEPEST:
            raise NotPlain(problem=f"values nested {depth} deep, but settings need 2 levels", problem_mark=mark)


Recipe = TypeVar("Recipe")


def make_parser(recipe: type[Any]) -> ArgumentParser:
    """Make the parser of a recipe, with `--config FILE.yaml` and a dotted flag for each field."""
    parser = ArgumentParser(
        description=recipe.__doc__.splitlines()[0] if recipe.__doc__ else None,
        epilog="A YAML file has the same names, nested: 'train: {epochs: 5}'. Flags override the file.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with settings; flags override it.")
    parser.add_class_arguments(recipe, as_group=False)
    return parser


def parse_config(recipe: type[Recipe], arguments: Sequence[str] | None = None) -> Recipe:
    """Read the settings of a run from the command line; end the process with exit code 2 if a setting is wrong.

    Args:
        recipe: Settings dataclass of the recipe.
        arguments: Command line without the program; that of the process by default.

    Returns:
        The checked settings.
    """
    try:
        return read_config(recipe, sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        print_traceback_if_debugging()
        _exit_on_error(str(error))


def read_config(recipe: type[Recipe], arguments: Sequence[str]) -> Recipe:
    """Read the settings of a run from arguments.

    Args:
        recipe: Settings dataclass of the recipe.
        arguments: Flags and values, as on a command line.

    Returns:
        The checked settings.

    Raises:
        UserError: A setting is wrong. The message names the flag, the value, the allowed values and a fix.
    """
    parser = make_parser(recipe)
    try:
        parsed = parser.parse_args(_files_before_flags(arguments, recipe))
        parsed.pop("config", None)
        _refuse_null(parsed, recipe)
        cfg = recipe(**vars(parser.instantiate(parsed)))
    except ArgumentError as error:
        raise UserError(_explain(str(error), recipe)) from error
    _refuse_secrets(cfg)
    return cfg


def read_settings(recipe: type[Recipe], settings: Mapping[str, Any]) -> Recipe:
    """Read the settings of a run from keyword arguments of a Python call.

    Args:
        recipe: Settings dataclass of the recipe.
        settings: Values by the names of its fields. A section is a mapping, as in `{"train": {"epochs": 3}}`; `config`
            is the path of a YAML file.

    Returns:
        The checked settings.

    Raises:
        UserError: A setting is wrong, or a section is not a mapping.
    """
    sections = {name for name, kind in get_type_hints(recipe).items() if is_dataclass(kind)}
    flags: list[str] = []
    for name, value in settings.items():
        if name not in {"config", *(field.name for field in fields(recipe))}:  # type: ignore[arg-type]
            raise UserError(_unknown(name, recipe))
        if name not in sections:
            flags.append(f"--{name}={in_words(value)}")
            continue
        if not isinstance(value, Mapping):
            raise UserError(
                f"{name}: got {type(value).__name__}, expected a dict of settings such as {{'source': 'bundled'}}. "
                f"Give a dict, or a whole {recipe.__name__}."
            )
        flags += [f"--{name}.{key}={in_words(inner)}" for key, inner in value.items()]
    return read_config(recipe, flags)


def in_words(value: Any) -> str:
    """Write the value of a setting in the form of the command line; numbers of NumPy are written as plain ones."""

    def plain(inner: Any) -> Any:
        # NumPy is not imported here, because reading settings must be quick.
        return inner.item() if hasattr(inner, "item") else str(inner)

    return str(value) if isinstance(value, (str, Path)) else json.dumps(value, default=plain)


def run_recipe(main: Callable[[Recipe], Any], recipe: type[Recipe], arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, print the changed settings and call `main` with the settings.

    An error that the user can fix ends the process with one line and the exit code of its class. A signal ends it with
    one line and the exit code 128 plus the number of the signal, as in shells.

    Args:
        main: Function of the settings; it can import torch when it is called.
        recipe: Settings dataclass of the recipe.
        arguments: Command line without the program; that of the process by default.
    """
    cfg = parse_config(recipe, arguments)
    _print_settings(cfg)
    quiet_hub_retries()
    try:
        with _signals_raise_stopped():
            main(cfg)
    except Stopped as stopped:
        if os.environ.get("RANK", "0") == "0":
            print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:
        print_traceback_if_debugging()
        message = "stopped before the end, no adapter was saved. Repeat the command with --train.resume true to resume."
        _exit_on_error(message, INTERRUPTED)
    except Exception as error:
        _exit_with_own_error(*failure(error, cfg.train.output_dir))  # type: ignore[attr-defined]


def _print_settings(cfg: Any) -> None:
    """Print the folder of the run and the settings that differ from the defaults, on the first process."""
    if os.environ.get("RANK", "0") != "0":
        return
    defaults, folder = asdict(type(cfg)()), cfg.train.output_dir
    changed = [
        f"{section}.{name} {in_words(value)}"
        for section, values in asdict(cfg).items()
        for name, value in values.items()
        if value != defaults[section][name] and (section, name) != ("train", "output_dir")
    ]
    # Seconds pass before the next line, while torch is imported.
    print(printable(f"{folder}: {', '.join(changed) or 'default settings'}"), flush=True)


@contextmanager
def _signals_raise_stopped() -> Iterator[None]:
    """Turn signals that stop a run into `Stopped`; during training, other handlers save a checkpoint first."""

    def stop(number: int, _: Any) -> NoReturn:
        name = signal.Signals(number).name
        raise Stopped(f"stopped by {name}. Repeat the command with --train.resume true to resume.", number)

    with signal_handlers({number: stop for number in STOPPING if signal.getsignal(number) == signal.SIG_DFL}):
        yield


def _exit_with_own_error(message: str, code: int) -> NoReturn:
    """Print an error of this process and end it; other processes of the run can have other errors."""
    process = os.environ.get("RANK", "0")
    # Only the first process prints lists of files.
    text = f": {message}" if process == "0" else f" (process {process}): {message.splitlines()[0]}"
    print(f"error{text}", file=sys.stderr)
    sys.exit(code)


def to_yaml(cfg: Any) -> str:
    """Write all fields of resolved settings as YAML that `--config` reads."""
    return yaml.safe_dump(asdict(cfg), sort_keys=False)


def flags_of(recipe: type[Any]) -> dict[str, str]:
    """Describe the values of each setting of a recipe, as in `{"lora.r": "a whole number, such as 8"}`."""
    flags = {}
    kinds = get_type_hints(recipe)
    for group in (section.name for section in fields(recipe)):
        kind = kinds[group]
        if not is_dataclass(kind):
            # The only list without a section is that of the arms of a comparison.
            flags[group] = _describe_type(kind).replace("[q_proj, v_proj]", '"[lora, full]", with the quotes')
            continue
        hints = get_type_hints(kind)
        for field in fields(kind):
            # Choices and booleans need no example.
            example = f", such as {field.default}" if type(field.default) in (int, float) else ""
            flags[f"{group}.{field.name}"] = _describe_type(hints[field.name]) + example
    return flags


def _describe_type(hint: Any) -> str:
    """Describe a type in words."""
    words = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", NoneType: "null"}
    if get_origin(hint) is list:
        (item,) = get_args(hint)
        if get_origin(item) is Literal:
            return f"a list such as [{', '.join(get_args(item))}]"
        return "a list such as [0, 1]" if item is int else "a list such as [q_proj, v_proj]"
    if get_origin(hint) is dict and is_dataclass(get_args(hint)[1]):
        return "arms by name, such as {lora_r2: {recipe: lora, flags: {lora.r: 2}}}"
    if get_origin(hint) is dict:
        return "a mapping of names to splits, such as {clean.100: train}"
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    return words.get(hint) or " or ".join(_describe_type(part) for part in get_args(hint) if part is not NoneType)


def _files_before_flags(arguments: Sequence[str], recipe: type[Any]) -> list[str]:
    """Check the command line and its YAML files, and move the files before the flags, so that flags override them."""
    files: list[str] = []
    flags: list[str] = []
    # "--config=FILE" means "--config FILE".
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    for before, word in zip(["", *words], words, strict=False):
        if before == "--config":
            # Empty files change nothing, but jsonargparse would refuse them.
            stored = _read_yaml(Path(word), recipe)
            renamed = _with_new_names_inside(stored)
            # jsonargparse takes the text of a file in place of its name.
            files += [] if stored is None else ["--config", word if renamed == stored else yaml.safe_dump(renamed)]
            flags.pop()
        else:
            _check_value(word, before)
            flags.append(word)
    return files + flags


def _check_value(word: str, before: str) -> None:
    """Refuse a value that is YAML with more than plain values; text that is not YAML is allowed."""
    flag, equals, value = word.partition("=") if word.startswith("--") else (before, "=", word)
    try:
        check_plain(value if equals else "")
    except NotPlain as error:
        raise UserError(f"{flag}: got {error.problem}. Remove it.") from error
    except yaml.YAMLError:
        return


def _read_yaml(file: Path, recipe: type[Any]) -> dict[str, Any] | None:
    """Read the settings of a YAML file, and check the names of its sections and settings."""
    try:
        content = plain_yaml(file.read_text(encoding="utf-8"))
    except OSError as error:
        problem = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise UserError(f"--config: {file} {problem}; give a YAML file.") from error
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"--config: {file} is not plain YAML ({line}{error.problem}); correct it.") from error
    except UserError:
        raise
    except (yaml.YAMLError, ValueError) as error:  # such as a date in month 13, or text that is not UTF-8
        raise UserError(f"--config: {file} is not plain YAML ({in_one_line(error)}); correct it.") from error
    if content is not None and not isinstance(content, dict):
        raise UserError(f"--config: {file} must hold settings by section, as in 'train: {{epochs: 5}}'.")
    flags = flags_of(recipe)
    for section, settings in (_with_new_names_inside(content) or {}).items():
        if section in flags:
            continue
        if not isinstance(settings, dict):
            raise UserError(f"--{section}: got {settings} in {file}, must be a section, as in 'train: {{epochs: 5}}'.")
        for name in settings:
            if f"{section}.{name}" not in flags:
                raise UserError(_unknown(f"{section}.{name}", recipe) + f" The setting is in {file}.")
    return content


def _with_new_names_inside(content: dict[str, Any] | None) -> dict[str, Any] | None:
    """Rename the settings of an earlier version in the content of a file, those of a comparison's arms as well."""
    if content is None:
        return None
    renamed = dict(content)
    for old in RENAMED:
        section = old.partition(".")[0]
        if isinstance(content.get(section), dict):
            values = with_new_names({f"{section}.{name}": value for name, value in content[section].items()})
            renamed[section] = {name.removeprefix(f"{section}."): value for name, value in values.items()}
    if isinstance(content.get("own_arms"), dict):
        renamed["own_arms"] = {
            name: arm | {"flags": with_new_names(arm["flags"])}
            if isinstance(arm, dict) and isinstance(arm.get("flags"), dict)
            else arm
            for name, arm in content["own_arms"].items()
        }
    return renamed


def _refuse_secrets(cfg: Any) -> None:
    """Refuse secrets, which a run would write into its config.yaml."""
    sections = {name: value if isinstance(value, dict) else {"": value} for name, value in asdict(cfg).items()}
    for section, values in sections.items():
        for name, value in values.items():
            if without_secrets(str(value)) != str(value):
                raise UserError(
                    f"--{section}{'.' if name else ''}{name}: holds a password, a token or a signature, which the run "
                    "would write into its files. Remove it; to log in to the Hub, use hf auth login."
                )


def _refuse_null(parsed: Any, recipe: type[Any]) -> None:
    """Refuse null for settings that do not allow it, because the parser accepts it for all settings."""
    kinds = get_type_hints(recipe)
    for flag, takes in flags_of(recipe).items():
        group, _, name = flag.partition(".")
        if parsed[flag] is None:
            hint = get_type_hints(kinds[group])[name] if name else kinds[group]
            usable = NoneType in get_args(hint)
            require(usable, flag, "null", takes, "Leave it out for the default.")


def _unknown(name: str, recipe: type[Any]) -> str:
    """Describe an unknown setting, with the recipe that has it or the most similar name."""
    section = name.partition(".")[0]
    if name in RENAMED:
        new, unit = RENAMED[name]
        return f"--{name}: is now --{new}; 1 there is {unit:g} here. Give --{new}."
    if section in own_sections() and not any(flag.startswith(section) for flag in flags_of(recipe)):
        home = f"recipes/{section}.py"
        return f"--{name}: no such setting here; it belongs to {home}. Leave it out, or use that recipe."
    close = difflib.get_close_matches(name, flags_of(recipe), n=1, cutoff=0.5)
    hint = f"Did you mean --{close[0]}? " if close else ""
    return f"--{name}: no such setting. {hint}--help lists all of them."


def _explain(message: str, recipe: type[Any]) -> str:
    """Translate an error of jsonargparse into a message with the flag, the value, the allowed values and a fix."""
    flags = flags_of(recipe)
    wrong_value = re.search(r'Parser key "([\w.]+)":.*(?:Got|Given) value: (.*)', message, re.DOTALL)
    if wrong_value and wrong_value[1] in flags:
        name, value = wrong_value[1], (wrong_value[2].strip() or "''").splitlines()[0]
        return f"--{name}: got {value}, must be {flags[name]}. See --help."
    misplaced = re.search(r"ArmConfig': Option '([\w.]+)' is not accepted", message)
    if misplaced:
        example = f"{{my_arm: {{recipe: lora, flags: {{{misplaced[1]}: ...}}}}}}"
        return f"--own_arms: got {misplaced[1]}, must be under flags if it is a setting of the recipe: {example}."
    unknown = re.search(r"[Uu]nrecognized arguments: --?([\w.]+)", message)
    if unknown:
        return _unknown(unknown[1], recipe)
    located = re.match(r'Parser key "([\w.]+)":(.*)', message, re.DOTALL)
    name, reason = (f"--{located[1]}: ", located[2]) if located else ("", message)
    return f"{name}{' '.join(reason.split())}. See --help."


def _exit_on_error(message: str, code: int = 2) -> NoReturn:
    """Print an error on the first process, because all processes get the same settings, and end this process."""
    if os.environ.get("RANK", "0") == "0":
        print(f"error: {safe_to_print(message)}", file=sys.stderr)
    sys.exit(code)
