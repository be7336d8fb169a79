"""Measure the size of checkpoints, and the share of training time for writing them.

    python benchmarks/size/checkpoints.py

Prints the table of docs/resuming.md for each strategy on an encoder of the size of wav2vec2-base with random weights,
after one optimizer step, so that the optimizer has its state. Seconds are the median of three, for hashing, writing and
syncing on this disk. The share relates them to the default time between two checkpoints, which is extended if it would
exceed 1%. Takes a few minutes, 4 GB of memory and 4 GB of disk.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from accelerate import Accelerator

from peft_audio.config import ModelConfig, TrainConfig
from peft_audio.encoders.loading import load_classifier
from peft_audio.training.checkpointing import MAX_SAVE_SHARE, Checkpoints, save_state
from peft_audio.training.optimizer import make_optimizer, make_schedule
from peft_audio.training.state import Best, Learner, TrainState

sys.path.append(str(Path(__file__).parents[1] / "speed"))
from adapter_sizes import STRATEGIES
from machine import base

SHOWN = ["full", "last_n_layers, n 2", "lora, r 8", "dora, r 8", "attention_heads, 4 in one layer", "bias_only", "ia3"]
SHOWN += ["head_only"]


def main() -> None:
    """Print one Markdown row per strategy."""
    labels, cfg = [f"class {i}" for i in range(10)], TrainConfig()
    between = 60 * (cfg.checkpoint_every_minutes or 0)
    print("| strategy | bytes of a checkpoint | of the best weights beside it | seconds to write | of the time |")
    print("|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        where = base(f"{folder}/base", "12")
        for name in SHOWN:
            model, trained = STRATEGIES[name](load_classifier(ModelConfig(name=where), labels))
            optimizer = make_optimizer(model, trained, cfg)
            schedule, accelerator = make_schedule(optimizer, cfg, 100), Accelerator(cpu=True)
            wrapped, prepared = accelerator.prepare(model, optimizer)
            known = dict(model.named_parameters())
            for weight in trained.parameters:
                known[weight].grad = torch.randn_like(known[weight])
            prepared.step()
            learner = Learner(model, wrapped, trained, prepared, schedule, accelerator)
            best = Best(0.5, 1, {weight: known[weight].detach() for weight in trained.parameters})
            root = Path(folder) / name.replace(" ", "")
            seconds = []
            for step in range(1, 5):
                began = time.perf_counter()
                save_state(learner, TrainState(1, step=step, best=best), Checkpoints(root, {}, began), keep=1)
                seconds.append(time.perf_counter() - began)
            # The first checkpoint is left out, because it also writes the best weights.
            save_seconds = median(seconds[1:])
            sizes = [_bytes(root, kind) for kind in ("step", "best")]
            share = save_seconds / max(between, save_seconds / MAX_SAVE_SHARE)
            print(f"| {name} | {sizes[0]:,} | {sizes[1]:,} | {save_seconds:.2f} | {share:.2%} |", flush=True)


def _bytes(root: Path, kind: str) -> int:
    return sum(file.stat().st_size for folder in root.glob(f"{kind}-*") for file in folder.iterdir())


if __name__ == "__main__":
    main()
