"""A loaded adapter, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device

from peft_audio.adapters.record import AdapterRecord
from peft_audio.data.collate import collate, prepare_clip
from peft_audio.encoders.family import family_of
from peft_audio.tasks.task import Task


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
