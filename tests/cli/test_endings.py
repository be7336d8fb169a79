"""How the `peft-audio` command ends: one line for the user, the traceback where it is asked for."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

from peft_audio.cli import main


def raising(error: BaseException) -> Callable[..., Any]:
    def run(*_: Any) -> Any:
        raise error

    return run


def test_ctrl_c_prints_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peft_audio.cli.cache.run_cache", raising(KeyboardInterrupt()))
    assert main(["cache"]) == 130
    assert capsys.readouterr().err == "stopped.\n"


@pytest.mark.parametrize(
    ("words", "variable", "shown"),
    [
        (["cache"], "", False),
        (["cache"], "1", True),
        (["--debug", "cache"], "", True),
        (["cache", "--debug"], "", True),
    ],
)
def test_debug_shows_the_traceback(
    words: list[str],
    variable: str,
    shown: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PEFT_AUDIO_DEBUG", variable)
    gone = FileNotFoundError(errno.ENOENT, "No such file or directory", "assets/a.html")
    monkeypatch.setattr("peft_audio.cli.cache.run_cache", raising(gone))
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("error: assets/a.html does not exist")
    assert said.startswith("Traceback (most recent call last)") is shown
