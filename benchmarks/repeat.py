"""Run a recipe for several seeds, and perhaps several values of one setting, and print mean and spread.

    python benchmarks/repeat.py                                            # LoRA on the bundled digits, five seeds
    python benchmarks/repeat.py --flag train.learning_rate --values 5e-4 1e-3 2e-3 --seeds 2 --validation-only

Each run is the process that a user would start; earlier runs in the same folders are replaced. Settings are chosen
with `--validation-only`, which leaves the test split unread.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

RECIPE = Path(__file__).parent.parent / "recipes" / "lora.py"


def main() -> None:
    """Run them all, and print a row a value."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="train.seed goes from 0 to this minus 1 (default: 5)")
    parser.add_argument("--flag", help="a setting to vary, such as train.learning_rate")
    parser.add_argument("--values", nargs="+", default=[""], help="its values")
    parser.add_argument("--validation-only", action="store_true", help="do not read the test split")
    parser.add_argument("--out", type=Path, default=Path("runs/repeat"), help="folder for the runs")
    parser.add_argument("settings", nargs="*", help="more flags for every run, after a --")
    options = parser.parse_args()
    print("| setting | test accuracy | test macro-F1 | validation macro-F1 | trained | adapter | seconds | clips/s |")
    print("|---|---|---|---|---|---|---|---|")
    for value in options.values:
        extra = [*options.settings, *([f"--{options.flag}", value] if options.flag else [])]
        if options.validation_only:
            extra += ["--train.evaluate_test", "false"]
        name = f"{options.flag}={value}" if options.flag else "defaults"
        reports = [run(options.out / name / str(seed), seed, extra) for seed in range(options.seeds)]
        print(table_row(name, reports), flush=True)


def run(folder: Path, seed: int, extra: list[str]) -> dict[str, Any]:
    """Make one run; its report."""
    flags = ["--train.output_dir", str(folder), "--train.overwrite", "true", "--train.seed", str(seed), *extra]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--num_processes", "1", str(RECIPE)]
    done = subprocess.run([*launch, *flags], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(flags)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return json.loads((folder / "report.json").read_text())


def table_row(name: str, reports: list[dict[str, Any]]) -> str:
    """A Markdown row: mean, standard deviation and range over seeds."""

    def spread(key: str) -> str:
        values = [report[key] for report in reports]
        if values[0] is None:
            return "not read"
        deviation = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
        return f"{mean(values):.3f}{deviation} ({min(values):.3f} to {max(values):.3f})"

    first = reports[0]
    seconds = mean(report["total_seconds"] for report in reports)
    speed = mean(report["samples_per_second"] for report in reports)
    return (
        f"| {name} | {spread('test_accuracy')} | {spread('test_macro_f1')} | {spread('validation_macro_f1')} "
        f"| {first['trainable_parameters']:,} | {first['adapter_bytes'] / 1000:.0f} kB | {seconds:.0f} | {speed:.0f} |"
    )


if __name__ == "__main__":
    main()
