"""Read and write the description of an adapter: `peft_audio.json` for programs, README.md for people."""

from __future__ import annotations

import json
import math
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
from peft_audio.encoders.base import MASK_VECTOR, EncoderFamily, windows_in_words
from peft_audio.encoders.family import FAMILIES, family_named
from peft_audio.encoders.loading import BUNDLED_ENCODER, Base, versions
from peft_audio.errors import UserError
from peft_audio.pages.render import render_text
from peft_audio.tasks import task_of
from peft_audio.tasks.task import Task
from peft_audio.text import escape_markdown, markdown_table

RECORD = "peft_audio.json"
SCHEMA_VERSION = 2
CHOSEN_ON_TEST = "The best epoch was chosen on the test clips (data.validate_on_test), so the scores are too high."


@dataclass(frozen=True)
class AdapterRecord:
    """Contents of `peft_audio.json`, which with the files of PEFT are enough to reproduce the logits.

    Attributes:
        labels: Label names in the order of the logits.
        base: Encoder that the adapter changes.
        strategy: Name of the strategy.
        pretrained: Whether the encoder started from pretrained weights. Full fine-tuning, and training from random
            weights, save a whole model; all others save an adapter for the base.
        layer_weighted_sum: Whether the head gets a mixture of all layers.
        quantization: Precision of the encoder during training; all values here were measured in float32.
        input: Conversion of a clip to the inputs of the model, as described by the encoder's family.
        crop: Seconds of a clip in training (at random) and in evaluation (from the start), and of windows, if
            recordings are cut into windows. `recording_seconds`, if only the start of a recording is cut.
        metrics: Metrics of the run.
        training_audio: Quantiles of the length in seconds, level and sampling rate of the training clips, by name, see
            `training_audio.audio_quantiles`; empty if unknown.
        versions: Versions of the packages that made the adapter.
        validation_is_test: Whether the best epoch was chosen on the test clips.
        probes: Top label, and logits by label, of each probe clip; empty before saving.
        exported: Form of an export by `peft-audio export`, "merged" or "onnx"; empty if a run saved the adapter.
        export_tolerance: Largest allowed difference between logits of an export and the recorded logits, relative to
            the larger of 1 and the clip's largest logit; 0 if a run saved the adapter.
        schema_version: Version of this format.
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
    validation_is_test: bool = False
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
    def recording_seconds(self) -> float:
        """Return the seconds from the start of a recording that evaluation reads; infinity for all of it."""
        return self.crop.get(
            "recording_seconds", math.inf if "window_seconds" in self.crop else self.crop["evaluation_seconds"]
        )

    @property
    def inputs_and_windows(self) -> dict[str, Any]:
        """Return `input` with the windows that evaluation used, for code in READMEs."""
        return self.input | {name: self.crop[name] for name in ("window_seconds", "hop_seconds") if name in self.crop}

    @property
    def reading(self) -> str:
        """Return what evaluation read of a clip, for READMEs."""
        if "window_seconds" in self.crop:
            start = "" if math.isinf(self.recording_seconds) else f" of the first {self.recording_seconds:g} s"
            return f"evaluation averaged over {windows_in_words(self.crop)}{start}"
        return f"the first {self.crop['evaluation_seconds']:g} s of a clip were used in evaluation"

    @property
    def task(self) -> Task:
        """Return the task of the logits."""
        return task_of()

    @property
    def base_is_local(self) -> bool:
        """Return whether the base is a folder of the machine of the run; bases from the Hub have a commit."""
        return self.base.commit is None and self.base.name != BUNDLED_ENCODER

    @property
    def base_title(self) -> str:
        """Return the name of the base for READMEs, without the path of a local folder."""
        return f"{Path(self.base.name).name} (a local folder)" if self.base_is_local else self.base.name

    @property
    def whole(self) -> bool:
        """Return whether this is a whole model, which needs no base."""
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
    """Make the record of a run's adapter, without probes."""
    inputs = family_named(base.model_type).describe_input(extractor, base.minimum_samples)
    return AdapterRecord(
        labels=tuple(labels),
        base=base,
        strategy=strategy,
        pretrained=cfg.model.pretrained,
        layer_weighted_sum=cfg.model.layer_weighted_sum,
        quantization=cfg.model.quantization,
        input=inputs,
        crop=_crop(cfg.data, inputs.get("input_seconds")),
        metrics=metrics,
        training_audio={name: dict(quantiles) for name, quantiles in (training_audio or {}).items()},
        versions=versions(),
        validation_is_test=cfg.data.validate_on_test,
    )


def _crop(given: DataConfig, window: float | None) -> dict[str, float]:
    """Return the lengths of crops and windows in seconds, within the fixed window of an encoder."""
    cfg = fit_lengths(given, window)
    crop = {"training_seconds": cfg.max_seconds, "evaluation_seconds": cfg.max_eval_seconds}
    if cfg.window_seconds is not None:
        crop |= {"window_seconds": cfg.window_seconds, "hop_seconds": cfg.hop_seconds or cfg.window_seconds}
    if cfg.window_seconds is not None and given.window_seconds is None:
        crop["recording_seconds"] = given.max_eval_seconds
    return crop


