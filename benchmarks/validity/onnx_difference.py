"""Measure the difference between logits of ONNX Runtime and torch, and the operations that differ most.

    python benchmarks/validity/onnx_difference.py
    python benchmarks/validity/onnx_difference.py --seeds 3 --families wavlm-large

Each family of `tests/helpers/tiny_encoders.py` is exported with random weights, once per case and seed. The first table
holds the largest difference of logits over the probe clips of a record, relative to the clip's largest absolute logit
where that is above 1: of ONNX Runtime, and of torch with merged weights (the part that is not due to ONNX Runtime).
Each operation adds the terms of its sums in another order, and large random weights make that difference grow.

The second table compares the largest case layer by layer. `alone` is the difference of an operation that gets ONNX
Runtime's own input; `so far` is the difference of its output in the whole model; `growth` is how much more that is than
in the module before. All are relative to the largest entry of the output. The table holds the modules with the largest
`alone` and `growth`, in the order of the model.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn
from transformers import Wav2Vec2FeatureExtractor
from transformers import logging as transformers_logging

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from helpers.tiny_encoders import ENCODERS, save_encoder
from helpers.trained_models import PRODUCTS, describe

from peft_audio.adapters.load import Adapter
from peft_audio.adapters.probes import probe_waveforms
from peft_audio.publish.export import ONNX_TOLERANCE, write_graph
from peft_audio.text import markdown_table

# Those of the families that take waveforms.
PROBE_SECONDS = (0.01, 0.5, 1.0, 2.3)
# Strategy and standard deviation of its trained weights; tests use these.
CASES = {"lora, 0.2": ("lora", 0.2), "lora, 0.5": ("lora", 0.5), "full, 0.2": ("full", 0.2)}


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20, help="random weights per family and case (default: 20)")
    parser.add_argument("--families", nargs="+", choices=ENCODERS, default=list(ENCODERS), help="default: all")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    parser.add_argument("--shown", type=int, default=6, help="modules per column of the second table (default: 6)")
    options = parser.parse_args()
    transformers_logging.disable_progress_bar()
    rows, worst = [], (0.0, "", "", -1)
    for family in options.families:
        row = [family]
        for case in options.cases:
            found = np.array([measure(family, case, seed) for seed in range(options.seeds)])
            row += [f"{value:.1e}" for value in (np.median(found[:, 0]), found[:, 0].max(), found[:, 1].max())]
            worst = max(worst, (found[:, 0].max(), family, case, int(found[:, 0].argmax())))
            print(family, case, *row[-3:], file=sys.stderr, flush=True)
        rows.append(row)
    kinds = ("median", "largest", "torch, merged")
    print(f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, {options.seeds} seeds, ", end="")
    print(f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}\n")
    print(markdown_table(["family", *(f"{case}: {kind}" for case in options.cases for kind in kinds)], rows))
    largest, family, case, seed = worst
    print(f"\nLargest: {largest:.1e} with {family}, {case}, seed {seed}; allowed: {ONNX_TOLERANCE:.0e}\n")
    layers = compare_layers(family, case, seed)
    shown = {
        name
        for column in ("alone", "growth")
        for name, _ in sorted(((each["name"], each[column]) for each in layers), key=lambda pair: -pair[1])[
            : options.shown
        ]
    }
    cells = [
        [each["name"], each["kind"], *(f"{each[column]:.1e}" for column in ("alone", "so far", "growth"))]
        for each in layers
        if each["name"] in shown
    ]
    print(markdown_table(["module", "kind", "alone", "so far", "growth"], cells))


def measure(family: str, case: str, seed: int) -> tuple[float, float]:
    """Return the largest relative difference of logits of ONNX Runtime, and that of torch with merged weights."""
    with exported(family, case, seed) as (trained, merged, graph):
        session = start_session(graph)
        found = []
        for values in clips():
            logits = session.run(["logits"], {"input_values": values.numpy()})[0]
            with torch.no_grad():
                expected, plain = trained(values).logits.numpy(), merged(values).logits.numpy()
            found.append((difference(logits, expected), difference(plain, expected)))
    return max(first for first, _ in found), max(second for _, second in found)


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference of logits, relative to max(1, the largest expected absolute logit)."""
    return float(np.abs(found - expected).max()) / max(1.0, float(np.abs(expected).max()))


