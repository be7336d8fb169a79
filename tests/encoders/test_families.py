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
from helpers.tiny_encoders import ENCODERS, save_encoder, tiny_config
from safetensors import safe_open
from transformers import HubertConfig

from peft_audio.adapters import save as saving
from peft_audio.adapters import verify
from peft_audio.adapters.files import WEIGHTS
from peft_audio.config import ModelConfig
from peft_audio.encoders.loading import load_classifier
from peft_audio.errors import UserError
from peft_audio.strategies import LastNLayersConfig, LastNLayersRecipe, LoraConfig, LoraRecipe

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
        model = PeftModel.from_pretrained(kind.from_pretrained(cell["base"], **settings), cell["folder"]).eval()
    with torch.no_grad():
        answers[name] = [model(torch.tensor([clip])).logits[0].tolist() for clip in cell["clips"]]
assert not any(name.startswith("peft_audio") for name in sys.modules)
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Cell]:
    """Each encoder x each strategy, trained for three steps and saved. The large ones have a mixture of layers."""
    patch = pytest.MonkeyPatch()
    patch.setattr(saving, "_verify_copy", lambda folder: None)  # one fresh process will load all of them
    root, found = tmp_path_factory.mktemp("matrix"), {}
    for encoder, config in ENCODERS.items():
        base = save_encoder(root / encoder / "base", config)
        for strategy in STRATEGIES:
            folder = root / encoder / strategy
            folder.mkdir()
            found[encoder, strategy] = run_cell(base, STRATEGIES[strategy], config.feat_extract_norm == "layer", folder)
    patch.undo()
    return found


@pytest.fixture(scope="module")
def loaded_by_others(cells: dict[tuple[str, str], Cell], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The clips' logits by plain transformers and PEFT, in a fresh process that never saw this package."""
    file = tmp_path_factory.mktemp("plain") / "cells.json"
    waveforms = [clip.tolist() for clip in clips()]
    jobs = {
        " x ".join(key): {
            "folder": str(cell.folder),
            "base": str(cell.base),
            "whole": cell.whole,
            "mixture": cell.mixture,
            "clips": waveforms,
        }
        for key, cell in cells.items()
    }
    file.write_text(json.dumps(jobs))
    child = subprocess.run([sys.executable, "-P", "-c", PLAIN, str(file)], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


every_encoder = pytest.mark.parametrize("encoder", ENCODERS)
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)


@every_encoder
@every_strategy
def test_exactly_what_trains_gets_a_gradient_and_moves(cells: Any, encoder: str, strategy: str) -> None:
    cell = cells[encoder, strategy]
    assert cell.without_gradient == []
    assert cell.gradient_elsewhere == []
    assert cell.graph_through_cnn == [strategy == "full, train_cnn"] * 2
    # Biases that get a zero gradient need not move; nothing frozen may, by a single bit.
    assert cell.moved <= cell.trained
    assert all(name.endswith("k_proj.bias") for name in cell.trained - cell.moved)


@every_encoder
@every_strategy
def test_one_clip_one_answer(cells: Any, encoder: str, strategy: str) -> None:
    cell = cells[encoder, strategy]
    assert np.abs(cell.logits).max() > 0.1
    assert cell.logits.std(0).max() > 1e-3, "the clips must have different answers"
    assert cell.padding_error < 1e-5 * max(1, np.abs(cell.logits).max())


def test_a_fresh_process_without_this_package_gives_the_same_logits(
    cells: dict[tuple[str, str], Cell], loaded_by_others: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    errors = {
        key: float(np.abs(np.array(loaded_by_others[" x ".join(key)]) - cell.logits).max())
        for key, cell in cells.items()
    }
    with capsys.disabled():
        print("\nlargest difference of logits after saving and loading with plain transformers and PEFT:")
        print(f"{'':32}" + "".join(f"{strategy:>26}" for strategy in STRATEGIES))
        for encoder in ENCODERS:
            mixture = " (mixture)" if cells[encoder, "lora"].mixture else ""
            row = "".join(f"{errors[encoder, strategy]:26.0e}" for strategy in STRATEGIES)
            print(f"{encoder + mixture:<32}{row}")
    assert len(errors) == len(ENCODERS) * len(STRATEGIES)
    assert {key: error for key, error in errors.items() if not error < 1e-5} == {}


@every_encoder
@every_strategy
def test_our_own_loading_answers_as_recorded(cells: Any, encoder: str, strategy: str) -> None:
    assert verify.check_probes(cells[encoder, strategy].folder) == []


@every_encoder
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


def test_lora_on_attention_that_ignores_it_is_refused(tmp_path: Path) -> None:
    base = save_encoder(tmp_path / "wavlm", ENCODERS["wavlm-base"])
    for targets in ("attention", ["q_proj", "output_dense"]):
        model = load_classifier(ModelConfig(name=str(base)), LABELS)
        with pytest.raises(UserError, match=r"--lora.targets: got .*q_proj.*WavLM's attention ignores LoRA"):
            adapt(model, LoraRecipe(lora=LoraConfig(targets=targets)))


def test_an_encoder_whose_padding_cannot_be_kept_out_is_refused(tmp_path: Path) -> None:
    base = save_encoder(tmp_path / "hubert", tiny_config("group", HubertConfig, conv_pos_batch_norm=True))
    with pytest.raises(UserError, match=r"batch norm.*conv_pos_batch_norm"):
        load_classifier(ModelConfig(name=str(base)), LABELS)


def test_more_last_layers_than_there_are_is_refused(tmp_path: Path) -> None:
    base = save_encoder(tmp_path / "base", ENCODERS["hubert-base"])
    model = load_classifier(ModelConfig(name=str(base)), LABELS)
    with pytest.raises(UserError, match=r"--last_n_layers.n: got 3, must be 1 to 2"):
        adapt(model, LastNLayersRecipe(last_n_layers=LastNLayersConfig(n=3)))
