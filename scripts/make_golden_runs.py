"""Make the golden runs: a finished run, a comparison and a stopped run, which every later version must read.

    python scripts/make_golden_runs.py

Run this from any folder; the results are in `tests/golden`. Golden runs are made once and are never replaced, because
a run that is made again proves nothing about older versions. All runs train on the bundled digits and on the tiny
encoder of `make_golden.py`. Paths in them are relative to the root of the repository.

`run` is a finished LoRA run. `comparison` holds what `peft-audio report` reads, and `comparison.json` as the expected
result. `checkpoint` is a LoRA run that SIGTERM stopped in its second epoch, and `uninterrupted.json` holds the figures
of the same run without a stop.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path("tests/golden")
# Set before torch is imported, here and in the processes started below.
ENVIRONMENT = {
    "ACCELERATE_USE_CPU": "true",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}
SETTINGS = {
    "model.name": "tests/golden/golden-base",
    "train.mixed_precision": "no",
    "train.batch_size": "8",
    "prefix_cache.use": "never",
}
RUN = SETTINGS | {"data.max_train_clips": "40", "train.epochs": "2", "lora.r": "4"}
COMPARISON = SETTINGS | {
    "arms": "[head_only, lora, majority]",
    # High rates, so that few steps separate the two arms.
    "own_arms": "{head_only: {recipe: head_only, learning_rates: [3e-2, 1e-1]}, "
    "lora: {recipe: lora, learning_rates: [1e-2, 3e-2]}}",
    "reference": "lora",
    "trials": "2",
    "extra_trials": "0",
    "seeds": "5",
    "data.max_train_clips": "40",
    "train.epochs": "2",
}
# Dropout and masks, so that resuming must restore the random numbers too. The rate and the metric make the last epoch
# the best one, so that the final weights depend on the steps after the stop.
STOPPED = SETTINGS | {
    "data.max_train_clips": "48",
    "train.epochs": "3",
    "train.learning_rate": "1e-2",
    "train.best_metric": "loss",
    "train.verify_adapter": "false",
    "model.dropout": "0.1",
    "model.head_dropout": "0.1",
    "lora.r": "4",
    "lora.dropout": "0.1",
    "augment.mask_time_share": "0.1",
}
# The third of six steps of the second epoch: the weights of the best epoch are kept as well.
STOP_STEP = 9
# Fields of `report.json` that depend on the clock or the machine are not recorded.
FIGURES = (
    "test_accuracy",
    "test_macro_f1",
    "test_loss",
    "validation_accuracy",
    "validation_macro_f1",
    "validation_loss",
    "best_epoch",
    "steps",
)


def arguments(settings: dict[str, str]) -> list[str]:
    """Format settings as command-line flags."""
    return [part for name, value in settings.items() for part in (f"--{name}", value)]


def run_recipe(recipe: str, settings: dict[str, str]) -> None:
    """Run a recipe in a separate process."""
    subprocess.run([sys.executable, f"recipes/{recipe}.py", *arguments(settings)], check=True)


def make_run(folder: Path) -> None:
    """Make a finished run."""
    run_recipe("lora", RUN | {"train.output_dir": str(folder)})
    # Its snippet has the absolute path of the base.
    (folder / "adapter" / "README.md").unlink()


def make_comparison(folder: Path) -> None:
    """Make a comparison, and reduce it to the files that `peft-audio report` reads."""
    run_recipe("compare", COMPARISON | {"output_dir": str(folder)})
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        in_adapter = path.parent.name == "adapter" and path.name != "adapter_config.json"
        if in_adapter or path.suffix in (".log", ".lock", ".md", ".html", ".png", ".svg") or path.name == ".lock":
            path.unlink()
    for path in folder.glob("runs/*/*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        record["command"][:2] = ["python", f"recipes/{record['recipe']}.py"]
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    # The expected result is that of the reduced folder.
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "peft_audio.cli", "report", str(folder), "--out", out]
        subprocess.run(command, check=True)
        shutil.copyfile(Path(out) / "comparison.json", folder / "comparison.json")


def make_stopped_run(folder: Path) -> None:
    """Make a run that SIGTERM stops after `STOP_STEP` steps."""
    from peft_audio.training.checkpointing import Saver

    save_if_due = Saver.save_if_due

    def stop_and_save(saver: Saver, position: Any) -> None:
        if position.step == STOP_STEP:
            signal.raise_signal(signal.SIGTERM)
        save_if_due(saver, position)

    argv = ["lora.py", *arguments(STOPPED | {"train.output_dir": str(folder)})]
    with mock.patch.object(Saver, "save_if_due", stop_and_save), mock.patch.object(sys, "argv", argv):
        try:
            runpy.run_path("recipes/lora.py", run_name="__main__")
        except SystemExit as error:
            if error.code == 128 + signal.SIGTERM:
                return
            raise
    raise RuntimeError("the run did not stop")


def make_figures(file: Path) -> None:
    """Record the figures of the stopped run as they are without a stop."""
    from safetensors.torch import load_file

    from peft_audio.encoders.loading import weights_sha256

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        run_recipe("lora", STOPPED | {"train.output_dir": str(folder)})
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        figures = {
            "versions": report["versions"],
            "processor": processor(),
            "weights_sha256": weights_sha256(load_file(folder / "adapter" / "adapter_model.safetensors")),
            "report": {name: report[name] for name in FIGURES},
            "metrics": [json.loads(line) for line in lines],
        }
    file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def processor() -> str:
    """Name the processor and its vector instructions, because the last bits of a sum depend on them."""
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    # Cloud machines use one name for several processor models.
    words = [facts[name] for name in ("model name", "cpu family", "model", "stepping") if name in facts]
    return ", ".join([*words, torch.backends.cpu.get_cpu_capability()])


def with_local_paths(place: Path) -> Iterator[Path]:
    """Find files that contain the path of the repository, of the home folder or of the temporary folder."""
    local = [f"{path}/".encode() for path in (ROOT, Path.home(), Path(tempfile.gettempdir()), Path(sys.prefix))]
    for path in [place, *place.rglob("*")]:
        if path.is_file() and any(name in path.read_bytes() for name in local):
            yield path


def main() -> None:
    """Make the golden runs that do not exist yet."""
    os.environ.update(ENVIRONMENT)
    os.chdir(ROOT)
    steps = {
        "run": make_run,
        "comparison": make_comparison,
        "uninterrupted.json": make_figures,
        "checkpoint": make_stopped_run,
    }
    for name, make in steps.items():
        place = GOLDEN / name
        if place.exists():
            continue
        make(place)
        place.with_name(f".{name}.lock").unlink(missing_ok=True)
        if wrong := list(with_local_paths(place)):
            raise RuntimeError(f"paths of this machine in {', '.join(map(str, wrong))}; remove {place}")
        size = sum(path.stat().st_size for path in [place, *place.rglob("*")] if path.is_file())
        print(f"{place}: {size:,} bytes")


if __name__ == "__main__":
    main()
