"""Every encoder with every strategy, from training to what others load; prints the matrix."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from helpers.cuts import EVERY
from helpers.tiny_ast import save_ast
from helpers.tiny_encoders import ENCODERS, SIBLINGS, save_encoder
from helpers.tiny_whisper import save_whisper
from helpers.trained_encoders import Trained, clips, make

from peft_audio.adapters import verify
from peft_audio.adapters.load import Adapter, load_adapter
from peft_audio.adapters.probes import probe_waveforms
from peft_audio.adapters.record import AdapterRecord
from peft_audio.adapters.save import saved_weights
from peft_audio.adapters.snippet import probing_code
from peft_audio.encoders.family import FAMILIES
from peft_audio.publish.export import ONNX_TOLERANCE, write_graph
from peft_audio.strategies import STRATEGIES

pytestmark = pytest.mark.filterwarnings("ignore:At least one mel filter has all zero:UserWarning")
ROWS: dict[str, Callable[[Path], Path]] = {
    **{name: partial(save_encoder, config=config) for name, config in (ENCODERS | SIBLINGS).items()},
    "whisper": save_whisper,
    "ast": save_ast,
}
# With a mixture of layers.
MIXTURES = ("wav2vec2-large, XLS-R", "hubert-large", "wavlm-large", "unispeech-sat-large")
# How far logits may be from those that were saved, relative to a clip's largest where that is above 1.
TOLERANCES = {
    "in a padded batch": 1e-5,
    "from the cached part": 2e-5,
    "merged by load_adapter": 2e-5,
    "README, fresh process": 2e-5,
    "PEFT unmerged, fresh process": 2e-5,
    "ONNX Runtime": ONNX_TOLERANCE,
}
# Encoder, strategy and route that do not exist, each with the module and the line of the library that prevents it.
Refused = dict[tuple[str, str, str], tuple[str, str]]
PASSES_WEIGHTS = ("transformers.models.wavlm.modeling_wavlm", "q_proj_weight=self.q_proj.weight,")
REFUSED: Refused = {
    (encoder, strategy, "PEFT unmerged, fresh process"): PASSES_WEIGHTS
    for encoder in ("wavlm-base", "wavlm-large")
    for strategy in EVERY
    if strategy == "attention_heads" or strategy.startswith(("ia3", "lora"))
}
# Run the code of several READMEs in one process: each folder holds code.py and probes.npz, and gets answers.json.
RUN = """
import os, sys
for folder in sys.argv[1:]:
    os.chdir(folder)
    exec(compile(open("code.py").read(), folder, "exec"), {})
"""


def test_every_family_and_strategy_is_in_the_matrix(tmp_path: Path) -> None:
    assert STRATEGIES.keys() <= EVERY.keys()
    configs = [json.loads((save(tmp_path / name) / "config.json").read_text()) for name, save in ROWS.items()]
    assert FAMILIES.keys() == {config["model_type"] for config in configs}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_encoder_with_every_strategy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found: dict[tuple[str, str, str], float] = {}
    cuts: dict[tuple[str, str], str] = {}
    waiting: list[Callable[[], dict[tuple[str, str, str], float]]] = []
    for encoder, save in ROWS.items():
        base = save(tmp_path / encoder / "base")
        folders: dict[tuple[str, str], Path] = {}
        sizes: dict[str, int] = {}
        for strategy in EVERY:
            folder = tmp_path / encoder / strategy
            folder.mkdir()
            made = make(base, strategy, folder, encoder in MIXTURES)
            assert verify.check_probes(made.folder) == [], (encoder, strategy)
            sizes[strategy] = saved_weights(made.folder).stat().st_size
            adapter = load_adapter(made.folder)
            found |= {(encoder, strategy, route): off for route, off in answers_here(made, adapter, folder).items()}
            cuts[encoder, strategy] = str(made.cut)
            folders |= {(strategy, route): one for route, one in write_code(made, adapter.record, folder, base).items()}
        assert {strategy for strategy in EVERY if sizes[strategy] >= sizes["full"]} == {"full", "full, train_cnn"}
        # The process for one encoder runs beside the training of the next.
        waiting.append(ask_in_a_fresh_process(encoder, folders))
    for answer in waiting:
        found |= answer()
    with capsys.disabled():
        print(page(found, cuts))
    for module, line in set(REFUSED.values()):
        assert line in inspect.getsource(import_module(module)), f"{module} does not prevent it any more"
    too_far = {cell for cell, off in found.items() if not off <= TOLERANCES[cell[2]]}
    assert too_far == REFUSED.keys()


def relative(answers: Any, expected: Any) -> float:
    """The largest difference of logits, relative to a clip's largest where that is above 1."""
    was = np.asarray(expected)
    return float((np.abs(np.asarray(answers) - was).max(1) / np.maximum(1, np.abs(was).max(1))).max())


