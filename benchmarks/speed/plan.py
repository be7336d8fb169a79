"""Compare planned and real durations of comparisons.

    python benchmarks/speed/plan.py --esc10 FOLDER --minutes 4

Plans a small comparison of the bundled digits, of ESC-10 and of a long-tailed set made of the digits, each in a fresh
folder, and then runs it. Prints one Markdown row per comparison: time to plan, planned time, real time, real over
planned, and how many CPUs other programs used during the comparison. `--minutes M` adds a default comparison of the
digits that was cut to fit into M minutes.

On a busy machine, `--cpu-time` compares CPU time instead: one run after the other with one thread, which on a quiet
machine takes about as long as the CPU time that it needs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

import pyarrow.parquet as pq

from peft_audio.comparison import budget
from peft_audio.comparison import plan as planning
from peft_audio.comparison.collect import with_commits
from peft_audio.comparison.settings import CompareRecipe
from peft_audio.config import parse_config
from peft_audio.data.sources import BUNDLED
from peft_audio.processes import cpu_seconds, family_cpu_seconds, python_command
from peft_audio.training.hardware import resolve_auto

ROOT = Path(__file__).parents[2]
SMALL = ["--arms", "[head_only, lora, log_mel]", "--reference", "lora", "--seeds", "2", "--trials", "2"]
SMALL += ["--extra_trials", "0", "--train.epochs", "3"]
TIMED = "--timed-arms"  # first argument of the process that times the arms by CPU time


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--esc10", type=Path, help="folder of ESC-10, one subfolder per class")
    parser.add_argument("--minutes", type=float, help="also cut a default comparison of the digits to this time")
    parser.add_argument("--only", nargs="*", help="comparisons to make, such as bundled; all by default")
    parser.add_argument("--cpu-time", action="store_true", help="compare CPU time of one thread, for busy machines")
    options = parser.parse_args()
    if options.cpu_time:
        os.environ["OMP_NUM_THREADS"] = "1"
        planning.python_command = lambda arguments: python_command([__file__, TIMED, *arguments[2:]])
    print("| data | plan took, s | planned, s | real, s | real / planned | other CPUs |")
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, flags in cases(Path(folder), options.esc10, options.minutes).items():
            if not options.only or name in options.only:
                own = ["--output_dir", f"{folder}/{name}", "--prefix_cache.folder", f"{folder}/features of {name}"]
                own += ["--jobs", "1"] if options.cpu_time else []
                print(row(name, [*flags, *own], options.cpu_time), flush=True)


def cases(folder: Path, esc10: Path | None, minutes: float | None) -> dict[str, list[str]]:
    """Return the flags of each comparison, by name."""
    found = {"bundled": [*SMALL, "--data.max_train_clips", "240"]}
    if esc10:
        found["ESC-10"] = [*SMALL, "--data.source", str(esc10), "--data.max_train_clips", "100"]
        found["ESC-10"] += ["--data.max_seconds", "1"]
    found["long-tailed"] = [*SMALL, "--data.source", str(long_tailed(folder / "tail"))]
    if minutes:
        found[f"cut to {minutes:g} min"] = ["--minutes", f"{minutes:g}"]
    return found


def long_tailed(folder: Path) -> Path:
    """Write digits as files, with a third fewer clips in each class than in the one before."""
    rows = pq.read_table(BUNDLED / "train.parquet").to_pylist()
    for number, label in enumerate(sorted({row["label"] for row in rows})):
        (folder / label).mkdir(parents=True)
        own = [row for row in rows if row["label"] == label]
        for row in own[: max(4, round(len(own) * 0.67**number))]:
            (folder / label / f"{row['id']}.flac").write_bytes(row["audio"]["bytes"])
    return folder


def row(name: str, flags: list[str], cpu_time: bool) -> str:
    """Plan a comparison, run it, and write both times as a Markdown row."""
    cfg = parse_config(CompareRecipe, flags)
    began = time.perf_counter()
    with redirect_stdout(sys.stderr):
        cfg = with_commits(cfg)
        cfg = resolve_auto(cfg, cfg.has_one_encoder())
        timing = planning.measure(cfg)
        cfg, settings = budget.fit(cfg, timing)
    planned = planning.plan(cfg, timing, settings)
    took = time.perf_counter() - began
    # With this folder, an earlier timing is used even if it was made on a busy machine.
    (Path(cfg.output_dir) / "runs").mkdir(exist_ok=True)
    wall, own, others = compare(flags)
    real = own if cpu_time else wall
    least, most = planned.seconds
    expected = f"{most:.0f}" if least == most else f"{least:.0f} to {most:.0f}"
    ratio = real / most if real > most else min(1.0, real / least)
    return f"| {name} | {took:.0f} | {expected} | {real:.0f} | {ratio:.2f} | {others:.1f} |"


def compare(flags: list[str]) -> tuple[float, float, float]:
    """Run a comparison; return its time, its CPU time, and the mean number of CPUs that other programs kept busy."""
    before, own, began = cpu_seconds(), 0.0, time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        command = python_command([str(ROOT / "recipes" / "compare.py"), *flags])
        child = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
        while child.poll() is None:
            own = max(own, family_cpu_seconds(child.pid))
            time.sleep(0.5)
        seconds = time.perf_counter() - began
        if child.returncode > 1:
            output.seek(0)
            sys.exit(output.read())
    return seconds, own, (cpu_seconds() - before - own) / seconds


def time_by_cpu(asked: str, written: str) -> None:
    """Time the arms with the CPU time of this process and its children as the clock."""
    spawned = json.loads(Path(asked).read_text(encoding="utf-8"))["spawned"]
    time.perf_counter = lambda: sum(os.times()[:4])
    time.time = lambda: spawned + time.perf_counter()
    from peft_audio.comparison import timing

    sys.argv = ["timing", asked, written]
    timing.main()


if __name__ == "__main__":
    time_by_cpu(*sys.argv[2:]) if sys.argv[1:2] == [TIMED] else main()
