"""Child processes on a CPU with AVX512-BF16, and the line that bitsandbytes prints there."""

from __future__ import annotations

import os
import re
from pathlib import Path

# Makes bitsandbytes believe that the CPU has AVX512-BF16; Python imports this file when it starts.
PRETENCE = """
import ctypes

find = ctypes.CDLL.__getattr__
ctypes.CDLL.__getattr__ = lambda self, name: (lambda: True) if name == "has_avx512bf16_cpu" else find(self, name)
"""
KERNEL_LINE = r"Failed to load CPU gemm_4bit_forward from kernels-community: .*\n"


def pretend_bf16_units(folder: Path) -> dict[str, str]:
    """Return the environment of a child process whose CPU seems to have AVX512-BF16.

    Args:
        folder: an empty folder for the module that the child imports first.
    """
    (folder / "sitecustomize.py").write_text(PRETENCE)
    return os.environ | {"PYTHONPATH": str(folder)}


def without_kernel_line(stderr: str) -> str:
    """Remove the line that bitsandbytes prints on CPUs with AVX512-BF16, and nothing else."""
    return re.sub(rf"^{KERNEL_LINE}", "", stderr, count=1, flags=re.MULTILINE)
