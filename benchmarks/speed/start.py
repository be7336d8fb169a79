"""Measure how long commands take to print their first line.

    python benchmarks/speed/start.py                     # median of five starts of each
    python benchmarks/speed/start.py --repeats 3 --launch   # and under `accelerate launch`

Wall time until the first line of the output, and the CPU time that the process spent until then. Each command is ended
after that line, so no run is made. `--launch` compares a recipe with a script that only prints.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from statistics import median

import psutil

ROOT = Path(__file__).parents[2]
LORA = str(ROOT / "recipes" / "lora.py")
COMMANDS = {
    "python -c 'print()'": ["-c", "print()"],
    "import peft_audio": ["-c", "import peft_audio; print()"],
    "peft-audio --version": ["-m", "peft_audio.cli", "--version"],
    "peft-audio --help": ["-m", "peft_audio.cli", "--help"],
    "peft-audio predict --help": ["-m", "peft_audio.cli", "predict", "--help"],
    "peft-audio train --help": ["-m", "peft_audio.cli", "train", "--help"],
    "recipes/lora.py --help": [LORA, "--help"],
    "recipes/compare.py --help": [str(ROOT / "recipes" / "compare.py"), "--help"],
    "recipes/lora.py, first line of a run": [LORA],
    "peft-audio train, first line of a run": ["-m", "peft_audio.cli", "train"],
}


def first_line(command: list[str], folder: Path) -> tuple[float, float]:
    """Start a command, wait for its first line and end it.

    Args:
        command: Command line.
        folder: Empty working directory.

    Returns:
        Wall time and CPU time in seconds until the line.
    """
    began = time.perf_counter()
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.readline()
        wall = time.perf_counter() - began
        cpu = float("nan")  # of a process that ended already
        with suppress(psutil.Error):
            started = psutil.Process(process.pid)
            times = started.cpu_times()
            cpu = times.user + times.system
            for child in started.children(recursive=True):
                child.kill()
        process.kill()
    return wall, cpu


def measure(command: list[str], repeats: int) -> tuple[float, float]:
    """Return the medians of wall and CPU time over several starts; a first one fills the disk's cache."""
    with tempfile.TemporaryDirectory() as folder:
        times = [first_line(command, Path(folder)) for _ in range(repeats + 1)][1:]
    return median(wall for wall, _ in times), median(cpu for _, cpu in times)


def main() -> None:
    """Measure each command and print a row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="starts of each command (default: %(default)s)")
    parser.add_argument("--launch", action="store_true", help="measure under accelerate launch as well")
    options = parser.parse_args()
    commands = {name: [sys.executable, *words] for name, words in COMMANDS.items()}
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty.py"
        empty.write_text("print(flush=True)\n", encoding="utf-8")
        launch = [str(Path(sys.executable).with_name("accelerate")), "launch", "--quiet", "--config_file"]
        launch.append(str(ROOT / "recipes" / "accelerate" / "one_process.yaml"))
        if options.launch:
            commands["accelerate launch, a script that prints"] = [*launch, str(empty)]
            commands["accelerate launch recipes/lora.py"] = [*launch, LORA]
        print(f"{'until the first line':<42}{'wall, s':>9}{'CPU, s':>9}")
        for name, command in commands.items():
            wall, cpu = measure(command, options.repeats)
            print(f"{name:<42}{wall:>9.2f}{cpu:>9.2f}", flush=True)


if __name__ == "__main__":
    main()
