"""What our recipes cost against what a user writes by hand who follows the documentation (benchmarks/as_documented.py).

    python benchmarks/throughput.py --out throughput.md --json throughput.json
    python benchmarks/throughput.py --strategies lora last-2 --epochs 1 --seconds 5 --repeats 1
    python benchmarks/throughput.py --growth --strategies lora --epochs 4 --batch 1

(a) is the documented script, (b) a recipe as a user starts it: the same clips, batch, precision and epochs, a fresh
process for each measurement, a and b in turn. Base and clips are generated, so nothing is downloaded. It runs on the
GPU where there is one; on a CPU the defaults take hours, so ask for less. `--growth` measures seconds a step against
the length of clips, the batch, the encoder's size and the number of clips, and draws them.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import fields, replace
from pathlib import Path
from statistics import median
from typing import Any

from machine import PRECISIONS, measured, said
from throughput_growth import draw_growth, measure_growth
from throughput_runs import STRATEGIES, Bench, Case, make_base, measure_in_turn, open_bench

COLUMNS = ["strategy", "epochs", "precision", "clips of", "s a step: a", "b", "clips/s: a", "b"]
COLUMNS += ["peak MiB: a", "b", "b / a", "of matrix peak: a", "b", "seconds a / b"]
ABOUT = """a is `Trainer` and PEFT as documented, b our recipe; {batch} clips a step, {clips} an epoch. Seconds hold the
reading of files and, in b, the filling of its cache; neither imports nor the loading of the model. Peak memory is what
the process held by the end of training ({memory}) above one that has only imported what it imports. a / b is the ratio
of the seconds, higher is better: the median of the pairs measured, {repeats} a row (the least to the most).

The share of the matrix peak is the floating-point operations of one plain training step, over the seconds of a step,
over the peak above. A plain step is one forward and backward pass for what the strategy trains, counted by torch's
FlopCounterMode: the whole encoder, eager attention, nothing from a cache, no gradients of or through what is frozen
before the first weight that trains (the CNN trains in `full-cnn` only). It is the same number for a and b: how much of
the machine goes into work that is needed once. Where b takes work from its cache instead, it can pass 100%.

The base: {base}. Dropout, LayerDrop and SpecAugment
of its config are on in all of a, as `Trainer` has it; LayerDrop (0.1 there) skips that share of a's layers, none of
b's."""


def main() -> None:
    """Measure, and print the page or draw the picture."""
    options = parse()
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="throughput_") as folder:
        bench = open_bench(Path(folder), options.threads)
        precisions = options.precisions or [name for name in PRECISIONS if name == "fp32" or bench.machine["fast_bf16"]]
        base = options.base or make_base(bench)
        if options.growth:
            case = Case("", max(options.epochs), precisions[-1], options.seconds[0], options.clips, options.batch, base)
            for run in measure_growth(bench, case, options.strategies, options.repeats, options.longest):
                found.append(run)
                save(options.json, bench, found)
            draw_growth(found, case, bench.machine, options.picture)
            return
        for seconds in options.seconds:
            for epochs in options.epochs:
                for strategy in options.strategies:
                    case = Case(strategy, epochs, "fp32", seconds, options.clips, options.batch, base)
                    cases = [replace(case, precision=precision) for precision in precisions]
                    found += measure_in_turn(bench, cases, options.repeats)
                    save(options.json, bench, found)
        text = page(bench, found, options)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES), help="default: all")
    parser.add_argument("--epochs", nargs="+", type=int, default=[1, 10], help="default: 1 10")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, help="default: fp32, and bf16 where it is fast")
    parser.add_argument("--seconds", nargs="+", type=float, default=[5.0, 30.0], help="of a clip (default: 5 30)")
    parser.add_argument("--clips", type=int, default=16, help="to train on (default: 16)")
    parser.add_argument("--batch", type=int, default=4, help="clips a step (default: 4)")
    parser.add_argument("--repeats", type=int, default=3, help="default: 3")
    parser.add_argument("--base", help="folder of an encoder (default: wav2vec2-base's sizes, random weights)")
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    parser.add_argument("--threads", type=int, default=threads, help="of the CPU, for each process (default: all)")
    parser.add_argument("--out", type=Path, help="a file for the page as well")
    parser.add_argument("--json", type=Path, help="a file for every single measurement")
    parser.add_argument(
        "--growth", action="store_true", help="draw growth around the first --seconds, with most epochs"
    )
    parser.add_argument("--longest", type=float, default=60.0, help="seconds of a clip in --growth (default: 60)")
    picture = Path("docs/pictures/throughput_growth.png")
    parser.add_argument("--picture", type=Path, default=picture, help=f"of --growth (default: {picture})")
    options = parser.parse_args()
    if options.clips % options.batch or options.clips < 2:
        parser.error(f"--clips: got {options.clips}, must be 2 or more and a multiple of --batch, {options.batch}.")
    return options


def page(bench: Bench, found: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """The measurements as Markdown."""
    cases: dict[Case, dict[str, list[dict[str, Any]]]] = {}
    for one in found:
        case = Case(**{field.name: one[field.name] for field in fields(Case)})
        cases.setdefault(case, {"a": [], "b": []})[one["way"]].append(one)
    rows = []
    for case, ways in cases.items():
        rows.append(row(bench, case, case.precision, ways["a"], ways["b"]))
        plain = cases.get(replace(case, precision="fp32"))
        if case.precision == "bf16" and plain:
            rows.append(row(bench, case, "a fp32, b bf16", plain["a"], ways["b"]))
    about = ABOUT.format(
        batch=options.batch,
        clips=options.clips,
        repeats=options.repeats,
        memory="in tensors on the GPU" if bench.machine["gpu"] else "resident",
        base=options.base or "random weights, transformers' default `Wav2Vec2Config()`, wav2vec2-base's sizes",
    )
    lines = [COLUMNS, ["---"] * 4 + ["---:"] * (len(COLUMNS) - 4), *rows]
    return "\n\n".join([said(bench.machine), about, "\n".join(f"| {' | '.join(line)} |" for line in lines)])


def row(bench: Bench, case: Case, precision: str, a: list[dict[str, Any]], b: list[dict[str, Any]]) -> list[str]:
    """A line of the table: medians over repeats."""
    flops = measured("flops", case.base, case.strategy, case.batch, case.clip_seconds)
    steps = [median(run["seconds"] for run in runs) / case.steps for runs in (a, b)]
    peaks = [median(run["peak_bytes"] for run in runs) for runs in (a, b)]
    reached = [bench.machine["peaks"][runs[0]["precision"]] for runs in (a, b)]
    ratios = [one["seconds"] / other["seconds"] for one, other in zip(a, b, strict=True)]
    return [
        case.strategy,
        str(case.epochs),
        precision,
        f"{case.clip_seconds:g} s",
        *(f"{seconds:.3g}" for seconds in steps),
        *(f"{case.batch / seconds:.3g}" for seconds in steps),
        *(f"{peak / 2**20:,.0f}" for peak in peaks),
        f"{peaks[1] / peaks[0]:.2f}",
        *(f"{flops / seconds / peak:.0%}" for seconds, peak in zip(steps, reached, strict=True)),
        f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
    ]


def save(path: Path | None, bench: Bench, found: list[dict[str, Any]]) -> None:
    """Write every measurement so far, where that was asked for."""
    if path:
        path.write_text(json.dumps({"machine": bench.machine, "runs": found}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
