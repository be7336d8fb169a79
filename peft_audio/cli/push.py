"""Run `peft-audio push`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from peft_audio.api import push
from peft_audio.errors import UserError


def add_commands(commands: Any) -> None:
    """Add the command `push`."""
    parser = commands.add_parser(
        "push",
        help="send an adapter to the Hugging Face Hub",
        description="Send an adapter or a whole model to the Hub in one commit. First it must reproduce its recorded "
        "logits. Only its own files are sent, with a model card as README; --dry-run lists them.",
        epilog="Needs a token with write access: hf auth login. Afterwards anyone can run peft-audio predict CLIP "
        "--adapter org/name.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="such as runs/lora/adapter or runs/full/model")
    parser.add_argument("repository", metavar="ORG/NAME", help="Hub repository; created if it does not exist")
    parser.add_argument(
        "--base-id", metavar="ORG/NAME", help="Hub id of the base, if a local copy of it was trained on"
    )
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.add_argument("--license", default="", metavar="NAME", help="license on the card, such as apache-2.0")
    parser.add_argument(
        "--comparison", type=Path, metavar="DIR", help="folder of a comparison whose tables are added to the card"
    )
    parser.add_argument(
        "--without-trained-clips",
        action="store_true",
        help="leave out trained_clips.bin, the hashes of the clips that the adapter was trained on",
    )
    parser.add_argument("--dry-run", action="store_true", help="list the files and their sizes, and send nothing")
    parser.set_defaults(run=run_push)


def run_push(options: argparse.Namespace) -> int:
    """Send an adapter to the Hub, or list its files with `--dry-run`.

    Returns:
        Exit code 0.

    Raises:
        UserError: The push was refused, or would be after a dry run.
    """
    with options.quick():
        import peft_audio.publish.push  # noqa: F401

    done = push(
        options.folder,
        options.repository,
        base_id=options.base_id,
        private=options.private,
        comparison=options.comparison,
        license=options.license,
        dry_run=options.dry_run,
        without_trained_clips=options.without_trained_clips,
    )
    for name, size in done.files:
        print(f"{size:>12,} bytes  {name}")
    total = sum(size for _, size in done.files)
    if done.commit is None:
        print(f"{total:>12,} bytes for {options.repository}; nothing was sent")
        for note in done.notes:
            print(f"note: {note}", file=sys.stderr)
        if done.obstacle:
            raise UserError(f"a push would be refused: {done.obstacle}")
        return 0
    print(f"{total:>12,} bytes at {done.url}")
    print(f"to use it:  peft-audio predict CLIP --adapter {options.repository} --revision {done.commit}")
    return 0
