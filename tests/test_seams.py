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
    # The weights of the layers in the layer sum are no logits.
    assert [line for line in found if "LAYER_WEIGHTS).softmax" not in line] == []
