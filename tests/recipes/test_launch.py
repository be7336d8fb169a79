"""The first command of the README, as the launcher reads it."""

from __future__ import annotations

import logging
import re
import shlex
from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

ROOT = Path(__file__).parents[2]


def test_the_first_command_of_the_readme_prints_nothing_of_the_launcher(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    block = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[0]
    assert "\npython recipes/lora.py " in block
    (command,) = re.findall(r"accelerate launch (.*)", block)
    monkeypatch.chdir(ROOT)
    for name in ("OMP_NUM_THREADS", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)

    def read(words: list[str]) -> tuple[int, bool, str, list[str]]:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            options, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
        return options.num_processes, options.quiet, options.training_script, [each.message for each in caplog.records]

    # Of a failed run, --quiet leaves out the traceback of the launcher.
    assert read(shlex.split(command)) == (1, True, "recipes/lora.py", [])
    assert "had defaults used instead" in read(["recipes/lora.py"])[3][0]