def compare_layers(family: str, case: str, seed: int) -> list[dict[str, Any]]:
    """Return the largest differences over the probe clips of the outputs of all modules without submodules."""
    with exported(family, case, seed) as (_, model, path):
        graph = onnx.load(path)
        weights = {each.name for each in graph.graph.initializer}
        names = {name for node in graph.graph.node for name in [*node.input, *node.output] if name} - weights
        names -= {"input_values", *(each.name for each in graph.graph.output)}
        graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(names))
        session = start_session(graph.SerializeToString())
        outputs = [each.name for each in session.get_outputs()]
        found: dict[str, dict[str, Any]] = {}
        for values in clips():
            given = {"input_values": values.numpy()}
            tensors = given | dict(zip(outputs, session.run(outputs, given), strict=True))
            for name, module, expected in leaf_outputs(model, values):
                nodes = [node for node in graph.graph.node if node.name.startswith(scope(name))]
                inputs = [tensors[each] for each in nodes[0].input if each in tensors] if nodes else []
                # Modules that the exporter folds away, and those whose output another module reshapes.
                if not inputs or tensors[nodes[-1].output[0]].shape != expected.shape:
                    continue
                with torch.no_grad():
                    alone = module(torch.from_numpy(inputs[0])).numpy()
                largest, output = float(np.abs(expected).max()), tensors[nodes[-1].output[0]]
                row = found.setdefault(name, {"name": name, "kind": type(module).__name__, "alone": 0.0, "so far": 0.0})
                row["alone"] = max(row["alone"], float(np.abs(output - alone).max()) / largest)
                row["so far"] = max(row["so far"], float(np.abs(output - expected).max()) / largest)
    before = 0.0
    for row in found.values():
        row["growth"], before = row["so far"] - before, row["so far"]
    return list(found.values())


def leaf_outputs(model: nn.Module, values: torch.Tensor) -> list[tuple[str, nn.Module, np.ndarray]]:
    """Return name, module and output of each module without submodules, in one pass through the model."""
    outputs: list[tuple[str, nn.Module, np.ndarray]] = []
    hooks = [
        module.register_forward_hook(
            lambda module, _, output, name=name: outputs.append((name, module, output.numpy()))
        )
        for name, module in model.named_modules()
        if not [*module.children()]
    ]
    with torch.no_grad():
        model(values)
    for hook in hooks:
        hook.remove()
    return outputs


@contextmanager
def exported(family: str, case: str, seed: int) -> Iterator[tuple[nn.Module, nn.Module, Path]]:
    """Export a model with random weights, and yield the model, the merged model and the graph."""
    strategy, std = CASES[case]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        made = describe(save_encoder(root / "base", ENCODERS[family], seed), PRODUCTS[strategy], seed, std)
        merged = copy.deepcopy(made.model)
        merged = merged.merge_and_unload() if strategy == "lora" else merged
        write_graph(Adapter(merged, made.extractor, made.record), root / "model.onnx")
        yield made.model, merged, root / "model.onnx"


def start_session(graph: Path | bytes) -> onnxruntime.InferenceSession:
    """Load a graph as the README of an export does."""
    return onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])


def clips() -> list[torch.Tensor]:
    """Prepare the probe clips as the README of an export does: float32 of shape (1, samples)."""
    extractor = Wav2Vec2FeatureExtractor()
    probes = probe_waveforms(16_000, PROBE_SECONDS)
    rows = [extractor(clip, sampling_rate=16_000, return_tensors="pt").input_values for clip in probes]
    return [nn.functional.pad(row, (0, max(0, 400 - row.shape[1]))) for row in rows]


def scope(name: str) -> str:
    """Return the prefix that torch's exporter gives to the nodes of a module."""
    path = "/model"
    for part in name.split("."):
        path += f".{part}" if part.isdigit() else f"/{part}"
    return f"{path}/"


if __name__ == "__main__":
    main()
