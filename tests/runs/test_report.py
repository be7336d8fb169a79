"""What the report of a run states about its own figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from peft_audio.runs.report import print_report, read_report

GOLDEN = Path(__file__).parents[1] / "golden" / "run"


def test_scores_that_were_chosen_on_the_test_clips_are_marked(capsys: pytest.CaptureFixture[str]) -> None:
    report = read_report(GOLDEN)
    chosen = replace(report, validation_is_test=True)
    for one in (report, chosen, replace(chosen, steps=0)):
        print_report(one, GOLDEN / "adapter", "clip.wav")
        network_chose = one is chosen
        for shown in (capsys.readouterr().out, one._repr_html_()):
            assert ("chosen on the test clips (data.validate_on_test)" in shown) == network_chose
            assert (f"{report.best_epoch}, chosen on the test clips" in shown) == network_chose
