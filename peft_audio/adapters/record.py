"""Read and write what describes an adapter: `peft_audio.json` for programs, README.md for people."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from peft_audio.adapters.files import read_object
from peft_audio.config import DataConfig, Recipe
from peft_audio.data.training_audio import QUANTILES
from peft_audio.data.windows import fit_lengths
from peft_audio.encoders.base import MASK_VECTOR, EncoderFamily
from peft_audio.encoders.family import FAMILIES, family_named
from peft_audio.encoders.loading import BUNDLED_ENCODER, Base, versions
from peft_audio.errors import UserError
from peft_audio.pages.render import render_text
from peft_audio.tasks import task_of
from peft_audio.tasks.task import Task
from peft_audio.text import markdown_table, marked

RECORD = "peft_audio.json"
SCHEMA_VERSION = 2


@dataclass(frozen=True)
class AdapterRecord:
    """What `peft_audio.json` says beside PEFT's own files: all that is needed to get the same answers again.

    Attributes:
        labels: Label names in the order of the logits.
        base: The encoder that the adapter changes.
        strategy: What was trained.
        pretrained: Whether the encoder came with weights. Full fine-tuning, and what was trained on random weights,
            comes as a whole model, everything else as an adapter for the base.
        layer_weighted_sum: Whether the head is fed a mixture of all layers.
        quantization: How the encoder was held while the adapter trained; everything here was measured in float32.
        input: How a clip becomes the model's inputs, as the encoder's family describes it.
        crop: Seconds of a clip in training (at random) and in evaluation (from the start), and of the windows that long
            recordings are cut into, if they are.
        metrics: Of the run that made it.
        training_audio: Quantiles of the length in seconds, level and sampling rate of the training clips, by name, see
            `training_audio.audio_quantiles`; empty where they are not known.
        versions: Of the packages that made it.
        probes: For each probe clip its top label and the logit of each label, by name, once saved.
        exported: What `peft-audio export` made of it, "merged" or "onnx"; nothing where a run saved it.
        export_tolerance: Largest difference between logits of the export and the recorded ones that was allowed,
            relative to a clip's largest logit where that is above 1; 0 where a run saved it.
        schema_version: Of this file.
    """

    labels: tuple[str, ...]
    base: Base
    strategy: str
    pretrained: bool
    layer_weighted_sum: bool
    quantization: str
    input: dict[str, Any]
    crop: dict[str, float]
    metrics: dict[str, float]
    versions: dict[str, str]
    training_audio: dict[str, dict[str, float]] = field(default_factory=dict)
    probes: tuple[dict[str, Any], ...] = ()
    exported: str = ""
    export_tolerance: float = 0.0
    schema_version: int = SCHEMA_VERSION

    @property
    def family(self) -> EncoderFamily:
        """Return the family of the base."""
        return family_named(self.base.model_type)

    @property
    def sampling_rate(self) -> int:
        """Return the sampling rate of the waveforms that the encoder takes, in hertz."""
        return self.input["sampling_rate"]

    @property
    def minimum_samples(self) -> int:
        """Return the length in samples to which shorter clips are padded."""
        return self.input["minimum_samples"]

    @property
    def input_seconds(self) -> float | None:
        """Return the fixed length of the encoder's inputs in seconds; None if an input is as long as its clip."""
        return self.input.get("input_seconds")

    @property
    def reading(self) -> str:
        """Return what evaluation read of a clip, for READMEs."""
        if self.input_seconds is not None:
            return f"evaluation averaged over consecutive windows of {self.crop['window_seconds']:g} s"
        return f"the first {self.crop['evaluation_seconds']:g} s of a clip were used in evaluation"

    @property
    def task(self) -> Task:
        """Return the task that its logits answer."""
        return task_of()

    @property
    def base_is_local(self) -> bool:
        """Return whether the base is a folder of the machine that trained it; what came from the Hub has a commit."""
        return self.base.commit is None and self.base.name != BUNDLED_ENCODER

    @property
    def base_title(self) -> str:
        """Return the name of the base for people, without the path of a local folder."""
        return f"{Path(self.base.name).name} (a local folder)" if self.base_is_local else self.base.name

    @property
    def whole(self) -> bool:
        """Whether it comes as a whole model, which needs no base."""
        return self.strategy == "full" or not self.pretrained or self.exported == "merged"


