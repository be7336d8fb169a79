"""Measure the data path from files to batches: padding, memory at 1,000 to 100,000 clips, and waiting.

    python benchmarks/speed/data_path.py
    python benchmarks/speed/data_path.py --tables padding memory --out data_path.md

Each figure is measured in a separate process. The large collections are links to the same few recordings in a temporary
folder. They are found, opened and decoded like other files, without using disk space. Real collections take longer to
read. They have fewer copies for `peft-audio check` to list, and more different clips to compare.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from itertools import chain, islice, repeat
from pathlib import Path
from time import perf_counter
from typing import Any

from joblib import cpu_count

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
SIZES = (1_000, 10_000, 100_000)
SHORTEST_SECONDS, LONGEST_SECONDS, CLIPS = 0.2, 30.0, 2_000
BATCH_SIZES, BATCH_SECONDS = (8, 16, 32), 160.0
MIXES = ("uniform", "log-uniform", "fsdd")
EPOCHS = range(1, 6)
LINKED_TAKES = 4  # recordings per digit
MOST_BATCHES = 200
STEPS = 12
WORKERS = (0, 2)


def main() -> None:
    """Print the requested tables, or measure one figure."""
    tables = {"padding": padding_table, "memory": memory_table, "waiting": waiting_table}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder with fsdd/ and esc10/")
    parser.add_argument(
        "--tables", nargs="+", choices=tables, default=list(tables), help="tables to make (default: all)"
    )
    parser.add_argument("--out", type=Path, help="also write the page to this file")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        name, *values = options.measure
        print(json.dumps(MEASURES[name](options.data, *values)))
        return
    title = f"# The way from files to batches\n\n{cpu_count()} cores, {platform.machine()}, {platform.system()}."
    page = [title]
    print(title, flush=True)
    for name in options.tables:
        page.append(tables[name](options.data))
        print(f"\n{page[-1]}", flush=True)
    if options.out:
        options.out.write_text("\n\n".join(page) + "\n", encoding="utf-8")


def measured(data: Path, *words: object) -> dict[str, Any]:
    """Run a measurement in a fresh process and return its result."""
    command = [sys.executable, __file__, "--data", str(data), "--measure", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(columns: list[str], rows: list[list[str]]) -> str:
    """Format a Markdown table."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def padding_table(data: Path) -> str:
    """Make the table of the share of padding in training batches."""
    rows = [
        [mix, batches, *(f"{mean:.1%} ({worst:.1%})" for mean, worst in shares)]
        for mix in MIXES
        for batches, shares in measured(data, "padding", mix).items()
    ]
    columns = ["lengths", "batch size", "shuffled", "peft-audio"]
    about = (
        f"Padding share of training batches: mean over {len(EPOCHS)} epochs (the worst). uniform, log-uniform: "
        f"{CLIPS:,} clips of {SHORTEST_SECONDS:g} to {LONGEST_SECONDS:g} s; fsdd: the recordings in that folder."
    )
    return f"{about}\n\n{table(columns, rows)}"


def padding(data: Path, mix: str) -> dict[str, list[tuple[float, float]]]:
    """Compute the mean and worst share of padding of shuffled batches and of ours, for each batch size."""
    import numpy as np

    from peft_audio.audio.decoding import read_info
    from peft_audio.data.sampler import TrainingBatches, cut_batches, padding_share

    rng = np.random.default_rng(0)
    if mix == "uniform":
        lengths = rng.uniform(SHORTEST_SECONDS, LONGEST_SECONDS, CLIPS)
    elif mix == "log-uniform":
        lengths = np.exp(rng.uniform(np.log(SHORTEST_SECONDS), np.log(LONGEST_SECONDS), CLIPS))
    else:
        headers = [read_info(file) for file in sorted((data / mix).glob("*.wav"))]
        lengths = np.array([info.num_frames / info.sampling_rate for info in headers])
    shares_by_size = {}
    sizes: list[tuple[int, float | None]] = [*((size, None) for size in BATCH_SIZES), (BATCH_SIZES[0], BATCH_SECONDS)]
    for size, seconds in sizes:
        ours = TrainingBatches(lengths.tolist(), size, seed=0, batch_seconds=seconds)
        shuffled = [cut_batches(rng.permutation(len(lengths)), lengths, size, seconds) for _ in EPOCHS]
        shares = [
            [padding_share(lengths, steps) for steps in epochs]
            for epochs in (shuffled, [ours.step_indices(epoch) for epoch in EPOCHS])
        ]
        name = f"{seconds:g} s" if seconds else f"{size} clips"
        shares_by_size[name] = [(float(np.mean(s)), max(s)) for s in shares]
    return shares_by_size


