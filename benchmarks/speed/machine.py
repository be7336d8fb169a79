"""Measure a machine or make a base for the other benchmarks, each in a fresh process.

    python benchmarks/speed/machine.py machine              # versions, and the speed of matrix products
    python benchmarks/speed/machine.py imports SCRIPT       # peak bytes of a process with the imports of a script
    python benchmarks/speed/machine.py base FOLDER 12       # an encoder with random weights and 12 layers
    python benchmarks/speed/machine.py flops BASE STRATEGY CLIPS SECONDS  # operations of one plain training step

The last line of the output is JSON. The parent process must not import torch, because Linux counts the memory of the
parent as that of a forked child.
"""

from __future__ import annotations

import json
import os
import platform
import runpy
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

from joblib import cpu_count

NANO = Path(__file__).parents[2] / "peft_audio" / "assets" / "wav2vec2-nano"
SAMPLING_RATE = 16_000
# Values of train.mixed_precision by precision.
PRECISIONS = {"fp32": "no", "bf16": "bf16"}
LAST_LINES = 15
PEAK_SECONDS = 3.0  # time of the matrix products per precision


def run(command: list[str], where: dict[str, str] | None = None) -> str:
    """Run a command and return its output; exit with its last lines if it fails."""
    done = subprocess.run(command, env=where, capture_output=True, text=True, check=False)
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-LAST_LINES:])
        raise SystemExit(f"{' '.join(command)} failed with {done.returncode}:\n{last}")
    return done.stdout


def measured(*words: object) -> Any:
    """Run a measurement of this file in a fresh process and return its result."""
    return json.loads(run([sys.executable, __file__, *map(str, words)]).splitlines()[-1])


def set_environment(threads: int) -> None:
    """Set the environment of child processes: number of threads, one GPU and no network."""
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    os.environ |= {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": gpu}


def in_words(machine: dict[str, Any]) -> str:
    """Describe the machine in words."""
    sides = machine["sides"]
    peaks = ", ".join(f"{name} {peak / 1e9:,.1f} (of {sides[name]})" for name, peak in machine["peaks"].items())
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    gpu = f"{machine['gpu']}, " if machine["gpu"] else ""
    return (
        f"{gpu}{machine['cpu']}, {machine['cores']} cores, threads used: {machine['threads']}; {versions}. "
        f"Square matrix products reach, in GFLOP/s: {peaks}."
    )


def machine() -> dict[str, Any]:
    """Return the versions and the peak of operations per second of matrix products in each precision."""
    import torch

    cuda = torch.cuda.is_available()
    fast = cuda or torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    # Without bf16 in hardware, one product of the larger size takes a minute.
    sides = {"fp32": 4096 if cuda else 2048, "bf16": 4096 if cuda else 2048 if fast else 512}
    types = {"fp32": torch.float32, "bf16": torch.bfloat16}
    return {
        "cpu": _cpu(),
        "cores": cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "versions": {package: version(package) for package in ("torch", "transformers", "peft", "accelerate")},
        "fast_bf16": fast,
        "sides": sides,
        "peaks": {name: _matrix_peak(types[name], side) for name, side in sides.items()},
    }


def _cpu() -> str:
    """Return the name of the processor."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8").splitlines() if about.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _matrix_peak(dtype: Any, side: int) -> float:
    """Return the operations per second of the fastest product of two square matrices."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best, until = float("inf"), perf_counter() + PEAK_SECONDS
    # At least two calls, because the first one includes planning.
    for i in range(1000):
        began = perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, perf_counter() - began)
        if i and perf_counter() > until:
            break
    return 2 * side**3 / best


def imports(script: str) -> int:
    """Return the peak bytes after the imports of a script; on CUDA only tensors count."""
    import resource

    runpy.run_path(script, run_name="imported")
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def base(folder: str, size: str) -> str:
    """Save an encoder with random weights and its feature extractor.

    Args:
        folder: Destination.
        size: "nano" for the sizes of the bundled encoder in float32, or the number of layers with the width of
            wav2vec2-base. The bundled encoder itself is stored in fp16 and cannot be trained as documented on a CPU.
    """
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    torch.manual_seed(0)
    nano = size == "nano"
    config = Wav2Vec2Config.from_pretrained(NANO) if nano else Wav2Vec2Config(num_hidden_layers=int(size))
    Wav2Vec2Model(config).float().save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return folder


def flops(base: str, strategy: str, clips: str, seconds: str) -> int:
    """Count the floating-point operations of a training step: one forward and backward pass without a cache."""
    import torch
    from as_documented import freeze
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoConfig, AutoModelForAudioClassification

    config = AutoConfig.from_pretrained(base)
    # Only shapes matter, so nothing is computed. Eager attention, because not all fused kernels are counted.
    with torch.device("meta"):
        model = AutoModelForAudioClassification.from_config(config, attn_implementation="eager")
        if strategy != "full-cnn":
            model.freeze_feature_encoder()
        # Eval mode, because SpecAugment and LayerDrop need values.
        model = freeze(model, strategy).eval()
        waveforms = torch.zeros(int(clips), round(float(seconds) * SAMPLING_RATE))
        with FlopCounterMode(display=False) as counter:
            model(input_values=waveforms).logits.sum().backward()
    return counter.get_total_flops()


MEASURES: dict[str, Callable[..., Any]] = {"machine": machine, "imports": imports, "base": base, "flops": flops}

if __name__ == "__main__":
    print(json.dumps(MEASURES[sys.argv[1]](*sys.argv[2:])))