def describe_adapter(
    cfg: Recipe,
    base: Base,
    labels: Sequence[str],
    extractor: Any,
    strategy: str,
    metrics: dict[str, float],
    training_audio: Mapping[str, Mapping[str, float]] | None = None,
) -> AdapterRecord:
    """Make the record of a run's adapter, before its probes are measured."""
    inputs = family_named(base.model_type).describe_input(extractor, base.minimum_samples)
    return AdapterRecord(
        labels=tuple(labels),
        base=base,
        strategy=strategy,
        pretrained=cfg.model.pretrained,
        layer_weighted_sum=cfg.model.layer_weighted_sum,
        quantization=cfg.model.quantization,
        input=inputs,
        crop=_crop(fit_lengths(cfg.data, inputs.get("input_seconds"))),
        metrics=metrics,
        training_audio={name: dict(quantiles) for name, quantiles in (training_audio or {}).items()},
        versions=versions(),
    )


def _crop(cfg: DataConfig) -> dict[str, float]:
    crop = {"training_seconds": cfg.max_seconds, "evaluation_seconds": cfg.max_eval_seconds}
    if cfg.window_seconds is not None:
        crop |= {"window_seconds": cfg.window_seconds, "hop_seconds": cfg.hop_seconds or cfg.window_seconds}
    return crop


def read_record(folder: Path) -> AdapterRecord:
    """Read `peft_audio.json`.

    Raises:
        UserError: It is missing, damaged, of a newer version, or of a folder for ONNX Runtime.
    """
    path = folder / RECORD
    if not path.exists():
        inside = [path for path in (folder / "adapter", folder / "model") if (path / RECORD).is_file()]
        hint = str(inside[0]) if inside else "runs/<name>/adapter, or runs/full/model"
        raise UserError(f"{folder} is not an adapter made by peft-audio: it has no {RECORD}. Give {hint}.")
    stored: dict[str, Any] = read_object(path)
    version = stored.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise UserError(f"{path}: schema version {version} is newer than {SCHEMA_VERSION}; upgrade peft-audio.")
    # Records of earlier versions do not say so.
    stored = (
        dict[str, Any]({"pretrained": True, "exported": "", "export_tolerance": 0.0, "training_audio": {}}) | stored
    )
    if stored["exported"] == "onnx":
        raise UserError(f"{folder} is an export for ONNX Runtime; run it as its README.md says, or give its adapter.")
    try:
        if version == 1:
            # What is written again is a record of today's schema.
            stored |= {"input": _input_of_schema_1(stored), "schema_version": SCHEMA_VERSION}
        known = {field.name: stored[field.name] for field in fields(AdapterRecord)}
        known |= {"labels": tuple(stored["labels"]), "base": Base(**stored["base"]), "probes": tuple(stored["probes"])}
        record = AdapterRecord(**known)
        wrong = next((name for name, right in _soundness(record).items() if not right), None)
    except KeyError as error:
        raise UserError(f"{path} is damaged (it lacks {error}); get the adapter again.") from error
    except (TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}); get the adapter again.") from error
    if wrong is not None:
        raise UserError(f"{path} is damaged ({wrong}); get the adapter again.")
    return record


def _input_of_schema_1(stored: dict[str, Any]) -> dict[str, Any]:
    """Return the `input` section for a record whose schema only knew families that take waveforms."""
    return {
        "kind": "waveform",
        "names": ["input_values", "attention_mask"],
        "sampling_rate": stored["sampling_rate"],
        "minimum_samples": stored["mask"]["minimum_samples"],
        "do_normalize": stored["normalisation"]["do_normalize"],
    }


def _soundness(record: AdapterRecord) -> dict[str, bool]:
    """Check each part of a record that later code relies on."""
    labels, base, crop = record.labels, record.base, record.crop
    texts = (base.name, base.model_type, record.strategy, record.quantization)
    counts = (record.schema_version, record.sampling_rate, base.minimum_samples, record.minimum_samples)
    hashed = isinstance(base.sha256, str) and re.fullmatch("[0-9a-f]{64}", base.sha256)
    pinned = base.commit is None or (isinstance(base.commit, str) and re.fullmatch("[0-9a-f]{40}", base.commit))
    flags = (record.pretrained, record.layer_weighted_sum)
    answers = [value for probe in record.probes for value in (probe["seconds"], *probe["logits"].values())]
    return {
        "labels must be texts": bool(labels) and all(isinstance(label, str) and label for label in labels),
        "a label stands there twice": len(set(labels)) == len(labels),
        "base, strategy and quantization must be texts": all(isinstance(text, str) and text for text in texts),
        "base.model_type is not known": base.model_type in FAMILIES,
        "base.sha256 must be 64 hexadecimal digits": bool(hashed),
        "base.commit must be 40 hexadecimal digits, or null": bool(pinned),
        "rate, version and minimum_samples must be whole numbers above 0": all(
            type(count) is int and count > 0 for count in counts
        ),
        "pretrained and layer_weighted_sum must be true or false": all(isinstance(flag, bool) for flag in flags),
        "input_seconds must be a number above 0": record.input_seconds is None
        or (_is_number(record.input_seconds) and record.input_seconds > 0),
        "crop must hold seconds above 0": all(_is_number(seconds) and seconds > 0 for seconds in crop.values())
        and {"training_seconds", "evaluation_seconds"} <= crop.keys(),
        "exported must be empty, merged or onnx": record.exported in ("", "merged", "onnx"),
        "export_tolerance must be a number": _is_number(record.export_tolerance),
        "metrics must be numbers": all(_is_number(value) for value in record.metrics.values()),
        "training_audio must hold numbers": all(
            set(quantiles) == set(QUANTILES) and all(_is_number(value) for value in quantiles.values())
            for quantiles in record.training_audio.values()
        ),
        "versions must be texts": all(isinstance(version, str) for version in record.versions.values()),
        "probes must hold numbers": all(_is_number(value) for value in answers),
        "probes are of other labels": all(
            set(probe["logits"]) == set(labels) >= set(record.task.label_names([probe["label"]]))
            for probe in record.probes
        ),
    }


