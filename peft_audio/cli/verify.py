"""Run `peft-audio verify`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from peft_audio.cli.predict import ADAPTER_HELP, BASE_HELP, REVISION_HELP


def add_commands(commands: Any) -> None:
    """Add the command `verify`."""
    verify = commands.add_parser(
        "verify",
        help="find faults of an adapter before using it",
        description="Check every part of an adapter: safetensors only, complete and finite weights, a complete head, "
        "the right base, known labels and sampling rate, and the recorded logits of fixed probe clips. Any PEFT "
        "adapter of an audio classifier is accepted. No pickle and no code of the adapter is loaded. A base that has "
        "only a pickle is loaded as weights only. Exit code 1 if something is broken, 0 if there are only warnings.",
        epilog="Each finding explains its consequence and how to fix it. Adapters of other tools hold no labels and no "
        "recorded logits, which is a warning. A head that was not saved is broken. Example: peft-audio verify "
        "runs/lora/adapter",
    )
    verify.add_argument("adapter", metavar="ADAPTER", help=ADAPTER_HELP)
    verify.add_argument("--revision", help=REVISION_HELP)
    verify.add_argument("--base", help=BASE_HELP)
    verify.add_argument(
        "--snippet",
        action="store_true",
        help="also run the README's code in a fresh process without this package. The code is built from the adapter's "
        "record; README.md itself is never executed",
    )
    verify.add_argument("--json", action="store_true", help="print all findings as JSON")
    verify.set_defaults(run=run_verify)


def run_verify(options: argparse.Namespace) -> int:
    """Examine an adapter and print the findings.

    Returns:
        Exit code: 1 if something is broken, otherwise 0.
    """
    from rich.console import Console

    with options.quick():
        from peft_audio.adapters.examine import examine, is_broken, print_findings, to_json

        found = examine(options.adapter, options.base, options.revision, options.snippet)
    if options.json:
        print(json.dumps(to_json(options.adapter, found), indent=2, ensure_ascii=False))
    else:
        print_findings(found, Console())
    return int(is_broken(found))
