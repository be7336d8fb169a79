"""Export an adapter as a transformers directory or as a graph for ONNX Runtime."""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from textwrap import indent
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from peft_audio.adapters.files import WHOLE_CONFIG
from peft_audio.adapters.hub import COMMON_FILES, WHOLE_FILES
from peft_audio.adapters.load import Adapter, load_adapter, model_inputs
from peft_audio.adapters.probes import probe_waveforms, relative_difference
from peft_audio.adapters.record import RECORD, AdapterRecord, labels_as_code, metrics_table, warnings_on
from peft_audio.adapters.save import VERIFY_SECONDS
from peft_audio.adapters.snippet import pipeline_code
from peft_audio.adapters.verify import TOLERANCE
from peft_audio.encoders.base import windows_in_words
from peft_audio.encoders.loading import quiet_loading
from peft_audio.errors import UserError
from peft_audio.files import replace_folder
from peft_audio.pages.render import render_text
from peft_audio.processes import run_python
from peft_audio.text import escape_markdown

# Largest allowed difference between logits of ONNX Runtime and the recorded ones, relative to max(1, the clip's largest
# absolute logit). benchmarks/validity/onnx_difference.py measured at most 3.7e-4: ONNX Runtime sums in another order
# (3e-7), and large random weights amplify the difference. The rest is a margin for other CPUs.
ONNX_TOLERANCE = 1e-3
# Code appended to the snippet of an export: compute the logits of each clip by label, for batches of shape (clips,
# samples).
TAIL = """
import json, sys
import numpy as np

answers = [answer for batch in np.load(sys.argv[1]).values() for answer in answer_batch(batch)]
foreign = {"peft_audio", "peft", *%s} & sys.modules.keys()
assert not foreign, f"imported {foreign}"
with open(sys.argv[2], "w", encoding="utf-8") as file:
    json.dump(answers, file)
"""
BY_PIPELINE = """

def answer_batch(batch):
    scores = [classify(clip, top_k=None, function_to_apply="none") for clip in batch]
    return [{score["label"]: score["score"] for score in clip} for clip in scores]
"""
BY_ONNX = """

def answer_batch(batch):
    return [dict(zip(labels.values(), row)) for row in logits_of(batch).tolist()]
"""


@dataclass(frozen=True)
class Form:
    """Properties of a form of export.

    Attributes:
        name: Name of its flag.
        files: Names of its files.
        needs: Additional packages for writing and checking it.
        pads_short: Whether its snippet pads clips that are too short for the encoder.
        tolerance: Allowed difference to the recorded logits, relative to max(1, the clip's largest absolute logit).
        answering: Code that follows its snippet in the process that checks it.
    """

    name: str
    files: tuple[str, ...]
    needs: tuple[str, ...]
    pads_short: bool
    tolerance: float
    answering: str


FORMS = {
    "merged": Form("merged", (*COMMON_FILES, *WHOLE_FILES), (), False, TOLERANCE, BY_PIPELINE + TAIL % "()"),
    "onnx": Form(
        "onnx",
        (*COMMON_FILES, WHOLE_CONFIG, "model.onnx"),
        ("onnx", "onnxruntime"),
        True,
        ONNX_TOLERANCE,
        BY_ONNX + TAIL % '("torch", "transformers")',
    ),
}


def export_snippet(record: AdapterRecord, form: Form) -> str:
    """Return the code that loads an export, run from inside its folder."""
    if form.name == "merged":
        return pipeline_code(".")
    return render_text(
        "export_onnx.py.txt",
        sampling_rate=record.sampling_rate,
        values=indent(record.family.graph_code(record.inputs_and_windows), "    "),
        input_name=record.family.graph_input(record.input),
    )


def _caveat(record: AdapterRecord, form: Form) -> str:
    return record.family.pipeline_caveat if form.name == "merged" else ""


def export_readme(record: AdapterRecord, form: Form) -> str:
    """Return an export's README, with a snippet that loads the export without this package."""
    return render_text(
        "export_readme.md",
        merged=form.name == "merged",
        kind="fully trained model"
        if replace(record, exported="").whole
        else f"{escape_markdown(record.strategy)} adapter",
        base_name=escape_markdown(record.base_title),
        metrics=metrics_table(record),
        warnings=[escape_markdown(line) for line in warnings_on(record)],
        labels=labels_as_code(record),
        sampling_rate=record.sampling_rate,
        reading=record.reading,
        window=None if record.input_seconds is None else f"{record.input_seconds:g}",
        windows=windows_in_words(record.inputs_and_windows) if record.input_seconds is not None else "",
        minimum_samples=record.minimum_samples,
        features_in_graph=record.family.graph_input(record.input) not in record.input["names"],
        snippet=export_snippet(record, form).strip(),
        decision=record.task.decision_code("logits_of(waveform[None])[0]", "labels[str({})]"),
        tolerance=f"{form.tolerance:g}",
        caveat=_caveat(record, form),
    )


