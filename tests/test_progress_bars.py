from __future__ import annotations

import sys
from types import ModuleType

import pytest

from peft_audio.progress import progress_bar


@pytest.mark.parametrize("watched", ["terminal", "notebook", ""])
def test_a_bar_is_shown_where_somebody_sees_it(
    watched: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: watched == "terminal")
    if watched == "notebook":
        monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    with progress_bar("reading", 4, done=1) as bar:
        bar.update(2)
        with bar.external_write_mode():
            print("a line")
    said = capsys.readouterr()
    assert said.out == "a line\n"
    assert ("reading:  25%" in said.err and "3/4" in said.err) == bool(watched)


def test_a_late_bar_stays_away_from_short_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for delay in (0.0, 60.0):
        with progress_bar("embedding", 2, delay_seconds=delay) as bar:
            bar.update(2)
        assert ("embedding" in capsys.readouterr().err) == (delay == 0)