def read_record(folder: Path) -> AdapterRecord:
    """Read `peft_audio.json`.

    Raises:
        UserError: The file is missing, damaged, of a newer version, or belongs to an export for ONNX Runtime.
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
    # Records of earlier versions lack these fields.
    absent: dict[str, Any] = {"pretrained": True, "training_audio": {}, "validation_is_test": False}
    stored = absent | {"exported": "", "export_tolerance": 0.0} | stored
    if stored["exported"] == "onnx":
        raise UserError(f"{folder} is an export for ONNX Runtime; run it as in its README.md, or give its adapter.")
    try:
        if version == 1:
            # A record that is written again has the current schema.
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
    flags = (record.pretrained, record.layer_weighted_sum, record.validation_is_test)
    answers = [value for probe in record.probes for value in (probe["seconds"], *probe["logits"].values())]
    return {
        "labels must be texts": bool(labels) and all(isinstance(label, str) and label for label in labels),
        "a label occurs twice": len(set(labels)) == len(labels),
        "base, strategy and quantization must be texts": all(isinstance(text, str) and text for text in texts),
        "base.model_type is not known": base.model_type in FAMILIES,
        "base.sha256 must be 64 hexadecimal digits": bool(hashed),
        "base.commit must be 40 hexadecimal digits, or null": bool(pinned),
        "rate, version and minimum_samples must be whole numbers above 0": all(
            type(count) is int and count > 0 for count in counts
        ),
        "pretrained, layer_weighted_sum and validation_is_test must be true or false": all(
            isinstance(flag, bool) for flag in flags
        ),
        "input_seconds must be a number above 0": record.input_seconds is None
        or (_is_number(record.input_seconds) and record.input_seconds > 0),
        "crop must hold seconds above 0": all(_is_number(seconds) and seconds > 0 for seconds in crop.values())
        and {"training_seconds", "evaluation_seconds"} <= crop.keys(),
        "crop must hold window_seconds and hop_seconds, as input_seconds is set": record.input_seconds is None
        or {"window_seconds", "hop_seconds"} <= crop.keys(),
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
    """Return whether a value is a finite number."""
    # math.isfinite fails for integers that are too large for a float.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def adapter_readme(record: AdapterRecord, repository: str | None = None, warning: str | None = None) -> str:
    """Write the README of an adapter or model, with a snippet that loads it without this package.

    Args:
        record: Record of the adapter.
        repository: `org/name` of the adapter on the Hub; if None, the snippet runs inside the adapter's folder.
        warning: Further restriction of its scores, written below them.
    """
    whole, place = record.whole, repository or "."
    hint = " now (`peft-audio base DIR` writes it to a folder)" if record.base.name == BUNDLED_ENCODER else ""
    return render_text(
        "adapter_readme.md",
        base_name=escape_markdown(record.base_title) + ("" if record.pretrained else " with random weights, a control"),
        family=record.family.examples,
        inside="" if repository else ", from inside this folder",
        kind="model" if whole else f"{escape_markdown(record.strategy)} adapter",
        labels=labels_as_code(record),
        mask_vector=MASK_VECTOR,
        metrics=metrics_table(record),
        place=place,
        sampling_rate=record.sampling_rate,
        reading=record.reading,
        sha256=record.base.sha256,
        snippet=readme_snippet(record, place),
        uncalled=_uncalled(record),
        warnings=[escape_markdown(line) for line in (*warnings_on(record), warning) if line],
        where="" if whole or repository else f", with `BASE` set to where the base is{hint}",
    )


def warnings_on(record: AdapterRecord) -> list[str]:
    """Return the restrictions of the recorded scores, one sentence each."""
    return [CHOSEN_ON_TEST] if record.validation_is_test else []


def readme_snippet(record: AdapterRecord, place: str, base: str | None = None) -> str:
    """Return Python code that loads an adapter or a whole model without this package, and labels a tone.

    Args:
        record: Record of the adapter. Its texts are put into the code as JSON only.
        place: Folder or `org/name` of the adapter in the code.
        base: Folder or Hub id of the base; None for the recorded one.
    """
    base_code = json.dumps(place if record.whole else base or record.base.name)
    # The path of a local folder is useless elsewhere, and can hold the name of a user.
    if base is None and not record.whole and record.base.commit is None:
        base_code = f'"PATH/TO/BASE"  # sha256 {record.base.sha256}'
    places = [f"BASE = {base_code}"] + ([] if record.whole else [f"ADAPTER = {json.dumps(place)}"])
    load = render_text(
        "load_model.py.txt" if record.whole else "load_adapter.py.txt",
        labels=labels_as_code(record),
        settings=record.family.load_code(record.layer_weighted_sum),
        revision=record.base.commit,
        fit=record.family.fit_code(record.input),
        uncalled=_uncalled(record),
    )
    return render_text(
        "readme_snippet.py.txt",
        decision=record.task.decision_code("logits", "labels[int({})]"),
        extractor="BASE" if record.whole else "ADAPTER",
        inputs=record.family.input_code(record.inputs_and_windows),
        load=load.strip(),
        places="\n".join(places),
        sampling_rate=record.sampling_rate,
        average=average_code(record),
    ).strip()


def average_code(record: AdapterRecord) -> str:
    """Return Python code that follows the logits of a model and gives those of one clip, of shape (labels,)."""
    return "[0]" if record.input_seconds is None else record.task.average_code()


def _uncalled(record: AdapterRecord) -> str:
    """Name the layers on which an adapter has no effect until it is merged."""
    return "" if record.whole else ", ".join(record.family.uncalled)


def labels_as_code(record: AdapterRecord) -> str:
    """Write the labels as a Python list without backticks, which would end a code block in Markdown."""
    return json.dumps(record.labels, ensure_ascii=False).replace("`", "\\u0060")


def metrics_table(record: AdapterRecord) -> str:
    """Write the metrics of the run as a Markdown table."""
    rows = [(name.replace("_", " "), f"{value:.3f}") for name, value in record.metrics.items()]
    return markdown_table(("measured", "value"), rows, numbers_from=1)
