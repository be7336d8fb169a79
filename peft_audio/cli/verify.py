"""`peft-audio verify`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from peft_audio.cli.predict import ADAPTER_HELP


def add_commands(commands: Any) -> None:
    """Add `verify`."""
    verify = commands.add_parser(
        "verify",
        help="say what is wrong with an adapter before it misleads",
        description="Looks at every part of an adapter: safetensors only, all weights there and finite, the whole head "
        "saved, the base the same, labels and sampling rate known, and the answers to fixed probe clips as recorded. "
        "It takes ours, and anybody's PEFT adapter of an audio classifier. Of its files no pickle is read and no code "
        "run; a base that has only a pickle is read by torch as weights alone. Exit code 1 if something is broken, 0 "
        "if there are warnings only.",
        epilog="Each finding says what it means and how to mend it. Adapters of others hold no labels and no recorded "
        "answers, which is a warning; a head that was never saved is broken.",
    )
    verify.add_argument("adapter", metavar="ADAPTER", help=ADAPTER_HELP)
    verify.add_argument("--revision", help="of an adapter on the Hub: branch, tag or commit")
    verify.add_argument("--base", help="the base encoder (folder or Hub id), if it is no longer where it was")
    verify.add_argument(
        "--snippet",
        action="store_true",
        help="also run the README's code, in a fresh process without this package, with the base filled in. The code "
        "is built from the adapter's record; README.md itself is never executed",
    )
    verify.add_argument("--json", action="store_true", help="everything that was found, as JSON")
    verify.set_defaults(run=run_verify)


def run_verify(options: argparse.Namespace) -> int:
    """Examine an adapter; exit code 1 if something is broken."""
    from rich.console import Console

    with options.quick():
        from peft_audio.adapters.examine import examine, is_broken, print_findings, to_json

        found = examine(options.adapter, options.base, options.revision, options.snippet)
    if options.json:
        print(json.dumps(to_json(options.adapter, found), indent=2, ensure_ascii=False))
    else:
        print_findings(found, Console())
    return int(is_broken(found))
