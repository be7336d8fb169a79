"""Load adapters and models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from peft import PeftModel, get_peft_model_state_dict
from transformers import AutoFeatureExtractor

from peft_audio.adapters.files import (
    ADAPTER_CONFIG,
    PREPROCESSOR,
    WEIGHTS,
    WHOLE_WEIGHTS,
    read_object,
    read_peft_config,
    refuse_excessive_rank,
    stored_shapes,
)
from peft_audio.adapters.hub import fetch_adapter
from peft_audio.adapters.probes import check_answers
from peft_audio.adapters.record import RECORD, AdapterRecord, read_record
from peft_audio.config import ModelConfig
from peft_audio.data.collate import collate, prepare_clip
from peft_audio.encoders.base import INPUT_NOTES, LAYER_WEIGHTS
from peft_audio.encoders.family import family_of
from peft_audio.encoders.loading import (
    BUNDLED_ENCODER,
    identify_base,
    load_classifier,
    load_extractor,
    load_tuned,
    quiet_loading,
    use_exact_float32,
)
from peft_audio.errors import UserError, encoder_given_by, library_problem
from peft_audio.files import is_folder
from peft_audio.strategies.base import PEFT_PREFIX
from peft_audio.strategies.bias_only import mark_biases
from peft_audio.tasks.task import Task
from peft_audio.text import printable


@dataclass(frozen=True)
class Adapter:
    """Loaded adapter.

    Attributes:
        model: Model in eval mode.
        extractor: Feature extractor.
        record: Contents of `peft_audio.json`.
        folder: Folder of the adapter; None if it was not loaded from one.
    """

    model: Any
    extractor: Any
    record: AdapterRecord
    folder: Path | None = None

    def __repr__(self) -> str:
        record, where = self.record, f", {self.folder}" if self.folder else ""
        labels = ", ".join(self.labels[:3]) + (", ..." if len(self.labels) > 3 else "")
        kind = "model" if record.whole else "adapter"
        text = f"{record.strategy} {kind} for {record.base.name}, {len(self.labels)} labels: {labels}{where}"
        return f"<Adapter: {printable(text)}>"

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the label names in the order of the logits."""
        return self.record.labels

    @property
    def task(self) -> Task:
        """Return the task of the logits."""
        return self.record.task

    def logits(self, waveforms: list[np.ndarray]) -> np.ndarray:
        """Compute the logits of a batch of clips; the logits of a clip do not depend on the others.

        Args:
            waveforms: float32 of shape (samples,) each, mono, at `record.sampling_rate`.

        Returns:
            float32 of shape (clips, labels).
        """
        device = next(self.model.parameters()).device
        inputs, _ = model_inputs(waveforms, self.extractor, self.model.config)
        inputs = send_to_device(inputs, device)
        with torch.inference_mode():
            return self.model(**inputs).logits.float().cpu().numpy()


def model_inputs(
    waveforms: Sequence[np.ndarray], extractor: Any, config: Any
) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    """Prepare and pad a batch of clips.

    Args:
        waveforms: float32 of shape (samples,) each, mono, at the extractor's sampling rate.
        extractor: Feature extractor of the adapter.
        config: Config of the model.

    Returns:
        The inputs of the model by name, and the lengths of the clips in samples, of shape (clips,). If no clip is
        padded, there is no mask, which would only cost time, and the lengths are None.
    """
    family = family_of(config)
    items = [
        prepare_clip(waveform, extractor, family) | {"label": 0, "index": i, "weight": 1.0}
        for i, waveform in enumerate(waveforms)
    ]
    batch = collate(items, config)
    samples = batch["samples"]
    if bool((samples == samples[0]).all()):
        return family.unpadded(batch["inputs"]), None
    return batch["inputs"], samples


# Types of PEFT in which strategies are saved.
PEFT_TYPES = ("LORA", "IA3")
# This detects wrong logits, not small differences, for which `peft-audio verify` allows 1e-4.
LOADING_TOLERANCE = 1e-3


def load_adapter(
    path: str | Path, base: str | None = None, device: str = "cpu", merge: bool = True, revision: str | None = None
) -> Adapter:
    """Load an adapter onto its base, or a whole model from full fine-tuning.

    The logits of the shortest probe clip must equal the recorded logits within 1e-3. `peft-audio verify` checks all
    probe clips within 1e-4.

    Args:
        path: Directory made by a recipe, `adapter/` or `model/`, or `org/name` on the Hub.
        base: Folder or Hub id of the base encoder, if the recorded one is no longer valid.
        device: Device, such as "cpu" or "cuda".
        merge: Merge the adapter into the base, which is faster, with equal logits within 1e-5. Otherwise the model is a
            `PeftModel`.
        revision: Branch, tag or commit of an adapter on the Hub.

    Raises:
        UserError: A part is missing or damaged, the base is another one than in training, or the logits are wrong.
    """
    adapter = load_unchecked(fetch_adapter(path, revision), base)
    problems = check_answers(adapter, LOADING_TOLERANCE, count=1)
    if problems:
        raise UserError(f"{path} does not answer as recorded ({problems[0]}); see: peft-audio verify {path}")
    merged = adapter.model.merge_and_unload() if merge and isinstance(adapter.model, PeftModel) else adapter.model
    return replace(adapter, model=move_to(merged, device).eval())


