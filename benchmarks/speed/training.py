"""Compare the cost of the recipes with that of a script that follows the documentation (as_documented.py).

    python benchmarks/speed/training.py --out throughput.md --json throughput.json
    python benchmarks/speed/training.py --strategies lora last-2 --epochs 1 --seconds 5 --repeats 1
    python benchmarks/speed/training.py --growth --strategies lora --epochs 4 --batch 1

(a) is the documented script, (b) a recipe with the command of a user, on the same clips with the same batch size,
precision and epochs. Each measurement is a fresh process, and a and b take turns. Base and clips are generated, so
nothing is downloaded. Runs on the GPU if there is one; on a CPU the defaults take hours, so reduce them. `--growth`
measures and draws the seconds per step against the length of clips, the batch, the encoder's size and the number of
clips.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import soundfile
from joblib import cpu_count
from machine import PRECISIONS, SAMPLING_RATE, in_words, measured, run, set_environment

from peft_audio.config.parse import in_words as as_flag
from peft_audio.files import PACKAGE, RECIPES
from peft_audio.processes import child_environment

DOCUMENTED = Path(__file__).parent / "as_documented.py"
# Recipe and settings of each strategy. The documented script trains all weights for both of the last two.
STRATEGIES: dict[str, tuple[str, dict[str, Any]]] = {
    "head-only": ("head_only", {}),
    "last-2": ("last_n_layers", {"last_n_layers.n": 2}),
    "lora": ("lora", {"lora.r": 8, "lora.targets": "[q_proj, v_proj]"}),
    "full": ("full", {}),
    "full-cnn": ("full", {"full.train_cnn": True}),
}
COLUMNS = ["strategy", "epochs", "precision", "clips of", "s per step: a", "b", "clips/s: a", "b"]
COLUMNS += ["peak MiB: a", "b", "b / a", "of matrix peak: a", "b", "seconds a / b"]
ABOUT = """a is `Trainer` and PEFT as documented, b the recipe; {batch} clips per step, {clips} per epoch. Seconds
include reading files and, in b, filling the cache, but not imports or loading the model. Peak memory is that of the
process at the end of training ({memory}), minus that of a process that only has its imports. a / b is the ratio of the
seconds (higher is better): the median of {repeats} pairs per row (lowest to highest).

The share of the matrix peak is the floating-point operations of one plain training step, divided by the seconds of a
step and by the peak above. A plain step is one forward and backward pass through the whole encoder for the weights that
the strategy trains, counted by torch's FlopCounterMode with eager attention and without a cache. It has no gradients of
or through layers before the first trained weight (the CNN trains only in `full-cnn`). The number is the same for a and
b. Since b reads some of this work from its cache, its share can exceed 100%.

