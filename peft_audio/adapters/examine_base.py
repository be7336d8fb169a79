"""What an adapter's file must hold on its base: compared with what transformers and PEFT make of the base itself."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from transformers import AutoConfig, AutoFeatureExtractor

from peft_audio.adapters.files import ADAPTER_CONFIG, PREPROCESSOR, WEIGHTS, refuse_excessive_rank
from peft_audio.adapters.finding import AGAIN, Finding
from peft_audio.adapters.load import base_of, base_rate, wanted_shapes
from peft_audio.adapters.record import AdapterRecord
from peft_audio.config import ModelConfig
from peft_audio.encoders.base import LAYER_WEIGHTS
from peft_audio.encoders.loading import identify_base, load_with_absent, pin_base, quiet_loading
from peft_audio.errors import UserError, first_line
from peft_audio.strategies.base import PEFT_PREFIX
from peft_audio.strategies.bias_only import mark_biases

Shapes = dict[str, tuple[int, ...]]
# The last layer of each family's head, whose rows are the classes.
LAST_LAYERS = ("classifier.weight", "classifier.dense.weight")


@dataclass(frozen=True)
class Patient:
    """An adapter as far as it could be read.

    Attributes:
        folder: Where it is.
        settings: `adapter_config.json`; None where that is damaged.
        shapes: Of the weights in its file; None where that is damaged.
        record: `peft_audio.json`; None where there is none that can be read.
        base: Where the base is, as given by the user.
    """

    folder: Path
    settings: dict[str, Any] | None
    shapes: Shapes | None
    record: AdapterRecord | None
    base: str | None


def check_base(patient: Patient) -> Iterator[Finding]:
    """Base, head, keys and, where no record says them, labels and preprocessor."""
    settings, shapes, record = patient.settings, patient.shapes, patient.record
    if settings is None or shapes is None:
        yield Finding("base", "skipped", "not looked for, because of what is broken above")
        return
    try:
        where = _where(patient, settings)
        count = len(record.labels) if record else _classes(shapes)
        labels = record.labels if record else [str(i) for i in range(count or 2)]
        model, absent = load_with_absent(where, labels, any_family=record is None)
    except UserError as error:
        yield Finding("base", "broken", str(error).replace("--model.name", "--base"), "say where it is with --base")
        return
    encoder = f"{model.base_model_prefix}."
    lost = sorted(name for name in absent if name.startswith(encoder))
    if lost:
        why = f"{where.name} lacks {len(lost)} weights of its own encoder, {lost[0]} first; they would be random"
        yield Finding("base", "broken", why, "give a complete checkpoint with --base")
        return
    if record:
        yield from _same_base(where, model, record)
    else:
        yield _pinned(where, settings)
        yield _labels(where, count, absent)
        yield _preprocessor(patient.folder, where)
    fresh = {f"{PEFT_PREFIX}{name}" for name in absent}
    yield _head(fresh, shapes, settings)
    yield from _keys(patient, model, fresh)


def _where(patient: Patient, settings: dict[str, Any]) -> ModelConfig:
    if patient.record:
        return base_of(patient.folder, patient.record, patient.base)
    name, revision = patient.base or settings.get("base_model_name_or_path"), settings.get("revision")
    if not isinstance(name, str) or not name or not isinstance(revision, (str, type(None))):
        raise UserError(f"{ADAPTER_CONFIG} does not name its base (base_model_name_or_path is {name!r}).")
    mixed = any(key.endswith(f".{LAYER_WEIGHTS}") for key in patient.shapes or ())
    return ModelConfig(name=name, revision=None if patient.base else revision, layer_weighted_sum=mixed)


def _classes(shapes: Shapes) -> int | None:
    """How many labels the head in a file has; None where there is no head."""
    rows = [shape[0] for name, shape in shapes.items() if name.endswith(LAST_LAYERS) and len(shape) == 2]
    return rows[0] if len(rows) == 1 else None


def _same_base(where: ModelConfig, model: Any, record: AdapterRecord) -> Iterator[Finding]:
    found, rate = identify_base(where, model), base_rate(where)
    if found.sha256 != record.base.sha256:
        why = f"{where.name} has other weights ({found.sha256[:12]}) than what it was trained on"
        yield Finding("base", "broken", f"{why} ({record.base.sha256[:12]})", "give the right one with --base")
    elif found.commit != record.base.commit and found.commit and record.base.commit:
        why = f"{where.name} is at another commit than was recorded, with the same weights"
        yield Finding("base", "warning", why, f"pin {record.base.commit}")
    else:
        at = f" at {found.commit}" if found.commit else ""
        yield Finding("base", "ok", f"{where.name}{at}, with the recorded weights ({found.sha256[:12]})")
    if rate is None:
        yield Finding("base", "warning", f"{where.name} has no preprocessor, so its rate is not known", "")
    elif rate != record.sampling_rate:
        why = f"the adapter says {record.sampling_rate} Hz, its base takes {rate} Hz: clips would run at another pace"
        yield Finding("preprocessor", "broken", why, AGAIN)


def _pinned(where: ModelConfig, settings: dict[str, Any]) -> Finding:
    if settings.get("revision"):
        return Finding("base", "ok", f"{where.name} at {settings['revision']} can be loaded")
    why = f"{where.name} can be loaded, but nothing says which version it was trained on: it may have changed since"
    return Finding("base", "warning", why, f"ask its maker, and set revision in {ADAPTER_CONFIG} to a commit")


def _labels(where: ModelConfig, count: int | None, absent: set[str]) -> Finding:
    name, commit = pin_base(where)
    names = AutoConfig.from_pretrained(name, revision=commit, trust_remote_code=False).id2label or {}
    if not absent and count in (None, len(names)):
        return Finding("labels", "ok", f"the base is a classifier and brings its labels: {list(names.values())}")
    if count is None:
        return Finding("labels", "warning", "neither their names nor their number is known: no head is in the file")
    why = f"the names of the {count} labels are not known: an adapter of PEFT does not hold them"
    return Finding("labels", "warning", why, "ask its maker for their names, in the order of the logits")


def _preprocessor(folder: Path, where: ModelConfig) -> Finding:
    base, commit = pin_base(where)
    rates = []
    for place, revision in ((str(folder), None), (base, commit)):
        try:
            found = AutoFeatureExtractor.from_pretrained(place, revision=revision, trust_remote_code=False)
            rates.append(getattr(found, "sampling_rate", None))
        except Exception:  # as many kinds as there are ways to damage it; and it may be absent
            rates.append(None)
    own, of_base = rates
    if own and of_base and own != of_base:
        why = f"its own says {own} Hz, its base takes {of_base} Hz: one of them is wrong"
        return Finding("preprocessor", "broken", why, f"find out which, and mend {PREPROCESSOR}")
    if own or of_base:
        return Finding("preprocessor", "ok", f"{own or of_base:,} Hz{'' if own else ', from the base'}")
    why = "neither the adapter nor its base says which sampling rate it takes"
    return Finding("preprocessor", "warning", why, "ask its maker; most speech encoders take 16,000 Hz")


def _head(fresh: set[str], shapes: Shapes, settings: dict[str, Any]) -> Finding:
    """Whether the file brings every weight that transformers draws anew when it loads the base as a classifier."""
    if not fresh:
        return Finding("head", "ok", "the base brings a head of its own")
    lost = sorted(name.removeprefix(PEFT_PREFIX) for name in fresh - shapes.keys())
    if not lost:
        return Finding("head", "ok", f"all {len(fresh)} weights that are fresh on this base are in the file")
    modules = sorted({name.removeprefix(PEFT_PREFIX).split(".")[0] for name in fresh})
    why = f"{', '.join(lost)}: drawn at random each time the base is loaded, and not in the file"
    cause = f" (task_type {settings['task_type']} saves other parts)" if settings.get("task_type") else ""
    mend = f"the trained values are lost: train it again with task_type=None and modules_to_save={modules}"
    return Finding("head", "broken", f"{why}{cause}, so answers differ from load to load", mend)


def _keys(patient: Patient, model: Any, fresh: set[str]) -> Iterator[Finding]:
    """Whether the file holds what PEFT would save of such an adapter, no less, no more, and in that shape."""
    shapes, record = patient.shapes or {}, patient.record
    plain = {f"{PEFT_PREFIX}{name}" for name in model.state_dict()}
    biases = mark_biases(model) if record and record.strategy == "bias_only" else ()
    try:
        refuse_excessive_rank(patient.folder, patient.settings or {}, shapes)
        wanted = _wanted(patient.folder, model, biases, any(name.endswith(f".{LAYER_WEIGHTS}") for name in shapes))
    except Exception as error:  # PEFT raises nearly every kind there is at settings that it does not expect
        yield Finding("keys", "broken", f"PEFT cannot put it on this base: {first_line(error)}", AGAIN)
        return
    missing = sorted(wanted.keys() - shapes.keys() - fresh)
    # PEFT loads weights of the base, too, where a file has them under their names.
    unknown = sorted(shapes.keys() - wanted.keys() - (set() if record else plain))
    other = sorted(name for name in wanted.keys() & shapes.keys() if wanted[name] != shapes[name])
    if missing:
        why = (
            f"{len(missing)} weights are missing from {WEIGHTS}, {missing[0]} first; they would keep their first values"
        )
        yield Finding("keys", "broken", why, AGAIN)
    if unknown:
        why = f"{len(unknown)} weights in {WEIGHTS} belong nowhere, {unknown[0]} first; PEFT passes over them silently"
        yield Finding("keys", "broken", why, "they were renamed, or are of another base or version; " + AGAIN)
    if other:
        name = other[0]
        why = f"{len(other)} weights have another shape than {ADAPTER_CONFIG} and the base give them, {name} first"
        yield Finding("keys", "broken", f"{why}: {list(shapes[name])}, not {list(wanted[name])} (r, or labels)", AGAIN)
    if not missing and not unknown and not other:
        yield Finding("keys", "ok", f"all {len(wanted)} weights that PEFT would save, in their shapes")


def _wanted(folder: Path, model: Any, biases: tuple[str, ...], mixed: bool) -> Shapes:
    with quiet_loading(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.PeftConfig.from_pretrained(str(folder))
        # An XLORA names other adapters to load, and the rest are for models that read text.
        if (
            config.is_prompt_learning
            or config.peft_type not in PEFT_TYPE_TO_PREFIX_MAPPING
            or config.peft_type == "XLORA"
        ):
            raise ValueError(f"{config.peft_type} is not for audio classifiers")
        if hasattr(config, "init_lora_weights"):
            # Only names and shapes are asked for; some ways of beginning decompose every matrix of the base.
            config.init_lora_weights = False
        return wanted_shapes(peft.get_peft_model(model, config, low_cpu_mem_usage=True), biases, mixed)
