"""Damage files at random, and see that reading each works or ends in a clear refusal.

    python tests/robustness/fuzz.py audio yaml manifests json safetensors --minutes 10 --seed 0 --table
    python tests/robustness/fuzz.py yaml --seed 0 --input 1234          # one input again, with what it said

Each input either works or raises UserError or AudioError with a short message; within 5 s; no file is made or changed
outside the folder given, nothing is asked of the network, no process is started, and no process dies. The inputs of a
target are tried in a child process that writes down each one before it tries it, so that a decoder's crash is known by
its input; a new child goes on behind it. An input that breaks the promise is kept in the folder and listed, and comes
again with its seed and number (but for OGG files, to which libsndfile gives a number of their own in each run).
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # run as a script, too

ROOT = Path(__file__).parents[2]
SLOW_SECONDS = 5.0
HANG_SECONDS = 30.0
MEMORY_BYTES = 8 * 2**30
MOST_FINDINGS = 1_000
GOOD = ("accepted", "refused")
HUNG = "HUNG"


@dataclass
class Found:
    """What became of the inputs of a target.

    Attributes:
        tried: How many there were; those that killed their process are neither accepted nor refused.
        accepted: That could be read.
        refused: In words.
        last: The number of the last one.
        seconds: That they took, without those that the process waited for a core.
        slowest: The longest of them, in seconds.
        kinds: By kind of finding, how often, and the first input.
    """

    tried: int = 0
    accepted: int = 0
    refused: int = 0
    last: int = -1
    seconds: float = 0.0
    slowest: float = 0.0
    kinds: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, number: int, what: str) -> None:
        """Count a finding."""
        count, first = self.kinds.get(what, (0, number))
        self.kinds[what] = (count + 1, first)


def main() -> int:
    """Fuzz what the command line names; the exit code says whether there were findings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="+", metavar="TARGET", help="audio, yaml, manifests, json or safetensors")
    parser.add_argument("--minutes", type=float, default=10.0, help="for each target; waiting for a core not counted")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where inputs and findings go; a new temporary one when not given")
    parser.add_argument("--input", type=int, help="try this one alone, here")
    parser.add_argument("--table", action="store_true", help="print a table as Markdown at the end")
    parser.add_argument("--child", type=int, metavar="FIRST", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    root = (options.folder or Path(tempfile.mkdtemp(prefix="fuzz-"))).resolve()
    if options.child is not None:
        try_many(options.targets[0], options.seed, options.child, options.seconds, root)
        return 0
    if options.input is not None:
        prepare(options.targets[0], root)
        import_all(options.targets[0])
        print(try_one(options.targets[0], options.seed, options.input, root))
        print((root / "said.txt").read_text() if (root / "said.txt").exists() else "")
        return 0
    rows, broken = [], 0
    for target in options.targets:
        found = fuzz(target, options.minutes * 60, options.seed, root)
        broken += len(found.kinds)
        row = f"| {target} | {found.seconds / 60:.1f} | {found.tried:,} | {found.accepted:,} "
        rows.append(row + f"| {found.refused:,} | {found.slowest:.1f} s | {len(found.kinds)} |")
        print(f"{target}: {found.tried} inputs, findings in {root / 'findings'}: {len(found.kinds)}", flush=True)
        for what, (count, first) in sorted(found.kinds.items()):
            print(f"  {count} times, first input {first}: {what}", flush=True)
    if options.table:
        print("| target | minutes | inputs | accepted | refused | slowest | findings |\n|---|--:|--:|--:|--:|--:|--:|")
        print("\n".join(rows))
    return int(broken > 0)


def prepare(target: str, root: Path) -> None:
    """The sound files of a target, once."""
    from robustness.fuzz_targets import TARGETS

    if not (root / target).exists():
        (root / target).mkdir(parents=True)
        TARGETS[target].prepare(root / target)
    for name in ("empty", "findings", "tmp"):
        (root / name).mkdir(exist_ok=True)


def import_all(target: str) -> None:
    """What inputs need, before any is tried: libraries make folders of their own as they are imported."""
    from robustness.fuzz_targets import TARGETS

    for module in TARGETS[target].modules:
        importlib.import_module(module)


def try_one(target: str, seed: int, number: int, root: Path) -> str:
    """What became of one input, see `attempt`; the same for the same seed and number."""
    from robustness.fuzz_promise import attempt
    from robustness.fuzz_targets import TARGETS

    os.chdir(root / "empty")
    rng = random.Random(f"{target} {seed} {number}")
    return attempt(lambda place: TARGETS[target].draw(rng, place), root / target)


def fuzz(target: str, seconds: float, seed: int, root: Path) -> Found:
    """Try inputs for so long, in as many processes as it takes."""
    found, hung = Found(), None
    prepare(target, root)
    while found.seconds < seconds and sum(count for count, _ in found.kinds.values()) < MOST_FINDINGS:
        command = [sys.executable, __file__, target, "--seed", str(seed), "--folder", str(root)]
        command += ["--child", str(found.last + 1), "--seconds", str(seconds - found.seconds)]
        died = watch(command, root, found, HANG_SECONDS)
        if died.startswith(HUNG) and found.last != hung:  # once more: the disk may have been busy
            hung = found.last
            found.last, found.tried = found.last - 1, found.tried - 1
        elif died:
            found.add(found.last, died)
            keep(target, found.last, root)
    return found


def keep(target: str, number: int, root: Path) -> None:
    """The input of a finding, under its number."""
    aside = root / "findings" / f"{target}-{number}"
    shutil.copytree(root / target / "input", aside, dirs_exist_ok=True, symlinks=True)


def watch(command: Sequence[str], root: Path, found: Found, hang_seconds: float) -> str:
    """Run a child to its end, counting what it writes into `journal.jsonl`; how it died, if it did."""
    journal, log = root / "journal.jsonl", root / "child.log"
    journal.unlink(missing_ok=True)
    settings = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    settings |= {"TMPDIR": str(root / "tmp"), "HF_HOME": str(root / "tmp"), "MPLCONFIGDIR": str(root / "tmp")}
    settings |= {"PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
    with log.open("w") as output:
        child = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | settings)
        size, grown, hung = 0, 0.0, False
        while child.poll() is None:
            time.sleep(0.1)
            now, at = journal.stat().st_size if journal.exists() else 0, time.monotonic() - waited(str(child.pid))
            if now != size:
                size, grown = now, at
            elif size and at - grown > hang_seconds:
                hung = True
                child.kill()
                child.wait()
    before = found.tried
    count(journal, found)
    if child.returncode == 0:
        return ""
    if found.tried == before:
        raise RuntimeError(f"a child could not begin: {log.read_text()[-2_000:]}")
    where = next((line.strip() for line in log.read_text().splitlines() if "peft_audio/" in line), "")
    return f"{HUNG} for {hang_seconds:g} s" if hung else f"DIED with {child.returncode} {where.rpartition('/')[2]}"


def count(journal: Path, found: Found) -> None:
    """Add what a child wrote down."""
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.exists() else ():
        entry = json.loads(line)
        found.last = entry["input"]
        if "outcome" not in entry:
            found.tried += 1
            continue
        found.seconds += entry["seconds"]
        found.slowest = max(found.slowest, entry["seconds"])
        found.accepted += entry["outcome"] == "accepted"
        found.refused += entry["outcome"] == "refused"
        if entry["outcome"] not in GOOD:
            found.add(entry["input"], entry["outcome"])


def try_many(target: str, seed: int, first: int, seconds: float, root: Path) -> None:
    """The child: one input after another, each written down before and after."""
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    import_all(target)
    journal = os.open(root / "journal.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    kept: Counter[str] = Counter()
    number, spent = first, 0.0
    while spent < seconds:
        os.write(journal, f'{{"input": {number}}}\n'.encode())
        outcome, took = timed(target, seed, number, root)
        if took > SLOW_SECONDS:  # once more: the machine may have been busy
            outcome, took = timed(target, seed, number, root)
        if took > SLOW_SECONDS:
            outcome = f"SLOW: over {SLOW_SECONDS:g} s, twice"
        line = {"input": number, "outcome": outcome, "seconds": round(took, 4)}
        spent += took
        os.write(journal, (json.dumps(line) + "\n").encode())
        if outcome not in GOOD:
            kept[outcome] += 1
            if kept[outcome] <= 2:
                keep(target, number, root)
        number += 1


def timed(target: str, seed: int, number: int, root: Path) -> tuple[str, float]:
    """What became of an input, and in how many seconds; those that this process waited for a core are not counted."""
    began = time.monotonic() - waited("self")
    outcome = try_one(target, seed, number, root)
    return outcome, time.monotonic() - waited("self") - began


def waited(process: str) -> float:
    """Seconds that Linux let a process wait while others ran; 0 where it does not say."""
    try:
        return int(Path(f"/proc/{process}/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.exit(main())