The base: {base}. Dropout, LayerDrop and SpecAugment
of its config are on in all of a, the default of `Trainer`. LayerDrop (0.1 there) skips this share of the layers of a,
and none of b."""


def main() -> None:
    """Measure, and print the page or draw the plot."""
    options = parse()
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="throughput_") as folder:
        bench = open_bench(Path(folder), options.threads)
        precisions = options.precisions or [name for name in PRECISIONS if name == "fp32" or bench.machine["fast_bf16"]]
        base = options.base or make_base(bench)
        if options.growth:
            from training_growth import draw_growth, measure_growth  # imported here, because it imports this module

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
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES), help="default: all")
    parser.add_argument("--epochs", nargs="+", type=int, default=[1, 10], help="default: 1 10")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, help="default: fp32, and bf16 where it is fast")
    parser.add_argument("--seconds", nargs="+", type=float, default=[5.0, 30.0], help="length of clips (default: 5 30)")
    parser.add_argument("--clips", type=int, default=16, help="number of training clips (default: 16)")
    parser.add_argument("--batch", type=int, default=4, help="clips per step (default: 4)")
    parser.add_argument("--repeats", type=int, default=3, help="default: 3")
    parser.add_argument("--base", help="folder of an encoder (default: wav2vec2-base's sizes, random weights)")
    threads = int(os.environ.get("OMP_NUM_THREADS", cpu_count()))
    parser.add_argument("--threads", type=int, default=threads, help="number of CPU threads per process (default: all)")
    parser.add_argument("--out", type=Path, help="also write the page to this file")
    parser.add_argument("--json", type=Path, help="write every single measurement to this file")
    parser.add_argument(
        "--growth", action="store_true", help="draw the growth around the first --seconds, with the highest --epochs"
    )
    parser.add_argument("--longest", type=float, default=60.0, help="longest clip of --growth in seconds (default: 60)")
    picture = Path("docs/pictures/throughput_growth.png")
    parser.add_argument(
        "--picture", type=Path, default=picture, help=f"file of the plot of --growth (default: {picture})"
    )
    options = parser.parse_args()
    if options.clips % options.batch or options.clips < 2:
        parser.error(f"--clips: got {options.clips}, must be 2 or more and a multiple of --batch, {options.batch}.")
    return options


def page(bench: Bench, found: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """Format the measurements as Markdown."""
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
    return "\n\n".join([in_words(bench.machine), about, "\n".join(f"| {' | '.join(line)} |" for line in lines)])


def row(bench: Bench, case: Case, precision: str, a: list[dict[str, Any]], b: list[dict[str, Any]]) -> list[str]:
    """Format a row of the table with the medians over repeats."""
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
    """Write all measurements so far if `path` is given."""
    if path:
        path.write_text(json.dumps({"machine": bench.machine, "runs": found}, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Case:
    """One training.

    Attributes:
        strategy: One of `STRATEGIES`.
        epochs: Passes over the clips.
        precision: One of `PRECISIONS`.
        clip_seconds: Length of each clip.
        clips: Number of training clips.
        batch: Clips per step.
        base: Folder of the encoder.
    """

    strategy: str
    epochs: int
    precision: str
    clip_seconds: float
    clips: int
    batch: int
    base: str

    @property
    def steps(self) -> int:
        """Return the number of optimizer steps of the training."""
        return self.epochs * self.clips // self.batch


@dataclass(frozen=True)
class Bench:
    """Conditions of the measurements.

    Attributes:
        folder: Temporary folder for clips and runs.
        machine: Result of `machine.machine`.
        imports: Peak bytes of a process with only the imports of a or b.
    """

    folder: Path
    machine: dict[str, Any]
    imports: dict[str, int]


def open_bench(folder: Path, threads: int) -> Bench:
    """Measure the machine and the memory of the imports."""
    set_environment(threads)
    imports = {"a": measured("imports", DOCUMENTED), "b": measured("imports", PACKAGE / "finetune.py")}
    return Bench(folder, measured("machine"), imports)


def make_base(bench: Bench, size: str = "12") -> str:
    """Make a base with random weights if it does not exist, and return its folder; see `machine.base`."""
    folder = bench.folder / f"base_{size}"
    if not folder.exists():
        measured("base", folder, size)
    return str(folder)


def measure_in_turn(bench: Bench, cases: list[Case], repeats: int) -> list[dict[str, Any]]:
    """Measure each case `repeats` times, a and b in turn.

    Returns:
        For each run its case, `way` (a or b), `repeat`, `seconds`, `steps`, and `peak_bytes` above `imports`.
    """
    found = []
    for repeat in range(repeats):
        for case in cases:
            for way, train in (("a", _documented), ("b", _ours)):
                result = train(bench, case)
                if result["steps"] != case.steps:
                    raise SystemExit(f"{way} made {result['steps']} steps, must make {case.steps}: {case}")
                result["peak_bytes"] -= bench.imports[way]
                found.append(asdict(case) | {"way": way, "repeat": repeat} | result)
                peak = f"{result['peak_bytes'] / 2**20:,.0f} MiB"
                print(f"{way} {result['seconds']:.2f} s, {peak}: {case}", file=sys.stderr, flush=True)
    return found


def _clips(bench: Bench, case: Case) -> Path:
    """Write recordings of tones in noise, low in one class and high in the other, and return their folder."""
    folder = bench.folder / f"{case.clips}_clips_of_{case.clip_seconds:g}_seconds"
    if folder.exists():
        return folder
    rng = np.random.default_rng(0)
    # Validation is not part of the seconds, so its clips are short.
    for split, count, seconds in (("train", case.clips, case.clip_seconds), ("validation", 2, 1.0), ("test", 2, 1.0)):
        for i in range(count):
            label, hertz = (("low", 300.0), ("high", 1200.0))[i % 2]
            times = np.arange(round(seconds * SAMPLING_RATE)) / SAMPLING_RATE
            tone = np.sin(2 * np.pi * hertz * rng.uniform(0.8, 1.2) * times)
            target = folder / split / label
            target.mkdir(parents=True, exist_ok=True)
            soundfile.write(target / f"{i:05}.wav", 0.2 * tone + 0.05 * rng.standard_normal(len(times)), SAMPLING_RATE)
    return folder


def _documented(bench: Bench, case: Case) -> dict[str, Any]:
    """Train with the documented script."""
    flags = asdict(case) | {"data": _clips(bench, case), "seconds": case.clip_seconds}
    del flags["clips"], flags["clip_seconds"]
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return json.loads(run([sys.executable, str(DOCUMENTED), *words]).splitlines()[-1])


def _ours(bench: Bench, case: Case) -> dict[str, Any]:
    """Train with the recipe."""
    recipe, own = STRATEGIES[case.strategy]
    precision = PRECISIONS[case.precision]
    with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
        flags = own | {
            "model.name": case.base,
            "data.source": str(_clips(bench, case)),
            "data.max_seconds": case.clip_seconds,
            "train.batch_size": case.batch,
            "train.epochs": case.epochs,
            "train.mixed_precision": precision,
            "train.evaluate_test": False,
            "train.verify_adapter": False,
            "train.output_dir": f"{folder}/run",
            # A fresh folder, so that nothing is read from the cache of an earlier run.
            "prefix_cache.folder": f"{folder}/cache",
        }
        words = [word for name, value in flags.items() for word in (f"--{name}", as_flag(value))]
        gpu = os.environ["CUDA_VISIBLE_DEVICES"] if bench.machine["gpu"] else None
        run([sys.executable, str(RECIPES / f"{recipe}.py"), *words], child_environment(gpu, bench.machine["threads"]))
        report = json.loads((Path(folder) / "run" / "report.json").read_text(encoding="utf-8"))
    filling = report.get("prefix_seconds", 0.0)
    return {
        "seconds": report["train_seconds"] + filling,
        "filling_seconds": filling,
        "steps": report["steps"],
        "peak_bytes": report["peak_memory_bytes"],
    }


if __name__ == "__main__":
    main()
