"""Write docs/encoders_table.md: which encoders of transformers are supported, and how far padding changes their logits.

    python benchmarks/validity/encoders_table.py

The first table has a row for each type of transformers' audio classification. The second is measured: each encoder of
tests/helpers/tiny_encoders.py gets random weights and classifies clips alone and in a padded batch, with the model as
transformers makes it and with the remedy of its family.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES as CLASSES
from transformers.utils import logging

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from helpers.tiny_encoders import ENCODERS, SIBLINGS, save_encoder

from peft_audio.adapters.load import model_inputs
from peft_audio.config import ModelConfig
from peft_audio.encoders.family import FAMILIES, family_of
from peft_audio.encoders.loading import load_classifier, load_extractor
from peft_audio.text import markdown_table

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "encoders_table.md"
# Types without a family, and why.
REFUSED: dict[str, str] = {}
# Both parities of the number of frames, nearly equal lengths, and a clip that is shorter than any encoder takes.
LENGTHS = (8_000, 7_990, 7_321, 5_000, 2_900, 300)
INTRODUCTION = """# Every encoder of transformers' audio classification

<!-- python benchmarks/validity/encoders_table.py -->

`AutoModelForAudioClassification` has the types below. With a supported type, a clip has the same logits alone and in a
batch, to 1e-5 in float32. The last column names what makes it so. Training, evaluation, the feature cache and
`peft-audio predict` use it. An ONNX graph takes clips of one length and needs no mask.
"""
MEASURED = """
## How far padding changes the logits

Six clips of 0.02 to 0.5 s are classified alone and in one padded batch with an attention mask. The table holds the
largest difference of their logits, relative to the largest logit of a clip where that is above 1. Weights are random,
and norms have random scales and statistics. `as in transformers` is the model without the remedy of its family.
"""


def mapping_rows() -> list[tuple[str, str, str]]:
    """List type, checkpoints and the reason why a clip has one answer, or why the type is refused."""
    rows = []
    for name in sorted(CLASSES):
        if name in FAMILIES:
            rows.append((name, FAMILIES[name].examples, FAMILIES[name].padding))
        else:
            rows.append((name, "refused", REFUSED[name]))
    return rows


def padding_errors(base: Path) -> tuple[float, float]:
    """Measure the largest relative difference of logits without and with the remedy of a family.

    Args:
        base: Folder of an encoder.
    """
    cfg = ModelConfig(name=str(base))
    extractor = load_extractor(cfg)
    clips = [np.random.default_rng(i).normal(size=n).astype(np.float32) for i, n in enumerate(LENGTHS)]
    found = []
    for remedy in (False, True):
        torch.manual_seed(0)
        if remedy:
            model = load_classifier(cfg, ("a", "b", "c"))
        else:
            config = transformers.AutoConfig.from_pretrained(base)
            with patch.object(type(family_of(config)), "make_padding_exact", lambda *_: None):
                model = load_classifier(cfg, ("a", "b", "c"))
        randomise(model)
        with torch.no_grad():
            together = model(**model_inputs(clips, extractor, model.config)[0]).logits
            alone = torch.cat([model(**model_inputs([clip], extractor, model.config)[0]).logits for clip in clips])
        unit = alone.abs().amax(1, keepdim=True).clamp(min=1)
        found.append(float(((together - alone).abs() / unit).max()))
    return found[0], found[1]


def randomise(model: torch.nn.Module) -> None:
    """Draw scales and statistics of norms, and enlarge the head until clips have logits of about 1."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name.lower():
                weight.add_(torch.randn_like(weight) * 0.3)
        for name, statistic in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                statistic.add_(torch.rand_like(statistic))
        for name in family_of(model.config).head:
            getattr(model, name).weight.mul_(20)


def page() -> str:
    """Write the whole page."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, config) in enumerate((ENCODERS | SIBLINGS).items()):
            without, with_remedy = padding_errors(save_encoder(Path(folder) / str(number), config))
            rows.append((name, config.model_type, f"{without:.0e}", f"{with_remedy:.0e}"))
    columns = ("encoder", "type", "as in transformers", "here")
    return "\n".join(
        (
            INTRODUCTION,
            markdown_table(("type", "encoder", "one clip, one answer"), mapping_rows()),
            MEASURED,
            markdown_table(columns, rows, numbers_from=2),
            f"\nMeasured with transformers {transformers.__version__} and torch {torch.__version__} on a CPU.",
        )
    )


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    PAGE.write_text(page() + "\n", encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
