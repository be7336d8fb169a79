"""Print the output of `peft-audio check` and of a training run for collections with one fault each.

    python tests/robustness/hostile.py                                 # print the table
    python tests/robustness/hostile.py --out docs/hostile.md           # and write the page

Each row is a clean base of real clips (120 spoken digits) with one fault on top. `check` sees each fault alone. The
recipe runs as a user would start it, twice where it offers to skip clips; rows of one group share a collection, so that
a few minutes are enough. The exit code is 1 if anything crashed or hung.
"""

from __future__ import annotations

import argparse
import csv
import faulthandler
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import soundfile

from peft_audio.cli import main as peft_audio

sys.path.append(str(Path(__file__).parents[1]))  # run as a script, too
from robustness.hostile_cases import CASES, Case, UntestableError, reads_anything

ROOT = Path(__file__).parents[2]
# Recordings of FSDD and ESC-10, in fsdd/ and esc10/; not in this repository.
DATA = ROOT.parent / "shared" / "data"
RECIPE = ROOT / "recipes" / "head_only.py"
SHORT = ["--train.max_steps", "2", "--train.epochs", "1", "--train.evaluate_test", "false"]
CHECK_SECONDS, TRAIN_SECONDS = 60, 180  # longer than this is a hang
MOST_SHOWN = 2
PAGE = """# A hostile collection

Each row is a clean collection of real clips with one fault. It shows the output of `peft-audio check` and of
training with `recipes/head_only.py`. `python tests/robustness/hostile.py --out docs/hostile.md` makes this page in
some minutes.

`check` exits with 0 if nothing spoils a comparison, 1 if something does, and 2 if there is nothing to check. The
recipe runs for two steps with its defaults (`--data.on_bad_clip error`), and again with `skip` if it offers that.
Rows with the same word in the last column were trained as one collection. They show the lines of the run that name
the file.

Made with {versions}.

| made | `peft-audio check` | training | |
|---|---|---|---|
{rows}
"""


@dataclass
class Trainable:
    """How a run of the recipe ended."""

    code: int
    output: str
    skipped: frozenset[str] = frozenset()

    @property
    def crashed(self) -> bool:
        """It ended in another way than a run or a message to the user."""
        return self.code not in (0, 2) or "Traceback (most recent call last)" in self.output


