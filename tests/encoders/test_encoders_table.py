"""The page that names every encoder of transformers' audio classification."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES as CLASSES

from peft_audio.encoders.family import FAMILIES, family_of
from peft_audio.errors import UserError

ROOT = Path(__file__).parents[2]
WRITE = "run: python benchmarks/validity/encoders_table.py"


def test_every_type_of_transformers_is_supported_or_refused_with_a_reason() -> None:
    page = (ROOT / "docs" / "encoders_table.md").read_text(encoding="utf-8").partition("## ")[0]
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("|")][2:]
    told = {name: (encoder, how) for name, encoder, how in rows}
    assert told.keys() == CLASSES.keys(), WRITE
    for name, (encoder, how) in told.items():
        if name in FAMILIES:
            assert (encoder, how) == (FAMILIES[name].examples, FAMILIES[name].padding), WRITE
        else:
            assert encoder == "refused" and how, WRITE
            with pytest.raises(UserError, match="are not supported; known types"):
                family_of(AutoConfig.for_model(name))


def test_the_script_names_a_reason_for_each_refused_type() -> None:
    refused = runpy.run_path(str(ROOT / "benchmarks" / "validity" / "encoders_table.py"))["REFUSED"]
    assert CLASSES.keys() - FAMILIES.keys() <= refused.keys()
