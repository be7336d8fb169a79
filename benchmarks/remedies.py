"""What helps against overfitting? Each remedy alone, on 100 training clips of the bundled digits.

    python benchmarks/remedies.py --jobs 2

Full fine-tuning of the bundled encoder is the patient: 100 clips of three speakers, tested on two others. Every arm
changes one thing of it. Strengths are common values, not tuned here. The kept epoch is
the best on validation in every arm, so validation flatters all of them alike; nothing was chosen on the test speakers.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean

from repeat import run, spread

CLIPS = ["--data.max_train_clips", "100", "--train.epochs", "24", "--train.evaluate_train", "true"]
ARMS: dict[str, tuple[str, list[str]]] = {
    "full fine-tuning, no remedy": ("full", []),
    "+ augmentation: light": ("full", ["--augment.preset", "light"]),
    "+ augmentation: speech": ("full", ["--augment.preset", "speech"]),
    "+ augmentation: environment": ("full", ["--augment.preset", "environment"]),
    "+ SpecAugment over time": ("full", ["--augment.mask_time_share", "0.2", "--augment.mask_time_frames", "5"]),
    # Both are scaled by the rate, whose sum over these 168 steps is 0.025: smaller values would move nothing.
    "+ L2 of 4 (default 0.01)": ("full", ["--train.weight_decay", "4"]),
    "+ L1 of 0.2": ("full", ["--train.l1", "0.2"]),
    "+ encoder dropout 0.1": ("full", ["--model.dropout", "0.1"]),
    "+ head dropout 0.3": ("full", ["--model.head_dropout", "0.3"]),
    "+ label smoothing 0.1": ("full", ["--train.label_smoothing", "0.1"]),
    "+ early stopping, patience 3": ("full", ["--train.early_stopping_patience", "3"]),
    "last 2 layers": ("last_n_layers", []),
    "LoRA": ("lora", []),
    "LoRA, dropout 0.1": ("lora", ["--lora.dropout", "0.1"]),
    "head-only": ("head_only", []),
    "head-only on a mixture of layers": ("head_only", ["--model.layer_weighted_sum", "true"]),
}


def main() -> None:
    """Print a Markdown row an arm."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="train.seed goes from 0 to this minus 1 (default: 3)")
    parser.add_argument("--arms", default="", help="only those whose name holds this word")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("runs/remedies"), help="folder for the runs")
    options = parser.parse_args()
    print("| arm | trained | train accuracy | validation accuracy | gap | test accuracy | kept epochs |")
    print("|---|---|---|---|---|---|---|")
    with ThreadPoolExecutor(options.jobs) as pool:
        for number, (name, (recipe, flags)) in enumerate(ARMS.items()):
            if options.arms not in name:
                continue
            jobs = [
                (recipe, options.out / str(number) / str(seed), seed, [*CLIPS, *flags]) for seed in range(options.seeds)
            ]
            reports = list(pool.map(lambda job: run(*job), jobs))
            gap = mean(report["train_accuracy"] - report["validation_accuracy"] for report in reports)
            columns = [spread([report[f"{split}_accuracy"] for report in reports]) for split in ("train", "validation")]
            columns += [f"{gap:+.3f}", spread([report["test_accuracy"] for report in reports])]
            columns += [", ".join(str(report["best_epoch"]) for report in reports)]
            print(f"| {name} | {reports[0]['trainable_parameters']:,} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()