def answers_here(made: Trained, adapter: Adapter, folder: Path) -> dict[str, float]:
    """Compare the routes that need no other process."""
    assert made.logits.std(0).max() > 2e-4, "the clips must have different answers"
    whole, after_cut = made.steps[0]["logits"], made.steps[-1]["logits"]
    units = np.maximum(1, np.abs(made.logits).max())
    write_graph(adapter, folder / "model.onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    graph, expected = [], []
    for waveform in probes(adapter.record):
        here: dict[str, Any] = {"np": np, "waveforms": waveform[None]}
        exec(adapter.record.family.graph_code(adapter.record.input), here)
        name = adapter.record.family.graph_input(adapter.record.input)
        graph.append(session.run(["logits"], {name: here["values"]})[0][0])
        expected.append(adapter.logits([waveform])[0])
    return {
        "in a padded batch": made.padding_error / units,
        "from the cached part": relative(after_cut, whole),
        "merged by load_adapter": relative(adapter.logits(clips()), made.logits),
        "ONNX Runtime": relative(graph, expected),
    }


def probes(record: AdapterRecord) -> list[np.ndarray]:
    return probe_waveforms(record.sampling_rate, [probe["seconds"] for probe in record.probes])


def write_code(made: Trained, record: AdapterRecord, folder: Path, base: Path) -> dict[str, Path]:
    """Write the code of the README, and the same without its merge, each into a folder with the probe clips."""
    code = probing_code(made.folder, record, str(base))
    codes = {"README, fresh process": code}
    if not record.whole:
        codes["PEFT unmerged, fresh process"] = code.replace(".merge_and_unload()", "")
    folders = {}
    for i, (route, text) in enumerate(codes.items()):
        folders[route] = folder / str(i)
        folders[route].mkdir()
        (folders[route] / "code.py").write_text(text, encoding="utf-8")
        np.savez(folders[route] / "probes.npz", *probes(record))
        recorded = [list(probe["logits"].values()) for probe in record.probes]
        (folders[route] / "recorded.json").write_text(json.dumps(recorded))
    return folders


def ask_in_a_fresh_process(
    encoder: str, folders: dict[tuple[str, str], Path]
) -> Callable[[], dict[tuple[str, str, str], float]]:
    """Start a process without this package for all adapters of one encoder; the function waits for its answers."""
    command = [sys.executable, "-P", "-c", RUN, *map(str, folders.values())]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def answers() -> dict[tuple[str, str, str], float]:
        _, errors = child.communicate()
        assert child.returncode == 0, f"{encoder}: {errors}"
        return {
            (encoder, *cell): relative(
                json.loads((folder / "answers.json").read_text()), json.loads((folder / "recorded.json").read_text())
            )
            for cell, folder in folders.items()
        }

    return answers


def page(found: dict[tuple[str, str, str], float], cuts: dict[tuple[str, str], str]) -> str:
    """The matrix: the largest difference over all routes; * where a route does not exist; and where the cache cuts."""
    lines = [
        "",
        "largest difference of logits over all routes (* without those that are refused below):",
    ]
    lines.append(f"{'':24}" + "".join(f"{strategy:>26}" for strategy in EVERY))
    for encoder in ROWS:
        row = ""
        for strategy in EVERY:
            cell = {key: off for key, off in found.items() if key[:2] == (encoder, strategy)}
            refused = cell.keys() & REFUSED.keys()
            row += f"{max(off for key, off in cell.items() if key not in refused):25.0e}{'*' if refused else ' '}"
        lines.append(f"{encoder:<24}{row}")
    lines += ["", "largest by route:"]
    for route in TOLERANCES:
        far = max(off for key, off in found.items() if key[2] == route and key not in REFUSED)
        lines.append(f"  {route}: {far:.0e}")
    lines += ["", "cached before training:"]
    for strategy in EVERY:
        places = {cuts[encoder, strategy] for encoder in ROWS}
        for place in sorted(places):
            there = [encoder for encoder in ROWS if cuts[encoder, strategy] == place]
            lines.append(f"  {strategy}: {place}" + ("" if len(places) == 1 else f" ({', '.join(there)})"))
    lines += ["", "refused, with the line of the library that prevents it:"]
    lines += [f"  {' x '.join(cell)}: {found[cell]:.0e}; {module}: {line}" for cell, (module, line) in REFUSED.items()]
    return "\n".join(lines)
