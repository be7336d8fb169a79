"""Every encoder with every strategy: what trains, what stays, and that others load the result."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.adapt import adapt
from helpers.family_cells import LABELS, STRATEGIES, Cell, clips, run_cell
from helpers.matrix import encoders_by_strategies, first_quick, is_quick
from helpers.tiny_encoders import ENCODERS, save_encoder
from safetensors import safe_open

from peft_audio.adapters import save as saving
from peft_audio.adapters import verify
from peft_audio.adapters.files import WEIGHTS
from peft_audio.config import ModelConfig
from peft_audio.encoders.family import FAMILIES
from peft_audio.encoders.loading import load_classifier
from peft_audio.errors import UserError
from peft_audio.strategies import LastNLayersConfig, LastNLayersRecipe

# What somebody without this package does, in one process for all cells; the base's place comes from outside.
PLAIN = """
import json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForAudioClassification, logging
logging.set_verbosity_error()
answers = {}
for name, cell in json.load(open(sys.argv[1])).items():
    kind = AutoModelForAudioClassification
    if cell["whole"]:
        model = kind.from_pretrained(cell["folder"], dtype=torch.float32).eval()
    else:
        settings = {"num_labels": 3, "use_weighted_layer_sum": cell["mixture"], "dtype": torch.float32}
        model = PeftModel.from_pretrained(kind.from_pretrained(cell["base"], **settings), cell["folder"])
        model = (model.merge_and_unload() if cell["merge"] else model).eval()
    with torch.no_grad():
        answers[name] = [model(torch.tensor([clip])).logits[0].tolist() for clip in cell["clips"]]
assert not any(name.startswith("peft_audio") for name in sys.modules)
print(json.dumps(answers))
"""


class Cells(dict[tuple[str, str], Cell]):
    """Encoder and strategy -> cell, made when it is first asked for. The large encoders have a mixture of layers."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __missing__(self, key: tuple[str, str]) -> Cell:
        encoder, strategy = key
        config, base, folder = ENCODERS[encoder], self.root / encoder / "base", self.root / encoder / strategy
        if not base.exists():
            save_encoder(base, config)
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(saving, "_verify_copy", lambda folder: None)  # one fresh process will load all of them
            self[key] = run_cell(base, STRATEGIES[strategy], config.feat_extract_norm == "layer", folder)
        return self[key]


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Cells:
    """Each encoder x each strategy, trained for three steps and saved."""
    return Cells(tmp_path_factory.mktemp("matrix"))


def loaded_by_others(cells: dict[tuple[str, str], Cell], file: Path) -> dict[str, Any]:
    """Answer the clips with plain transformers and PEFT, in a fresh process that never saw this package."""
    waveforms = [clip.tolist() for clip in clips()]
    jobs = {
        " x ".join(key): {
            "folder": str(cell.folder),
            "base": str(cell.base),
            "whole": cell.whole,
            "merge": bool(FAMILIES[ENCODERS[key[0]].model_type].uncalled),
            "mixture": cell.mixture,
            "clips": waveforms,
        }
        for key, cell in cells.items()
    }
    file.write_text(json.dumps(jobs))
    child = subprocess.run([sys.executable, "-P", "-c", PLAIN, str(file)], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


every_cell = pytest.mark.parametrize(("encoder", "strategy"), encoders_by_strategies(ENCODERS, STRATEGIES))


@every_cell
def test_exactly_what_trains_gets_a_gradient_and_moves(cells: Any, encoder: str, strategy: str) -> None:
    cell = cells[encoder, strategy]
    assert cell.without_gradient == []
    assert cell.gradient_elsewhere == []
    assert cell.graph_through_cnn == [strategy == "full, train_cnn"] * 2
    # Biases that get a zero gradient need not move; nothing frozen may, by a single bit.
    assert cell.moved <= cell.trained
    assert all(name.endswith("k_proj.bias") for name in cell.trained - cell.moved)


@every_cell
def test_one_clip_one_answer(cells: Any, encoder: str, strategy: str) -> None:
    cell = cells[encoder, strategy]
    assert np.abs(cell.logits).max() > 0.1
    assert cell.logits.std(0).max() > 1e-3, "the clips must have different answers"
    assert cell.padding_error < 1e-5 * max(1, np.abs(cell.logits).max())


def errors_in_a_fresh_process(cells: dict[tuple[str, str], Cell], folder: Path) -> dict[tuple[str, str], float]:
    found = loaded_by_others(cells, folder / "cells.json")
    return {key: float(np.abs(np.array(found[" x ".join(key)]) - cell.logits).max()) for key, cell in cells.items()}


@pytest.mark.slow
def test_a_fresh_process_without_this_package_gives_the_same_logits(cells: Cells, tmp_path: Path) -> None:
    quick = [(encoder, strategy) for encoder in ENCODERS for strategy in STRATEGIES if is_quick(encoder, strategy)]
    errors = errors_in_a_fresh_process({key: cells[key] for key in quick}, tmp_path)
    assert {key: error for key, error in errors.items() if not error < 1e-5} == {}


@every_cell
def test_our_own_loading_answers_as_recorded(cells: Any, encoder: str, strategy: str) -> None:
    assert verify.check_probes(cells[encoder, strategy].folder) == []


@pytest.mark.parametrize("encoder", first_quick(ENCODERS))
def test_only_what_trained_is_in_the_file(cells: Any, encoder: str) -> None:
    head = {f"{module}.{part}" for module in ("projector", "classifier") for part in ("weight", "bias")}
    config = ENCODERS[encoder]
    mixture = {"layer_weights"} if config.feat_extract_norm == "layer" else set()
    names = {}
    for strategy in ("head_only", "bias_only", "last_n_layers", "last_n_layers, attention"):
        with safe_open(cells[encoder, strategy].folder / WEIGHTS, "pt") as stored:
            names[strategy] = {name.removeprefix("base_model.model.") for name in stored.keys()}  # noqa: SIM118
            assert stored.metadata() == {"format": "pt"}
    assert names["head_only"] == head | mixture
    beside = {strategy: found - head - mixture for strategy, found in names.items()}
    assert beside["bias_only"] and all(name.endswith(".bias") for name in beside["bias_only"])
    assert not any(".feature_extractor." in name for name in beside["bias_only"])
    prefix = config.model_type.replace("-", "_") + ".encoder.layers."
    assert all(name.startswith(f"{prefix}1.") for name in beside["last_n_layers"])
    assert all(".attention." in name for name in beside["last_n_layers, attention"])
    assert {name.removeprefix(prefix)[0] for name in beside["last_n_layers, attention"]} == {"0", "1"}


def test_more_last_layers_than_there_are_is_refused(tmp_path: Path) -> None:
    base = save_encoder(tmp_path / "base", ENCODERS["hubert-base"])
    model = load_classifier(ModelConfig(name=str(base)), LABELS)
    with pytest.raises(UserError, match=r"--last_n_layers.n: got 3, must be 1 to 2"):
        adapt(model, LastNLayersRecipe(last_n_layers=LastNLayersConfig(n=3)))
