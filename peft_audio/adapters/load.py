"""Adapters as small directories that others can load, with or without this package."""

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
from peft_audio.encoders.base import LAYER_WEIGHTS
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
    """A loaded adapter.

    Attributes:
        model: The model in eval mode.
        extractor: Feature extractor.
        record: Contents of `peft_audio.json`.
        folder: Folder that it was loaded from; None if it was not.
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
        """Label names in the order of the logits."""
        return self.record.labels

    @property
    def task(self) -> Task:
        """Return what its logits answer."""
        return self.record.task

    def logits(self, waveforms: list[np.ndarray]) -> np.ndarray:
        """Logits of a batch of clips, each as if it were alone.

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
        The model's inputs by name, and the clips' lengths in samples, of shape (clips,). Where nothing is padded, the
        inputs lack a mask, which would only cost time, and the lengths are None.
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


# The kinds of PEFT that our strategies are saved as.
PEFT_TYPES = ("LORA", "IA3")
# A guard against answers that are wrong, not a check of their digits: `peft-audio verify` allows 1e-4.
LOADING_TOLERANCE = 1e-3


def load_adapter(
    path: str | Path, base: str | None = None, device: str = "cpu", merge: bool = True, revision: str | None = None
) -> Adapter:
    """Load an adapter directory onto its base, or a whole model as full fine-tuning saves it.

    Its answer to the shortest probe clip must be the recorded one, to 1e-3; `peft-audio verify` asks for more.

    Args:
        path: A directory made by a recipe, `adapter/` or `model/`, or `org/name` on the Hub.
        base: Where the base encoder is now, if not where the record says: a Hub id or a folder.
        device: Where to run, such as "cpu" or "cuda".
        merge: Fold the adapter into the base: faster, with the same logits to 1e-5. Without it the model is PEFT's.
        revision: On the Hub, see `hub.fetch_adapter`.

    Raises:
        UserError: A part is missing or damaged, the base is not the one that it was trained on, or it answers wrongly.
    """
    adapter = load_unasked(fetch_adapter(path, revision), base)
    problems = check_answers(adapter, LOADING_TOLERANCE, count=1)
    if problems:
        raise UserError(f"{path} does not answer as recorded ({problems[0]}); see: peft-audio verify {path}")
    merged = adapter.model.merge_and_unload() if merge and isinstance(adapter.model, PeftModel) else adapter.model
    return replace(adapter, model=move_to(merged, device).eval())


def load_unasked(folder: Path, base: str | None = None) -> Adapter:
    """An adapter in PEFT's form, or a whole model, on the CPU; nothing was compared with the recorded answers yet.

    Raises:
        UserError: A part is missing or damaged, or the base is not the one that it was trained on.
    """
    record = read_record(folder)
    extractor = read_extractor(folder, record)
    if record.whole:
        return Adapter(_load_whole(folder, record, base), extractor, record, folder)
    shapes = check_peft_files(folder)
    model = load_base(folder, record, base)[0]
    # PEFT's own list for such an adapter has every bias there is, the convolutions' and the head's second copy too.
    biases = mark_biases(model) if record.strategy == "bias_only" else ()
    try:
        with quiet_loading():
            model = PeftModel.from_pretrained(model, folder)
    except KeyError as error:
        raise UserError(f"{folder}/{WEIGHTS}: weight {error.args[0]} is missing; get the adapter again.") from error
    except Exception as error:  # PEFT raises nearly every kind there is at settings that it does not expect
        raise UserError(f"{folder}: cannot be loaded as a PEFT adapter ({library_problem(error)}).") from error
    # PEFT only warns about missing keys, and the head would stay random.
    wanted = wanted_shapes(model, biases, record.layer_weighted_sum).keys()
    if wanted != shapes.keys():
        wrong = sorted(wanted ^ shapes.keys())
        raise UserError(f"{folder}/{WEIGHTS}: {len(wrong)} weights are missing or unknown, {wrong[0]} first.")
    return Adapter(model.eval(), extractor, record, folder)


def as_published(adapter: Adapter) -> Adapter:
    """Merge an adapter, and put transformers' own attention back, in place: what its README loads without us."""
    model = adapter.model.merge_and_unload() if isinstance(adapter.model, PeftModel) else adapter.model
    adapter.record.family.restore_attention(model)
    return replace(adapter, model=model.eval())


