"""What is said of adapters that are broken on purpose.

    python tests/helpers/broken_adapters.py               # the table of docs/adapters.md

The faults are those of faults.py.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from peft_audio.adapters.load import load_adapter
from peft_audio.cli import main

sys.path.append(str(Path(__file__).parents[1]))  # run as a script, too
from helpers.adapter_faults import FAULTS, GOLDEN, MARKER, WHOLE, weights


@dataclass(frozen=True)
class Said:
    """Exit codes and words of the two commands; what loading raised, or how far its logits are from the right ones."""

    verify: tuple[int, str]
    predict: tuple[int, str]
    load: str | float


def prepare(folder: Path) -> None:
    """What the faults need beside them: the golden base, another one, and a clip."""
    shutil.copytree(GOLDEN / "golden-base", folder / "golden-base")
    other = shutil.copytree(GOLDEN / "golden-base", folder / "other-base")
    weights(lambda w: w["encoder.layers.1.feed_forward.output_dense.bias"][3].add_(1e-3), WHOLE)(other)
    soundfile.write(folder / "clip.wav", clip(), 16_000, subtype="FLOAT")


def clip() -> np.ndarray:
    time = np.arange(8_000) / 16_000
    return (0.4 * np.sin(2 * np.pi * 440 * time) + 0.05 * np.sin(2 * np.pi * 2750 * time)).astype(np.float32)


def ask(name: str, right: np.ndarray) -> Said:
    """Damage a copy in the current folder, which `prepare` filled, and ask about it."""
    fault, folder = FAULTS[name], Path("adapter")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(GOLDEN / fault.of, folder)
    fault.damage(folder)
    verify = _run(["verify", str(folder)])
    predict = _run(["predict", "clip.wav", "--adapter", str(folder)])
    if predict[0] == 2:
        # What load_adapter raised, in the command's words; loading once more would only take as long again.
        return Said(verify, predict, predict[1].removeprefix("error: ").strip())
    load = float(np.abs(load_adapter(folder).logits([clip()]) - right).max())
    return Said(verify, predict, load)


def right_logits(product: str) -> np.ndarray:
    whole = product == "full"
    return load_adapter(GOLDEN / product, base=None if whole else str(GOLDEN / "golden-base")).logits([clip()])


def _run(command: list[str]) -> tuple[int, str]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = main(command)
    return code, out.getvalue()


def table() -> None:
    """Print a row a fault."""
    sys.stdout.write("| fault | `peft-audio verify` | `peft-audio predict` and `load_adapter` |\n|---|---|---|\n")
    with tempfile.TemporaryDirectory() as elsewhere:
        os.chdir(elsewhere)
        prepare(Path())
        for name, fault in FAULTS.items():
            said = ask(name, right_logits(fault.of))
            lines = [line for line in said.verify[1].splitlines() if fault.words in line] or [f"not: {fault.words}"]
            loaded = said.load if isinstance(said.load, str) else f"loads; logits differ by at most {said.load:.0e}"
            cells = (name, f"{said.verify[0]}: {lines[0]}", loaded)
            cells = tuple(cell.replace(elsewhere, "...").replace("|", "\\|").replace("\n", " ")[:220] for cell in cells)
            print("|", " | ".join(cells), "|", flush=True)
            if Path(MARKER).exists():
                raise SystemExit(f"{name}: code was executed")


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    table()
