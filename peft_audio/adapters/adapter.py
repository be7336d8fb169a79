"""A loaded adapter, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from peft_audio.adapters.record import AdapterRecord
from peft_audio.data.collate import collate, normalise
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
        inputs = model_inputs(waveforms, self.extractor, self.record.mask["minimum_samples"])
        inputs = {name: values.to(device) for name, values in inputs.items()}
        with torch.inference_mode():
            return self.model(**inputs).logits.float().cpu().numpy()


def model_inputs(waveforms: Sequence[np.ndarray], extractor: Any, minimum_samples: int) -> dict[str, torch.Tensor]:
    """A batch of clips as a model takes them.

    Args:
        waveforms: float32 of shape (samples,) each, mono, at the extractor's rate.
        extractor: Of the adapter.
        minimum_samples: See `EncoderFamily.minimum_samples`.

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
