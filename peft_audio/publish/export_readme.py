"""What an export says of itself, and the code that it shows, which is also the code that it is checked with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from string import Template

from peft_audio.adapters.files import WHOLE_CONFIG
from peft_audio.adapters.hub import COMMON_FILES, WHOLE_FILES
from peft_audio.adapters.record import AdapterRecord, labels_as_code, metrics_table, read_asset
from peft_audio.adapters.verify import TOLERANCE
from peft_audio.text import marked

# Behind an export's own snippet: the logits of each clip by label, for each batch of shape (clips, samples).
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
    found = [classify(clip, top_k=None, function_to_apply="none") for clip in batch]
    return [{answer["label"]: answer["score"] for answer in clip} for clip in found]
"""
BY_ONNX = """

def answer_batch(batch):
    return [dict(zip(labels.values(), row)) for row in logits_of(batch).tolist()]
"""
PADDED = """
A clip that is given to the pipeline alone gets the adapter's own answer. Clips of different lengths in one batch
(`batch_size` above 1) are padded by the pipeline, and padding may change their answers: a little where the encoder has
layer norms, more where its first convolution has a group norm, as wav2vec2-base has. `peft-audio predict --adapter .`
takes this folder too, and keeps padding out.
"""
ONE_LENGTH = """
The graph knows no mask: clips of a batch must be of one length, and zeros added to a clip's end change its answer. Give
clips of different lengths one at a time.
"""


@dataclass(frozen=True)
class Form:
    """A form of export.

    Attributes:
        name: Of its flag.
        files: All that it consists of.
        needs: Packages that writing and checking it needs beside our own.
        pads_short: Whether its snippet pads clips that are too short for the encoder.
        tolerance: How far its logits may be from the recorded ones, relative to a clip's largest where that is above 1.
        answering: What follows its snippet in the process that checks it.
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
        # Of the same sums by other kernels.
        1e-4,
        BY_ONNX + TAIL % '("torch", "transformers")',
    ),
}


def export_snippet(record: AdapterRecord, form: Form) -> str:
    """The code that loads an export, run from inside its folder."""
    if form.name == "merged":
        return read_asset("export_pipeline.py.txt")
    mean = "values.mean(1, keepdims=True)"
    normalise = f"\n    values = (values - {mean}) / np.sqrt(values.var(1, keepdims=True) + 1e-7)"
    return Template(read_asset("export_onnx.py.txt")).substitute(
        sampling_rate=record.sampling_rate,
        minimum_samples=record.mask["minimum_samples"],
        normalise=normalise if record.normalisation["do_normalize"] else "",
    )


def export_readme(record: AdapterRecord, form: Form) -> str:
    """An export's README: what it is, what it takes, and a snippet without this package."""
    merged, shortest = form.name == "merged", record.mask["minimum_samples"]
    snippet = export_snippet(record, form).strip()
    decision = record.task.decision_code("logits_of(waveform[None])[0]", "labels[str({})]")
    return Template(read_asset("export_readme.md")).substitute(
        title="a transformers directory" if merged else "a graph for ONNX Runtime",
        kind="fully trained model" if replace(record, exported="").whole else f"{marked(record.strategy)} adapter",
        base_name=marked(record.base.name),
        metrics=metrics_table(record),
        labels=labels_as_code(record),
        sampling_rate=record.sampling_rate,
        seconds=f"{record.crop['evaluation_seconds']:g}",
        input=f"Clips of fewer than {shortest} samples "
        + ("are an error: add zeros to their end." if merged else "are filled up with zeros by the code below."),
        packages="torch transformers" if merged else "numpy onnxruntime",
        load=f"import numpy as np\n{snippet}" if merged else f"{snippet}\n",
        ask="print(classify(waveform))" if merged else f"print({decision})",
        more=PADDED if merged else ONE_LENGTH,
    )
