"""The runs that benchmarks/throughput.py compares: (a) as documented, (b) our recipe, on the same generated clips."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from machine import PRECISIONS, SAMPLING_RATE, measured, run, set_environment

from peft_audio.comparison.jobs import RECIPES, in_words
from peft_audio.processes import environment

DOCUMENTED = Path(__file__).parent / "as_documented.py"
# For each strategy our recipe and what it is told. The documented script trains all weights for both of the last two.
STRATEGIES: dict[str, tuple[str, dict[str, Any]]] = {
    "head-only": ("head_only", {}),
    "last-2": ("last_n_layers", {"last_n_layers.n": 2}),
    "lora": ("lora", {"lora.r": 8, "lora.targets": "[q_proj, v_proj]"}),
    "full": ("full", {}),
    "full-cnn": ("full", {"full.train_cnn": True}),
}


@dataclass(frozen=True)
class Case:
    """What is trained.

    Attributes:
        strategy: Of `STRATEGIES`.
        epochs: Passes over the clips.
        precision: Of `PRECISIONS`.
        clip_seconds: How long each clip is.
        clips: How many there are to train on.
        batch: How many of them a step takes.
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
        """Optimizer steps of the whole training."""
        return self.epochs * self.clips // self.batch


@dataclass(frozen=True)
class Bench:
    """Where it is measured.

    Attributes:
        folder: A temporary one, for clips and runs.
        machine: What `machine.machine` says of it.
        imports: Peak bytes of a process that only imports what a and b import.
    """

    folder: Path
    machine: dict[str, Any]
    imports: dict[str, int]


def open_bench(folder: Path, threads: int) -> Bench:
    """Look at the machine, and what the imports alone take."""
    set_environment(threads)
    imports = {"a": measured("imports", DOCUMENTED), "b": measured("imports", RECIPES / "lora.py")}
    return Bench(folder, measured("machine"), imports)


def make_base(bench: Bench, size: str = "12") -> str:
    """A folder with an encoder of wav2vec2-base's width, random weights, and so many layers; or "nano"."""
    folder = bench.folder / f"base_{size}"
    if not folder.exists():
        measured("base", folder, size)
    return str(folder)


def measure_in_turn(bench: Bench, cases: list[Case], repeats: int) -> list[dict[str, Any]]:
    """Each case so often, a and b in turn.

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
    """A folder of generated recordings: a tone in noise, low in one class, high in the other."""
    folder = bench.folder / f"{case.clips}_clips_of_{case.clip_seconds:g}_seconds"
    if folder.exists():
        return folder
    rng = np.random.default_rng(0)
    # What is validated counts in neither's seconds, and is as short as it may be.
    for split, count, seconds in (("train", case.clips, case.clip_seconds), ("validation", 2, 1.0), ("test", 2, 1.0)):
        for i in range(count):
            label, hertz = (("low", 300.0), ("high", 1200.0))[i % 2]
            times = np.arange(round(seconds * SAMPLING_RATE)) / SAMPLING_RATE
            tone = np.sin(2 * np.pi * hertz * rng.uniform(0.8, 1.2) * times)
            place = folder / split / label
            place.mkdir(parents=True, exist_ok=True)
            soundfile.write(place / f"{i:05}.wav", 0.2 * tone + 0.05 * rng.standard_normal(len(times)), SAMPLING_RATE)
    return folder


def _documented(bench: Bench, case: Case) -> dict[str, Any]:
    """Train as the documentation shows."""
    flags = asdict(case) | {"data": _clips(bench, case), "seconds": case.clip_seconds}
    del flags["clips"], flags["clip_seconds"]
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return json.loads(run([sys.executable, str(DOCUMENTED), *words]).splitlines()[-1])


def _ours(bench: Bench, case: Case) -> dict[str, Any]:
    """Train with our recipe."""
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
            # A folder of its own, so that nothing is taken over from an earlier run.
            "prefix_cache.folder": f"{folder}/cache",
        }
        words = [word for name, value in flags.items() for word in (f"--{name}", in_words(value))]
        gpu = os.environ["CUDA_VISIBLE_DEVICES"] if bench.machine["gpu"] else None
        run([sys.executable, str(RECIPES / f"{recipe}.py"), *words], environment(gpu, bench.machine["threads"]))
        report = json.loads((Path(folder) / "run" / "report.json").read_text(encoding="utf-8"))
    filling = report.get("prefix_seconds", 0.0)
    return {
        "seconds": report["train_seconds"] + filling,
        "filling_seconds": filling,
        "steps": report["steps"],
        "peak_bytes": report["peak_memory_bytes"],
    }
