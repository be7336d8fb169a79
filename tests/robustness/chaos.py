"""Kill runs at random moments, go on with each until it is finished, and hold it against one that nobody stopped.

    python tests/robustness/chaos.py --kills 100 --out chaos.md
    python tests/robustness/chaos.py --cases lora "two processes" --kills 20
    python tests/robustness/chaos.py --device cuda --encoder base --kills 60 -- --train.deterministic true

A run is a recipe in a process of its own, started by the same command each time with `--train.resume true` and ended
by SIGKILL after a time drawn at random, which may fall into reading, training, a save, a validation or the last
evaluation. What counts as the same is every byte of the adapter, the log, the predictions and the splits, and the
report without its times. A second run that nobody stopped says whether that can be: on a GPU, bits may differ from run
to run all the same. What follows `--` goes to every run. Processes are forked from one that has imported torch, so that
a start takes a second. Clips and encoder are generated; the encoder has dropout everywhere and is small, unless asked.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).parents[1]))  # run as a script, too
from robustness.forked import Command, log_of, make_base, make_data, open_server, run, start, wait

# Of a report, what time and memory decide, and how often it was taken up.
OF_THE_CLOCK = ("_seconds", "samples_per_second", "data_wait_share", "peak_memory_bytes", "prefix_reused", "resumes")
EVERY_STEP = ["--train.checkpoint_every_steps", "1"]
NOISY = ["--model.dropout", "0.1", "--model.head_dropout", "0.1"]
CASES: dict[str, tuple[str, list[str], int]] = {
    "lora": ("lora", [*NOISY, "--lora.dropout", "0.1", *EVERY_STEP], 1),
    "lora, augmented": (
        "lora",
        [
            *("--lora.dropout", "0.1", "--augment.preset", "speech", "--augment.mask_time_share", "0.2"),
            *("--augment.mask_feature_share", "0.1", "--train.checkpoint_every_steps", "2"),
        ],
        1,
    ),
    "lora, nf4": ("lora", ["--model.quantization", "nf4", "--lora.dropout", "0.1", *EVERY_STEP], 1),
    "lora, bf16": ("lora", ["--train.mixed_precision", "bf16", "--lora.dropout", "0.1", *EVERY_STEP], 1),
    "lora, fp16": ("lora", ["--train.mixed_precision", "fp16", "--lora.dropout", "0.1", *EVERY_STEP], 1),
    "lora, workers": ("lora", ["--data.num_workers", "2", "--lora.dropout", "0.1", *EVERY_STEP], 1),
    "dora": ("lora", ["--lora.use_dora", "true", "--lora.dropout", "0.1", *EVERY_STEP], 1),
    "head only": ("head_only", ["--model.head_dropout", "0.2", "--model.layer_weighted_sum", "true", *EVERY_STEP], 1),
    "last layer, accumulation": (
        "last_n_layers",
        [*NOISY, "--last_n_layers.n", "1", "--train.gradient_accumulation_steps", "3", *EVERY_STEP],
        1,
    ),
    "attention heads": ("attention_heads", [*NOISY, "--attention_heads.count", "2", *EVERY_STEP], 1),
    "biases": ("bias_only", [*NOISY, "--train.checkpoint_every_steps", "3"], 1),
    "ia3": ("ia3", [*NOISY, *EVERY_STEP], 1),
    "full, 8-bit optimizer": ("full", [*NOISY, "--train.optimizer", "adamw_8bit", *EVERY_STEP], 1),
    "full with CNN, frozen dropout": (
        "full",
        ["--full.train_cnn", "true", "--train.frozen_dropout", "true", *NOISY, *EVERY_STEP],
        1,
    ),
    "two processes": (
        "lora",
        [
            *NOISY,
            "--lora.dropout",
            "0.1",
            "--augment.preset",
            "light",
            "--train.gradient_accumulation_steps",
            "2",
            *EVERY_STEP,
        ],
        2,
    ),
}


@dataclass
class Tally:
    """What became of a case: kills, those that left a half-written checkpoint, runs, and runs with other results.

    `repeated` is how a second run that nobody stopped differs from the first.
    """

    repeated: list[str] = field(default_factory=list)
    kills: int = 0
    inside_saves: int = 0
    runs: int = 0
    lost: list[str] = field(default_factory=list)
    not_the_same: list[str] = field(default_factory=list)


def main() -> None:
    """Kill, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, help="default: all that the device can run")
    parser.add_argument("--kills", type=int, default=100, help="at least so many over all cases (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    parser.add_argument("--encoder", choices=["small", "base"], default="small", help="base has wav2vec2-base's sizes")
    parser.add_argument("--seconds", type=float, default=0.6, help="of the longest clip (default: 0.6)")
    parser.add_argument("--out", type=Path, help="a file for the table as well")
    parser.add_argument("flags", nargs="*", help="behind --: flags of every run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos_") as folder:
        runs = open_runs(Path(folder), options.device, options.encoder == "base", options.seconds, options.flags)
        found = chaos(runs, options.cases or runnable(options.device), options.kills, options.seed, tell=True)
    flags = f", {' '.join(options.flags)}" if options.flags else ""
    text = f"{about(options.device)}; encoder: {options.encoder}, clips to {options.seconds} s{flags}\n\n{table(found)}"
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    sys.exit(any(tally.lost or tally.not_the_same for tally in found.values()))


@dataclass(frozen=True)
class Runs:
    """What all runs share.

    Attributes:
        context: Where their processes are started, see `open_server`.
        folder: Theirs.
        flags: Of each.
        device: "cpu" or "cuda".
    """

    context: Any
    folder: Path
    flags: list[str]
    device: str


def open_runs(
    folder: Path, device: str = "cpu", published_size: bool = False, seconds: float = 0.6, flags: Sequence[str] = ()
) -> Runs:
    """Clips, an encoder, and a server that starts runs.

    Args:
        folder: For all of it.
        device: "cpu" or "cuda".
        published_size: Whether the encoder has wav2vec2-base's sizes.
        seconds: Of the longest clip.
        flags: Of each run, beside our own.
    """
    context = open_server(folder / "assets", device)
    data, base = make_data(folder / "data", seconds), make_base(folder / "base", published_size)
    own = ["--data.source", str(data), "--model.name", str(base), "--train.verify_adapter", "false", "--train.epochs"]
    own += ["3", "--train.batch_size", "6", "--train.resume", "true"]
    return Runs(context, folder / "runs", [*own, *flags], device)


def runnable(device: str) -> list[str]:
    """The cases that a device can run: fp16 is for GPUs, and NCCL wants one for each process."""
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    fits = {name: gpus >= processes if gpus else name != "lora, fp16" for name, (_, _, processes) in CASES.items()}
    return [name for name in CASES if fits[name]]


def chaos(runs: Runs, cases: Sequence[str], kills: int, seed: int, tell: bool = False) -> dict[str, Tally]:
    """Kill runs of each case until all of them together have had so many.

    Args:
        runs: See `open_runs`.
        cases: Names in `CASES`.
        kills: Of all cases together, spread evenly.
        seed: Of the moments.
        tell: Print a line a run.
    """
    rng = random.Random(seed)
    found: dict[str, Tally] = {}
    for name in cases:
        recipe, flags, processes = CASES[name]
        flags = [*flags, *runs.flags, "--prefix_cache.use", "always" if name == "lora" else "auto"]
        command = Command(recipe, flags, processes, runs.device)
        folder = runs.folder / name.replace(" ", "_").replace(",", "")
        tally = found.setdefault(name, Tally())
        whole, second = folder / "whole", folder / "second"
        for place in (whole, second):
            began = time.perf_counter()
            if run(runs.context, command, place) != 0:
                raise RuntimeError(f"{name} does not run:\n{log_of(place).read_text()}")
            seconds = time.perf_counter() - began
        tally.repeated = unlike(whole, second)
        while tally.kills < -(-kills // len(cases)):
            one = folder / f"killed-{tally.runs}"
            before, began = tally.kills, time.perf_counter()
            kill_until_finished(runs.context, command, one, seconds, rng, tally)
            tally.runs += 1
            if tally.kills == before:
                # Other work on the machine may have let the first one take longer.
                seconds = time.perf_counter() - began
            if not tally.lost or not tally.lost[-1].startswith(one.name):
                tally.not_the_same += [f"{one.name}: {what}" for what in unlike(whole, one)]
            if tell:
                print(
                    f"{name}: run {tally.runs}, {tally.kills - before} kills, {tally.not_the_same or 'the same'}",
                    flush=True,
                )
    return found


def kill_until_finished(
    context: Any, command: Command, folder: Path, seconds: float, rng: random.Random, tally: Tally
) -> None:
    """Start a run, kill it at a random moment of its time, and start it again until it comes to its end."""
    while True:
        children = start(context, command, folder)
        ended = wait(children, rng.uniform(0, seconds))
        if not ended:
            # Of several processes, one is enough: the others must not write on.
            rng.choice(children).kill()
            for child in children:
                child.join(5)
                child.kill()
                child.join()
            tally.kills += 1
            tally.inside_saves += bool(list(folder.glob("checkpoints/*.partial")))
            continue
        if any(child.exitcode for child in children):
            tally.lost.append(f"{folder.name}: {log_of(folder).read_text()[-600:]}")
        return


def unlike(whole: Path, other: Path) -> list[str]:
    """Which files of two runs differ, where neither clocks nor interruptions may decide."""
    names = {str(path.relative_to(run)) for run in (whole, other) for path in run.rglob("*") if path.is_file()}
    found = []
    for name in sorted(names):
        files = [run / name for run in (whole, other)]
        if not all(file.exists() for file in files):
            found.append(f"{name} is in one of them only")
        elif name == "report.json":
            reports = [json.loads(file.read_text()) for file in files]
            a, b = ({k: v for k, v in each.items() if not k.endswith(OF_THE_CLOCK)} for each in reports)
            found += [f"report.json {key}: {a[key]} and {b[key]}" for key in a if a[key] != b[key]]
        elif name == "config.yaml":
            continue  # the output folder stands in it
        elif files[0].read_bytes() != files[1].read_bytes():
            found.append(name)
    return found


def about(device: str) -> str:
    """The device and the versions that bits depend on."""
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return f"{name}, torch {torch.__version__}, transformers {version('transformers')}, peft {version('peft')}"


def table(found: dict[str, Tally]) -> str:
    """A row a case, and the sum."""
    lines = [
        "| case | undisturbed bit-identical | kills | of them inside a save | runs finished | bit-identical | lost |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    rows: list[tuple[Any, ...]] = [
        (
            *(name, "no" if tally.repeated else "yes"),
            *(tally.kills, tally.inside_saves, tally.runs, len(tally.lost), _bad(tally)),
        )
        for name, tally in found.items()
    ]
    same = sum(row[1] == "yes" for row in rows)
    rows.append(("all", f"{same} of {len(rows)}", *(sum(row[i] for row in rows) for i in range(2, 7))))
    for name, repeated, kills, inside, runs, lost, bad in rows:
        lines.append(f"| {name} | {repeated} | {kills} | {inside} | {runs - lost} | {runs - lost - bad} | {lost} |")
    details = [
        f"{name}: {what}"
        for name, tally in found.items()
        for what in [*(f"second: {what}" for what in tally.repeated), *tally.lost, *tally.not_the_same]
    ]
    return "\n".join(lines + (["", *details] if details else []))


def _bad(tally: Tally) -> int:
    return len({what.split(":")[0] for what in tally.not_the_same})


if __name__ == "__main__":
    main()
