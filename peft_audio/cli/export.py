"""Run `peft-audio export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from peft_audio.api import export
from peft_audio.cli.predict import ADAPTER_HELP, BASE_HELP, REVISION_HELP

DESCRIPTION = """
Write an adapter as a folder that needs neither its base nor peft-audio. The export is kept only if a fresh process
reproduces the recorded logits with it. With --merged:

  from transformers import pipeline
  pipeline("audio-classification", "DIR")(waveform)

With --onnx, DIR/README.md has the code, which needs only ONNX Runtime and NumPy.
"""


def add_commands(commands: Any) -> None:
    """Add the command `export`."""
    parser = commands.add_parser(
        "export",
        help="write an adapter as a transformers directory or an ONNX graph",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("adapter", metavar="ADAPTER", help=ADAPTER_HELP)
    parser.add_argument("folder", type=Path, metavar="DIR", help="a new folder")
    form = parser.add_mutually_exclusive_group(required=True)
    form.add_argument("--merged", action="store_true", help="for transformers' pipeline")
    form.add_argument(
        "--onnx",
        action="store_true",
        help="for ONNX Runtime, with clips of any length (needs: pip install onnx onnxruntime)",
    )
    parser.add_argument("--revision", help=REVISION_HELP)
    parser.add_argument("--base", help=BASE_HELP)
    parser.add_argument("--overwrite", action="store_true", help="replace DIR if it is an earlier export")
    parser.set_defaults(run=run_export)


def run_export(options: argparse.Namespace) -> int:
    """Export an adapter and print the difference of its logits.

    Returns:
        Exit code 0.
    """
    done = export(
        options.adapter,
        options.folder,
        merged=options.merged,
        onnx=options.onnx,
        revision=options.revision,
        base=options.base,
        overwrite=options.overwrite,
    )
    print(
        f"{done.folder}: {done.size_bytes / 1e6:.1f} MB; a fresh process without peft-audio reproduced the recorded "
        f"logits to {done.difference:.0e} (allowed: {done.tolerance:.0e})"
    )
    return 0
