"""`peft-audio export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from peft_audio.cli.predict import ADAPTER_HELP

WHAT = """
Write an adapter as a folder that needs neither its base nor peft-audio. A fresh process must get the recorded logits
from it before it is put in its place. With --merged:

  from transformers import pipeline
  pipeline("audio-classification", "DIR")(waveform)

With --onnx, DIR/README.md has the code for ONNX Runtime and NumPy alone.
"""


def add_commands(commands: Any) -> None:
    """Add `export`."""
    export = commands.add_parser(
        "export",
        help="write an adapter as a plain transformers directory, or for ONNX Runtime",
        description=WHAT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    export.add_argument("adapter", metavar="ADAPTER", help=ADAPTER_HELP)
    export.add_argument("folder", type=Path, metavar="DIR", help="a folder that does not exist yet")
    form = export.add_mutually_exclusive_group(required=True)
    form.add_argument("--merged", dest="form", action="store_const", const="merged", help="for transformers' pipeline")
    form.add_argument(
        "--onnx",
        dest="form",
        action="store_const",
        const="onnx",
        help="for ONNX Runtime, clips of any length (needs: pip install onnx onnxruntime)",
    )
    export.add_argument("--revision", help="of an adapter on the Hub: branch, tag or commit")
    export.add_argument("--base", help="the base encoder (folder or Hub id), if it is no longer where it was")
    export.add_argument("--overwrite", action="store_true", help="replace DIR if it is an earlier export")
    export.set_defaults(run=run_export)


def run_export(options: argparse.Namespace) -> int:
    """Export an adapter and say how far its answers are from the recorded ones."""
    from peft_audio.publish.export import export_adapter

    done = export_adapter(
        options.adapter, options.folder, options.form, options.base, options.revision, options.overwrite
    )
    print(
        f"{done.folder}: {done.size_bytes / 1e6:.1f} MB; a fresh process without peft-audio got the recorded logits, "
        f"to {done.difference:.0e} (allowed: {done.tolerance:.0e})"
    )
    return 0
