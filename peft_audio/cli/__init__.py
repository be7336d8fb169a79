"""Parse and run the `peft-audio` command.

Each module adds one command or two. They import heavy packages only when a command runs, so that `--help` is fast.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from importlib import metadata
from typing import Any

from peft_audio import __version__
from peft_audio.cli import (
    bundled,
    cache,
    check,
    comparison,
    completion,
    evaluate,
    export,
    predict,
    push,
    train,
    verify,
)
from peft_audio.errors import DEBUG, INTERRUPTED, failure, print_traceback_if_debugging
from peft_audio.processes import quick_imports, quiet_hub_retries

# Commands that take the settings of recipes, and the names of their settings that are in no section.
TAKES_SETTINGS: dict[str, set[str]] = {name: {"config"} for name in ("check", "train", "evaluate")}
TAKES_SETTINGS |= {name: {"config", *comparison.PLAIN_SETTINGS} for name in ("plan", "compare")}
VERSIONS = ("torch", "transformers", "peft", "accelerate")
LESS_MEMORY = "Lower --batch-size where the command has it, or cut long recordings."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and print errors that the user can fix in one line.

    Args:
        arguments: Command line without the program's name; `sys.argv` when not given.

    Returns:
        Exit code of the command, or of the class of the error.
    """
    parser = make_parser()
    own, settings = split_settings(sys.argv[1:] if arguments is None else arguments)
    options, unknown = parser.parse_known_args(own)
    if unknown and options.command not in TAKES_SETTINGS:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    options.settings = [*settings, *unknown]
    # Only in a process of its own, because it changes how modules are imported until the process ends.
    options.quick = quick_imports if arguments is None else nullcontext
    if "debug" in options:
        os.environ[DEBUG] = "1"
    quiet_hub_retries()
    try:
        code = options.run(options)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print_traceback_if_debugging()
        print("stopped.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # `peft-audio predict ... | head` closes stdout early, and Python would print another error at exit.
        sys.stderr.close()
        return 1
    except Exception as error:
        message, code = failure(error, "", LESS_MEMORY, again="")
        print(f"error: {message}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:
            # Python would try to flush again at exit and print another error.
            with suppress(OSError):
                sys.stdout.close()
        return code


def split_settings(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split a command line into the command's own words and settings with their values.

    `train --train.epochs 3 recordings` gives `train recordings` and `--train.epochs 3`.
    """
    command = next((word for word in words if not word.startswith("-")), "")
    if command not in TAKES_SETTINGS:
        return list(words), []
    parts: tuple[list[str], list[str]] = ([], [])
    before = ""  # a setting that waits for its value
    for word in words:
        name, equals, _ = word.removeprefix("--").partition("=")
        is_setting = word.startswith("--") and ("." in name or name in TAKES_SETTINGS[command])
        parts[is_setting or bool(before and not word.startswith("--"))].append(word)
        before = word if is_setting and not equals else ""
    return parts


class _Versions(argparse.Action):
    """Print the versions that a question about a run needs, without importing torch."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"peft-audio {__version__}, Python {platform.python_version()} on {platform.system()}")
        print(", ".join(f"{name} {_version(name)}" for name in VERSIONS))
        parser.exit()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands, in the order of `--help`."""
    parser = argparse.ArgumentParser(
        prog="peft-audio",
        description="Train, evaluate, compare and share small adapters of audio classifiers. To train one: "
        "peft-audio train FOLDER",
        epilog="A first look at your recordings: peft-audio check FOLDER. Each command explains itself with --help.",
    )
    parser.add_argument("--version", action=_Versions, nargs=0, help="print the versions of this and its libraries")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in (check, train, evaluate, predict, comparison, verify, export, push, bundled, cache, completion):
        group.add_commands(commands)
    for command in {parser, *commands.choices.values()}:
        help_debug = f"show the traceback of an error, as {DEBUG}=1 does"
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=help_debug)
    return parser
