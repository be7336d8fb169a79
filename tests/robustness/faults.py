"""Let things go wrong in runs, one at a time, and see that each is told in words.

    python tests/robustness/faults.py --out faults.md
    python tests/robustness/faults.py --only disk resume

Each row is a recipe in a process of its own with one fault in it: a bad input, or something that breaks at work. What
counts: the exit code; no traceback; a message that names the thing and the way out; no file outside the run's folder
but its lock; a finished run where the fault is none that stops it, and none elsewhere. Processes are forked from one
that has imported torch, but for those that ask a Hub, which is a stand-in on this machine. Clips and encoder are
generated. The exit code is 1 where a row does not keep this.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # run as a script, too
from robustness import fault_bases, fault_inputs, fault_resumes, fault_runs, fault_signals
from robustness.fault_cases import Case
from robustness.fault_stage import Theatre, UntestableError, open_theatre

KINDS = (fault_inputs, fault_bases, fault_runs, fault_signals, fault_resumes)
CASES = [case for kind in KINDS for case in kind.CASES]
SHOWN = 200


def main() -> None:
    """Run the cases, and print their table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[""], help="cases whose group or fault holds one of these texts")
    parser.add_argument("--out", type=Path, help="a file for the table as well")
    options = parser.parse_args()
    with_disks_of_its_own()
    lines, broken, began = ["| | fault | what the user sees | exit code |", "|---|---|---|---:|"], 0, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults_") as folder:
        theatre = open_theatre(Path(folder))
        for case in CASES:
            if any(word in f"{case.group}: {case.fault}" for word in options.only):
                row, problems = play(case, theatre)
                broken += bool(problems)
                lines.append(row)
                print("\n".join([row, *(f"    BROKEN: {problem}" for problem in problems)]), flush=True)
    print(f"{len(lines) - 2} rows in {time.monotonic() - began:.0f} s; {broken} of them broken", file=sys.stderr)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.exit(broken > 0)


def with_disks_of_its_own() -> None:
    """Start again where disks can be mounted that are gone with the process, if that is allowed."""
    if sys.platform == "linux" and shutil.which("unshare") and "FAULTS_AGAIN" not in os.environ:
        os.environ["FAULTS_AGAIN"] = "1"
        if os.spawnlp(os.P_WAIT, "unshare", "unshare", "-rm", "true") == 0:
            os.execvp("unshare", ["unshare", "-rm", *sys.orig_argv])


def play(case: Case, theatre: Theatre) -> tuple[str, list[str]]:
    """Run one case; gives its row of the table, and in what it does not keep the promise."""
    stage = theatre.stage("".join(c if c.isalnum() else "-" for c in f"{case.group}-{case.fault}")[:80])
    began = time.monotonic()
    try:
        code = case.play(stage)
    except UntestableError as error:
        return f"| {case.group} | {case.fault} | left out: {error} | |", []
    problems = list(stage.wrong)
    problems += [f"exit code {code}, not {case.code}"] if code != case.code else []
    problems += ["a traceback"] if "Traceback (most recent call last)" in stage.output else []
    problems += [f"{words!r} is not said" for words in case.says if words not in stage.output]
    problems += [f"{name} was made" for name in stage.strays]
    finished = code == 0 if case.finished is None else case.finished
    parts = [stage.root / stage.out / name for name in ("adapter", "report.json")]
    if any(part.exists() != finished for part in parts):
        problems.append(f"{'no' if finished else 'a'} finished run is there")
    if problems:
        problems.append(f"after {time.monotonic() - began:.1f} s it had said:\n{stage.output}")
    row = f"| {case.group} | {case.fault} | {quoted(case, stage.output)} | {code if code >= 0 else f'{128 - code}'} |"
    return row, problems


def quoted(case: Case, output: str) -> str:
    """The error, or else the line that the user is to see, for a cell of a table."""
    lines = output.splitlines()
    error = next((i for i, line in enumerate(lines) if line.startswith("error")), None)
    said = lines[error:] if error is not None else [line for line in lines if case.says[0] in line][:1]
    shown = " ".join(" ".join(said).split()).replace("|", "/").replace("`", "'")
    return f"`{shown if len(shown) <= SHOWN else shown[: SHOWN - 2].rstrip() + ' …'}`"


if __name__ == "__main__":
    main()
