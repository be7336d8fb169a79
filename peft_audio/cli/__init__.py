"""Parse and run the `peft-audio` command.

Each module adds one command or two. They import heavy packages only when a command runs, so that `--help` is fast.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress

from peft_audio import __version__
from peft_audio.cli import bundled, cache, check, comparison, evaluate, export, predict, push, verify
from peft_audio.errors import DEBUG, INTERRUPTED, failure, print_traceback_if_debugging
from peft_audio.processes import quick_imports, quiet_hub_retries

TAKES_SETTINGS = ("check", "evaluate", "plan")
LESS_MEMORY = "Lower --batch-size where the command has it, or cut long recordings."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and print errors that the user can fix in one line.

    Args:
        arguments: Command line without the program's name; `sys.argv` when not given.

    Returns:
        Exit code of the command, or of the class of the error.
    """
    parser = make_parser()
    options, settings = parser.parse_known_args(arguments)
    if settings and options.command not in TAKES_SETTINGS:
        parser.error(f"unrecognized arguments: {' '.join(settings)}")
    options.settings = settings
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


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands, in the order of `--help`."""
    parser = argparse.ArgumentParser(
        prog="peft-audio",
        description="Train, evaluate, compare and share small adapters of audio classifiers. To train one: "
        "accelerate launch recipes/lora.py --data.source FOLDER",
        epilog="A first look at your recordings: peft-audio check FOLDER. Each command explains itself with --help.",
    )
    parser.add_argument("--version", action="version", version=f"peft-audio {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in (predict, evaluate, verify, export, push, check, comparison, bundled, cache):
        group.add_commands(commands)
    for command in {parser, *commands.choices.values()}:
        help_debug = f"show the traceback of an error, as {DEBUG}=1 does"
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=help_debug)
    return parser