def _is_number(value: object) -> bool:
    # A whole number may be too large even to be asked whether it is finite.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def adapter_readme(record: AdapterRecord, repository: str | None = None, warning: str | None = None) -> str:
    """The product's README: what it is, and a snippet that loads it without this package.

    Args:
        record: What it says of itself.
        repository: Its `org/name` on the Hub; when not given, the snippet runs inside the product's folder.
        warning: Restriction of its scores, stated below them.
    """
    whole, place = record.whole, repository or "."
    hint = " now (`peft-audio base DIR` writes it to a folder)" if record.base.name == BUNDLED_ENCODER else ""
    return render_text(
        "adapter_readme.md",
        base_name=marked(record.base_title) + ("" if record.pretrained else " with random weights, a control"),
        family=record.family.examples,
        inside="" if repository else ", from inside this folder",
        kind="model" if whole else f"{marked(record.strategy)} adapter",
        labels=labels_as_code(record),
        mask_vector=MASK_VECTOR,
        metrics=metrics_table(record),
        place=place,
        sampling_rate=record.sampling_rate,
        reading=record.reading,
        sha256=record.base.sha256,
        snippet=readme_snippet(record, place),
        uncalled=_uncalled(record),
        warning=None if warning is None else marked(warning),
        where="" if whole or repository else f", with `BASE` set to where the base is{hint}",
    )


def readme_snippet(record: AdapterRecord, place: str, base: str | None = None) -> str:
    """Return Python code that loads an adapter or a whole model without this package, and labels a tone.

    Args:
        record: Of the adapter. Texts of it stand in the code as JSON only.
        place: Folder or `org/name` of the adapter, as the code names it.
        base: Folder of the base, in place of the recorded one.
    """
    named = json.dumps(place if record.whole else base or record.base.name)
    # The path of a folder here means nothing elsewhere, and can hold the name of its user.
    if base is None and not record.whole and record.base.commit is None:
        named = f'"PATH/TO/BASE"  # sha256 {record.base.sha256}'
    places = [f"BASE = {named}"] + ([] if record.whole else [f"ADAPTER = {json.dumps(place)}"])
    load = render_text(
        "load_model.py.txt" if record.whole else "load_adapter.py.txt",
        labels=labels_as_code(record),
        layer_weighted_sum=record.layer_weighted_sum,
        revision=record.base.commit,
        fit=record.family.fit_code(record.input),
        uncalled=_uncalled(record),
    )
    return render_text(
        "readme_snippet.py.txt",
        decision=record.task.decision_code("logits", "labels[int({})]"),
        extractor="BASE" if record.whole else "ADAPTER",
        inputs=record.family.input_code(record.input),
        load=load.strip(),
        places="\n".join(places),
        sampling_rate=record.sampling_rate,
        average="[0]" if record.input_seconds is None else record.task.average_code(),
    ).strip()


def _uncalled(record: AdapterRecord) -> str:
    """Name the layers on which an adapter has no effect until it is merged."""
    return "" if record.whole else ", ".join(record.family.uncalled)


def labels_as_code(record: AdapterRecord) -> str:
    """The labels as JSON, which is Python too, and holds no backtick that would end what it stands in."""
    return json.dumps(record.labels, ensure_ascii=False).replace("`", "\\u0060")


def metrics_table(record: AdapterRecord) -> str:
    """What the run measured, as Markdown."""
    rows = [(name.replace("_", " "), f"{value:.3f}") for name, value in record.metrics.items()]
    return markdown_table(("measured", "value"), rows, numbers_from=1)
