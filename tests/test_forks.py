"""Forked processes of tests behave as fresh ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.forks import CAN_FORK, IMPORTED, Child, run_python, stand_in, start_python
from helpers.recipe_runs import ROOT, settings
from robustness import chaos

SHOW = (
    "import os, sys; print(sys.argv, sys.path[0], os.getcwd(), os.environ['X'], os.getsid(0) == os.getpid(), __name__)"
)
pytestmark = pytest.mark.skipif(not CAN_FORK, reason="processes are forked on Linux only")


def test_arguments_folder_environment_streams_and_exit_code(tmp_path: Path) -> None:
    (tmp_path / "shows.py").write_text(SHOW + "; print(__file__, file=sys.stderr); sys.exit(7)")
    by_code = run_python("-c", SHOW, "a b", env=os.environ | {"X": "1"}, cwd=tmp_path)
    assert (by_code.returncode, by_code.stderr) == (0, "")
    assert by_code.stdout == f"['-c', 'a b']  {tmp_path} 1 True __main__\n"
    by_file = run_python("shows.py", env=os.environ | {"X": "2"}, cwd=tmp_path)
    assert by_file.returncode == 7
    assert by_file.stdout == f"['shows.py'] {tmp_path} {tmp_path} 2 True __main__\n"
    assert by_file.stderr == "shows.py\n"
    by_module = run_python("-m", "shows", env=os.environ | {"X": "3"}, cwd=tmp_path)
    assert (by_module.returncode, by_module.stderr) == (7, f"{tmp_path / 'shows.py'}\n")
    failed = run_python("-c", "1 / 0")
    assert failed.returncode == 1 and failed.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_it_has_imported_but_is_random_by_itself() -> None:
    code = "import sys; given = set(sys.modules); import random, numpy, torch, uuid\n"
    code += f"assert {set(IMPORTED)} <= given, given\n"
    code += "assert {name for name in given if 'peft_audio' in name} <= {'peft_audio', 'peft_audio.processes'}\n"
    code += "print(random.random(), numpy.random.rand(), torch.rand(1).item())"
    drawn = [run_python("-c", code) for _ in range(2)]
    assert [one.returncode for one in drawn] == [0, 0], drawn[0].stderr
    assert not set(drawn[0].stdout.split()) & set(drawn[1].stdout.split())


def test_signals_reach_it_and_end_its_stand_in_alike() -> None:
    sleeps = "import time; time.sleep(60)"
    for number in (signal.SIGKILL, signal.SIGTERM):
        child = start_python("-c", sleeps)
        assert isinstance(child, Child)
        child.send_signal(number)
        assert child.wait(20) == -number
    # What starts the stand-in without knowing it, as a comparison does, ends the process too.
    child = start_python("-c", sleeps)
    assert isinstance(child, Child)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait(20) == -signal.SIGKILL
    until = time.monotonic() + 20
    while Path(f"/proc/{child.real_pid}").exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert not Path(f"/proc/{child.real_pid}").exists()


def test_its_own_processes_are_forked_and_what_a_fork_cannot_do_is_started_really() -> None:
    asks = "import subprocess, sys; print(subprocess.run([sys.executable, *{}], capture_output=True, text=True).stdout)"
    where = "import sys; print(sys.executable, 'torch' in sys.modules)"
    assert run_python("-c", asks.format(["-c", where])).stdout.split() == [stand_in(), "True"]
    assert run_python("-S", "-c", where).stdout.split() == [sys.executable, "False"]
    assert run_python("-c", where, env=os.environ | {"HF_HOME": "/elsewhere"}).stdout.split()[1] == "False"


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_a_recipe_that_is_forked_gives_the_bits_of_a_fresh_process(
    tone_folder: Path, tiny_base: Path, tmp_path: Path
) -> None:
    recipe = str(ROOT / "recipes" / "lora.py")
    flags = [*settings(tone_folder, tiny_base, tmp_path / "run"), "--train.epochs", "1", "--lora.dropout", "0.1"]
    flags += ["--train.verify_adapter", "false", "--train.output_dir"]
    forked = run_python(recipe, *flags, tmp_path / "forked")
    fresh = subprocess.run(
        [sys.executable, recipe, *flags, str(tmp_path / "fresh")], capture_output=True, text=True, check=False
    )
    assert (forked.returncode, forked.stderr) == (fresh.returncode, fresh.stderr) == (0, "")
    assert chaos.unlike(tmp_path / "fresh", tmp_path / "forked") == []
    assert forked.stdout.count("epoch 1/1") == fresh.stdout.count("epoch 1/1") == 1
