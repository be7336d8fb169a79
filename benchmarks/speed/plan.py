"""Compare plans with what comparisons took.

    python benchmarks/speed/plan.py --esc10 FOLDER --minutes 4

Plans a small comparison of the bundled digits, of ESC-10 and of a long-tailed set made of the digits, each in a fresh
folder, and then runs it. Prints one Markdown row per comparison: time to plan, planned time, real time, real over
planned, and how many CPUs other programs used during the timing and during the comparison. `--minutes M` adds a default
comparison of the digits that was cut to fit into M minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from peft_audio.data.sources import BUNDLED
from peft_audio.processes import cpu_seconds, family_cpu_seconds, python_command

ROOT = Path(__file__).parents[2]
SMALL = ["--arms", "[head_only, lora, full, log_mel, majority]", "--seeds", "2", "--trials", "2", "--extra_trials", "0"]
SMALL += ["--train.epochs", "2"]


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--esc10", type=Path, help="folder of ESC-10, one subfolder per class")
    parser.add_argument("--minutes", type=float, help="also cut a default comparison of the digits to so many minutes")
    parser.add_argument("--only", nargs="*", help="comparisons to make, such as bundled; all by default")
    options = parser.parse_args()
    print("| data | plan took, s | planned, s | real, s | real / planned | other CPUs, planning | comparing |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, flags in cases(Path(folder), options.esc10, options.minutes).items():
            if not options.only or name in options.only:
                # A folder of its own for the features: none is left from an earlier comparison.
                own = [
                    *flags,
                    "--output_dir",
                    f"{folder}/{len(name)}",
                    "--prefix_cache.folder",
                    f"{folder}/cache{name}",
                ]
                print(row(name, own), flush=True)


def cases(folder: Path, esc10: Path | None, minutes: float | None) -> dict[str, list[str]]:
    """Return the flags of each comparison, by name."""
    found = {"bundled": [*SMALL, "--data.max_train_clips", "240"]}
    if esc10:
        found["ESC-10"] = [*SMALL, "--data.source", str(esc10), "--data.group_pattern", r"^\d-(\d+)"]
        found["ESC-10"] += ["--data.max_train_clips", "100", "--data.max_eval_seconds", "5"]
    found["long-tailed"] = [*SMALL, "--data.source", str(long_tailed(folder / "tail"))]
    if minutes:
        found[f"cut to {minutes:g} min"] = ["--minutes", f"{minutes:g}"]
    return found


def long_tailed(folder: Path) -> Path:
    """Write digits as files, of which each class has a third fewer than the one before."""
    rows = pq.read_table(BUNDLED / "train.parquet").to_pylist()
    for number, label in enumerate(sorted({row["label"] for row in rows})):
        (folder / label).mkdir(parents=True)
        own = [row for row in rows if row["label"] == label]
        for row in own[: max(4, round(len(own) * 0.67**number))]:
            (folder / label / f"{row['id']}.flac").write_bytes(row["audio"]["bytes"])
    return folder


def row(name: str, flags: list[str]) -> str:
    """Plan a comparison, run it, and write both times as a Markdown row."""
    began = time.perf_counter()
    command = python_command(["-m", "peft_audio.cli", "plan", "--json", *flags])
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    planning = time.perf_counter() - began
    if ended.returncode:
        sys.exit(ended.stderr)
    planned: dict[str, Any] = json.loads(ended.stdout)
    folder = Path(flags[flags.index("--output_dir") + 1])
    timing = json.loads((folder / "timing.json").read_text(encoding="utf-8"))
    real, others = compare(flags)
    least, most = planned["seconds"]
    expected = f"{most:.0f}" if least == most else f"{least:.0f} to {most:.0f}"
    ratio = real / most if real > most else real / least if real < least else 1.0
    figures = [
        f"{planning:.0f}",
        expected,
        f"{real:.0f}",
        f"{ratio:.2f}",
        f"{timing['other_cpus']:.1f}",
        f"{others:.1f}",
    ]
    return f"| {name} | {' | '.join(figures)} |"


def compare(flags: list[str]) -> tuple[float, float]:
    """Run a comparison; return its time, and the mean number of CPUs that other programs kept busy."""
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
    return seconds, (cpu_seconds() - before - own) / seconds


if __name__ == "__main__":
    main()