def memory_table(data: Path) -> str:
    """Make the table of peak resident memory and seconds for collections of several sizes."""
    found: dict[str, list[dict[str, Any]]] = {"loaders": [], "check": []}
    for size in SIZES:
        with tempfile.TemporaryDirectory(prefix="data_path_") as folder:
            link_clips(data / "fsdd", Path(folder), size)
            for what, results in found.items():
                results.append(measured(data, what, folder))
    names = {"loaders": f"splits and {MOST_BATCHES} training batches", "check": "peft-audio check"}
    rows = []
    for what, results in found.items():
        peaks = [result["bytes"] for result in results]
        grown = (peaks[-1] - peaks[0]) / (SIZES[-1] - SIZES[0])
        rows.append([f"{names[what]}: MiB", *(f"{peak / 2**20:,.0f}" for peak in peaks), f"{grown:,.0f} bytes"])
    for what, results in found.items():
        for name in [name for name in results[0] if name != "bytes"]:
            seconds = [result[name] for result in results]
            each = (seconds[-1] - seconds[0]) / (SIZES[-1] - SIZES[0])
            rows.append(
                [
                    f"{names[what]}: {name}",
                    *(f"{value:.1f} ({value / seconds[0]:.1f} x)" for value in seconds),
                    f"{1000 * each:.2f} ms",
                ]
            )
    columns = ["peak resident memory, seconds", *(f"{size:,} clips" for size in SIZES), "per further clip"]
    return f"Collections of short recordings (fsdd), links to the same few.\n\n{table(columns, rows)}"


def link_clips(source: Path, folder: Path, count: int) -> None:
    """Create `count` links to a few recordings, in one folder per digit."""
    files = [file for digit in range(10) for file in sorted(source.glob(f"{digit}_*.wav"))[:LINKED_TAKES]]
    for file in files:
        (folder / file.name[0]).mkdir(exist_ok=True)
    for number in range(count):
        file = files[number % len(files)].resolve()
        link = folder / file.name[0] / f"{number:06}_{file.name}"
        try:
            os.link(file, link)
        except OSError:  # another file system, or too many links to one file
            link.symlink_to(file)


def loaders(data: Path, folder: str) -> dict[str, float]:
    """Measure dividing a folder and reading training batches from it, without a model."""
    from transformers import AutoConfig

    from peft_audio.config import DataConfig
    from peft_audio.data.loaders import make_loaders
    from peft_audio.data.splits import load_splits
    from peft_audio.encoders.loading import load_extractor, resolve_base
    from peft_audio.strategies import LoraRecipe
    from peft_audio.training.hardware import make_accelerator

    cfg = LoraRecipe(data=DataConfig(source=folder, num_workers=0))
    accelerator, extractor = make_accelerator(cfg.train), load_extractor(cfg.model)
    encoder = AutoConfig.from_pretrained(resolve_base(cfg.model.name))
    began = perf_counter()
    splits = load_splits(cfg.data)
    divided = perf_counter()
    batches = make_loaders(splits, extractor, encoder, cfg, accelerator)
    batches.train_order.epoch = 1
    # Small collections are read several times, so that all yield the same number of batches.
    for _ in islice(chain.from_iterable(repeat(batches.train)), MOST_BATCHES):
        pass
    done = perf_counter()
    return {"bytes": peak_bytes(), "seconds to divide": divided - began, "seconds to read": done - divided}


def check(data: Path, folder: str) -> dict[str, float]:
    """Measure `peft-audio check` on a folder."""
    from peft_audio.cli import main as peft_audio

    began = perf_counter()
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # noqa: PTH123
        peft_audio(["check", folder])
    return {"bytes": peak_bytes(), "seconds": perf_counter() - began}


def peak_bytes() -> int:
    """Return the peak resident memory of this process."""
    status = Path("/proc/self/status")
    if status.exists():
        # The value of getrusage includes the process that this one was forked from.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def waiting_table(data: Path) -> str:
    """Make the table of the share of training time that a run waits for data."""
    rows = []
    for name, source in {"bundled digits": "bundled", "esc10": str(data / "esc10")}.items():
        for workers in WORKERS:
            report = train(source, workers)
            share, seconds, speed = (report[key] for key in ("data_wait_share", "train_seconds", "samples_per_second"))
            rows.append([name, str(workers), f"{share:.1%}", f"{seconds:.1f}", f"{speed:.0f}"])
    about = f"recipes/lora.py, {STEPS} steps of 16 clips on the CPU: the report's data_wait_share."
    return f"{about}\n\n{table(['recordings', 'workers', 'waiting', 'seconds', 'clips per second'], rows)}"


def train(source: str, workers: int) -> dict[str, Any]:
    """Run a short training and return its report."""
    with tempfile.TemporaryDirectory(prefix="data_path_") as folder:
        flags = {
            "data.source": source,
            "data.num_workers": workers,
            "train.max_steps": STEPS,
            "train.epochs": 1,
            "train.evaluate_test": "false",
            "train.output_dir": f"{folder}/run",
        }
        command = [sys.executable, str(ROOT / "recipes" / "lora.py")]
        command += [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return json.loads((Path(folder) / "run" / "report.json").read_text())


MEASURES: dict[str, Callable[..., dict[str, Any]]] = {"padding": padding, "loaders": loaders, "check": check}

if __name__ == "__main__":
    main()