def main() -> int:
    """Make the cases, run them, print their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="holds fsdd/ and esc10/")
    parser.add_argument("--out", type=Path, help="write the page here as well")
    parser.add_argument("--only", default="", help="the cases whose group or description holds this text")
    options = parser.parse_args()
    give_up_roots_rights()
    began, crashes, rows = time.perf_counter(), 0, []
    print("| made | `peft-audio check` | training | |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        cases = [case for case in CASES if options.only in case.made or options.only == case.group]
        for group in dict.fromkeys(case.group for case in cases):
            members = [case for case in cases if case.group == group]
            checked = [say_check(case, Path(place, "check"), options.data) for case in members]
            trained = say_training(members, Path(place, "train"), options.data)
            for case, left, right in zip(members, checked, trained, strict=True):
                crashes += sum("CRASHED" in cell or "HUNG" in cell for cell in (left, right))
                rows.append(" | ".join(["", case.made, left, right, group if len(members) > 1 else "", ""]).strip())
                print(rows[-1], flush=True)
    if options.out:
        options.out.write_text(PAGE.format(rows="\n".join(rows), versions=versions()), encoding="utf-8")
    print(f"\n{len(rows)} rows in {time.perf_counter() - began:.0f} s; {crashes} crashed or hung", file=sys.stderr)
    return int(crashes > 0)


def give_up_roots_rights() -> None:
    """Start again without the right to read what permissions forbid, which root has and users have not."""
    rights = "-dac_override,-dac_read_search"
    if reads_anything() and shutil.which("setpriv") and "HOSTILE_AGAIN" not in os.environ:
        os.environ["HOSTILE_AGAIN"] = "1"
        os.execvp("setpriv", ["setpriv", "--bounding-set", rights, "--inh-caps", rights, *sys.orig_argv])


def versions() -> str:
    """What decodes."""
    try:
        import av
    except ImportError:
        return f"libsndfile {soundfile.__libsndfile_version__}, without PyAV"
    return f"libsndfile {soundfile.__libsndfile_version__} and PyAV {av.__version__}"


def say_check(case: Case, root: Path, data: Path) -> str:
    """The verdict of `peft-audio check` on one case."""
    try:
        build([case], root, data)
    except (UntestableError, ModuleNotFoundError) as error:
        return f"left out: {error}"
    out, err = io.StringIO(), io.StringIO()
    faulthandler.dump_traceback_later(CHECK_SECONDS, exit=True)  # threads may hang where an exception cannot reach
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = peft_audio(["check", str(case.source(root)), "--json", *case.flags])
    except SystemExit as error:
        code = int(error.code or 0)
    except Exception as error:
        return f"**CRASHED** {quoted(f'{type(error).__name__}: {error}', root)}"
    finally:
        faulthandler.cancel_dump_traceback_later()
    if code == 2:
        return f"2: {quoted(err.getvalue(), root)}"
    found = json.loads(out.getvalue())
    words = [quoted(note, root) for note in found["notes"]]
    for finding in found["findings"]:
        more = f"; and {len(finding['files']) - MOST_SHOWN} more" if len(finding["files"]) > MOST_SHOWN else ""
        kind = "error" if finding["spoils"] else "warning"
        words.append(
            f"{kind}: {quoted(finding['what'] + ': ' + '; '.join(finding['files'][:MOST_SHOWN]) + more, root)}"
        )
    for name, unit in (("sampling_rates", "Hz"), ("channels", "channels")):
        if len(found[name]) > 1:
            words.append(f"(clips of {' and '.join(sorted(found[name], key=int))} {unit})")
    return f"{code}: {'; '.join(words) or 'nothing'}"


def say_training(cases: Sequence[Case], root: Path, data: Path) -> list[str]:
    """What the recipe did with each of the cases, all in one collection."""
    try:
        named = build(cases, root, data)
    except (UntestableError, ModuleNotFoundError) as error:
        if len(cases) == 1:
            return [f"left out: {error}"]
        return [say for case in cases for say in say_training([case], root, data)]
    source, out = cases[0].source(root), root.with_name("run")
    first = train(source, out, cases[0].flags)
    said = [say_run(names, first, root, len(cases) == 1) for names in named]
    if first.code == 2 and "data.on_bad_clip skip" in first.output:
        second = train(source, out, [*cases[0].flags, "--data.on_bad_clip", "skip"])
        again = [say_run(names, second, root, len(cases) == 1) for names in named]
        said = [f"{one}; with `skip` {other}" for one, other in zip(said, again, strict=True)]
    return said


def train(source: Path, out: Path, flags: Sequence[str]) -> Trainable:
    """Run the recipe."""
    shutil.rmtree(out, ignore_errors=True)
    command = [
        sys.executable,
        str(RECIPE),
        "--data.source",
        str(source),
        "--train.output_dir",
        str(out),
        *SHORT,
        *flags,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TRAIN_SECONDS)
    except subprocess.TimeoutExpired:
        return Trainable(-1, f"HUNG for {TRAIN_SECONDS} s")
    skipped: frozenset[str] = frozenset()
    if (out / "skipped_clips.csv").exists():
        with (out / "skipped_clips.csv").open(newline="", encoding="utf-8") as file:
            skipped = frozenset(row["id"] for row in csv.DictReader(file))
    return Trainable(done.returncode, done.stdout + done.stderr, skipped)


def say_run(names: Sequence[str], run: Trainable, root: Path, alone: bool) -> str:
    """What a run did about the files of one case."""
    lines = [line.strip() for line in run.output.splitlines() if line.strip()]
    if run.crashed:
        return f"**CRASHED** {quoted(lines[-1] if lines else str(run.code), root)}"
    naming = [line for line in lines if any(name in line for name in names)]
    if run.code == 2:
        told = next((line for line in lines if line.startswith("error:")), lines[0])
        how = "stopped" if naming or not names else "stopped, **not naming it**"
        return f"{how}: {quoted((naming or [told])[0], root)}"
    said = "trained"
    if left := [name for name in names if name in run.skipped]:
        said += f", skipped {len(left)}, listed in `skipped_clips.csv`"
    # What a run decided about its source stands between the count of clips and the first epoch.
    begin = next((i for i, line in enumerate(lines) if "classes; clips:" in line), 0)
    end = next((i for i, line in enumerate(lines) if line.startswith("epoch ")), begin)
    notes = [line for line in lines[begin + 1 : end] if alone or line in naming]
    return "; ".join([said, *(quoted(note, root) for note in notes if not note.startswith("skipped"))])


def build(cases: Sequence[Case], root: Path, data: Path) -> list[list[str]]:
    """The base, and on it the faults; for each case the names that a message should hold."""
    shutil.rmtree(root, ignore_errors=True)
    cases[0].base(root, data)
    return [case.make(root=root, data=data) for case in cases]


def quoted(text: str, root: Path) -> str:
    """Someone's own words in a cell of a Markdown table, without this machine's paths."""
    words = " ".join(text.replace(f"{root}/", "").replace(str(root), "SOURCE").split())
    return f"`{words.replace('|', '/').replace('`', '')}`"


if __name__ == "__main__":
    sys.exit(main())
