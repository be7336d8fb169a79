"""Adapters as small directories that others can load, with or without this package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import AutoFeatureExtractor

from peft_audio.adapter_record import AdapterRecord, read_record
from peft_audio.anatomy import LAYER_WEIGHTS
from peft_audio.collating import collate, normalise
from peft_audio.config import ModelConfig, UserError
from peft_audio.hub import fetch_adapter
from peft_audio.models import (
    BUNDLED_ENCODER,
    first_line,
    identify_base,
    load_classifier,
    load_tuned,
    quiet_loading,
    use_exact_float32,
)
from peft_audio.strategies import freeze_all_but_biases

WEIGHTS = "adapter_model.safetensors"
PROBE_SECONDS = (0.01, 0.5, 1.0, 2.3)


@dataclass(frozen=True)
class Adapter:
    """A loaded adapter: the model in eval mode, how to feed it, and its record."""

    model: Any
    extractor: Any
    record: AdapterRecord

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names in the order of the logits."""
        return self.record.labels

    def logits(self, waveforms: list[np.ndarray]) -> np.ndarray:
        """Logits of a batch of clips, each as if it were alone.

        Args:
            waveforms: float32 of shape (samples,) each, mono, at `record.sampling_rate`.

        Returns:
            float32 of shape (clips, labels).
        """
        device = next(self.model.parameters()).device
        inputs = model_inputs(waveforms, self.extractor, self.record.mask["minimum_samples"])
        inputs = {name: values.to(device) for name, values in inputs.items()}
        with torch.inference_mode():
            return self.model(**inputs).logits.float().cpu().numpy()


def model_inputs(waveforms: Sequence[np.ndarray], extractor: Any, minimum_samples: int) -> dict[str, torch.Tensor]:
    """A batch of clips as a model takes them.

    Args:
        waveforms: float32 of shape (samples,) each, mono, at the extractor's rate.
        extractor: Of the adapter.
        minimum_samples: See `anatomy.minimum_samples`.

    Returns:
        `input_values`, float32 of shape (clips, samples), and `attention_mask` of the same shape where one is needed.
    """
    items = [
        {"input_values": normalise(waveform, extractor), "label": 0, "index": i, "weight": 1.0}
        for i, waveform in enumerate(waveforms)
    ]
    batch = collate(items, minimum_samples)
    # Where nothing is padded, a mask only costs time: attention and group norm have faster kernels without one.
    names = ("input_values",) if batch["attention_mask"].all() else ("input_values", "attention_mask")
    return {name: batch[name] for name in names}


def probe_waveforms(sampling_rate: int) -> list[np.ndarray]:
    """The fixed clips by which a loaded adapter is compared with the saved one: swept tones, swelling and fading.

    Args:
        sampling_rate: In hertz.

    Returns:
        Float32 of shape (samples,), 0.01 to 2.3 s; the first is shorter than what the encoder takes.
    """
    waveforms = []
    for seconds in PROBE_SECONDS:
        time = np.arange(round(seconds * sampling_rate)) / sampling_rate
        # What scipy.signal.chirp gives, which takes half a second to import.
        up, down = (f * time + 0.5 * (last - f) / seconds * time**2 for f, last in ((150.0, 3500.0), (2000.0, 300.0)))
        tone = np.cos(2 * np.pi * up) + 0.5 * np.cos(2 * np.pi * down)
        waveforms.append((0.4 * tone * np.cos(4 * np.pi * time)).astype(np.float32))
    return waveforms


def measure_probes(adapter: Adapter) -> tuple[dict[str, Any], ...]:
    """Logits and top label of each probe clip, in float32 on the CPU, clip by clip."""
    adapter.model.to("cpu").eval()
    found = []
    for seconds, waveform in zip(PROBE_SECONDS, probe_waveforms(adapter.record.sampling_rate), strict=True):
        logits = adapter.logits([waveform])[0]
        by_name = dict(zip(adapter.labels, logits.tolist(), strict=True))
        found.append({"seconds": seconds, "label": adapter.labels[int(logits.argmax())], "logits": by_name})
    return tuple(found)


