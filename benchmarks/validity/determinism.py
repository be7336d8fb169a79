"""Test whether equal commands give equal bits, and measure the cost of `train.deterministic`.

    python benchmarks/validity/determinism.py --device cuda --encoder base --seconds 8
    python benchmarks/validity/determinism.py --cases lora --repeats 2

Each case of tests/robustness/chaos.py runs several times with the setting off, then on. Each runs in its own process,
with no other work beside it. The first run of a process is a warm-up, whose bits count but not its time.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import sys
import tempfile
from pathlib import Path
from statistics import median

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from robustness.chaos import CASES, about, unlike
from robustness.forked import RECIPES, make_base, make_data

DEFAULT_CASES = ["lora", "lora, bf16", "lora, nf4", "head only", "last layer, accumulation", "full, 8-bit optimizer"]
# Flags after those of the case: without checkpoints, and without work for a second process.
LAST = ["--train.checkpoint_every_steps", "1000000", "--train.verify_adapter", "false", "--prefix_cache.use", "never"]


def main() -> None:
    """Run all cases, and print one row per case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=DEFAULT_CASES, help="default: six of them")
    parser.add_argument("--repeats", type=int, default=4, help="runs of each case (default: 4)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    parser.add_argument("--encoder", choices=["small", "base"], default="small", help="base has wav2vec2-base's sizes")
    parser.add_argument("--seconds", type=float, default=0.6, help="length of the longest clip (default: 0.6)")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        name, deterministic, folder = options.measure
        print(json.dumps(measure(name, deterministic, Path(folder), options.repeats)))
        return
    # Imported here, so that the measuring process imports no more than a recipe.
    sys.path.append(str(Path(__file__).parents[1] / "speed"))
    from machine import run

    lines = [f"{about(options.device)}; encoder: {options.encoder}, clips to {options.seconds} s", ""]
    lines += ["| case | bit-identical | with train.deterministic | seconds with / without |", "|---|---|---|---:|"]
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    os.environ |= {"ACCELERATE_USE_CPU": "true"} if options.device == "cpu" else {}
    with tempfile.TemporaryDirectory(prefix="determinism_") as folder:
        make_data(Path(folder, "data"), options.seconds)
        make_base(Path(folder, "base"), options.encoder == "base")
        for name in options.cases:
            command = [sys.executable, __file__, "--repeats", str(options.repeats), "--measure", name]
            off, on = (json.loads(run([*command, word, folder]).splitlines()[-1]) for word in ("false", "true"))
            same = ["yes" if each["same"] else "no" for each in (off, on)]
            lines.append(f"| {name} | {same[0]} | {same[1]} | {on['seconds'] / off['seconds']:.2f} |")
            print(lines[-1], file=sys.stderr)
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def measure(name: str, deterministic: str, folder: Path, repeats: int) -> dict[str, float | bool]:
    """Repeat a run in this process, and return whether all files are equal, and the median seconds in steps."""
    recipe, flags, _ = CASES[name]
    runs = [folder / f"{recipe}-{deterministic}-{i}" for i in range(repeats)]
    for run_folder in runs:
        sys.argv = [recipe, "--data.source", str(folder / "data"), "--model.name", str(folder / "base")]
        sys.argv += ["--train.epochs", "3", "--train.batch_size", "6", *flags, *LAST, "--train.overwrite", "true"]
        sys.argv += ["--train.deterministic", deterministic, "--train.output_dir", str(run_folder)]
        runpy.run_path(str(RECIPES / f"{recipe}.py"), run_name="__main__")
    seconds = [json.loads((one / "report.json").read_text())["train_seconds"] for one in runs[1:]]
    return {"same": not any(unlike(runs[0], other) for other in runs[1:]), "seconds": median(seconds)}


if __name__ == "__main__":
    main()
