r"""Run recipes for several seeds or folds, and perhaps several values of one setting, and print mean and spread.

    python benchmarks/repeat.py                                            # the four recipes' defaults, five seeds
    python benchmarks/repeat.py --recipes full --flag train.learning_rate --values 1e-4 3e-4 --seeds 2 --validation-only
    python benchmarks/repeat.py --recipes lora --folds 5 -- --data.source FOLDER --data.group_pattern "^(\d)-"

Each run is the process that a user would start; earlier runs in the same folders are replaced. Settings are chosen
with `--validation-only`, which leaves the test split unread. `--jobs` runs several at once, which makes the seconds of
each longer than they are alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

RECIPES = Path(__file__).parent.parent / "recipes"
NAMES = ("head_only", "last_n_layers", "lora", "full")


def main() -> None:
    """Run them all, and print a row a recipe and value."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = sorted(path.stem for path in RECIPES.glob("*.py"))
    parser.add_argument("--recipes", nargs="+", choices=known, default=NAMES, help=f"default: {', '.join(NAMES)}")
    parser.add_argument("--seeds", type=int, default=5, help="train.seed goes from 0 to this minus 1 (default: 5)")
    parser.add_argument("--folds", type=int, help="instead of seeds: hold out each of so many folds once, with seed 0")
    parser.add_argument("--flag", help="a setting to vary, such as train.learning_rate")
    parser.add_argument("--values", nargs="+", default=[""], help="its values")
    parser.add_argument("--validation-only", action="store_true", help="do not read the test split")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("runs/repeat"), help="folder for the runs")
    parser.add_argument("settings", nargs="*", help="more flags for every run, after a --")
    options = parser.parse_args()
    print("| recipe | test accuracy | test macro-F1 | validation accuracy | trained | saved | seconds | clips/s |")
    print("|---|---|---|---|---|---|---|---|")
    with ThreadPoolExecutor(options.jobs) as pool:
        for recipe in options.recipes:
            for value in options.values:
                extra = [*options.settings, *([f"--{options.flag}", value] if options.flag else [])]
                if options.validation_only:
                    extra += ["--train.evaluate_test", "false"]
                name = f"{recipe}, {options.flag} {value}" if options.flag else recipe
                place = options.out / recipe / (f"{options.flag}={value}" if options.flag else "defaults")
                if options.folds is None:
                    runs = [(recipe, place / str(seed), seed, extra) for seed in range(options.seeds)]
                else:
                    cut = ["--data.num_folds", str(options.folds), "--data.fold"]
                    runs = [(recipe, place / f"fold{i}", 0, [*extra, *cut, str(i)]) for i in range(options.folds)]
                reports = list(pool.map(lambda at: run(*at), runs))
                print(table_row(name, reports), flush=True)


def run(recipe: str, folder: Path, seed: int, extra: list[str]) -> dict[str, Any]:
    """Make one run; its report."""
    flags = ["--train.output_dir", str(folder), "--train.overwrite", "true", "--train.seed", str(seed), *extra]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--num_processes", "1"]
    command = [*launch, str(RECIPES / f"{recipe}.py"), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return json.loads((folder / "report.json").read_text())


def spread(values: list[float | None]) -> str:
    """Mean, standard deviation and range; "not read" where there is nothing."""
    known = [value for value in values if value is not None]
    if not known:
        return "not read"
    deviation = f" ± {stdev(known):.3f}" if len(known) > 1 else ""
    return f"{mean(known):.3f}{deviation} ({min(known):.3f} to {max(known):.3f})"


def table_row(name: str, reports: list[dict[str, Any]]) -> str:
    """A Markdown row: mean, standard deviation and range over seeds or folds."""
    columns = [spread([report[key] for report in reports]) for key in ("test_accuracy", "test_macro_f1")]
    columns += [spread([report["validation_accuracy"] for report in reports])]
    first = reports[0]
    seconds = mean(report["total_seconds"] for report in reports)
    speed = mean(report["samples_per_second"] for report in reports)
    columns += [f"{first['trainable_parameters']:,}", f"{first['adapter_bytes'] / 1000:,.0f} kB"]
    return f"| {name} | {' | '.join(columns)} | {seconds:.0f} | {speed:.0f} |"


if __name__ == "__main__":
    main()