def load_adapter(
    path: str | Path, base: str | None = None, device: str = "cpu", merge: bool = True, revision: str | None = None
) -> Adapter:
    """Load an adapter directory onto its base, or a whole model as full fine-tuning saves it.

    Args:
        path: A directory made by a recipe, `adapter/` or `model/`, or `org/name` on the Hub.
        base: Where the base encoder is now, if not where the record says: a Hub id or a folder.
        device: Where to run, such as "cpu" or "cuda".
        merge: Fold the adapter into the base: faster, with the same logits to 1e-5. Without it the model is PEFT's.
        revision: On the Hub, see `hub.fetch_adapter`.

    Raises:
        UserError: A part is missing or damaged, or the base is not the one that it was trained on.
    """
    folder = fetch_adapter(path, revision)
    record = read_record(folder)
    if record.whole:
        return Adapter(move_to(_load_whole(folder, record, base), device).eval(), read_extractor(folder), record)
    model, config = load_base(folder, record, base)
    found = identify_base(config, model)
    if found.sha256 != record.base.sha256:
        raise UserError(
            f"{folder}: the base {config.name} is not the one the adapter was trained on "
            f"(weights {found.sha256[:12]}, recorded {record.base.sha256[:12]}); give the right one with --base."
        )
    # PEFT's own list for such an adapter has every bias there is, the convolutions' and the head's second copy too.
    biases = freeze_all_but_biases(model)[1].parameters if record.strategy == "bias_only" else ()
    try:
        keys = _stored_keys(folder / WEIGHTS)
        with quiet_loading():
            model = PeftModel.from_pretrained(model, folder)
    except KeyError as error:
        raise UserError(f"{folder}/{WEIGHTS}: weight {error.args[0]} is missing; get the adapter again.") from error
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"{folder}: cannot be loaded as a PEFT adapter ({first_line(error)}).") from error
    # PEFT only warns about missing keys, and the head would stay random.
    wanted = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    wanted |= {f"base_model.model.{LAYER_WEIGHTS}"} if record.layer_weighted_sum else set()
    wanted = {f"base_model.model.{name}" for name in biases} or wanted
    if wanted != keys:
        wrong = sorted(wanted ^ keys)
        raise UserError(f"{folder}/{WEIGHTS}: {len(wrong)} weights are missing or unknown, {wrong[0]} first.")
    if merge:
        model = model.merge_and_unload()
    return Adapter(move_to(model, device).eval(), read_extractor(folder), record)


def _load_whole(folder: Path, record: AdapterRecord, base: str | None) -> Any:
    if base is not None:
        raise UserError(f"--base: got {base}, but {folder} is a whole model and needs none. Leave it out.")
    try:
        return load_tuned(folder, record.labels, record.layer_weighted_sum)
    except UserError as error:
        raise UserError(str(error).removeprefix("--model.name: ")) from error


def read_extractor(folder: Path) -> Any:
    """The feature extractor of an adapter directory.

    Raises:
        UserError: None can be loaded from there.
    """
    try:
        return AutoFeatureExtractor.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: its preprocessor cannot be loaded ({first_line(error)}).") from error


def load_base(folder: Path, record: AdapterRecord, base: str | None) -> tuple[Any, ModelConfig]:
    """The base of an adapter under a fresh head of its labels, and how it was loaded.

    Args:
        folder: Of the adapter, for messages.
        record: What the adapter says of its base.
        base: Where the base is now, if not where the record says.

    Raises:
        UserError: It is not there, or cannot be loaded.
    """
    name = base or record.base.name
    # What has no commit did not come from the Hub: asking there for that name would find somebody else's files.
    if base is None and record.base.commit is None and name != BUNDLED_ENCODER and not Path(name).expanduser().is_dir():
        raise UserError(f"{folder}: its base, the folder {name}, is not here; say where with --base.")
    revision = None if base else record.base.commit
    config = ModelConfig(name=name, revision=revision, layer_weighted_sum=record.layer_weighted_sum)
    try:
        return load_classifier(config, record.labels), config
    except UserError as error:
        raise UserError(str(error).replace("--model.name", "--base")) from error


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
        raise UserError(f"--device: got {device}, must be {where} ({first_line(error)}).") from error


def _stored_keys(path: Path) -> set[str]:
    try:
        with safe_open(path, framework="pt") as weights:
            return set(weights.keys())
    except SafetensorError as error:
        raise ValueError(f"{path.name} is damaged: {error}") from error
