"""Every row of faults.py and hostile.py; a few of them are in the default run (tests/runs/test_run_faults.py)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from robustness import faults, hostile
from robustness.fault_cases import Case
from robustness.fault_stage import Theatre, open_theatre

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def theatre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Theatre]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OMP_NUM_THREADS", "HF_HUB_OFFLINE", "HF_ASSETS_CACHE"):
            patch.setenv(name, "1")  # what the theatre sets is put back
        yield open_theatre(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("case", faults.CASES, ids=lambda case: f"{case.group}: {case.fault}")
def test_a_fault_is_reported(case: Case, theatre: Theatre) -> None:
    row, problems = faults.play(case, theatre)
    assert not problems, row
    if "| left out: " in row:
        pytest.skip(row)


@pytest.mark.skipif(not hostile.DATA.is_dir(), reason=f"needs recordings of FSDD and ESC-10 in {hostile.DATA.name}/")
@pytest.mark.timeout(1200)
def test_hostile_collections_end_in_words(tmp_path: Path) -> None:
    command = [sys.executable, hostile.__file__, "--out", str(tmp_path / "hostile.md")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
