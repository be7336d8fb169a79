"""How far is `peft-audio plan` from what a comparison took?

    python recipes/compare.py && python benchmarks/validity/plan.py runs/compare

Makes the plan of a finished comparison (its timed runs, if they are not there) and prints the measured over the planned
figures of each arm: medians over final runs that had the device to themselves.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from peft_audio.comparison.collect import SETTINGS, read_comparison
from peft_audio.comparison.plan import plan
from peft_audio.comparison.settings import CompareRecipe
from peft_audio.config import read_config
from peft_audio.files import read_json


def main() -> None:
    """Print a Markdown row an arm."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of a finished comparison")
    folder = parser.parse_args().folder
    cfg = read_config(CompareRecipe, ["--config", str(folder / SETTINGS)])
    planned = {arm.name: arm for arm in plan(replace(cfg, output_dir=str(folder)), lambda job, record: None)}
    print("| arm | parameters | bytes | peak memory | training | a final run |")
    print("|---|---|---|---|---|---|")
    for arm in read_comparison([folder]).arms:
        expected = planned[arm.name]
        if arm.train_time is None or arm.accelerator_memory_max is None:
            raise SystemExit(f"{arm.name}: no final run had the device to itself; run the comparison without --jobs.")
        records = [read_json(path) for path in folder.glob(f"runs/{arm.name}/final-*.json")]
        seconds = sorted(record["seconds"] for record in records)
        pairs = [
            (arm.num_trainable_params, expected.num_trainable_params),
            (arm.file_size, expected.file_size),
            (arm.accelerator_memory_max, expected.accelerator_memory_max),
            (arm.train_time, expected.train_time),
            (seconds[len(seconds) // 2], expected.total_time),
        ]
        ratios = [f"{measured / reckoned:.2f}" if measured and reckoned else "–" for measured, reckoned in pairs]
        print(f"| {arm.name} | {' | '.join(ratios)} |")


if __name__ == "__main__":
    main()
