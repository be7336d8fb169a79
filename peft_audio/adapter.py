"""A loaded adapter, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from peft_audio.adapter_record import AdapterRecord
from peft_audio.collating import collate, normalise


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
        items = [
            {"input_values": normalise(waveform, self.extractor), "label": 0, "index": i, "weight": 1.0}
            for i, waveform in enumerate(waveforms)
        ]
        batch = collate(items, self.record.mask["minimum_samples"])
        device = next(self.model.parameters()).device
        # Where nothing is padded, a mask only costs time: attention and group norm have faster kernels without one.
        names = ("input_values",) if batch["attention_mask"].all() else ("input_values", "attention_mask")
        inputs = {name: batch[name].to(device) for name in names}
        with torch.inference_mode():
            return self.model(**inputs).logits.float().cpu().numpy()
