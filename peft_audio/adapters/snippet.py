"""Run the code of an adapter's README in a fresh process, and compare its logits with the recorded ones."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from textwrap import indent

import numpy as np

from peft_audio.adapters.probes import compare_probes, probe_waveforms
from peft_audio.adapters.record import AdapterRecord, labels_as_code, readme_snippet
from peft_audio.adapters.save import VERIFY_SECONDS
from peft_audio.adapters.verify import TOLERANCE
from peft_audio.pages.render import render_text
from peft_audio.processes import run_python

ON_PROBES = """
import json
import sys

answers = []
for waveform in np.load("probes.npz").values():
{inputs}
    with torch.no_grad():
        answers.append(model(values).logits[0].tolist())  # a probe fits into one window
"""

PIPELINE_ON_PROBES = """
import json
import sys

import numpy as np

answers = []
for waveform in np.load("probes.npz").values():
    scores = classify(waveform, top_k=None, function_to_apply="none")
    by_label = {{score["label"]: score["score"] for score in scores}}
    answers.append([by_label[label] for label in {labels}])
"""
WRITE_ANSWERS = """
assert "peft_audio" not in sys.modules
with open("answers.json", "w") as file:
    json.dump(answers, file)
"""
# A Hub id that a README's code loads; another value cannot be that of this adapter.
PLACE = re.compile(r'^(?:ADAPTER|BASE) = "([\w.-]+/[\w.-]+)"$', re.MULTILINE)


def check_snippet(folder: Path, record: AdapterRecord, base: str | None) -> list[str]:
    """Run the README's code on the probe clips, in a fresh process without this package.

    The code is built from the record, as a save builds it. README.md is not executed, because anyone can edit it.

    Args:
        folder: Adapter directory, of which `examine` has found nothing broken.
        record: Content of `peft_audio.json`.
        base: Absolute path or Hub id of the base; None for a whole model.

    Returns:
        One sentence per problem; none if the recorded logits came out within `TOLERANCE`.
    """
    if record.exported:
        # The pipeline pads no clips.
        usable = [
            one for one in record.probes if round(one["seconds"] * record.sampling_rate) >= record.minimum_samples
        ]
        record = replace(record, probes=tuple(usable))
    seconds = [probe["seconds"] for probe in record.probes]
    code = probing_code(folder, record, base)
    with tempfile.TemporaryDirectory() as place:
        script, answers = Path(place) / "snippet.py", Path(place) / "answers.json"
        script.write_text(code, encoding="utf-8")
        np.savez(Path(place) / "probes.npz", *probe_waveforms(record.sampling_rate, seconds))
        try:
            child = run_python([str(script)], VERIFY_SECONDS, Path(place))
        except subprocess.TimeoutExpired:
            return [f"took more than {VERIFY_SECONDS} s"]
        if child.returncode or not answers.exists():
            return [f"ended with exit code {child.returncode}: {' '.join(child.stderr.strip().splitlines()[-1:])}"]
        logits = np.array(json.loads(answers.read_text(encoding="utf-8")))
    labels = record.task.decode(record.task.decide(logits), record.labels)
    measured = [
        {"seconds": length, "label": label, "logits": dict(zip(record.labels, row, strict=True))}
        for length, label, row in zip(seconds, labels, logits.tolist(), strict=True)
    ]
    return compare_probes(record, measured, TOLERANCE)


def probing_code(folder: Path, record: AdapterRecord, base: str | None) -> str:
    """Return the README's code, followed by code that writes the logits of `probes.npz` to `answers.json`."""
    place = str(folder.resolve())
    if record.exported:
        on_probes = PIPELINE_ON_PROBES.format(labels=labels_as_code(record))
        return pipeline_code(place) + on_probes + WRITE_ANSWERS
    inputs = record.family.input_code(record.input)
    on_probes = ON_PROBES.format(inputs=indent(inputs, "    "))
    return readme_snippet(record, place, base) + "\n" + on_probes + WRITE_ANSWERS


def pipeline_code(place: str) -> str:
    """Return the code of a merged export's README.

    Args:
        place: Folder of the export.
    """
    return render_text("export_pipeline.py.txt", place=json.dumps(place))


def differs_from_readme(folder: Path, record: AdapterRecord, where: str) -> bool:
    """Return whether README.md lacks the code that the record gives, for this folder or for a place on the Hub.

    Args:
        folder: Adapter directory.
        record: Content of `peft_audio.json`.
        where: Place of the adapter, as given by the user.
    """
    try:
        readme = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    if record.exported:
        return pipeline_code(".").strip() not in readme
    return not any(readme_snippet(record, place) in readme for place in {".", where, *PLACE.findall(readme)})