def check_peft_files(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight in an adapter's file, once PEFT can be let at its settings.

    Raises:
        UserError: A file is missing or damaged, or its settings are none of ours.
    """
    shapes = stored_shapes(folder / WEIGHTS)
    settings = read_peft_config(folder)
    kind = settings["peft_type"]
    if kind not in PEFT_TYPES:
        raise UserError(f"{folder}: peft_type is {kind}, must be {' or '.join(PEFT_TYPES)}; get the adapter again.")
    refuse_excessive_rank(folder, settings, shapes)
    return shapes


def wanted_shapes(model: PeftModel, biases: Sequence[str], layer_weighted_sum: bool) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight that an adapter's file must hold.

    Args:
        model: The base in PEFT's form.
        biases: The biases that train, and what trains beside them, where that is all that does.
        layer_weighted_sum: Whether there is a mixture of layers, which PEFT does not know of.
    """
    # PEFT wraps what it changes, and keeps what it saves whole twice, the first of them as it was.
    base = {
        name.replace(".original_module.", ".").replace(".base_layer.", "."): value
        for name, value in model.get_base_model().state_dict().items()
    }
    plain = {f"{PEFT_PREFIX}{name}": tuple(value.shape) for name, value in base.items()}
    if biases:
        return {f"{PEFT_PREFIX}{name}": plain[f"{PEFT_PREFIX}{name}"] for name in biases}
    found = get_peft_model_state_dict(model, save_embedding_layers=False)
    mixture = {name: shape for name, shape in plain.items() if name.endswith(f".{LAYER_WEIGHTS}")}
    return {name: tuple(value.shape) for name, value in found.items()} | (mixture if layer_weighted_sum else {})


def _load_whole(folder: Path, record: AdapterRecord, base: str | None) -> Any:
    if base is not None:
        raise UserError(f"--base: got {base}, but {folder} is a whole model and needs none. Leave it out.")
    # transformers would read a pickle instead.
    stored_shapes(folder / WHOLE_WEIGHTS)
    if (folder / ADAPTER_CONFIG).exists():
        raise UserError(f"{folder}: is a whole model, but has an {ADAPTER_CONFIG} as well; take that out.")
    with encoder_given_by(str(folder)):
        model = load_tuned(folder, record.labels, record.layer_weighted_sum)
    _same_minimum(folder, record, model)
    return model


def _same_minimum(folder: Path, record: AdapterRecord, model: Any) -> None:
    """Refuse a record by which a short clip would be padded to less, or more, than in training."""
    found, said = family_of(model.config).minimum_samples(model.config), record.minimum_samples
    if found != said:
        raise UserError(
            f"{folder / RECORD}: minimum_samples is {said}, but the encoder's is {found}; get the adapter again."
        )


def read_extractor(folder: Path, record: AdapterRecord) -> Any:
    """The adapter's own feature extractor.

    Raises:
        UserError: It is missing or damaged, or is not what the record says.
    """
    read_object(folder / PREPROCESSOR)
    try:
        extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False)
        found = record.family.describe_input(extractor, record.minimum_samples)
    except Exception as error:  # as many kinds as there are ways to damage it
        raise UserError(f"{folder}: its preprocessor cannot be loaded ({library_problem(error)}).") from error
    for name, recorded in record.input.items():
        value = found.get(name)
        if value != recorded:
            raise UserError(
                f"{folder / PREPROCESSOR}: {name} is {value}, but {RECORD} says {recorded}; get the adapter again."
            )
    return extractor


def base_of(folder: Path, record: AdapterRecord, base: str | None) -> ModelConfig:
    """Find the base: as given, or as recorded.

    Raises:
        UserError: It is a folder that is not here.
    """
    name = base or record.base.name
    # What has no commit did not come from the Hub: asking there for that name would find somebody else's files.
    if base is None and record.base.commit is None and name != BUNDLED_ENCODER and not is_folder(name):
        raise UserError(f"{folder}: its base, the folder {name}, is not here; say where with --base.")
    revision = None if base else record.base.commit
    return ModelConfig(
        name=name,
        revision=revision,
        input_seconds=record.input_seconds,
        layer_weighted_sum=record.layer_weighted_sum,
    )


def load_base(folder: Path, record: AdapterRecord, base: str | None) -> tuple[Any, ModelConfig]:
    """The base of an adapter under a fresh head of its labels, and how it was loaded.

    Args:
        folder: Of the adapter, for messages.
        record: What the adapter says of its base.
        base: Where the base is now, if not where the record says.

    Raises:
        UserError: It is not there, cannot be loaded, or is not the one that was recorded.
    """
    config = base_of(folder, record, base)
    with encoder_given_by("--base" if base else f"{folder}, its base"):
        model = load_classifier(config, record.labels)
        found = identify_base(config, model)
    if found.sha256 != record.base.sha256:
        raise UserError(
            f"{folder}: the base {config.name} is not the one the adapter was trained on "
            f"(weights {found.sha256[:12]}, recorded {record.base.sha256[:12]}); give the right one with --base."
        )
    check_fits(folder, record, model, base_rate(config))
    return model, config


def check_fits(folder: Path, record: AdapterRecord, model: Any, rate: int | None) -> None:
    """Refuse a record that would have clips prepared as its base does not take them.

    Args:
        folder: Of the adapter, for messages.
        record: Of the adapter.
        model: A classifier on its base.
        rate: What `base_rate` gives for that base.

    Raises:
        UserError: It pads short clips to another length, or is for another sampling rate.
    """
    _same_minimum(folder, record, model)
    if rate not in (None, record.sampling_rate):
        raise UserError(
            f"{folder}: is for {record.sampling_rate} Hz, but its base takes {rate} Hz; get the adapter again."
        )


def base_rate(config: ModelConfig) -> int | None:
    """The sampling rate in hertz that a base says it takes; None where it has no preprocessor to say so."""
    try:
        return load_extractor(config).sampling_rate
    except UserError:
        return None


def move_to(model: Any, device: str) -> Any:
    """A model on a device, where float32 then is float32.

    Raises:
        UserError: There is no such device.
    """
    use_exact_float32()
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        where = "cpu, or cuda where there is one"
        raise UserError(f"--device: got {device}, must be {where} ({library_problem(error)}).") from error