def load_unchecked(folder: Path, base: str | None = None) -> Adapter:
    """Load an adapter in the form of PEFT, or a whole model, on the CPU, without a check of its logits.

    Raises:
        UserError: A part is missing or damaged, or the base is another one than in training.
    """
    record = read_record(folder)
    extractor = read_extractor(folder, record)
    if record.whole:
        return Adapter(_load_whole(folder, record, base), extractor, record, folder)
    shapes = check_peft_files(folder)
    model = load_base(folder, record, base)[0]
    # The list of PEFT would include all biases, also those of convolutions and of its second copy of the head.
    biases = mark_biases(model) if record.strategy == "bias_only" else ()
    try:
        with quiet_loading():
            model = PeftModel.from_pretrained(model, folder)
    except KeyError as error:
        raise UserError(f"{folder}/{WEIGHTS}: weight {error.args[0]} is missing; get the adapter again.") from error
    except Exception as error:  # PEFT raises many types of errors for unexpected settings
        raise UserError(f"{folder}: cannot be loaded as a PEFT adapter ({library_problem(error)}).") from error
    # PEFT only warns about missing keys, and the head would stay random.
    expected = expected_shapes(model, biases, record.layer_weighted_sum).keys()
    if expected != shapes.keys():
        wrong = sorted(expected ^ shapes.keys())
        raise UserError(f"{folder}/{WEIGHTS}: {len(wrong)} weights are missing or unknown, {wrong[0]} first.")
    return Adapter(model.eval(), extractor, record, folder)


def as_published(adapter: Adapter) -> Adapter:
    """Merge an adapter and restore the attention of transformers, in place, as in the README without this package."""
    model = adapter.model.merge_and_unload() if isinstance(adapter.model, PeftModel) else adapter.model
    adapter.record.family.restore_attention(model)
    return replace(adapter, model=model.eval())


def check_peft_files(folder: Path) -> dict[str, tuple[int, ...]]:
    """Check that PEFT can load the files of an adapter safely, and return the shapes of its weights by name.

    Raises:
        UserError: A file is missing or damaged, or the type of adapter is not one of this package.
    """
    shapes = stored_shapes(folder / WEIGHTS)
    settings = read_peft_config(folder)
    kind = settings["peft_type"]
    if kind not in PEFT_TYPES:
        raise UserError(f"{folder}: peft_type is {kind}, must be {' or '.join(PEFT_TYPES)}; get the adapter again.")
    refuse_excessive_rank(folder, settings, shapes)
    return shapes


