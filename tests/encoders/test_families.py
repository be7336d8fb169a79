"""Every encoder with every strategy: what trains, what stays, and that others load the result."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import ENCODERS, save_encoder, tiny_config
from safetensors import safe_open
from torch.nn.functional import cross_entropy
from transformers import HubertConfig

from peft_audio.adapters import save as saving
from peft_audio.adapters import verify
from peft_audio.adapters.files import WEIGHTS
from peft_audio.adapters.record import describe_adapter
from peft_audio.config import FullConfig, LastNLayersConfig, LoraConfig, ModelConfig, Recipe, TrainConfig
from peft_audio.data.collate import collate
from peft_audio.data.loaders import Loaders
from peft_audio.data.sampler import TrainingBatches
from peft_audio.encoders.family import encoder_of
from peft_audio.encoders.loading import identify_base, load_classifier, load_extractor
from peft_audio.errors import UserError
from peft_audio.strategies.base import (
    apply_ia3,
    apply_lora,
    freeze_all_but_biases,
    freeze_all_but_head,
    freeze_all_but_last_n_layers,
    freeze_nothing,
)
from peft_audio.training.loop import set_modes, train
from peft_audio.training.tracking import Log

LABELS = ("a", "b", "c")
LENGTHS = (8_000, 5_000, 700)
STRATEGIES = {
    "head_only": freeze_all_but_head,
    "bias_only": freeze_all_but_biases,
    "last_n_layers": lambda model: freeze_all_but_last_n_layers(model, LastNLayersConfig(n=1)),
    "last_n_layers, attention": lambda model: freeze_all_but_last_n_layers(
        model, LastNLayersConfig(n=2, part="attention")
    ),
    "lora": lambda model: apply_lora(model, LoraConfig(dropout=0.1)),
    "lora, dora": lambda model: apply_lora(model, LoraConfig(use_dora=True)),
    # Scaled by alpha / sqrt(r): as much as LoRA's default here, or rounding errors grow with it.
    "lora, rslora": lambda model: apply_lora(model, LoraConfig(alpha=6, use_rslora=True)),
    "ia3": apply_ia3,
    "full": lambda model: freeze_nothing(model, FullConfig()),
    "full, train_cnn": lambda model: freeze_nothing(model, FullConfig(train_cnn=True)),
}
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


@dataclass
class Cell:
    """What one encoder did under one strategy."""

    folder: Path
    base: Path
    whole: bool
    mixture: bool
    logits: np.ndarray  # of each clip alone, after training
    moved: set[str]  # by three steps
    trained: set[str]
    without_gradient: list[str]
    gradient_elsewhere: list[str]
    graph_through_cnn: list[bool]  # while training, and in a loop that calls model.train()
    padding_error: float  # between each clip alone and in a padded batch


def clips() -> list[np.ndarray]:
    return [np.random.default_rng(i).normal(size=n).astype(np.float32) for i, n in enumerate(LENGTHS)]


def batch() -> dict[str, torch.Tensor]:
    items = [
        {"input_values": clip, "label": i % len(LABELS), "index": i, "weight": 1 / len(LENGTHS)}
        for i, clip in enumerate(clips())
    ]
    return collate(items, 400)


def logits(model: Any) -> torch.Tensor:
    inputs = batch()
    return model(input_values=inputs["input_values"], attention_mask=inputs["attention_mask"]).logits


def alone(model: Any) -> torch.Tensor:
    return torch.cat([model(input_values=torch.from_numpy(clip)[None]).logits for clip in clips()])


def run_cell(base: Path, strategy: str, mixture: bool, folder: Path) -> Cell:
    cfg = Recipe(model=ModelConfig(name=str(base), layer_weighted_sum=mixture))
    torch.manual_seed(0)
    model = load_classifier(cfg.model, LABELS)
    identity, extractor = identify_base(cfg.model, model), load_extractor(cfg.model)
    with torch.no_grad():
        for weight in (model.projector.weight, model.classifier.weight):
            weight.mul_(10)  # a head that tells clips apart by more than rounding errors
    model, trained = STRATEGIES[strategy](model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)

    set_modes(model, trained)
    outputs: list[torch.Tensor] = []
    hook = encoder_of(model).feature_extractor.register_forward_hook(lambda *call: outputs.append(call[2]))
    cross_entropy(logits(model), batch()["label"]).backward()
    # transformers builds that graph in train mode only: somebody with a loop of their own would meet it.
    logits(model.train())
    hook.remove()
    parameters = dict(model.named_parameters())
    without = [n for n in trained.parameters if parameters[n].grad is None or not parameters[n].grad.any()]
    elsewhere = [n for n, p in parameters.items() if p.grad is not None and n not in trained.parameters]
    model.zero_grad()

    before = copy.deepcopy(model.state_dict())
    order = TrainingBatches([1.0] * 9, 3, seed=0)
    loaders = Loaders([batch()] * 3, order, train_whole=None, validation=[batch()], test=None)
    settings = TrainConfig(epochs=1, batch_size=3, learning_rate=1e-2, warmup_share=0.0)
    result = train(model, trained, loaders, settings, Accelerator(), Log(folder / "log.jsonl"))
    after = result.model.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}

    model = result.model.eval()
    with torch.no_grad():
        together, each = logits(model), alone(model)
    record = describe_adapter(cfg, identity, LABELS, extractor, trained.strategy, {"validation_accuracy": 0.5})
    product = saving.save_adapter(folder, model, trained, extractor, record)
    return Cell(
        folder=product,
        base=base,
        whole=trained.peft_config is None,
        mixture=mixture,
        logits=each.numpy(),
        moved=moved,
        trained=set(trained.parameters),
        # A key's bias shifts all scores of a query alike, and softmax does not see it.
        without_gradient=[name for name in without if not name.endswith("k_proj.bias")],
        gradient_elsewhere=elsewhere,
        graph_through_cnn=[output.requires_grad for output in outputs],
        padding_error=float((together - each).abs().max()),
    )


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
            found[encoder, strategy] = run_cell(base, strategy, config.feat_extract_norm == "layer", folder)
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
            apply_lora(model, LoraConfig(targets=targets))


def test_an_encoder_whose_padding_cannot_be_kept_out_is_refused(tmp_path: Path) -> None:
    base = save_encoder(tmp_path / "hubert", tiny_config("group", HubertConfig, conv_pos_batch_norm=True))
    with pytest.raises(UserError, match=r"batch norm.*conv_pos_batch_norm"):
        load_classifier(ModelConfig(name=str(base)), LABELS)


def test_more_last_layers_than_there_are_is_refused(tmp_path: Path) -> None:
    base = save_encoder(tmp_path / "base", ENCODERS["hubert-base"])
    model = load_classifier(ModelConfig(name=str(base)), LABELS)
    with pytest.raises(UserError, match=r"--last_n_layers.n: got 3, must be 1 to 2"):
        freeze_all_but_last_n_layers(model, LastNLayersConfig(n=3))
