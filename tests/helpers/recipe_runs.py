"""Run recipes, in this process or through `accelerate launch`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

Go = Callable[..., int]  # runs a recipe in this process, gives its exit code
ROOT = Path(__file__).parents[2]


def settings(data: Path, base: Path, output: Path) -> list[str]:
    """Steps of 5, 5 and 2 clips."""
    flags = {
        "data.source": data,
        "model.name": base,
        "train.output_dir": output,
        "train.epochs": 8,
        "train.batch_size": 5,
        "train.learning_rate": 0.01,
        "train.best_metric": "loss",
        "train.mixed_precision": "no",
    }
    return [part for name, value in flags.items() for part in (f"--{name}", str(value))]


ACCELERATE = str(Path(sys.executable).with_name("accelerate"))


ONE_PROCESS = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]


LAUNCH_CONFIGS = ROOT / "recipes" / "accelerate"


def two_processes() -> list[str]:
    """On a port that nothing else listens on."""
    return ["--config_file", str(LAUNCH_CONFIGS / "two_cpu_processes.yaml"), "--main_process_port", free_port()]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def launch(
    launcher: list[str], arguments: list[str], cwd: Path, strategy: str = "lora", **environment: str
) -> tuple[str, str]:
    """What `accelerate launch recipes/lora.py` prints to stdout and stderr; the launcher has nothing to ask for."""
    command = [ACCELERATE, "launch", *launcher, str(ROOT / "recipes" / f"{strategy}.py")]
    child = subprocess.run(
        [*command, *arguments],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stdout + child.stderr
    return child.stdout, child.stderr