def expected_shapes(model: PeftModel, biases: Sequence[str], layer_weighted_sum: bool) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights that an adapter's file must hold, by name.

    Args:
        model: Base wrapped by PEFT.
        biases: Names of all trained parameters with the strategy "bias_only"; empty for other strategies.
        layer_weighted_sum: Whether the adapter has a mixture of layers, which PEFT does not list.
    """
    # PEFT wraps layers that it changes, and keeps an original copy of modules that it saves whole.
    base = {
        name.replace(".original_module.", ".").replace(".base_layer.", "."): value
        for name, value in model.get_base_model().state_dict().items()
    }
    plain = {f"{PEFT_PREFIX}{name}": tuple(value.shape) for name, value in base.items()}
    if biases:
        return {f"{PEFT_PREFIX}{name}": plain[f"{PEFT_PREFIX}{name}"] for name in biases}
    stored = get_peft_model_state_dict(model, save_embedding_layers=False)
    mixture = {name: shape for name, shape in plain.items() if name.endswith(f".{LAYER_WEIGHTS}")}
    return {name: tuple(value.shape) for name, value in stored.items()} | (mixture if layer_weighted_sum else {})


def _load_whole(folder: Path, record: AdapterRecord, base: str | None) -> Any:
    """Load a whole model, and check that its folder holds nothing else that could be loaded."""
    if base is not None:
        raise UserError(f"--base: got {base}, but {folder} is a whole model and needs none. Leave it out.")
    # Without this file, transformers would read a pickle.
    stored_shapes(folder / WHOLE_WEIGHTS)
    if (folder / ADAPTER_CONFIG).exists():
        raise UserError(f"{folder}: is a whole model, but has an {ADAPTER_CONFIG} as well; remove that file.")
    with encoder_given_by(str(folder)):
        model = load_tuned(folder, record.labels, record.layer_weighted_sum)
    _check_minimum(folder, record, model)
    return model


def _check_minimum(folder: Path, record: AdapterRecord, model: Any) -> None:
    """Refuse a record with which short clips would be padded to another length than in training."""
    expected, recorded = family_of(model.config).minimum_samples(model.config), record.minimum_samples
    if expected != recorded:
        raise UserError(
            f"{folder / RECORD}: minimum_samples is {recorded}, but the encoder's is {expected}; get the adapter again."
        )


def read_extractor(folder: Path, record: AdapterRecord) -> Any:
    """Load the feature extractor of an adapter.

    Raises:
        UserError: The extractor is missing, damaged or differs from the record.
    """
    read_object(folder / PREPROCESSOR)
    try:
        with quiet_loading():
            extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False)
        described = record.family.describe_input(extractor, record.minimum_samples)
    except Exception as error:  # damaged files raise many types of errors
        raise UserError(f"{folder}: its preprocessor cannot be loaded ({library_problem(error)}).") from error
    for name, recorded in record.input.items():
        value = recorded if name in INPUT_NOTES else described.get(name)
        if value != recorded:
            raise UserError(
                f"{folder / PREPROCESSOR}: {name} is {value}, but {recorded} in {RECORD}; get the adapter again."
            )
    absent = [name for name in described if name not in record.input.keys() | INPUT_NOTES]
    if absent:
        raise UserError(f"{folder / RECORD}: input lacks {absent[0]}; get the adapter again.")
    return extractor


def base_of(folder: Path, record: AdapterRecord, base: str | None) -> ModelConfig:
    """Return the settings of the given or recorded base.

    Raises:
        UserError: The recorded base is a folder that does not exist.
    """
    name = base or record.base.name
    # A base without a commit is not from the Hub, where its name would find the files of somebody else.
    if base is None and record.base.commit is None and name != BUNDLED_ENCODER and not is_folder(name):
        raise UserError(f"{folder}: its base, the folder {name}, does not exist; give its folder with --base.")
    revision = None if base else record.base.commit
    return ModelConfig(
        name=name,
        revision=revision,
        input_seconds=record.input_seconds,
        layer_weighted_sum=record.layer_weighted_sum,
    )


def load_base(folder: Path, record: AdapterRecord, base: str | None) -> tuple[Any, ModelConfig]:
    """Load the base of an adapter with a new head for its labels.

    Args:
        folder: Folder of the adapter, for messages.
        record: Record of the adapter.
        base: Folder or Hub id of the base, if the recorded one is no longer valid.

    Returns:
        The model, and the settings from which it was loaded.

    Raises:
        UserError: The base does not exist, cannot be loaded, or differs from the recorded one.
    """
    config = base_of(folder, record, base)
    with encoder_given_by("--base" if base else f"{folder}, its base"):
        model = load_classifier(config, record.labels)
        loaded = identify_base(config, model)
    if loaded.sha256 != record.base.sha256:
        raise UserError(
            f"{folder}: the base {config.name} is not the one the adapter was trained on "
            f"(weights {loaded.sha256[:12]}, recorded {record.base.sha256[:12]}); give the right base with --base."
        )
    check_fits(folder, record, model, base_rate(config))
    return model, config


def check_fits(folder: Path, record: AdapterRecord, model: Any, rate: int | None) -> None:
    """Refuse a record whose preparation of clips does not fit the base.

    Args:
        folder: Folder of the adapter, for messages.
        record: Record of the adapter.
        model: Classifier on its base.
        rate: Sampling rate of the base in hertz, from `base_rate`; None if unknown.

    Raises:
        UserError: The record has another minimum length or another sampling rate than the base.
    """
    _check_minimum(folder, record, model)
    if rate not in (None, record.sampling_rate):
        raise UserError(
            f"{folder}: is for {record.sampling_rate} Hz, but its base takes {rate} Hz; get the adapter again."
        )


def base_rate(config: ModelConfig) -> int | None:
    """Return the sampling rate of a base in hertz; None if it has no preprocessor."""
    try:
        return load_extractor(config).sampling_rate
    except UserError:
        return None


def move_to(model: Any, device: str) -> Any:
    """Move a model to a device, with exact float32 on GPUs.

    Raises:
        UserError: The device does not exist.
    """
    use_exact_float32()
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        problem = library_problem(error)
        raise UserError(f"--device: got {device}, must be cpu, or cuda if available ({problem}).") from error
