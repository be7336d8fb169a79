"""What differs between tasks, and between encoder families, stays in one folder."""

from __future__ import annotations

import re
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "peft_audio"


def lines_with(pattern: str, outside: str) -> list[str]:
    """The lines of the package's modules and assets that match, outside of one folder."""
    return [
        f"{file.relative_to(PACKAGE)}: {line.strip()}"
        for file in sorted(PACKAGE.rglob("*"))
        if file.suffix in (".py", ".md", ".txt") and file.relative_to(PACKAGE).parts[0] != outside
        for line in file.read_text(encoding="utf-8").splitlines()
        if re.search(pattern, line)
    ]


def test_only_tasks_turn_logits_into_losses_probabilities_and_decisions() -> None:
    found = lines_with(r"softmax|sigmoid|argmax|cross_entropy|binary_cross", outside="tasks")
    # The weights of the layers in the layer sum and WavLM's gates are no logits.
    allowed = ("LAYER_WEIGHTS).softmax", "gate_a, gate_b = ")
    assert [line for line in found if not any(words in line for words in allowed)] == []


# Modules, inputs and config keys of transformers' models, and questions that tell one family from another.
MODULES = (
    r"feature_projection|feature_extractor\.|conv_layers|encoder\.layers|pos_conv_embed|masked_spec_embed|[a-z]_proj\b"
)
MODULES += r"|intermediate_dense|output_dense|freeze_feature_encoder|_get_feature_vector|transformers\.models"
CONFIG = r"do_stable_layer_norm|feat_extract|num_hidden_layers|num_attention_heads|hidden_size|conv_(kernel|stride|dim)"
INPUTS = r"input_values|input_features|attention_mask"
QUESTIONS = r"model_type (==|!=|in \()|isinstance\([a-z_.]*family\b|family(\.model_type)? (==|!=|is)"
HEADS = r"[\"']classifier[\".]"
# The inputs that every record of schema 1 has, an example in a help text, and the README of the bundled encoder.
ALLOWED = ('"names": ["input_values", "attention_mask"]', "[q_proj, v_proj]", "assets/wav2vec2-nano/README.md")


def test_only_encoders_know_the_parts_of_a_model_and_tell_families_apart() -> None:
    found = lines_with("|".join((MODULES, CONFIG, INPUTS, QUESTIONS, HEADS)), outside="encoders")
    assert [line for line in found if not any(words in line for words in ALLOWED)] == []