GRAPH = "model.onnx"
# The first version with the operator LayerNormalization.
OPSET = 17
# Maximum size of one ONNX file.
GRAPH_BYTES = 2**31 - 1


@dataclass(frozen=True)
class Exported:
    """Result of an export.

    Attributes:
        folder: Directory of the export.
        size_bytes: Size of all its files.
        difference: Largest difference between its logits and the recorded ones, relative to max(1, the clip's largest
            absolute logit).
        tolerance: Largest allowed difference.
    """

    folder: Path
    size_bytes: int
    difference: float
    tolerance: float


def export_adapter(
    adapter: str | Path,
    folder: Path,
    form: Literal["merged", "onnx"],
    base: str | None = None,
    revision: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Export an adapter, or a whole model, to a folder that needs neither a base nor this package.

    The export is written to a temporary folder and verified there. A fresh process runs the code of its README and must
    reproduce the recorded logits. Then the folder is moved to its destination.

    Args:
        adapter: Folder or Hub id, see `load_adapter`.
        folder: Destination; created here.
        form: "merged" for `transformers.pipeline`, "onnx" for ONNX Runtime.
        base: Folder or Hub id of the base encoder, if it was moved since training.
        revision: Branch, tag or commit of an adapter on the Hub.
        overwrite: Replace an earlier export.

    Raises:
        UserError: The adapter cannot be loaded, the destination exists, a package is not installed, or the fresh
            process did not reproduce the recorded logits.
    """
    kind = FORMS[form]
    missing = [package for package in kind.needs if find_spec(package) is None]
    if missing:
        raise UserError(f"--{form}: needs {' and '.join(missing)}; install with: pip install {' '.join(kind.needs)}")
    folder = folder.expanduser()
    _check_destination(folder, overwrite)
    loaded = load_adapter(adapter, base, revision=revision)
    if [probe["seconds"] for probe in loaded.record.probes] != list(loaded.record.family.probes(loaded.record.input)):
        raise UserError(f"{adapter}: its {RECORD} lacks probe clips to check an export with; save it again.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        written = Path(temporary) / "export"
        write_export(loaded, written, kind)
        difference = _verify(loaded, written, kind)
        size = sum(path.stat().st_size for path in written.iterdir())
        # The export takes minutes, in which another process may have created the destination.
        _check_destination(folder, overwrite)
        replace_folder(written, folder)
    return Exported(folder, size, difference, kind.tolerance)


def _check_destination(folder: Path, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not overwrite:
        raise UserError(f"{folder} already exists; give a folder that does not, or --overwrite to replace an export.")
    try:
        exported = json.loads((folder / RECORD).read_text(encoding="utf-8"))["exported"]
        others = {path.name for path in folder.iterdir()} - {*FORMS[exported].files}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--overwrite: {folder} is not an export of peft-audio and is not replaced. Give another folder."
        ) from error
    if others:
        raise UserError(f"--overwrite: {folder} holds other files too ({min(others)} first). Give another folder.")


def write_export(adapter: Adapter, folder: Path, form: Form) -> None:
    """Write the files of an export without verifying them.

    Args:
        adapter: Adapter merged into its base, on the CPU.
        folder: Destination; created here.
        form: One of `FORMS`.
    """
    folder.mkdir()
    record = replace(adapter.record, exported=form.name, export_tolerance=form.tolerance)
    if form.name == "merged":
        with quiet_loading():
            adapter.model.save_pretrained(folder)
        # safetensors creates files that only their owner can read.
        (folder / "model.safetensors").chmod(0o644)
    else:
        adapter.model.config.save_pretrained(folder)
        write_graph(adapter, folder / GRAPH)
    adapter.extractor.save_pretrained(folder)
    (folder / RECORD).write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(export_readme(record, form), encoding="utf-8")


class _Logits(nn.Module):
    def __init__(self, model: Any, front: nn.Module | None) -> None:
        super().__init__()
        self.model, self.front = model, front

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.model(values if self.front is None else self.front(values)).logits


def write_graph(adapter: Adapter, path: Path) -> None:
    """Write a model as an ONNX graph from the model's first input to `logits` of shape (clips, labels).

    With a `graph_front` of the family, log-mel features are computed inside the graph, from waveforms of the window.
    The axes of clips and, without a fixed window, of time are dynamic; clips of a batch have one length. The graph's
    metadata repeats labels and input settings of the record.

    This uses the older exporter of torch, which traces one forward pass. The newer one (`dynamo=True`) takes many times
    as long and gives no closer logits. Tracing can fix lengths and batch sizes, so the verification tries others.

    Args:
        adapter: Adapter merged into its base, on the CPU.
        path: Destination.

    Raises:
        UserError: The weights are too large for one file.
    """
    import onnx

    size = sum(weight.numel() * weight.element_size() for weight in adapter.model.parameters())
    if size > GRAPH_BYTES:
        raise UserError(f"--onnx: {size / 1e9:.1f} GB of weights, but one ONNX file holds 2 GB. Use --merged.")
    record = adapter.record
    # A batch size and a length that the verification does not use, within a fixed window.
    seconds = 1.5 if record.input_seconds is None else 0.7 * record.input_seconds
    waveforms = torch.randn(3, round(record.sampling_rate * seconds), generator=torch.Generator().manual_seed(0))
    front, name = record.family.graph_front(adapter.extractor), record.family.graph_input(record.input)
    axes = {0: "clips"} if record.input_seconds is not None else {0: "clips", 1: record.family.graph_axis}
    if front is None:
        example = model_inputs(list(waveforms.numpy()), adapter.extractor, adapter.model.config)[0][name]
    else:
        assert record.input_seconds is not None
        window = round(record.input_seconds * record.sampling_rate)
        example = nn.functional.pad(waveforms, (0, window - waveforms.shape[1]))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Logits(adapter.model, front).eval(),
            (example,),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=[name],
            output_names=["logits"],
            dynamic_axes={name: axes, "logits": {0: "clips"}},
        )
    graph = onnx.load(path)
    about = {
        "labels": list(record.labels),
        **{name: record.input[name] for name in record.family.graph_facts},
    }
    onnx.helper.set_model_props(graph, {name: json.dumps(value, ensure_ascii=False) for name, value in about.items()})
    onnx.save(graph, path)


def _verify(adapter: Adapter, folder: Path, form: Form) -> float:
    """Return the largest relative difference between recorded logits and those of a fresh process.

    Raises:
        UserError: The difference is more than the form allows, or the process failed.
    """
    batches, expected = check_batches(adapter, form)
    measured = _logits_in_fresh_process(folder, form, adapter, batches)
    difference = max(map(relative_difference, expected, measured)) if len(expected) == len(measured) else math.inf
    if difference > form.tolerance:
        why = _caveat(adapter.record, form) or "Very large weights cause this."
        raise UserError(
            f"the export differs from the recorded logits by {difference:.1e}, more than {form.tolerance:.0e}; nothing "
            f"was written. {why} Use load_adapter with merge=False instead."
        )
    return difference


def check_batches(adapter: Adapter, form: Form) -> tuple[list[np.ndarray], list[dict[str, float]]]:
    """Return the batches that verify an export, and their expected logits.

    Returns:
        Batches of shape (clips, samples): each probe clip that the form accepts, and a batch of two clips. And the
        logits of each clip by label: those of the record, and for the last clip those of `adapter`.
    """
    probes = probe_waveforms(adapter.record.sampling_rate, adapter.record.family.probes(adapter.record.input))
    pairs = [
        (waveform, recorded["logits"])
        for waveform, recorded in zip(probes, adapter.record.probes, strict=True)
        if form.pads_short or len(waveform) >= adapter.record.minimum_samples
    ]
    two = np.stack([probes[2], probes[3][: len(probes[2])]])
    batches = [*(waveform[None] for waveform, _ in pairs), two]
    of_second = dict(zip(adapter.labels, adapter.logits([two[1]])[0].tolist(), strict=True))
    return batches, [*(logits for _, logits in pairs), adapter.record.probes[2]["logits"], of_second]


def _logits_in_fresh_process(
    folder: Path, form: Form, adapter: Adapter, batches: Sequence[np.ndarray]
) -> list[dict[str, float]]:
    """Compute the logits of each clip by label in a process that runs only the code of the export's README."""
    with tempfile.TemporaryDirectory() as temporary:
        script, clips, answers = (Path(temporary) / name for name in ("verify.py", "clips.npz", "answers.json"))
        np.savez(clips, *batches)
        script.write_text(export_snippet(adapter.record, form) + form.answering, encoding="utf-8")
        try:
            child = run_python([str(script), str(clips), str(answers)], VERIFY_SECONDS, folder)
        except subprocess.TimeoutExpired as error:
            raise UserError(f"the export did not finish within {VERIFY_SECONDS} s; nothing was written.") from error
        if child.returncode:
            raise UserError(f"the export does not load in a fresh process:\n{child.stdout}{child.stderr}")
        return json.loads(answers.read_text(encoding="utf-8"))
